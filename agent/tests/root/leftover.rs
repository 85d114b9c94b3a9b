//! Commands beside a real agent, and on what it leaves when it is killed: in a network namespace and
//! with a BPF filesystem of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use gate25::state::lock::ExclusiveLock;
use gate25_tests::poll;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::{LIMIT, deadline, output, run, within};

const POLICY: &str = "schema: 1
allowlists: [{name: relays, to: [192.0.2.25]}]
profiles: [{name: default, allow: [relays]}]
customers:
  - id: acme
    workloads: [{interface: tap1i0}]
exemptions:
  - id: news
    customer: acme
    reason: newsletter
    ticket: NOC-1
    approved_by: noc
    starts: 2026-01-01T00:00:00Z
    expires: EXPIRES
    to: any
";

#[test]
fn commands_beside_an_agent_reload_compare_and_do_not_tear_down() {
    within(|| async {
        let (host, mut agent) = Host::running(&[]);
        let status = host.gate25(&["status", "--json"]);
        assert_eq!(status.status.code(), Some(0), "{status:?}");
        assert_eq!(json_of(&status)["workloads"]["interface"]["enforced"], 1);
        assert_eq!(host.gate25(&["diff"]).stdout, b"no difference\n");
        let reload = |words: &[&str]| {
            let output = host.gate25(&[&["reload", "--json", "--wait"], words].concat());
            let outcome = json_of(&output)["outcome"].as_str().unwrap().to_owned();
            (outcome, output.status.code())
        };
        assert_eq!(reload(&[]), ("unchanged".to_owned(), Some(0)));

        let file = host.dir.path().join("policy.d/policy.yaml");
        let policy = fs::read_to_string(&file).unwrap();
        fs::write(
            &file,
            policy.replace("interface: tap1i0", "interface: tap2i0"),
        )
        .unwrap();
        let changes = json_of(&host.gate25(&["diff", "--json"]));
        assert_eq!(changes["changes"][0]["name"], "acme");
        assert_eq!(reload(&["--dry-run"]), ("would_apply".to_owned(), Some(0)));
        let owner = || {
            let listed = json_of(&host.gate25(&["list", "workloads", "--json"]));
            let all = listed["workloads"].as_array().unwrap();
            let owned = all.iter().find(|one| one["customer"] == "acme").unwrap();
            owned["name"].as_str().unwrap().to_owned()
        };
        assert_eq!(owner(), "tap1i0");
        assert_eq!(reload(&[]), ("applied".to_owned(), Some(0)));
        let is_owned = || Ok((owner() == "tap2i0").then_some(()));
        poll("the interface's owner", LIMIT, is_owned).unwrap();

        fs::write(&file, policy.replace("allow: [relays]", "alow: [relays]")).unwrap();
        let refused = host.gate25(&["reload", "--wait"]);
        assert_eq!(refused.status.code(), Some(1));
        let text = String::from_utf8(refused.stdout).unwrap();
        assert!(text.contains(&format!("{}:3:", file.display())), "{text}");
        assert_eq!(owner(), "tap2i0");

        let before = files(&host.bpffs());
        let torn = host.gate25(&["teardown"]);
        assert_eq!(torn.status.code(), Some(1), "{torn:?}");
        assert_eq!(files(&host.bpffs()), before);
        agent.kill();
    });
}

#[test]
fn status_and_lists_after_a_kill_read_what_is_pinned() {
    within(|| async {
        let host = Host::killed(&[]);
        let output = host.gate25(&["status", "--json"]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let status = json_of(&output);
        assert_eq!(
            (&status["agent"], &status["enforcing"]),
            (&json!("stopped"), &json!(true))
        );
        assert_eq!(
            (&status["interfaces"], &status["cgroups"]),
            (&json!(2), &json!(0))
        );
        assert_eq!(status["versions"][0]["tables"]["CUSTOMERS"], 2);
        let text = String::from_utf8(host.gate25(&["status"]).stdout).unwrap();
        assert!(text.contains("agent\tnot running\n"), "{text}");

        let listed = json_of(&host.gate25(&["list", "workloads", "--json"]));
        let told = |name: &str| {
            let all = listed["workloads"].as_array().unwrap();
            let one = all.iter().find(|one| one["name"] == name).expect(name);
            (one["state"].clone(), one["customer"].clone())
        };
        assert_eq!(told("tap1i0"), (json!("enforced"), json!("acme")));
        assert_eq!(told("tap2i0"), (json!("unassigned"), Value::Null));

        let listed = json_of(&host.gate25(&["list", "exemptions", "--json"]));
        let one = &listed["exemptions"][0];
        assert_eq!(
            (&one["id"], &one["customer"]),
            (&json!("news"), &json!("acme"))
        );
        assert_eq!(
            (&one["state"], &one["expires"]),
            (&json!("active"), &json!(host.expires))
        );
        // Without the files there are numbers.
        fs::remove_file(host.dir.path().join("policy.d/policy.yaml")).unwrap();
        let listed = json_of(&host.gate25(&["list", "exemptions", "--json"]));
        let one = &listed["exemptions"][0];
        assert_eq!((&one["id"], &one["customer"]), (&Value::Null, &Value::Null));
        assert_eq!(one["state"], "active");
        let listed = json_of(&host.gate25(&["list", "customers", "--json"]));
        let all = listed["customers"].as_array().unwrap();
        let numbered = all.iter().find(|one| one["id"].is_null()).unwrap();
        assert_eq!(
            (&numbered["workloads"], &numbered["exemptions"]),
            (&json!(1), &json!(1))
        );
    });
}

#[test]
fn teardown_removes_what_is_gate25s_and_names_what_is_not() {
    within(|| async {
        let host = Host::killed(&[]);
        let own = host.bpffs().join("gate25");
        let theirs = [own.join("theirs"), version(&own).join("links/of-somebody")];
        fs::create_dir(&theirs[0]).unwrap();
        std::os::unix::fs::symlink("/nowhere", &theirs[1]).unwrap();
        let before = files(&own);

        let would = json_of(&host.gate25(&["teardown", "--dry-run", "--json"]));
        assert_eq!(files(&own), before, "a dry run removes nothing");
        let done = host.gate25(&["teardown", "--json"]);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let done = json_of(&done);
        assert_eq!(done["removed"], would["removed"]);
        let mut foreign = theirs.clone().map(|path| path.to_str().unwrap().to_owned());
        foreign.sort();
        assert_eq!(done["foreign"], json!(foreign));
        assert_eq!(done["errors"], json!([]));
        assert_eq!(host.gate25(&["status"]).status.code(), Some(1));

        fs::remove_dir(&theirs[0]).unwrap();
        fs::remove_file(&theirs[1]).unwrap();
        assert_eq!(host.gate25(&["teardown"]).status.code(), Some(0));
        assert!(!own.exists());
        let again = host.gate25(&["teardown"]);
        assert_eq!(again.status.code(), Some(0));
        assert_eq!(again.stdout, b"nothing of gate25 is in the kernel\n");
    });
}

#[test]
fn status_and_teardown_know_the_roots_of_containers() {
    within(|| async {
        let root = Root::new("gate25-leftover");
        let (host, mut agent) = Host::running_with("[gate25-leftover]", &[]);
        agent.kill();
        let status = json_of(&host.gate25(&["status", "--json"]));
        assert_eq!(
            (&status["interfaces"], &status["cgroups"]),
            (&json!(2), &json!(1))
        );
        let links = status["versions"][0]["links"].as_array().unwrap();
        let id = fs::metadata(&root.0).unwrap().ino();
        let hooks: Vec<_> = links.iter().filter(|it| it["kind"] == "cgroup").collect();
        assert!(!hooks.is_empty());
        for hook in hooks {
            assert_eq!(
                (&hook["number"], &hook["attached"]),
                (&json!(id), &json!(true))
            );
        }
        let done = json_of(&host.gate25(&["teardown", "--json"]));
        assert_eq!(
            (&done["foreign"], &done["errors"]),
            (&json!([]), &json!([]))
        );
        assert!(!host.bpffs().join("gate25").exists());
    });
}

#[test]
fn teardown_takes_filters_off_and_leaves_those_of_others() {
    within(|| async {
        let host = Host::killed(&["--attach", "filter"]);
        run("tc filter add dev tap1i0 ingress prio 7 protocol all u32 match u32 0 0");
        let (shown, _) = output("tc filter show dev tap1i0 ingress");
        assert!(shown.contains("gate25"), "{shown}");
        assert_eq!(
            json_of(&host.gate25(&["status", "--json"]))["interfaces"],
            2
        );
        let done = json_of(&host.gate25(&["teardown", "--json"]));
        assert_eq!(done["filters"], json!(["tap1i0", "tap2i0"]));
        let (shown, _) = output("tc filter show dev tap1i0 ingress");
        assert!(
            !shown.contains("gate25") && shown.contains("u32"),
            "{shown}"
        );
    });
}

#[test]
fn teardown_refuses_while_an_agent_serves_or_holds_the_lock() {
    within(|| async {
        let host = Host::killed(&[]);
        let own = host.bpffs().join("gate25");
        let before = files(&own);
        let lock = ExclusiveLock::acquire(&own).unwrap();
        assert_eq!(host.gate25(&["teardown"]).status.code(), Some(1));
        drop(lock);
        let socket = host.dir.path().join("control.sock");
        // One that does not even answer.
        drop(fs::remove_file(&socket));
        let agent = UnixListener::bind(&socket).unwrap();
        let began = Instant::now();
        assert_eq!(host.gate25(&["teardown"]).status.code(), Some(1));
        assert!(began.elapsed() < deadline());
        assert_eq!(files(&own), before);
        drop(agent);
        assert_eq!(host.gate25(&["teardown"]).status.code(), Some(0));
    });
}

/// A host with two guests, and an agent that was there.
struct Host {
    dir: TempDir,
    expires: String,
}

impl Host {
    /// Runs an agent until it enforces, and kills it.
    fn killed(words: &[&str]) -> Self {
        let (host, mut agent) = Self::running(words);
        agent.kill();
        host
    }

    /// Runs an agent until it enforces.
    fn running(words: &[&str]) -> (Self, Agent) {
        Self::running_with("[]", words)
    }

    /// Runs an agent with these roots of containers until it enforces.
    fn running_with(roots: &str, words: &[&str]) -> (Self, Agent) {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        run("ip link set lo up");
        for guest in ["tap1i0", "tap2i0"] {
            run(&format!("ip tuntap add {guest} mode tap"));
            run(&format!("ip link set {guest} up"));
        }
        let day = jiff::SignedDuration::from_hours(24);
        let end = jiff::Timestamp::now() + day;
        let expires = jiff::Timestamp::from_second(end.as_second())
            .unwrap()
            .to_string();
        let dir = tempfile::tempdir().unwrap();
        for folder in ["policy.d", "bpf"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let start = jiff::Timestamp::now() - day;
        let policy = POLICY
            .replace("EXPIRES", &expires)
            .replace("2026-01-01T00:00:00Z", &start.to_string());
        fs::write(dir.path().join("policy.d/policy.yaml"), policy).unwrap();
        let settings = format!(
            "schema: 1\nhost: hv-1\npolicy_dir: {0}/policy.d\nstate_dir: {0}/state\n\
             cgroups: {{roots: {roots}}}\nreload: {{quiet_time: 10s}}\ncontrol: {{socket: {0}/control.sock}}\n",
            dir.path().display()
        );
        fs::write(dir.path().join("gate25.yaml"), settings).unwrap();
        let host = Self { dir, expires };
        let child = host
            .command(&[&["run"], words].concat())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut agent = Agent(child);
        until_ready(&mut agent.0);
        (host, agent)
    }

    fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    fn gate25(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gate25"));
        command
            .arg("--config")
            .arg(self.dir.path().join("gate25.yaml"))
            .args(words);
        if !matches!(words, ["reload", ..]) {
            command.arg("--bpffs").arg(self.bpffs());
        }
        command
    }
}

/// A control group of this test's own.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .unwrap();
        let path = Path::new(mount.split(' ').nth(4).unwrap()).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _removed = fs::remove_dir(&self.0);
    }
}

/// A running agent; killed if the test fails.
struct Agent(Child);

impl Agent {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn until_ready(agent: &mut Child) {
    let deadline = Instant::now() + deadline();
    while !is_ready() {
        let ended = agent.try_wait().unwrap();
        if ended.is_some() || Instant::now() > deadline {
            let _killed = agent.kill();
            let mut log = String::new();
            agent
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut log)
                .unwrap();
            panic!("the agent is not ready: {log}");
        }
        std::thread::yield_now();
    }
}

fn is_ready() -> bool {
    let Ok(mut stream) = TcpStream::connect("127.0.0.1:9425") else {
        return false;
    };
    let mut answer = String::new();
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        .is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

#[track_caller]
fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The folder of the one layout that is there.
fn version(own: &Path) -> PathBuf {
    let mut all = fs::read_dir(own)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    all.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with('v'))
        .unwrap()
}

/// Everything below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
