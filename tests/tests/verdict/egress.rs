//! The same packets where a container sends them: without their Ethernet headers, by the owner of
//! its control group.

use gate25_common::abi::{Blocked, Counting, CustomerId, Mode, Quarantine};
use gate25_common::address::Family;
use gate25_common::counters::Event;
use gate25_common::decide::{HostMode, Reason, Subject, Verdict, decide};
use gate25_common::packet::{Form, Malformed, ParseError, Parsed, network};
use gate25_common::testing::frames::{Ipv4, MemoryFrame, SERVER_V4, Tcp, frame_v4};
use gate25_common::testing::tables::MemoryTables;
use gate25_tests::NetNs;

use super::cgroup::Cgroups;
use super::kernel::{Action, Kernel, LOOPBACK, Meta, in_namespace};
use super::table::{
    CUSTOMER, Row, Setting, expected_moves, moved, settings, tables, v4_rows, v6_rows,
};

const ETHERNET: usize = 14;
/// Index of an interface that leads out.
pub(super) const OUT: u32 = 77;
const OTHER: CustomerId = CustomerId::from_name("c-7");

pub(super) fn out() -> Meta {
    Meta {
        interface: OUT,
        ..Meta::default()
    }
}

pub(super) fn make_way_out(namespace: &NetNs) {
    namespace
        .ip("link add left index 77 type veth peer name right index 78\nlink set left up")
        .expect("an interface that leads out");
}

/// The family of the packet in a frame; `None` if more than an Ethernet header is before it.
pub(super) fn family(frame: &[u8]) -> Option<Family> {
    match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => Some(Family::V4),
        [0x86, 0xdd] => Some(Family::V6),
        _ => None,
    }
}

/// What the parser makes of the packet in a frame.
pub(super) fn parse_packet(frame: &[u8], family: Family) -> Result<Parsed, ParseError> {
    network(
        &MemoryFrame::new(&frame[ETHERNET..]),
        family,
        0,
        Form::Plain,
    )
}

#[test]
fn packets_by_policies_are_decided_as_on_interfaces() {
    in_namespace(|namespace| {
        make_way_out(namespace);
        let cgroups = Cgroups::enter();
        let rows: Vec<_> = v4_rows()
            .into_iter()
            .chain(v6_rows())
            .filter_map(|row| Some((family(&row.frame)?, row)))
            .collect();
        assert!(rows.len() > 50, "{}", rows.len());
        let mut enforcing = Kernel::load(HostMode::Policy);
        let mut observing = Kernel::load(HostMode::Observe);
        for setting in settings() {
            let kernel = match setting.host {
                HostMode::Policy => &mut enforcing,
                HostMode::Observe => &mut observing,
            };
            let mut tables = tables(setting.mode, setting.blocked, setting.quarantine);
            if !setting.owned {
                tables = tables.owned_by(None);
            }
            kernel.fill(LOOPBACK, &tables);
            kernel.own_cgroup(cgroups.inner(), tables.owner);
            if !setting.readable {
                kernel.forget(CUSTOMER);
                tables.policies.remove(&CUSTOMER);
            }
            for (family, row) in &rows {
                check(kernel, &tables, setting, *family, row);
            }
        }
    });
}

fn check(kernel: &Kernel, tables: &MemoryTables, setting: Setting, family: Family, row: &Row) {
    let context = format!("{} ({family:?}) under {setting:?}", row.name);
    let outcome = setting.outcome(row.kind);
    assert_eq!(
        pure(tables, setting.host, &row.frame, family),
        outcome,
        "the pure function: {context}"
    );
    let before = kernel.host_counters();
    let action = kernel.run_egress(&row.frame, out());
    let after = kernel.host_counters();
    let expected = match outcome.map(|(verdict, ..)| verdict) {
        None | Some(Verdict::Allow | Verdict::Observe) => Action::Passed,
        Some(
            Verdict::Reject
            | Verdict::Drop
            | Verdict::Redirect
            | Verdict::Notice
            | Verdict::Throttle,
        ) => Action::Dropped,
    };
    assert_eq!(action, expected, "{context}");
    let length = (row.frame.len() - ETHERNET) as u64;
    assert_eq!(
        moved(&before, &after),
        expected_moves(outcome, row.family, row.attempt, row.kind, length),
        "counters: {context}"
    );
}

fn pure(
    tables: &MemoryTables,
    host: HostMode,
    frame: &[u8],
    family: Family,
) -> Option<(Verdict, Reason, Option<Malformed>)> {
    let subject = match parse_packet(frame, family) {
        Ok(Parsed::Other | Parsed::Tunnel(_)) => return None,
        Ok(Parsed::Guarded(segment)) => segment.subject(),
        Err(ParseError::ShortLink | ParseError::ShortNetwork(_)) => {
            Subject::Malformed(Malformed::Truncated)
        }
        Err(ParseError::Malformed(kind, _)) => Subject::Malformed(kind),
    };
    let decision = decide(tables, host, &subject);
    Some((decision.verdict, decision.reason, decision.malformed))
}

fn syn() -> Vec<u8> {
    frame_v4(&Ipv4::to(SERVER_V4), &Tcp::syn(25).bytes())
}

fn dropping() -> Kernel {
    let mut tables = tables(Mode::Enforce, Blocked::Drop, Quarantine::No);
    let policy = tables.policies[&CUSTOMER];
    tables.policies.insert(OTHER, policy);
    let mut kernel = Kernel::load(HostMode::Policy);
    kernel.fill(LOOPBACK, &tables);
    kernel
}

#[test]
fn packet_that_stays_on_the_loopback_passes_uncounted() {
    in_namespace(|_| {
        let kernel = dropping();
        let before = kernel.host_counters();
        assert_eq!(kernel.run_egress(&syn(), Meta::default()), Action::Passed);
        assert_eq!(moved(&before, &kernel.host_counters()), []);
    });
}

#[test]
fn packet_is_the_deepest_owners_and_its_event_names_the_group() {
    in_namespace(|namespace| {
        make_way_out(namespace);
        let cgroups = Cgroups::enter();
        let mut kernel = dropping();
        let owners = [
            (None, None, CustomerId::UNASSIGNED),
            (Some(OTHER), None, OTHER),
            (Some(OTHER), Some(CUSTOMER), CUSTOMER),
            (
                Some(OTHER),
                Some(CustomerId::UNASSIGNED),
                CustomerId::UNASSIGNED,
            ),
            (None, Some(CUSTOMER), CUSTOMER),
        ];
        for (outer, inner, expected) in owners {
            kernel.own_cgroup(cgroups.outer(), outer);
            kernel.own_cgroup(cgroups.inner(), inner);
            assert_eq!(kernel.run_egress(&syn(), out()), Action::Dropped);
            let mut ring = kernel.events();
            let event = ring.next().expect("an event");
            let event = Event::from_bytes(&event).expect("an event");
            assert_eq!(event.customer(), expected, "{outer:?} {inner:?}");
            assert_eq!((event.interface(), event.cgroup()), (0, cgroups.inner()));
        }
    });
}

#[test]
fn interface_of_a_judged_container_counts_only_what_it_refuses() {
    in_namespace(|_| {
        let settings = settings();
        for setting in settings.iter().filter(|setting| setting.readable) {
            let tables = tables(setting.mode, setting.blocked, setting.quarantine);
            let mut kernel = Kernel::load(setting.host);
            kernel.fill(LOOPBACK, &tables);
            if !setting.owned {
                kernel.own(LOOPBACK, Some(CustomerId::UNASSIGNED));
            }
            kernel.count(LOOPBACK, Counting::Refused);
            for row in v4_rows().into_iter().chain(v6_rows()) {
                let outcome = setting.outcome(row.kind);
                let refused = outcome.filter(|(verdict, ..)| match verdict {
                    Verdict::Allow | Verdict::Observe => false,
                    Verdict::Reject
                    | Verdict::Drop
                    | Verdict::Redirect
                    | Verdict::Notice
                    | Verdict::Throttle => true,
                });
                let before = kernel.host_counters();
                let action = kernel.run(&row.frame, Meta::default());
                assert_eq!(action == Action::Passed, refused.is_none(), "{}", row.name);
                let moves = moved(&before, &kernel.host_counters());
                if refused.is_some() {
                    let length = row.frame.len() as u64;
                    let expected =
                        expected_moves(outcome, row.family, row.attempt, row.kind, length);
                    assert_eq!(moves, expected, "{} under {setting:?}", row.name);
                } else {
                    assert_eq!(moves, [], "{} under {setting:?}", row.name);
                }
            }
        }
    });
}
