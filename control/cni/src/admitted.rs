//! Leaves word of pods for a node process that is not there: a file for each, beside its socket, which
//! it reads when it is back, and which goes when the pod goes.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use control::admin::endpoint::{ADMITTED_BYTES_MAX, ADMITTED_DIRECTORY};
use control::admin::{Admitted, Attachment, EndpointAdd, Retained};

/// The kernel's name for this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How names of words end ([`Attachment::file_name`]), after which a draft's goes on.
const WORD_END: &str = ".json";
const DRAFT_MIDDLE: &str = ".json.";

fn directory(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join(ADMITTED_DIRECTORY)
}

/// Leaves word of the pod on `ifindex`, all at once: a node reads the whole of it or nothing.
///
/// # Errors
/// The kernel's; nothing stands there then.
pub fn leave(socket: &Path, endpoint: EndpointAdd, ifindex: u32) -> io::Result<()> {
    let Some(attachment) = endpoint.attachment.clone() else {
        return Err(io::Error::other("it has no name"));
    };
    let directory = directory(socket);
    // The node's own directory may not be there yet either, and must be root's alone.
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    // Without a boot id the node takes nothing: better than another boot's pod.
    let boot_id = fs::read_to_string(BOOT_ID)?.trim().to_owned();
    let text = serde_json::to_vec(&Admitted { boot_id, ifindex, endpoint })?;
    let name = attachment.file_name();
    let draft = directory.join(format!("{}{}", draft_prefix(&attachment), std::process::id()));
    let written =
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft).and_then(
            |mut file| {
                // Held until the draft has its name, and not by a call that was killed: see `collect`.
                file.lock()?;
                file.write_all(&text)?;
                fs::rename(&draft, directory.join(name))
            },
        );
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

/// How the names of an attachment's drafts begin: that of its file, which ends in no dot.
fn draft_prefix(attachment: &Attachment) -> String {
    attachment.file_name() + "."
}

/// Takes the word back, and drafts of it that a call left which was killed; answers whether there was
/// any.
///
/// # Errors
/// The kernel's.
pub fn take_back(socket: &Path, attachment: &Attachment) -> io::Result<bool> {
    let directory = directory(socket);
    let files = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        files => files?,
    };
    // Drafts first: one that is being written must not become the word afterwards.
    let prefix = draft_prefix(attachment);
    for file in files {
        let name = file?.file_name();
        if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            remove(&directory.join(name))?;
        }
    }
    remove(&directory.join(attachment.file_name()))
}

/// Takes back what belongs to no attachment that is to stay: words of the network's others, and drafts
/// that nobody writes any more, whosesoever they are; names of the files that went.
///
/// # Errors
/// The kernel's; what can be removed is removed all the same.
pub fn collect(socket: &Path, retained: &Retained) -> io::Result<Vec<String>> {
    let directory = directory(socket);
    let files = match fs::read_dir(&directory) {
        // Nothing was left there; that the socket can be nowhere either is told by whoever uses it.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        files => files?,
    };
    let (mut removed, mut refused) = (Vec::new(), None);
    for file in files {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let gone = is_over(&path, &name, retained).and_then(|over| Ok(over && remove(&path)?));
        match gone {
            Ok(true) => removed.push(name),
            Ok(false) => {}
            Err(error) => refused = Some(error),
        }
    }
    refused.map_or(Ok(removed), Err)
}

fn is_over(path: &Path, name: &str, retained: &Retained) -> io::Result<bool> {
    let file = match File::open(path) {
        // The node has read it, or its container went.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    if name.ends_with(WORD_END) {
        let mut bytes = Vec::new();
        file.take(ADMITTED_BYTES_MAX).read_to_end(&mut bytes)?;
        // One that cannot be read is told, and removed, by the node.
        let attachment =
            Admitted::decode(&bytes).ok().and_then(|(word, _)| word.endpoint.attachment);
        return Ok(attachment.is_some_and(|attachment| !retained.keeps(&attachment)));
    }
    match file.try_lock() {
        Ok(()) => Ok(name.contains(DRAFT_MIDDLE)),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Answers whether it was there.
fn remove(file: &Path) -> io::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What was left of an attachment, if it can be read.
#[must_use]
pub fn read(socket: &Path, attachment: &Attachment) -> Option<Admitted> {
    let bytes = fs::read(directory(socket).join(attachment.file_name())).ok()?;
    Admitted::decode(&bytes).ok().map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn endpoint(attachment: Attachment) -> EndpointAdd {
        EndpointAdd {
            name: "shop/cart-0".into(),
            interface: "veth0".into(),
            netns: Some("/run/netns/pod".into()),
            addresses: vec!["10.1.0.5".parse().unwrap()],
            mac: None,
            attachment: Some(attachment),
            pod_uid: None,
            bandwidth: None,
        }
    }

    #[test]
    fn word_is_left_for_root_alone_read_as_the_node_reads_it_and_taken_back_once() {
        let parent = tempfile::tempdir().unwrap();
        let socket = parent.path().join("run/admin.sock");
        let (network, container_id) = ("pods".to_owned(), "0123abc".to_owned());
        let attachment = Attachment { network, container_id, interface: "eth0".into() };
        let endpoint = endpoint(attachment.clone());
        assert!(!take_back(&socket, &attachment).unwrap());
        leave(&socket, endpoint.clone(), 7).unwrap();
        leave(&socket, endpoint.clone(), 8).unwrap();
        let read = read(&socket, &attachment).unwrap();
        assert_eq!((read.ifindex, read.endpoint), (8, endpoint));
        let directory = directory(&socket);
        let files: Vec<_> = fs::read_dir(&directory).unwrap().flatten().collect();
        assert_eq!(files.len(), 1, "no draft stays");
        assert_eq!(files[0].metadata().unwrap().mode() & 0o777, 0o600);
        let run = fs::metadata(parent.path().join("run")).unwrap();
        assert_eq!(run.mode() & 0o777, 0o700, "the node refuses any other");
        // A call that was killed left a draft; another container's is none of ours.
        fs::write(directory.join("0123abc@eth0.json.7"), "{").unwrap();
        fs::write(directory.join("0123abcd@eth0.json.7"), "{").unwrap();
        assert!(take_back(&socket, &attachment).unwrap());
        assert!(!take_back(&socket, &attachment).unwrap());
        let left: Vec<_> = fs::read_dir(&directory).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(left[0].file_name(), "0123abcd@eth0.json.7");
    }

    #[test]
    fn what_belongs_to_no_attachment_that_is_to_stay_is_collected_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let socket = parent.path().join("run/admin.sock");
        let retained = |ids: &[&str]| {
            let attachments = ids.iter().map(|id| ((*id).to_owned(), "eth0".to_owned()));
            Retained { network: "pods".into(), attachments: attachments.collect() }
        };
        assert!(collect(&socket, &retained(&[])).unwrap().is_empty(), "no directory");
        for (network, id) in [("pods", "known"), ("pods", "lost"), ("storage", "other")] {
            let attachment = Attachment {
                network: network.into(),
                container_id: id.into(),
                interface: "eth0".into(),
            };
            leave(&socket, endpoint(attachment), 7).unwrap();
        }
        let directory = directory(&socket);
        let write = |name: &str| fs::write(directory.join(name), "{").unwrap();
        for name in ["broken@eth0.json", "killed@eth0.json.7", "written@eth0.json.8", "foreign"] {
            write(name);
        }
        let written = File::open(directory.join("written@eth0.json.8")).unwrap();
        written.lock().unwrap();
        let mut removed = collect(&socket, &retained(&["known"])).unwrap();
        removed.sort();
        assert_eq!(removed, ["killed@eth0.json.7", "lost@eth0.json"]);
        assert!(collect(&socket, &retained(&["known"])).unwrap().is_empty());
        drop(written);
        assert_eq!(collect(&socket, &retained(&["known"])).unwrap(), ["written@eth0.json.8"]);
        let left = fs::read_dir(&directory).unwrap().flatten().map(|file| file.file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["broken@eth0.json", "foreign", "known@eth0.json", "other@eth0.json"]);
    }
}
