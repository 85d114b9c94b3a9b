//! Doing something in another network namespace.

use std::thread;

use nix::sched::{CloneFlags, setns};

use super::{SocketsError, Within};

/// Runs `work`: for another namespace on a thread that enters it and ends with it, since no thread
/// that does anything else, a runtime's least of all, may be left in there. Sockets made in it stay
/// in the namespace.
pub(super) fn within<T: Send>(
    namespace: Within<'_>,
    work: impl FnOnce() -> Result<T, SocketsError> + Send,
) -> Result<T, SocketsError> {
    let namespace = match namespace {
        // Entering even one's own takes privileges.
        Within::Own => return work(),
        Within::Other(namespace) => namespace,
    };
    thread::scope(|scope| {
        let entered = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(namespace, CloneFlags::CLONE_NEWNET)
                    .map_err(|error| SocketsError::Enter(error.into()))?;
                work()
            })
            .map_err(SocketsError::Enter)?;
        match entered.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
