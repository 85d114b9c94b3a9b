//! The version 2 hierarchy as the kernel has it: mount, ids, and whose sockets are whose.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;

use gate25::kernel::cgroups::{Attribution, Hierarchy, Layout, list, self_test};
use gate25_tests::skip;

use crate::cgroup::{Own, enter_threaded};

#[test]
fn find_agrees_with_findmnt() {
    let found = Hierarchy::find().unwrap();
    let target = |kind: &str| {
        let said = Command::new("findmnt")
            .args(["-nro", "TARGET", "-t", kind])
            .output()
            .unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    assert!(
        target("cgroup2")
            .lines()
            .any(|line| Path::new(line) == found.mount())
    );
    let hybrid = !target("cgroup").is_empty();
    assert_eq!(found.layout() == Layout::Hybrid, hybrid);
}

#[test]
fn list_ids_are_what_the_kernel_calls_them() {
    let own = Own::new("ids");
    own.make("a");
    let listed = list(&own.hierarchy, own.roots(&[""]), 2).unwrap();
    assert_eq!(listed.len(), 2);
    for cgroup in listed {
        assert_eq!(cgroup.id, handle(&own.hierarchy.mount().join(&cgroup.path)));
        assert_eq!(own.hierarchy.path_of(cgroup.id).unwrap(), Some(cgroup.path));
    }
}

#[test]
fn path_of_a_removed_cgroup_is_none() {
    let own = Own::new("path-of");
    let id = own.make("deep (deleted)");
    let path = own.path("deep (deleted)");
    assert_eq!(own.hierarchy.path_of(id).unwrap(), Some(path));
    own.remove("deep (deleted)");
    assert_eq!(own.hierarchy.path_of(id).unwrap(), None);
    let held = own.make("held");
    let _open = fs::File::open(own.directory("held")).unwrap();
    own.remove("held");
    own.make("held");
    assert_eq!(own.hierarchy.path_of(held).unwrap(), None);
}

#[test]
fn self_test_in_a_cgroup_is_right() {
    let own = Own::new("self-test");
    let path = own.directory("");
    let outcome = std::thread::spawn(move || {
        enter_threaded(&path);
        self_test(&Hierarchy::find().unwrap()).unwrap()
    });
    assert_eq!(outcome.join().unwrap(), Attribution::Right);
}

#[test]
fn self_test_in_the_root_cgroup_is_inconclusive() {
    let own = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
    if !own.lines().any(|line| line == "0::/") {
        skip("not in the root cgroup, where this test would have to go").unwrap();
        return;
    }
    let outcome = self_test(&Hierarchy::find().unwrap()).unwrap();
    assert_eq!(outcome, Attribution::Inconclusive);
}

/// The cgroup id that the kernel gives as a file handle.
fn handle(path: &Path) -> u64 {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    let mut handle = Handle {
        bytes: 8,
        kind: 0,
        id: [0; 8],
    };
    let mut mount = 0;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends in a zero, and the handle says how much room it has.
    let outcome = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            path.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            0,
        )
    };
    assert_eq!(
        (outcome, handle.kind),
        (0, 0xfe),
        "{}",
        io::Error::last_os_error()
    );
    u64::from_ne_bytes(handle.id)
}
