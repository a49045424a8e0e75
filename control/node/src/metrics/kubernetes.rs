//! How API servers are followed, as metrics.

use control::admin::kubernetes::{KindStatus, KubernetesStatus, ServerStatus};

use super::families::{Column, columns, counter, gauge};
use super::{Family, Labels, Sample};

fn of_kind(kind: &KindStatus) -> Labels {
    vec![("kind", kind.kind.clone())]
}

fn of_server(server: &ServerStatus) -> Labels {
    vec![("server", server.server.clone())]
}

const KIND_COLUMNS: &[Column<KindStatus>] = &[
    ("xskiff_kubernetes_objects", "Objects in force, by kind", false, |k| k.objects),
    (
        "xskiff_kubernetes_in_step",
        "1 while a complete list of the kind is followed by its changes",
        false,
        |k| u64::from(k.in_step),
    ),
    ("xskiff_kubernetes_absent", "1 while no server has the kind", false, |k| u64::from(k.absent)),
    ("xskiff_kubernetes_lists", "Lists that were complete", true, |k| k.lists),
    ("xskiff_kubernetes_streamed_lists", "Of those, streamed ones", true, |k| k.streamed_lists),
    ("xskiff_kubernetes_relists", "Of those, ones after the first", true, |k| k.relists),
    ("xskiff_kubernetes_watches", "Watches begun", true, |k| k.watches),
    ("xskiff_kubernetes_events", "Objects that came, changed or went by a watch", true, |k| {
        k.events
    }),
    (
        "xskiff_kubernetes_held_losses",
        "Losses of the last list that are held until a second one agrees",
        false,
        |k| k.held,
    ),
    ("xskiff_kubernetes_holds", "Lists whose losses were held", true, |k| k.holds),
    (
        "xskiff_kubernetes_refused_objects",
        "Objects that are not in force as they are written",
        false,
        |k| k.refused,
    ),
    (
        "xskiff_kubernetes_refusals",
        "Times an object was refused, or taken for less than it says",
        true,
        |k| k.refusals,
    ),
];

const SERVER_COLUMNS: &[Column<ServerStatus>] = &[
    ("xskiff_kubernetes_server_resting", "1 while a server rests because it failed", false, |s| {
        u64::from(s.resting)
    }),
    (
        "xskiff_kubernetes_server_of_earlier_version",
        "1 while a relay is of an earlier version, which leaves out some of what this one reads",
        false,
        |s| u64::from(s.of_earlier_version),
    ),
    ("xskiff_kubernetes_server_requests", "Requests to a server", true, |s| s.requests),
    ("xskiff_kubernetes_server_received_bytes", "Bytes of a server's answers", true, |s| {
        s.received_bytes
    }),
    ("xskiff_kubernetes_server_failures", "Times a server failed", true, |s| s.failures),
];

pub(super) fn families(status: &KubernetesStatus) -> Vec<Family> {
    let mut families = columns(&status.kinds, of_kind, KIND_COLUMNS);
    families.extend(columns(&status.servers, of_server, SERVER_COLUMNS));
    let failure = |kind: &KindStatus| {
        let labels = of_kind(kind);
        let sample = move |(reason, value): &(String, u64)| Sample {
            labels: [labels.clone(), vec![("reason", reason.clone())]].concat(),
            value: *value,
        };
        kind.failures.iter().map(sample).collect::<Vec<_>>()
    };
    let help = "Lists and watches that failed, by reason; what is in force stays";
    let samples = status.kinds.iter().flat_map(failure).collect();
    families.push(counter("xskiff_kubernetes_failures", help, samples));
    let life = |kind: &KindStatus| {
        let value = kind.seconds_since_sign_of_life?;
        Some(Sample { labels: of_kind(kind), value })
    };
    families.push(gauge(
        "xskiff_kubernetes_last_sign_of_life_age_seconds",
        "Seconds since a server last said anything about the kind",
        status.kinds.iter().filter_map(life).collect(),
    ));
    families.extend(snapshot(status));
    families
}

fn snapshot(status: &KubernetesStatus) -> Vec<Family> {
    let snapshot = &status.snapshot;
    let one = |value| vec![Sample { labels: Vec::new(), value }];
    let mut families = vec![
        counter(
            "xskiff_snapshot_writes",
            "Times the cluster was written to disk",
            one(snapshot.writes),
        ),
        counter(
            "xskiff_snapshot_failures",
            "Times the cluster could not be written to disk",
            one(snapshot.failures),
        ),
        gauge("xskiff_snapshot_bytes", "Size of the cluster on disk", one(snapshot.bytes)),
        gauge(
            "xskiff_snapshot_restored_objects",
            "Objects that the process began with, from disk",
            one(snapshot.restored),
        ),
        gauge(
            "xskiff_snapshot_refused",
            "1 when the cluster on disk was not taken over",
            one(u64::from(snapshot.not_restored.is_some())),
        ),
    ];
    if let Some(seconds) = snapshot.age_seconds {
        families.push(gauge(
            "xskiff_snapshot_age_seconds",
            "Seconds since the cluster was written to disk",
            one(seconds),
        ));
    }
    families
}
