//! Packets that come back to a guest, through the real program: what must happen to each, written
//! down by hand.

use gate25::dataplane::Returns;
use gate25_common::abi::{Blocked, CustomerId, Mode, Quarantine};
use gate25_common::address::{Address, Family};
use gate25_common::decide::HostMode;
use gate25_common::redirect::Target;
use gate25_common::returns::{Fate, ReturnCounters};
use gate25_common::testing::frames::{
    ACK, Extension, FIN, IPV4, IPV6, Ipv4, Ipv6, PSH, RST, SERVER_V4, SERVER_V6, SERVICE_TAG, SYN,
    Step, TAG, Tcp, ethernet, frame_v4, frame_v6,
};
use gate25_common::testing::tables::MemoryTables;

use super::kernel::{Kernel, LOOPBACK, Meta, in_namespace};
use super::table::{CUSTOMER, EXEMPT_V4, RELAY_V4, RELAY_V6, tables};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`.
const PASSED: i32 = -1;
const DROPPED: i32 = 2;
const SMTP: u16 = 25;

/// What a packet is, whatever the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Not judged, and not counted.
    Other,
    /// An answer of the relay's.
    Relay,
    /// An answer from where an exemption reaches.
    Exempt,
    /// An answer from anywhere else.
    Outside,
}

struct Row {
    name: &'static str,
    family: Family,
    kind: Kind,
    frame: Vec<u8>,
}

fn rows() -> Vec<Row> {
    use Family::{V4, V6};
    use Kind::{Exempt, Other, Outside, Relay};
    let row = |name, family, kind, frame| Row {
        name,
        family,
        kind,
        frame,
    };
    let segment = |flags| Tcp::back(SMTP, flags).bytes();
    let answer = segment(SYN | ACK);
    let mut rows = Vec::new();
    for (name, kind, flags) in [
        ("syn ack", Outside, SYN | ACK),
        ("acknowledgement", Outside, ACK),
        ("data", Outside, ACK | PSH),
        ("end", Outside, ACK | FIN),
        ("reset", Other, RST),
        ("reset with acknowledgement", Other, RST | ACK),
        ("somebody's first", Other, SYN),
        ("nothing", Other, 0),
    ] {
        let bytes = segment(flags);
        rows.push(row(
            name,
            V4,
            kind,
            frame_v4(&Ipv4::back(SERVER_V4), &bytes),
        ));
        rows.push(row(
            name,
            V6,
            kind,
            frame_v6(&Ipv6::back(SERVER_V6), &bytes),
        ));
    }
    for (name, steps) in [
        ("tag", &[Step::PRIORITY][..]),
        ("tags", &[Step::Tag(SERVICE_TAG, 5), Step::Tag(TAG, 6)]),
        ("snap", &[Step::SNAP]),
    ] {
        let v4 = ethernet(steps, IPV4, &Ipv4::back(SERVER_V4).with(&answer));
        let v6 = ethernet(steps, IPV6, &Ipv6::back(SERVER_V6).with(&answer));
        rows.push(row(name, V4, Outside, v4));
        rows.push(row(name, V6, Outside, v6));
    }
    let v4 = |ip: Ipv4| frame_v4(&ip, &answer);
    let plain = Ipv4::back(SERVER_V4);
    let fragment = |fragment| Ipv4 {
        fragment,
        ..plain.clone()
    };
    let options = vec![7, 7, 4, 192, 0, 2, 1, 0];
    let headers = |extensions: &[Extension]| {
        let ip = Ipv6 {
            extensions: extensions.to_vec(),
            ..Ipv6::back(SERVER_V6)
        };
        frame_v6(&ip, &answer)
    };
    let long = Extension::Options {
        kind: 60,
        length: 30,
    };
    let from = |port| Tcp::back(port, SYN | ACK).bytes();
    let to_server = Tcp {
        destination: SMTP,
        ..Tcp::back(40_000, SYN)
    };
    rows.extend([
        row("relay", V4, Relay, v4(Ipv4::back(RELAY_V4))),
        row("relay", V6, Relay, frame_v6(&Ipv6::back(RELAY_V6), &answer)),
        row("exempt", V4, Exempt, v4(Ipv4::back(EXEMPT_V4))),
        row(
            "exempt, translated",
            V6,
            Exempt,
            frame_v6(&Ipv6::back(translated(EXEMPT_V4)), &answer),
        ),
        row(
            "outside, translated",
            V6,
            Outside,
            frame_v6(&Ipv6::back(translated(SERVER_V4)), &answer),
        ),
        row(
            "route recorded",
            V4,
            Outside,
            v4(Ipv4 {
                options,
                ..plain.clone()
            }),
        ),
        row("first fragment", V4, Outside, v4(fragment(Ipv4::MORE))),
        row("last fragment", V4, Other, v4(fragment(185))),
        row("cut short", V4, Other, frame_v4(&plain, &answer[..12])),
        row(
            "atomic fragment",
            V6,
            Outside,
            headers(&[Extension::ATOMIC]),
        ),
        row(
            "headers",
            V6,
            Outside,
            headers(&[Extension::HOP_BY_HOP, long]),
        ),
        row("https", V4, Other, frame_v4(&plain, &from(443))),
        row("submission", V4, Other, frame_v4(&plain, &from(587))),
        row(
            "to a guest's server",
            V4,
            Other,
            frame_v4(&plain, &to_server.bytes()),
        ),
        row(
            "udp",
            V4,
            Other,
            v4(Ipv4 {
                protocol: 17,
                ..plain.clone()
            }),
        ),
        row("arp", V4, Other, ethernet(&[], 0x0806, &[0; 46])),
    ]);
    rows
}

/// An IPv4 address behind NAT64 (RFC 6052).
fn translated(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

/// Whose guest it is, and what is asked for.
struct Case {
    host: HostMode,
    tables: MemoryTables,
    /// What becomes of the relay's answers, of those from where an exemption reaches, of others.
    fates: [Fate; 3],
}

fn cases() -> Vec<Case> {
    use Fate::{Allow, Drop, Observe};
    use HostMode::Policy;
    let case = |host, mode, blocked, quarantine, fates| Case {
        host,
        tables: tables(mode, blocked, quarantine),
        fates,
    };
    let open = [Allow, Allow, Drop];
    let watched = [Allow, Allow, Observe];
    let mut cases = vec![
        case(Policy, Mode::Enforce, Blocked::Reject, Quarantine::No, open),
        case(Policy, Mode::Enforce, Blocked::Drop, Quarantine::No, open),
        // Without a target it is refused.
        case(
            Policy,
            Mode::Enforce,
            Blocked::Redirect,
            Quarantine::No,
            open,
        ),
        case(
            Policy,
            Mode::Observe,
            Blocked::Reject,
            Quarantine::No,
            watched,
        ),
        case(
            HostMode::Observe,
            Mode::Enforce,
            Blocked::Reject,
            Quarantine::No,
            watched,
        ),
        case(
            Policy,
            Mode::Enforce,
            Blocked::Reject,
            Quarantine::Yes,
            [Drop; 3],
        ),
        case(
            Policy,
            Mode::Observe,
            Blocked::Drop,
            Quarantine::Yes,
            [Observe; 3],
        ),
    ];
    let nobodys = tables(Mode::Enforce, Blocked::Reject, Quarantine::No).owned_by(None);
    cases.push(Case {
        host: Policy,
        tables: nobodys,
        fates: [Allow, Drop, Drop],
    });
    cases
}

#[test]
fn packets_that_come_back_are_judged_and_counted_as_the_policy_says() {
    in_namespace(|_| {
        for case in cases() {
            let mut kernel = Kernel::load_with(case.host, Returns::Judged);
            kernel.fill(LOOPBACK, &case.tables);
            let owner = case.tables.owner.unwrap_or(CustomerId::UNASSIGNED);
            for row in rows() {
                check(&kernel, owner, &row, case.fates);
            }
        }
    });
}

#[track_caller]
fn check(kernel: &Kernel, owner: CustomerId, row: &Row, fates: [Fate; 3]) {
    let fate = match row.kind {
        Kind::Other => None,
        Kind::Relay => Some(fates[0]),
        Kind::Exempt => Some(fates[1]),
        Kind::Outside => Some(fates[2]),
    };
    let expected = match fate {
        None | Some(Fate::Allow | Fate::Observe) => PASSED,
        Some(Fate::Drop) => DROPPED,
    };
    let before = (kernel.returns(), kernel.customer_returns(owner));
    let others = kernel.host_counters();
    let (action, bytes) = kernel.reply(&row.frame, Meta::default());
    assert_eq!(
        action, expected,
        "{}, {:?}: {fates:?}",
        row.name, row.family
    );
    assert_eq!(bytes, row.frame, "{}", row.name);
    let wanted = |before| counted(before, fate, row.family, 1);
    let after = (kernel.returns(), kernel.customer_returns(owner));
    assert_eq!(after, (wanted(before.0), wanted(before.1)), "{}", row.name);
    assert_eq!(kernel.host_counters(), others, "{}", row.name);
}

fn counted(
    mut counters: ReturnCounters,
    fate: Option<Fate>,
    family: Family,
    packets: u64,
) -> ReturnCounters {
    if let Some(fate) = fate {
        counters.count::<gate25_common::counters::Uninterrupted>(fate, family, packets);
    }
    counters
}

#[test]
fn nothing_is_judged_or_counted_where_nobody_asks_for_it() {
    in_namespace(|_| {
        let mut kernel = Kernel::load(HostMode::Policy);
        kernel.fill(
            LOOPBACK,
            &tables(Mode::Enforce, Blocked::Reject, Quarantine::Yes),
        );
        for row in rows() {
            let (action, bytes) = kernel.reply(&row.frame, Meta::default());
            assert_eq!((action, &bytes), (PASSED, &row.frame), "{}", row.name);
        }
        assert_eq!(kernel.returns(), ReturnCounters::ZERO);
        assert_eq!(kernel.customer_returns(CUSTOMER), ReturnCounters::ZERO);
    });
}

#[test]
fn large_buffer_counts_by_its_segments() {
    in_namespace(|_| {
        let mut kernel = Kernel::load_with(HostMode::Policy, Returns::Judged);
        kernel.fill(
            LOOPBACK,
            &tables(Mode::Enforce, Blocked::Reject, Quarantine::No),
        );
        let data = Tcp {
            payload: vec![7; 3000],
            ..Tcp::back(SMTP, ACK)
        };
        let meta = Meta {
            gso_size: 1400,
            ..Meta::default()
        };
        let frame = frame_v4(&Ipv4::back(SERVER_V4), &data.bytes());
        assert_eq!(kernel.reply(&frame, meta).0, DROPPED);
        let wanted = counted(ReturnCounters::ZERO, Some(Fate::Drop), Family::V4, 3);
        assert_eq!(kernel.returns(), wanted);
    });
}

#[test]
fn customer_without_a_policy_hears_nothing() {
    in_namespace(|_| {
        let mut kernel = Kernel::load_with(HostMode::Policy, Returns::Judged);
        kernel.fill(
            LOOPBACK,
            &tables(Mode::Enforce, Blocked::Reject, Quarantine::No),
        );
        kernel.forget(CUSTOMER);
        let answer = Tcp::back(SMTP, ACK).bytes();
        let frame = frame_v4(&Ipv4::back(RELAY_V4), &answer);
        assert_eq!(kernel.reply(&frame, Meta::default()).0, DROPPED);
    });
}

const TARGET_V4: [u8; 4] = [192, 0, 2, 199];

#[test]
fn answers_of_the_place_that_connections_are_led_to_arrive_whatever_is_blocked() {
    in_namespace(|_| {
        for blocked in [Blocked::Redirect, Blocked::Notice] {
            for port in [SMTP, 2525] {
                led_elsewhere(blocked, port);
            }
        }
    });
}

#[track_caller]
fn led_elsewhere(blocked: Blocked, port: u16) {
    let mut tables = tables(Mode::Enforce, blocked, Quarantine::No);
    let target = Target::new(Address::from_v4(TARGET_V4), port.to_be_bytes()).expect("a port");
    let policy = tables.policies[&CUSTOMER].with_targets(target, Target::NONE);
    tables.policies.insert(CUSTOMER, policy);
    let mut kernel = Kernel::load_with(HostMode::Policy, Returns::Judged);
    kernel.fill(LOOPBACK, &tables);
    // Nobody is led to a notice that is not told.
    kernel.listen(&[(TARGET_V4, port).into()]);
    let syn = frame_v4(&Ipv4::to(SERVER_V4), &Tcp::syn(SMTP).bytes());
    assert_eq!(kernel.raw(&syn, Meta::default()).0, PASSED, "led there");
    let from = |source, port, flags| {
        let frame = frame_v4(&Ipv4::back(source), &Tcp::back(port, flags).bytes());
        kernel.reply(&frame, Meta::default())
    };
    for flags in [SYN | ACK, ACK | PSH, RST | ACK] {
        let (action, bytes) = from(TARGET_V4, port, flags);
        assert_eq!(action, PASSED, "{blocked:?} {port} {flags:#x}");
        // In the name of the place that was meant.
        assert_eq!(bytes[26..30], SERVER_V4, "{blocked:?} {port}");
        assert_eq!(bytes[34..36], SMTP.to_be_bytes(), "{blocked:?} {port}");
    }
    // These were judged on their way out.
    assert_eq!(kernel.returns(), ReturnCounters::ZERO);
    // That place itself did not answer.
    let (action, _) = from(SERVER_V4, SMTP, SYN | ACK);
    assert_eq!(action, DROPPED, "{blocked:?} {port}");
    let mut wanted = counted(ReturnCounters::ZERO, Some(Fate::Drop), Family::V4, 1);
    assert_eq!(kernel.returns(), wanted);
    // What the target says beside that connection, its customers may hear.
    let other = Tcp {
        destination: 40_001,
        ..Tcp::back(port, ACK)
    };
    let frame = frame_v4(&Ipv4::back(TARGET_V4), &other.bytes());
    let (action, bytes) = kernel.reply(&frame, Meta::default());
    assert_eq!((action, bytes), (PASSED, frame), "{blocked:?} {port}");
    let is_guarded = port == SMTP;
    wanted = counted(wanted, is_guarded.then_some(Fate::Allow), Family::V4, 1);
    assert_eq!(kernel.returns(), wanted);
}
