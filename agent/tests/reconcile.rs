//! What the reconciler makes of files, events and failures, on tables in memory. That the kernel does
//! as these tables do is for the system tests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "reconcile/files.rs"]
mod files;
#[path = "reconcile/returns.rs"]
mod returns;
#[path = "reconcile/sites.rs"]
mod sites;
#[path = "reconcile/ways.rs"]
mod ways;

use std::cell::{Ref, RefCell, RefMut};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use gate25::clock::Offset;
use gate25::dataplane::{
    Applied, Attached, BypassError, CapacityError, Dataplane, Lost, MapImage, Returns, Site, Step,
    plan,
};
use gate25::kernel::links::{Interface, Kind, Snapshot};
use gate25::metrics::Timings;
use gate25::policy::Pattern;
use gate25::policy::shrink::Limits;
use gate25::reconcile::{Circumstances, Reconciler};
use gate25::settings::Interfaces;
use gate25::source::{Accepted, PolicyFiles, SourceError};
use gate25::status::{Shared, Status};
use gate25::workloads::Host;
use gate25_common::bypass::Bypass;
use jiff::Timestamp;
use tempfile::TempDir;

/// Two guests that the policies below may own.
const GUESTS: [(u32, &str); 2] = [(3, "tap1i0"), (4, "tap2i0")];

/// What the tables hold and what is attached.
#[derive(Default)]
struct Kernel {
    installed: MapImage,
    covered: BTreeSet<Site>,
    calls: Vec<&'static str>,
    refuses: bool,
    /// Sites that are covered by all that the backend remembers, and have no program.
    unhooked: BTreeSet<Site>,
    /// What somebody has changed cannot be put back.
    tampered: bool,
    /// Why there is no hook for what goes to guests, if there is none.
    no_replies: Option<&'static str>,
}

/// A backend in memory; what it is made from stays with the test.
struct Memory {
    kernel: Rc<RefCell<Kernel>>,
    installed: MapImage,
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    #[error("the kernel refuses")]
    Kernel,
}

impl Dataplane for Memory {
    type Error = Refusal;

    const LOST: Lost = Lost::AtOnce;

    fn installed(&self) -> &MapImage {
        &self.installed
    }

    fn apply(&mut self, wanted: &MapImage) -> Result<Applied, Refusal> {
        let mut kernel = self.kernel.borrow_mut();
        let steps = plan(&self.installed, wanted)?;
        let is_removal = |step: &Step| matches!(step, Step::RemoveInterface(_));
        if kernel.refuses && !steps.iter().all(is_removal) {
            return Err(Refusal::Kernel);
        }
        kernel.calls.push("apply");
        self.installed.clone_from(wanted);
        kernel.installed.clone_from(wanted);
        Ok(Applied {
            writes: steps.iter().map(Step::writes).sum(),
        })
    }

    fn adopt(&mut self) -> Result<usize, Refusal> {
        self.kernel.borrow_mut().calls.push("adopt");
        Ok(0)
    }

    fn covered(&self) -> BTreeSet<Site> {
        self.kernel.borrow().covered.clone()
    }

    fn attach_interface(&mut self, index: u32) -> Result<Attached, Refusal> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.calls.push("attach");
        kernel.covered.insert(Site::Interface(index));
        kernel.unhooked.remove(&Site::Interface(index));
        Ok(Attached::Yes)
    }

    fn replies(&self) -> Result<(), &'static str> {
        self.kernel.borrow().no_replies.map_or(Ok(()), Err)
    }

    fn attach_replies(&mut self, index: u32) -> Result<Attached, Refusal> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.covered.insert(Site::Replies(index));
        Ok(Attached::Yes)
    }

    fn attach_root(&mut self, id: u64, _: &Path) -> Result<Attached, Refusal> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.calls.push("attach");
        kernel.covered.insert(Site::Root(id));
        Ok(Attached::Yes)
    }

    fn detach(&mut self, site: Site) -> Result<(), Refusal> {
        self.kernel.borrow_mut().covered.remove(&site);
        Ok(())
    }

    fn displaced(&mut self, among: &BTreeSet<Site>) -> Result<BTreeSet<Site>, Refusal> {
        let kernel = self.kernel.borrow();
        let missing =
            |site: &&Site| !kernel.covered.contains(*site) || kernel.unhooked.contains(*site);
        Ok(among.iter().filter(missing).copied().collect())
    }

    fn bypass(&mut self, _: &Bypass) -> Result<(), BypassError<Refusal>> {
        Err(BypassError::Unsupported)
    }

    fn repin(&mut self) -> Result<usize, Refusal> {
        if self.kernel.borrow().tampered {
            return Err(Refusal::Kernel);
        }
        Ok(0)
    }
}

/// A reconciler on a kernel in memory, and what it may lose unasked: half of its customers.
struct Lab {
    dir: TempDir,
    kernel: Rc<RefCell<Kernel>>,
    status: Shared,
    reconciler: Reconciler<Memory>,
}

impl Lab {
    /// On a kernel without anything.
    fn new() -> Self {
        Self::on(Kernel::default())
    }

    /// On what an earlier agent left.
    fn on(kernel: Kernel) -> Self {
        Self::with(kernel, Returns::Open)
    }

    /// The same with packets that come back judged or not.
    fn with(kernel: Kernel, returns: Returns) -> Self {
        let dir = TempDir::new().unwrap();
        let status = Shared::default();
        let circumstances = Circumstances {
            notice: vec![ways::NOTICE],
            returns,
            way_to: ways::way_to,
            host: Host {
                name: "hv-1".to_owned(),
                interfaces: Interfaces {
                    matched: vec![Pattern::new("tap*")],
                    ignored: Vec::new(),
                },
                roots: vec![Pattern::new("lxc")],
            },
            cgroup_mount: Some(PathBuf::from("/nowhere")),
            policy_dir: dir.path().to_owned(),
            shrink: Limits {
                max_percent: 50,
                min_objects: 1,
            },
            status: status.clone(),
            timings: Timings::new().unwrap(),
        };
        let installed = kernel.installed.clone();
        let kernel = Rc::new(RefCell::new(kernel));
        let memory = Memory {
            kernel: Rc::clone(&kernel),
            installed,
        };
        let offset = Offset::sample().unwrap();
        let mut reconciler = Reconciler::new(memory, circumstances, offset).unwrap();
        let guests = GUESTS.map(|(index, name)| Interface {
            index,
            name: name.to_owned(),
            kind: Kind::Tap,
            master: None,
        });
        let snapshot = Snapshot {
            gone: BTreeSet::new(),
            interfaces: guests.into(),
        };
        reconciler.interfaces(snapshot, std::time::Instant::now());
        Self {
            dir,
            kernel,
            status,
            reconciler,
        }
    }

    /// Writes a policy in which these customers own the guests `tap<i>i0` from 1 on, and reads it.
    fn read(&self, customers: &[&str]) -> Result<Accepted, SourceError> {
        let mut text = "schema: 1\nprofiles: [{name: default}]\ncustomers:\n".to_owned();
        for (number, id) in customers.iter().enumerate() {
            let guest = format!("tap{}i0", number + 1);
            text += &format!("  - {{id: {id}, workloads: [{{interface: {guest}}}]}}\n");
        }
        self.read_text(&text)
    }

    fn read_text(&self, text: &str) -> Result<Accepted, SourceError> {
        fs::write(self.dir.path().join("policy.yaml"), text).unwrap();
        PolicyFiles::new(self.dir.path().to_owned()).load(Timestamp::now())
    }

    fn converge(&mut self) {
        let now = std::time::Instant::now();
        self.reconciler.converge();
        while self.reconciler.has_waiting() {
            self.reconciler.attach_next(now);
        }
    }

    fn kernel(&self) -> Ref<'_, Kernel> {
        self.kernel.borrow()
    }

    fn kernel_mut(&self) -> RefMut<'_, Kernel> {
        self.kernel.borrow_mut()
    }

    fn status(&self) -> Status {
        self.status.get()
    }
}
