//! The language of nftables, as nft takes and tells it in JSON (libnftables-json(5)). Pure.
//!
//! No crate's types for it cover what is needed here: sets of interfaces and of protocols, counters
//! beyond 32 bits, and rules of others that nobody has thought of.

pub(crate) mod expression;
mod signature;

use std::fmt;

use serde_json::{Value, json};

use expression::Rule;

pub use signature::Signature;

/// The order of our base chains: before connection tracking, defragmentation and everybody's own.
pub(crate) const PRIORITY: i32 = -450;

/// What a table's chains are called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Packets that are routed or for the host.
    Inet,
    /// Frames that are bridged.
    Bridge,
    /// What an interface receives.
    Netdev,
}

impl Family {
    /// nft's word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

/// A table's full name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name within the family.
    pub name: &'static str,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.as_str(), self.name)
    }
}

/// Commands that are carried out in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Commands {
    /// What the next ones are about.
    table: Table,
    list: Vec<Value>,
}

impl Commands {
    /// None yet; those that are added are about `table`.
    #[must_use]
    pub fn of(table: Table) -> Self {
        Self {
            table,
            list: Vec::new(),
        }
    }

    /// As nft takes them.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"nftables": self.list})
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Does `other` afterwards, in the same transaction.
    pub fn append(&mut self, other: Self) {
        self.list.extend(other.list);
    }

    pub(crate) fn command(&mut self, verb: &str, kind: &str, mut object: Value) {
        let Table { family, name } = self.table;
        object["family"] = json!(family.as_str());
        if kind == "table" {
            object["name"] = json!(name);
        } else {
            object["table"] = json!(name);
        }
        self.list.push(json!({verb: {kind: object}}));
    }

    pub(crate) fn named(&mut self, verb: &str, kind: &str, name: &str) {
        self.command(verb, kind, json!({"name": name}));
    }

    pub(crate) fn rules(&mut self, chain: &str, rules: Vec<Rule>) {
        for rule in rules {
            self.command("add", "rule", json!({"chain": chain, "expr": rule}));
        }
    }

    /// Makes the table, unless there is one.
    pub(crate) fn make_table(&mut self) {
        self.command("add", "table", json!({}));
    }

    /// Takes the table away, whether there is one or not: what is not there cannot be deleted.
    pub(crate) fn remove_table(&mut self) {
        self.make_table();
        self.command("delete", "table", json!({}));
    }
}
