//! Notices when the BPF filesystem is unmounted or mounted over.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::chain::in_full;
use crate::kernel::readiness::urgent;
use crate::state::lock::{ExclusiveLock, LockError};

/// Raises `POLLPRI` whenever a mount of this namespace changes (proc(5)).
const MOUNTS: &str = "/proc/self/mountinfo";

pub(super) struct Mounts {
    table: AsyncFd<File>,
    /// gate25's folder on the BPF filesystem, which nobody else may work in.
    folder: PathBuf,
    locked: (u64, u64),
    lock: ExclusiveLock,
}

impl Mounts {
    /// `lock` is held on `folder`.
    pub(super) fn watch(folder: PathBuf, lock: ExclusiveLock) -> anyhow::Result<Self> {
        let table = File::open(MOUNTS).context("open the table of mounts")?;
        let locked = identity(&folder)?;
        Ok(Self {
            table: urgent(table).context("watch the table of mounts")?,
            folder,
            locked,
            lock,
        })
    }

    /// Returns once a mount has changed. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) -> anyhow::Result<()> {
        let mut ready = self.table.ready_mut(Interest::PRIORITY).await?;
        ready.clear_ready();
        Ok(())
    }

    /// Locks the folder that is there now, if it is another one than before; what keeps it from that
    /// is complained of, as whoever makes the folder may not have given it away yet.
    ///
    /// # Errors
    /// [`LockError::Held`]: another agent works there.
    pub(super) fn lock_again(&mut self) -> Result<Option<String>, LockError> {
        // Where there is none, the complaint about the pins says so.
        let Ok(now) = identity(&self.folder) else {
            return Ok(None);
        };
        if now == self.locked {
            return Ok(None);
        }
        match ExclusiveLock::acquire(&self.folder) {
            Ok(lock) => {
                self.lock = lock;
                self.locked = now;
                Ok(None)
            }
            Err(error @ LockError::Held { .. }) => Err(error),
            Err(error @ (LockError::Open { .. } | LockError::Lock { .. })) => {
                let why = in_full(&error);
                Ok(Some(format!("other agents are not kept away: {why}")))
            }
        }
    }
}

fn identity(folder: &PathBuf) -> anyhow::Result<(u64, u64)> {
    let metadata = fs::metadata(folder).with_context(|| format!("look at {}", folder.display()))?;
    Ok((metadata.dev(), metadata.ino()))
}
