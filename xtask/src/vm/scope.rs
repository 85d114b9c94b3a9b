//! What is not run on other kernels.

/// What stays outside, and why.
const LEFT_OUT: [(&str, &str); 14] = [
    ("system_container", "crun, podman and LXC"),
    ("system_container_lab", "crun, podman and LXC"),
    ("system_control", "commands, not kernels"),
    ("system_exempt", "the policy's files, not kernels"),
    ("system_lab", "mail servers without an agent"),
    ("system_meter", "the leak meter itself"),
    ("system_notice", "mail servers"),
    ("system_prometheus", "Prometheus, not kernels"),
    ("system_recovery", "commands, not kernels"),
    ("system_reload", "the policy's files, not kernels"),
    ("system_state", "files, not kernels"),
    ("system_trial", "what is kept of a policy, not kernels"),
    ("system_vm", "a virtual machine in the virtual machine"),
    ("system_vm_gate", "a virtual machine in the virtual machine"),
];

/// Tests whose names contain this stay outside, and why.
pub(super) const LEFT_OUT_TESTS: [(&str, &str); 4] = [
    (
        "events_that_nobody_reads",
        "half a million packets, not kernels",
    ),
    ("slow_nft", "how long a program takes, not kernels"),
    ("ten_thousand", "large numbers, not kernels"),
    ("hundred_times", "large numbers, not kernels"),
];

/// Why a test binary stays outside, if it does.
pub(super) fn left_out(target: &str) -> Option<&'static str> {
    let entry = LEFT_OUT.iter().find(|(name, _)| *name == target);
    entry.map(|(_, why)| *why)
}

/// All of it in Markdown.
pub(super) fn list() -> String {
    let mut text =
        "Left out, since no kernel changes what comes of them, or the machine cannot:\n\n"
            .to_owned();
    for (name, why) in LEFT_OUT.into_iter().chain(LEFT_OUT_TESTS) {
        text.push_str(&format!("- `{name}`: {why}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binaries;

    #[test]
    fn left_out_names_are_those_of_files() {
        let targets = binaries::targets("system").unwrap();
        for (name, _) in LEFT_OUT {
            assert!(targets.iter().any(|target| target == name), "{name}");
        }
    }
}
