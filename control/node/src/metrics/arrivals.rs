//! Metrics of pods' ports that come and go.

use control::admin::Status;
use control::admin::arrivals::{DURATION_BOUNDS_US, Durations};

use super::families::{counter, gauge, one};
use super::{Distribution, Family, Sample, Unit};

pub(super) fn families(status: &Status) -> Vec<Family> {
    let arrivals = &status.arrivals;
    let outcomes =
        [("added", arrivals.added), ("failed", arrivals.failed), ("abandoned", arrivals.abandoned)];
    let outcome = |(label, value): (&'static str, u64)| Sample {
        labels: vec![("outcome", label.into())],
        value,
    };
    let states = arrivals
        .states
        .iter()
        .map(|(state, number)| Sample { labels: vec![("state", state.clone())], value: *number });
    let running = &status.running_pods;
    vec![
        counter(
            "xskiff_running_pods_adopted",
            "Pods that ran before the node process was installed, and are served since",
            one(running.adopted),
        ),
        gauge(
            "xskiff_pods_outside",
            "Pods of this node that have no endpoint, so that they are not served and no policy holds \
             for them",
            one(running.outside),
        ),
        gauge("xskiff_endpoints", "Endpoints by state", states.collect()),
        gauge(
            "xskiff_endpoint_adds_waiting",
            "Requests to add an endpoint that wait for others before them",
            one(arrivals.waiting),
        ),
        gauge(
            "xskiff_endpoint_adds_under_way",
            "Requests to add an endpoint that are being carried out",
            one(arrivals.under_way),
        ),
        counter(
            "xskiff_endpoint_adds",
            "Requests to add an endpoint, by how they ended; abandoned ones had not begun when their \
             client left or the endpoint was removed",
            outcomes.map(outcome).to_vec(),
        ),
        counter(
            "xskiff_endpoint_adds_late",
            "Endpoints that were answered for before a stalled worker had adopted their tables",
            one(arrivals.late),
        ),
        counter(
            "xskiff_endpoint_adds_without_memory",
            "Failed requests to add an endpoint for which no packet memory was left",
            one(arrivals.without_memory),
        ),
        counter("xskiff_endpoints_removed", "Endpoints removed on request", one(arrivals.removed)),
        gauge(
            "xskiff_endpoints_bypassing_tc",
            "Endpoints with limits or filters of tc that their packets go past, and that no limit of \
             the node's stands in for",
            one(arrivals.with_bypassed_rules),
        ),
        gauge(
            "xskiff_closing_sockets",
            "AF_XDP sockets of removed ports that are not closed yet",
            one(arrivals.closing_sockets),
        ),
        Family {
            unit: Unit::Microseconds,
            ..gauge(
                "xskiff_closing_longest_seconds",
                "The longest time from a port's removal until its interface was free again",
                one(arrivals.closing_longest_us),
            )
        },
    ]
}

pub(super) fn distributions(status: &Status) -> Vec<Distribution> {
    let arrivals = &status.arrivals;
    let phases = [
        ("waiting", &arrivals.waited),
        ("making", &arrivals.made),
        ("adopting", &arrivals.adopted),
    ];
    let of = |(phase, durations): (&'static str, &Durations)| {
        // One that has noted nothing has no classes yet.
        let count = |class: usize| durations.counts.get(class).copied().unwrap_or(0);
        let bounds = DURATION_BOUNDS_US.iter().map(|us| *us as f64 / 1e6);
        (
            vec![("phase", phase.to_owned())],
            durations.sum_us as f64 / 1e6,
            bounds
                .chain([f64::INFINITY])
                .enumerate()
                .map(|(at, bound)| (bound, count(at)))
                .collect(),
        )
    };
    vec![Distribution {
        name: "xskiff_endpoint_add_seconds",
        help: "Time of each request to add an endpoint: waiting for others, making its port, and \
               until tables are made and every worker has adopted them",
        samples: phases.map(of).to_vec(),
    }]
}
