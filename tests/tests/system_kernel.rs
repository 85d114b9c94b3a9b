//! What the agent makes of the kernel that it finds.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use gate25_tests::{Feature, PolicyText, World, kernel_version};
use serde_json::Value;

/// Opcodes of `r0 = *(u8 *)(r0 + offset)`, `r0 &= number` and `r0 ^= number` (RFC 9669).
const READ_AND_COMPARE: [u8; 3] = [0x71, 0x57, 0xa7];

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

#[test]
fn state_of_a_checksum_is_read_in_place_exactly_where_the_kernel_allows_it() {
    let world = World::new().unwrap();
    let _agent = world.agent(&PolicyText::default()).unwrap();
    let present = Feature::ContextCast.is_present().unwrap();
    assert_eq!(present, kernel_version().unwrap() >= (6, 2));
    let programs = world.pinned_objects().unwrap();
    let mut paths = programs.keys();
    let program = paths.find(|path| path.ends_with("tc_ingress")).unwrap();
    let program = program.to_string_lossy();
    let dump = [
        "-j", "prog", "dump", "xlated", "pinned", &program, "opcodes",
    ];
    let dumped = world.hosting.hypervisor.exec("bpftool", &dump).unwrap();
    let dumped: Value = serde_json::from_str(&dumped).unwrap();
    let instructions = dumped.as_array().unwrap();
    let mut windows = instructions.windows(READ_AND_COMPARE.len());
    let in_place = windows.any(|window| {
        let codes = window.iter().map(|it| opcode(&it["opcodes"]["code"]));
        let compared = [1, 2].map(|place: usize| &window[place]["opcodes"]["imm"]);
        codes.eq(READ_AND_COMPARE) && compared[0] == compared[1]
    });
    assert_eq!(in_place, present);
}

fn opcode(hexadecimal: &Value) -> u8 {
    let text = hexadecimal.as_str().unwrap();
    u8::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}
