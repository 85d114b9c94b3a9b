//! Who may use the control socket, as the kernel tells it.

use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25::control::{Agent, Constants, Limits, Settings, serve};
use gate25::figures::{Figures, FiguresError};
use gate25::settings::Enforcement;
use gate25::status::Shared;
use gate25_common::abi::CustomerId;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::redirect::{Flow, Hindrances, Redirected};
use gate25_common::returns::ReturnCounters;
use nix::unistd::{Gid, Group};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::netns::deadline;

const NOBODY: u32 = 65_534;
/// A group that every Debian has.
const MEMBERS: u32 = 1;

#[test]
fn socket_lets_in_root_and_the_group_and_nobody_else() {
    let server = Server::start();
    for groups in [
        vec![],
        // More than the agent asks the kernel for at first.
        (1000..1200).collect(),
    ] {
        let stranger = || Visitor {
            user: NOBODY,
            group: NOBODY,
            groups: groups.clone(),
        };
        server.set_mode(0o660);
        let refused = stranger().get(&server.socket).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        // Whatever becomes of the mode.
        server.set_mode(0o666);
        assert_eq!(stranger().get(&server.socket).unwrap(), 403);
        assert_eq!(stranger().reload(&server.socket).unwrap(), 403);
        server.set_mode(0o660);
        let mut member = stranger();
        member.groups.push(MEMBERS);
        assert_eq!(member.get(&server.socket).unwrap(), 200);
        assert_eq!(member.reload(&server.socket).unwrap(), 202);
    }
    let member = Visitor {
        user: NOBODY,
        group: MEMBERS,
        groups: vec![],
    };
    assert_eq!(member.get(&server.socket).unwrap(), 200);
    let root = Visitor {
        user: 0,
        group: 0,
        groups: vec![],
    };
    assert_eq!(root.get(&server.socket).unwrap(), 200);
    assert_eq!(root.reload(&server.socket).unwrap(), 202);
}

#[test]
fn what_opens_more_than_the_files_say_is_for_root_alone() {
    let server = Server::start();
    for path in ["/v1/trial", "/v1/confirm", "/v1/undo", "/v1/bypass"] {
        let visitor = |user, group| Visitor {
            user,
            group,
            groups: vec![],
        };
        let asked = visitor(NOBODY, MEMBERS).post(path, &server.socket);
        assert_eq!(asked.unwrap(), 403, "{path}");
        // Nobody answers him here, but he is let in: the request is no good, or is not got to.
        let asked = visitor(0, 0).post(path, &server.socket).unwrap();
        assert!(asked == 400 || asked == 503, "{path}: {asked}");
    }
}

#[test]
fn members_who_hold_requests_back_hold_up_neither_root_nor_each_other() {
    let server = Server::start();
    let member = Visitor {
        user: NOBODY,
        group: MEMBERS,
        groups: vec![],
    };
    let mut held = Vec::new();
    for _ in 0..3 * LIMITS.connections {
        held.push(member.connect(&server.socket).unwrap());
    }
    let began = Instant::now();
    let root = Visitor {
        user: 0,
        group: 0,
        groups: vec![],
    };
    assert_eq!(root.get(&server.socket).unwrap(), 200);
    assert_eq!(member.get(&server.socket).unwrap(), 200);
    assert!(began.elapsed() < LIMITS.request, "{:?}", began.elapsed());
}

const LIMITS: Limits = Limits {
    connections: 8,
    request: Duration::from_secs(20),
    reply: Duration::from_secs(1),
    connection: Duration::from_secs(30),
};

/// A server for the group of [`MEMBERS`].
struct Server {
    dir: TempDir,
    socket: PathBuf,
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let socket = dir.path().join("run/control.sock");
        let group = Group::from_gid(Gid::from_raw(MEMBERS)).unwrap().unwrap();
        let (commands, mut asked) = mpsc::channel(4);
        let agent = Agent {
            status: Shared::default(),
            figures: Arc::new(Nothing),
            constants: Arc::new(Constants {
                host: "hv-1".to_owned(),
                enforcement: Enforcement::Policy,
                backend: ("ebpf", "preferred"),
                hook: "tcx",
                policy_dir: dir.path().to_owned(),
                started: jiff::Timestamp::now(),
            }),
            commands,
        };
        let settings = Settings {
            socket: socket.clone(),
            group: group.name,
            limits: LIMITS,
        };
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let drain = tokio::spawn(async move { while asked.recv().await.is_some() {} });
                serve(settings, agent, token).await;
                drain.abort();
            });
        });
        let deadline = Instant::now() + deadline();
        while UnixStream::connect(&socket).is_err() {
            assert!(
                Instant::now() < deadline,
                "the server did not open its socket"
            );
            std::thread::yield_now();
        }
        Self {
            dir,
            socket,
            shutdown,
            thread: Some(thread),
        }
    }

    fn set_mode(&self, mode: u32) {
        assert!(self.socket.starts_with(self.dir.path()));
        fs::set_permissions(&self.socket, Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

struct Nothing;

impl Figures for Nothing {
    fn host(&self) -> Result<HostCounters, FiguresError> {
        Ok(HostCounters::ZERO)
    }

    fn customer(&self, _: CustomerId) -> Result<Option<CustomerCounters>, FiguresError> {
        Ok(None)
    }

    fn sketch(&self, _: CustomerId) -> Result<Option<Sketch>, FiguresError> {
        Ok(None)
    }

    fn returns(&self) -> Result<ReturnCounters, FiguresError> {
        Ok(ReturnCounters::ZERO)
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
        Ok(gate25_common::bypass::Bypass::NONE)
    }

    fn clear_sketch(&self, _: CustomerId) -> Result<(), FiguresError> {
        Ok(())
    }
}

/// Somebody, with the groups that he is in.
#[derive(Clone)]
struct Visitor {
    user: u32,
    group: u32,
    groups: Vec<u32>,
}

impl Visitor {
    fn get(&self, socket: &Path) -> io::Result<u16> {
        self.ask(socket, "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
    }

    fn reload(&self, socket: &Path) -> io::Result<u16> {
        self.ask(
            socket,
            "POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        )
    }

    fn post(&self, path: &str, socket: &Path) -> io::Result<u16> {
        let head = "Host: x\r\nContent-Length: 0";
        self.ask(socket, &format!("POST {path} HTTP/1.1\r\n{head}\r\n\r\n"))
    }

    /// The status code of the answer.
    fn ask(&self, socket: &Path, request: &str) -> io::Result<u16> {
        let mut stream = self.connect(socket)?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split(' ').nth(1).unwrap().parse().unwrap())
    }

    /// Connects from a thread that has become this user: the kernel notes who connects.
    fn connect(&self, socket: &Path) -> io::Result<UnixStream> {
        let (visitor, socket) = (self.clone(), socket.to_owned());
        let thread = std::thread::spawn(move || {
            visitor.become_him();
            UnixStream::connect(socket)
        });
        thread.join().unwrap()
    }

    /// By bare system calls, which change this thread only; the C library's change the process.
    fn become_him(&self) {
        let Self {
            user,
            group,
            groups,
        } = self;
        // SAFETY: the pointer and the length describe `groups`, which lives through the call.
        let set = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        // SAFETY: numbers only.
        let set = unsafe { libc::syscall(libc::SYS_setresgid, *group, *group, *group) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        // SAFETY: numbers only.
        let set = unsafe { libc::syscall(libc::SYS_setresuid, *user, *user, *user) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }
}
