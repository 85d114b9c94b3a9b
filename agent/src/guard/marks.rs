//! Who else uses the guard's bit of the mark. Pure.
//!
//! The guard takes the bit off again before anybody's rules but those of ingress hooks, so most uses
//! would do no harm; whose bit it is should not depend on that. At ingress a rule may also take the
//! bit off what the programs have marked, which the guard then stops. Rules that `iptables-nft` has
//! made are not looked into: nft's JSON does not tell what is in them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Mark, TABLES};
use crate::kernel::nftables;

/// Rules of others, as nft lists the ruleset (libnftables-json(5)), that may test, set, or at ingress
/// take away the bit, in words.
#[must_use]
pub fn in_ruleset(ruleset: &Value, mark: Mark) -> Vec<String> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let at_ingress: BTreeSet<String> = objects()
        .filter_map(|object| object.get("chain"))
        .filter(|chain| chain["hook"] == "ingress")
        .map(table_of)
        .collect();
    let rules = objects().filter_map(|object| object.get("rule"));
    let mut users: Vec<String> = rules
        .filter(|rule| !is_ours(rule))
        .filter_map(|rule| {
            let statements = || rule["expr"].as_array().into_iter().flatten();
            let place = format!("nftables {} {}", table_of(rule), word(rule, "chain"));
            if at_ingress.contains(&table_of(rule)) && statements().any(|it| clears(it, mark)) {
                let harm = "which may take it off packets that the programs have let pass";
                Some(format!("{place}, {harm}"))
            } else {
                statements().any(|it| uses(it, mark)).then_some(place)
            }
        })
        .collect();
    users.dedup();
    users
}

fn is_ours(rule: &Value) -> bool {
    let mut ours = TABLES.into_iter().chain([nftables::TABLE]);
    ours.any(|table| rule["family"] == table.family.as_str() && rule["table"] == table.name)
}

fn table_of(object: &Value) -> String {
    format!("{} {}", word(object, "family"), word(object, "table"))
}

fn word(object: &Value, key: &str) -> String {
    object[key]
        .as_str()
        .unwrap_or("?")
        .escape_debug()
        .to_string()
}

/// What an expression says about the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bit {
    /// It is as the packet has it.
    Kept,
    Zero,
    One,
    /// Nobody knows before there is a packet.
    Unknown,
}

/// Whether a statement may test or set the bit.
fn uses(statement: &Value, mark: Mark) -> bool {
    if !is_of_mark(statement) {
        return false;
    }
    if let Some(test) = statement.get("match") {
        let (left, right) = (&test["left"], &test["right"]);
        return if is_mark(left) {
            may_have(right, mark)
        } else {
            !is_of_mark(left) || bit_of(left, mark) != Bit::Zero
        };
    }
    if let Some(set) = set_mark(statement) {
        return matches!(bit_of(set, mark), Bit::One | Bit::Unknown);
    }
    match statement.get("vmap") {
        Some(lookup) => bit_of(&lookup["key"], mark) != Bit::Zero,
        None => true,
    }
}

/// Whether a statement may take the bit off.
fn clears(statement: &Value, mark: Mark) -> bool {
    set_mark(statement).is_some_and(|set| match bit_of(set, mark) {
        Bit::Kept | Bit::One => false,
        Bit::Zero | Bit::Unknown => true,
    })
}

/// What the mark is set to.
fn set_mark(statement: &Value) -> Option<&Value> {
    let mangle = statement.get("mangle")?;
    is_mark(&mangle["key"]).then_some(&mangle["value"])
}

fn is_mark(expression: &Value) -> bool {
    expression["meta"]["key"] == "mark"
}

fn is_of_mark(expression: &Value) -> bool {
    match expression {
        Value::Object(fields) => is_mark(expression) || fields.values().any(is_of_mark),
        Value::Array(items) => items.iter().any(is_of_mark),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn bit_of(expression: &Value, mark: Mark) -> Bit {
    if is_mark(expression) {
        return Bit::Kept;
    }
    if let Some(number) = expression.as_u64() {
        return if number & u64::from(mark.get()) == 0 {
            Bit::Zero
        } else {
            Bit::One
        };
    }
    for (operator, combine) in OPERATORS {
        if let Some(operands) = expression.get(operator).and_then(Value::as_array) {
            let bits = operands.iter().map(|it| bit_of(it, mark));
            return bits.reduce(combine).unwrap_or(Bit::Unknown);
        }
    }
    Bit::Unknown
}

/// What comes of two operands.
type Combine = fn(Bit, Bit) -> Bit;

const OPERATORS: [(&str, Combine); 3] = [
    ("&", |left, right| match (left, right) {
        (Bit::Zero, _) | (_, Bit::Zero) => Bit::Zero,
        (Bit::One, other) | (other, Bit::One) => other,
        (Bit::Kept, Bit::Kept) => Bit::Kept,
        (Bit::Unknown, _) | (_, Bit::Unknown) => Bit::Unknown,
    }),
    ("|", |left, right| match (left, right) {
        (Bit::One, _) | (_, Bit::One) => Bit::One,
        (Bit::Zero, other) | (other, Bit::Zero) => other,
        (Bit::Kept, Bit::Kept) => Bit::Kept,
        (Bit::Unknown, _) | (_, Bit::Unknown) => Bit::Unknown,
    }),
    ("^", |left, right| match (left, right) {
        (Bit::Zero, other) | (other, Bit::Zero) => other,
        (Bit::One, Bit::One) | (Bit::Kept, Bit::Kept) => Bit::Zero,
        (Bit::One | Bit::Unknown, _) | (_, Bit::One | Bit::Unknown) => Bit::Unknown,
    }),
];

/// Whether what the whole mark is compared with may have the bit.
fn may_have(compared: &Value, mark: Mark) -> bool {
    let each = |items: &Value| match items.as_array() {
        Some(items) => items.iter().any(|item| may_have(item, mark)),
        None => true,
    };
    match compared {
        Value::Number(_) => bit_of(compared, mark) != Bit::Zero,
        Value::Array(_) => each(compared),
        Value::Object(fields) => match (fields.get("set"), fields.get("range")) {
            (Some(set), _) => each(set),
            (_, Some(range)) => range_may_have(range, mark),
            (None, None) => true,
        },
        // A set by its name, or a word that stands for a number.
        Value::String(_) | Value::Null | Value::Bool(_) => true,
    }
}

fn range_may_have(range: &Value, mark: Mark) -> bool {
    let (Some(first), Some(last)) = (range[0].as_u64(), range[1].as_u64()) else {
        return true;
    };
    let bit = u64::from(mark.get());
    // The first number from `first` on that has it.
    let next = if first & bit != 0 {
        first
    } else {
        (first | bit) & !(bit - 1)
    };
    next <= last
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn users_of(table: &str, statement: &Value) -> Vec<String> {
        let rule = json!({
            "family": "inet", "table": table, "chain": "c", "handle": 4, "expr": [statement],
        });
        let ruleset = json!({"nftables": [{"metainfo": {}}, {"rule": rule}]});
        in_ruleset(&ruleset, Mark::new(0x10).unwrap())
    }

    fn mark() -> Value {
        json!({"meta": {"key": "mark"}})
    }

    #[test]
    fn rules_that_test_or_set_the_bit_are_found() {
        let tested = |left: Value, right: Value| json!({"match": {"op": "==", "left": left, "right": right}});
        let set = |value: Value| json!({"mangle": {"key": mark(), "value": value}});
        for (statement, is_user) in [
            (tested(mark(), json!(0x10)), true),
            (tested(mark(), json!({"set": [1, 0x30]})), true),
            (tested(mark(), json!({"set": [1, 0x20]})), false),
            (
                tested(mark(), json!({"set": [{"range": [0x21, 0x2f]}]})),
                false,
            ),
            (tested(mark(), json!({"range": [0x2f, 0x30]})), true),
            (tested(mark(), json!({"range": [0, 0xf]})), false),
            (tested(mark(), json!("@theirs")), true),
            (tested(json!({"ct": {"key": "mark"}}), mark()), true),
            (
                tested(
                    json!({"concat": [mark(), {"meta": {"key": "iif"}}]}),
                    json!("@theirs"),
                ),
                true,
            ),
            (tested(mark(), json!(0x20)), false),
            (tested(json!({"&": [mark(), 0xff]}), json!(0x2)), true),
            (tested(json!({"&": [mark(), 0xf]}), json!(0x2)), false),
            (tested(json!({"meta": {"key": "iif"}}), json!(0x10)), false),
            (set(json!(0x11)), true),
            (set(json!(0x1)), false),
            (set(json!({"|": [mark(), 0x10]})), true),
            (set(json!({"&": [mark(), 0xffff_ffffu32]})), false),
            (set(json!({"^": [{"&": [mark(), 0xf0]}, 0x10]})), true),
            (set(json!({"ct": {"key": "mark"}})), true),
            (
                set(json!({"map": {"key": mark(), "data": "@theirs"}})),
                true,
            ),
            (
                json!({"mangle": {"key": {"ct": {"key": "mark"}}, "value": mark()}}),
                true,
            ),
            (json!({"vmap": {"key": mark(), "data": "@theirs"}}), true),
            (
                json!({"vmap": {"key": {"&": [mark(), 0xf]}, "data": "@theirs"}}),
                false,
            ),
            (
                json!({"set": {"op": "add", "elem": mark(), "set": "@theirs"}}),
                true,
            ),
            (json!({"accept": null}), false),
        ] {
            let expected: &[&str] = if is_user {
                &["nftables inet theirs c"]
            } else {
                &[]
            };
            assert_eq!(users_of("theirs", &statement), expected, "{statement}");
        }
    }

    #[test]
    fn rules_at_ingress_that_may_take_the_bit_off_are_found() {
        let set = |value: Value| json!({"mangle": {"key": mark(), "value": value}});
        for (statement, is_harmful) in [
            (set(json!(0x1)), true),
            (set(json!({"&": [mark(), 0xf]})), true),
            (set(json!({"ct": {"key": "mark"}})), true),
            (set(json!({"^": [{"&": [mark(), 0xf]}, 0x1]})), true),
            (set(json!({"|": [mark(), 0x1]})), false),
            (set(json!({"&": [mark(), 0xf0]})), false),
            (set(json!({"^": [{"&": [mark(), 0xf0]}, 0x1]})), false),
            (
                json!({"mangle": {"key": {"meta": {"key": "priority"}}, "value": 1}}),
                false,
            ),
        ] {
            let base = json!({"family": "netdev", "table": "t", "name": "b", "hook": "ingress"});
            let rule = json!({"family": "netdev", "table": "t", "chain": "c", "expr": [statement]});
            let ruleset = json!({"nftables": [{"chain": base}, {"rule": rule}]});
            let found = in_ruleset(&ruleset, Mark::new(0x10).unwrap());
            let harm = "nftables netdev t c, which may take it off packets that the programs have let pass";
            let expected: &[&str] = if is_harmful { &[harm] } else { &[] };
            assert_eq!(found, expected, "{statement}");
        }
    }

    #[test]
    fn rules_of_ours_are_no_others() {
        let statement = json!({"mangle": {"key": mark(), "value": 0x10}});
        for (family, table) in [
            ("netdev", "gate25"),
            ("inet", "gate25_guard"),
            ("bridge", "gate25_guard"),
        ] {
            let rule = json!({"family": family, "table": table, "chain": "c", "expr": [statement]});
            let ruleset = json!({"nftables": [{"rule": rule}]});
            assert!(in_ruleset(&ruleset, Mark::new(0x10).unwrap()).is_empty());
        }
    }
}
