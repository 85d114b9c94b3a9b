//! The tables of the document.

use std::fmt::Write as _;

use super::{
    figures::Figures,
    path::{Contender, Traffic, contender_name, scales},
    plot,
    scale::Scale,
    targets::{self, shown, spread},
};

/// Packets that programs were run on: what they are, and their figure.
const PACKETS: [(&str, &str); 17] = [
    (
        "the empty program against itself (the method's error)",
        "empty_over_empty_tcp",
    ),
    ("TCP to port 443", "pass_tcp"),
    ("same over IPv6", "pass_tcp6"),
    ("UDP", "pass_udp"),
    ("ARP", "pass_arp"),
    ("TCP to port 443 behind a VLAN tag", "pass_vlan"),
    ("same over IPv6", "pass_vlan6"),
    ("TCP to port 443 with IP options", "pass_options"),
    ("same behind an IPv6 extension header", "pass_extension"),
    ("SYN to port 25, refused", "refused_attempt"),
    ("same over IPv6", "refused_attempt6"),
    ("data to port 25, refused", "refused_data"),
    ("SYN to the relay", "allowed_relay"),
    ("SYN to the customer's own allowlist", "allowed_listed"),
    ("control group: TCP to port 443", "cgroup_pass_tcp"),
    (
        "control group: SYN to port 25, refused",
        "cgroup_refused_attempt",
    ),
    ("control group: SYN to the relay", "cgroup_allowed_relay"),
];

/// Everything for the document.
pub(crate) fn markdown(figures: &Figures) -> String {
    let mut text = targets::table(figures);
    text.push_str("\nPrograms alone, 10,000 customers, over the empty program:\n\n");
    text.push_str("| packet | median | least | spread |\n|---|---|---|---|\n");
    for (what, name) in PACKETS {
        let name = format!("program_{name}_ns");
        row(&mut text, figures, what, &name);
    }
    for customers in [10, 1_000, 10_000] {
        for (what, name) in [("one", "refused"), ("drawn by lot", "refused_random")] {
            let what = format!("SYN refused, {customers} customers, {what}");
            let name = format!("program_{name}_{customers}_customers_ns");
            row(&mut text, figures, &what, &name);
        }
    }
    for (what, name) in [
        ("same customer", "refused_two_cpus_same_customer_ns"),
        ("different customers", "refused_two_cpus_other_customers_ns"),
    ] {
        let what = format!("SYN refused, the whole program, on two CPUs at once, {what}");
        row(&mut text, figures, &what, name);
    }
    text.push_str(
        "\nOn the path, each over an empty filter on the same hook with the same verdict:\n\n",
    );
    text.push_str(
        "| policy (customers x prefixes) | filter | passes 443 | refuses 25 | loads in |\n|---|---|---|---|---|\n",
    );
    for scale in scales(true) {
        for contender in Contender::ALL {
            path_row(&mut text, figures, scale, contender);
        }
    }
    text
}

/// The pictures of [`super::plot`], for the document beside them.
pub(crate) fn pictures() -> String {
    plot::files()
        .map(|(file, title)| format!("\n![{title}]({file})\n"))
        .collect()
}

fn row(text: &mut String, figures: &Figures, what: &str, name: &str) {
    let Some(summary) = figures.summary(name) else {
        return;
    };
    // Writing to a String does not fail.
    writeln!(
        text,
        "| {what} | {} ns | {} ns | {} ns |",
        shown(summary.value),
        shown(summary.least),
        spread(&summary)
    )
    .ok();
}

fn path_row(text: &mut String, figures: &Figures, scale: Scale, contender: Contender) {
    let name = contender_name(contender, scale);
    let added = |traffic: Traffic| {
        let summary = figures.summary(&format!("added_{name}_{}_ns", traffic.name()))?;
        Some(format!("{} {} ns", shown(summary.value), spread(&summary)))
    };
    let (Some(pass), Some(refused)) = (added(Traffic::Web), added(Traffic::Mail)) else {
        return;
    };
    let load = figures
        .get(&format!("load_{name}_s"))
        .map_or(String::new(), |seconds| format!("{} s", shown(seconds)));
    let Scale {
        customers,
        prefixes,
    } = scale;
    writeln!(
        text,
        "| {customers} x {prefixes} | {} | {pass} | {refused} | {load} |",
        contender.title()
    )
    .ok();
}
