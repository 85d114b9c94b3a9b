//! The gate before a virtual machine, a real Postfix behind it.
#![cfg(feature = "root")]

use std::time::Duration;

use gate25_tests::{Agent, Hosting, Lab, Outcome, Postfix, Role, Settings, Vm, poll};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);
const FILE: &str = "policy.yaml";

#[test]
fn virtual_machine_is_refused_until_exempt_and_after_expiry_with_the_agent_stopped() {
    let lab = Lab::for_test().unwrap();
    let hosting = Hosting::new(&lab).unwrap();
    let role = Role::Exchanger {
        domain: "example.org".to_owned(),
    };
    let _server = Postfix::start(&hosting.exchanger, &role).unwrap();
    let closed = [(FILE, policy(None))];
    let mut agent = Agent::start(&hosting.hypervisor, Settings::default(), &closed).unwrap();
    let mut vm = Vm::boot(&hosting, 104, "tap104i0").unwrap();
    let exchanger = [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ];

    for to in exchanger {
        let (attempt, output) = vm.connect(to, LIMIT).unwrap();
        assert_eq!(
            attempt.outcome,
            Outcome::Refused,
            "never exempt: {to}: {output}"
        );
    }

    let expires = Timestamp::now() + SignedDuration::from_secs(20);
    agent.apply_policy(FILE, &policy(Some(expires))).unwrap();
    for to in exchanger {
        let (attempt, output) = vm.connect(to, LIMIT).unwrap();
        assert_eq!(
            attempt.outcome,
            Outcome::Connected,
            "exempt: {to}: {output}"
        );
        assert!(output.starts_with("220 "), "{output}");
    }

    agent.signal(Signal::SIGSTOP).unwrap();
    assert!(
        Timestamp::now() < expires,
        "the machine was too slow to try the exemption"
    );
    let moment = Duration::from_secs(1);
    let wait = Duration::try_from(expires.duration_since(Timestamp::now())).unwrap() + moment;
    poll("the exemption to expire", wait + LIMIT, || {
        Ok((Timestamp::now() >= expires + moment).then_some(()))
    })
    .unwrap();
    for to in exchanger {
        let (attempt, output) = vm.connect(to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Refused, "expired: {to}: {output}");
    }
    agent.signal(Signal::SIGCONT).unwrap();
}

fn policy(exempt_until: Option<Timestamp>) -> String {
    let exemptions = exempt_until.map(|expires| {
        format!(
            "exemptions:\n  - id: newsletter\n    customer: c-1\n    reason: test\n    \
             ticket: T-1\n    approved_by: noc\n    expires: {expires}\n    to: any\n"
        )
    });
    format!(
        "schema: 1\nprofiles:\n  - name: default\ncustomers:\n  - id: c-1\n    \
         workloads: [{{interface: tap104i0}}]\n{}",
        exemptions.unwrap_or_default()
    )
}
