//! A policy of a given size, in the language of each contender.

use std::fmt::Write as _;

use gate25_common::abi::CustomerId;

/// The relays, open to everybody.
pub(crate) const RELAYS: [&str; 2] = ["192.0.2.25", "192.0.2.26"];
/// Files that customers are spread over.
const FILES: usize = 100;
/// The customer whose packets are measured is in the middle of a list.
const MIDDLE: usize = 2;

/// How many customers, and how many prefixes each has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scale {
    pub(crate) customers: usize,
    pub(crate) prefixes: usize,
}

/// An IPv4 prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) address: [u8; 4],
    pub(crate) length: u8,
}

/// Where a customer's guests are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Guests<'a> {
    /// Behind interfaces.
    Interfaces,
    /// In control groups below this one too.
    Groups(&'a str),
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d] = self.address;
        write!(out, "{a}.{b}.{c}.{d}")?;
        match self.length {
            32 => Ok(()),
            length => write!(out, "/{length}"),
        }
    }
}

impl Scale {
    /// The largest: what the targets speak of.
    pub(crate) const FULL: Self = Self {
        customers: 10_000,
        prefixes: 10,
    };

    pub(crate) const fn new(customers: usize, prefixes: usize) -> Self {
        Self {
            customers,
            prefixes,
        }
    }

    /// All prefixes together.
    pub(crate) const fn total(self) -> usize {
        self.customers * self.prefixes
    }

    /// The customer whose guest sends the packets that are measured.
    pub(crate) const fn measured(self) -> usize {
        self.customers / MIDDLE
    }

    /// A customer's prefixes: most of them single addresses, each within 32 addresses that nobody
    /// else has.
    pub(crate) fn prefixes(self, customer: usize) -> impl Iterator<Item = Prefix> {
        let first = customer * self.prefixes;
        (first..first + self.prefixes).map(|number| {
            let [_, b, c, d] = ((number as u32) << 5).to_be_bytes();
            let length = match number % 10 {
                0..6 => 32,
                6 | 7 => 29,
                8 => 28,
                _ => 27,
            };
            Prefix {
                address: [10, b, c, d],
                length,
            }
        })
    }

    /// Policy files: name and text.
    pub(crate) fn files(self, guests: Guests<'_>) -> Vec<(String, String)> {
        let base = format!(
            "schema: 1\nallowlists:\n  - {{name: relays, to: [{}]}}\nprofiles:\n  - {{name: default, mode: enforce, blocked: drop, allow: [relays]}}\n",
            RELAYS.join(", ")
        );
        let mut files = vec![("00-base.yaml".to_owned(), base)];
        let share = self.customers.div_ceil(FILES);
        for (number, first) in (0..self.customers).step_by(share).enumerate() {
            let last = (first + share).min(self.customers);
            files.push((
                format!("customers-{number:03}.yaml"),
                self.file(first..last, guests),
            ));
        }
        files
    }

    fn file(self, customers: std::ops::Range<usize>, guests: Guests<'_>) -> String {
        let (mut lists, mut owners) = (String::new(), String::new());
        for customer in customers {
            let prefixes: Vec<_> = self.prefixes(customer).map(|it| it.to_string()).collect();
            let group = match guests {
                Guests::Interfaces => String::new(),
                Guests::Groups(root) => format!(", {{cgroup: \"{root}/{}\"}}", group(customer)),
            };
            // Writing to a String does not fail.
            writeln!(
                lists,
                "  - {{name: l-{customer}, to: [{}]}}",
                prefixes.join(", ")
            )
            .ok();
            writeln!(
                owners,
                "  - {{id: {}, allow: [l-{customer}], workloads: [{{interface: \"{}\"}}{group}]}}",
                id(customer),
                interface(customer),
            )
            .ok();
        }
        format!("schema: 1\nallowlists:\n{lists}customers:\n{owners}")
    }
}

/// A customer's id.
pub(crate) fn id(customer: usize) -> String {
    format!("c-{customer:05}")
}

/// A customer's number in the tables.
pub(crate) fn number(customer: usize) -> u64 {
    CustomerId::from_name(&id(customer)).get()
}

/// The name of a customer's interface.
pub(crate) fn interface(customer: usize) -> String {
    format!("tap{customer}i0")
}

/// The name of a customer's control group.
pub(crate) fn group(customer: usize) -> String {
    format!("guest-{customer}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_all_customers_are_apart() {
        let scale = Scale::new(100, 10);
        let mut blocks: Vec<u32> = (0..100)
            .flat_map(|customer| scale.prefixes(customer))
            .map(|prefix| u32::from_be_bytes(prefix.address) >> 5)
            .collect();
        blocks.dedup();
        assert_eq!(blocks.len(), scale.total());
    }

    #[test]
    fn files_hold_every_customer_once() {
        let files = Scale::new(250, 1).files(Guests::Interfaces);
        assert_eq!(files.len(), 1 + 84);
        let ids = files
            .iter()
            .map(|(_, text)| text.matches("id: c-").count())
            .sum::<usize>();
        assert_eq!(ids, 250);
    }
}
