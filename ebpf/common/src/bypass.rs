//! A time in which a host only observes, ended by the kernel.

/// Bytes of a ticket.
pub const MAX_TICKET: usize = 64;

/// When this host only observes, whatever its settings say, as a table's value. Programs read the end
/// alone, which is one word: whoever replaces the value while they run leaves them the one or the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Bypass {
    until: u64,
    since: u64,
    ticket: [u8; MAX_TICKET],
}

impl Bypass {
    /// Never.
    pub const NONE: Self = Self {
        until: 0,
        since: 0,
        ticket: [0; MAX_TICKET],
    };

    /// From `since` until just before `until`, in nanoseconds of `CLOCK_BOOTTIME`, under a ticket;
    /// `None` if its name is longer than [`MAX_TICKET`] bytes.
    pub fn new(since: u64, until: u64, ticket: &str) -> Option<Self> {
        let mut bytes = [0; MAX_TICKET];
        bytes
            .get_mut(..ticket.len())?
            .copy_from_slice(ticket.as_bytes());
        Some(Self {
            until,
            since,
            ticket: bytes,
        })
    }

    /// Whether there is an end to compare the time with.
    #[inline(always)]
    pub const fn has_end(&self) -> bool {
        self.until != 0
    }

    /// Whether the host only observes at `now`.
    #[inline(always)]
    pub const fn is_active(&self, now: u64) -> bool {
        now < self.until
    }

    /// First moment at which it is over.
    pub const fn until(&self) -> u64 {
        self.until
    }

    /// When it was begun.
    pub const fn since(&self) -> u64 {
        self.since
    }

    /// The ticket; nothing where the bytes are no text.
    pub fn ticket(&self) -> &str {
        let length = self.ticket.iter().take_while(|byte| **byte != 0).count();
        let bytes = self.ticket.get(..length).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

const _: () = assert!(size_of::<Bypass>() == 16 + MAX_TICKET);
