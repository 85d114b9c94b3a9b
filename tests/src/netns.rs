//! Network namespaces of a lab, each with a mount namespace of its own.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    net::IpAddr,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    panic,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use crate::process::Process;

/// Moves itself into a cgroup, then becomes the command, so that no child is born outside.
const ENTER: &str = r#"echo 0 >"$1/cgroup.procs" && shift && exec "$@""#;

/// A network namespace with a mount namespace: its own `/sys`, BPF file system, `/run` and
/// `/var/lib`. Lives until the last copy of this value and the lab are gone.
#[derive(Clone, Debug)]
pub struct NetNs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    dir: PathBuf,
    cgroup: PathBuf,
    net: File,
    mnt: File,
    /// Runs in both namespaces for `nsenter -t` and `ip link set netns`.
    holder: u32,
    commands: AtomicU32,
}

/// What a command said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
}

impl NetNs {
    pub(crate) fn new(dir: &Path, cgroup: &Path, name: &str) -> anyhow::Result<Self> {
        let (net, mnt, holder) = thread::scope(|scope| {
            scope
                .spawn(|| create(dir, cgroup, name))
                .join()
                .unwrap_or_else(|panic| {
                    panic::resume_unwind(panic);
                })
        })
        .with_context(|| format!("make the namespaces of {name}"))?;
        let inner = Inner {
            name: name.to_owned(),
            dir: dir.to_owned(),
            cgroup: cgroup.to_owned(),
            net,
            mnt,
            holder,
            commands: AtomicU32::new(0),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The name given to it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// A process that lives as long as the lab does, for `nsenter -t PID -n -m`.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.inner.holder
    }

    /// The cgroup of the lab.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroup
    }

    /// The folder of the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Runs a closure on a thread inside the namespaces. Sockets that it opens stay inside.
    /// A panic in it goes on in the caller.
    ///
    /// # Errors
    /// When the namespaces cannot be entered.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                Ok(body())
            });
            thread
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread in for good. For threads that live with the lab.
    ///
    /// # Errors
    /// When the namespaces cannot be entered.
    pub fn enter(&self) -> anyhow::Result<()> {
        // A thread that shares its root and working directory may not change mount namespaces.
        unshare(CloneFlags::CLONE_FS).context("unshare the working directory")?;
        setns(self.inner.net.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter the network of {}", self.inner.name))?;
        setns(self.inner.mnt.as_fd(), CloneFlags::CLONE_NEWNS)
            .with_context(|| format!("enter the mounts of {}", self.inner.name))
    }

    /// A command that will run in the lab's cgroup; give it arguments, then to [`NetNs::spawn`]
    /// or [`NetNs::output`].
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.command_in(&self.inner.cgroup.join("procs"), program)
    }

    /// The same in a cgroup of the caller's choice, given by its full path.
    #[must_use]
    pub fn command_in(&self, cgroup: &Path, program: impl AsRef<Path>) -> Command {
        enter_cgroup(cgroup, program.as_ref())
    }

    /// Starts a command of [`NetNs::command`] inside, its output going to a log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, label: &str, command: Command) -> anyhow::Result<Process> {
        self.spawn_with(label, command, Stdio::null(), None)
    }

    /// The same with an input, and an output that does not go to the log.
    pub(crate) fn spawn_with(
        &self,
        label: &str,
        mut command: Command,
        input: Stdio,
        output: Option<Stdio>,
    ) -> anyhow::Result<Process> {
        let count = self.inner.commands.fetch_add(1, Ordering::Relaxed);
        let log = self
            .inner
            .dir
            .join(format!("{}-{label}.{count}.log", self.inner.name));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let again = file.try_clone().context("copy the log's handle")?;
        let output = output.unwrap_or_else(|| Stdio::from(file));
        let child = self
            .run(move || command.stdin(input).stdout(output).stderr(again).spawn())?
            .with_context(|| format!("start {label} in {}", self.inner.name))?;
        Ok(Process::new(
            child,
            format!("{label} in {}", self.inner.name),
            log,
        ))
    }

    /// Runs a command of [`NetNs::command`] inside to its end and returns what it wrote, stdout
    /// and stderr in one.
    ///
    /// # Errors
    /// When it cannot be started or still runs at the deadline. A failing exit is not an error.
    pub fn output(&self, command: Command, limit: Duration) -> anyhow::Result<Output> {
        let label = format!("command{}", self.inner.commands.load(Ordering::Relaxed));
        let mut process = self.spawn(&label, command)?;
        let status = process.wait(limit)?;
        let stdout = process.log().into_bytes();
        fs::remove_file(process.log_path()).context("remove a command's log")?;
        Ok(Output {
            status,
            stdout,
            stderr: Vec::new(),
        })
    }

    /// Runs a command of [`NetNs::command`] inside to its end, stdout and stderr apart.
    ///
    /// # Errors
    /// As [`NetNs::output`].
    pub fn ask(&self, command: Command, limit: Duration) -> anyhow::Result<Said> {
        let count = self.inner.commands.fetch_add(1, Ordering::Relaxed);
        let out = self.inner.dir.join(format!("{}-said.{count}", self.name()));
        let file = File::create(&out).with_context(|| format!("create {}", out.display()))?;
        let mut process =
            self.spawn_with("said", command, Stdio::null(), Some(Stdio::from(file)))?;
        let status = process.wait(limit)?;
        let text = fs::read(&out).with_context(|| format!("read {}", out.display()))?;
        fs::remove_file(&out).context("remove a command's output")?;
        Ok(Said {
            code: status.code(),
            out: String::from_utf8_lossy(&text).into_owned(),
            err: process.log(),
        })
    }

    /// Runs a program inside and returns its output.
    ///
    /// # Errors
    /// When it fails or takes more than ten seconds.
    pub fn exec(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(program);
        command.args(args);
        let output = self.output(command, Duration::from_secs(10));
        let output = output.with_context(|| format!("{program} {}", args.join(" ")))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "{program} {} in {}: {}: {text}",
                args.join(" "),
                self.name(),
                output.status
            );
        }
        Ok(text)
    }

    /// Gives lines to `ip -batch`.
    ///
    /// # Errors
    /// When one of them fails; the message holds ip's own.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        let mut input = tempfile(&self.inner.dir)?;
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            writeln!(input, "{line}").context("write ip's batch")?;
        }
        input
            .seek(SeekFrom::Start(0))
            .context("rewind ip's batch")?;
        let mut command = self.command("ip");
        command.args(["-batch", "-"]).stdin(input);
        let output = self
            .run(|| {
                command
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .output()
            })?
            .context("start ip")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("ip in {}: {}\n{lines}", self.name(), text.trim());
        }
        Ok(())
    }

    /// Sets values below `/proc/sys/net`, such as `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> anyhow::Result<()> {
        self.run(|| {
            values.iter().try_for_each(|(key, value)| {
                let path = Path::new("/proc/sys/net").join(key);
                fs::write(&path, value).with_context(|| format!("write {}", path.display()))
            })
        })?
    }

    /// A veth pair: `name` here, `peer_name` in the other namespace. Both are down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn veth(&self, name: &str, peer: &Self, peer_name: &str) -> anyhow::Result<()> {
        self.ip(&format!(
            "link add {name} type veth peer name {peer_name} netns {}",
            peer.holder()
        ))
    }

    /// Gives an interface addresses, usable at once, and brings it up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&self, device: &str, addresses: &[(IpAddr, u8)]) -> anyhow::Result<()> {
        let mut lines = String::new();
        for (address, prefix) in addresses {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            lines.push_str(&format!(
                "addr add {address}/{prefix} dev {device}{nodad}\n"
            ));
        }
        lines.push_str(&format!("link set {device} up\n"));
        self.ip(&lines)
    }
}

fn enter_cgroup(cgroup: &Path, program: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", ENTER, "sh"])
        .arg(cgroup)
        .arg(program)
        .current_dir("/");
    // Ctrl-C is for the lab's owner, which then removes all of it.
    command.process_group(0);
    command
}

/// Runs on a thread of its own that ends afterwards: the namespaces live on by what is returned.
fn create(dir: &Path, cgroup: &Path, name: &str) -> anyhow::Result<(File, File, u32)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare")?;
    private_mounts(dir, name)?;
    let net = File::open("/proc/thread-self/ns/net").context("open the network namespace")?;
    let mnt = File::open("/proc/thread-self/ns/mnt").context("open the mount namespace")?;
    for (key, value) in [("all", "0"), ("default", "0")] {
        // No router advertisements and no waiting for duplicate addresses.
        for setting in ["accept_ra", "accept_dad"] {
            let path = format!("/proc/sys/net/ipv6/conf/{key}/{setting}");
            fs::write(&path, value).with_context(|| format!("write {path}"))?;
        }
    }
    let lo = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("start ip")?;
    if !lo.success() {
        bail!("ip link set lo up: {lo}");
    }
    let holder = enter_cgroup(&cgroup.join("procs"), Path::new("sleep"))
        .arg("infinity")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the namespace's holder")?;
    Ok((net, mnt, holder.id()))
}

/// Makes the mounts that a program inside may see or fill its own.
fn private_mounts(dir: &Path, name: &str) -> anyhow::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("make the mounts private")?;
    // sysfs shows the network namespace that mounted it; the cgroup tree moves over.
    let spare = dir.join(format!("{name}.cgroup"));
    fs::create_dir_all(&spare).with_context(|| format!("create {}", spare.display()))?;
    mount(
        Some("/sys/fs/cgroup"),
        &spare,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
    .context("bind the cgroup tree")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), NONE).context("mount /sys")?;
    mount(Some(&spare), "/sys/fs/cgroup", NONE, MsFlags::MS_MOVE, NONE)
        .context("move the cgroup tree")?;
    mount(
        Some("bpf"),
        "/sys/fs/bpf",
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .context("mount /sys/fs/bpf")?;
    // An empty file: names are looked up nowhere, and at once.
    let names = dir.join(format!("{name}.resolv"));
    fs::write(&names, "").with_context(|| format!("write {}", names.display()))?;
    if Path::new("/etc/resolv.conf").exists() {
        mount(
            Some(&names),
            "/etc/resolv.conf",
            NONE,
            MsFlags::MS_BIND,
            NONE,
        )
        .context("hide /etc/resolv.conf")?;
    }
    // What a program leaves in /run and /var/lib stays inside; the lab's folder stays in sight.
    let lab = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    for place in ["/run", "/var/lib"] {
        mount(
            Some("tmpfs"),
            place,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755"),
        )
        .with_context(|| format!("mount {place}"))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let source = format!(
        "/proc/thread-self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&lab)
    );
    mount(Some(source.as_str()), dir, NONE, MsFlags::MS_BIND, NONE).context("bind the lab's folder")
}

/// A file without a name.
fn tempfile(dir: &Path) -> anyhow::Result<File> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let path = dir.join(format!("input{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("create {}", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("unlink {}", path.display()))?;
    Ok(file)
}
