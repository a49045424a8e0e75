//! How pods' ports come and go.

use std::fmt::Write;

use control::admin::arrivals::{ArrivalsStatus, Durations, PodOutside, RunningPodsStatus};

/// Nothing before the first.
pub(super) fn arrivals(arrivals: &ArrivalsStatus) -> String {
    let ArrivalsStatus { waiting, under_way, added, failed, abandoned, removed, .. } = arrivals;
    if [waiting, under_way, added, failed, abandoned, removed]
        .into_iter()
        .all(|number| *number == 0)
    {
        return String::new();
    }
    let states = arrivals.states.iter().filter(|(_, number)| *number > 0);
    let states: Vec<_> = states.map(|(state, number)| format!("{number} {state}")).collect();
    let states = if states.is_empty() { "none".to_owned() } else { states.join(", ") };
    let mut out = format!(
        "endpoints: {states}\nendpoint requests: {waiting} waiting (at most {}), {under_way} under way; {added} added, \
         {failed} failed, {abandoned} abandoned, {removed} removed\n",
        arrivals.waiting_most
    );
    if added + failed > 0 {
        let _ = writeln!(
            out,
            "  99 % waited at most {}, were made within {}, adopted within {}",
            most(&arrivals.waited),
            most(&arrivals.made),
            most(&arrivals.adopted)
        );
    }
    if arrivals.late > 0 {
        let late = arrivals.late;
        let _ = writeln!(out, "  {late} before a stalled worker had adopted their tables");
    }
    if arrivals.without_memory > 0 {
        let refused = arrivals.without_memory;
        let _ = writeln!(out, "  {refused} failed for want of packet memory (pod_packet_frames)");
    }
    if arrivals.with_bypassed_rules > 0 {
        let number = arrivals.with_bypassed_rules;
        let _ =
            writeln!(out, "  {number} go past limits or filters of tc (`xskiff endpoint list`)");
    }
    if arrivals.closing_sockets > 0 {
        let _ = writeln!(out, "  {} sockets are being closed", arrivals.closing_sockets);
    }
    out.push('\n');
    out
}

/// Nothing where there are none.
pub(super) fn running_pods(pods: &RunningPodsStatus) -> String {
    let RunningPodsStatus { adopted, under_way, outside, named } = pods;
    if adopted + under_way + outside == 0 {
        return String::new();
    }
    let mut out = format!(
        "pods that ran before: {adopted} adopted, {under_way} being adopted, {outside} outside\n"
    );
    for PodOutside { pod, why } in named {
        let _ = writeln!(out, "  outside: {pod}: {why}");
    }
    if *outside > named.len() as u64 {
        let _ = writeln!(out, "  and {} more", outside - named.len() as u64);
    }
    out.push('\n');
    out
}

fn most(durations: &Durations) -> String {
    format!("{:.1} ms", durations.at_most_us(990) as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_told_and_nothing_is_said_of_nothing() {
        assert_eq!(arrivals(&ArrivalsStatus::default()), "");
        let mut status =
            ArrivalsStatus { waiting: 7, added: 1, without_memory: 3, ..ArrivalsStatus::default() };
        status.waited.note(std::time::Duration::from_millis(4));
        let text = arrivals(&status);
        assert!(text.contains("7 waiting") && text.contains("waited at most 4.0 ms"), "{text}");
        assert!(text.contains("3 failed for want of packet memory"), "{text}");
    }
    #[test]
    fn pods_that_are_outside_are_named() {
        assert_eq!(running_pods(&RunningPodsStatus::default()), "");
        let named = vec![PodOutside { pod: "shop/cart-0".into(), why: "no veth pair".into() }];
        let status = RunningPodsStatus { adopted: 2, outside: 3, named, ..Default::default() };
        let text = running_pods(&status);
        assert!(text.contains("2 adopted, 0 being adopted, 3 outside"), "{text}");
        assert!(text.contains("shop/cart-0: no veth pair") && text.contains("2 more"), "{text}");
    }
}
