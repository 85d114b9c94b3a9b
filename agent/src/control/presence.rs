//! Whether an agent runs, for commands that get no answer from one or must not meet one.

use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::socket::is_served;
use crate::kernel::bpf::leftover::Leftover;
use crate::state::lock::{ExclusiveLock, GRACE, LockError};

const PAUSE: Duration = Duration::from_millis(20);

/// Whether an agent runs.
#[derive(Debug)]
pub enum Presence {
    /// Somebody serves the control socket, whether he answers or not.
    Running,
    /// An agent runs, and nobody serves the socket.
    Unserved,
    /// None runs.
    Stopped,
    /// Nobody serves the socket, and whether an agent runs cannot be found out.
    Unknown(LockError),
}

impl Presence {
    /// Looks at the control socket and at what an agent locks. A program that a dead agent was about to
    /// start has both until its exec(2): that is waited for.
    #[must_use]
    pub fn look(socket: &Path, filesystem: &Path) -> Self {
        let leftover = Leftover::at(filesystem);
        // Where there is no BPF filesystem, the socket's folder is locked.
        let folders = [Some(leftover.folder()), socket.parent()];
        let end = Instant::now() + GRACE;
        loop {
            let seen = glance(socket, folders.into_iter().flatten());
            match seen {
                Self::Running | Self::Unserved if Instant::now() < end => thread::sleep(PAUSE),
                Self::Running | Self::Unserved | Self::Stopped | Self::Unknown(_) => return seen,
            }
        }
    }
}

fn glance<'a>(socket: &Path, folders: impl Iterator<Item = &'a Path>) -> Presence {
    if is_served(socket) {
        return Presence::Running;
    }
    let mut unknown = None;
    for folder in folders {
        match ExclusiveLock::is_held(folder) {
            Ok(true) => return Presence::Unserved,
            Ok(false) => {}
            // What is not there, nobody has locked.
            Err(LockError::Open { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(error) => unknown = Some(error),
        }
    }
    unknown.map_or(Presence::Stopped, Presence::Unknown)
}
