//! ICMP errors about what the backend answered: they are addressed to the frontend, which is at node A.

use dataplane::DropReason;
use xskiff_tests::packet_builder::{icmp_error, read_quoted, tcp};
use xskiff_tests::world::{UPLINK, pod_port};

use crate::{FORMS, at, cases, dispatched, ip, node_a, node_b, seen};

#[test]
fn path_mtu_of_the_client_reaches_the_backend() {
    for form in FORMS {
        let (mut a, mut b) = (node_a(form), node_b(form));
        for case in cases().into_iter().filter(|case| case.port == pod_port(2)) {
            let wire = dispatched(&mut a, &tcp(case.client, case.frontend, "S").build());
            b.forward(UPLINK, &wire);
            let back = tcp(case.backend, case.client, "SA").payload(&[0; 600]).build();
            let (_, answered) = b.forward(pod_port(2), &back);
            let is_v4 = at(case.client).is_ipv4();
            let (router, kind) = match is_v4 {
                true => (ip("198.51.100.1"), (3, 4, 1400)),
                false => (ip("2001:db8:51::1"), (2, 0, 1400)),
            };
            let error = icmp_error(router, at(case.frontend).ip(), kind, &answered).build();
            let wire = dispatched(&mut a, &error);
            let (port, frame) = b.forward(UPLINK, &wire);
            let told = seen(&frame);
            assert_eq!((port, told.destination.ip()), (pod_port(2), at(case.backend).ip()));
            assert_eq!(told.source.ip(), router, "{form:?}");
            let quoted = read_quoted(&told).expect("a quote");
            assert_eq!((quoted.source, quoted.destination), (at(case.backend), at(case.client)));
        }
    }
}

#[test]
fn error_about_no_flow_goes_nowhere() {
    for form in FORMS {
        let mut a = node_a(form);
        let answered = tcp("203.0.113.1:80", "192.0.2.7:1000", "A").build();
        let error = icmp_error(ip("198.51.100.1"), ip("203.0.113.1"), (3, 4, 1400), &answered);
        a.expect_drop(UPLINK, &error.build(), DropReason::IcmpUnrelated);
    }
}
