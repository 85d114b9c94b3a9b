//! How well two runs agree.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use serde_json::{Map, Value};

use super::{figures::Figures, targets::shown};

/// The figures of an earlier run, as its `--json` gave them.
pub(crate) fn read(file: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))
}

/// How many figures that state a spread lie no further apart than both spreads together, and which do not.
pub(crate) fn of(earlier: &Map<String, Value>, figures: &Figures) -> String {
    let (mut compared, mut outside) = (0, String::new());
    for (name, summary) in figures.summaries() {
        let before = |end: &str| earlier.get(&format!("{name}{end}")).and_then(Value::as_f64);
        let (Some(old), Some(old_spread), Some(spread)) =
            (before(""), before("_spread"), summary.spread)
        else {
            continue;
        };
        let median = summary.median;
        compared += 1;
        if (median - old).abs() > spread + old_spread {
            // Writing to a String does not fail.
            writeln!(
                outside,
                "- {name}: {} ± {}, then {} ± {}",
                shown(old),
                shown(old_spread),
                shown(median),
                shown(spread)
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
    use crate::bench::samples::Samples;

    #[test]
    fn figure_that_is_further_away_than_both_spreads_is_told() {
        let mut figures = Figures::default();
        figures.put_samples("near_ns", &Samples::of([9.0, 11.0, 13.0]));
        figures.put_samples("far_ns", &Samples::of([9.0, 11.0, 13.0]));
        figures.put("without_a_spread_ms", 1.0);
        let earlier = json!({
            "near_ns": 8.0, "near_ns_spread": 1.5,
            "far_ns": 7.0, "far_ns_spread": 1.5,
            "without_a_spread_ms": 9.0,
        });
        let said = of(earlier.as_object().unwrap(), &figures);
        assert_eq!(
            said,
            "1 of 2 figures agree within the spreads of both runs\n\
             - far_ns: 7.00 ± 1.50, then 11.0 ± 2.00\n"
        );
    }
}
