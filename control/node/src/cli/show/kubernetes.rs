//! How API servers are followed.

use std::fmt::Write;

use control::admin::kubernetes::{KindStatus, KubernetesStatus, SnapshotStatus};

use super::super::table::{Table, grouped};
use super::duration;

pub(super) fn kubernetes(status: &KubernetesStatus) -> String {
    let mut text = match &status.server {
        Some(server) => format!("kubernetes: followed by {server}\n"),
        None => "kubernetes: no server has answered yet\n".to_owned(),
    };
    for server in &status.servers {
        if let Some(error) = &server.last_error {
            let _ = writeln!(text, "  failed ({} times): {error}", server.failures);
        }
        if server.of_earlier_version {
            let name = &server.server;
            let _ = writeln!(
                text,
                "  {name} is a relay of an earlier version, and leaves out some of what this node reads: \
                 upgrade relays before nodes"
            );
        }
    }
    let mut table = Table::new(&[
        "KIND",
        ">OBJECTS",
        "STATE",
        ">HEARD OF",
        ">LISTS",
        ">WATCHES",
        ">EVENTS",
        ">FAILURES",
        ">HELD",
        ">REFUSED",
    ]);
    for kind in &status.kinds {
        let failures: u64 = kind.failures.iter().map(|(_, count)| count).sum();
        table.row([
            kind.kind.clone(),
            grouped(kind.objects),
            state(kind).to_owned(),
            kind.seconds_since_sign_of_life
                .map_or_else(|| "never".into(), |s| duration(s) + " ago"),
            grouped(kind.lists),
            grouped(kind.watches),
            grouped(kind.events),
            grouped(failures),
            grouped(kind.held),
            grouped(kind.refused),
        ]);
    }
    text += &table.to_string();
    for kind in &status.kinds {
        if let Some(error) = &kind.last_error {
            let times =
                if error.count > 1 { format!(" ({} times)", error.count) } else { "".into() };
            let _ = writeln!(text, "  failing: {}: {}{times}", error.object, error.message);
        }
    }
    for refused in &status.refused {
        let _ = writeln!(text, "  refused: {}: {}", refused.object, refused.message);
    }
    text += &snapshot(&status.snapshot);
    text
}

fn state(kind: &KindStatus) -> &'static str {
    match kind {
        KindStatus { absent: true, .. } => "absent",
        KindStatus { held: 1.., .. } => "losses held",
        KindStatus { in_step: true, .. } => "in step",
        KindStatus { lists: 0, objects: 1.., .. } => "from disk",
        KindStatus { lists: 0, .. } => "awaited",
        _ => "last known",
    }
}

fn snapshot(snapshot: &SnapshotStatus) -> String {
    let Some(file) = &snapshot.file else { return String::new() };
    let mut text = match snapshot.age_seconds {
        Some(age) => format!("on disk: {file}, written {} ago", duration(age)),
        None => format!("on disk: {file}, not written yet"),
    };
    if snapshot.restored > 0 {
        let _ = write!(text, "; began with {} objects", grouped(snapshot.restored));
    }
    text.push('\n');
    if let Some(why) = &snapshot.not_restored {
        let _ = writeln!(text, "  not taken over: {why}");
    }
    if let Some(why) = &snapshot.last_error {
        let _ = writeln!(text, "  not written ({} times): {why}", snapshot.failures);
    }
    text
}
