//! Packets that come back to guests from guarded ports: what happens to them, and how that is
//! counted. Apart from what guests send, of which outsiders make none.

use crate::address::Family;
use crate::counters::Add;
use crate::decide::Verdict;

const FATES: usize = Fate::ALL.len();
const FAMILIES: usize = Family::ALL.len();

/// What happens to a packet that comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fate {
    /// It reaches the guest, which may send where it comes from.
    Allow = 0,
    /// It would be stopped, and reaches the guest.
    Observe = 1,
    /// It disappears.
    Drop = 2,
}

impl Fate {
    /// Every fate, in the order of the counters.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Observe, Self::Drop];

    /// The fate of what comes from a place, if `verdict` is on what would go there. There is nobody
    /// to be answered or led elsewhere: the other side is not the one that tries.
    #[inline(always)]
    pub const fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Observe => Self::Observe,
            Verdict::Reject
            | Verdict::Drop
            | Verdict::Redirect
            | Verdict::Notice
            | Verdict::Throttle => Self::Drop,
        }
    }

    /// The word for it in metrics and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => Verdict::Allow.as_str(),
            Self::Observe => Verdict::Observe.as_str(),
            Self::Drop => Verdict::Drop.as_str(),
        }
    }
}

/// Packets that came back, of a host or of one customer; one per CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ReturnCounters {
    packets: [[u64; FAMILIES]; FATES],
}

impl ReturnCounters {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        packets: [[0; FAMILIES]; FATES],
    };

    /// Counts one buffer of `segments` packets.
    #[inline(always)]
    pub fn count<A: Add>(&mut self, fate: Fate, family: Family, segments: u64) {
        if let Some(packets) = self
            .packets
            .get_mut(fate as usize)
            .and_then(|row| row.get_mut(family as usize))
        {
            A::add(packets, segments);
        }
    }

    /// Packets with this fate, segments of a large buffer counted one by one.
    pub fn packets(&self, fate: Fate, family: Family) -> u64 {
        self.packets[fate as usize][family as usize]
    }

    /// Packets with this fate, of both families.
    pub fn of(&self, fate: Fate) -> u64 {
        self.packets[fate as usize].iter().sum()
    }

    /// Adds the figures of another CPU.
    pub fn add(&mut self, other: &Self) {
        let Self { packets } = other;
        let mine = self.packets.as_flattened_mut().iter_mut();
        for (sum, value) in mine.zip(packets.as_flattened()) {
            *sum += value;
        }
    }
}

const _: () = assert!(size_of::<ReturnCounters>() == 8 * FATES * FAMILIES);
