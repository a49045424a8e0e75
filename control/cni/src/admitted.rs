//! Leaves word of pods for a node process that is not there: a file for each, beside its socket, which
//! it reads when it is back, and which goes when the pod goes.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use control::admin::endpoint::ADMITTED_DIRECTORY;
use control::admin::{Admitted, Attachment, EndpointAdd};

/// The kernel's name for this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
    let written = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&draft, directory.join(name)));
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
    Admitted::decode(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn word_is_left_for_root_alone_read_as_the_node_reads_it_and_taken_back_once() {
        let parent = tempfile::tempdir().unwrap();
        let socket = parent.path().join("run/admin.sock");
        let (network, container_id) = ("pods".to_owned(), "0123abc".to_owned());
        let attachment = Attachment { network, container_id, interface: "eth0".into() };
        let endpoint = EndpointAdd {
            name: "shop/cart-0".into(),
            interface: "veth0".into(),
            netns: Some("/run/netns/pod".into()),
            addresses: vec!["10.1.0.5".parse().unwrap()],
            mac: None,
            attachment: Some(attachment.clone()),
            pod_uid: None,
            bandwidth: None,
        };
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
}
