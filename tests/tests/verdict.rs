//! Packets through the program in the kernel, loaded by software that others wrote.
#![cfg(feature = "root")]

use std::{fs, path::Path, process::Command, time::Duration};

use gate25_tests::{Lab, Object};

/// TCX_NEXT, which is also TC_ACT_UNSPEC: other people's programs still run.
const NEXT: &str = "Return value: 4294967295";

#[test]
fn packet_of_another_protocol_passes_untouched() {
    let lab = Lab::for_test().unwrap();
    let ns = lab.netns("test").unwrap();
    let mut arp = vec![0xff; 6];
    arp.extend_from_slice(&[2, 0, 0, 0, 0, 1, 0x08, 0x06]);
    arp.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(60, 0);
    let (input, output) = (lab.dir().join("in"), lab.dir().join("out"));
    fs::write(&input, &arp).unwrap();
    let object = Object::Plain.path().unwrap();
    let bpftool = |arguments: &[&Path]| {
        let mut command: Command = ns.command("bpftool");
        command.args(arguments);
        let result = ns.output(command, Duration::from_secs(30)).unwrap();
        let text = String::from_utf8_lossy(&result.stdout).into_owned();
        assert!(result.status.success(), "bpftool {arguments:?}: {text}");
        text
    };
    let pins = Path::new("/sys/fs/bpf/object");
    bpftool(&[Path::new("prog"), Path::new("loadall"), &object, pins]);
    let program = pins.join("tc_ingress");
    let said = bpftool(&[
        Path::new("prog"),
        Path::new("run"),
        Path::new("pinned"),
        &program,
        Path::new("data_in"),
        &input,
        Path::new("data_out"),
        &output,
    ]);
    assert!(said.contains(NEXT), "{said}");
    assert_eq!(fs::read(&output).unwrap(), arp);
}
