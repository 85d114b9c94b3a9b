//! Ways of guests' frames that lead past every hook.

use super::seen;
use crate::doctor::facts::{Coverage, Interface, Role, Station};
use crate::doctor::findings::{Finding, Kind};
use crate::kernel::functions::Function;
use crate::kernel::machines::Machine;

/// Interfaces that hand frames to the one that they sit on, or to each other, without arriving
/// anywhere on the host.
const BYPASSES: [&str; 4] = ["macvtap", "macvlan", "ipvlan", "ipvtap"];
const OPEN_VSWITCH: &str = "openvswitch";

pub(super) fn judge(coverage: &Coverage) -> Vec<Finding> {
    let Coverage {
        interfaces,
        own: _,
        chains: _,
        chained: _,
        roots: _,
        functions,
        machines,
        sample: _,
    } = coverage;
    let mut findings = Vec::new();
    // That they cannot be looked at is said with the hooks.
    let interfaces = interfaces.as_ref().map_or(&[][..], Vec::as_slice);
    for interface in interfaces {
        findings.extend(passing(interface));
        findings.extend(port(interface));
    }
    let machines = seen(machines, "processes of QEMU", &mut findings);
    let machines = machines.map_or(&[][..], Vec::as_slice);
    for machine in machines {
        for kind in &machine.bypasses {
            let message = format!("its network is {kind}, served by another process");
            findings.push(Finding::new(Kind::VhostUser, called(machine), message));
        }
        findings.extend(interfaces.iter().filter_map(|it| silent(it, machine)));
    }
    if let Some(functions) = seen(functions, "network functions", &mut findings) {
        handed_on(functions, machines, &mut findings);
    }
    findings
}

fn passing(interface: &Interface) -> Option<Finding> {
    let Interface {
        name,
        kind_name,
        role,
        parent,
        ..
    } = interface;
    if *role == Role::Ignored || !BYPASSES.contains(&kind_name.as_str()) {
        return None;
    }
    let parent = parent.as_deref().unwrap_or("another interface");
    let message = format!("it is a {kind_name}, whose frames leave by {parent} unseen");
    Some(Finding::new(Kind::Bypass, name, message))
}

fn port(interface: &Interface) -> Option<Finding> {
    let Interface {
        name, role, master, ..
    } = interface;
    let Some(Station { name: bridge, kind }) = master else {
        return None;
    };
    (*role == Role::Workload && kind == OPEN_VSWITCH).then(|| {
        let message = format!("it is a port of Open vSwitch ({bridge})");
        Finding::new(Kind::OpenVswitch, name, message)
    })
}

/// A running guest that has not sent a single packet by its tap. A Linux guest sends some as soon
/// as its card is up, so its frames may take another way; or it has no network yet.
fn silent(interface: &Interface, machine: &Machine) -> Option<Finding> {
    let Interface {
        name,
        role,
        carrier,
        received,
        ..
    } = interface;
    let taps = machine.taps.as_ref();
    let is_silent = *role == Role::Workload
        && *carrier
        && *received == 0
        && taps.is_some_and(|taps| taps.contains(name));
    is_silent.then(|| {
        let message = format!("{} runs and nothing ever arrived by it", called(machine));
        Finding::new(Kind::GuestSilent, name, message)
    })
}

fn handed_on(functions: &[Function], machines: &[Machine], findings: &mut Vec<Finding>) {
    for function in functions {
        let Function {
            address,
            driver,
            virtual_functions,
        } = function;
        if *virtual_functions > 0 {
            let message = format!("{virtual_functions} virtual functions are made");
            findings.push(Finding::new(Kind::VirtualFunctions, address, message));
        }
        let holder = machines.iter().find(|it| it.functions.contains(address));
        let message = match (holder, function.is_handed_on()) {
            (Some(machine), _) => format!("{} has taken it over", called(machine)),
            (None, true) => format!(
                "driver {} holds it for a guest",
                driver.as_deref().unwrap_or_default()
            ),
            (None, false) => continue,
        };
        findings.push(Finding::new(Kind::HandedOn, address, message));
    }
}

fn called(machine: &Machine) -> String {
    match machine.name.as_str() {
        "" => format!("QEMU process {}", machine.process),
        name => format!("guest {name} (process {})", machine.process),
    }
}
