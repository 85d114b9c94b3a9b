//! Packets by policies, what must happen to each written down by hand.

use gate25_common::abi::{Blocked, CustomerId, CustomerPolicy, Exemption, Mode, Quarantine, SetId};
use gate25_common::address::{Address, Family};
use gate25_common::counters::HostCounters;
use gate25_common::decide::{HostMode, Reason, Subject, Verdict, decide};
use gate25_common::packet::{Malformed, ParseError, Parsed, Tunnel, parse};
use gate25_common::testing::frames::{
    ACK, Extension, FIN, IPV4, IPV6, Ipv4, Ipv6, MemoryFrame, PSH, RST, SERVER_V4, SERVER_V6,
    SERVICE_TAG, SYN, Step, Tcp, ethernet, ethernet_to, frame_v4, frame_v6,
};
use gate25_common::testing::tables::MemoryTables;

use super::kernel::{Action, Kernel, LOOPBACK, Meta, boot_time, in_namespace};

pub(super) const CUSTOMER: CustomerId = CustomerId::from_name("c-10042");
pub(super) const RELAY_V4: [u8; 4] = [192, 0, 2, 25];
pub(super) const RELAY_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0x25, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
/// An address within the prefix of the exemption that holds.
pub(super) const EXEMPT_V4: [u8; 4] = [198, 51, 100, 7];

fn set(number: u64) -> SetId {
    SetId::new(number).expect("not a reserved number")
}

/// Relays in set 1, the exemption's prefix in set 3, and the policy given.
pub(super) fn tables(mode: Mode, blocked: Blocked, quarantine: Quarantine) -> MemoryTables {
    let exemptions = [
        // Long over, not yet begun, and in force.
        Exemption::new(SetId::ANY, 0, 1),
        Exemption::new(SetId::ANY, u64::MAX - 1, u64::MAX),
        Exemption::new(set(3), 0, u64::MAX),
    ];
    let policy = CustomerPolicy::new(mode, blocked, quarantine, set(1), SetId::NONE)
        .with_exemptions(&exemptions)
        .expect("three");
    let mut tables = MemoryTables {
        owner: Some(CUSTOMER),
        now: boot_time(),
        ..MemoryTables::default()
    };
    tables.policies.insert(CUSTOMER, policy);
    let unassigned = CustomerPolicy::new(mode, blocked, quarantine, set(1), SetId::NONE);
    tables.policies.insert(CustomerId::UNASSIGNED, unassigned);
    tables.insert(set(1), Address::from_v4(RELAY_V4), 128, 0);
    tables.insert(set(1), Address::from_v6(RELAY_V6), 128, 1);
    tables.insert(set(3), Address::from_v4([198, 51, 100, 0]), 120, 0);
    tables
}

/// What a packet is, whatever the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Other,
    Tunnel(Tunnel),
    Relay,
    Exempt,
    /// To anywhere else, and a reset can answer it.
    Outside,
    /// To anywhere else, and must not be answered.
    Unanswerable,
    SourceRouted,
    Malformed(Malformed),
}

pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) frame: Vec<u8>,
    pub(super) family: Family,
    pub(super) attempt: bool,
    pub(super) kind: Kind,
}

fn row(name: &'static str, family: Family, attempt: bool, kind: Kind, frame: Vec<u8>) -> Row {
    Row {
        name,
        frame,
        family,
        attempt,
        kind,
    }
}

fn syn() -> Vec<u8> {
    Tcp::syn(25).bytes()
}

pub(super) fn v4_rows() -> Vec<Row> {
    use Family::V4;
    let plain = Ipv4::to(SERVER_V4);
    let options = |options: &[u8]| Ipv4 {
        options: options.to_vec(),
        ..plain.clone()
    };
    let fragment = |fragment| Ipv4 {
        fragment,
        ..plain.clone()
    };
    let protocol = |protocol| Ipv4 {
        protocol,
        ..plain.clone()
    };
    let flags = |flags| frame_v4(&plain, &Tcp::with_flags(25, flags).bytes());
    let tagged = |steps: &[Step]| ethernet(steps, IPV4, &plain.with(&syn()));
    let outside = Kind::Outside;
    let silent = Kind::Unanswerable;
    let mut authentication = vec![6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    authentication.extend(syn());
    let short = Ipv4 {
        total_length: Some(36),
        ..fragment(Ipv4::MORE)
    };
    vec![
        row(
            "web",
            V4,
            false,
            Kind::Other,
            frame_v4(&plain, &Tcp::syn(443).bytes()),
        ),
        row(
            "udp",
            V4,
            false,
            Kind::Other,
            frame_v4(&protocol(17), &syn()),
        ),
        row(
            "arp",
            V4,
            false,
            Kind::Other,
            ethernet(&[], 0x0806, &[0; 46]),
        ),
        row(
            "ipip",
            V4,
            false,
            Kind::Tunnel(Tunnel::Ipip),
            frame_v4(&protocol(4), &[0; 40]),
        ),
        row(
            "6in4",
            V4,
            false,
            Kind::Tunnel(Tunnel::SixInFour),
            frame_v4(&protocol(41), &[0; 40]),
        ),
        row(
            "gre",
            V4,
            false,
            Kind::Tunnel(Tunnel::Gre),
            frame_v4(&protocol(47), &[0; 40]),
        ),
        row(
            "relay",
            V4,
            true,
            Kind::Relay,
            frame_v4(&Ipv4::to(RELAY_V4), &syn()),
        ),
        row(
            "exempt",
            V4,
            true,
            Kind::Exempt,
            frame_v4(&Ipv4::to(EXEMPT_V4), &syn()),
        ),
        row("syn", V4, true, outside, frame_v4(&plain, &syn())),
        row(
            "syn with payload",
            V4,
            true,
            outside,
            frame_v4(
                &plain,
                &Tcp {
                    payload: vec![1; 99],
                    ..Tcp::syn(25)
                }
                .bytes(),
            ),
        ),
        row("syn ack", V4, false, outside, flags(SYN | ACK)),
        row("data", V4, false, outside, flags(ACK | PSH)),
        row("fin", V4, false, outside, flags(FIN)),
        row("nothing", V4, false, outside, flags(0)),
        row("reset", V4, false, silent, flags(RST)),
        row("reset with ack", V4, false, silent, flags(RST | ACK)),
        row("priority tag", V4, true, outside, tagged(&[Step::PRIORITY])),
        row(
            "two tags",
            V4,
            true,
            outside,
            tagged(&[Step::Tag(SERVICE_TAG, 5), Step::Tag(0x8100, 6)]),
        ),
        row(
            "three tags",
            V4,
            false,
            Kind::Malformed(Malformed::VlanDepth),
            tagged(&[Step::PRIORITY; 3]),
        ),
        row("snap", V4, true, silent, tagged(&[Step::SNAP])),
        row(
            "snap behind a tag",
            V4,
            true,
            silent,
            tagged(&[Step::PRIORITY, Step::SNAP]),
        ),
        row(
            "broadcast frame",
            V4,
            true,
            silent,
            ethernet_to([0xff; 6], &[], IPV4, &plain.with(&syn())),
        ),
        row(
            "multicast",
            V4,
            true,
            silent,
            frame_v4(&Ipv4::to([224, 0, 0, 25]), &syn()),
        ),
        row(
            "limited broadcast",
            V4,
            true,
            silent,
            frame_v4(&Ipv4::to([255; 4]), &syn()),
        ),
        row(
            "options",
            V4,
            true,
            silent,
            frame_v4(&options(&[1, 1, 1, 0]), &syn()),
        ),
        row(
            "loose route",
            V4,
            true,
            Kind::SourceRouted,
            frame_v4(&options(&[131, 3, 4, 0]), &syn()),
        ),
        row(
            "strict route",
            V4,
            true,
            Kind::SourceRouted,
            frame_v4(&options(&[1, 137, 3, 4]), &syn()),
        ),
        row(
            "bad option",
            V4,
            false,
            Kind::Malformed(Malformed::Header),
            frame_v4(&options(&[148, 1, 0, 0]), &syn()),
        ),
        row(
            "wrong version",
            V4,
            false,
            Kind::Malformed(Malformed::Header),
            frame_v4(
                &Ipv4 {
                    version: 6,
                    ..plain.clone()
                },
                &syn(),
            ),
        ),
        row(
            "cut tcp",
            V4,
            false,
            Kind::Malformed(Malformed::Truncated),
            frame_v4(&plain, &syn())[..53].to_vec(),
        ),
        row(
            "length of zero",
            V4,
            true,
            outside,
            frame_v4(
                &Ipv4 {
                    total_length: Some(0),
                    ..plain.clone()
                },
                &syn(),
            ),
        ),
        row(
            "first fragment",
            V4,
            true,
            silent,
            frame_v4(&fragment(Ipv4::MORE), &syn()),
        ),
        row(
            "short fragment, padded",
            V4,
            false,
            Kind::Malformed(Malformed::ShortFragment),
            frame_v4(&short, &syn()),
        ),
        row(
            "fragment at 1",
            V4,
            false,
            Kind::Malformed(Malformed::OverlappingFragment),
            frame_v4(&fragment(1), &syn()),
        ),
        row(
            "fragment at 2",
            V4,
            false,
            Kind::Other,
            frame_v4(&fragment(2), &syn()),
        ),
        row(
            "authenticated",
            V4,
            true,
            silent,
            frame_v4(&protocol(51), &authentication),
        ),
    ]
}

pub(super) fn v6_rows() -> Vec<Row> {
    use Family::V6;
    let plain = Ipv6::to(SERVER_V6);
    let through = |chain: &[Extension]| frame_v6(&Ipv6::through(SERVER_V6, chain), &syn());
    let mut nat64 = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    nat64[12..].copy_from_slice(&RELAY_V4);
    let mut multicast = SERVER_V6;
    multicast[..2].copy_from_slice(&[0xff, 0x02]);
    let outside = Kind::Outside;
    let silent = Kind::Unanswerable;
    let overlap = Ipv6 {
        protocol: 59,
        ..Ipv6::through(
            SERVER_V6,
            &[Extension::Fragment {
                offset: 1,
                more: false,
            }],
        )
    };
    let first = Extension::Fragment {
        offset: 0,
        more: true,
    };
    let short = Ipv6 {
        payload_length: Some(20),
        ..Ipv6::through(SERVER_V6, &[first])
    };
    vec![
        row(
            "web",
            V6,
            false,
            Kind::Other,
            frame_v6(&plain, &Tcp::syn(443).bytes()),
        ),
        row(
            "icmp",
            V6,
            false,
            Kind::Other,
            frame_v6(
                &Ipv6 {
                    protocol: 58,
                    ..plain.clone()
                },
                &[0; 40],
            ),
        ),
        row(
            "esp",
            V6,
            false,
            Kind::Other,
            frame_v6(
                &Ipv6 {
                    protocol: 50,
                    ..plain.clone()
                },
                &[0; 40],
            ),
        ),
        row(
            "gre",
            V6,
            false,
            Kind::Tunnel(Tunnel::Gre),
            frame_v6(
                &Ipv6 {
                    protocol: 47,
                    ..plain.clone()
                },
                &[0; 40],
            ),
        ),
        row(
            "relay",
            V6,
            true,
            Kind::Relay,
            frame_v6(&Ipv6::to(RELAY_V6), &syn()),
        ),
        row(
            "relay by nat64",
            V6,
            true,
            Kind::Relay,
            frame_v6(&Ipv6::to(nat64), &syn()),
        ),
        row("syn", V6, true, outside, frame_v6(&plain, &syn())),
        row(
            "reset",
            V6,
            false,
            silent,
            frame_v6(&plain, &Tcp::with_flags(25, RST).bytes()),
        ),
        row(
            "tagged",
            V6,
            true,
            outside,
            ethernet(&[Step::PRIORITY], IPV6, &plain.with(&syn())),
        ),
        row(
            "snap",
            V6,
            true,
            silent,
            ethernet(&[Step::SNAP], IPV6, &plain.with(&syn())),
        ),
        row(
            "multicast",
            V6,
            true,
            silent,
            frame_v6(&Ipv6::to(multicast), &syn()),
        ),
        row(
            "options",
            V6,
            true,
            silent,
            through(&[Extension::HOP_BY_HOP]),
        ),
        row(
            "long chain",
            V6,
            true,
            silent,
            through(&[Extension::DESTINATION; 8]),
        ),
        row(
            "chain too long",
            V6,
            false,
            Kind::Malformed(Malformed::Extensions),
            through(&[Extension::DESTINATION; 9]),
        ),
        row(
            "huge header",
            V6,
            false,
            Kind::Malformed(Malformed::Extensions),
            through(&[Extension::Options {
                kind: 60,
                length: 100,
            }]),
        ),
        row(
            "routed",
            V6,
            true,
            Kind::SourceRouted,
            through(&[Extension::Routing { left: 1 }]),
        ),
        row(
            "route at its end",
            V6,
            true,
            silent,
            through(&[Extension::Routing { left: 0 }]),
        ),
        row(
            "atomic fragment",
            V6,
            true,
            silent,
            through(&[Extension::ATOMIC]),
        ),
        row(
            "authenticated",
            V6,
            true,
            silent,
            through(&[Extension::Authentication { length: 4 }]),
        ),
        row("first fragment", V6, true, silent, through(&[first])),
        row(
            "short fragment",
            V6,
            false,
            Kind::Malformed(Malformed::ShortFragment),
            frame_v6(&short, &syn()),
        ),
        row(
            "fragment at 1",
            V6,
            false,
            Kind::Malformed(Malformed::OverlappingFragment),
            frame_v6(&overlap, &syn()),
        ),
        row(
            "fragment at 2",
            V6,
            false,
            Kind::Other,
            through(&[Extension::Fragment {
                offset: 2,
                more: true,
            }]),
        ),
        row(
            "wrong version",
            V6,
            false,
            Kind::Malformed(Malformed::Header),
            frame_v6(
                &Ipv6 {
                    version: 4,
                    ..plain.clone()
                },
                &syn(),
            ),
        ),
        row(
            "cut",
            V6,
            false,
            Kind::Malformed(Malformed::Truncated),
            frame_v6(&plain, &syn())[..73].to_vec(),
        ),
    ]
}

/// A policy, and the host it is on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) host: HostMode,
    pub(super) mode: Mode,
    pub(super) blocked: Blocked,
    pub(super) quarantine: Quarantine,
    pub(super) owned: bool,
    pub(super) readable: bool,
}

impl Setting {
    fn refusal(self) -> Verdict {
        match self.blocked {
            Blocked::Reject => Verdict::Reject,
            Blocked::Drop => Verdict::Drop,
            // Without a target.
            Blocked::Redirect | Blocked::Notice => Verdict::Reject,
        }
    }

    fn refused(self, verdict: Verdict) -> Verdict {
        match (self.host, self.mode) {
            (HostMode::Policy, Mode::Enforce) => verdict,
            (HostMode::Observe, _) | (HostMode::Policy, Mode::Observe) => Verdict::Observe,
        }
    }

    /// By the order in the design: tables, quarantine, form, allowlists, exemptions, profile.
    pub(super) fn outcome(self, kind: Kind) -> Option<(Verdict, Reason, Option<Malformed>)> {
        if matches!(kind, Kind::Other | Kind::Tunnel(_)) {
            return None;
        }
        if !self.readable {
            let verdict = match self.host {
                HostMode::Policy => Verdict::Drop,
                HostMode::Observe => Verdict::Observe,
            };
            return Some((verdict, Reason::Malformed, Some(Malformed::Lookup)));
        }
        let profile = if self.owned {
            Reason::Profile
        } else {
            Reason::Unassigned
        };
        let quarantine = matches!(self.quarantine, Quarantine::Yes);
        Some(match kind {
            Kind::Malformed(kind) => (self.refused(Verdict::Drop), Reason::Malformed, Some(kind)),
            _ if quarantine => (self.refused(self.refusal()), Reason::Quarantine, None),
            Kind::SourceRouted => (
                self.refused(self.refusal()),
                Reason::Malformed,
                Some(Malformed::SourceRoute),
            ),
            Kind::Relay => (Verdict::Allow, Reason::Allowlist, None),
            Kind::Exempt if self.owned => (Verdict::Allow, Reason::Exemption, None),
            Kind::Exempt | Kind::Outside | Kind::Unanswerable => {
                (self.refused(self.refusal()), profile, None)
            }
            Kind::Other | Kind::Tunnel(_) => return None,
        })
    }
}

pub(super) fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    for host in [HostMode::Policy, HostMode::Observe] {
        for mode in [Mode::Enforce, Mode::Observe] {
            for blocked in [Blocked::Reject, Blocked::Drop, Blocked::Redirect] {
                for quarantine in [Quarantine::No, Quarantine::Yes] {
                    for (owned, readable) in [(true, true), (false, true), (true, false)] {
                        settings.push(Setting {
                            host,
                            mode,
                            blocked,
                            quarantine,
                            owned,
                            readable,
                        });
                    }
                }
            }
        }
    }
    settings
}

fn check(kernel: &Kernel, tables: &MemoryTables, setting: Setting, interface: u32, row: &Row) {
    let Row {
        name,
        frame,
        family,
        attempt,
        kind,
    } = row;
    let context = format!("{name} ({family:?}) under {setting:?} on {interface}");
    let outcome = setting.outcome(*kind);
    assert_eq!(
        pure(tables, setting.host, frame),
        outcome,
        "the pure function: {context}"
    );
    let before = kernel.host_counters();
    let action = kernel.run(
        frame,
        Meta {
            interface,
            ..Meta::default()
        },
    );
    let after = kernel.host_counters();
    let answers = matches!(kind, Kind::Outside | Kind::Relay | Kind::Exempt);
    match outcome.map(|(verdict, ..)| verdict) {
        None | Some(Verdict::Allow | Verdict::Observe) => {
            assert_eq!(action, Action::Passed, "{context}");
        }
        Some(Verdict::Reject) if answers => {
            assert!(
                matches!(action, Action::Answered(_)),
                "{action:?}: {context}"
            );
        }
        Some(
            Verdict::Reject
            | Verdict::Drop
            | Verdict::Redirect
            | Verdict::Notice
            | Verdict::Throttle,
        ) => assert_eq!(action, Action::Dropped, "{context}"),
    }
    assert_eq!(
        moved(&before, &after),
        expected_moves(outcome, *family, *attempt, *kind, frame.len() as u64),
        "counters: {context}"
    );
}

fn pure(
    tables: &MemoryTables,
    host: HostMode,
    frame: &[u8],
) -> Option<(Verdict, Reason, Option<Malformed>)> {
    let subject = match parse(&MemoryFrame::new(frame)) {
        Ok(Parsed::Other | Parsed::Tunnel(_)) | Err(ParseError::ShortLink) => return None,
        Ok(Parsed::Guarded(segment)) => segment.subject(),
        Err(ParseError::ShortNetwork(_)) => Subject::Malformed(Malformed::Truncated),
        Err(ParseError::Malformed(kind, _)) => Subject::Malformed(kind),
    };
    let decision = decide(tables, host, &subject);
    Some((decision.verdict, decision.reason, decision.malformed))
}

/// Which counters moved, and by how much.
pub(super) fn moved(before: &HostCounters, after: &HostCounters) -> Vec<(String, u64)> {
    let mut moved = Vec::new();
    let mut note = |name: String, before: u64, after: u64| {
        if before != after {
            moved.push((name, after - before));
        }
    };
    for verdict in Verdict::ALL {
        for family in Family::ALL {
            let read = |counters: &HostCounters| counters.packets(verdict, family);
            note(
                format!("packets {verdict:?} {family:?}"),
                read(before),
                read(after),
            );
            let read = |counters: &HostCounters| counters.bytes(verdict, family);
            note(
                format!("bytes {verdict:?} {family:?}"),
                read(before),
                read(after),
            );
            for reason in Reason::ALL {
                let read = |counters: &HostCounters| counters.connections(verdict, reason, family);
                let name = format!("connections {verdict:?} {reason:?} {family:?}");
                note(name, read(before), read(after));
            }
        }
    }
    for kind in Malformed::ALL {
        note(
            format!("malformed {kind:?}"),
            before.malformed(kind),
            after.malformed(kind),
        );
    }
    for tunnel in Tunnel::ALL {
        note(
            format!("tunnels {tunnel:?}"),
            before.tunnels(tunnel),
            after.tunnels(tunnel),
        );
    }
    note(
        "events lost".to_owned(),
        before.events_lost(),
        after.events_lost(),
    );
    note(
        "untracked".to_owned(),
        before.untracked(),
        after.untracked(),
    );
    moved.sort();
    moved
}

pub(super) fn expected_moves(
    outcome: Option<(Verdict, Reason, Option<Malformed>)>,
    family: Family,
    attempt: bool,
    kind: Kind,
    length: u64,
) -> Vec<(String, u64)> {
    let mut moves = Vec::new();
    if let Kind::Tunnel(tunnel) = kind {
        moves.push((format!("tunnels {tunnel:?}"), 1));
    }
    if let Some((verdict, reason, malformed)) = outcome {
        moves.push((format!("packets {verdict:?} {family:?}"), 1));
        moves.push((format!("bytes {verdict:?} {family:?}"), length));
        if attempt {
            moves.push((format!("connections {verdict:?} {reason:?} {family:?}"), 1));
        }
        if let Some(kind) = malformed {
            moves.push((format!("malformed {kind:?}"), 1));
        }
    }
    moves.sort();
    moves
}

#[test]
fn packets_by_policies_and_interfaces_are_decided_as_designed() {
    in_namespace(|namespace| {
        namespace
            .ip("link add left index 77 type veth peer name right index 78\nlink set left up")
            .expect("a second interface");
        let rows: Vec<_> = v4_rows().into_iter().chain(v6_rows()).collect();
        let mut enforcing = Kernel::load(HostMode::Policy);
        let mut observing = Kernel::load(HostMode::Observe);
        for setting in settings() {
            let kernel = match setting.host {
                HostMode::Policy => &mut enforcing,
                HostMode::Observe => &mut observing,
            };
            let Setting {
                mode,
                blocked,
                quarantine,
                owned,
                readable,
                ..
            } = setting;
            let mut tables = tables(mode, blocked, quarantine);
            if !owned {
                tables = tables.owned_by(None);
            }
            for interface in [LOOPBACK, 77] {
                kernel.fill(interface, &tables);
                if !readable {
                    kernel.forget(CUSTOMER);
                    tables.policies.remove(&CUSTOMER);
                }
                for row in &rows {
                    check(kernel, &tables, setting, interface, row);
                }
                if !readable {
                    // The next round finds it again and takes it away again.
                    let policies = super::table::tables(mode, blocked, quarantine).policies;
                    tables.policies.extend(policies);
                }
            }
        }
    });
}
