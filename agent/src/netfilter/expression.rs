//! Parts of rules.

use serde_json::{Value, json};

/// `IP_OFFSET`: the bits of a fragment's offset.
pub(crate) const FRAGMENT_OFFSET: u32 = 0x1fff;
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const TCP: u16 = 6;
pub(crate) const AUTHENTICATION: u16 = 51;
/// Longest authentication header that is looked behind, as its length field has it: 32-bit words
/// less two. 64 bytes of check value (HMAC-SHA-512) and the fixed 12 are 17.
const LONGEST_AUTHENTICATION: u32 = 17;

/// A rule: its statements.
pub(crate) type Rule = Vec<Value>;

pub(crate) fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

pub(crate) fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

/// `len` bits at bit `offset` behind the network header.
pub(crate) fn network(offset: u32, len: u32) -> Value {
    json!({"payload": {"base": "nh", "offset": offset, "len": len}})
}

/// `len` bits at bit `offset` behind the transport header.
pub(crate) fn transport(offset: u32, len: u32) -> Value {
    json!({"payload": {"base": "th", "offset": offset, "len": len}})
}

pub(crate) fn fragment(field: &str) -> Value {
    json!({"exthdr": {"name": "frag", "field": field}})
}

pub(crate) fn and(value: &Value, mask: u32) -> Value {
    json!({"&": [value, mask]})
}

pub(crate) fn any_of(numbers: impl IntoIterator<Item = u16>) -> Value {
    json!({"set": numbers.into_iter().collect::<Vec<_>>()})
}

pub(crate) fn any_word(words: &[&str]) -> Value {
    json!({"set": words})
}

pub(crate) fn between(first: u32, last: u32) -> Value {
    json!({"range": [first, last]})
}

pub(crate) fn equal(left: Value, right: impl Into<Value>) -> Value {
    compare("==", left, right)
}

pub(crate) fn unequal(left: Value, right: impl Into<Value>) -> Value {
    compare("!=", left, right)
}

pub(crate) fn at_least(left: Value, right: u32) -> Value {
    compare(">=", left, right)
}

pub(crate) fn below(left: Value, right: u32) -> Value {
    compare("<", left, right)
}

fn compare(op: &str, left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": op, "left": left, "right": right.into()}})
}

pub(crate) fn goto(chain: &str) -> Value {
    json!({"goto": {"target": chain}})
}

pub(crate) fn jump(chain: &str) -> Value {
    json!({"jump": {"target": chain}})
}

pub(crate) fn count(counter: &str) -> Value {
    json!({"counter": counter})
}

pub(crate) fn lookup(key: Value, map: &str) -> Value {
    json!({"vmap": {"key": key, "data": format!("@{map}")}})
}

pub(crate) fn leave() -> Value {
    json!({"return": null})
}

pub(crate) fn accept() -> Value {
    json!({"accept": null})
}

pub(crate) fn discard() -> Value {
    json!({"drop": null})
}

pub(crate) fn reset() -> Value {
    json!({"reject": {"type": "tcp reset"}})
}

/// Sets a bit of the packet's mark.
pub(crate) fn mark(bit: u32) -> Value {
    json!({"mangle": {"key": meta("mark"), "value": {"|": [meta("mark"), bit]}}})
}

/// Takes a bit off the packet's mark.
pub(crate) fn unmark(bit: u32) -> Value {
    json!({"mangle": {"key": meta("mark"), "value": {"&": [meta("mark"), !bit]}}})
}

/// A SYN without ACK.
pub(crate) fn attempt() -> Value {
    const SYN: u32 = 0x02;
    const SYN_AND_ACK: u32 = 0x12;
    equal(and(&field("tcp", "flags"), SYN_AND_ACK), SYN)
}

/// What becomes of a packet with an authentication header (RFC 4302), which is where the TCP header
/// should be: `pass` of those that hold neither guarded TCP nor another such header, `stop` of the
/// rest.
pub(crate) fn authenticated(ports: &Value, pass: &Value, stop: &Rule) -> Vec<Rule> {
    let next = || transport(0, 8);
    let mut rules = vec![
        vec![unequal(next(), any_of([TCP, AUTHENTICATION])), pass.clone()],
        [vec![equal(next(), AUTHENTICATION)], stop.clone()].concat(),
    ];
    rules.extend((1..=LONGEST_AUTHENTICATION).map(|length| {
        vec![
            equal(transport(8, 8), length),
            unequal(transport((length + 2) * 32 + 16, 16), ports.clone()),
            pass.clone(),
        ]
    }));
    rules.push(stop.clone());
    rules
}
