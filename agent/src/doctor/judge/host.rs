//! The host itself: its kernel, its mounts, the agent's privileges, its cgroups.

use super::seen;
use crate::doctor::facts::Host;
use crate::doctor::findings::{Finding, Kind};
use crate::kernel::bpf::features::Features;

pub(super) fn judge(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if host.wants_ebpf {
        programs(host, &mut findings);
    }
    if host.wants_containers {
        containers(host, &mut findings);
    }
    if host.now < host.built {
        let message = format!(
            "it shows {}, before {}, when this was built",
            host.now, host.built
        );
        findings.push(Finding::new(Kind::ClockBehind, "clock", message));
    }
    let managers = seen(&host.managers, "services", &mut findings);
    for manager in managers
        .into_iter()
        .flatten()
        .filter(|_| !host.guard_at_boot)
    {
        let message =
            "it starts at boot and replaces the ruleset; nothing loads the guard after it";
        findings.push(Finding::new(Kind::RulesetManager, manager, message));
    }
    if let Some(capabilities) = &host.capabilities
        && let Some(held) = seen(capabilities, "the agent's privileges", &mut findings)
    {
        let missing = host.needed.difference(held).map(|one| one.as_str());
        let missing: Vec<&str> = missing.collect();
        if !missing.is_empty() {
            let message = format!("it is without {}", missing.join(", "));
            findings.push(Finding::new(Kind::CapabilityMissing, "agent", message));
        }
    }
    findings
}

fn programs(host: &Host, findings: &mut Vec<Finding>) {
    let kernel = match &host.release {
        Ok(release) => format!("kernel {release}"),
        Err(_) => "kernel".to_owned(),
    };
    if let Some(features) = seen(&host.features, &kernel, findings) {
        let Features {
            missing,
            tcx,
            connect_error,
        } = features;
        if !missing.is_empty() {
            let message = format!("it has no {}", missing.join(", no "));
            findings.push(Finding::new(Kind::KernelFeature, &kernel, message));
        }
        if !tcx {
            let message = "programs cannot be attached to interfaces by links";
            findings.push(Finding::new(Kind::NoTcx, &kernel, message));
        }
        if !connect_error {
            let message = "containers' refused connects end in \"operation not permitted\"";
            findings.push(Finding::new(Kind::NoConnectError, &kernel, message));
        }
    }
    if !host.btf {
        let message = "/sys/kernel/btf/vmlinux is missing";
        findings.push(Finding::new(Kind::NoBtf, &kernel, message));
    }
    let (path, mounted) = &host.bpf_filesystem;
    let place = path.display().to_string();
    if seen(mounted, &place, findings) == Some(&false) {
        let message = "no BPF filesystem is mounted there";
        findings.push(Finding::new(Kind::PinsMissing, place, message));
    }
    let (path, mode) = &host.pins_mode;
    let place = path.display().to_string();
    if let Some(Some(mode)) = seen(mode, &place, findings)
        && mode & 0o077 != 0
    {
        let message = format!("its mode is {mode:04o}");
        findings.push(Finding::new(Kind::PinsOpen, place, message));
    }
}

fn containers(host: &Host, findings: &mut Vec<Finding>) {
    if seen(&host.cgroups, "cgroups", findings) == Some(&None) {
        let message = "the settings name roots, and no cgroup2 filesystem is mounted";
        findings.push(Finding::new(Kind::CgroupsMissing, "cgroups", message));
    }
    let misattributed = seen(&host.misattributed, "sockets' cgroups", findings);
    if misattributed == Some(&true) {
        let message = "a socket of this process is counted for another cgroup";
        findings.push(Finding::new(Kind::Misattributed, "cgroups", message));
    }
    let controllers = seen(&host.network_controllers, "cgroups of version 1", findings);
    for controller in controllers.into_iter().flatten() {
        let message = "this controller of version 1 is mounted";
        findings.push(Finding::new(Kind::NetworkControllers, controller, message));
    }
    for root in &host.absent_roots {
        let message = "there is no such cgroup yet";
        findings.push(Finding::new(Kind::RootAbsent, root, message));
    }
}
