//! Writes into tables that take memory for each entry.

use std::thread;
use std::time::{Duration, Instant};

use aya::maps::MapError;

/// How long memory is waited for: the kernel has some soon, or is out of it.
const LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);

/// Writes an entry, again for a while where the kernel has no memory for it. It takes that from a
/// stock that it fills up in the background (`bpf_mem_alloc`, kernel 6.1), and thousands of entries
/// in a row outrun it, first of all those with a value for each CPU.
///
/// # Errors
///
/// What the kernel said last.
pub(super) fn patiently(mut write: impl FnMut() -> Result<(), MapError>) -> Result<(), MapError> {
    let end = Instant::now() + LIMIT;
    loop {
        let result = write();
        match result {
            Err(MapError::SyscallError(ref error))
                if error.io_error.raw_os_error() == Some(libc::ENOMEM) && Instant::now() < end =>
            {
                thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}
