//! A server on a socket of its own, with a status as told, a loop that answers as told, and raw
//! clients.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25::control::{Agent, Command, Constants, Limits, Settings, serve};
use gate25::figures::{Figures, FiguresError};
use gate25::notice::server::{Listener, Listening};
use gate25::policy::Origin;
use gate25::settings::Enforcement;
use gate25::status::{
    Examined, ExemptionStatus, PolicyStatus, Shared, Source, State, Status, WorkloadStatus,
};
use gate25::workloads::{Claim, WorkloadId};
use gate25_common::abi::CustomerId;
use gate25_common::address::Family;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch, Uninterrupted};
use gate25_common::decide::{Decision, Reason, Verdict};
use gate25_common::redirect::{Flow, Hindrances, Redirected};
use gate25_common::returns::{Fate, ReturnCounters};
use nix::unistd::{Group, getgid};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const LIMITS: Limits = Limits {
    connections: 4,
    request: Duration::from_millis(300),
    reply: Duration::from_millis(500),
    connection: Duration::from_millis(1500),
};

/// A running server.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) status: Shared,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Lab {
    /// With a loop that carries out `answer` for each command.
    pub(crate) async fn with(
        enforcement: Enforcement,
        answer: impl Fn(Command) + Send + 'static,
    ) -> Self {
        let (commands, mut asked) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(command) = asked.recv().await {
                answer(command);
            }
        });
        Self::start(enforcement, Counted::default(), commands).await
    }

    /// With a loop that answers nothing.
    pub(crate) async fn silent() -> (Self, mpsc::Receiver<Command>) {
        let (commands, asked) = mpsc::channel(4);
        let lab = Self::start(Enforcement::Policy, Counted::default(), commands).await;
        (lab, asked)
    }

    /// On a host that does not tell whether it is bypassed.
    pub(crate) async fn without_its_bypass() -> Self {
        let figures = Counted {
            bypass_is_hidden: true,
        };
        let (commands, _) = mpsc::channel(4);
        Self::start(Enforcement::Policy, figures, commands).await
    }

    async fn start(
        enforcement: Enforcement,
        figures: Counted,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/control.sock");
        let status = Shared::default();
        status.update(|it| *it = sample());
        let agent = Agent {
            status: status.clone(),
            figures: Arc::new(figures),
            constants: Arc::new(Constants {
                host: "hv-1".to_owned(),
                enforcement,
                backend: ("ebpf", "preferred"),
                hook: "tcx",
                policy_dir: dir.path().join("policy.d"),
                started: "2026-11-23T08:00:00Z".parse().unwrap(),
            }),
            commands,
        };
        let settings = Settings {
            socket: socket.clone(),
            group: own_group(),
            limits: LIMITS,
        };
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(settings, agent, shutdown.clone()));
        let lab = Self {
            dir,
            socket,
            status,
            shutdown,
            server,
        };
        lab.until_open().await;
        lab
    }

    async fn until_open(&self) {
        let deadline = Instant::now() + DEADLINE;
        while UnixStream::connect(&self.socket).await.is_err() {
            assert!(
                Instant::now() < deadline,
                "the server did not open its socket"
            );
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Status code and body of the answer.
    pub(crate) async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> (u16, serde_json::Value) {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        self.send(&format!("{head}{body}")).await
    }

    async fn send(&self, request: &str) -> (u16, serde_json::Value) {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        parse(&rest(&mut stream).await)
    }

    /// Runs the command against this server.
    pub(crate) async fn gate25(&self, words: &[&str]) -> Output {
        let config = self.config();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let run = move || {
            let mut process = Process::new(env!("CARGO_BIN_EXE_gate25"));
            process.arg("--config").arg(config).args(words);
            process.output().unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    fn config(&self) -> PathBuf {
        configure(self.dir.path(), &self.socket)
    }

    /// Stops the server and leaves the folder.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.server.await.unwrap();
        self.dir
    }
}

/// Writes settings that lead to `socket` and to folders in `dir`.
pub(crate) fn configure(dir: &Path, socket: &Path) -> PathBuf {
    let path = dir.join("gate25.yaml");
    let settings = format!(
        "schema: 1\nhost: hv-1\npolicy_dir: {0}/policy.d\nstate_dir: {0}/state\n\
         control: {{socket: {1}}}\n",
        dir.display(),
        socket.display()
    );
    std::fs::write(&path, settings).unwrap();
    path
}

/// Everything that still comes.
pub(crate) async fn rest(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut bytes));
    match read.await {
        // Whoever is cut off while writing may be told so by an error.
        Ok(Ok(_) | Err(_)) => {}
        Err(elapsed) => panic!("neither an answer nor a hang-up: {elapsed}"),
    }
    String::from_utf8(bytes).unwrap()
}

#[track_caller]
pub(crate) fn parse(answer: &str) -> (u16, serde_json::Value) {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        panic!("no answer: {answer:?}");
    };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

/// The group that this process is in: a test need not be root.
pub(crate) fn own_group() -> String {
    Group::from_gid(getgid()).unwrap().unwrap().name
}

#[derive(Default)]
struct Counted {
    bypass_is_hidden: bool,
}

impl Figures for Counted {
    fn host(&self) -> Result<HostCounters, FiguresError> {
        let mut counters = HostCounters::ZERO;
        for (verdict, reason) in [
            (Verdict::Allow, Reason::Allowlist),
            (Verdict::Allow, Reason::Exemption),
            (Verdict::Reject, Reason::Unassigned),
        ] {
            counters.count_attempt::<Uninterrupted>(&decision(verdict, reason), Family::V4);
        }
        Ok(counters)
    }

    fn customer(&self, id: CustomerId) -> Result<Option<CustomerCounters>, FiguresError> {
        if id != CustomerId::from_name("acme") {
            return Ok(None);
        }
        let mut counters = CustomerCounters::ZERO;
        // As often as tells each from every sum of others.
        for (verdict, times) in [
            (Verdict::Allow, 1),
            (Verdict::Observe, 2),
            (Verdict::Reject, 8),
            (Verdict::Drop, 16),
            (Verdict::Redirect, 32),
            (Verdict::Notice, 64),
        ] {
            for _ in 0..times {
                let _report =
                    counters.count_attempt::<Uninterrupted>(&decision(verdict, Reason::Profile));
            }
        }
        Ok(Some(counters))
    }

    fn sketch(&self, _: CustomerId) -> Result<Option<Sketch>, FiguresError> {
        Ok(None)
    }

    fn returns(&self) -> Result<ReturnCounters, FiguresError> {
        let mut counters = ReturnCounters::ZERO;
        counters.count::<Uninterrupted>(Fate::Allow, Family::V4, 1);
        counters.count::<Uninterrupted>(Fate::Drop, Family::V4, 2);
        counters.count::<Uninterrupted>(Fate::Drop, Family::V6, 5);
        Ok(counters)
    }

    fn customer_returns(&self, _: CustomerId) -> Result<Option<ReturnCounters>, FiguresError> {
        Ok(None)
    }

    fn redirected(&self, _: &Flow) -> Result<Option<Redirected>, FiguresError> {
        Ok(None)
    }

    fn hindrances(&self) -> Result<Hindrances, FiguresError> {
        Ok(Hindrances::ZERO)
    }

    fn bypass(&self) -> Result<gate25_common::bypass::Bypass, FiguresError> {
        if self.bypass_is_hidden {
            return Err(FiguresError::new(std::io::Error::other("no such table")));
        }
        Ok(gate25_common::bypass::Bypass::NONE)
    }

    fn clear_sketch(&self, _: CustomerId) -> Result<(), FiguresError> {
        Ok(())
    }
}

fn decision(verdict: Verdict, reason: Reason) -> Decision {
    Decision {
        customer: CustomerId::UNASSIGNED,
        verdict,
        reason,
        entry: 0,
        malformed: None,
    }
}

/// A host with one workload of each kind of claim.
fn sample() -> Status {
    let workload = |name: &str, claim, state| WorkloadStatus {
        name: name.to_owned(),
        claim,
        state,
    };
    let origin = |line| Origin {
        file: Arc::from(Path::new("customers.yaml")),
        line,
        column: 7,
    };
    let customers = ["acme", "blue"].map(|id| (CustomerId::from_name(id), id.to_owned()));
    let mut customers = BTreeMap::from(customers);
    customers.insert(CustomerId::UNASSIGNED, "unassigned".to_owned());
    let exemption = |id: &str, starts: Option<&str>, expires: &str| ExemptionStatus {
        customer: "acme".to_owned(),
        id: id.to_owned(),
        starts: starts.map(|time| time.parse().unwrap()),
        expires: expires.parse().unwrap(),
    };
    let conflict = vec![
        ("acme".to_owned(), origin(5)),
        ("blue".to_owned(), origin(9)),
    ];
    Status {
        source: Source::Files,
        policy: Arc::new(PolicyStatus {
            relays: BTreeMap::new(),
            customers,
            exemptions: vec![
                exemption("past", Some("2020-01-01T00:00:00Z"), "2020-02-01T00:00:00Z"),
                exemption("news", None, "2999-01-01T00:00:00Z"),
            ],
        }),
        generation: 3,
        hash: None,
        reloads: 4,
        reload_failures: 1,
        reload_successful: true,
        refusal: None,
        reload_success: Some("2026-11-23T09:30:00Z".parse().unwrap()),
        workloads: Arc::new(BTreeMap::from([
            (
                WorkloadId::Cgroup(9_000_000_001),
                workload("lxc/it's \\x2d", Claim::Unassigned, State::Unassigned),
            ),
            (
                WorkloadId::Interface(4),
                workload("tap101i0", Claim::Unassigned, State::Unassigned),
            ),
            (
                WorkloadId::Interface(5),
                workload("tap101i1", Claim::Unassigned, State::Unassigned),
            ),
            (
                WorkloadId::Interface(6),
                workload(
                    "tap7i0",
                    Claim::Customer("acme".to_owned()),
                    State::Enforced,
                ),
            ),
            (
                WorkloadId::Interface(7),
                workload("tap8i0", Claim::Conflict(conflict), State::Conflict),
            ),
        ])),
        repairs: 0,
        guard_in_place: true,
        guard_repairs: 0,
        roots: 2,
        returns: 3,
        entries: BTreeMap::from([("CUSTOMERS", 3)]),
        notice: vec![
            Listener {
                address: "192.0.2.1:25".parse().unwrap(),
                state: Listening::Yes,
            },
            Listener {
                address: "[2001:db8::1]:25".parse().unwrap(),
                state: Listening::No("in use".to_owned()),
            },
        ],
        in_force: true,
        trial: None,
        complained_of: std::collections::BTreeSet::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
        examined: Examined::default(),
    }
}
