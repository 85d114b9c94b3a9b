//! The guard's rules, as nft takes them.

use gate25_common::decide::HostMode;
use gate25_common::packet::{ETHERTYPES_OF_TAGS, PROTOCOL_LLC};
use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadBase,
    PayloadField, PayloadRaw, SetItem,
};
use nftables::schema::{Chain, FlushObject, NfCmd, NfListObject, Nftables, Rule, Table};
use nftables::stmt::{AnonymousCounter, Counter, JumpTarget, Mangle, Match, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::Guard;

/// The name of the guard's tables.
pub const TABLE: &str = "gate25_guard";
/// The families that have one: packets that are routed or for the host, and frames that are bridged.
pub const FAMILIES: [NfFamily; 2] = [NfFamily::INet, NfFamily::Bridge];

/// Before connection tracking, defragmentation and everybody's own rules.
const PRIORITY: i32 = -450;
/// `IP_OFFSET`.
const FRAGMENT_OFFSET: u32 = 0x1fff;
/// Where IP may begin behind an LLC and SNAP header, whose last two bytes say so.
const SNAP_ETHERTYPE: u32 = 48;
const ETHERTYPES_OF_IP: [u16; 2] = [0x0800, 0x86dd];
const PROTOCOL_TCP: u32 = 6;
const PROTOCOL_FRAGMENT: u32 = 44;
const PROTOCOL_AH: u32 = 51;
const IPV6_HEADER: u32 = 40;
/// Where an IPv6 header tells the next one, in bits.
const IPV6_NEXT: u32 = 48;
const IPV6_FRAGMENT_OFFSET: u32 = 0xfff8;
/// IPv6 headers behind which TCP may follow.
const EXTENSIONS: [u16; 8] = [0, 43, 44, 51, 60, 135, 139, 140];
/// Those of them that a guest's ordinary TCP may have, with their length in the second byte.
const EXTENSIONS_OF_OPTIONS: [u16; 3] = [0, 43, 60];
/// Longest of these that is looked behind, in units of 8 bytes beyond the first.
const LONGEST_OPTIONS: u32 = 7;
/// Longest authentication header that is looked behind, as its length field has it: 32-bit words
/// less two. 64 bytes of check value (HMAC-SHA-512) and the fixed 12 are 17.
const LONGEST_AH: u32 = 17;

const ENTRY: &str = "prerouting";
const GUEST: &str = "guest";
const ENCAPSULATED: &str = "encapsulated";
const AUTHENTICATED: &str = "authenticated";
const V6: &str = "v6";

/// The chains stay while their rules change at once. Were they exchanged too, the kernel would have
/// both guards hooked for a moment: the old one takes the bit off, and the new one stops the packet.
pub(super) fn commands(guard: &Guard) -> Nftables<'static> {
    let mut batch = Batch::new();
    fill(&mut batch, guard);
    batch.to_nftables()
}

pub(super) fn replacement(guard: &Guard) -> Nftables<'static> {
    let mut batch = Batch::new();
    remove(&mut batch);
    fill(&mut batch, guard);
    batch.to_nftables()
}

pub(super) fn removal() -> Nftables<'static> {
    let mut batch = Batch::new();
    remove(&mut batch);
    batch.to_nftables()
}

/// What is not there cannot be deleted.
fn remove(batch: &mut Batch<'static>) {
    for family in FAMILIES {
        batch.add(table(family));
        batch.delete(table(family));
    }
}

fn fill(batch: &mut Batch<'static>, guard: &Guard) {
    for family in FAMILIES {
        batch.add(table(family));
        let inner = [AUTHENTICATED, ENCAPSULATED, V6, GUEST].map(|name| chain(family, name));
        for chain in inner.into_iter().chain([entry(family)]) {
            batch.add(NfListObject::Chain(chain.clone()));
            batch.add_cmd(NfCmd::Flush(FlushObject::Chain(chain)));
        }
        let mut add = |chain: &'static str, rules: Vec<Vec<Statement<'static>>>| {
            for rule in rules {
                batch.add(NfListObject::Rule(Rule {
                    family,
                    table: TABLE.into(),
                    chain: chain.into(),
                    expr: rule.into(),
                    ..Rule::default()
                }));
            }
        };
        add(AUTHENTICATED, authenticated(guard));
        add(ENCAPSULATED, encapsulated(guard));
        add(V6, v6(guard));
        add(GUEST, guest(guard));
        add(ENTRY, interfaces(guard));
    }
}

fn table(family: NfFamily) -> NfListObject<'static> {
    NfListObject::Table(Table {
        family,
        name: TABLE.into(),
        ..Table::default()
    })
}

fn chain(family: NfFamily, name: &'static str) -> Chain<'static> {
    Chain {
        family,
        table: TABLE.into(),
        name: name.into(),
        ..Chain::default()
    }
}

fn entry(family: NfFamily) -> Chain<'static> {
    Chain {
        family,
        table: TABLE.into(),
        name: ENTRY.into(),
        _type: Some(NfChainType::Filter),
        hook: Some(NfHook::Prerouting),
        prio: Some(PRIORITY),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    }
}

/// Which interfaces are guests'.
fn interfaces(guard: &Guard) -> Vec<Vec<Statement<'static>>> {
    let named = |name: &String, then| vec![equal(meta(MetaKey::Iifname), text(name)), then];
    let others = guard.others.iter().map(|name| named(name, RETURN));
    let guests = guard.guests.iter().map(|name| named(name, jump(GUEST)));
    others.chain(guests).collect()
}

/// What a guest sent. What cannot be told of a packet ends its rule, so each rule lets go what is
/// certainly not guarded, and the last one stops what is left.
fn guest(guard: &Guard) -> Vec<Vec<Statement<'static>>> {
    let protocol = || meta(MetaKey::Protocol);
    let offset = and(field("ip", "frag-off"), FRAGMENT_OFFSET);
    vec![
        marked(guard),
        verdict(guard, vec![equal(protocol(), any_of(&ETHERTYPES_OF_TAGS))]),
        vec![
            equal(protocol(), Expression::Number(PROTOCOL_LLC.into())),
            jump(ENCAPSULATED),
        ],
        vec![
            equal(protocol(), text("ip6")),
            Statement::Goto(JumpTarget { target: V6.into() }),
        ],
        vec![unequal(protocol(), text("ip")), RETURN],
        // IPv4 tells its protocol even where a length is wrong.
        vec![
            unequal(field("ip", "protocol"), any_word(&["tcp", "ah"])),
            RETURN,
        ],
        // Later fragments have no port; one at offset 1 could rewrite the flags.
        vec![at_least(offset, 2), RETURN],
        vec![
            equal(meta(MetaKey::L4proto), text("tcp")),
            unequal(field("tcp", "dport"), ports(guard)),
            RETURN,
        ],
        vec![
            equal(meta(MetaKey::L4proto), text("ah")),
            Statement::Goto(JumpTarget {
                target: AUTHENTICATED.into(),
            }),
        ],
        verdict(guard, Vec::new()),
    ]
}

/// IPv6, read at fixed places: before a bridge has looked at it, its header may lie where the kernel's
/// own walk (`ipv6_find_hdr`), on which everything else rests that nft offers, does not find it, and
/// that walk ends at headers behind which TCP may follow. One extension header is looked behind; more
/// are for the program.
fn v6(guard: &Guard) -> Vec<Vec<Statement<'static>>> {
    const BEHIND: u32 = IPV6_HEADER * 8;
    const BEHIND_FRAGMENT: u32 = BEHIND + 64;
    let next = |at| raw(PayloadBase::NH, at, 8);
    let first = || next(IPV6_NEXT);
    let second = || next(BEHIND);
    let port = |header| raw(PayloadBase::NH, header + 16, 16);
    let offset = || and(raw(PayloadBase::NH, BEHIND + 16, 16), IPV6_FRAGMENT_OFFSET);
    let tcp = || Expression::Number(PROTOCOL_TCP);
    let fragment = || Expression::Number(PROTOCOL_FRAGMENT);
    let tcp_or_header = || {
        let numbers = EXTENSIONS.into_iter().chain([PROTOCOL_TCP as u16]);
        any_of(&numbers.collect::<Vec<u16>>())
    };
    let mut rules = vec![
        vec![unequal(first(), tcp_or_header()), RETURN],
        vec![
            equal(first(), tcp()),
            unequal(port(BEHIND), ports(guard)),
            RETURN,
        ],
        vec![
            unequal(first(), tcp()),
            unequal(second(), tcp_or_header()),
            RETURN,
        ],
        // Later fragments have no port; one at offset 1 could rewrite the flags.
        vec![
            equal(first(), fragment()),
            at_least(offset(), 2 << 3),
            RETURN,
        ],
        vec![
            equal(first(), fragment()),
            equal(offset(), Expression::Number(0)),
            equal(second(), tcp()),
            unequal(port(BEHIND_FRAGMENT), ports(guard)),
            RETURN,
        ],
    ];
    rules.extend((0..=LONGEST_OPTIONS).map(|length| {
        vec![
            equal(first(), any_of(&EXTENSIONS_OF_OPTIONS)),
            equal(second(), tcp()),
            equal(next(BEHIND + 8), Expression::Number(length)),
            unequal(port(BEHIND + (length + 1) * 64), ports(guard)),
            RETURN,
        ]
    }));
    rules.push(verdict(guard, Vec::new()));
    rules
}

/// The program has judged the packet: the bit is of no further use.
fn marked(guard: &Guard) -> Vec<Statement<'static>> {
    let bit = guard.mark.get();
    vec![
        equal(and(meta(MetaKey::Mark), bit), Expression::Number(bit)),
        Statement::Mangle(Mangle {
            key: meta(MetaKey::Mark),
            value: and(meta(MetaKey::Mark), !bit),
        }),
        RETURN,
    ]
}

/// Frames with an LLC header: those with IP, or a tag, behind a SNAP header.
fn encapsulated(guard: &Guard) -> Vec<Vec<Statement<'static>>> {
    let hidden = ETHERTYPES_OF_IP.iter().chain(&ETHERTYPES_OF_TAGS);
    let mut rules: Vec<_> = hidden
        .map(|ethertype| {
            let found = equal(raw(PayloadBase::NH, SNAP_ETHERTYPE, 16), number(*ethertype));
            verdict(guard, vec![found])
        })
        .collect();
    rules.push(vec![RETURN]);
    rules
}

/// Packets with an authentication header (RFC 4302), which is where the TCP header should be.
/// What is neither TCP nor another such header is let go.
fn authenticated(guard: &Guard) -> Vec<Vec<Statement<'static>>> {
    let next = || raw(PayloadBase::TH, 0, 8);
    let words = raw(PayloadBase::TH, 8, 8);
    let mut rules = vec![
        vec![
            unequal(
                next(),
                Expression::Named(NamedExpression::Set(vec![
                    SetItem::Element(Expression::Number(PROTOCOL_TCP)),
                    SetItem::Element(Expression::Number(PROTOCOL_AH)),
                ])),
            ),
            RETURN,
        ],
        verdict(guard, vec![equal(next(), Expression::Number(PROTOCOL_AH))]),
    ];
    rules.extend((1..=LONGEST_AH).map(|length| {
        let port = raw(PayloadBase::TH, (length + 2) * 32 + 16, 16);
        vec![
            equal(words.clone(), Expression::Number(length)),
            unequal(port, ports(guard)),
            RETURN,
        ]
    }));
    rules.push(verdict(guard, Vec::new()));
    rules
}

/// Stops, or on a host that only observes counts, what `matches`.
fn verdict(guard: &Guard, matches: Vec<Statement<'static>>) -> Vec<Statement<'static>> {
    let mut rule = matches;
    rule.push(Statement::Counter(Counter::Anonymous(Some(
        AnonymousCounter::default(),
    ))));
    rule.push(match guard.mode {
        HostMode::Policy => Statement::Drop(None),
        HostMode::Observe => Statement::Accept(None),
    });
    rule
}

fn ports(guard: &Guard) -> Expression<'static> {
    any_of(&guard.ports)
}

fn any_of(numbers: &[u16]) -> Expression<'static> {
    let numbers = numbers.iter().map(|one| SetItem::Element(number(*one)));
    Expression::Named(NamedExpression::Set(numbers.collect()))
}

fn any_word(words: &[&'static str]) -> Expression<'static> {
    let words = words.iter().map(|word| SetItem::Element(text(word)));
    Expression::Named(NamedExpression::Set(words.collect()))
}

fn number(number: u16) -> Expression<'static> {
    Expression::Number(number.into())
}

fn text(text: &str) -> Expression<'static> {
    Expression::String(text.to_owned().into())
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(
        PayloadField {
            protocol: protocol.into(),
            field: field.into(),
        },
    )))
}

fn raw(base: PayloadBase, offset: u32, len: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw {
        base,
        offset,
        len,
    })))
}

fn and(value: Expression<'static>, mask: u32) -> Expression<'static> {
    let mask = Expression::Number(mask);
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(value, mask)))
}

fn equal(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(Operator::EQ, left, right)
}

fn unequal(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(Operator::NEQ, left, right)
}

/// `GEQ`, since the crate writes `GT` as `<`.
fn at_least(left: Expression<'static>, right: u32) -> Statement<'static> {
    compare(Operator::GEQ, left, Expression::Number(right))
}

fn compare(
    op: Operator,
    left: Expression<'static>,
    right: Expression<'static>,
) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn jump(target: &'static str) -> Statement<'static> {
    Statement::Jump(JumpTarget {
        target: target.into(),
    })
}

const RETURN: Statement<'static> = Statement::Return(None);
