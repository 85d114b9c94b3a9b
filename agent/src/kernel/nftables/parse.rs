//! The chains that tell what a packet is, before anybody asks whose it is. Pure.
//!
//! A rule that asks for what a packet does not have does not match. So each chain lets go what is
//! certainly not guarded, sends on what can be judged, and its last rule refuses the rest.

use gate25_common::packet::{ETHERTYPES_OF_TAGS, Malformed, PROTOCOL_LLC, Tunnel};

use serde_json::{Value, json};

use super::names;
use crate::netfilter::expression::{
    self, AUTHENTICATION, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_OFFSET, Rule, TCP, and, any_of,
    at_least, below, between, count, equal, field, fragment, goto, leave, meta, network, transport,
    unequal,
};

/// `IP_MF`.
const MORE_FRAGMENTS: u32 = 0x2000;
const ANY_FRAGMENT: u32 = MORE_FRAGMENTS | FRAGMENT_OFFSET;
/// Below, the field is a frame's length and an LLC header follows.
const ETHERTYPE_MIN: u32 = 0x0600;
const IPV4_WORDS: u32 = 5;
const IPV4_WORDS_MAX: u32 = 15;
const IPV6_HEADER: u32 = 40;
const TCP_HEADER: u32 = 20;
/// Shorter buffers are in one piece: a tap splits those that do not fit a page of 4 KiB with the room
/// that is left before them (`tun_alloc_skb`, `packet_alloc_skb`).
const PAGED: u32 = 3800;
/// Headers behind which TCP may follow. The kernel looks behind the first four only.
const EXTENSIONS: [u16; 8] = [0, 43, 44, 60, AUTHENTICATION, 135, 139, 140];
const WALKED_EXTENSIONS: [u16; 4] = [0, 43, 44, 60];
/// As nft calls them.
const NAMES_OF_WALKED: [&str; 4] = ["hbh", "rt", "frag", "dst"];
/// What the kernel takes for the last header although TCP may follow.
const UNKNOWN_EXTENSIONS: [u16; 4] = [AUTHENTICATION, 135, 139, 140];

/// Every chain here with its rules.
pub(super) fn chains(ports: &[u16]) -> Vec<(String, Vec<Rule>)> {
    let ports = any_of(ports.iter().copied());
    let mut chains = vec![
        (names::GUEST.to_owned(), guest()),
        ("v4".to_owned(), v4()),
        ("v4plain".to_owned(), v4_plain(&ports)),
        ("v4options".to_owned(), v4_options(&ports)),
        ("v4short".to_owned(), v4_short()),
        ("v4ah".to_owned(), v4_authenticated(&ports)),
        ("v6".to_owned(), v6()),
        ("v6plain".to_owned(), v6_plain(&ports)),
        ("v6headers".to_owned(), v6_headers()),
        ("v6tcp".to_owned(), v6_tcp()),
        ("v6port".to_owned(), v6_port(&ports)),
        ("tagged".to_owned(), tagged()),
        ("llc".to_owned(), llc()),
    ];
    // Behind a second tag, and behind an LLC and SNAP header.
    for behind in [4, 8] {
        chains.push((format!("hidden{behind}v4"), hidden_v4(&ports, behind * 8)));
        chains.push((format!("hidden{behind}v6"), hidden_v6(&ports, behind * 8)));
    }
    chains
}

fn refuse(kind: Malformed) -> Value {
    goto(&names::malformed_chain(kind))
}

fn guest() -> Vec<Rule> {
    let protocol = || meta("protocol");
    vec![
        vec![equal(protocol(), "ip"), goto("v4")],
        vec![equal(protocol(), "ip6"), goto("v6")],
        vec![
            equal(protocol(), any_of(ETHERTYPES_OF_TAGS)),
            goto("tagged"),
        ],
        vec![equal(protocol(), PROTOCOL_LLC), goto("llc")],
    ]
}

fn v4() -> Vec<Rule> {
    let offset = and(&field("ip", "frag-off"), FRAGMENT_OFFSET);
    let mut rules = vec![
        vec![unequal(network(0, 4), 4), refuse(Malformed::Header)],
        vec![below(network(4, 4), IPV4_WORDS), refuse(Malformed::Header)],
        vec![
            equal(offset.clone(), 1),
            equal(network(72, 8), TCP),
            refuse(Malformed::OverlappingFragment),
        ],
        // Later fragments have no port: their first is what gets judged.
        vec![unequal(offset, 0), leave()],
    ];
    rules.extend(Tunnel::ALL.map(|tunnel| {
        let protocol = equal(network(72, 8), tunnel.protocol());
        vec![protocol, count(&names::tunnel(tunnel)), leave()]
    }));
    rules.extend([
        vec![equal(network(72, 8), AUTHENTICATION), goto("v4ah")],
        vec![unequal(network(72, 8), TCP), leave()],
        vec![equal(network(4, 4), IPV4_WORDS), goto("v4plain")],
        vec![at_least(network(4, 4), IPV4_WORDS + 1), goto("v4options")],
        vec![refuse(Malformed::Truncated)],
    ]);
    rules
}

/// TCP behind a header without options.
fn v4_plain(ports: &Value) -> Vec<Rule> {
    let shortest = IPV4_WORDS * 4 + TCP_HEADER;
    vec![
        vec![
            equal(network(16, 16), between(1, shortest - 1)),
            goto("v4short"),
        ],
        vec![below(meta("length"), shortest), goto("v4short")],
        vec![
            unequal(network(IPV4_WORDS * 32 + 16, 16), ports.clone()),
            leave(),
        ],
        // The kernel has found its TCP header where it should be.
        vec![equal(meta("l4proto"), "tcp"), goto(names::JUDGE)],
        vec![refuse(Malformed::Truncated)],
    ]
}

/// TCP behind a header with options. The kernel shows none of them where one is malformed, which
/// others on the way may not mind: a source route cannot be ruled out.
fn v4_options(ports: &Value) -> Vec<Rule> {
    let mut rules = Vec::new();
    for words in IPV4_WORDS + 1..=IPV4_WORDS_MAX {
        let header = || equal(network(4, 4), words);
        let shortest = words * 4 + TCP_HEADER;
        rules.extend([
            vec![
                header(),
                equal(network(16, 16), between(1, shortest - 1)),
                goto("v4short"),
            ],
            vec![header(), below(meta("length"), shortest), goto("v4short")],
            vec![
                header(),
                unequal(network(words * 32 + 16, 16), ports.clone()),
                leave(),
            ],
        ]);
    }
    rules.push(vec![equal(meta("l4proto"), "tcp"), goto(names::ROUTED)]);
    rules.push(vec![refuse(Malformed::Truncated)]);
    rules
}

/// No room for a TCP header.
fn v4_short() -> Vec<Rule> {
    let more = and(&field("ip", "frag-off"), MORE_FRAGMENTS);
    vec![
        vec![unequal(more, 0), refuse(Malformed::ShortFragment)],
        vec![refuse(Malformed::Truncated)],
    ]
}

/// Behind an authentication header ports can be read, and nothing else be judged. What is let go is
/// marked, since the guard is shown the same.
fn v4_authenticated(ports: &Value) -> Vec<Rule> {
    let stop = vec![refuse(Malformed::Extensions)];
    expression::authenticated(ports, &goto(names::PASS), &stop)
}

fn v6() -> Vec<Rule> {
    let next = || network(48, 8);
    let mut rules = vec![
        vec![unequal(network(0, 4), 6), refuse(Malformed::Header)],
        vec![equal(next(), TCP), goto("v6plain")],
        vec![equal(next(), any_of(EXTENSIONS)), goto("v6headers")],
    ];
    rules.extend(Tunnel::ALL.map(|tunnel| {
        let protocol = equal(next(), tunnel.protocol());
        vec![protocol, count(&names::tunnel(tunnel)), leave()]
    }));
    rules.push(vec![at_least(next(), 0), leave()]);
    rules.push(vec![refuse(Malformed::Truncated)]);
    rules
}

/// TCP right behind the IPv6 header.
fn v6_plain(ports: &Value) -> Vec<Rule> {
    vec![
        vec![
            equal(network(32, 16), between(1, TCP_HEADER - 1)),
            refuse(Malformed::Truncated),
        ],
        vec![
            below(meta("length"), IPV6_HEADER + TCP_HEADER),
            refuse(Malformed::Truncated),
        ],
        vec![
            unequal(network(IPV6_HEADER * 8 + 16, 16), ports.clone()),
            leave(),
        ],
        vec![equal(meta("l4proto"), "tcp"), goto(names::JUDGE)],
        vec![refuse(Malformed::Truncated)],
    ]
}

/// Behind extension headers, as far as the kernel walks them. What is let go is marked: the guard does
/// not walk so far.
fn v6_headers() -> Vec<Rule> {
    let (first, second) = (|| network(48, 8), || network(IPV6_HEADER * 8, 8));
    let more = || any_of(EXTENSIONS.into_iter().chain([TCP]));
    let mut rules = vec![
        // The kernel's walk (`ipv6_find_hdr`) reads the first header's number without bringing it into
        // the packet's first piece of memory. A driver may leave it outside where a buffer is larger
        // than a page: these are judged by what is certain.
        vec![
            at_least(meta("length"), PAGED),
            unequal(second(), more()),
            goto(names::PASS),
        ],
        vec![
            at_least(meta("length"), PAGED),
            refuse(Malformed::Extensions),
        ],
    ];
    // A packet socket may leave it outside in any packet: then the walk began elsewhere.
    rules.extend(
        WALKED_EXTENSIONS
            .into_iter()
            .zip(NAMES_OF_WALKED)
            .map(|(number, name)| {
                let header = json!({"exthdr": {"name": name}});
                vec![
                    equal(first(), number),
                    equal(header, false),
                    refuse(Malformed::Truncated),
                ]
            }),
    );
    rules.extend(UNKNOWN_EXTENSIONS.map(|number| {
        vec![
            equal(first(), number),
            unequal(meta("l4proto"), number),
            refuse(Malformed::Truncated),
        ]
    }));
    rules.extend([
        // The kernel shows the first fragment header only, and another may follow.
        vec![
            equal(fragment("nexthdr"), any_of(WALKED_EXTENSIONS)),
            refuse(Malformed::Extensions),
        ],
        vec![
            equal(fragment("frag-off"), 1),
            refuse(Malformed::OverlappingFragment),
        ],
        vec![
            at_least(fragment("frag-off"), 2),
            at_least(fragment("id"), 0),
            goto(names::PASS),
        ],
        vec![equal(meta("l4proto"), "tcp"), goto("v6tcp")],
        vec![
            equal(meta("l4proto"), any_of(UNKNOWN_EXTENSIONS)),
            unequal(transport(0, 8), more()),
            goto(names::PASS),
        ],
        vec![
            equal(meta("l4proto"), any_of(UNKNOWN_EXTENSIONS)),
            refuse(Malformed::Extensions),
        ],
    ]);
    rules.extend(Tunnel::ALL.map(|tunnel| {
        let protocol = equal(meta("l4proto"), tunnel.protocol());
        vec![protocol, count(&names::tunnel(tunnel)), goto(names::PASS)]
    }));
    rules.push(vec![at_least(meta("l4proto"), 0), goto(names::PASS)]);
    rules.push(vec![refuse(Malformed::Truncated)]);
    rules
}

fn v6_tcp() -> Vec<Rule> {
    let last_byte = transport((TCP_HEADER - 1) * 8, 8);
    vec![
        vec![at_least(last_byte, 0), goto("v6port")],
        vec![
            equal(fragment("more-fragments"), 1),
            refuse(Malformed::ShortFragment),
        ],
        vec![refuse(Malformed::Truncated)],
    ]
}

fn v6_port(ports: &Value) -> Vec<Rule> {
    let routing = json!({"exthdr": {"name": "rt"}});
    vec![
        vec![
            unequal(field("tcp", "dport"), ports.clone()),
            goto(names::PASS),
        ],
        // The kernel shows the first routing header only; a second may say where it goes.
        vec![equal(routing, true), goto(names::ROUTED)],
        vec![goto(names::JUDGE)],
    ]
}

/// One tag in front of what the kernel looks at; it has taken one off where there were two.
fn tagged() -> Vec<Rule> {
    let inner = || network(16, 16);
    let mut rules = vec![
        vec![equal(inner(), ETHERTYPE_IPV4), goto("hidden4v4")],
        vec![equal(inner(), ETHERTYPE_IPV6), goto("hidden4v6")],
        vec![
            equal(inner(), any_of(ETHERTYPES_OF_TAGS)),
            refuse(Malformed::VlanDepth),
        ],
        vec![
            below(inner(), ETHERTYPE_MIN),
            equal(and(&network(32, 8), 0xfe), 0xaa),
            equal(network(80, 16), hides()),
            refuse(Malformed::VlanDepth),
        ],
        vec![
            below(inner(), ETHERTYPE_MIN),
            equal(and(&network(32, 8), 0xfe), 0xaa),
            below(network(80, 16), ETHERTYPE_MIN),
            refuse(Malformed::VlanDepth),
        ],
    ];
    rules.push(vec![goto(names::PASS)]);
    rules
}

/// Frames with an LLC header.
fn llc() -> Vec<Rule> {
    let inner = || network(48, 16);
    vec![
        vec![unequal(and(&network(0, 8), 0xfe), 0xaa), goto(names::PASS)],
        vec![equal(inner(), ETHERTYPE_IPV4), goto("hidden8v4")],
        vec![equal(inner(), ETHERTYPE_IPV6), goto("hidden8v6")],
        vec![equal(inner(), hides()), refuse(Malformed::VlanDepth)],
        vec![
            below(inner(), ETHERTYPE_MIN),
            equal(and(&network(64, 8), 0xfe), 0xaa),
            refuse(Malformed::VlanDepth),
        ],
        vec![goto(names::PASS)],
    ]
}

fn hides() -> Value {
    any_of(
        [ETHERTYPE_IPV4, ETHERTYPE_IPV6]
            .into_iter()
            .chain(ETHERTYPES_OF_TAGS),
    )
}

/// IPv4 `at` so many bits behind what the kernel takes for the network header: ports can be read,
/// and addresses not be looked up.
fn hidden_v4(ports: &Value, at: u32) -> Vec<Rule> {
    let protocol = || network(at + 72, 8);
    let fragmented = network(at + 48, 16);
    let shortest = IPV4_WORDS * 4 + TCP_HEADER;
    vec![
        vec![unequal(network(at, 4), 4), refuse(Malformed::Header)],
        vec![
            below(network(at + 4, 4), IPV4_WORDS),
            refuse(Malformed::Header),
        ],
        vec![
            unequal(protocol(), any_of([TCP, AUTHENTICATION])),
            goto(names::PASS),
        ],
        vec![
            at_least(and(&fragmented, FRAGMENT_OFFSET), 2),
            goto(names::PASS),
        ],
        vec![
            equal(network(at, 8), 0x45),
            equal(protocol(), TCP),
            equal(and(&fragmented, ANY_FRAGMENT), 0),
            unequal(network(at + 16, 16), between(1, shortest - 1)),
            at_least(network(at + shortest * 8 - 8, 8), 0),
            unequal(network(at + IPV4_WORDS * 32 + 16, 16), ports.clone()),
            goto(names::PASS),
        ],
        vec![refuse(Malformed::VlanDepth)],
    ]
}

fn hidden_v6(ports: &Value, at: u32) -> Vec<Rule> {
    let next = || network(at + 48, 8);
    vec![
        vec![unequal(network(at, 4), 6), refuse(Malformed::Header)],
        vec![
            unequal(next(), any_of(EXTENSIONS.into_iter().chain([TCP]))),
            goto(names::PASS),
        ],
        vec![
            equal(next(), TCP),
            unequal(network(at + 32, 16), between(1, TCP_HEADER - 1)),
            at_least(network(at + (IPV6_HEADER + TCP_HEADER) * 8 - 8, 8), 0),
            unequal(network(at + IPV6_HEADER * 8 + 16, 16), ports.clone()),
            goto(names::PASS),
        ],
        vec![refuse(Malformed::VlanDepth)],
    ]
}
