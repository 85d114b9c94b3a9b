//! Waiting for descriptors that tokio has no type of its own for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime say when `inner`, which must not block, can be read.
///
/// # Errors
/// When the runtime cannot watch it.
pub(crate) fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    watch(inner, Interest::READABLE)
}

/// Lets the runtime say when something exceptional (`POLLPRI`) is to be read from `inner`.
///
/// # Errors
/// When the runtime cannot watch it.
pub(crate) fn urgent<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    watch(inner, Interest::PRIORITY)
}

fn watch<T: AsFd + AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: a type that can lend out its descriptor safely owns it for as long as it lives, and
    // none given here exchanges it for another.
    let watched = unsafe { AsyncFd::register_with_interest(inner, interest) };
    Ok(watched?)
}
