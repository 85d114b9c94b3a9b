//! Parts of rules in nft's JSON (libnftables-json(5)). The `nftables` crate's types do not cover
//! what is needed here: sets of interfaces and of protocols, and counters beyond 32 bits.

use serde_json::{Value, json};

/// A rule: its statements.
pub(super) type Rule = Vec<Value>;

pub(super) fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

pub(super) fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

/// `len` bits at bit `offset` behind the network header.
pub(super) fn network(offset: u32, len: u32) -> Value {
    json!({"payload": {"base": "nh", "offset": offset, "len": len}})
}

/// `len` bits at bit `offset` behind the transport header.
pub(super) fn transport(offset: u32, len: u32) -> Value {
    json!({"payload": {"base": "th", "offset": offset, "len": len}})
}

pub(super) fn fragment(field: &str) -> Value {
    json!({"exthdr": {"name": "frag", "field": field}})
}

pub(super) fn and(value: &Value, mask: u32) -> Value {
    json!({"&": [value, mask]})
}

pub(super) fn any_of(numbers: impl IntoIterator<Item = u16>) -> Value {
    json!({"set": numbers.into_iter().collect::<Vec<_>>()})
}

pub(super) fn between(first: u32, last: u32) -> Value {
    json!({"range": [first, last]})
}

pub(super) fn equal(left: Value, right: impl Into<Value>) -> Value {
    compare("==", left, right)
}

pub(super) fn unequal(left: Value, right: impl Into<Value>) -> Value {
    compare("!=", left, right)
}

pub(super) fn at_least(left: Value, right: u32) -> Value {
    compare(">=", left, right)
}

pub(super) fn below(left: Value, right: u32) -> Value {
    compare("<", left, right)
}

fn compare(op: &str, left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": op, "left": left, "right": right.into()}})
}

pub(super) fn goto(chain: &str) -> Value {
    json!({"goto": {"target": chain}})
}

pub(super) fn jump(chain: &str) -> Value {
    json!({"jump": {"target": chain}})
}

pub(super) fn count(counter: &str) -> Value {
    json!({"counter": counter})
}

pub(super) fn lookup(key: Value, map: &str) -> Value {
    json!({"vmap": {"key": key, "data": format!("@{map}")}})
}

pub(super) fn leave() -> Value {
    json!({"return": null})
}

pub(super) fn accept() -> Value {
    json!({"accept": null})
}

pub(super) fn discard() -> Value {
    json!({"drop": null})
}

pub(super) fn reset() -> Value {
    json!({"reject": {"type": "tcp reset"}})
}

/// Sets a bit of the packet's mark.
pub(super) fn mark(bit: u32) -> Value {
    json!({"mangle": {"key": meta("mark"), "value": {"|": [meta("mark"), bit]}}})
}

/// A SYN without ACK.
pub(super) fn attempt() -> Value {
    const SYN: u32 = 0x02;
    const SYN_AND_ACK: u32 = 0x12;
    equal(and(&field("tcp", "flags"), SYN_AND_ACK), SYN)
}
