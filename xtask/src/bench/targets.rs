//! What was promised, and whether it is kept.

use std::fmt::Write as _;

use super::{figures::Figures, samples::Summary};

/// A promise about a figure.
struct Target {
    what: &'static str,
    figure: &'static str,
    unit: &'static str,
    bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

use Bound::{AtLeast, AtMost};

const fn target(
    what: &'static str,
    figure: &'static str,
    unit: &'static str,
    bound: Bound,
) -> Target {
    Target {
        what,
        figure,
        unit,
        bound,
    }
}

const TARGETS: [Target; 19] = [
    target(
        "packet not for a guarded port: program over the empty program (TCP, UDP, ARP)",
        "pass_over_empty_ns",
        "ns",
        AtMost(2.0),
    ),
    target(
        "same, with a VLAN tag, IP options or an extension header",
        "pass_unusual_over_empty_ns",
        "ns",
        AtMost(8.0),
    ),
    target(
        "same, added to the receive path: the best nftables ruleset's over ours",
        "pass_nft_ratio",
        "x",
        AtLeast(3.0),
    ),
    target(
        "refused packet, 10,000 customers, 100,000 prefixes: program over the empty program",
        "refused_over_empty_ns",
        "ns",
        AtMost(60.0),
    ),
    target(
        "same, customers and destinations drawn by lot",
        "refused_random_ns",
        "ns",
        AtMost(150.0),
    ),
    target(
        "same, added to the receive path: the best nftables ruleset's over ours",
        "refused_nft_ratio",
        "x",
        AtLeast(3.0),
    ),
    target(
        "same: iptables with ipset over ours",
        "refused_ipset_ratio",
        "x",
        AtLeast(3.0),
    ),
    target(
        "same: iptables with a rule a customer over ours",
        "refused_iptables_ratio",
        "x",
        AtLeast(100.0),
    ),
    target(
        "refused packet: 10,000 customers over 10",
        "growth_10_to_10000",
        "x",
        AtMost(1.3),
    ),
    target(
        "cold start, 10,000 customers x 10 prefixes: files to enforcing",
        "cold_start_s",
        "s",
        AtMost(1.0),
    ),
    target(
        "same over the quickest `nft -f` of that policy",
        "cold_start_nft_ratio",
        "x",
        AtMost(0.3),
    ),
    target(
        "1,000 interfaces at start: all covered by the guard",
        "covered_1000_s",
        "s",
        AtMost(0.2),
    ),
    target(
        "same: all with their program",
        "programs_1000_s",
        "s",
        AtMost(15.0),
    ),
    target(
        "an exemption saved to the first packet that passes, p99 after the quiet time",
        "exemption_p99_ms",
        "ms",
        AtMost(50.0),
    ),
    target(
        "an exemption revoked to the first packet refused, p99 after the quiet time",
        "revocation_p99_ms",
        "ms",
        AtMost(50.0),
    ),
    target("`gate25 check` of that policy", "check_s", "s", AtMost(1.0)),
    target(
        "a new tap to its program, p99",
        "tap_enforced_p99_ms",
        "ms",
        AtMost(30.0),
    ),
    target("a scrape", "scrape_ms", "ms", AtMost(20.0)),
    target(
        "the agent's memory (RSS)",
        "agent_rss_mib",
        "MiB",
        AtMost(40.0),
    ),
];

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            AtMost(bound) => value <= bound,
            AtLeast(bound) => value >= bound,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            AtMost(bound) => format!("<= {bound} {unit}"),
            AtLeast(bound) => format!(">= {bound} {unit}"),
        }
    }
}

/// The table of promises, in Markdown.
pub(crate) fn table(figures: &Figures) -> String {
    let mut text = String::from("| what | target | measured | spread | |\n|---|---|---|---|---|\n");
    for Target {
        what,
        figure,
        unit,
        bound,
    } in TARGETS
    {
        let (measured, spread, outcome) = match figures.summary(figure) {
            Some(summary) => (
                format!("{}{} {unit}", least(figures, figure), shown(summary.value)),
                spread(&summary),
                match (bound, figures.is_lower_bound(figure)) {
                    _ if bound.holds(summary.value) => "met",
                    // It may be more than was promised.
                    (AtLeast(_), true) => "cannot be told",
                    (AtLeast(_) | AtMost(_), _) => "**missed**",
                },
            ),
            None => (
                figures.reason(figure).unwrap_or("not measured").to_owned(),
                String::new(),
                "",
            ),
        };
        // Writing to a String does not fail.
        writeln!(
            text,
            "| {what} | {} | {measured} | {spread} | {outcome} |",
            bound.text(unit)
        )
        .ok();
    }
    text
}

/// How a figure begins that is at least so much.
fn least(figures: &Figures, figure: &str) -> &'static str {
    if figures.is_lower_bound(figure) {
        "at least "
    } else {
        ""
    }
}

/// How far the rounds are apart; nothing where there was one.
pub(crate) fn spread(summary: &Summary) -> String {
    let spread = summary.spread.map(|spread| format!("± {}", shown(spread)));
    spread.unwrap_or_default()
}

/// A number as a person reads it.
pub(crate) fn shown(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_says_what_is_met_missed_and_not_measured() {
        let mut figures = Figures::default();
        figures.put("scrape_ms", 12.0);
        figures.put("check_s", 1.5);
        figures.refuse("refused_ipset_ratio", "no ipset");
        figures.put("pass_nft_ratio", 1.6);
        figures.bound_below("pass_nft_ratio");
        figures.put("refused_nft_ratio", 2.0);
        let table = table(&figures);
        assert!(table.contains("| a scrape | <= 20 ms | 12.0 ms |  | met |"));
        assert!(table.contains("| <= 1 s | 1.50 s |  | **missed** |"));
        assert!(table.contains("| >= 3 x | no ipset |  |  |"));
        assert!(table.contains("| >= 3 x | at least 1.60 x |  | cannot be told |"));
        assert!(table.contains("| >= 3 x | 2.00 x |  | **missed** |"));
    }
}
