//! A customer's chains, and what opens them for a time. Pure.

use gate25_common::abi::{Blocked, CustomerId, CustomerPolicy, Exemption, Mode, Quarantine, SetId};
use gate25_common::address::Family;
use gate25_common::decide::{HostMode, Reason, Verdict};
use gate25_common::packet::Malformed;
use serde_json::{Value, json};

use super::names::{self, Asked};
use super::ruleset::{Options, Times};
use crate::dataplane::MapImage;
use crate::netfilter::Commands;
use crate::netfilter::expression::{Rule, attempt, count, equal, field, goto, meta};

const NANOSECONDS: u64 = 1_000_000_000;

/// Fills the customer's chains, which may be there already.
pub(super) fn put_customer(
    commands: &mut Commands,
    options: &Options,
    (id, policy): (CustomerId, &CustomerPolicy),
    image: &MapImage,
    times: Times,
) {
    for what in names::OF_CUSTOMER {
        commands.named("add", "counter", &names::of_customer(id, what));
    }
    let chains = customer_chains(options, id, policy, image);
    for (name, _) in &chains {
        commands.named("add", "chain", name);
        commands.named("flush", "chain", name);
    }
    for (slot, exemption) in exemptions(policy).enumerate() {
        put_gate(commands, &names::gate(id, slot), exemption, times);
    }
    for (name, rules) in chains {
        commands.rules(&name, rules);
    }
}

/// A set that holds something while the exemption does: rules that ask for it match no longer.
fn put_gate(commands: &mut Commands, name: &str, exemption: &Exemption, times: Times) {
    let set = json!({"name": name, "type": "ether_type", "flags": ["timeout"]});
    commands.command("add", "set", set);
    commands.named("flush", "set", name);
    if !exemption.active(times.now) {
        return;
    }
    // It is counted from when the kernel has it. nft's JSON knows whole seconds: rather too early than
    // too late.
    let left = exemption.expires().checked_sub(times.done);
    let Some(seconds @ 1..) = left.map(|left| left / NANOSECONDS) else {
        return;
    };
    let elements: Vec<Value> = ["ip", "ip6"]
        .map(|protocol| json!({"elem": {"val": protocol, "timeout": seconds}}))
        .into();
    commands.command("add", "element", json!({"name": name, "elem": elements}));
}

pub(super) fn remove_gates(commands: &mut Commands, id: CustomerId, slots: std::ops::Range<usize>) {
    for slot in slots {
        commands.named("delete", "set", &names::gate(id, slot));
    }
}

/// Counters stay: the customer may come back.
pub(super) fn remove_customer(commands: &mut Commands, id: CustomerId) {
    let chains = chain_names(id);
    for verb in ["flush", "delete"] {
        for chain in &chains {
            commands.named(verb, "chain", chain);
        }
    }
}

/// Those that send on come first: a chain that is referred to cannot be deleted.
fn chain_names(id: CustomerId) -> Vec<String> {
    let mut names: Vec<String> = Asked::ALL.map(|asked| asked.of(id)).into();
    names.extend([names::ALLOWLIST, names::EXEMPTION].map(|it| names::allowed_chain(id, it)));
    names
}

fn customer_chains(
    options: &Options,
    id: CustomerId,
    policy: &CustomerPolicy,
    image: &MapImage,
) -> Vec<(String, Vec<Rule>)> {
    let refusal = Refusal::of(options.host, id, policy);
    let allowed = |what, reason| {
        let counter = count(&names::of_customer(id, what));
        let rules = vec![
            vec![attempt(), counter],
            vec![goto(&names::outcome_chain(Verdict::Allow, reason))],
        ];
        (names::allowed_chain(id, what), rules)
    };
    vec![
        allowed(names::ALLOWLIST, Reason::Allowlist),
        allowed(names::EXEMPTION, Reason::Exemption),
        (Asked::Judge.of(id), judged(id, policy, image, &refusal)),
        (Asked::Routed.of(id), routed(policy, &refusal)),
        (
            Asked::Suspect.of(id),
            vec![vec![goto(&names::verdict_chain(refusal.malformed))]],
        ),
    ]
}

/// How a customer's packets are refused.
struct Refusal {
    id: CustomerId,
    blocked: Verdict,
    malformed: Verdict,
    reason: Reason,
}

impl Refusal {
    fn of(host: HostMode, id: CustomerId, policy: &CustomerPolicy) -> Self {
        let carried_out = |verdict| match (host, policy.mode()) {
            (HostMode::Observe, _) | (HostMode::Policy, Some(Mode::Observe)) => Verdict::Observe,
            (HostMode::Policy, Some(Mode::Enforce) | None) => verdict,
        };
        let blocked = match policy.blocked() {
            // Rewriting would need netfilter's tracking of connections on the whole host.
            Some(Blocked::Reject | Blocked::Redirect | Blocked::Notice) => Verdict::Reject,
            // Bytes that no agent writes close the port.
            Some(Blocked::Drop) | None => Verdict::Drop,
        };
        Self {
            id,
            blocked: carried_out(blocked),
            malformed: carried_out(Verdict::Drop),
            reason: if id == CustomerId::UNASSIGNED {
                Reason::Unassigned
            } else {
                Reason::Profile
            },
        }
    }

    fn rules(&self, verdict: Verdict, reason: Reason) -> Vec<Rule> {
        let counter = count(&names::of_customer(self.id, verdict.as_str()));
        vec![
            vec![attempt(), counter],
            vec![goto(&names::outcome_chain(verdict, reason))],
        ]
    }
}

/// In the order of `gate25_common::decide`.
fn judged(
    id: CustomerId,
    policy: &CustomerPolicy,
    image: &MapImage,
    refusal: &Refusal,
) -> Vec<Rule> {
    if is_quarantined(policy) {
        return refusal.rules(refusal.blocked, Reason::Quarantine);
    }
    let to_allowlist = names::allowed_chain(id, names::ALLOWLIST);
    let to_exemption = names::allowed_chain(id, names::EXEMPTION);
    let mut rules = Vec::new();
    for set in [policy.profile_set(), policy.customer_set()] {
        rules.extend(in_set(set, image).into_iter().map(|mut rule| {
            rule.push(goto(&to_allowlist));
            rule
        }));
    }
    for (slot, exemption) in exemptions(policy).enumerate() {
        let gate = format!("@{}", names::gate(id, slot));
        rules.extend(in_set(exemption.set(), image).into_iter().map(|mut rule| {
            rule.insert(0, equal(meta("protocol"), gate.clone()));
            rule.push(goto(&to_exemption));
            rule
        }));
    }
    rules.extend(refusal.rules(refusal.blocked, refusal.reason));
    rules
}

/// What may go elsewhere than its address says.
fn routed(policy: &CustomerPolicy, refusal: &Refusal) -> Vec<Rule> {
    if is_quarantined(policy) {
        return refusal.rules(refusal.blocked, Reason::Quarantine);
    }
    let mut rules = vec![vec![count(&names::malformed(Malformed::SourceRoute))]];
    rules.extend(refusal.rules(refusal.blocked, Reason::Malformed));
    rules
}

/// So is who has a byte that no agent writes.
fn is_quarantined(policy: &CustomerPolicy) -> bool {
    match policy.quarantine() {
        Some(Quarantine::No) => false,
        Some(Quarantine::Yes) | None => true,
    }
}

/// Rules that match destinations in the set.
fn in_set(set: SetId, image: &MapImage) -> Vec<Rule> {
    match set {
        SetId::NONE => Vec::new(),
        SetId::ANY => vec![Vec::new()],
        set if image.sets.contains_key(&set) => Family::ALL
            .map(|family| {
                let protocol = match family {
                    Family::V4 => "ip",
                    Family::V6 => "ip6",
                };
                let name = format!("@{}", names::set(family, set));
                vec![equal(field(protocol, "daddr"), name)]
            })
            .into(),
        // What is not there holds nothing.
        _ => Vec::new(),
    }
}

/// The policy's exemptions, in the order of their slots.
pub(super) fn exemptions(policy: &CustomerPolicy) -> impl Iterator<Item = &Exemption> {
    (0..).map_while(|slot| policy.exemption(slot))
}
