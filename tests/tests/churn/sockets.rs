//! Groups of control groups version 1 that sockets are put into.

use gate25_tests::{Accounts, Rounds, Trial, V1Group, World, skip};

use super::scene::{besieged, closed};

/// Controllers of version 1 that the kernel notes in sockets, and a value of theirs.
const GROUPS: [(&str, Option<(&str, &str)>); 2] = [
    ("net_cls", Some(("net_cls.classid", "0x00100001"))),
    // Its values are for the machine's own interfaces; sockets get the group's number anyway.
    ("net_prio", None),
];

/// Moves containers into such groups and out again. Before Linux 5.15 their sockets lose their
/// cgroup by that.
#[track_caller]
pub(crate) fn classed(times: u64) {
    let world = World::new().unwrap();
    let mut groups = Vec::new();
    for (controller, value) in GROUPS {
        let Some(group) = V1Group::new(&world, controller).unwrap() else {
            return skip(&format!("the kernel has no {controller}")).unwrap();
        };
        if let Some((file, value)) = value {
            group.set(file, value).unwrap();
        }
        groups.push((controller, group));
    }
    let (mut meter, agent) = besieged(&world);
    let processes: Vec<u32> = meter.containers().map(|it| it.process()).collect();
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        for (controller, group) in &groups {
            meter
                .phase(&format!("in {controller}, round {round}"))
                .unwrap();
            for process in &processes {
                group.take(*process).unwrap();
            }
            meter.check().unwrap();
            // Sockets are noted anew by whoever owns them now.
            let policy = closed(&world).customer("c-any", &format!("tap8{round}i0"));
            agent.apply_policy("policy.yaml", &policy.text()).unwrap();
            meter.check().unwrap();
            meter
                .phase(&format!("out of {controller}, round {round}"))
                .unwrap();
            for process in &processes {
                group.release(*process).unwrap();
            }
            meter.check().unwrap();
        }
    }
    let what = "containers put into groups of net_cls and net_prio (cgroup v1)";
    let times = rounds.begun() * GROUPS.len() as u64;
    meter
        .judge(&agent, Trial::Fault, what, times, Accounts::Customers)
        .unwrap();
}
