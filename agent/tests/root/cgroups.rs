//! Control groups as they come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gate25::kernel::cgroups::{Cgroup, CgroupEvent, Cgroups, Hierarchy, Role, list};
use gate25_tests::{paced, poll};

use crate::cgroup::{Own, Sleeper};
use crate::netns::{LIMIT, deadline};

/// Set in the process that runs a test again under other limits.
const LIMITED: &str = "GATE25_TEST_WATCHES";

#[test]
fn snapshot_lists_roots_and_what_is_below_them_down_to_the_depth() {
    runtime(async {
        let own = Own::new("depth");
        for path in ["r1/b/c", "r2/b", "other/b"] {
            own.make(path);
        }
        let mut cgroups = own.follow(&["r*", "other/b"], 3);
        let listed = cgroups.snapshot().unwrap();
        let expected = [
            ("other/b", Role::Root),
            ("r1", Role::Root),
            ("r1/b", Role::Below),
            ("r2", Role::Root),
            ("r2/b", Role::Below),
        ];
        assert_eq!(
            own.relative(&listed),
            BTreeMap::from(expected.map(|(p, r)| (p.to_owned(), r)))
        );
        cgroups.set_depth(4);
        assert_eq!(cgroups.snapshot().unwrap().len(), 6);
        assert_eq!(
            list(&own.hierarchy, own.roots(&["r*", "other/b"]), 3).unwrap(),
            listed
        );
    });
}

#[test]
fn next_paths_of_any_bytes_are_kept() {
    runtime(async {
        let own = Own::new("bytes");
        own.make("r");
        let mut cgroups = own.follow(&["r"], 3);
        cgroups.snapshot().unwrap();
        for name in [
            &b"a b"[..],
            b"machine-lxc\\x2d1\\x2db.scope",
            b"\xff\xfe",
            b"\\040",
        ] {
            let path = own.path("r").join(OsStr::from_bytes(name));
            fs::create_dir(own.hierarchy.mount().join(&path)).unwrap();
            let created = created(next(&mut cgroups).await);
            assert_eq!(
                (created.path.as_path(), created.role),
                (path.as_path(), Role::Below)
            );
            assert_eq!(own.hierarchy.path_of(created.id).unwrap(), Some(path));
        }
    });
}

#[test]
fn next_made_all_at_once_reports_every_level() {
    runtime(async {
        let own = Own::new("mkdir-p");
        let mut cgroups = own.follow(&["way/r*"], 5);
        cgroups.snapshot().unwrap();
        for round in 0..200 {
            own.make(&format!("way/r{round}/b/c/d"));
            let mut seen = Vec::new();
            while seen.len() < 3 {
                seen.push(created(next(&mut cgroups).await).path);
            }
            let expected = ["", "/b", "/b/c"].map(|end| own.path(&format!("way/r{round}{end}")));
            assert_eq!(seen, expected);
        }
    });
}

#[test]
fn next_removed_tree_is_gone_the_deepest_first() {
    runtime(async {
        let own = Own::new("removed");
        own.make("way/r/b");
        let mut cgroups = own.follow(&["way/r"], 5);
        let listed = cgroups.snapshot().unwrap();
        own.remove("way/r/b");
        own.remove("way/r");
        own.remove("way");
        for cgroup in listed.iter().rev() {
            let Cgroup { id, path, role: _ } = cgroup.clone();
            assert_eq!(next(&mut cgroups).await, CgroupEvent::Gone { id, path });
        }
        let id = own.make("way/r");
        assert_eq!(created(next(&mut cgroups).await).id, id);
        quiet(&mut cgroups).await;
    });
}

#[test]
fn next_replaced_under_its_path_is_gone_and_created_with_the_new_id() {
    runtime(async {
        let own = Own::new("replaced");
        let before = own.make("r");
        let mut cgroups = own.follow(&["r"], 0);
        cgroups.snapshot().unwrap();
        for _ in 0..9 {
            own.remove("r");
            own.make("r");
        }
        own.remove("r");
        let after = own.make("r");
        let path = own.path("r");
        let gone = CgroupEvent::Gone {
            id: before,
            path: path.clone(),
        };
        assert_eq!(next(&mut cgroups).await, gone);
        let role = Role::Root;
        let created = CgroupEvent::Created(Cgroup {
            id: after,
            path,
            role,
        });
        assert_eq!(next(&mut cgroups).await, created);
        quiet(&mut cgroups).await;
    });
}

#[test]
fn next_replaced_without_pause_never_mixes_ids() {
    runtime(async {
        let own = Own::new("churn");
        own.make("r");
        let mut cgroups = own.follow(&["r", "r/*"], 0);
        let mut known = id_by_path(cgroups.snapshot().unwrap());
        let (mount, path) = (own.hierarchy.mount().to_owned(), own.path("r"));
        let churn = std::thread::spawn(move || {
            for _ in 0..2000 {
                fs::create_dir(mount.join(&path).join("x")).unwrap();
                fs::remove_dir(mount.join(&path).join("x")).unwrap();
                fs::remove_dir(mount.join(&path)).unwrap();
                fs::create_dir(mount.join(&path)).unwrap();
            }
            fs::create_dir(mount.join(&path).join("last")).unwrap();
        });
        while !known.contains_key(&own.path("r/last")) {
            apply(&mut known, next(&mut cgroups).await);
        }
        churn.join().unwrap();
        assert_eq!(
            known,
            id_by_path(list(&own.hierarchy, own.roots(&["r", "r/*"]), 0).unwrap())
        );
        quiet(&mut cgroups).await;
    });
}

#[test]
fn next_first_process_is_reported() {
    runtime(async {
        let own = Own::new("populated");
        let id = own.make("r");
        own.make("r/b");
        let path = own.path("r");
        let mut cgroups = own.follow(&["r"], 0);
        cgroups.snapshot().unwrap();
        let populated = CgroupEvent::Populated {
            id,
            path: path.clone(),
        };
        let first = Sleeper::within(&own.directory("r/b"));
        assert_eq!(next(&mut cgroups).await, populated);
        let second = Sleeper::within(&own.directory("r"));
        quiet(&mut cgroups).await;
        fs::write(own.directory("r").join("cgroup.freeze"), "1").unwrap();
        fs::write(own.directory("r").join("cgroup.freeze"), "0").unwrap();
        drop((first, second));
        let emptied = || Ok(empty(&own.directory("r")).then_some(()));
        poll("the cgroup to be empty", LIMIT, emptied).unwrap();
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(100), cgroups.next()).await
        {
            // Frozen and thawed at once looks like emptied and filled at once.
            assert_eq!(event.unwrap(), populated);
        }
        let _third = Sleeper::within(&own.directory("r"));
        assert_eq!(next(&mut cgroups).await, populated);
    });
}

#[test]
fn next_created_with_a_process_is_populated() {
    runtime(async {
        let own = Own::new("born");
        let mut cgroups = own.follow(&["r"], 0);
        cgroups.snapshot().unwrap();
        let id = own.make("r");
        let _sleeper = Sleeper::within(&own.directory("r"));
        let path = own.path("r");
        let role = Role::Root;
        let created = CgroupEvent::Created(Cgroup {
            id,
            path: path.clone(),
            role,
        });
        assert_eq!(next(&mut cgroups).await, created);
        assert_eq!(
            next(&mut cgroups).await,
            CgroupEvent::Populated { id, path }
        );
    });
}

#[test]
fn next_below_the_depth_costs_nothing() {
    runtime(async {
        let own = Own::new("tenants");
        own.make("r");
        let mut cgroups = own.follow(&["r"], 2);
        cgroups.snapshot().unwrap();
        own.make("r/own/deeper");
        own.make("other");
        quiet(&mut cgroups).await;
        assert_eq!(
            watches(&own.inodes("r")),
            1,
            "more than the state of the root"
        );
        for path in ["r/own", "r/own/deeper", "other"] {
            assert_eq!(watches(&own.inodes(path)), 0);
        }
    });
}

#[test]
fn next_removed_cgroups_leave_no_watches() {
    runtime(async {
        let own = Own::new("leak");
        own.make("r");
        let mut cgroups = own.follow(&["r"], 4);
        cgroups.snapshot().unwrap();
        own.make("r/x");
        let inodes = own.inodes("r/x");
        next(&mut cgroups).await;
        assert_eq!(watches(&inodes), 2);
        own.remove("r/x");
        next(&mut cgroups).await;
        assert_eq!(watches(&inodes), 0);
        own.make("r/y");
        let inodes = own.inodes("r/y");
        cgroups.snapshot().unwrap();
        assert_eq!(watches(&inodes), 2);
        own.remove("r/y");
        cgroups.snapshot().unwrap();
        assert_eq!(watches(&inodes), 0);
    });
}

#[test]
fn next_of_ten_thousand_cgroups_loses_none() {
    runtime(async {
        let own = Own::new("many");
        own.make("r");
        let mut cgroups = own.follow(&["r"], 3);
        cgroups.snapshot().unwrap();
        let base = own.directory("r");
        let maker = std::thread::spawn(move || {
            for n in 0..10_000 {
                fs::create_dir(base.join(format!("c{n}"))).unwrap();
            }
        });
        let mut seen = BTreeSet::new();
        while seen.len() < 10_000 {
            assert!(seen.insert(created(next(&mut cgroups).await).id));
        }
        maker.join().unwrap();
        let started = Instant::now();
        let mut fresh = own.follow(&["r"], 3);
        assert_eq!(fresh.snapshot().unwrap().len(), 10_001);
        let took = started.elapsed();
        println!("10,000 cgroups: snapshot in {took:?}");
        // Linear, whatever else the machine does.
        assert!(took < paced(Duration::from_secs(10)), "{took:?}");
    });
}

#[test]
fn next_after_an_overflow_says_lost_and_events_resume() {
    runtime(async {
        let own = Own::new("overflow");
        own.make("r");
        let mut cgroups = own.follow(&["r"], 3);
        cgroups.snapshot().unwrap();
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        for _ in 0..limit / 2 + 100 {
            own.make("r/x");
            own.remove("r/x");
        }
        own.make("r/stays");
        while next(&mut cgroups).await != CgroupEvent::Lost {}
        let listed = own.relative(&cgroups.snapshot().unwrap());
        assert_eq!(listed.keys().collect::<Vec<_>>(), ["r", "r/stays"]);
        let id = own.make("r/last");
        assert_eq!(created(next(&mut cgroups).await).id, id);
    });
}

#[test]
fn next_at_the_watch_limit_says_so_and_snapshots_stay_whole() {
    // Limits are set for a user namespace of the test's own.
    let script = "echo 6 > /proc/sys/user/max_inotify_watches && exec \"$0\" --exact \
                  cgroups::limited --ignored --nocapture";
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(LIMITED, "6")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let (true, true) = (done.status.success(), said.contains("1 passed")) else {
        panic!("{said}{}", String::from_utf8_lossy(&done.stderr))
    };
}

#[test]
#[ignore = "another test runs it in a process with other limits"]
fn limited() {
    if std::env::var_os(LIMITED).is_none() {
        println!("skipped: another test runs it");
        return;
    }
    runtime(async {
        let own = Own::new("limit");
        own.make("r");
        let mut cgroups = own.follow(&["r"], 3);
        cgroups.snapshot().unwrap();
        let mut paths = BTreeSet::new();
        for n in 0..10 {
            own.make(&format!("r/c{n}"));
        }
        let mut limits = 0;
        while paths.len() < 10 {
            let event = next(&mut cgroups).await;
            if event == CgroupEvent::WatchLimit {
                limits += 1;
            } else {
                assert!(paths.insert(created(event).path));
            }
        }
        quiet(&mut cgroups).await;
        assert_eq!(limits, 1);
        assert_eq!(cgroups.snapshot().unwrap().len(), 11);
        assert_eq!(next(&mut cgroups).await, CgroupEvent::WatchLimit);
        for n in 0..10 {
            own.remove(&format!("r/c{n}"));
        }
        assert_eq!(cgroups.snapshot().unwrap().len(), 1);
        quiet(&mut cgroups).await;
    });
}

impl Own {
    /// `depth` counts from the mount.
    fn follow(&self, roots: &[&str], depth: usize) -> Cgroups {
        Cgroups::open(&self.hierarchy, self.roots(roots), depth).unwrap()
    }

    fn relative(&self, listed: &[Cgroup]) -> BTreeMap<String, Role> {
        let one = |cgroup: &Cgroup| {
            let path = cgroup.path.strip_prefix(&self.name).unwrap();
            (path.to_str().unwrap().to_owned(), cgroup.role)
        };
        listed.iter().map(one).collect()
    }

    /// The inode numbers of a cgroup that may be watched.
    fn inodes(&self, path: &str) -> [u64; 2] {
        let directory = self.directory(path);
        [directory.clone(), directory.join("cgroup.events")]
            .map(|path| fs::metadata(path).unwrap().ino())
    }
}

/// How many inotify watches of this process are on these inodes of cgroupfs.
fn watches(inodes: &[u64]) -> usize {
    let device = fs::metadata(Hierarchy::find().unwrap().mount())
        .unwrap()
        .dev();
    let wanted: Vec<_> = inodes
        .iter()
        .map(|inode| format!(" ino:{inode:x} sdev:{device:x} "))
        .collect();
    // A descriptor of another test may be closed meanwhile.
    let texts = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = texts.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts
        .map(|text| {
            wanted
                .iter()
                .filter(|wanted| text.contains(*wanted))
                .count()
        })
        .sum()
}

fn empty(cgroup: &Path) -> bool {
    let text = fs::read_to_string(cgroup.join("cgroup.events")).unwrap();
    text.contains("populated 0")
}

fn id_by_path(listed: Vec<Cgroup>) -> BTreeMap<PathBuf, u64> {
    listed
        .into_iter()
        .map(|cgroup| (cgroup.path, cgroup.id))
        .collect()
}

#[track_caller]
fn created(event: CgroupEvent) -> Cgroup {
    let CgroupEvent::Created(cgroup) = event else {
        panic!("{event:?}")
    };
    cgroup
}

#[track_caller]
fn apply(known: &mut BTreeMap<PathBuf, u64>, event: CgroupEvent) {
    match event {
        CgroupEvent::Created(cgroup) => {
            assert_eq!(known.insert(cgroup.path, cgroup.id), None);
        }
        CgroupEvent::Gone { id, path } => assert_eq!(known.remove(&path), Some(id)),
        CgroupEvent::Populated { .. } | CgroupEvent::WatchLimit | CgroupEvent::Lost => {
            panic!("{event:?}")
        }
    }
}

async fn next(cgroups: &mut Cgroups) -> CgroupEvent {
    let event = tokio::time::timeout(deadline(), cgroups.next()).await;
    event.unwrap().unwrap()
}

/// Nothing comes any more: what the kernel had to say is read at once.
async fn quiet(cgroups: &mut Cgroups) {
    let event = tokio::time::timeout(Duration::from_millis(100), cgroups.next()).await;
    assert!(event.is_err(), "{event:?}");
}

fn runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}
