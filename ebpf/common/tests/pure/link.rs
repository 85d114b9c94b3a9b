//! Ethernet, tags, LLC/SNAP.

use gate25_common::address::{Address, Family};
use gate25_common::packet::{Form, Malformed, ParseError, Parsed, link, parse, plain_link};
use gate25_common::testing::frames::{
    Extension, GATEWAY_MAC, GUEST_MAC, IPV4, IPV6, Ipv4, Ipv6, MemoryFrame, OLD_TAG, SERVER_V4,
    SERVER_V6, SERVICE_TAG, Step, TAG, Tcp, ethernet,
};

use super::{guarded, malformed, other};

const ARP: u16 = 0x0806;
const PPPOE_SESSION: u16 = 0x8864;
const MPLS: u16 = 0x8847;

fn v4() -> Vec<u8> {
    Ipv4::to(SERVER_V4).with(&Tcp::syn(25).bytes())
}

fn v6() -> Vec<u8> {
    Ipv6::to(SERVER_V6).with(&Tcp::syn(25).bytes())
}

#[track_caller]
fn found(steps: &[Step], network: usize, form: Form) {
    let segment = guarded(&ethernet(steps, IPV4, &v4()));
    assert_eq!(segment.network, network);
    assert_eq!(segment.transport, network + 20);
    assert_eq!(segment.form, form);
    assert_eq!(segment.destination, Address::from_v4(SERVER_V4));
    let segment = guarded(&ethernet(steps, IPV6, &v6()));
    assert_eq!(segment.network, network);
    assert_eq!(segment.transport, network + 40);
    assert_eq!(segment.form, form);
    assert_eq!(segment.destination, Address::from_v6(SERVER_V6));
}

#[track_caller]
fn too_deep(steps: &[Step]) {
    malformed(
        &ethernet(steps, IPV4, &v4()),
        Malformed::VlanDepth,
        Family::V4,
    );
    malformed(
        &ethernet(steps, IPV6, &v6()),
        Malformed::VlanDepth,
        Family::V6,
    );
}

#[test]
fn plain_link_says_what_link_says_or_nothing() {
    let tag = Step::Tag(TAG, 5);
    let stacks: [&[Step]; 5] = [&[], &[tag], &[tag, tag], &[Step::SNAP], &[tag, Step::SNAP]];
    let mut told = 0;
    for (steps, ethertype) in stacks
        .into_iter()
        .flat_map(|steps| [IPV4, IPV6, ARP, PPPOE_SESSION].map(|ethertype| (steps, ethertype)))
    {
        let bytes = ethernet(steps, ethertype, &v4());
        for (length, stripped) in (0..=bytes.len()).flat_map(|it| [(it, 0), (it, 1), (it, 3)]) {
            let frame = MemoryFrame::new(&bytes[..length]).stripped(stripped);
            if let Some(plain) = plain_link(&frame) {
                assert_eq!(link(&frame), Ok(plain), "{steps:?} {ethertype:#x} {length}");
                told += 1;
            }
        }
    }
    assert!(told > 0, "nothing was told");
}

#[test]
fn no_tag_is_judged() {
    found(&[], 14, Form::Plain);
}

#[test]
fn one_tag_is_looked_through() {
    for tag in [TAG, SERVICE_TAG, OLD_TAG] {
        found(&[Step::Tag(tag, 0x2064)], 18, Form::Plain);
    }
    found(&[Step::PRIORITY], 18, Form::Plain);
}

#[test]
fn two_tags_are_looked_through_whatever_their_ethertypes() {
    for outer in [TAG, SERVICE_TAG, OLD_TAG] {
        for inner in [TAG, SERVICE_TAG, OLD_TAG] {
            found(&[Step::Tag(outer, 7), Step::Tag(inner, 0)], 22, Form::Plain);
        }
    }
}

#[test]
fn three_tags_over_ip_are_closed() {
    too_deep(&[Step::PRIORITY; 3]);
    too_deep(&[
        Step::Tag(SERVICE_TAG, 1),
        Step::PRIORITY,
        Step::Tag(OLD_TAG, 2),
    ]);
}

#[test]
fn three_tags_over_something_else_pass() {
    other(&ethernet(&[Step::PRIORITY; 3], ARP, &[0; 46]));
}

#[test]
fn more_steps_than_are_walked_are_closed() {
    for steps in 4..8 {
        malformed(
            &ethernet(&vec![Step::PRIORITY; steps], IPV4, &v4()),
            Malformed::VlanDepth,
            Family::V4,
        );
        malformed(
            &ethernet(&vec![Step::SNAP; steps], IPV4, &v4()),
            Malformed::VlanDepth,
            Family::V4,
        );
    }
}

#[test]
fn stripped_tags_count_towards_the_limit() {
    for (stripped, tags, judged) in [
        (1, 0, true),
        (1, 1, true),
        (1, 2, false),
        (2, 0, true),
        (2, 1, false),
        (0, 2, true),
    ] {
        let frame = MemoryFrame::new(&ethernet(&vec![Step::PRIORITY; tags], IPV4, &v4()))
            .stripped(stripped);
        match parse(&frame) {
            Ok(Parsed::Guarded(_)) => assert!(judged, "{stripped} stripped, {tags} in the frame"),
            Err(ParseError::Malformed(Malformed::VlanDepth, Family::V4)) => {
                assert!(!judged, "{stripped} stripped, {tags} in the frame");
            }
            other => panic!("parsed {other:?}"),
        }
    }
}

#[test]
fn snap_is_looked_through() {
    found(&[Step::SNAP], 22, Form::Unusual);
}

#[test]
fn snap_after_tags_is_looked_through() {
    found(&[Step::PRIORITY, Step::SNAP], 26, Form::Unusual);
    found(
        &[Step::Tag(SERVICE_TAG, 5), Step::PRIORITY, Step::SNAP],
        30,
        Form::Unusual,
    );
}

#[test]
fn tags_inside_snap_are_looked_through() {
    found(&[Step::SNAP, Step::PRIORITY], 26, Form::Unusual);
    found(
        &[Step::PRIORITY, Step::SNAP, Step::PRIORITY],
        30,
        Form::Unusual,
    );
    found(&[Step::SNAP, Step::SNAP], 30, Form::Unusual);
}

/// The P/F bit of an unnumbered frame and the I/G and C/R bits of the service access points do
/// not change what is inside (IEEE 802.2).
#[test]
fn snap_with_other_bits_of_llc_is_looked_through() {
    for llc in [
        [0xaa, 0xaa, 0x13],
        [0xab, 0xaa, 0x03],
        [0xaa, 0xab, 0x03],
        [0xaa, 0xaa, 0xbf],
    ] {
        found(&[Step::Snap(llc)], 22, Form::Unusual);
    }
}

#[test]
fn llc_that_is_not_snap_passes() {
    // Spanning tree.
    other(&ethernet(&[Step::Snap([0x42, 0x42, 0x03])], IPV4, &v4()));
    // NetBIOS, in a numbered frame.
    other(&ethernet(&[Step::Snap([0xf0, 0xf0, 0x00])], IPV4, &v4()));
}

#[test]
fn other_ethertypes_pass() {
    for ethertype in [ARP, PPPOE_SESSION, MPLS, 0x88cc, 0x0600, 0xffff] {
        other(&ethernet(&[], ethertype, &v4()));
        other(&ethernet(&[Step::PRIORITY], ethertype, &v4()));
    }
}

/// Nothing below 1536 is an ethertype (IEEE 802.3, 3.2.6).
#[test]
fn length_field_of_any_value_is_a_length() {
    for length in [0u16, 1, 46, 1500, 1501, 1535] {
        let mut frame = ethernet(&[Step::SNAP], IPV4, &v4());
        frame[12..14].copy_from_slice(&length.to_be_bytes());
        assert_eq!(guarded(&frame).network, 22);
    }
}

#[test]
fn frame_too_short_for_a_protocol_is_short() {
    let whole = ethernet(&[Step::PRIORITY, Step::SNAP], IPV4, &v4());
    for length in 0..26 {
        assert_eq!(
            parse(&MemoryFrame::new(&whole[..length])),
            Err(ParseError::ShortLink),
            "{length} bytes"
        );
    }
}

/// Bytes that exist but could not be loaded may hold anything: unlike bytes that do not exist,
/// they must not be mistaken for the end of the frame.
#[test]
fn link_header_that_exists_and_cannot_be_read_is_not_the_end_of_the_frame() {
    let whole = ethernet(&[Step::PRIORITY, Step::SNAP], IPV4, &v4());
    for linear in 0..26 {
        assert_eq!(
            parse(&MemoryFrame::new(&whole).linear(linear)),
            Err(ParseError::ShortNetwork(Family::V4)),
            "{linear} bytes readable"
        );
    }
}

#[test]
fn ethertype_that_contradicts_the_version_is_closed() {
    malformed(&ethernet(&[], IPV6, &v4()), Malformed::Header, Family::V6);
    malformed(&ethernet(&[], IPV4, &v6()), Malformed::Header, Family::V4);
}

#[test]
fn addresses_of_the_frame_do_not_matter() {
    for mac in [
        [0xff; 6],
        [0x01, 0, 0x5e, 0, 0, 1],
        GUEST_MAC,
        GATEWAY_MAC,
        [0; 6],
    ] {
        let mut frame = ethernet(&[], IPV4, &v4());
        frame[..6].copy_from_slice(&mac);
        assert_eq!(guarded(&frame).form, Form::Plain);
    }
}

#[test]
fn deepest_link_header_with_extensions_is_still_judged() {
    let ip = Ipv6::through(SERVER_V6, &[Extension::DESTINATION; 8]);
    let steps = [Step::PRIORITY, Step::PRIORITY, Step::SNAP];
    let segment = guarded(&ethernet(&steps, IPV6, &ip.with(&Tcp::syn(25).bytes())));
    assert_eq!(segment.transport, 14 + 4 + 4 + 8 + 40 + 8 * 8);
}
