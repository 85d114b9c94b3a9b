//! How much slower than an ordinary machine this one is: the one place where that changes a test.
//!
//! `GATE25_SLOWNESS` says it, which `./xtask/x vm` sets inside an emulated machine. Everywhere else
//! it is 1, and deadlines, bounds and counts are what the tests say.

use std::{env, sync::LazyLock, time::Duration};

const VARIABLE: &str = "GATE25_SLOWNESS";

/// The factor; 1 on an ordinary machine.
///
/// # Panics
/// When `GATE25_SLOWNESS` is no number above 0: a test under another pace than was asked for would
/// show nothing.
#[must_use]
pub fn slowness() -> u32 {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        let Some(value) = env::var_os(VARIABLE) else {
            return 1;
        };
        let factor = value.to_str().and_then(|text| text.parse().ok());
        assert!(
            factor.is_some_and(|factor: u32| factor > 0),
            "{VARIABLE}={value:?} is no number above 0"
        );
        factor.unwrap_or(1)
    });
    *FACTOR
}

/// A deadline, or a bound on how long something takes, on this machine.
#[must_use]
pub fn paced(ordinary: Duration) -> Duration {
    ordinary * slowness()
}

/// How many repetitions of something to make here, or packets to send a second, where `ordinary` are on an
/// ordinary machine: for counts that make a chance find likelier, not for those that mean something.
#[must_use]
pub fn fewer(ordinary: u32) -> u32 {
    (ordinary / slowness()).max(1)
}
