//! The demo's manifests and configuration: those of `deploy/demo`, inside the binary, so that the
//! binary alone suffices.

use std::path::{Path, PathBuf};

use crate::lab::LabError;

/// The manifests, by file name.
pub const MANIFESTS: [(&str, &str); 4] = [
    ("node.yaml", include_str!("../../../../deploy/demo/node.yaml")),
    ("pods.yaml", include_str!("../../../../deploy/demo/pods.yaml")),
    ("policy.yaml", include_str!("../../../../deploy/demo/policy.yaml")),
    ("web.yaml", include_str!("../../../../deploy/demo/web.yaml")),
];

/// The node's configuration; [`RUN_DIRECTORY`] stands for one of the demo's own.
pub const CONFIGURATION: &str = include_str!("../../../../deploy/demo/xskiff.yaml");

/// The run directory that the configuration names, replaced by one of the demo's own.
const RUN_DIRECTORY: &str = "/run/xskiff-demo";

/// Where the files were written.
#[derive(Debug, Clone)]
pub struct Files {
    /// The node's configuration.
    pub configuration: PathBuf,
    /// The folder of manifests.
    pub manifests: PathBuf,
    /// The node's admin socket.
    pub socket: PathBuf,
}

impl Files {
    /// Writes configuration and manifests below `directory`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(directory: &Path) -> Result<Self, LabError> {
        let files = Self {
            configuration: directory.join("xskiff.yaml"),
            manifests: directory.join("manifests"),
            socket: directory.join("run/admin.sock"),
        };
        let own = directory.join("run").display().to_string();
        write(&files.configuration, &CONFIGURATION.replace(RUN_DIRECTORY, &own))?;
        files.write_manifests()?;
        Ok(files)
    }

    /// Writes the folder of manifests, also again after it was removed.
    ///
    /// # Errors
    /// As [`Files::write`].
    pub fn write_manifests(&self) -> Result<(), LabError> {
        let failed = io_error("make", &self.manifests);
        std::fs::create_dir_all(&self.manifests).map_err(failed)?;
        MANIFESTS.iter().try_for_each(|(name, text)| write(&self.manifests.join(name), text))
    }

    /// Removes the folder of manifests.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove_manifests(&self) -> Result<(), LabError> {
        std::fs::remove_dir_all(&self.manifests).map_err(io_error("remove", &self.manifests))
    }
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    std::fs::write(path, text).map_err(io_error("write", path))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LabError {
    let object = path.display().to_string();
    move |source| LabError::Io { what, object, source }
}

#[cfg(test)]
mod tests {
    use control::config::Config;

    use super::{CONFIGURATION, RUN_DIRECTORY};

    #[test]
    fn the_configuration_is_valid_and_names_the_run_directory_that_is_replaced() {
        let config = Config::parse(CONFIGURATION).unwrap();
        assert_eq!(config.run_directory.to_str(), Some(RUN_DIRECTORY));
        // Beside it, where the laboratory has mounted one.
        assert_eq!(config.bpf_filesystem.to_str(), Some(&*format!("{RUN_DIRECTORY}-bpf")));
    }
}
