//! Redirected packets, byte by byte: what comes out is what somebody else's code builds for the
//! other address.

use std::net::{SocketAddr, TcpListener};

use etherparse::{PacketBuilder, TcpHeader, VlanId};
use gate25_common::abi::{Blocked, CustomerId, Mode, Quarantine};
use gate25_common::address::Address;
use gate25_common::decide::HostMode;
use gate25_common::redirect::{Hindrance, Target};
use gate25_common::testing::frames::{
    GATEWAY_MAC, GUEST_MAC, GUEST_V4, GUEST_V6, SERVER_V4, SERVER_V6,
};

use nix::net::if_::if_nametoindex;

use super::kernel::{Action, Kernel, LOOPBACK, Meta, NOTICE, NOTICE_V6, in_namespace};
use super::table::{CUSTOMER, tables};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`.
const PASSED: i32 = -1;
/// `TC_ACT_REDIRECT`: sent back.
const SENT_BACK: i32 = 7;
const DROPPED: i32 = 2;
const SMTP: u16 = 25;
const GUEST_PORT: u16 = 40_123;
const TARGET_V4: [u8; 4] = [192, 0, 2, 199];
const TARGET_V6: [u8; 16] = [
    0xfe, 0xc0, 0xff, 0xff, 0xab, 0xcd, 0, 0, 0xff, 0xfe, 0, 1, 0x80, 0, 0, 0x99,
];
const OTHER_V4: [u8; 4] = [203, 0, 113, 26];
const OTHER_V6: [u8; 16] = [
    0x20, 1, 0x0d, 0xb8, 0, 0x26, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x26,
];

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;

/// Addresses of one family: the guest's, the exchanger's, another one's, the target's.
#[derive(Clone, Copy)]
enum Places {
    V4([[u8; 4]; 4]),
    V6([[u8; 16]; 4]),
}

const FAMILIES: [Places; 2] = [
    Places::V4([GUEST_V4, SERVER_V4, OTHER_V4, TARGET_V4]),
    Places::V6([GUEST_V6, SERVER_V6, OTHER_V6, TARGET_V6]),
];
const GUEST: usize = 0;
const EXCHANGER: usize = 1;
const OTHER: usize = 2;
const TARGET: usize = 3;

#[derive(Clone, Copy)]
struct Packet<'p> {
    places: Places,
    from: (usize, u16),
    to: (usize, u16),
    flags: u8,
    tag: Option<u16>,
    payload: &'p [u8],
}

impl Packet<'_> {
    /// From the guest to `to`.
    fn out(places: Places, to: usize, flags: u8) -> Packet<'static> {
        Packet {
            places,
            from: (GUEST, GUEST_PORT),
            to: (to, SMTP),
            flags,
            tag: None,
            payload: &[],
        }
    }

    /// From `from` to the guest.
    fn back(places: Places, from: usize, flags: u8) -> Packet<'static> {
        Packet {
            from: (from, SMTP),
            to: (GUEST, GUEST_PORT),
            ..Packet::out(places, from, flags)
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let macs = match self.from.0 {
            GUEST => (GUEST_MAC, GATEWAY_MAC),
            _ => (GATEWAY_MAC, GUEST_MAC),
        };
        let mut tcp = TcpHeader::new(self.from.1, self.to.1, 0x1020_3040, 64_000);
        tcp.syn = self.flags & SYN != 0;
        tcp.ack = self.flags & ACK != 0;
        tcp.fin = self.flags & FIN != 0;
        tcp.acknowledgment_number = if tcp.ack { 0x5060_7080 } else { 0 };
        let (from, to) = (self.from.0, self.to.0);
        let link = PacketBuilder::ethernet2(macs.0, macs.1);
        let mut bytes = Vec::new();
        let write = |ip: etherparse::IpHeaders, bytes: &mut Vec<u8>| match self.tag {
            Some(id) => link
                .single_vlan(VlanId::try_new(id).expect("an id"))
                .ip(ip)
                .tcp_header(tcp.clone())
                .write(bytes, self.payload),
            None => link
                .ip(ip)
                .tcp_header(tcp.clone())
                .write(bytes, self.payload),
        };
        let ip = match self.places {
            Places::V4(places) => etherparse::IpHeaders::Ipv4(
                etherparse::Ipv4Header {
                    time_to_live: 61,
                    source: places[from],
                    destination: places[to],
                    identification: 0x4321,
                    ..etherparse::Ipv4Header::default()
                },
                etherparse::Ipv4Extensions::default(),
            ),
            Places::V6(places) => etherparse::IpHeaders::Ipv6(
                etherparse::Ipv6Header {
                    hop_limit: 61,
                    source: places[from],
                    destination: places[to],
                    ..etherparse::Ipv6Header::default()
                },
                etherparse::Ipv6Extensions::default(),
            ),
        };
        write(ip, &mut bytes).expect("into memory");
        bytes
    }
}

/// A kernel whose only customer is redirected to the targets' `port`.
fn redirecting(port: u16) -> Kernel {
    let mut tables = tables(Mode::Enforce, Blocked::Redirect, Quarantine::No);
    let target = |address| Target::new(address, port.to_be_bytes()).expect("a port");
    let (v4, v6) = (Address::from_v4(TARGET_V4), Address::from_v6(TARGET_V6));
    let policy = tables.policies[&CUSTOMER].with_targets(target(v4), target(v6));
    tables.policies.insert(CUSTOMER, policy);
    let mut kernel = Kernel::load(HostMode::Policy);
    kernel.fill(LOOPBACK, &tables);
    kernel
}

#[track_caller]
fn check_sent(kernel: &Kernel, packet: &Packet<'_>, expected: &Packet<'_>) {
    let (action, bytes) = kernel.raw(&packet.bytes(), Meta::default());
    assert_eq!(action, PASSED);
    assert_eq!(bytes, expected.bytes());
}

#[track_caller]
fn check_reply(kernel: &Kernel, packet: &Packet<'_>, expected: &Packet<'_>) {
    let (action, bytes) = kernel.reply(&packet.bytes(), Meta::default());
    assert_eq!(action, PASSED);
    assert_eq!(bytes, expected.bytes());
}

#[test]
fn packets_go_to_the_target_and_its_replies_come_from_the_exchanger() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        let odd = [0x5a; 1401];
        for places in FAMILIES {
            for tag in [None, Some(42)] {
                for (flags, payload) in [
                    (SYN, &[][..]),
                    (ACK, &[]),
                    (ACK, b"EHLO guest.example\r\n"),
                    (ACK, &odd),
                    (ACK | FIN, &[]),
                ] {
                    let to = |place| Packet {
                        tag,
                        payload,
                        ..Packet::out(places, place, flags)
                    };
                    check_sent(&kernel, &to(EXCHANGER), &to(TARGET));
                    let from = |place| Packet {
                        tag,
                        payload,
                        ..Packet::back(places, place, flags | ACK)
                    };
                    check_reply(&kernel, &from(TARGET), &from(EXCHANGER));
                }
            }
        }
    });
}

#[test]
fn target_on_another_port_is_reached_there() {
    in_namespace(|_| {
        let kernel = redirecting(2525);
        for places in FAMILIES {
            for flags in [SYN, ACK] {
                let packet = Packet::out(places, EXCHANGER, flags);
                let expected = Packet {
                    to: (TARGET, 2525),
                    ..packet
                };
                check_sent(&kernel, &packet, &expected);
            }
        }
    });
}

#[test]
fn large_buffers_are_rewritten_like_others() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        let payload = [7; 3000];
        let meta = Meta {
            gso_size: 1400,
            ..Meta::default()
        };
        for places in FAMILIES {
            let syn = Packet::out(places, EXCHANGER, SYN);
            check_sent(&kernel, &syn, &Packet::out(places, TARGET, SYN));
            let to = |place| Packet {
                payload: &payload,
                ..Packet::out(places, place, ACK)
            };
            let (action, bytes) = kernel.raw(&to(EXCHANGER).bytes(), meta);
            assert_eq!((action, bytes), (PASSED, to(TARGET).bytes()));
        }
    });
}

#[test]
fn packets_of_no_connection_are_answered_and_never_pass() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        for places in FAMILIES {
            for flags in [ACK, SYN | ACK, ACK | FIN, 0] {
                let packet = Packet::out(places, EXCHANGER, flags).bytes();
                let (action, _) = kernel.raw(&packet, Meta::default());
                assert_eq!(action, SENT_BACK, "{flags}");
            }
        }
    });
}

#[test]
fn replies_of_no_connection_and_other_packets_pass_as_they_are() {
    in_namespace(|namespace| {
        namespace
            .ip("link add other type veth peer name far")
            .expect("another interface");
        let other = if_nametoindex("other").expect("its index");
        let kernel = redirecting(SMTP);
        for places in FAMILIES {
            check_sent(
                &kernel,
                &Packet::out(places, EXCHANGER, SYN),
                &Packet::out(places, TARGET, SYN),
            );
            let reply = Packet::back(places, TARGET, SYN | ACK);
            for packet in [
                Packet::back(places, OTHER, ACK),
                Packet {
                    to: (GUEST, GUEST_PORT + 1),
                    ..reply
                },
                Packet {
                    from: (TARGET, 587),
                    ..reply
                },
            ] {
                check_reply(&kernel, &packet, &packet);
            }
            // Behind another interface it is another guest.
            let elsewhere = Meta {
                interface: other,
                ..Meta::default()
            };
            let (action, bytes) = kernel.reply(&reply.bytes(), elsewhere);
            assert_eq!((action, bytes), (PASSED, reply.bytes()));
        }
    });
}

#[test]
fn second_connection_from_the_same_port_does_not_take_the_firsts_place() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        for places in FAMILIES {
            let to = |place, flags| Packet::out(places, place, flags);
            check_sent(&kernel, &to(EXCHANGER, SYN), &to(TARGET, SYN));
            let (action, _) = kernel.raw(&to(OTHER, SYN).bytes(), Meta::default());
            assert_eq!(action, SENT_BACK);
            // The first goes on.
            check_sent(&kernel, &to(EXCHANGER, SYN), &to(TARGET, SYN));
            check_sent(&kernel, &to(EXCHANGER, ACK), &to(TARGET, ACK));
            let back = |place| Packet::back(places, place, ACK);
            check_reply(&kernel, &back(TARGET), &back(EXCHANGER));
            // Until it ends.
            check_sent(&kernel, &to(EXCHANGER, ACK | FIN), &to(TARGET, ACK | FIN));
            check_sent(&kernel, &to(OTHER, SYN), &to(TARGET, SYN));
            check_reply(&kernel, &back(TARGET), &back(OTHER));
            let (action, _) = kernel.raw(&to(EXCHANGER, ACK).bytes(), Meta::default());
            assert_eq!(action, SENT_BACK);
        }
    });
}

#[test]
fn target_is_reached_directly_and_nothing_is_rewritten() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        for places in FAMILIES {
            let packet = Packet::out(places, TARGET, SYN).bytes();
            assert_eq!(kernel.run(&packet, Meta::default()), Action::Passed);
        }
    });
}

#[test]
fn reply_to_a_direct_connection_is_not_named_after_one_that_was_redirected_from_its_port() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        for places in FAMILIES {
            let to = |place, flags| Packet::out(places, place, flags);
            let back = |place| Packet::back(places, place, SYN | ACK);
            check_sent(&kernel, &to(EXCHANGER, SYN), &to(TARGET, SYN));
            check_sent(&kernel, &to(EXCHANGER, ACK | FIN), &to(TARGET, ACK | FIN));
            check_sent(&kernel, &to(TARGET, SYN), &to(TARGET, SYN));
            check_reply(&kernel, &back(TARGET), &back(TARGET));
            // It has the port now, until it ends.
            let (action, _) = kernel.raw(&to(OTHER, SYN).bytes(), Meta::default());
            assert_eq!(action, SENT_BACK);
            check_sent(&kernel, &to(TARGET, ACK | FIN), &to(TARGET, ACK | FIN));
            check_sent(&kernel, &to(OTHER, SYN), &to(TARGET, SYN));
            check_reply(&kernel, &back(TARGET), &back(OTHER));
        }
    });
}

#[test]
fn direct_connection_does_not_take_the_place_of_a_redirected_one() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        for places in FAMILIES {
            let to = |place, flags| Packet::out(places, place, flags);
            check_sent(&kernel, &to(EXCHANGER, SYN), &to(TARGET, SYN));
            for flags in [SYN, ACK] {
                let (action, _) = kernel.raw(&to(TARGET, flags).bytes(), Meta::default());
                assert_eq!(action, SENT_BACK, "{flags}");
            }
            let back = |place| Packet::back(places, place, ACK);
            check_reply(&kernel, &back(TARGET), &back(EXCHANGER));
        }
        assert_eq!(kernel.hindrances(Hindrance::PortInUse), 2);
        assert_eq!(kernel.hindrances(Hindrance::Unknown), 2);
    });
}

#[test]
fn direct_connection_that_nobody_saw_begin_goes_on() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        for places in FAMILIES {
            for flags in [ACK, ACK | FIN] {
                let packet = Packet::out(places, TARGET, flags);
                check_sent(&kernel, &packet, &packet);
            }
        }
    });
}

#[test]
fn interface_that_makes_up_senders_uses_up_its_own_budget_only() {
    in_namespace(|namespace| {
        namespace
            .ip("link add other type veth peer name far")
            .expect("another interface");
        let other = if_nametoindex("other").expect("its index");
        let mut kernel = redirecting(SMTP);
        kernel.own(other, Some(CUSTOMER));
        let from = |port| Packet {
            from: (GUEST, port),
            ..Packet::out(FAMILIES[0], EXCHANGER, SYN)
        };
        let led = |meta, port| {
            let (action, _) = kernel.raw(&from(port).bytes(), meta);
            assert!(action == PASSED || action == SENT_BACK, "{action}");
            action == PASSED
        };
        let refused = (1..=60_000).find(|port| !led(Meta::default(), *port));
        // What there is at once, and what has come on meanwhile.
        let refused = refused.expect("a bound");
        assert!(refused > 2000, "{refused}");
        assert_eq!(kernel.hindrances(Hindrance::TooMany), 1);
        // What was remembered goes on, and so do others.
        assert!(led(Meta::default(), 1));
        let elsewhere = Meta {
            interface: other,
            ..Meta::default()
        };
        assert!(led(elsewhere, refused));
    });
}

#[test]
fn notice_is_led_to_only_while_the_agents_own_socket_listens_there() {
    in_namespace(|_| {
        let mut tables = tables(Mode::Enforce, Blocked::Notice, Quarantine::No);
        let target =
            |to: SocketAddr| Target::new(to.ip().into(), to.port().to_be_bytes()).expect("a port");
        let policy = tables.policies[&CUSTOMER].with_targets(target(NOTICE), target(NOTICE_V6));
        tables.policies.insert(CUSTOMER, policy);
        let mut kernel = Kernel::load(HostMode::Policy);
        kernel.fill(LOOPBACK, &tables);
        let outcomes = |kernel: &Kernel, flags| {
            FAMILIES.map(|places| {
                let packet = Packet::out(places, EXCHANGER, flags).bytes();
                kernel.raw(&packet, Meta::default()).0
            })
        };
        assert_eq!(outcomes(&kernel, SYN), [SENT_BACK; 2], "nobody listens");
        let elsewhere = |to: SocketAddr| SocketAddr::new(to.ip(), to.port() + 1);
        kernel.listen(&[elsewhere(NOTICE), elsewhere(NOTICE_V6)]);
        assert_eq!(outcomes(&kernel, SYN), [SENT_BACK; 2], "another port");
        let hosts = [
            SocketAddr::from(([127, 0, 0, 1], NOTICE.port())),
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, NOTICE.port())),
        ];
        kernel.listen(&hosts);
        assert_eq!(outcomes(&kernel, SYN), [SENT_BACK; 2], "another address");
        kernel.fall_silent();
        kernel.listen(&[NOTICE]);
        assert_eq!(outcomes(&kernel, SYN), [PASSED, SENT_BACK], "IPv4 alone");
        kernel.listen(&[NOTICE_V6]);
        assert_eq!(outcomes(&kernel, SYN), [PASSED; 2]);
        assert_eq!(outcomes(&kernel, ACK), [PASSED; 2]);
        kernel.fall_silent();
        // Whoever listens there now is not the agent.
        let _squatters = [NOTICE, NOTICE_V6].map(|it| TcpListener::bind(it).expect("it is free"));
        assert_eq!(outcomes(&kernel, SYN), [SENT_BACK; 2], "the agent is gone");
        assert_eq!(
            outcomes(&kernel, ACK),
            [SENT_BACK; 2],
            "its connections too"
        );
        assert_eq!(kernel.hindrances(Hindrance::Unheard), 11);
    });
}

#[test]
fn interface_that_changes_hands_begins_connections_anew() {
    in_namespace(|_| {
        let mut kernel = redirecting(SMTP);
        let next = CustomerId::from_name("next");
        for places in FAMILIES {
            let to = |place, flags| Packet::out(places, place, flags);
            check_sent(&kernel, &to(EXCHANGER, SYN), &to(TARGET, SYN));
        }
        kernel.adopt(CUSTOMER, next);
        kernel.own(LOOPBACK, Some(next));
        for places in FAMILIES {
            let to = |place, flags| Packet::out(places, place, flags);
            check_sent(&kernel, &to(OTHER, SYN), &to(TARGET, SYN));
            let back = |place| Packet::back(places, place, ACK);
            check_reply(&kernel, &back(TARGET), &back(OTHER));
        }
    });
}

#[test]
fn packet_with_options_goes_nowhere() {
    in_namespace(|_| {
        let kernel = redirecting(SMTP);
        let plain = Packet::out(FAMILIES[0], EXCHANGER, SYN).bytes();
        // A header of six words: the sixth ends the options.
        let mut packet = plain[..34].to_vec();
        packet[14] = 0x46;
        packet[17] += 4;
        packet.extend_from_slice(&[0; 4]);
        packet.extend_from_slice(&plain[34..]);
        let (action, _) = kernel.raw(&packet, Meta::default());
        assert_eq!(action, DROPPED);
    });
}
