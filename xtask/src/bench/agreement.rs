//! How well two runs agree.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use serde_json::{Map, Value};

use super::targets::shown;

/// The figures of an earlier run, as its `--json` gave them.
pub(crate) fn read(file: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))
}

/// How many figures that state a spread lie no further apart than both spreads together, and which do not.
pub(crate) fn of(earlier: &Map<String, Value>, later: &Map<String, Value>) -> String {
    let (mut compared, mut outside) = (0, String::new());
    for name in later.keys() {
        let spread = format!("{name}_spread");
        let number = |run: &Map<String, Value>, name: &str| run.get(name).and_then(Value::as_f64);
        let both = |name: &str| Some((number(earlier, name)?, number(later, name)?));
        let (Some((before, now)), Some((before_spread, now_spread))) = (both(name), both(&spread))
        else {
            continue;
        };
        compared += 1;
        if (now - before).abs() > before_spread + now_spread {
            // Writing to a String does not fail.
            writeln!(
                outside,
                "- {name}: {} ± {}, then {} ± {}",
                shown(before),
                shown(before_spread),
                shown(now),
                shown(now_spread)
            )
            .ok();
        }
    }
    let count = outside.lines().count();
    format!(
        "{} of {compared} figures agree within the spreads of both runs\n{outside}",
        compared - count
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figure_that_is_further_away_than_both_spreads_is_told() {
        let earlier = json!({
            "near_ns": 8.0, "near_ns_spread": 1.5,
            "far_ns": 7.0, "far_ns_spread": 1.5,
            "without_a_spread_ms": 9.0,
        });
        let later = json!({
            "near_ns": 11.0, "near_ns_spread": 2.0,
            "far_ns": 11.0, "far_ns_spread": 2.0,
            "without_a_spread_ms": 1.0,
        });
        let said = of(earlier.as_object().unwrap(), later.as_object().unwrap());
        assert_eq!(
            said,
            "1 of 2 figures agree within the spreads of both runs\n\
             - far_ns: 7.00 ± 1.50, then 11.0 ± 2.00\n"
        );
    }
}
