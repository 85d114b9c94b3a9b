//! Packets towards a guest: which of them are judged, by what, and how they are counted.

use gate25_common::address::{Address, Family};
use gate25_common::counters::Uninterrupted;
use gate25_common::decide::{Route, Subject, Verdict};
use gate25_common::packet::{
    Form, Malformed, ParseError, Parsed, Reply, ToGuest, evidently_other, parse,
};
use gate25_common::returns::{Fate, ReturnCounters};
use gate25_common::testing::frames::{
    ACK, Extension, FIN, GUEST_V4, GUEST_V6, IPV4, IPV6, Ipv4, Ipv6, MemoryFrame, PSH, RST,
    SERVER_V4, SERVER_V6, SYN, Step, Tcp, ethernet, frame_v4, frame_v6,
};
use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

use super::differential::mutated;

const GUEST_PORT: u16 = 40_000;

/// From port 25, where a relay or the exchanger is, and from 2525, where the notice is told.
fn seen(bytes: &[u8]) -> ToGuest<MemoryFrame, impl Fn([u8; 2]) -> bool> {
    judged(MemoryFrame::new(bytes))
}

fn judged(frame: MemoryFrame) -> ToGuest<MemoryFrame, impl Fn([u8; 2]) -> bool> {
    ToGuest::new(frame, |port| [25, 2525].contains(&u16::from_be_bytes(port)))
}

fn ipv4() -> Ipv4 {
    Ipv4::back(SERVER_V4)
}

fn ipv6() -> Ipv6 {
    Ipv6::back(SERVER_V6)
}

#[track_caller]
fn read(bytes: &[u8]) -> Reply {
    match parse(&seen(bytes)) {
        Ok(Parsed::Guarded(segment)) => {
            Reply::read(segment.outline(), &seen(bytes)).expect("it was there before")
        }
        other => panic!("expected a packet of interest, parsed {other:?}"),
    }
}

#[track_caller]
fn check(bytes: &[u8], family: Family, form: Form) {
    let reply = read(bytes);
    let (server, guest) = match family {
        Family::V4 => (Address::from_v4(SERVER_V4), Address::from_v4(GUEST_V4)),
        Family::V6 => (Address::from_v6(SERVER_V6), Address::from_v6(GUEST_V6)),
    };
    assert_eq!(reply.source.address(), server);
    assert_eq!(reply.source.port(), 25u16.to_be_bytes());
    assert_eq!(reply.destination.address(), guest);
    assert_eq!(reply.destination.port(), GUEST_PORT.to_be_bytes());
    let subject = Subject::Guarded {
        destination: server,
        port: 25u16.to_be_bytes(),
        route: Route::Direct,
        family,
        form,
    };
    assert_eq!(reply.subject(), subject);
    assert!(reply.answers());
}

#[test]
fn packet_from_a_guarded_port_is_judged_by_where_it_comes_from() {
    let answer = Tcp::back(25, SYN | ACK).bytes();
    check(&frame_v4(&ipv4(), &answer), Family::V4, Form::Plain);
    check(&frame_v6(&ipv6(), &answer), Family::V6, Form::Plain);
}

#[test]
fn packet_behind_tags_options_and_headers_is_judged_like_any_other() {
    let answer = Tcp::back(25, ACK).bytes();
    for steps in [&[Step::PRIORITY][..], &[Step::PRIORITY, Step::PRIORITY]] {
        let v4 = ethernet(steps, IPV4, &ipv4().with(&answer));
        check(&v4, Family::V4, Form::Plain);
        let v6 = ethernet(steps, IPV6, &ipv6().with(&answer));
        check(&v6, Family::V6, Form::Plain);
    }
    let snap = ethernet(&[Step::SNAP], IPV4, &ipv4().with(&answer));
    check(&snap, Family::V4, Form::Unusual);
    // A route recorded, and a source route: it has arrived.
    for kind in [7, 131, 137] {
        let options = vec![kind, 7, 4, 192, 0, 2, 1, 0];
        let ip = Ipv4 { options, ..ipv4() };
        check(&frame_v4(&ip, &answer), Family::V4, Form::Unusual);
    }
    for extension in [
        Extension::HOP_BY_HOP,
        Extension::DESTINATION,
        // What a packet-too-big below the minimum has old servers send (RFC 6946).
        Extension::ATOMIC,
        Extension::Routing { left: 1 },
    ] {
        let ip = Ipv6 {
            extensions: vec![extension],
            ..ipv6()
        };
        check(&frame_v6(&ip, &answer), Family::V6, Form::Unusual);
    }
}

#[test]
fn first_fragment_is_judged_and_later_ones_are_not_of_interest() {
    let answer = Tcp::back(25, ACK).bytes();
    let fragment = |fragment| Ipv4 { fragment, ..ipv4() };
    let first = frame_v4(&fragment(Ipv4::MORE), &answer);
    check(&first, Family::V4, Form::Unusual);
    for later in [2, 185, Ipv4::MORE | 185] {
        let frame = frame_v4(&fragment(later), &answer);
        assert_eq!(parse(&seen(&frame)), Ok(Parsed::Other), "{later}");
    }
    let v6 = |offset, more| Ipv6 {
        extensions: vec![Extension::Fragment { offset, more }],
        ..ipv6()
    };
    check(&frame_v6(&v6(0, true), &answer), Family::V6, Form::Unusual);
    let frame = frame_v6(&v6(185, false), &answer);
    assert_eq!(parse(&seen(&frame)), Ok(Parsed::Other));
}

#[test]
fn packet_that_no_receiver_takes_is_told_from_one_that_is_judged() {
    let answer = Tcp::back(25, ACK).bytes();
    let short = frame_v4(&ipv4(), &answer[..12]);
    let truncated = Err(ParseError::Malformed(Malformed::Truncated, Family::V4));
    assert_eq!(parse(&seen(&short)), truncated);
}

#[test]
fn packet_to_a_guarded_port_from_any_other_is_not_of_interest() {
    // What reaches a mail server of the guest's own.
    for (from, flags) in [(GUEST_PORT, SYN), (587, ACK), (2524, ACK)] {
        let tcp = Tcp {
            source: from,
            ..Tcp::with_flags(25, flags)
        };
        for frame in [
            frame_v4(&ipv4(), &tcp.bytes()),
            frame_v6(&ipv6(), &tcp.bytes()),
        ] {
            assert!(evidently_other(&seen(&frame)), "{from}");
            assert_eq!(parse(&seen(&frame)), Ok(Parsed::Other), "{from}");
        }
    }
}

#[test]
fn answer_acknowledges_and_is_no_reset() {
    for (flags, answers) in [
        (SYN | ACK, true),
        (ACK, true),
        (ACK | PSH, true),
        (ACK | FIN, true),
        (0x40 | SYN | ACK, true),
        // A connection of somebody else's that begins, and what ends one.
        (SYN, false),
        (RST, false),
        (RST | ACK, false),
        // No receiver takes these.
        (0, false),
        (FIN, false),
        (PSH, false),
    ] {
        let bytes = Tcp::back(25, flags).bytes();
        assert_eq!(
            read(&frame_v4(&ipv4(), &bytes)).answers(),
            answers,
            "{flags:#x}"
        );
        assert_eq!(
            read(&frame_v6(&ipv6(), &bytes)).answers(),
            answers,
            "{flags:#x}"
        );
    }
}

#[test]
fn translated_address_is_judged_as_the_one_inside() {
    let [a, b, c, d] = SERVER_V4;
    let prefix = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut source = [0; 16];
    source[..12].copy_from_slice(&prefix);
    source[12..].copy_from_slice(&[a, b, c, d]);
    let frame = frame_v6(&Ipv6 { source, ..ipv6() }, &Tcp::back(25, ACK).bytes());
    let subject = read(&frame).subject();
    let Subject::Guarded { destination, .. } = subject else {
        panic!("{subject:?}");
    };
    assert_eq!(destination, Address::from_v4(SERVER_V4));
}

#[test]
fn fate_is_to_arrive_or_to_disappear() {
    for (verdict, fate) in [
        (Verdict::Allow, Fate::Allow),
        (Verdict::Observe, Fate::Observe),
        (Verdict::Reject, Fate::Drop),
        (Verdict::Drop, Fate::Drop),
        (Verdict::Redirect, Fate::Drop),
        (Verdict::Notice, Fate::Drop),
        (Verdict::Throttle, Fate::Drop),
    ] {
        assert_eq!(Fate::of(verdict), fate, "{verdict:?}");
    }
    let words = Fate::ALL.map(Fate::as_str);
    assert_eq!(words, ["allow", "observe", "drop"]);
}

#[test]
fn counters_tell_fates_and_families_apart_and_add_up() {
    let mut one = ReturnCounters::ZERO;
    let mut step = 1;
    for fate in Fate::ALL {
        for family in Family::ALL {
            one.count::<Uninterrupted>(fate, family, step);
            step *= 10;
        }
    }
    let mut both = one;
    both.add(&one);
    let counted = |counters: &ReturnCounters| {
        Fate::ALL.map(|fate| Family::ALL.map(|family| counters.packets(fate, family)))
    };
    assert_eq!(counted(&one), [[1, 10], [100, 1000], [10_000, 100_000]]);
    assert_eq!(counted(&both), [[2, 20], [200, 2000], [20_000, 200_000]]);
    assert_eq!(Fate::ALL.map(|fate| one.of(fate)), [11, 1100, 110_000]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn what_is_evidently_of_no_interest_is_of_none(
        frame in mutated(),
        stripped in 0u32..3,
        cut in any::<u8>(),
    ) {
        let linear = frame.len().saturating_sub(usize::from(cut) / 8);
        let frame = MemoryFrame::new(&frame).stripped(stripped);
        if evidently_other(&judged(frame.clone().linear(linear))) {
            prop_assert_eq!(parse(&judged(frame)), Ok(Parsed::Other));
        }
    }

    #[test]
    fn plain_tcp_is_of_interest_by_its_source_port_alone(
        from in any::<u16>(),
        to in any::<u16>(),
        flags in any::<u8>(),
    ) {
        let tcp = Tcp { source: from, ..Tcp::with_flags(to, flags) }.bytes();
        for frame in [frame_v4(&ipv4(), &tcp), frame_v6(&ipv6(), &tcp)] {
            prop_assert_eq!(evidently_other(&seen(&frame)), from != 25 && from != 2525);
        }
    }
}
