//! What the pure functions make of a frame.

use gate25_common::counters::{HostCounters, Uninterrupted};
use gate25_common::decide::{Decision, HostMode, Subject, Verdict, decide};
use gate25_common::packet::{Malformed, ParseError, Parsed, parse};
use gate25_common::testing::frames::MemoryFrame;
use gate25_common::testing::tables::MemoryTables;

use super::kernel::{Action, NOTICE};

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

/// Verdicts that random policies come to often.
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

/// Whether the program did what was decided.
pub(crate) fn carried_out(
    tables: &MemoryTables,
    decision: Option<Decision>,
    frame: &[u8],
    action: &Action,
) -> bool {
    let Some(decision) = decision else {
        return *action == Action::Passed;
    };
    match decision.verdict {
        // What goes to the target by itself is refused while its port is in use for another place.
        Verdict::Allow if matches!(action, Action::Answered(_)) => is_led(tables, decision, frame),
        Verdict::Allow | Verdict::Observe => *action == Action::Passed,
        Verdict::Drop => *action == Action::Dropped,
        Verdict::Reject => matches!(action, Action::Dropped | Action::Answered(_)),
        Verdict::Redirect | Verdict::Notice => match action {
            Action::Led(packet) => is_led(tables, decision, packet),
            // It belongs to no connection that was led elsewhere.
            Action::Dropped | Action::Answered(_) => true,
            Action::Passed => false,
        },
        Verdict::Throttle => false,
    }
}

/// Whether the packet goes to its customer's target.
fn is_led(tables: &MemoryTables, decision: Decision, packet: &[u8]) -> bool {
    let frame = MemoryFrame {
        ports: vec![25, NOTICE.port()],
        ..MemoryFrame::new(packet)
    };
    let Ok(Parsed::Guarded(segment)) = parse(&frame) else {
        return false;
    };
    let policy = tables.policies.get(&decision.customer);
    let target = policy.and_then(|policy| policy.target(segment.family));
    target.is_some_and(|target| {
        target.address() == segment.destination && target.port() == segment.port
    })
}
