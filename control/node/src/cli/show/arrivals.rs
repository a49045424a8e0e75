//! How pods' ports come and go.

use std::fmt::Write;

use control::admin::arrivals::{ArrivalsStatus, Durations};

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
    if arrivals.closing_sockets > 0 {
        let _ = writeln!(out, "  {} sockets are being closed", arrivals.closing_sockets);
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
}
