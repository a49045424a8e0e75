use std::fs::Permissions;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A directory of a test's own in memory; `None` where there is no tmpfs.
fn directory() -> Option<tempfile::TempDir> {
    let directory = tempfile::tempdir_in("/dev/shm").ok()?;
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).expect("mode");
    prepare_directory(directory.path()).ok().map(|_| directory)
}

macro_rules! directory_or_skip {
    () => {
        match directory() {
            Some(directory) => directory,
            None => return eprintln!("skipped: /dev/shm is not tmpfs"),
        }
    };
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect()
}

/// One that is filled and has its name; what holds it goes with its mapping.
fn create(path: &Path, bytes: usize, byte: u8) -> MemoryFile {
    let mut file = MemoryFile::create(path, bytes, slice::from_ref(&(0..bytes))).expect("created");
    assert!(file.bytes().len() >= bytes && file.bytes().iter().all(|byte| *byte == 0));
    file.bytes_mut().fill(byte);
    publish(&mut file);
    file
}

fn publish(file: &mut MemoryFile) {
    file.held.as_mut().expect("held").publish().expect("published");
}

#[test]
fn what_one_process_writes_the_next_one_reads() {
    let directory = directory_or_skip!();
    let path = directory.path().join("table");
    assert!(MemoryFile::open(&path).expect("no error").is_none());
    drop(create(&path, 3 << 20, 7));
    let metadata = std::fs::metadata(&path).expect("a file");
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    assert!(metadata.blocks() * 512 >= 3 << 20, "all of it is allocated");
    let mut found = MemoryFile::open(&path).expect("no error").expect("a file");
    assert!(found.bytes().iter().all(|byte| *byte == 7));
    found.bytes_mut()[5] = 9;
    drop(found);
    let (memory, held) = MemoryFile::open(&path).expect("no error").expect("a file").into_parts();
    assert_eq!((memory[4], memory[5], held.path()), (7, 9, &*path));
    drop(held);
    let error = MemoryFile::open(&path).expect_err("its memory is there");
    assert!(matches!(error, FileError::InUse { .. }), "{error}");
}

#[test]
fn a_file_has_its_name_only_when_it_is_finished_and_replaces_the_one_before() {
    let directory = directory_or_skip!();
    let path = directory.path().join("table");
    drop(create(&path, 4096, 1));
    drop(MemoryFile::create(&path, 4096, slice::from_ref(&(0..4096))).expect("created"));
    assert_eq!(names(directory.path()), ["table"], "an unfinished one is removed");
    let mut unfinished =
        MemoryFile::create(&path, 4096, slice::from_ref(&(0..4096))).expect("created");
    let found = MemoryFile::open(&path).expect("no error").expect("the one before");
    assert!(found.bytes().iter().all(|byte| *byte == 1));
    unfinished.bytes_mut().fill(2);
    publish(&mut unfinished);
    assert!(found.bytes().iter().all(|byte| *byte == 1), "it is another file");
    drop((unfinished, found));
    let found = MemoryFile::open(&path).expect("no error").expect("a file");
    assert!(found.bytes().iter().all(|byte| *byte == 2));
    // What a killed process left half made is no obstacle.
    std::fs::write(directory.path().join("table.new"), "half").expect("written");
    std::fs::set_permissions(directory.path().join("table.new"), Permissions::from_mode(0o600))
        .expect("mode");
    drop(create(&path, 4096, 3));
}

#[test]
fn a_file_that_somebody_holds_is_in_use_until_that_ends() {
    let directory = directory_or_skip!();
    let path = directory.path().join("table");
    let held = create(&path, 4096, 1);
    let error = MemoryFile::open(&path).expect_err("held");
    assert!(matches!(error, FileError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("table is in use by a living process: stop"), "{error}");
    drop(held);
    assert!(MemoryFile::open(&path).expect("no error").is_some());
    let making = MemoryFile::create(&path, 4096, slice::from_ref(&(0..4096))).expect("created");
    let error =
        MemoryFile::create(&path, 4096, slice::from_ref(&(0..4096))).expect_err("another makes it");
    assert!(matches!(error, FileError::InUse { .. }), "{error}");
    drop(making);
}

/// As a process has it that another thread starts, until it executes its program.
#[test]
fn a_copy_of_the_descriptor_holds_nothing_once_its_owner_is_gone() {
    let directory = directory_or_skip!();
    let path = directory.path().join("table");
    let held = create(&path, 4096, 1);
    let copies = descriptors_of(&path);
    assert_eq!(copies.len(), 1);
    drop(held);
    assert!(MemoryFile::open(&path).expect("no error").is_some());
    drop(copies);
}

/// Copies of this process's descriptors of a file.
fn descriptors_of(path: &Path) -> Vec<OwnedFd> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("a directory");
    entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|link| std::fs::read_link(link).is_ok_and(|of| of == path))
        .map(|link| {
            let number = link.file_name().expect("a name").to_str().expect("UTF-8");
            // SAFETY: a descriptor of this process, whose owner lives in the caller.
            let own = unsafe { BorrowedFd::borrow_raw(number.parse().expect("a number")) };
            own.try_clone_to_owned().expect("a copy")
        })
        .collect()
}

/// A real process, killed: the lock goes with it.
#[test]
fn a_process_that_is_killed_holds_nothing() {
    let directory = directory_or_skip!();
    let path = directory.path().join("table");
    drop(create(&path, 4096, 1));
    // flock(1) takes another kind of lock; python's fcntl.lockf would be a POSIX one, which an
    // open-file-description lock conflicts with as well.
    let script = "import fcntl,sys,time\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,fcntl.LOCK_EX)\n\
                  print('held',flush=True)\ntime.sleep(20)";
    let started = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn();
    let Ok(mut child) = started else { return eprintln!("skipped: no python3") };
    let mut line = [0; 5];
    let mut output = child.stdout.take().expect("piped");
    io::Read::read_exact(&mut output, &mut line).expect("held");
    let error = MemoryFile::open(&path).expect_err("held");
    assert!(matches!(error, FileError::InUse { .. }), "{error}");
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(MemoryFile::open(&path).expect("no error").is_some());
}

#[test]
fn what_others_may_have_written_is_named_and_not_opened() {
    let directory = directory_or_skip!();
    let path = |name: &str| directory.path().join(name);
    let said = |name: &str| {
        let error = MemoryFile::open(&path(name)).expect_err("foreign");
        assert!(matches!(error, FileError::Foreign { .. }), "{error}");
        error.to_string()
    };
    drop(create(&path("table"), 4096, 1));
    symlink(path("table"), path("link")).expect("a link");
    assert!(said("link").contains("link is a symbolic link, so it is not trusted: remove it"));
    std::fs::set_permissions(path("table"), Permissions::from_mode(0o640)).expect("mode");
    assert!(said("table").contains("mode 640"));
    std::fs::set_permissions(path("table"), Permissions::from_mode(0o600)).expect("mode");
    std::fs::hard_link(path("table"), path("second")).expect("a second name");
    assert!(said("table").contains("has 2 names"));
    std::fs::create_dir(path("folder")).expect("a folder");
    assert!(said("folder").contains("is no file"));
    assert!(
        std::process::Command::new("mkfifo").arg(path("pipe")).status().expect("ran").success()
    );
    assert!(said("pipe").contains("is no file"));
    if own_user() == 0 {
        std::fs::remove_file(path("second")).expect("removed");
        std::os::unix::fs::chown(path("table"), Some(65_534), None).expect("given away");
        assert!(said("table").contains("belongs to user 65534"));
        // A new one takes its place all the same.
        drop(create(&path("table"), 4096, 2));
        assert!(MemoryFile::open(&path("table")).expect("no error").is_some());
    }
    // And in the place of a link, not of what it leads to.
    drop(create(&path("link"), 4096, 3));
    assert!(MemoryFile::open(&path("link")).expect("no error").is_some());
}

#[test]
fn a_directory_that_is_not_ours_or_not_in_memory_is_refused() {
    let directory = directory_or_skip!();
    let open = directory.path().join("open");
    prepare_directory(&open).expect("made");
    std::fs::set_permissions(&open, Permissions::from_mode(0o775)).expect("mode");
    let error = prepare_directory(&open).expect_err("others may write").to_string();
    assert!(error.contains("mode 775 lets others in") && error.contains("chmod 700"), "{error}");
    std::fs::set_permissions(&open, Permissions::from_mode(0o755)).expect("mode");
    assert_eq!(prepare_directory(&open).expect("others may look"), Some(0o755));
    let error = prepare_directory(Path::new("/proc/self")).expect_err("no memory");
    assert!(matches!(error, FileError::Directory { .. } | FileError::NotMemory { .. }), "{error}");
    std::fs::write(directory.path().join("file"), "").expect("written");
    assert!(prepare_directory(&directory.path().join("file")).is_err());
}

#[test]
fn too_little_memory_is_an_error_with_the_ways_out_and_leaves_nothing() {
    let directory = directory_or_skip!();
    let path = directory.path().join("table");
    for bytes in [0, 1 << 50, usize::MAX] {
        let error = MemoryFile::create(&path, bytes, slice::from_ref(&(0..bytes)))
            .expect_err("no such memory");
        assert!(matches!(error, FileError::NoRoom { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("table: there is no room for") && said.contains("smaller"), "{said}");
    }
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_file_has_what_is_needed_and_more_is_taken_and_given_back_while_it_is_mapped() {
    let directory = directory_or_skip!();
    let path = directory.path().join("table");
    let (bytes, far) = (1 << 40, 1 << 39);
    let allocated = || std::fs::metadata(&path).expect("a file").blocks() * 512;
    let mut file = MemoryFile::create(&path, bytes, &[0..10, far..far + 8192]).expect("sparse");
    publish(&mut file);
    assert_eq!(allocated(), 3 * 4096);
    let (memory, held) = file.into_parts();
    memory[far..far + 8192].fill(7);
    held.growing().take(&[0..10, far..far + 20_000]).expect("more");
    assert_eq!(allocated(), 6 * 4096);
    assert!(memory[far..far + 8192].iter().all(|byte| *byte == 7), "what is there stays");
    let error = held
        .growing()
        .take(slice::from_ref(&(0..1 << 40)))
        .expect_err("no such memory")
        .to_string();
    assert!(error.contains("there is no room for") && error.contains("smaller"), "{error}");
    assert_eq!(allocated(), 6 * 4096, "nothing was taken");
    held.growing().give_back(&(far + 4096..far + 20_000)).expect("given back");
    assert_eq!(allocated(), 2 * 4096 + 4096, "the last page is not whole");
    assert_eq!((memory[far], memory[0]), (7, 0));
}
