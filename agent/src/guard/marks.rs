//! Who else uses the guard's bit of the mark.
//!
//! The guard takes the bit off again before anybody's rules but those of ingress hooks, so most uses
//! would do no harm; whose bit it is should not depend on that. Rules that `iptables-nft` has made
//! are not looked into: nft's JSON does not tell what is in them.

use serde_json::Value;

use super::{Mark, TABLE};
use crate::kernel::nft::{Nft, NftError};
use crate::kernel::nftables;
use crate::kernel::routes::{self, MarkRule, RuleError};

/// Why nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum MarksError {
    /// The ruleset cannot be read.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The routing rules cannot be read.
    #[error(transparent)]
    Routes(#[from] RuleError),
}

/// Rules of others that test or set the bit, in words.
///
/// # Errors
/// [`MarksError`].
pub fn users(nft: &Nft, mark: Mark) -> Result<Vec<String>, MarksError> {
    let ruleset = nft.list_json("list the ruleset", &["ruleset"])?;
    let mut users = in_ruleset(&ruleset, mark);
    let rules = routes::mark_rules()?;
    let rules = rules.iter().filter(|rule| concerns(rule, mark));
    users.extend(rules.map(ToString::to_string));
    Ok(users)
}

/// The same of a ruleset as nft lists it (libnftables-json(5)).
#[must_use]
pub fn in_ruleset(ruleset: &Value, mark: Mark) -> Vec<String> {
    let objects = ruleset["nftables"].as_array().into_iter().flatten();
    let mut users: Vec<String> = objects
        .filter_map(|object| object.get("rule"))
        .filter(|rule| {
            let ours = [TABLE, nftables::TABLE];
            !ours.iter().any(|name| rule["table"] == *name)
        })
        .filter(|rule| {
            let statements = rule["expr"].as_array().into_iter().flatten();
            statements.into_iter().any(|it| uses(it, mark))
        })
        .map(|rule| {
            let word = |key: &str| rule[key].as_str().unwrap_or("?").escape_debug().to_string();
            format!(
                "nftables {} {} {}",
                word("family"),
                word("table"),
                word("chain")
            )
        })
        .collect();
    users.dedup();
    users
}

fn concerns(rule: &MarkRule, mark: Mark) -> bool {
    let compared = if rule.mask == u32::MAX {
        rule.mark
    } else {
        rule.mask
    };
    compared & mark.get() != 0
}

/// Whether a statement tests or sets the bit.
fn uses(statement: &Value, mark: Mark) -> bool {
    if let Some(tested) = statement.get("match") {
        return is_of_mark(&tested["left"])
            && (has_bit(&tested["left"], mark) || has_bit(&tested["right"], mark));
    }
    let mangled = statement.get("mangle");
    mangled.is_some_and(|it| is_of_mark(&it["key"]) && sets_bit(&it["value"], mark))
}

fn is_of_mark(expression: &Value) -> bool {
    match expression {
        Value::Object(fields) => {
            fields.get("meta").is_some_and(|meta| meta["key"] == "mark")
                || fields.values().any(is_of_mark)
        }
        Value::Array(items) => items.iter().any(is_of_mark),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn has_bit(expression: &Value, mark: Mark) -> bool {
    match expression {
        Value::Number(number) => number
            .as_u64()
            .is_some_and(|number| number & u64::from(mark.get()) != 0),
        Value::Array(items) => items.iter().any(|item| has_bit(item, mark)),
        Value::Object(fields) => fields.values().any(|field| has_bit(field, mark)),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// What is kept by an AND is not set.
fn sets_bit(expression: &Value, mark: Mark) -> bool {
    match expression {
        Value::Object(fields) => fields
            .iter()
            .any(|(operator, operands)| operator != "&" && sets_bit(operands, mark)),
        Value::Array(items) => items.iter().any(|item| sets_bit(item, mark)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            has_bit(expression, mark)
        }
    }
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
            (tested(mark(), json!(0x20)), false),
            (tested(json!({"&": [mark(), 0xff]}), json!(0x2)), true),
            (tested(json!({"&": [mark(), 0xf]}), json!(0x2)), false),
            (tested(json!({"meta": {"key": "iif"}}), json!(0x10)), false),
            (set(json!(0x11)), true),
            (set(json!(0x1)), false),
            (set(json!({"|": [mark(), 0x10]})), true),
            (set(json!({"&": [mark(), 0xffff_ffffu32]})), false),
            (set(json!({"^": [{"&": [mark(), 0xf0]}, 0x10]})), true),
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
    fn rules_of_ours_are_no_others() {
        let statement = json!({"mangle": {"key": mark(), "value": 0x10}});
        for table in ["gate25", "gate25_guard"] {
            assert!(users_of(table, &statement).is_empty());
        }
    }
}
