use super::*;

fn spec(name: &str, interface: &str, address: &str) -> EndpointSpec {
    EndpointSpec {
        name: name.parse().unwrap(),
        interface: interface.into(),
        netns: None,
        addresses: vec![address.parse().unwrap()],
        mac: None,
        attachment: None,
        pod_uid: None,
        bandwidth: None,
    }
}

fn arrive(arrivals: &mut Arrivals, spec: EndpointSpec) -> mpsc::Receiver<Reply> {
    let (asked, replies) = mpsc::channel(1);
    arrivals.let_wait(spec, asked);
    replies
}

/// Begins all that can be, and tells their interfaces.
fn begin(arrivals: &mut Arrivals, held: &str) -> Vec<String> {
    let mut begun = Vec::new();
    while let Some(arrival) = arrivals.next(|arrival| arrival.spec.interface == held) {
        begun.push(arrival.spec.interface.clone());
        arrivals.under_way.push(arrival);
    }
    begun
}

#[test]
fn requests_are_begun_in_order_but_for_those_that_another_one_is_in_the_way_of() {
    let mut arrivals = Arrivals::new();
    let _clients: Vec<_> = [
        spec("a/one", "v1", "10.0.0.1"),
        spec("a/one", "v9", "10.0.0.9"),
        spec("a/two", "v2", "10.0.0.1"),
        spec("a/three", "v1", "10.0.0.3"),
        spec("a/four", "v4", "10.0.0.4"),
        // In the way of this one is one that waits itself.
        spec("a/five", "v9", "10.0.0.5"),
        spec("a/six", "held", "10.0.0.6"),
        spec("a/seven", "v7", "10.0.0.7"),
    ]
    .into_iter()
    .map(|spec| arrive(&mut arrivals, spec))
    .collect();
    assert_eq!(begin(&mut arrivals, "held"), ["v1", "v4", "v7"]);
    let first = arrivals.under_way[0].number;
    assert!(arrivals.take(first).is_some());
    assert_eq!(begin(&mut arrivals, "held"), ["v9", "v2", "v1"]);
    assert_eq!(begin(&mut arrivals, ""), ["held"]);
    arrivals.under_way.clear();
    assert_eq!(begin(&mut arrivals, ""), ["v9"]);
}

#[test]
fn no_more_are_under_way_than_may_be_and_the_rest_waits() {
    let mut arrivals = Arrivals::new();
    let _clients: Vec<_> = (0..UNDER_WAY_MAX + 3)
        .map(|number| {
            let (name, interface) = (format!("a/p{number}"), format!("v{number}"));
            arrive(&mut arrivals, spec(&name, &interface, &format!("10.0.1.{number}")))
        })
        .collect();
    assert_eq!(begin(&mut arrivals, "").len(), UNDER_WAY_MAX);
    assert_eq!(arrivals.lengths(), (3, UNDER_WAY_MAX));
    assert!(arrivals.must_look());
}

#[test]
fn who_has_gone_is_not_served_and_what_is_removed_before_its_turn_is_told_so() {
    let mut arrivals = Arrivals::new();
    drop(arrive(&mut arrivals, spec("a/gone", "v1", "10.0.0.1")));
    let mut removed = arrive(&mut arrivals, spec("a/removed", "v2", "10.0.0.2"));
    let _stays = arrive(&mut arrivals, spec("a/stays", "v3", "10.0.0.3"));
    assert!(arrivals.give_up_waiting(|spec| spec.interface == "v2"));
    assert!(!arrivals.give_up_waiting(|spec| spec.interface == "v2"));
    match removed.try_recv() {
        Ok(Reply::Error(AdminError::Conflict { detail })) => assert!(detail.contains("a/removed")),
        other => panic!("{other:?}"),
    }
    assert_eq!(begin(&mut arrivals, ""), ["v3"]);
    assert_eq!(arrivals.counts.abandoned, 2);
}
