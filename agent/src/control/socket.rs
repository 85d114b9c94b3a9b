//! The socket's file: made whole before it bears its name, taken away when the agent stops.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Group;
use tokio::net::UnixListener;
use tracing::warn;

use crate::chain::in_full;

/// Everybody may pass through the folder; the socket's own mode says who may connect. Nobody else may open it: its
/// lock says that an agent runs.
pub(crate) const FOLDER_MODE: u32 = 0o711;
/// The owner and the group may connect.
const GROUP_MODE: u32 = 0o660;
/// Only the owner may connect.
const OWNER_MODE: u32 = 0o600;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something else has the name.
    #[error("{} is not a socket: it is left alone", path.display())]
    NotASocket {
        /// The name.
        path: PathBuf,
    },
    /// Somebody serves there.
    #[error("another process serves {}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path has no last component.
    #[error("{} names no file", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A socket that listens, and its file.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    group: Option<u32>,
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`, for root and the members of `group`. The socket file of an agent that is
    /// dead is replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path, group: &str) -> Result<Self, SocketError> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            let path = path.to_owned();
            return Err(SocketError::NoName { path });
        };
        make_folder(folder)?;
        refuse_occupied(path)?;
        let group = find_group(group);
        // Nobody but its owner gets into this folder, so that the socket is reached only once its
        // mode is right.
        let mut nursery = OsString::from(".");
        nursery.push(name);
        nursery.push(".new");
        let nursery = Nursery::new(folder.join(nursery))?;
        let young = nursery.0.join("s");
        let listener = UnixListener::bind(&young).map_err(failed("bind", path))?;
        let group = group.map_or(Ok(None), |group| give(&young, group, path))?;
        let mode = group.map_or(OWNER_MODE, |_| GROUP_MODE);
        let permissions = Permissions::from_mode(mode);
        fs::set_permissions(&young, permissions).map_err(failed("set the mode of", path))?;
        let identity = identity(&young).map_err(failed("look at", path))?;
        fs::rename(&young, path).map_err(failed("rename to", path))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            group,
            identity,
        })
    }

    /// The listener.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The group that may read and reload.
    pub(super) fn group(&self) -> Option<u32> {
        self.group
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A successor's file stays.
        if !identity(&self.path).is_ok_and(|found| found == self.identity) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), error = in_full(&error), "the control socket's file stays");
        }
    }
}

/// The folder in which a socket gets its mode.
struct Nursery(PathBuf);

impl Nursery {
    fn new(path: PathBuf) -> Result<Self, SocketError> {
        // An agent that was killed just here has left it.
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path)(source));
            }
            _ => {}
        }
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(failed("create folder", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            warn!(path = %self.0.display(), error = in_full(&error), "a folder of the control socket stays");
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), SocketError> {
    if folder.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).create(folder);
    made.map_err(failed("create folder", folder))?;
    // Whatever the umask was.
    fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE))
        .map_err(failed("set the mode of", folder))
}

/// Lets pass what may be replaced: nothing, or a socket that nobody serves.
fn refuse_occupied(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("look at", path)(source)),
    };
    let path = path.to_owned();
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path });
    }
    if is_served(&path) {
        Err(SocketError::InUse { path })
    } else {
        Ok(())
    }
}

/// Whether a process listens at `path`. One that is too busy to accept does, too: nothing waits
/// for it here.
pub(super) fn is_served(path: &Path) -> bool {
    let connected = UnixAddr::new(path).and_then(|address| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &address)
    });
    !matches!(connected, Err(Errno::ENOENT | Errno::ECONNREFUSED))
}

/// Gives the socket to the group, if this user may: to one that he is in, or with `CAP_CHOWN`.
fn give(socket: &Path, group: u32, path: &Path) -> Result<Option<u32>, SocketError> {
    match chown(socket, None, Some(group)) {
        Ok(()) => Ok(Some(group)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            warn!(
                group,
                "the agent's user is not a member of the group: only root may use the socket"
            );
            Ok(None)
        }
        Err(error) => Err(failed("give to its group", path)(error)),
    }
}

fn find_group(name: &str) -> Option<u32> {
    match Group::from_name(name) {
        Ok(Some(group)) => return Some(group.gid.as_raw()),
        Ok(None) => warn!(group = name, "no such group: only root may use the socket"),
        Err(error) => {
            warn!(
                group = name,
                error = in_full(&error),
                "group not looked up: only root may use the socket"
            );
        }
    }
    None
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io {
        action,
        path,
        source,
    }
}
