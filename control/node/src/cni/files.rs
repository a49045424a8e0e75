//! The configuration directory of a container runtime: which file it uses, and how that is replaced.
//!
//! A file is replaced by renaming a finished one over it, with its owner and permissions, and only
//! while it is still the one that was read: another program may write it at any time.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use control::text_file::{self, Stamp, TextFileError};

use super::PLUGIN;
use super::conflist::{self, Conflist, ConflistError, Entry};

/// Largest configuration, in bytes.
const CONFLIST_BYTES_MAX: u64 = 1 << 20;
/// What the configuration of a single plugin is called while a conflist stands in its place: nothing
/// that runtimes read.
const SET_ASIDE: &str = "before-xskiff";
/// Permissions of the plugin: root's, and for everybody to run.
const PLUGIN_MODE: u32 = 0o755;

/// The configuration cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum CniFileError {
    /// There is nothing to chain to.
    #[error(
        "{}: there is no .conflist, .conf or .json; install the primary plugin first", directory.display()
    )]
    NoConfiguration {
        /// The directory.
        directory: PathBuf,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] TextFileError),
    /// The file is not as it must be.
    #[error("{}: {source}", path.display())]
    Conflist {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ConflistError,
    },
    /// The kernel refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else wrote it meanwhile.
    #[error("{}: it changed while it was read; try again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The plugin cannot be put where runtimes look for it.
    #[error(
        "{}: the plugin cannot be put there: {source}; what was there is as it was. The directory must \
         be writable and have room for {bytes} bytes", path.display()
    )]
    NotCopied {
        /// Where it was to be.
        path: PathBuf,
        /// What it needs.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// A conflist of that name is there already.
    #[error(
        "{}: it configures a single plugin, and {} stands beside it: remove either", path.display(),
        conflist.display()
    )]
    Both {
        /// The single plugin's.
        path: PathBuf,
        /// The other.
        conflist: PathBuf,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CniFileError + '_ {
    move |source| CniFileError::Io { path: path.to_owned(), source }
}

/// The file that runtimes use: the first by name of those with an ending that they read.
///
/// # Errors
/// [`CniFileError::Io`].
pub fn in_force(directory: &Path) -> Result<Option<PathBuf>, CniFileError> {
    Ok(configurations(directory)?.into_iter().next())
}

fn configurations(directory: &Path) -> Result<Vec<PathBuf>, CniFileError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error(directory))? {
        let path = entry.map_err(io_error(directory))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| ["conf", "conflist", "json"].contains(&ending)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "conflist")
}

/// What was done with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chained {
    /// The file in force, with our entry in it.
    pub file: PathBuf,
    /// Whether it had to be written.
    pub written: bool,
    /// Words of caution.
    pub cautions: Vec<String>,
}

fn read(path: &Path) -> Result<(String, Stamp), CniFileError> {
    let stamp = Stamp::of(path)?;
    Ok((text_file::read(path, CONFLIST_BYTES_MAX)?, stamp))
}

/// Puts our entry into the configuration in force.
///
/// # Errors
/// [`CniFileError`]; the file is then as it was.
pub fn chain(directory: &Path, entry: &Entry) -> Result<Chained, CniFileError> {
    let none = || CniFileError::NoConfiguration { directory: directory.to_owned() };
    let path = in_force(directory)?.ok_or_else(none)?;
    let refuse = |source| CniFileError::Conflist { path: path.clone(), source };
    let (text, stamp) = read(&path)?;
    if !is_list(&path) {
        let list = conflist::from_single(&text, entry).map_err(refuse)?;
        return chain_single(&path, &stamp, &list);
    }
    let chained = conflist::chain(&text, entry).map_err(refuse)?;
    let written = chained.is_some();
    if let Some(chained) = &chained {
        replace(&path, &stamp, chained)?;
    }
    let list = Conflist::parse(chained.as_ref().unwrap_or(&text)).map_err(refuse)?;
    Ok(Chained { file: path, written, cautions: list.cautions() })
}

/// Puts a conflist in the place of a single plugin's configuration. Until that is set aside it is the
/// one in force, since its name comes first.
fn chain_single(path: &Path, stamp: &Stamp, list: &str) -> Result<Chained, CniFileError> {
    let target = path.with_extension("conflist");
    if target.exists() {
        let (other, _) = read(&target)?;
        let is_ours = Conflist::parse(&other).is_ok_and(|list| list.position().is_some());
        if !is_ours {
            return Err(CniFileError::Both { path: path.to_owned(), conflist: target });
        }
    }
    let like = fs::metadata(path).map_err(io_error(path))?;
    let draft = draft(&target, list, &like)?;
    if Stamp::of(path)? != *stamp {
        let _ = fs::remove_file(&draft);
        return Err(CniFileError::Changed { path: path.to_owned() });
    }
    fs::rename(&draft, &target).map_err(io_error(&target))?;
    let aside = set_aside(path);
    fs::rename(path, &aside).map_err(io_error(&aside))?;
    settle(&target)?;
    let cautions = Conflist::parse(list).map(|list| list.cautions()).unwrap_or_default();
    Ok(Chained { file: target, written: true, cautions })
}

fn set_aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".");
    aside.push(SET_ASIDE);
    PathBuf::from(aside)
}

/// Takes our entry out of every configuration of the directory, and brings back what was set aside.
/// Gives the files that changed.
///
/// # Errors
/// [`CniFileError`] of the first file that cannot be mended; those before are.
pub fn unchain(directory: &Path) -> Result<Vec<PathBuf>, CniFileError> {
    let mut changed = Vec::new();
    for path in configurations(directory)?.into_iter().filter(|path| is_list(path)) {
        let (text, stamp) = read(&path)?;
        // Another network's file may be of any form; without our name in it, it is no matter.
        if !text.contains(PLUGIN) {
            continue;
        }
        let refuse = |source| CniFileError::Conflist { path: path.clone(), source };
        let Some(unchained) = conflist::unchain(&text).map_err(refuse)? else { continue };
        if !bring_back(&path, &text)? {
            replace(&path, &stamp, &unchained)?;
        }
        changed.push(path);
    }
    Ok(changed)
}

/// Brings the single plugin's configuration back that the conflist at `path` was made of; answers
/// whether it was. One that others have edited since stays a list.
fn bring_back(path: &Path, text: &str) -> Result<bool, CniFileError> {
    for ending in ["conf", "json"] {
        let single = path.with_extension(ending);
        let aside = set_aside(&single);
        if !aside.exists() {
            continue;
        }
        let (original, _) = read(&aside)?;
        if !conflist::is_from_single(text, &original) {
            fs::remove_file(&aside).map_err(io_error(&aside))?;
            return Ok(false);
        }
        // One that was written anew is newer.
        if single.exists() {
            fs::remove_file(&aside).map_err(io_error(&aside))?;
        } else {
            fs::rename(&aside, &single).map_err(io_error(&single))?;
        }
        fs::remove_file(path).map_err(io_error(path))?;
        settle(path)?;
        return Ok(true);
    }
    Ok(false)
}

/// Writes `text` over `path`, all at once, if it is still what `stamp` says.
fn replace(path: &Path, stamp: &Stamp, text: &str) -> Result<(), CniFileError> {
    // A link stays one: what it leads to is replaced.
    let path = &fs::canonicalize(path).map_err(io_error(path))?;
    let like = fs::metadata(path).map_err(io_error(path))?;
    let draft = draft(path, text, &like)?;
    if Stamp::of(path)? != *stamp {
        let _ = fs::remove_file(&draft);
        return Err(CniFileError::Changed { path: path.clone() });
    }
    fs::rename(&draft, path).map_err(io_error(path))?;
    settle(path)
}

/// Writes a file beside `path` that runtimes do not read, on the disk, with owner and permissions of
/// `like`.
fn draft(path: &Path, text: &str, like: &fs::Metadata) -> Result<PathBuf, CniFileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.xskiff-new"));
    // A killed process's; no other is meant to be there.
    let _ = fs::remove_file(&draft);
    let written = || -> io::Result<()> {
        let mode = like.mode() & 0o7777;
        let mut options = OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        let own = file.metadata()?;
        // Asked for only where it changes something: a node in a container may not.
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    };
    match written() {
        Ok(()) => Ok(draft),
        Err(source) => {
            let _ = fs::remove_file(&draft);
            Err(CniFileError::Io { path: draft, source })
        }
    }
}

/// Brings a renamed file's name to the disk.
fn settle(path: &Path) -> Result<(), CniFileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|open| open.sync_all()).map_err(io_error(directory))
}

/// Copies the plugin into the directory of plugins, all at once; answers whether it had to. One that is
/// called meanwhile goes on as it is, and whoever is called next is the new one.
///
/// # Errors
/// [`CniFileError::Io`] when the plugin cannot be read, [`CniFileError::NotCopied`]: what was there is
/// then as it was, and nothing is beside it.
pub fn install_plugin(plugin: &Path, directory: &Path) -> Result<bool, CniFileError> {
    let bytes = fs::read(plugin).map_err(io_error(plugin))?;
    let target = directory.join(PLUGIN);
    if is_installed(&target, &bytes) {
        return Ok(false);
    }
    // A running plugin's file cannot be written, and a half written one must not be run.
    let draft = directory.join(format!(".{PLUGIN}.xskiff-new"));
    let copied = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        // A killed process's.
        let _ = fs::remove_file(&draft);
        let mut options = OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(PLUGIN_MODE).open(&draft)?;
        file.write_all(&bytes)?;
        file.set_permissions(Permissions::from_mode(PLUGIN_MODE))?;
        file.sync_all()?;
        fs::rename(&draft, &target)
    };
    copied().map_err(|source| {
        let _ = fs::remove_file(&draft);
        CniFileError::NotCopied { path: target.clone(), bytes: bytes.len(), source }
    })?;
    settle(&target)?;
    Ok(true)
}

/// Whether the plugin is there to the byte, and may be run.
fn is_installed(target: &Path, bytes: &[u8]) -> bool {
    let mode = fs::metadata(target).map(|found| found.mode() & 0o7777);
    mode.is_ok_and(|mode| mode == PLUGIN_MODE) && fs::read(target).is_ok_and(|there| there == bytes)
}

/// Removes the plugin; answers whether it was there.
///
/// # Errors
/// [`CniFileError::Io`].
pub fn remove_plugin(directory: &Path) -> Result<bool, CniFileError> {
    let target = directory.join(PLUGIN);
    match fs::remove_file(&target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CniFileError::Io { path: target, source }),
    }
}

/// How a directory stands, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Look {
    /// The file that runtimes use.
    pub file: Option<PathBuf>,
    /// The types of its plugins.
    pub plugins: Vec<String>,
    /// Whether ours is among them, behind another.
    pub chained: bool,
    /// What is wrong with it.
    pub error: Option<String>,
    /// Words of caution.
    pub cautions: Vec<String>,
}

/// Looks at a directory and changes nothing.
#[must_use]
pub fn look(directory: &Path) -> Look {
    let mut look =
        Look { file: None, plugins: vec![], chained: false, error: None, cautions: vec![] };
    let read = || -> Result<Option<(PathBuf, Conflist)>, CniFileError> {
        let Some(path) = in_force(directory)? else { return Ok(None) };
        let (text, _) = read(&path)?;
        let list = if is_list(&path) {
            Conflist::parse(&text)
        } else {
            // It may be made a list, and is none yet.
            conflist::from_single(&text, &Entry::default()).and_then(|list| {
                let mut list = Conflist::parse(&list)?;
                list.plugins.retain(|kind| kind != PLUGIN);
                Ok(list)
            })
        };
        match list {
            Ok(list) => Ok(Some((path, list))),
            Err(source) => Err(CniFileError::Conflist { path, source }),
        }
    };
    match read() {
        Ok(None) => {}
        Ok(Some((file, list))) => {
            look.file = Some(file);
            look.chained = list.position().is_some_and(|position| position > 0);
            look.cautions = list.cautions();
            look.plugins = list.plugins;
        }
        Err(error) => {
            look.file = in_force(directory).ok().flatten();
            look.error = Some(error.to_string());
        }
    }
    look
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
