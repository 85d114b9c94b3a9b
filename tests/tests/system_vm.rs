//! The virtual machine itself: without an agent it reaches a mail server through the bridge.
#![cfg(feature = "root")]

use std::time::Duration;

use gate25_tests::{Hosting, Lab, Outcome, Postfix, Role, Vm};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn virtual_machine_without_agent_is_greeted_by_the_exchanger() {
    let lab = Lab::for_test().unwrap();
    let hosting = Hosting::new(&lab).unwrap();
    let role = Role::Exchanger {
        domain: "example.org".to_owned(),
    };
    let _server = Postfix::start(&hosting.exchanger, &role).unwrap();
    let mut vm = Vm::boot(&hosting, 104, "tap104i0").unwrap();
    for to in [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ] {
        let (attempt, greeting) = vm.connect(to, LIMIT).unwrap();
        assert_eq!(
            attempt.outcome,
            Outcome::Connected,
            "{to}: {greeting}\n{}",
            vm.console()
        );
        assert!(greeting.starts_with("220 "), "{greeting}");
    }
    let (closed, output) = vm.connect(Hosting::EXCHANGER.v4_port(26), LIMIT).unwrap();
    assert_eq!(closed.outcome, Outcome::Refused, "{output}");
}
