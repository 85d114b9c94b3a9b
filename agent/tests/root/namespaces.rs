//! The network namespaces of processes in cgroups.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use gate25::kernel::cgroups::{Cgroup, Role};
use gate25::kernel::links::{Kind, snapshot};
use gate25::kernel::namespaces::{Namespace, of_cgroups};

use crate::cgroup::{Own, Sleeper};
use crate::netns::{deadline, run, within};

#[test]
fn of_cgroups_number_is_that_of_the_veth_peer() {
    within(|| async {
        let own = Own::new("nsid");
        let container = given(&own, "r");
        own.make("r/inner");
        let process = isolated(&own.directory("r/inner"));
        run(&format!(
            "ip link add veth0 type veth peer name veth1 netns {}",
            process.pid()
        ));
        let listed = snapshot().unwrap();
        let veth = listed.iter().find(|link| link.name == "veth0").unwrap();
        let Kind::Veth { peer: Some(peer) } = veth.kind else {
            panic!("{veth:?}")
        };
        let found = of_cgroups(&own.hierarchy, std::slice::from_ref(&container)).unwrap();
        let [namespace] = &found.namespaces[..] else {
            panic!("{found:?}")
        };
        assert!(peer.netns.is_some());
        assert_eq!(namespace.nsid, peer.netns);
        assert_eq!(namespace.inode, inode(process.pid()));
        assert_eq!(namespace.cgroups, BTreeSet::from([container.id]));
        assert!(!namespace.own && found.cut.is_empty() && found.failed.is_empty());
    });
}

#[test]
fn of_cgroups_namespace_is_the_one_that_is_entered_and_lives_while_it_is_held() {
    within(|| async {
        let own = Own::new("held");
        let container = given(&own, "");
        let process = isolated(&own.directory(""));
        let pid = process.pid();
        run(&format!(
            "ip link add veth0 type veth peer name veth1 netns {pid}"
        ));
        let there = fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino();
        let found = of_cgroups(&own.hierarchy, &[container]).unwrap();
        let opened = found.namespaces[0].open().unwrap().unwrap();
        assert_eq!(fs::File::from(opened).metadata().unwrap().ino(), there);
        drop(process);
        assert!(found.namespaces[0].open().unwrap().is_none());
        // A veth goes with the namespace of either end.
        let is_there = || {
            let listed = snapshot().unwrap();
            listed.iter().any(|link| link.name == "veth0")
        };
        assert!(is_there());
        drop(found);
        let deadline = Instant::now() + deadline();
        while is_there() {
            assert!(Instant::now() < deadline, "the namespace lives on");
            std::thread::yield_now();
        }
    });
}

#[test]
fn of_cgroups_namespace_without_a_number_has_none() {
    within(|| async {
        let own = Own::new("no-nsid");
        let _process = isolated(&own.directory(""));
        let found = of_cgroups(&own.hierarchy, &[given(&own, "")]).unwrap();
        assert_eq!(found.namespaces.len(), 1);
        assert_eq!(found.namespaces[0].nsid, None);
    });
}

#[test]
fn of_cgroups_process_counts_for_the_deepest_given_cgroup() {
    within(|| async {
        let own = Own::new("deepest");
        let (outer, inner) = (given(&own, "r"), given(&own, "r/b"));
        own.make("r/b/c");
        let host = Sleeper::within(&own.directory("r"));
        let container = isolated(&own.directory("r/b/c"));
        let second = isolated(&own.directory("r"));
        let found = of_cgroups(&own.hierarchy, &[outer.clone(), inner.clone()]).unwrap();
        let about = |process: &Sleeper| {
            let inode = inode(process.pid());
            let mut all = found.namespaces.iter();
            let Namespace { cgroups, own, .. } = all.find(|found| found.inode == inode).unwrap();
            (cgroups.iter().copied().collect::<Vec<_>>(), *own)
        };
        assert_eq!(found.namespaces.len(), 3);
        assert_eq!(about(&host), (vec![outer.id], true));
        assert_eq!(about(&second), (vec![outer.id], false));
        assert_eq!(about(&container), (vec![inner.id], false));
    });
}

#[test]
fn of_cgroups_threaded_cgroup_below_is_no_failure() {
    within(|| async {
        let own = Own::new("threaded");
        let cgroup = given(&own, "");
        own.make("t");
        fs::write(own.directory("t/cgroup.type"), "threaded").unwrap();
        let process = isolated(&own.directory(""));
        let found = of_cgroups(&own.hierarchy, &[cgroup]).unwrap();
        assert!(found.failed.is_empty(), "{found:?}");
        assert_eq!(found.namespaces[0].inode, inode(process.pid()));
    });
}

#[test]
fn of_cgroups_replaced_cgroup_has_none() {
    within(|| async {
        let own = Own::new("stale");
        let before = given(&own, "r");
        own.remove("r");
        own.make("r");
        let _process = Sleeper::within(&own.directory("r"));
        let found = of_cgroups(&own.hierarchy, &[before]).unwrap();
        assert!(
            found.namespaces.is_empty() && found.failed.is_empty(),
            "{found:?}"
        );
    });
}

#[test]
fn of_cgroups_large_tree_is_cut_and_says_so() {
    within(|| async {
        let own = Own::new("large");
        let (large, small) = (given(&own, "large"), given(&own, "small"));
        for n in 0..1100 {
            own.make(&format!("large/c{n}"));
        }
        own.make("large/deep/2/3/4/5/6/7/8/9/10/11/12/13/14");
        let _process = isolated(&own.directory("large"));
        let found = of_cgroups(&own.hierarchy, &[large.clone(), small]).unwrap();
        assert_eq!(found.cut, BTreeSet::from([large.id]));
        assert_eq!(found.namespaces.len(), 1);
        let deep = given(&own, "large/deep");
        let found = of_cgroups(&own.hierarchy, std::slice::from_ref(&deep)).unwrap();
        assert_eq!(found.cut, BTreeSet::from([deep.id]));
    });
}

#[test]
fn of_cgroups_while_processes_come_and_go_reports_no_failure() {
    within(|| async {
        let own = Own::new("come-and-go");
        let cgroup = given(&own, "");
        let _stays = isolated(&own.directory(""));
        let procs = own.directory("cgroup.procs");
        let churn = std::thread::spawn(move || {
            for _ in 0..50 {
                let script = "echo $$ > \"$0\"; for i in 1 2 3 4 5 6 7 8; do true & done; wait";
                let done = Command::new("sh").args(["-c", script]).arg(&procs).status();
                assert!(done.unwrap().success());
            }
        });
        while !churn.is_finished() {
            let found = of_cgroups(&own.hierarchy, std::slice::from_ref(&cgroup)).unwrap();
            assert!(found.failed.is_empty(), "{found:?}");
            assert!(found.namespaces.iter().any(|namespace| !namespace.own));
        }
        churn.join().unwrap();
    });
}

fn given(own: &Own, path: &str) -> Cgroup {
    own.make(path);
    let id = fs::metadata(own.directory(path)).unwrap().ino();
    Cgroup {
        id,
        path: own.path(path),
        role: Role::Root,
    }
}

/// A process in a cgroup and a network namespace of its own.
fn isolated(cgroup: &Path) -> Sleeper {
    let process = Sleeper::running(cgroup, "unshare --net sleep infinity");
    let here = fs::metadata("/proc/thread-self/net/dev").unwrap().ino();
    let deadline = Instant::now() + deadline();
    while inode(process.pid()) == here {
        assert!(
            Instant::now() < deadline,
            "unshare did not enter a namespace"
        );
        std::thread::yield_now();
    }
    process
}

/// The inode number by which namespaces are told apart.
fn inode(pid: u32) -> u64 {
    fs::metadata(format!("/proc/{pid}/net/dev")).unwrap().ino()
}
