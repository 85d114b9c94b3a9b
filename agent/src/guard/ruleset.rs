//! The guard's rules. Pure.

use gate25_common::decide::HostMode;
use gate25_common::packet::{ETHERTYPES_OF_TAGS, PROTOCOL_LLC};
use serde_json::{Value, json};

use super::Guard;
use crate::netfilter::expression::{
    self, AUTHENTICATION, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_OFFSET, Rule, TCP, accept, and,
    any_of, any_word, at_least, count, discard, equal, field, goto, jump, leave, meta, network,
    unequal, unmark,
};
use crate::netfilter::{Commands, Family, PRIORITY, Table};

/// The guard's tables: for packets that are routed or for the host, and for frames that are bridged.
pub const TABLES: [Table; 2] = [table(Family::Inet), table(Family::Bridge)];
/// What it stopped, or on a host that only observes would have.
pub const COUNTER: &str = "unmarked";

/// Where IP may begin behind an LLC and SNAP header, whose last two bytes say so.
const SNAP_ETHERTYPE: u32 = 48;

const ENTRY: &str = "prerouting";
const GUEST: &str = "guest";
const ENCAPSULATED: &str = "encapsulated";
const AUTHENTICATED: &str = "authenticated";
const CERTAIN_V6: &str = "certain_v6";
const INNER: [&str; 4] = [AUTHENTICATED, ENCAPSULATED, CERTAIN_V6, GUEST];

const FRAGMENT: u16 = 44;
const IPV6_HEADER: u32 = 40;
/// Where an IPv6 header tells the next one, in bits.
const IPV6_NEXT: u32 = 48;
const IPV6_FRAGMENT_OFFSET: u32 = 0xfff8;
/// IPv6 headers behind which TCP may follow, and TCP.
const TCP_OR_EXTENSION: [u16; 9] = [0, 43, FRAGMENT, AUTHENTICATION, 60, 135, 139, 140, TCP];
/// Those of them that a guest's ordinary TCP may have, with their length in the second byte.
const EXTENSIONS_OF_OPTIONS: [u16; 3] = [0, 43, 60];
/// Longest of these that is looked behind, in units of 8 bytes beyond the first.
const LONGEST_OPTIONS: u32 = 7;

const fn table(family: Family) -> Table {
    Table {
        family,
        name: "gate25_guard",
    }
}

/// The chains stay while their rules change at once. Were they exchanged too, the kernel would have
/// both guards hooked for a moment: the old one takes the bit off, and the new one stops the packet.
pub(super) fn commands(guard: &Guard) -> Commands {
    in_all(|commands| fill(commands, guard))
}

pub(super) fn replacement(guard: &Guard) -> Commands {
    in_all(|commands| {
        commands.remove_table();
        fill(commands, guard);
    })
}

pub(super) fn removal() -> Commands {
    in_all(Commands::remove_table)
}

fn in_all(add: impl Fn(&mut Commands)) -> Commands {
    let [first, second] = TABLES.map(|table| {
        let mut commands = Commands::of(table);
        add(&mut commands);
        commands
    });
    let mut all = first;
    all.append(second);
    all
}

/// Whether a table of the guard's name is somebody else's: it has other base chains, or what the
/// guard calls its own is hooked elsewhere.
pub(super) fn is_foreign(listing: &Value) -> bool {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let mut chains = objects.filter_map(|object| object.get("chain"));
    chains.any(|chain| {
        let is_base = chain.get("hook").is_some();
        if chain["name"] == ENTRY {
            let own = entry();
            ["type", "hook", "prio"]
                .iter()
                .any(|it| chain[*it] != own[*it])
        } else {
            is_base
        }
    })
}

fn fill(commands: &mut Commands, guard: &Guard) {
    commands.make_table();
    commands.named("add", "counter", COUNTER);
    for chain in INNER {
        commands.named("add", "chain", chain);
        commands.named("flush", "chain", chain);
    }
    commands.command("add", "chain", entry());
    commands.named("flush", "chain", ENTRY);
    let authenticated = expression::authenticated(&ports(guard), &leave(), &stop(guard));
    commands.rules(AUTHENTICATED, authenticated);
    commands.rules(ENCAPSULATED, encapsulated(guard));
    commands.rules(CERTAIN_V6, certain_v6(guard));
    commands.rules(GUEST, guest(guard));
    commands.rules(ENTRY, entry_rules(guard));
}

fn entry() -> Value {
    json!({
        "name": ENTRY, "type": "filter", "hook": "prerouting", "prio": PRIORITY, "policy": "accept",
    })
}

/// What needs no look goes first, by whatever interface it came, since that is almost everything: what
/// a program has judged, then what is certainly not guarded. Only what is left is worth a look at the
/// interface's name.
fn entry_rules(guard: &Guard) -> Vec<Rule> {
    let named = |name: &String, then| vec![equal(meta("iifname"), name.as_str()), then];
    let others = guard.others.iter().map(|name| named(name, leave()));
    let guests = guard.guests.iter().map(|name| named(name, jump(GUEST)));
    let mut rules = vec![marked(guard)];
    rules.extend(certain_v4(guard));
    rules.push(vec![equal(meta("protocol"), "ip6"), jump(CERTAIN_V6)]);
    rules.extend(others.chain(guests));
    rules
}

/// A program has judged the packet, by whatever interface it came: the bit is of no further use, and
/// nobody else's rules should see it.
fn marked(guard: &Guard) -> Rule {
    let bit = guard.mark.get();
    vec![equal(and(&meta("mark"), bit), bit), unmark(bit), accept()]
}

/// IPv4 that is certainly not guarded. What cannot be told of a packet ends its rule, and the packet
/// goes on to the next.
fn certain_v4(guard: &Guard) -> [Rule; 3] {
    let v4 = || equal(meta("protocol"), "ip");
    let offset = and(&field("ip", "frag-off"), FRAGMENT_OFFSET);
    [
        vec![
            v4(),
            equal(meta("l4proto"), "tcp"),
            unequal(field("tcp", "dport"), ports(guard)),
            accept(),
        ],
        // IPv4 tells its protocol even where a length is wrong.
        vec![
            v4(),
            unequal(field("ip", "protocol"), any_word(&["tcp", "ah"])),
            accept(),
        ],
        // Later fragments have no port; one at offset 1 could rewrite the flags.
        vec![v4(), at_least(offset, 2), accept()],
    ]
}

/// What a guest sent and is not certainly another's.
fn guest(guard: &Guard) -> Vec<Rule> {
    let protocol = || meta("protocol");
    vec![
        stop_if(guard, equal(protocol(), any_of(ETHERTYPES_OF_TAGS))),
        vec![equal(protocol(), PROTOCOL_LLC), goto(ENCAPSULATED)],
        stop_if(guard, equal(protocol(), "ip6")),
        vec![unequal(protocol(), "ip"), leave()],
        vec![equal(meta("l4proto"), "ah"), goto(AUTHENTICATED)],
        stop(guard),
    ]
}

/// IPv6 that is certainly not guarded, read at fixed places: before a bridge has looked at it, its
/// header may lie where the kernel's own walk (`ipv6_find_hdr`), on which everything else rests that
/// nft offers, does not find it, and that walk ends at headers behind which TCP may follow. One
/// extension header is looked behind; more are for the program.
fn certain_v6(guard: &Guard) -> Vec<Rule> {
    const BEHIND: u32 = IPV6_HEADER * 8;
    const BEHIND_FRAGMENT: u32 = BEHIND + 64;
    let first = || network(IPV6_NEXT, 8);
    let second = || network(BEHIND, 8);
    let other_port = |header| unequal(network(header + 16, 16), ports(guard));
    let offset = || and(&network(BEHIND + 16, 16), IPV6_FRAGMENT_OFFSET);
    let mut rules = vec![
        vec![equal(first(), TCP), other_port(BEHIND), accept()],
        vec![unequal(first(), any_of(TCP_OR_EXTENSION)), accept()],
        vec![
            unequal(first(), TCP),
            unequal(second(), any_of(TCP_OR_EXTENSION)),
            accept(),
        ],
        // Later fragments have no port; one at offset 1 could rewrite the flags.
        vec![
            equal(first(), FRAGMENT),
            at_least(offset(), 2 << 3),
            accept(),
        ],
        vec![
            equal(first(), FRAGMENT),
            equal(offset(), 0),
            equal(second(), TCP),
            other_port(BEHIND_FRAGMENT),
            accept(),
        ],
    ];
    rules.extend((0..=LONGEST_OPTIONS).map(|length| {
        vec![
            equal(first(), any_of(EXTENSIONS_OF_OPTIONS)),
            equal(second(), TCP),
            equal(network(BEHIND + 8, 8), length),
            other_port(BEHIND + (length + 1) * 64),
            accept(),
        ]
    }));
    rules
}

/// Frames with an LLC header: those with IP, or a tag, behind a SNAP header.
fn encapsulated(guard: &Guard) -> Vec<Rule> {
    let hidden = [ETHERTYPE_IPV4, ETHERTYPE_IPV6].into_iter();
    let hidden = hidden.chain(ETHERTYPES_OF_TAGS);
    let mut rules: Vec<Rule> = hidden
        .map(|it| stop_if(guard, equal(network(SNAP_ETHERTYPE, 16), it)))
        .collect();
    rules.push(vec![leave()]);
    rules
}

fn stop_if(guard: &Guard, condition: Value) -> Rule {
    [vec![condition], stop(guard)].concat()
}

/// Stops, or on a host that only observes counts.
fn stop(guard: &Guard) -> Rule {
    let then = match guard.mode {
        HostMode::Policy => discard(),
        HostMode::Observe => accept(),
    };
    vec![count(COUNTER), then]
}

fn ports(guard: &Guard) -> Value {
    any_of(guard.ports.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(chain: &Value) -> Value {
        json!({"nftables": [{"metainfo": {}}, {"chain": chain}]})
    }

    #[test]
    fn table_with_other_base_chains_is_somebody_elses() {
        let inner = json!({"name": GUEST});
        let with = |mut chain: Value, key: &str, value: Value| {
            chain[key] = value;
            chain
        };
        for (chain, is_foreign) in [
            (entry(), false),
            (inner.clone(), false),
            (json!({"name": "theirs"}), false),
            (with(entry(), "policy", json!("drop")), false),
            (with(entry(), "hook", json!("input")), true),
            (with(entry(), "prio", json!(0)), true),
            (json!({"name": ENTRY}), true),
            (with(inner, "hook", json!("input")), true),
            (with(entry(), "name", json!("theirs")), true),
        ] {
            assert_eq!(super::is_foreign(&listed(&chain)), is_foreign, "{chain}");
        }
    }
}
