//! Container runtimes of Debian's, run inside a lab: nothing of theirs is left outside it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{Cgroup, NetNs, container::Runtime};

/// A runtime sees the cgroup v2 tree alone, as on a host without v1, and works in a `/run` and
/// `/var/lib` of the lab's own.
const VIEW: &str = r#"mount --make-rprivate / && umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && exec "$@""#;

/// What to run, and where.
pub(crate) struct Plan<'a> {
    pub(crate) name: &'a str,
    /// A folder of the container's own, which it sees as `/lab`.
    pub(crate) dir: &'a Path,
    pub(crate) parent: &'a Cgroup,
    pub(crate) cgroup: &'a str,
    /// A process in the network namespace that it gets; the hypervisor's network without one.
    pub(crate) network: Option<u32>,
    pub(crate) program: &'a [String],
}

/// The command that runs the plan in the foreground; for [`NetNs::spawn`] on the hypervisor.
pub(crate) fn command(ns: &NetNs, runtime: Runtime, plan: &Plan<'_>) -> anyhow::Result<Command> {
    let root = root_folder(plan)?;
    let mut command = ns.command("unshare");
    command.args(["--mount", "sh", "-c", VIEW, "sh"]);
    command.env("HOME", plan.dir).current_dir(plan.dir);
    match runtime {
        Runtime::Lab => {}
        Runtime::Crun => {
            write(&plan.dir.join("config.json"), &bundle(plan))?;
            command.args(["crun", "--cgroup-manager=cgroupfs", "run"]);
            command.arg("--bundle").arg(plan.dir).arg(plan.name);
        }
        Runtime::Podman => podman(&mut command, plan, &root),
        Runtime::Lxc => {
            let config = plan.dir.join("config");
            write(&config, &lxc(plan, &root))?;
            command.args(["lxc-start", "-F", "-n", plan.name, "-P"]);
            command.arg(plan.dir).arg("-f").arg(&config).arg("--");
            command.args(inside(plan));
        }
    }
    Ok(command)
}

/// What the container runs, as it sees it.
fn inside(plan: &Plan<'_>) -> Vec<String> {
    let mut words = vec!["/lab/tenant".to_owned()];
    words.extend(plan.program.iter().skip(1).cloned());
    words.extend(["serve", "/lab/s"].map(str::to_owned));
    words
}

/// A root file system: this machine's `/usr`, and the container's folder as `/lab`.
fn root_folder(plan: &Plan<'_>) -> anyhow::Result<PathBuf> {
    let root = plan.dir.join("rootfs");
    for folder in ["usr", "lab", "proc", "sys", "dev", "etc", "run", "tmp"] {
        let path = root.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    }
    for folder in ["bin", "lib", "lib64", "sbin"] {
        symlink(Path::new("usr").join(folder), root.join(folder))
            .with_context(|| format!("link {folder} in {}", root.display()))?;
    }
    let program = plan.program.first().context("no program")?;
    let copy = plan.dir.join("tenant");
    fs::copy(program, &copy).with_context(|| format!("copy {program}"))?;
    Ok(root)
}

/// An OCI bundle's `config.json`.
fn bundle(plan: &Plan<'_>) -> String {
    let args: Vec<String> = inside(plan)
        .iter()
        .map(|word| format!("{word:?}"))
        .collect();
    let network = plan.network.map_or_else(String::new, |process| {
        format!(r#", {{"type": "network", "path": "/proc/{process}/ns/net"}}"#)
    });
    let bind = |from: &Path, to: &str, mode: &str| {
        format!(
            r#"{{"destination": {to:?}, "type": "bind", "source": {from:?}, "options": ["rbind", {mode:?}]}}"#
        )
    };
    format!(
        r#"{{"ociVersion": "1.0.0",
 "process": {{"terminal": false, "user": {{"uid": 0, "gid": 0}}, "cwd": "/", "args": [{}], "env": ["PATH=/bin"],
  "capabilities": {{"bounding": ["CAP_NET_RAW"], "effective": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"]}}}},
 "root": {{"path": "rootfs"}}, "hostname": "container",
 "mounts": [{{"destination": "/proc", "type": "proc", "source": "proc"}}, {}, {}],
 "linux": {{"cgroupsPath": {:?}, "namespaces": [{{"type": "pid"}}, {{"type": "mount"}}, {{"type": "ipc"}}, {{"type": "uts"}}{network}]}}}}"#,
        args.join(", "),
        bind(Path::new("/usr"), "/usr", "ro"),
        bind(plan.dir, "/lab", "rw"),
        format!("/{}/{}", plan.parent.path(), plan.cgroup),
    )
}

/// Without limits on processes and devices: those need cgroup controllers, which a host with v1
/// controllers does not give to v2.
fn podman(command: &mut Command, plan: &Plan<'_>, root: &Path) {
    let network = plan.network.map_or_else(
        || "host".to_owned(),
        |process| format!("ns:/proc/{process}/ns/net"),
    );
    command.args([
        "podman",
        "--cgroup-manager=cgroupfs",
        "--runtime=crun",
        "--storage-driver=vfs",
        "--events-backend=file",
        "run",
        "--rm",
        "--privileged",
        "--pids-limit=-1",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
    ]);
    command.arg("--name").arg(plan.name);
    command.arg(format!("--network={network}"));
    command.arg(format!("--cgroup-parent=/{}", plan.parent.path()));
    command.args(["-v", "/usr:/usr:ro", "-v"]);
    command.arg(format!("{}:/lab", plan.dir.display()));
    command.arg("--rootfs").arg(root).args(inside(plan));
}

/// An LXC container's configuration. The namespace is kept from the hypervisor's, or joined.
fn lxc(plan: &Plan<'_>, root: &Path) -> String {
    let network = plan.network.map_or_else(
        || "lxc.net.0.type = none\n".to_owned(),
        |process| format!("lxc.namespace.share.net = {process}\n"),
    );
    let (parent, name) = (plan.parent.path(), plan.name);
    format!(
        "lxc.rootfs.path = dir:{root}\n\
         lxc.uts.name = container\n\
         {network}\
         lxc.cgroup.dir.container = {parent}/{cgroup}\n\
         lxc.cgroup.dir.monitor = {parent}/lxc.monitor.{name}\n\
         lxc.cgroup.dir.monitor.pivot = {parent}/lxc.pivot\n\
         lxc.apparmor.profile = unconfined\n\
         lxc.mount.auto = proc:rw\n\
         lxc.mount.entry = /usr usr none rbind,ro 0 0\n\
         lxc.mount.entry = {dir} lab none bind 0 0\n",
        root = root.display(),
        cgroup = plan.cgroup,
        dir = plan.dir.display(),
    )
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
