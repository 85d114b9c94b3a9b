//! The two clocks that exemptions depend on, and being told when somebody sets one.
//!
//! Policies speak of the wall clock; the kernel compares deadlines with the time since boot, which
//! nobody can set. The difference between the two is what turns the one into the other.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{
    ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags,
};
use nix::time::{ClockId, clock_gettime};
use thiserror::Error;
use tokio::io::unix::AsyncFd;

use crate::kernel::readiness::readable;

/// Nanoseconds in a second.
const SECOND: i64 = 1_000_000_000;
/// A moment in the year 2255, in seconds: near the last one that the kernel can represent.
const NEVER: i64 = 9_000_000_000;
/// Samples of which the one taken in the least time counts: a preempted one is off by as long as
/// the preemption lasted.
const SAMPLES: u32 = 5;

/// Why a clock could not be read or watched.
#[derive(Debug, Error)]
pub enum ClockError {
    /// The clock could not be read.
    #[error("cannot read the clock")]
    Read(#[source] nix::Error),
    /// The timer that notices a set clock could not be made.
    #[error("cannot watch the wall clock")]
    Watch(#[source] io::Error),
}

/// Nanoseconds since boot, suspended time included: `CLOCK_BOOTTIME`, the clock of the kernel's
/// deadlines.
///
/// # Errors
/// [`ClockError::Read`] when the kernel does not say.
pub fn boot() -> Result<i64, ClockError> {
    read(ClockId::CLOCK_BOOTTIME)
}

/// Nanoseconds since boot without suspended time: `CLOCK_MONOTONIC`.
///
/// # Errors
/// [`ClockError::Read`] when the kernel does not say.
pub fn monotonic() -> Result<i64, ClockError> {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970: `CLOCK_REALTIME`.
///
/// # Errors
/// [`ClockError::Read`] when the kernel does not say.
pub fn wall() -> Result<i64, ClockError> {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> Result<i64, ClockError> {
    let time = clock_gettime(clock).map_err(ClockError::Read)?;
    Ok(time.tv_sec() * SECOND + time.tv_nsec())
}

/// How far the wall clock is ahead of the time since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offset {
    nanoseconds: i64,
}

impl Offset {
    /// Reads both clocks as nearly at once as can be had.
    ///
    /// # Errors
    /// [`ClockError::Read`] when a clock cannot be read.
    pub fn sample() -> Result<Self, ClockError> {
        let mut best: Option<(i64, i64)> = None;
        for _ in 0..SAMPLES {
            let before = boot()?;
            let wall = wall()?;
            let width = boot()? - before;
            if best.is_none_or(|(narrowest, _)| width < narrowest) {
                best = Some((width, wall - (before + width / 2)));
            }
        }
        Ok(Self {
            nanoseconds: best.map_or(0, |(_, nanoseconds)| nanoseconds),
        })
    }

    /// The offset of this many nanoseconds.
    #[must_use]
    pub const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self { nanoseconds }
    }

    /// The offset in nanoseconds.
    #[must_use]
    pub const fn nanoseconds(self) -> i64 {
        self.nanoseconds
    }

    /// The time since boot at which the wall clock shows `wall`, both in nanoseconds: 0 if that
    /// was before boot.
    #[must_use]
    pub fn boot_at(self, wall: i64) -> u64 {
        // The difference of two i64 fits a u64 whenever it is not negative.
        if wall <= self.nanoseconds {
            0
        } else {
            wall.abs_diff(self.nanoseconds)
        }
    }
}

/// Whether the clocks moved against each other by more than `tolerance` between two samples: the
/// deadlines in the kernel then no longer say what the policy says.
#[must_use]
pub fn drifted(old: Offset, new: Offset, tolerance: Duration) -> bool {
    u128::from(old.nanoseconds.abs_diff(new.nanoseconds)) > tolerance.as_nanos()
}

/// Tells when the wall clock is set or the machine wakes from suspend.
///
/// Slewing, by which NTP keeps the clock right, is no setting: sample now and then as well.
#[derive(Debug)]
pub struct ClockWatch {
    timer: AsyncFd<OwnedFd>,
}

impl ClockWatch {
    /// Starts watching.
    ///
    /// # Errors
    /// [`ClockError::Watch`] when the kernel gives no timer.
    pub fn new() -> Result<Self, ClockError> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, flags).map_err(watch)?;
        // Never meant to expire: only its cancellation is of interest.
        let never = TimeSpec::new(NEVER, 0);
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        timer
            .set(Expiration::OneShot(never), flags)
            .map_err(watch)?;
        Ok(Self {
            timer: readable(OwnedFd::from(timer)).map_err(ClockError::Watch)?,
        })
    }

    /// Returns once the clock has been set since the last call, or since the watch began.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ClockError::Watch`] when the timer is beyond use.
    pub async fn set(&self) -> Result<(), ClockError> {
        loop {
            let mut ready = self.timer.readable().await.map_err(ClockError::Watch)?;
            let mut expiries = [0; 8];
            let read = ready.try_io(|timer| Ok(nix::unistd::read(timer.get_ref(), &mut expiries)?));
            match read {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ECANCELED) => return Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(ClockError::Watch(error)),
                // Not before the year 2255, unless somebody sets the clock there.
                Ok(Ok(_)) => return Ok(()),
                Err(_would_block) => {}
            }
        }
    }
}

fn watch(error: nix::Error) -> ClockError {
    ClockError::Watch(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400 * SECOND;

    #[test]
    fn boot_read_twice_never_goes_back() {
        let first = boot().unwrap();
        assert!(boot().unwrap() >= first);
    }

    #[test]
    fn boot_agrees_with_proc_uptime() {
        let before = boot().unwrap();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let after = boot().unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let uptime = (seconds * SECOND as f64) as i64;
        // The file has hundredths of a second only.
        assert!(
            (before - SECOND / 50..=after).contains(&uptime),
            "{before} {uptime} {after}"
        );
    }

    #[test]
    fn wall_agrees_with_the_standard_library() {
        let before = std::time::SystemTime::now();
        let wall = wall().unwrap();
        let elapsed = before
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_nanos();
        assert!(i128::from(wall) >= i128::try_from(elapsed).unwrap());
    }

    #[test]
    fn offset_sampled_twice_has_not_drifted_while_nobody_sets_the_clock() {
        let first = Offset::sample().unwrap();
        assert!(!drifted(
            first,
            Offset::sample().unwrap(),
            Duration::from_millis(100)
        ));
    }

    #[test]
    fn drifted_is_about_distance_in_either_direction() {
        let old = Offset::from_nanoseconds(10 * DAY);
        for days in [9, 11] {
            let new = Offset::from_nanoseconds(days * DAY);
            assert!(drifted(old, new, Duration::from_secs(86_399)));
            assert!(!drifted(old, new, Duration::from_secs(86_400)));
        }
        let ends = (
            Offset::from_nanoseconds(i64::MIN),
            Offset::from_nanoseconds(i64::MAX),
        );
        assert!(drifted(ends.0, ends.1, Duration::from_secs(1)));
    }

    #[test]
    fn boot_at_subtracts_the_offset_and_stays_in_range() {
        let offset = Offset::from_nanoseconds(100 * DAY);
        assert_eq!(offset.boot_at(101 * DAY), DAY as u64);
        assert_eq!(offset.boot_at(99 * DAY), 0);
        assert_eq!(offset.boot_at(i64::MIN), 0);
        let behind = Offset::from_nanoseconds(-DAY);
        assert_eq!(behind.boot_at(i64::MAX), i64::MAX as u64 + DAY as u64);
    }

    #[tokio::test]
    async fn clock_watch_with_nobody_setting_the_clock_stays_silent() {
        let watch = ClockWatch::new().unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(50), watch.set()).await;
        assert!(waited.is_err());
    }
}
