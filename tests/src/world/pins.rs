//! What the agent has pinned, told by others than the agent.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::{PROMPT, World};
use crate::{Agent, Container, Feature, NetNs, poll};

/// Where the agent pins, unless told otherwise.
const PINS: &str = "/sys/fs/bpf/gate25";

impl World {
    /// Indexes of the interfaces that have the agent's program: those whose links are pinned, or,
    /// where the kernel has no tcx, those with its filter, as bpftool tells them.
    ///
    /// # Errors
    /// When the folder cannot be read, or bpftool does not tell.
    pub fn covered_interfaces(&self) -> anyhow::Result<Vec<u32>> {
        let mut indexes = if Feature::Tcx.is_present()? {
            self.hosting.hypervisor.run(linked_interfaces)??
        } else {
            filtered_interfaces(&self.hosting.hypervisor)?
        };
        indexes.sort_unstable();
        Ok(indexes)
    }

    /// Where the link of an interface is pinned.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn pinned_link(&self, interface: &str) -> anyhow::Result<PathBuf> {
        let pin = format!("interface-{}", self.index(interface)?);
        let host = &self.hosting.hypervisor;
        host.run(|| pins().join("links").join(pin))
    }

    /// Where the table of this name is pinned.
    ///
    /// # Errors
    /// When the hypervisor cannot be entered.
    pub fn pinned_map(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.hosting.hypervisor.run(|| pins().join(name))
    }

    /// Where the links of the containers' root are pinned, by their hooks' names.
    ///
    /// # Errors
    /// When the folder cannot be read, or there is no such root.
    pub fn pinned_root_links(&self) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        let prefix = format!("cgroup-{}-", self.containers.root.id()?);
        let files = self
            .hosting
            .hypervisor
            .run(|| files_below(&pins().join("links")))??;
        let hook = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            Some((name.strip_prefix(&prefix)?.to_owned(), path))
        };
        Ok(files.into_iter().filter_map(hook).collect())
    }

    /// Waits until replies to the guest behind `interface` are rewritten.
    ///
    /// # Errors
    /// When they are not before the deadline, with what the agent says.
    pub fn wait_replies(&self, agent: &Agent, interface: &str) -> anyhow::Result<()> {
        let pin = format!("replies-{}", self.index(interface)?);
        poll("the program for replies", PROMPT, || {
            let pinned = self
                .hosting
                .hypervisor
                .run(|| pins().join("links").join(&pin).exists())?;
            Ok(pinned.then_some(()))
        })
        .with_context(|| agent.log())
    }

    /// What the agent has pinned: the numbers of maps, programs and links by their pins' paths,
    /// as bpftool tells them.
    ///
    /// # Errors
    /// When one of them cannot be told.
    pub fn pinned_objects(&self) -> anyhow::Result<BTreeMap<PathBuf, u64>> {
        let host = &self.hosting.hypervisor;
        let files = host.run(|| files_below(&pins()))??;
        let line = |path: &PathBuf| {
            let text = path.to_string_lossy();
            let kind = match () {
                () if text.contains("/links/") => "link",
                () if text.contains("/programs/") => "prog",
                () => "map",
            };
            format!("{kind} show pinned {text}\n")
        };
        let lines: String = files.iter().map(line).collect();
        let batch = self.lab.dir().join("pins.bpftool");
        fs::write(&batch, lines).with_context(|| format!("write {}", batch.display()))?;
        let told = host.exec(
            "bpftool",
            &["-j", "batch", "file", &batch.to_string_lossy()],
        )?;
        let told = told_by_bpftool(&told)?;
        let answers = told.as_array().context("no answers of bpftool's")?;
        if answers.len() != files.len() {
            bail!("{} answers for {} pins: {told}", answers.len(), files.len());
        }
        let number = |(path, answer): (PathBuf, &Value)| {
            let number = answer["output"]["id"].as_u64();
            let number =
                number.with_context(|| format!("no number of {} in {answer}", path.display()))?;
            Ok((path, number))
        };
        files.into_iter().zip(answers).map(number).collect()
    }

    /// Waits until the kernel's tables hold the cgroup of a container that the policy names.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_named(&self, container: &Container) -> anyhow::Result<()> {
        let key = container.cgroup.id()?.to_le_bytes();
        poll("a container's cgroup to be known", PROMPT, || {
            Ok(self.entry("CGROUPS", &key)?.map(drop))
        })
    }

    /// Waits until the kernel's tables hold a container's veth as such: what its cgroup's hooks
    /// have counted is not counted there again. Nothing to wait for without a veth.
    ///
    /// # Errors
    /// At the deadline.
    pub fn settle(&self, container: &Container) -> anyhow::Result<()> {
        const REFUSED_ONLY: &str = "0x02";
        let Some(guest) = container.guest() else {
            return Ok(());
        };
        let key = self.index(&guest.interface)?.to_le_bytes();
        poll("a container's veth to be known as such", PROMPT, || {
            let entry = self.entry("INTERFACES", &key)?;
            Ok(entry.and_then(|entry| (entry["value"][8] == REFUSED_ONLY).then_some(())))
        })
    }

    /// A table's entry, as bpftool tells it.
    fn entry(&self, map: &str, key: &[u8]) -> anyhow::Result<Option<Value>> {
        let host = &self.hosting.hypervisor;
        let map = self.pinned_map(map)?;
        let mut words = vec!["-j".to_owned(), "map".to_owned(), "lookup".to_owned()];
        words.extend(["pinned".to_owned(), map.to_string_lossy().into_owned()]);
        words.push("key".to_owned());
        words.extend(key.iter().map(ToString::to_string));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // An entry that is not there is an error of bpftool's.
        let told = host.exec("bpftool", &words).ok();
        told.map(|told| told_by_bpftool(&told)).transpose()
    }
}

/// Called inside the hypervisor.
fn linked_interfaces() -> anyhow::Result<Vec<u32>> {
    let files = files_below(&pins().join("links"))?;
    let index = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("interface-")?.parse().ok()
    };
    Ok(files.iter().filter_map(index).collect())
}

fn filtered_interfaces(host: &NetNs) -> anyhow::Result<Vec<u32>> {
    let told = host.exec("bpftool", &["-j", "net", "show"])?;
    let hooks = told_by_bpftool(&told)?;
    let filters = hooks[0]["tc"].as_array();
    let filters = filters.with_context(|| format!("no filters in {told}"))?;
    let index = |filter: &Value| {
        let index = filter["ifindex"].as_u64();
        let index = index.and_then(|index| u32::try_from(index).ok());
        index.with_context(|| format!("no interface in {filter}"))
    };
    let ours = |filter: &&Value| filter["name"] == "tc_ingress";
    filters.iter().filter(ours).map(index).collect()
}

fn told_by_bpftool(told: &str) -> anyhow::Result<Value> {
    serde_json::from_str(told).with_context(|| format!("what bpftool tells: {told}"))
}

/// The agent's folder of pins; called inside the hypervisor.
fn pins() -> PathBuf {
    let versions = fs::read_dir(PINS).into_iter().flatten().flatten();
    let version = |name: &str| name.strip_prefix('v')?.parse::<u32>().ok();
    let newest = versions
        .filter_map(|entry| version(entry.file_name().to_str()?))
        .max();
    Path::new(PINS).join(format!("v{}", newest.unwrap_or_default()))
}

fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry.context("read the pins")?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}
