//! Containers: a program in a cgroup, with a network of its own or the hypervisor's.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, bail};

use crate::{Addresses, Cgroup, Guest, Hosting, Lab, Link, NetNs, Process, Tenant, runtime};

/// Where a container's programs send from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The hypervisor's own network.
    Hypervisor,
    /// A namespace of its own behind an interface of the hypervisor's.
    Own {
        /// Part of its addresses, as in [`Hosting::guest`].
        number: u8,
        /// The interface on the hypervisor.
        interface: String,
        /// How it is connected.
        link: Link,
    },
}

impl Network {
    /// A routed veth, as container hosts have them.
    #[must_use]
    pub fn own(number: u8, interface: &str) -> Self {
        Self::Own {
            number,
            interface: interface.to_owned(),
            link: Link::RoutedVeth,
        }
    }
}

/// Who starts the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The lab itself: a process that enters the cgroup, then becomes the tenant.
    Lab,
    /// An OCI runtime by itself.
    Crun,
    /// Podman, which runs crun.
    Podman,
    /// LXC.
    Lxc,
}

impl Runtime {
    /// The name of the cgroup in which it puts a container's processes.
    fn cgroup(self, name: &str) -> String {
        match self {
            Self::Lab | Self::Crun => name.to_owned(),
            // Podman makes the rest of the name from a number of its own: the lab looks for it.
            Self::Podman => "libpod-".to_owned(),
            Self::Lxc => format!("lxc.payload.{name}"),
        }
    }
}

/// A running container; it ends with this value.
#[derive(Debug)]
pub struct Container {
    /// What runs in it.
    pub tenant: Tenant,
    /// Its cgroup.
    pub cgroup: Cgroup,
    process: Process,
    guest: Option<Guest>,
    /// Where it is as the tenant sees it, for files that both use.
    dir: PathBuf,
}

/// Makes containers in one cgroup of a lab.
#[derive(Debug)]
pub struct Containers {
    /// What the agent is told to watch.
    pub root: Cgroup,
    hypervisor: NetNs,
    /// The tenant's program, with its arguments before `serve`.
    program: Vec<String>,
    count: AtomicU32,
}

impl Containers {
    /// Containers below a new cgroup of the lab, whose tenant is this program.
    ///
    /// # Errors
    /// When the cgroup cannot be made.
    pub fn new(
        lab: &Lab,
        hosting: &Hosting,
        root: &str,
        program: Vec<String>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            root: lab.containers(root)?,
            hypervisor: hosting.hypervisor.clone(),
            program,
            count: AtomicU32::new(0),
        })
    }

    /// Starts a container in a new cgroup of that name below the root.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &self,
        lab: &Lab,
        hosting: &Hosting,
        name: &str,
        network: &Network,
        runtime: Runtime,
    ) -> anyhow::Result<Container> {
        let guest = match network {
            Network::Hypervisor => None,
            Network::Own {
                number,
                interface,
                link,
            } => Some(hosting.guest(lab, *number, interface, link.clone())?),
        };
        match runtime {
            Runtime::Lab => self.start_in(self.root.child(name)?, guest),
            Runtime::Crun | Runtime::Podman | Runtime::Lxc => self.start_by(runtime, name, guest),
        }
    }

    /// Starts a tenant in a cgroup that is there already.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_in(&self, cgroup: Cgroup, guest: Option<Guest>) -> anyhow::Result<Container> {
        let ns = guest.as_ref().map_or(&self.hypervisor, |guest| &guest.ns);
        let dir = self.folder()?;
        let socket = dir.join("s");
        let (program, args) = self.program.split_first().context("no program")?;
        let mut command = ns.command_in(cgroup.dir(), program);
        command.args(args).arg("serve").arg(&socket);
        let mut process = ns.spawn("tenant", command)?;
        let tenant = reach(&cgroup.path(), &socket, &mut process)?;
        Ok(Container {
            tenant,
            cgroup,
            process,
            guest,
            dir,
        })
    }

    fn start_by(
        &self,
        runtime: Runtime,
        name: &str,
        guest: Option<Guest>,
    ) -> anyhow::Result<Container> {
        let dir = self.folder()?;
        let plan = runtime::Plan {
            name,
            dir: &dir,
            parent: &self.root,
            cgroup: &runtime.cgroup(name),
            network: guest.as_ref().map(|guest| guest.ns.holder()),
            program: &self.program,
        };
        let command = runtime::command(&self.hypervisor, runtime, &plan)?;
        let mut process = self.hypervisor.spawn(name, command)?;
        let tenant = reach(name, &dir.join("s"), &mut process)?;
        let cgroup = self.find(&runtime.cgroup(name))?;
        Ok(Container {
            tenant,
            cgroup,
            process,
            guest,
            dir,
        })
    }

    /// Lets the root be when this value goes.
    pub fn leave(self) {
        self.root.leave();
    }

    /// The cgroup below the root whose name starts with this.
    fn find(&self, prefix: &str) -> anyhow::Result<Cgroup> {
        let root = self.root.dir();
        let entries = fs::read_dir(root).with_context(|| format!("read {}", root.display()))?;
        let mut names = entries.flatten().map(|entry| entry.file_name());
        let name = names.find(|name| name.to_string_lossy().starts_with(prefix));
        let name = name.with_context(|| format!("no cgroup {prefix} below {}", root.display()))?;
        Ok(self.root.below(&name.to_string_lossy()))
    }

    fn folder(&self) -> anyhow::Result<PathBuf> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let dir = self.hypervisor.dir().join(format!("t{number}"));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }
}

impl Container {
    /// Its addresses; none of its own on the hypervisor's network.
    #[must_use]
    pub fn addresses(&self) -> Option<Addresses> {
        self.guest.as_ref().map(|guest| guest.addresses)
    }

    /// Its network namespace and interface, where it has them.
    #[must_use]
    pub fn guest(&self) -> Option<&Guest> {
        self.guest.as_ref()
    }

    /// The process that the lab started: the tenant, or its runtime.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// A folder of its own that others in the lab see as well.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lets it run on when this value goes.
    pub fn leave(self) {
        let Self {
            tenant: _,
            cgroup,
            process,
            guest,
            dir: _,
        } = self;
        process.leave();
        cgroup.leave();
        if let Some(guest) = guest {
            guest.leave();
        }
    }
}

fn reach(name: &str, socket: &Path, process: &mut Process) -> anyhow::Result<Tenant> {
    Tenant::reach(name, socket, || match process.status()? {
        None => Ok(()),
        Some(status) => bail!("{name} ended: {status}; it wrote:\n{}", process.log()),
    })
}
