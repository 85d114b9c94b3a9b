//! A virtual machine as guest: Debian's kernel under QEMU's emulation, behind a tap.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{Addresses, Attempt, Hosting, NetNs, Outcome, Process, initramfs::Initramfs, poll};

/// Emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(90);
const BUSYBOX: &str = "/bin/busybox";
/// The modules that the guest's network needs, in the order of their dependencies.
const DRIVERS: [&str; 2] = ["virtio_pci", "virtio_net"];
/// The commands' output and nothing else goes over the second serial line.
const INIT: &str = include_str!("init.sh");

/// A running virtual machine with a shell.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    control: UnixStream,
    console: PathBuf,
    interface: String,
}

impl Vm {
    /// Boots a machine behind a tap of this name, in the hypervisor's bridge, with the addresses
    /// of guest `number`.
    ///
    /// # Errors
    /// When QEMU or the kernel is missing, or the machine is not up after a minute and a half.
    pub fn boot(hosting: &Hosting, number: u8, interface: &str) -> anyhow::Result<Self> {
        let host = &hosting.hypervisor;
        let mut vm = Self::launch(host, interface, Hosting::bridged(number))?;
        // QEMU makes the tap; who starts it puts it into the bridge, as libvirt and Proxmox do.
        poll("QEMU's tap", Duration::from_secs(10), || {
            if let Some(status) = vm.process.status()? {
                bail!("QEMU ended: {status}; it wrote:\n{}", vm.process.log());
            }
            Ok(host.exec("ip", &["link", "show", interface]).ok())
        })?;
        host.ip(&format!("link set {interface} master vmbr0 up"))?;
        vm.read_until("READY\n", BOOT)
            .with_context(|| format!("boot; the console shows:\n{}", vm.console()))?;
        Ok(vm)
    }

    fn launch(host: &NetNs, interface: &str, addresses: Addresses) -> anyhow::Result<Self> {
        let kernel = Kernel::find()?;
        let dir = host.dir();
        let initrd = dir.join(format!("{interface}.initramfs"));
        fs::write(&initrd, kernel.initramfs(addresses)?)
            .with_context(|| format!("write {}", initrd.display()))?;
        let console = dir.join(format!("{interface}.console"));
        let socket = dir.join(format!("{interface}.sock"));
        let mut command = host.command("qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-cpu", "max", "-m", "256", "-smp", "1"])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .args([
                "-append",
                "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on",
            ])
            .args(["-serial", &format!("file:{}", console.display())])
            .args([
                "-serial",
                &format!("unix:{},server=on,wait=off", socket.display()),
            ])
            // With a virtio header, QEMU's default where the kernel has it.
            .args([
                "-netdev",
                &format!("tap,id=net,ifname={interface},script=no,downscript=no,vhost=off"),
            ])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        let mut process = host.spawn("qemu", command)?;
        let control = poll("QEMU's serial line", Duration::from_secs(20), || {
            if let Some(status) = process.status()? {
                bail!("QEMU ended: {status}; it wrote:\n{}", process.log());
            }
            Ok(UnixStream::connect(&socket).ok())
        })?;
        Ok(Self {
            process,
            control,
            console,
            interface: interface.to_owned(),
        })
    }

    /// The tap on the hypervisor.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// QEMU's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What the kernel has written to its console.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Runs a line of shell (busybox) in the machine: its exit code and output.
    ///
    /// # Errors
    /// When it does not end before the deadline; the machine is of no more use then.
    pub fn run(&mut self, line: &str, limit: Duration) -> anyhow::Result<(u8, String)> {
        if line.contains('\n') {
            bail!("more than one line: {line:?}");
        }
        self.control
            .write_all(format!("{line}\n").as_bytes())
            .context("write to the machine")?;
        let answer = self
            .read_until(" END\n", limit)
            .with_context(|| format!("run {line:?}"))?;
        let (output, code) = answer.rsplit_once("CODE ").context("no exit code")?;
        let code = code
            .parse()
            .with_context(|| format!("exit code {code:?}"))?;
        Ok((code, output.to_owned()))
    }

    /// Connects from inside the machine, waits for the server's greeting and returns it.
    ///
    /// The time is what the whole command took, emulation included.
    ///
    /// # Errors
    /// When the machine does not answer. A refused connect is an outcome, not an error.
    pub fn connect(
        &mut self,
        to: SocketAddr,
        limit: Duration,
    ) -> anyhow::Result<(Attempt, String)> {
        let seconds = limit.as_secs().max(1);
        let line = format!("nc -w {seconds} {} {} </dev/null", to.ip(), to.port());
        let start = Instant::now();
        let (code, output) = self.run(&line, limit + Duration::from_secs(20))?;
        let took = start.elapsed();
        let says = |text: &str| output.to_ascii_lowercase().contains(text);
        let outcome = if code == 0 {
            Outcome::Connected
        } else if says("refused") {
            Outcome::Refused
        } else if says("reset") {
            Outcome::Reset
        } else if says("timed out") {
            Outcome::TimedOut
        } else if says("unreachable") || says("no route") {
            Outcome::Unreachable
        } else {
            Outcome::Other(output.trim().to_owned())
        };
        Ok((Attempt { outcome, took }, output))
    }

    /// Reads up to a mark and returns what came before it.
    fn read_until(&mut self, mark: &str, limit: Duration) -> anyhow::Result<String> {
        let end = Instant::now() + limit;
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some(text) = seen.strip_suffix(mark.as_bytes()) {
                return Ok(String::from_utf8_lossy(text).into_owned());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "no {mark:?} within {limit:?}, only {:?}",
                    String::from_utf8_lossy(&seen)
                );
            }
            self.control
                .set_read_timeout(Some(left))
                .context("set the read timeout")?;
            match self.control.read(&mut buffer) {
                Ok(0) => bail!("the machine is gone"),
                Ok(count) => seen.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read from the machine"),
            }
        }
    }
}

/// Debian's kernel package, unpacked by `./xtask/x test`.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    fn find() -> anyhow::Result<Self> {
        let dir = env::var_os("GATE25_GUEST_KERNEL").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/guest-kernel"),
            PathBuf::from,
        );
        let only = |dir: &Path, start: &str| {
            let entries = fs::read_dir(dir).with_context(|| {
                format!("no guest kernel in {}: run `./xtask/x test`", dir.display())
            })?;
            entries
                .flatten()
                .map(|entry| entry.path())
                .find(|path| {
                    path.file_name()
                        .is_some_and(|name| name.to_string_lossy().starts_with(start))
                })
                .with_context(|| format!("no {start}* in {}", dir.display()))
        };
        Ok(Self {
            image: only(&dir.join("boot"), "vmlinuz-")?
                .canonicalize()
                .context("kernel")?,
            modules: only(&dir.join("lib/modules"), "")?,
        })
    }

    /// Busybox, the network's drivers, and an init that takes commands.
    fn initramfs(&self, addresses: Addresses) -> anyhow::Result<Vec<u8>> {
        let mut archive = Initramfs::default();
        for dir in ["bin", "dev", "proc", "sys", "modules"] {
            archive.directory(dir);
        }
        let busybox = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
        archive.program("bin/busybox", &busybox);
        archive.link("bin/sh", "busybox");
        let mut loaded = String::new();
        for (name, module) in self.drivers()? {
            archive.program(&format!("modules/{name}.ko"), &module);
            loaded.push_str(&format!("insmod /modules/{name}.ko\n"));
        }
        let Addresses { v4, v6 } = addresses;
        let init = INIT
            .replace("@MODULES@\n", &loaded)
            .replace("@V4@", &v4.to_string())
            .replace("@V6@", &v6.to_string())
            .replace("@GATEWAY4@", &Hosting::GATEWAY.v4.to_string())
            .replace("@GATEWAY6@", &Hosting::GATEWAY.v6.to_string());
        archive.program("init", init.as_bytes());
        Ok(archive.finish())
    }

    /// The drivers behind what they depend on.
    fn drivers(&self) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        collect(&self.modules, &mut files)?;
        let mut done = BTreeSet::new();
        let mut ordered = Vec::new();
        for driver in DRIVERS {
            add_module(driver, &files, &mut done, &mut ordered)?;
        }
        Ok(ordered)
    }
}

fn add_module(
    name: &str,
    files: &[PathBuf],
    done: &mut BTreeSet<String>,
    ordered: &mut Vec<(String, Vec<u8>)>,
) -> anyhow::Result<()> {
    let name = name.replace('-', "_");
    if !done.insert(name.clone()) {
        return Ok(());
    }
    let is_it = |path: &&PathBuf| {
        path.file_stem()
            .is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == name)
    };
    let path = files
        .iter()
        .find(is_it)
        .with_context(|| format!("no module {name}.ko"))?;
    let module = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    for needed in depends(&module) {
        add_module(&needed, files, done, ordered)?;
    }
    ordered.push((name, module));
    Ok(())
}

/// What a module's own `depends=` field names.
fn depends(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|part| part == FIELD) else {
        return Vec::new();
    };
    let rest = &module[at + FIELD.len()..];
    let list = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("read {}", dir.display()))?
            .path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            files.push(path);
        }
    }
    Ok(())
}
