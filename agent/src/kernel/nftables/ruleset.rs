//! Our table as commands for nft. Pure: the same states give the same commands.

use std::collections::BTreeSet;
use std::sync::Arc;

use gate25_common::abi::{CustomerId, CustomerPolicy, Exemption, InterfaceOwner, SetId};
use gate25_common::address::Family;
use gate25_common::decide::{HostMode, Reason, Verdict};
use gate25_common::packet::{Malformed, Tunnel};
use serde_json::{Value, json};

use super::customers::{exemptions, put_customer, remove_customer, remove_gates};
use super::names::{self, Asked, TABLE};
use super::parse;
use super::prefixes::{Range, addresses};
use crate::compile::Prefix;
use crate::dataplane::{MapImage, Step};
use crate::guard::Mark;
use crate::netfilter::expression::{
    Rule, accept, attempt, count, discard, equal, goto, jump, lookup, mark, meta, reset, unequal,
};
use crate::netfilter::{Commands, PRIORITY};

/// What the rules depend on besides the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Guarded TCP ports.
    pub ports: Vec<u16>,
    /// Whether refusals are carried out at all.
    pub host: HostMode,
    /// The bit by which the guard knows what was judged; `None` without a guard.
    pub guard: Option<Mark>,
    /// How `reject` is carried out.
    pub reject: Reject,
}

/// Moments of a change, in nanoseconds on the boot clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// When it is made up.
    pub now: u64,
    /// When the kernel has it, at the latest. What it gets then holds from then on.
    pub done: u64,
}

/// How a refusal is carried out that is meant to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// By a reset, which the kernel has an option for in this family (`CONFIG_NFT_REJECT_NETDEV`).
    Reset,
    /// Not at all: the packet is dropped.
    Drop,
}

/// What is in our table, whoever put it there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Existing {
    /// Chains by name; those of interfaces are hooked.
    pub chains: BTreeSet<String>,
    /// Sets by name.
    pub sets: BTreeSet<String>,
    /// Maps by name.
    pub maps: BTreeSet<String>,
}

impl Existing {
    /// What nft lists.
    pub(super) fn listed(listing: &Value) -> Self {
        let mut existing = Self::default();
        let objects = listing["nftables"].as_array().into_iter().flatten();
        for (kind, object) in objects.filter_map(Value::as_object).flatten() {
            let names = match kind.as_str() {
                "chain" => &mut existing.chains,
                "set" => &mut existing.sets,
                "map" => &mut existing.maps,
                _ => continue,
            };
            names.extend(object["name"].as_str().map(str::to_owned));
        }
        existing
    }

    /// Whether an agent has made the table.
    pub(super) fn is_ours(&self) -> bool {
        let mut chains = self.chains.iter();
        chains.any(|chain| chain.starts_with(names::MARKER))
    }
}

/// What a packet's policy decides on the way out.
const OUTCOMES: [(Verdict, Reason); 14] = [
    (Verdict::Allow, Reason::Allowlist),
    (Verdict::Allow, Reason::Exemption),
    (Verdict::Observe, Reason::Profile),
    (Verdict::Observe, Reason::Unassigned),
    (Verdict::Observe, Reason::Quarantine),
    (Verdict::Observe, Reason::Malformed),
    (Verdict::Reject, Reason::Profile),
    (Verdict::Reject, Reason::Unassigned),
    (Verdict::Reject, Reason::Quarantine),
    (Verdict::Reject, Reason::Malformed),
    (Verdict::Drop, Reason::Profile),
    (Verdict::Drop, Reason::Unassigned),
    (Verdict::Drop, Reason::Quarantine),
    (Verdict::Drop, Reason::Malformed),
];
const VERDICTS: [Verdict; 4] = [
    Verdict::Allow,
    Verdict::Observe,
    Verdict::Reject,
    Verdict::Drop,
];

/// The part of `image` that concerns what is here: customers who own something, and their sets. A
/// policy serves many hosts.
#[must_use]
pub fn concerning(image: &MapImage) -> MapImage {
    let owners: BTreeSet<CustomerId> = image
        .interfaces
        .values()
        .map(InterfaceOwner::customer)
        .chain([CustomerId::UNASSIGNED])
        .collect();
    let mut part = MapImage {
        interfaces: image.interfaces.clone(),
        ..MapImage::default()
    };
    let here = owners
        .into_iter()
        .filter_map(|id| Some((id, image.customers.get(&id)?)));
    part.customers = here.collect();
    let sets = part.customers.values().flat_map(|policy| {
        let sets: Vec<SetId> = policy.sets().collect();
        sets
    });
    let sets = sets.filter_map(|set| Some((set, Arc::clone(image.sets.get(&set)?))));
    part.sets = Arc::new(sets.collect());
    part
}

/// Puts a whole table in the place of what is there, counters excepted.
#[must_use]
pub fn replacement(
    options: &Options,
    existing: &Existing,
    image: &MapImage,
    times: Times,
) -> Commands {
    let mut commands = Commands::of(TABLE);
    commands.make_table();
    clear(&mut commands, existing);
    commands.command("add", "chain", json!({"name": names::marker()}));
    skeleton(&mut commands, options);
    for chain in existing.chains.iter().filter(|name| is_hooked(name)) {
        commands.rules(chain, vec![vec![jump(names::GUEST)]]);
    }
    for (id, prefixes) in &*image.sets {
        add_set(&mut commands, *id, prefixes);
    }
    for (id, policy) in image.customers.iter() {
        put_customer(&mut commands, options, (id, &policy), image, times);
    }
    for (index, owner) in &image.interfaces {
        put_interface(&mut commands, *index, *owner);
    }
    commands
}

/// Leads the table from one state to the next, as `steps` say.
#[must_use]
pub fn changes(
    options: &Options,
    steps: &[Step],
    (current, wanted): (&MapImage, &MapImage),
    times: Times,
) -> Commands {
    let mut commands = Commands::of(TABLE);
    for step in steps {
        match step {
            Step::AddSet(id, prefixes) => add_set(&mut commands, *id, prefixes),
            Step::RemoveSet(id, prefixes) => remove_set(&mut commands, *id, prefixes),
            Step::PutCustomer(id, policy) => {
                put_customer(&mut commands, options, (*id, policy), wanted, times);
                if let Some(before) = current.customers.get(id) {
                    let slots = exemptions(policy).count()..exemptions(&before).count();
                    remove_gates(&mut commands, *id, slots);
                }
            }
            Step::RemoveCustomer(id) => {
                remove_customer(&mut commands, *id);
                if let Some(before) = current.customers.get(id) {
                    remove_gates(&mut commands, *id, 0..exemptions(&before).count());
                }
            }
            Step::PutInterface(index, owner) => {
                if let Some(before) = current.interfaces.get(index) {
                    owned(&mut commands, "delete", *index, before.customer());
                }
                put_interface(&mut commands, *index, *owner);
            }
            Step::RemoveInterface(index) => {
                if let Some(before) = current.interfaces.get(index) {
                    owned(&mut commands, "delete", *index, before.customer());
                }
            }
            // Sockets are not seen here.
            Step::PutCgroup(..) | Step::RemoveCgroup(_) => {}
        }
    }
    commands
}

/// Puts these customers' exemptions in force anew: their time has come, or was counted wrong.
#[must_use]
pub fn renewals(
    options: &Options,
    image: &MapImage,
    of: &BTreeSet<CustomerId>,
    times: Times,
) -> Commands {
    let mut commands = Commands::of(TABLE);
    for id in of {
        if let Some(policy) = image.customers.get(id) {
            put_customer(&mut commands, options, (*id, &policy), image, times);
        }
    }
    commands
}

/// Hooks the interface, or hooks it again.
#[must_use]
pub fn hook(index: u32, name: &str) -> Commands {
    let chain = names::interface_chain(index);
    let mut commands = unhook(index);
    commands.command(
        "add",
        "chain",
        json!({
            "name": chain, "type": "filter", "hook": "ingress", "dev": name, "prio": PRIORITY,
            "policy": "accept",
        }),
    );
    commands.rules(&chain, vec![vec![jump(names::GUEST)]]);
    commands
}

/// Takes the interface's chain away, if the kernel has not done so.
#[must_use]
pub fn unhook(index: u32) -> Commands {
    let chain = names::interface_chain(index);
    let mut commands = Commands::of(TABLE);
    // What is not there cannot be deleted.
    for verb in ["add", "flush", "delete"] {
        commands.named(verb, "chain", &chain);
    }
    commands
}

/// Takes the table away, whether it is there or not.
#[must_use]
pub fn removal() -> Commands {
    let mut commands = Commands::of(TABLE);
    commands.remove_table();
    commands
}

/// First moment after `now` at which an exemption of the customer begins.
#[must_use]
pub(super) fn next_start(policy: &CustomerPolicy, now: u64) -> Option<u64> {
    exemptions(policy)
        .map(Exemption::starts)
        .filter(|starts| *starts > now)
        .min()
}

fn is_hooked(chain: &str) -> bool {
    names::interface_of(chain).is_some()
}

/// Everything but hooked chains and counters.
fn clear(commands: &mut Commands, existing: &Existing) {
    commands.command("flush", "table", json!({}));
    for map in &existing.maps {
        commands.named("delete", "map", map);
    }
    for set in &existing.sets {
        commands.named("delete", "set", set);
    }
    for chain in existing.chains.iter().filter(|name| !is_hooked(name)) {
        commands.named("delete", "chain", chain);
    }
}

/// What does not depend on the policy.
fn skeleton(commands: &mut Commands, options: &Options) {
    for (verdict, reason) in OUTCOMES {
        for family in Family::ALL {
            let counter = names::connections(verdict, reason, family);
            commands.named("add", "counter", &counter);
        }
    }
    for verdict in VERDICTS {
        for family in Family::ALL {
            commands.named("add", "counter", &names::packets(verdict, family));
        }
    }
    for kind in Malformed::ALL {
        commands.named("add", "counter", &names::malformed(kind));
    }
    for tunnel in Tunnel::ALL {
        commands.named("add", "counter", &names::tunnel(tunnel));
    }
    for asked in Asked::ALL {
        let map = json!({"name": asked.map(), "type": "iface_index", "map": "verdict"});
        commands.command("add", "map", map);
        commands.named("add", "chain", &asked.of(CustomerId::UNASSIGNED));
    }
    let mut chains = parse::chains(&options.ports);
    chains.extend(judging());
    chains.extend(outcomes(options));
    for (name, _) in &chains {
        commands.named("add", "chain", name);
    }
    for (name, rules) in chains {
        commands.rules(&name, rules);
    }
}

/// The chains that ask whose a packet is. An interface without an owner is nobody's.
fn judging() -> Vec<(String, Vec<Rule>)> {
    let mut chains: Vec<(String, Vec<Rule>)> = Asked::ALL
        .into_iter()
        .map(|asked| {
            let rules = vec![
                vec![lookup(meta("iif"), asked.map())],
                vec![goto(&asked.of(CustomerId::UNASSIGNED))],
            ];
            (asked.chain().to_owned(), rules)
        })
        .collect();
    chains.extend(Malformed::ALL.map(|kind| {
        let rules = vec![
            vec![count(&names::malformed(kind))],
            vec![goto(names::SUSPECT)],
        ];
        (names::malformed_chain(kind), rules)
    }));
    chains
}

/// The chains in which packets end.
fn outcomes(options: &Options) -> Vec<(String, Vec<Rule>)> {
    let marked = || options.guard.map(|bit| vec![mark(bit.get())]);
    let mut chains: Vec<(String, Vec<Rule>)> = OUTCOMES
        .into_iter()
        .map(|(verdict, reason)| {
            let counted = |family| {
                let counter = count(&names::connections(verdict, reason, family));
                vec![attempt(), is_of(family), counter]
            };
            let mut rules: Vec<Rule> = Family::ALL.map(counted).into();
            rules.push(vec![goto(&names::verdict_chain(verdict))]);
            (names::outcome_chain(verdict, reason), rules)
        })
        .collect();
    chains.extend(VERDICTS.map(|verdict| {
        let counted = |family| vec![is_of(family), count(&names::packets(verdict, family))];
        let mut rules: Vec<Rule> = Family::ALL.map(counted).into();
        match verdict {
            Verdict::Allow | Verdict::Observe => {
                rules.extend(marked());
                rules.push(vec![accept()]);
            }
            Verdict::Reject => {
                match options.reject {
                    Reject::Reset => rules.push(vec![equal(meta("l4proto"), "tcp"), reset()]),
                    Reject::Drop => {}
                }
                rules.push(vec![discard()]);
            }
            Verdict::Drop | Verdict::Redirect | Verdict::Notice | Verdict::Throttle => {
                rules.push(vec![discard()]);
            }
        }
        (names::verdict_chain(verdict), rules)
    }));
    let passes = marked().into_iter().chain([vec![accept()]]).collect();
    chains.push((names::PASS.to_owned(), passes));
    chains
}

/// What the kernel does not take for IP counts as IPv4, as with the other backend.
fn is_of(family: Family) -> Value {
    match family {
        Family::V4 => unequal(meta("protocol"), "ip6"),
        Family::V6 => equal(meta("protocol"), "ip6"),
    }
}

fn add_set(commands: &mut Commands, id: SetId, prefixes: &[Prefix]) {
    let addresses = addresses(prefixes);
    let v4 = addresses.v4.iter().map(range).collect();
    let v6 = addresses.v6.iter().map(range).collect();
    for (family, kind, elements) in [(Family::V4, "ipv4_addr", v4), (Family::V6, "ipv6_addr", v6)] {
        let elements: Vec<Value> = elements;
        let name = names::set(family, id);
        let set = json!({"name": name, "type": kind, "flags": ["interval"]});
        commands.command("add", "set", set);
        if !elements.is_empty() {
            commands.command("add", "element", json!({"name": name, "elem": elements}));
        }
    }
}

fn range<T: ToString + PartialEq>(range: &Range<T>) -> Value {
    if range.first == range.last {
        json!(range.first.to_string())
    } else {
        json!({"range": [range.first.to_string(), range.last.to_string()]})
    }
}

fn remove_set(commands: &mut Commands, id: SetId, _prefixes: &[Prefix]) {
    for family in Family::ALL {
        commands.named("delete", "set", &names::set(family, id));
    }
}

fn put_interface(commands: &mut Commands, index: u32, owner: InterfaceOwner) {
    owned(commands, "add", index, owner.customer());
}

fn owned(commands: &mut Commands, verb: &str, index: u32, customer: CustomerId) {
    for asked in Asked::ALL {
        let element = json!([index, goto(&asked.of(customer))]);
        commands.command(
            verb,
            "element",
            json!({"name": asked.map(), "elem": [element]}),
        );
    }
}
