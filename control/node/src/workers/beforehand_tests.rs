//! Files as a process that lives has them.

use std::os::unix::fs::PermissionsExt;

use super::super::Idle;
use super::super::capacity::FlowCapacities;
use super::super::flow_memory::{FlowMemory, Plan};
use super::*;

fn settings(directory: &Path) -> Settings {
    Settings {
        cores: vec![pinning::CpuId(0)],
        idle: Idle::Spin,
        capacities: FlowCapacities::fixed(4000, 500),
        whole_segments: false,
        flow_directory: directory.to_owned(),
        hash_key: [1, 2],
    }
}

fn directory() -> Option<tempfile::TempDir> {
    let directory = tempfile::tempdir_in("/dev/shm").ok()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    prepare_directory(directory.path()).ok().map(|_| directory)
}

#[test]
fn flow_tables_that_cannot_be_gone_on_with_are_named_while_their_process_has_them() {
    let Some(directory) = directory() else { return eprintln!("skipped: /dev/shm is not tmpfs") };
    let directory = directory.path();
    let settings = settings(directory);
    // Nobody's yet.
    try_out(&settings, &[]).unwrap();
    let (capacities, hash_key) = (settings.capacities, settings.hash_key);
    let plan = Plan { directory, capacities, workers: 1, hash_key };
    let _serving = FlowMemory::start(&plan).unwrap();
    let files = [directory.join(FlowKey4::FILE), directory.join(FlowKey6::FILE)];
    let left = [&*files[0], &*files[1]];
    try_out(&settings, &left).unwrap();

    let refused = |settings: &Settings, word: &str| {
        let error = try_out(settings, &left).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("goes on serving"), "{error}");
    };
    let mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&files[1], 0o644);
    refused(&settings, "flows-ipv6 has mode 644");
    mode(&files[1], 0o600);
    mode(directory, 0o755);
    refused(&settings, "mode 755");
    mode(directory, 0o700);
    let elsewhere = Settings { flow_directory: directory.join("other"), ..settings.clone() };
    refused(&elsewhere, "flow_table.directory");
    // Of another version: its header says otherwise.
    let aside = directory.join("aside");
    std::fs::rename(&files[0], &aside).unwrap();
    std::fs::write(&files[0], [7; 8192]).unwrap();
    mode(&files[0], 0o600);
    refused(&settings, "flows-ipv4: ");
    std::fs::rename(&aside, &files[0]).unwrap();
    try_out(&settings, &left).unwrap();
}
