//! Whether tables are still as they were written. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What was written into tables, as the kernel has numbered it: whoever replaces something gets
/// another number. The elements of sets have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    objects: BTreeMap<Object, Traits>,
    /// By chain.
    rules: BTreeMap<Object, Rules>,
}

/// The rules of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rules {
    numbers: BTreeSet<u64>,
    /// How many there are besides, whose numbers were not told.
    untold: usize,
}

/// A table, chain, set or map by its full name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Object {
    family: String,
    table: String,
    kind: Kind,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Table,
    Chain,
    Set,
    Map,
}

/// What must not change of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Traits {
    /// `None` where it was not told.
    number: Option<u64>,
    /// A table that somebody has put to sleep has flags; a chain may let pass or not.
    others: Vec<Value>,
}

impl Signature {
    /// What is in tables, as nft has listed each.
    pub fn listed<'a>(listings: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut signature = Self::default();
        for (kind, object) in listings.into_iter().flat_map(objects) {
            signature.add(kind, object);
        }
        signature
    }

    /// The tables alone, without anything in them.
    #[must_use]
    pub fn tables(&self) -> Self {
        let objects = self.objects.iter();
        let tables = objects.filter(|(it, _)| it.kind == Kind::Table);
        Self {
            objects: tables
                .map(|(it, traits)| (it.clone(), traits.clone()))
                .collect(),
            rules: BTreeMap::new(),
        }
    }

    /// Follows commands that were carried out, with the numbers that nft has told, if it has.
    pub fn follow(&mut self, commands: &Value) {
        for (verb, command) in objects(commands) {
            for (kind, object) in command.as_object().into_iter().flatten() {
                match verb {
                    "add" => self.add(kind, object),
                    "flush" => self.flush(kind, object),
                    "delete" => self.delete(kind, object),
                    _ => {}
                }
            }
        }
    }

    /// Whether all of it is `there`, and no rule besides in its chains. What others have added
    /// around it changes nothing.
    #[must_use]
    pub fn is_intact(&self, there: &Self) -> bool {
        self.objects.iter().all(|(object, traits)| {
            let found = there.objects.get(object);
            found.is_some_and(|found| traits.agree(found))
                && self.rules_of(object).agree(&there.rules_of(object))
        })
    }

    /// Takes the numbers that were not told from what is `there`, which was found intact.
    pub fn learn(&mut self, there: &Self) {
        for (object, traits) in &mut self.objects {
            if let Some(found) = there.objects.get(object) {
                traits.clone_from(found);
            }
        }
        for (chain, rules) in &mut self.rules {
            *rules = there.rules_of(chain);
        }
    }

    fn rules_of(&self, chain: &Object) -> Rules {
        self.rules.get(chain).cloned().unwrap_or_default()
    }

    fn add(&mut self, kind: &str, object: &Value) {
        let number = object["handle"].as_u64();
        if kind == "rule" {
            let chain = Object::new(Kind::Chain, object, &object["chain"]);
            let rules = self.rules.entry(chain).or_default();
            match number {
                Some(number) => drop(rules.numbers.insert(number)),
                None => rules.untold += 1,
            }
            return;
        }
        let Some(kind) = Kind::of(kind) else {
            return;
        };
        if kind == Kind::Table && number.is_some() {
            // Of a table that was there before, nft does not tell it.
            self.forget_table(object);
        }
        let key = Object::new(kind, object, &object["name"]);
        let known = self.objects.get(&key).and_then(|it| it.number);
        let others = kind.traits().iter().map(|it| object[*it].clone());
        let traits = Traits {
            number: number.or(known),
            others: others.collect(),
        };
        self.objects.insert(key, traits);
    }

    fn flush(&mut self, kind: &str, object: &Value) {
        match Kind::of(kind) {
            Some(Kind::Table) => self.rules.retain(|chain, _| !chain.is_in(object)),
            Some(Kind::Chain) => {
                let chain = Object::new(Kind::Chain, object, &object["name"]);
                self.rules.remove(&chain);
            }
            // Of sets, their elements.
            Some(Kind::Set | Kind::Map) | None => {}
        }
    }

    fn delete(&mut self, kind: &str, object: &Value) {
        match Kind::of(kind) {
            Some(Kind::Table) => self.forget_table(object),
            Some(kind @ (Kind::Chain | Kind::Set | Kind::Map)) => {
                let key = Object::new(kind, object, &object["name"]);
                self.objects.remove(&key);
                self.rules.remove(&key);
            }
            None => {}
        }
    }

    fn forget_table(&mut self, table: &Value) {
        self.objects.retain(|it, _| !it.is_in(table));
        self.rules.retain(|it, _| !it.is_in(table));
    }
}

impl Traits {
    fn agree(&self, found: &Self) -> bool {
        let is_numbered = self.number.is_none() || self.number == found.number;
        is_numbered && self.others == found.others
    }
}

impl Rules {
    fn agree(&self, found: &Self) -> bool {
        self.numbers.is_subset(&found.numbers)
            && self.numbers.len() + self.untold == found.numbers.len() + found.untold
    }
}

impl Object {
    fn new(kind: Kind, object: &Value, name: &Value) -> Self {
        let word = |word: &Value| word.as_str().unwrap_or_default().to_owned();
        let table = match kind {
            Kind::Table => &object["name"],
            Kind::Chain | Kind::Set | Kind::Map => &object["table"],
        };
        Self {
            family: word(&object["family"]),
            table: word(table),
            kind,
            name: word(name),
        }
    }

    fn is_in(&self, table: &Value) -> bool {
        table["family"] == *self.family && table["name"] == *self.table
    }
}

impl Kind {
    fn of(word: &str) -> Option<Self> {
        match word {
            "table" => Some(Self::Table),
            "chain" => Some(Self::Chain),
            "set" => Some(Self::Set),
            "map" => Some(Self::Map),
            _ => None,
        }
    }

    /// What others can change without giving it another number.
    fn traits(self) -> &'static [&'static str] {
        match self {
            Self::Table => &["flags"],
            Self::Chain => &["type", "hook", "prio", "policy"],
            Self::Set | Self::Map => &[],
        }
    }
}

/// What a listing, or commands, consist of.
fn objects(text: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let items = text["nftables"].as_array().into_iter().flatten();
    let pairs = items.filter_map(Value::as_object).flatten();
    pairs.map(|(word, value)| (word.as_str(), value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(handle: u64) -> Value {
        json!({"table": {"family": "inet", "name": "ours", "handle": handle}})
    }

    fn chain(name: &str, handle: u64) -> Value {
        json!({"chain": {"family": "inet", "table": "ours", "name": name, "handle": handle}})
    }

    fn rule(chain: &str, handle: u64) -> Value {
        json!({"rule": {"family": "inet", "table": "ours", "chain": chain, "handle": handle}})
    }

    fn listed(objects: &[Value]) -> Signature {
        Signature::listed([&json!({"nftables": objects})])
    }

    fn added(objects: &[Value]) -> Value {
        let commands: Vec<Value> = objects.iter().map(|it| json!({"add": it})).collect();
        json!({"nftables": commands})
    }

    /// What was written, and what nft lists of it.
    fn written() -> (Signature, Vec<Value>) {
        let objects = vec![
            table(1),
            chain("c", 1),
            chain("d", 2),
            rule("c", 3),
            rule("c", 4),
        ];
        let mut signature = Signature::default();
        signature.follow(&added(&objects));
        (signature, objects)
    }

    #[test]
    fn what_was_written_is_intact_with_the_additions_of_others() {
        let (signature, mut there) = written();
        assert!(signature.is_intact(&listed(&there)));
        there.extend([chain("theirs", 9), rule("theirs", 10)]);
        there.push(
            json!({"counter": {"family": "inet", "table": "ours", "name": "n", "handle": 11}}),
        );
        assert!(signature.is_intact(&listed(&there)));
    }

    #[test]
    fn what_others_change_is_seen() {
        let (signature, there) = written();
        let without = |at: usize| {
            let mut there = there.clone();
            there.remove(at);
            there
        };
        let with = |object: Value| [there.clone(), vec![object]].concat();
        for (change, there) in [
            ("no table", Vec::new()),
            ("a chain is gone", without(2)),
            ("a rule is gone", without(4)),
            ("a rule more", with(rule("d", 5))),
            ("a rule instead", [without(4), vec![rule("c", 5)]].concat()),
            ("a chain made again", with(chain("d", 7))),
            ("a table made again", with(table(2))),
            (
                "a table asleep",
                with(
                    json!({"table": {"family": "inet", "name": "ours", "handle": 1, "flags": "dormant"}}),
                ),
            ),
            (
                "a chain with a policy",
                with(json!({"chain": {
                    "family": "inet", "table": "ours", "name": "d", "handle": 2, "policy": "drop",
                }})),
            ),
        ] {
            assert!(!signature.is_intact(&listed(&there)), "{change}");
        }
    }

    #[test]
    fn commands_are_followed_as_they_are_told() {
        let (mut signature, _) = written();
        let told = json!({"nftables": [
            // There before: its number is not told.
            {"add": {"table": {"family": "inet", "name": "ours"}}},
            {"flush": {"chain": {"family": "inet", "table": "ours", "name": "c"}}},
            {"add": rule("c", 5)},
            {"add": chain("d", 2)},
            {"delete": {"chain": {"family": "inet", "table": "ours", "name": "d"}}},
            {"add": {"element": {"family": "inet", "table": "ours", "name": "s", "elem": [1]}}},
        ]});
        signature.follow(&told);
        assert_eq!(signature, listed(&[table(1), chain("c", 1), rule("c", 5)]));
        let told = json!({"nftables": [
            {"delete": {"table": {"family": "inet", "name": "ours"}}},
            {"add": table(2)},
        ]});
        signature.follow(&told);
        assert_eq!(signature, listed(&[table(2)]));
    }

    #[test]
    fn what_is_not_told_is_counted_and_learned_when_it_is_seen() {
        let bare = |mut object: Value| {
            for traits in object.as_object_mut().unwrap().values_mut() {
                traits.as_object_mut().unwrap().remove("handle");
            }
            object
        };
        let (_, there) = written();
        let mut signature = Signature::default();
        let untold: Vec<Value> = there.iter().cloned().map(bare).collect();
        signature.follow(&added(&untold));
        let with = |object: Value| listed(&[there.clone(), vec![object]].concat());
        assert!(!signature.is_intact(&with(rule("d", 9))), "a rule more");
        assert!(!signature.is_intact(&listed(&there[..4])), "a rule less");
        let other = [&there[..4], &[rule("c", 9)]].concat();
        assert!(signature.is_intact(&listed(&other)));
        signature.learn(&with(chain("theirs", 9)));
        assert_eq!(signature, listed(&there));
        // A chain that was there keeps its number.
        signature.follow(&added(&[bare(chain("d", 2)), bare(rule("d", 7))]));
        assert!(signature.is_intact(&with(rule("d", 7))));
        assert!(!signature.is_intact(&listed(&there)));
    }
}
