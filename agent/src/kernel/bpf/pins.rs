//! The folder on the BPF filesystem that lets tables and links outlive the agent.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use gate25_common::names::ABI_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where the BPF filesystem is expected.
pub const DEFAULT_FILESYSTEM: &str = "/sys/fs/bpf";
pub(super) const OWN_FOLDER: &str = "gate25";
const LINKS: &str = "links";

/// Why the folder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// The filesystem is not there and could not be mounted.
    #[error("mount the BPF filesystem at {path}, which only root may; else have it mounted before")]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: nix::Error,
    },
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The folder, named after the version of the tables.
#[derive(Debug, Clone)]
pub struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// The folder `gate25/v<ABI>` on the BPF filesystem at `filesystem`, which is mounted if it
    /// is not.
    ///
    /// # Errors
    ///
    /// [`PinsError`].
    pub fn open(filesystem: &Path) -> Result<Self, PinsError> {
        let stat = statfs(filesystem).map_err(|source| PinsError::Mount {
            path: filesystem.to_owned(),
            source,
        })?;
        if stat.filesystem_type() != BPF_FS_MAGIC {
            mount(
                Some("bpf"),
                filesystem,
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("mode=0700"),
            )
            .map_err(|source| PinsError::Mount {
                path: filesystem.to_owned(),
                source,
            })?;
            tracing::info!(path = %filesystem.display(), "BPF filesystem mounted");
        }
        let folder = filesystem.join(OWN_FOLDER).join(format!("v{ABI_VERSION}"));
        let links = folder.join(LINKS);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&links)
            .map_err(|source| PinsError::Io {
                action: "create folder",
                path: links,
                source,
            })?;
        Ok(Self { folder })
    }

    /// Where a table is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where the link of an interface is pinned.
    pub fn link(&self, interface: u32) -> PathBuf {
        self.folder.join(LINKS).join(interface.to_string())
    }

    /// The interfaces whose links are pinned.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`].
    pub fn links(&self) -> Result<Vec<u32>, PinsError> {
        let path = self.folder.join(LINKS);
        let failed = |source| PinsError::Io {
            action: "list",
            path: path.clone(),
            source,
        };
        let mut interfaces = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            match name.to_str().and_then(|name| name.parse().ok()) {
                Some(interface) => interfaces.push(interface),
                None => tracing::warn!(?name, "a pin that is not gate25's own is left alone"),
            }
        }
        interfaces.sort_unstable();
        Ok(interfaces)
    }

    /// Removes the link of an interface, and with it the attachment if nobody else holds it.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`], except where it is gone already.
    pub fn remove_link(&self, interface: u32) -> Result<(), PinsError> {
        let path = self.link(interface);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PinsError::Io {
                action: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }
}
