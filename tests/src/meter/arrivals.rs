//! What arrives at a server, by who sent it and to which port.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    NetNs, poll,
    tenant::packets::{CRAFTED_WINDOW, SEQUENCE},
};

/// Ports that the meter's sources send to.
pub(super) const PORTS: [u16; 2] = [25, 587];
/// Nothing has come for so long: nothing is on its way.
const QUIET: Duration = Duration::from_millis(60);
const LIMIT: Duration = Duration::from_secs(10);
const SETS: [(&str, Kind); 4] = [
    ("syns4", Kind::Syn),
    ("syns6", Kind::Syn),
    ("others4", Kind::Other),
    ("others6", Kind::Other),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Syn,
    Other,
}

/// Packets by their source and destination port.
pub(super) type Counts = BTreeMap<(IpAddr, u16), Packets>;

/// Packets to the ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Packets {
    /// Those that ask for a connection.
    pub(super) syns: u64,
    /// All others.
    pub(super) others: u64,
}

impl Packets {
    pub(super) fn all(self) -> u64 {
        let Self { syns, others } = self;
        syns + others
    }
}

/// Counts in a namespace before anything there judges, and lets no made-up packet be answered.
#[derive(Debug)]
pub(super) struct Arrivals {
    ns: NetNs,
}

impl Arrivals {
    pub(super) fn start(ns: &NetNs) -> anyhow::Result<Self> {
        let [first, second] = PORTS;
        let mut sets = String::new();
        let mut rules = String::new();
        for (set, kind) in SETS {
            let family = if set.ends_with('4') { "ip" } else { "ip6" };
            let which = match kind {
                Kind::Syn => "==",
                Kind::Other => "!=",
            };
            sets.push_str(&format!(
                "set {set} {{ typeof {family} saddr . tcp dport; size 4096; flags dynamic; }}\n"
            ));
            rules.push_str(&format!(
                "tcp flags & (syn|ack) {which} syn add @{set} {{ {family} saddr . tcp dport counter }}\n"
            ));
        }
        let table = format!(
            "table inet arrivals {{\n{sets}chain arrive {{ type filter hook prerouting priority -400;\n\
             tcp dport != {{ {first}, {second} }} accept\n{rules}\
             tcp window {CRAFTED_WINDOW} tcp sequence {SEQUENCE} drop\n}}\n}}"
        );
        ns.exec("nft", &[&table])?;
        Ok(Self { ns: ns.clone() })
    }

    pub(super) fn read(&self) -> anyhow::Result<Counts> {
        let text = self.ns.exec("nft", &["list table inet arrivals"])?;
        let mut counts = Counts::new();
        for (set, kind) in SETS {
            let elements = elements(&text, set);
            for element in elements {
                let (key, packets) =
                    parse(element).with_context(|| format!("no count of {set} in {element:?}"))?;
                let place = counts.entry(key).or_default();
                match kind {
                    Kind::Syn => place.syns += packets,
                    Kind::Other => place.others += packets,
                }
            }
        }
        Ok(counts)
    }

    /// The counts once nothing more comes.
    pub(super) fn settled(&self) -> anyhow::Result<Counts> {
        let mut last = (self.read()?, Instant::now());
        poll("packets to end", LIMIT, || {
            let now = self.read()?;
            if now != last.0 {
                last = (now.clone(), Instant::now());
            }
            Ok((last.1.elapsed() > QUIET).then_some(now))
        })
    }
}

/// The elements of a set in a table's listing.
fn elements<'a>(table: &'a str, set: &str) -> Vec<&'a str> {
    let name = format!("set {set} {{");
    let body = table.split_once(&name).map(|(_, rest)| rest);
    // Sets without elements have none of the line: it must not be the next one's.
    let body = body.and_then(|rest| rest.split("\tset ").next());
    let listed = body.and_then(|body| body.split_once("elements = {"));
    let listed = listed.and_then(|(_, rest)| rest.split('}').next());
    listed.map_or_else(Vec::new, |text| text.split(',').collect())
}

/// Reads `198.51.100.7 . 25 counter packets 3 bytes 180`.
fn parse(element: &str) -> Option<((IpAddr, u16), u64)> {
    let words: Vec<&str> = element.split_whitespace().collect();
    let [address, ".", port, "counter", "packets", packets, ..] = words.as_slice() else {
        return None;
    };
    let key = (address.parse().ok()?, port.parse().ok()?);
    Some((key, packets.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_an_empty_set_are_not_the_next_ones() {
        let table = "table inet arrivals {\n\tset syns4 {\n\t\tsize 4096\n\t}\n\n\tset syns6 {\n\t\telements = { ::1 . 25 counter packets 3 bytes 240,\n\t\t\t ::2 . 587 counter packets 4 bytes 1 }\n\t}\n}\n";
        assert!(elements(table, "syns4").is_empty());
        let found: Vec<_> = elements(table, "syns6").into_iter().map(parse).collect();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(
            found,
            [
                Some(((address("::1"), 25), 3)),
                Some(((address("::2"), 587), 4))
            ]
        );
    }
}
