//! The shortcut says "not ours" only where the parser says so, and does say so for the ordinary.

use gate25_common::packet::{Parsed, evidently_other, parse};
use gate25_common::testing::frames::{
    ACK, IPV4, IPV6, Ipv4, Ipv6, MemoryFrame, SERVER_V4, SERVER_V6, Step, Tcp, ethernet, frame_v4,
    frame_v6,
};
use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

use super::differential::mutated;

#[test]
fn ordinary_traffic_is_evidently_other() {
    let mut ordinary = vec![
        frame_v4(
            &Ipv4 {
                protocol: 17,
                ..Ipv4::to(SERVER_V4)
            },
            &[0; 60],
        ),
        frame_v4(
            &Ipv4 {
                protocol: 1,
                ..Ipv4::to(SERVER_V4)
            },
            &[0; 60],
        ),
        frame_v6(
            &Ipv6 {
                protocol: 17,
                ..Ipv6::to(SERVER_V6)
            },
            &[0; 60],
        ),
        frame_v6(
            &Ipv6 {
                protocol: 58,
                ..Ipv6::to(SERVER_V6)
            },
            &[0; 60],
        ),
        ethernet(&[], 0x0806, &[0; 46]),
    ];
    for port in [80, 443, 587, 465, 22, 0x1900] {
        let tcp = Tcp {
            payload: vec![0; 100],
            ..Tcp::with_flags(port, ACK)
        }
        .bytes();
        ordinary.push(frame_v4(&Ipv4::to(SERVER_V4), &tcp));
        ordinary.push(frame_v6(&Ipv6::to(SERVER_V6), &tcp));
    }
    for frame in ordinary {
        assert!(evidently_other(&MemoryFrame::new(&frame)), "{frame:02x?}");
    }
}

#[test]
fn guarded_port_is_never_evidently_other() {
    for steps in [
        &[][..],
        &[Step::PRIORITY],
        &[Step::SNAP],
        &[Step::PRIORITY, Step::PRIORITY],
    ] {
        let tcp = Tcp::syn(25).bytes();
        let v4 = ethernet(steps, IPV4, &Ipv4::to(SERVER_V4).with(&tcp));
        let v6 = ethernet(steps, IPV6, &Ipv6::to(SERVER_V6).with(&tcp));
        assert!(!evidently_other(&MemoryFrame::new(&v4)));
        assert!(!evidently_other(&MemoryFrame::new(&v6)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn evidently_other_is_other(frame in mutated(), stripped in 0u32..3, cut in any::<u8>()) {
        let linear = frame.len().saturating_sub(usize::from(cut) / 8);
        let frame = MemoryFrame::new(&frame).stripped(stripped);
        if evidently_other(&frame.clone().linear(linear)) {
            prop_assert_eq!(parse(&frame), Ok(Parsed::Other));
        }
    }

    #[test]
    fn plain_tcp_is_evidently_other_unless_its_port_is_guarded(
        port in any::<u16>(),
        flags in any::<u8>(),
        payload in 0usize..200,
    ) {
        let tcp = Tcp { payload: vec![0; payload], ..Tcp::with_flags(port, flags) }.bytes();
        for frame in [frame_v4(&Ipv4::to(SERVER_V4), &tcp), frame_v6(&Ipv6::to(SERVER_V6), &tcp)] {
            prop_assert_eq!(evidently_other(&MemoryFrame::new(&frame)), port != 25);
        }
    }
}
