//! What the pure functions make of a frame.

use gate25_common::counters::{HostCounters, Uninterrupted};
use gate25_common::decide::{Decision, HostMode, Subject, Verdict, decide};
use gate25_common::packet::{Malformed, ParseError, Parsed};
use gate25_common::testing::tables::MemoryTables;

use super::kernel::Action;

/// Judges a packet of `length` bytes and counts it as the program should; `None` if it is not
/// judged.
pub(crate) fn judge(
    tables: &MemoryTables,
    host: HostMode,
    parsed: Result<Parsed, ParseError>,
    length: usize,
    counters: &mut HostCounters,
) -> Option<Decision> {
    let (subject, family) = match parsed {
        Ok(Parsed::Other) | Err(ParseError::ShortLink) => return None,
        Ok(Parsed::Tunnel(tunnel)) => {
            counters.count_tunnel::<Uninterrupted>(tunnel);
            return None;
        }
        Ok(Parsed::Guarded(segment)) => {
            let decision = decide(tables, host, &segment.subject());
            counters.count::<Uninterrupted>(&decision, segment.family, 1, length as u64);
            if segment.is_attempt() {
                counters.count_attempt::<Uninterrupted>(&decision, segment.family);
            }
            return Some(decision);
        }
        Err(ParseError::ShortNetwork(family)) => (Subject::Malformed(Malformed::Truncated), family),
        Err(ParseError::Malformed(kind, family)) => (Subject::Malformed(kind), family),
    };
    let decision = decide(tables, host, &subject);
    counters.count::<Uninterrupted>(&decision, family, 1, length as u64);
    Some(decision)
}

/// Verdicts that random policies come to; redirection wants a target.
pub(crate) fn possible(host: HostMode) -> &'static [Verdict] {
    match host {
        HostMode::Policy => &[
            Verdict::Allow,
            Verdict::Observe,
            Verdict::Reject,
            Verdict::Drop,
        ],
        HostMode::Observe => &[Verdict::Allow, Verdict::Observe],
    }
}

/// Whether a packet is let go by this verdict, or by none.
pub(crate) fn passes(verdict: Option<Verdict>) -> bool {
    match verdict {
        None | Some(Verdict::Allow | Verdict::Observe) => true,
        Some(
            Verdict::Reject
            | Verdict::Drop
            | Verdict::Redirect
            | Verdict::Notice
            | Verdict::Throttle,
        ) => false,
    }
}

/// Whether the program did what the verdict says.
pub(crate) fn carried_out(verdict: Option<Verdict>, action: &Action) -> bool {
    match verdict {
        None | Some(Verdict::Allow | Verdict::Observe) => *action == Action::Passed,
        Some(Verdict::Drop) => *action == Action::Dropped,
        Some(Verdict::Reject) => *action != Action::Passed,
        Some(Verdict::Redirect | Verdict::Notice | Verdict::Throttle) => false,
    }
}
