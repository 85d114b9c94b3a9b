//! What the agent makes of the kernel that it finds.
#![cfg(feature = "root")]

use gate25_tests::{Feature, PolicyText, World, kernel_version};

#[test]
fn interfaces_are_judged_by_tcx_exactly_where_the_kernel_has_it() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    world.check_closed(&guest).unwrap();
    let present = Feature::Tcx.is_present().unwrap();
    assert_eq!(present, kernel_version().unwrap() >= (6, 6));
    let metrics = agent.metrics().unwrap();
    for (hook, used) in [("tcx", present), ("tc", !present)] {
        let enforcing = metrics.sum("gate25_enforcing", &[("hook", hook)]);
        let expected = if used { 1.0 } else { 0.0 };
        assert_eq!(enforcing.unwrap_or_default(), expected, "{hook}");
    }
}
