//! What has passed on a kernel with the present sources, kept in the repository: hours of a run that
//! something ends, or that another machine goes on with, are not lost.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::sources;
use crate::{
    binaries::Binary,
    cargo::{Count, root},
};

/// Where it is kept.
pub(super) const FILE: &str = "tests/kernels.json";

/// What a test binary came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) count: Count,
    /// Tests that it noted as skipped, a line each.
    pub(super) skips: String,
    /// What it tried against the promise, in the ledger's lines.
    pub(super) tried: String,
}

impl Outcome {
    /// Of a binary that did not come to its end.
    pub(super) fn failure() -> Self {
        Self {
            count: Count::failure(),
            ..Self::default()
        }
    }
}

/// An outcome and what it is one of.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    sources: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// By the kernel's release and the test binary's name.
type Entries = BTreeMap<String, BTreeMap<String, Entry>>;

/// All that has passed.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    /// Hashes by the test binary's name.
    sources: BTreeMap<String, String>,
    entries: Mutex<Entries>,
}

impl Record {
    /// Hashes the sources now: these binaries have just been built of them, and they may change during the run.
    pub(super) fn open<'b>(binaries: impl IntoIterator<Item = &'b Binary>) -> anyhow::Result<Self> {
        let hashed = binaries.into_iter().map(|binary| {
            let hash = sources::hash(binary)?;
            Ok((binary.name.clone(), hash))
        });
        Self::at(root().join(FILE), hashed.collect::<anyhow::Result<_>>()?)
    }

    fn at(path: PathBuf, sources: BTreeMap<String, String>) -> anyhow::Result<Self> {
        let entries = match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Entries::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self {
            path,
            sources,
            entries: Mutex::new(entries),
        })
    }

    /// What this binary came to when it passed on this kernel with the present sources.
    pub(super) fn find(&self, release: &str, name: &str) -> Option<Outcome> {
        let entries = self.entries();
        let entry = entries.get(release)?.get(name)?;
        (self.sources.get(name) == Some(&entry.sources)).then(|| entry.outcome.clone())
    }

    /// Keeps what a binary came to if it has passed, and forgets earlier times if it has not.
    pub(super) fn keep(&self, release: &str, name: &str, outcome: &Outcome) -> anyhow::Result<()> {
        let entry = if outcome.count.failed == 0 {
            let sources = self.sources.get(name);
            Some(Entry {
                sources: sources
                    .with_context(|| format!("{name} is not in the plan"))?
                    .clone(),
                outcome: outcome.clone(),
            })
        } else {
            None
        };
        self.put(release, name, entry)
    }

    fn put(&self, release: &str, name: &str, entry: Option<Entry>) -> anyhow::Result<()> {
        let mut entries = self.entries();
        let of_kernel = entries.entry(release.to_owned()).or_default();
        match entry {
            Some(entry) => drop(of_kernel.insert(name.to_owned(), entry)),
            None => drop(of_kernel.remove(name)),
        }
        let text = serde_json::to_string_pretty(&*entries).context("write what has passed")?;
        // A run that ends here leaves the old one.
        let new = self.path.with_extension("json.new");
        fs::write(&new, text + "\n").with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &self.path).with_context(|| format!("write {}", self.path.display()))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Another kernel's thread that panics leaves them as they were.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_that_was_kept_is_found_again_for_the_same_kernel_binary_and_sources_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels.json");
        let outcome = Outcome {
            count: Count {
                passed: 3,
                ..Count::default()
            },
            skips: "one\n".to_owned(),
            tried: "fault\tkill -9\t2\t10\t0\n".to_owned(),
        };
        let record = |sources: &str| {
            let names = ["object", "verdict"];
            let sources = names.map(|name| (name.to_owned(), sources.to_owned()));
            Record::at(path.clone(), BTreeMap::from(sources)).unwrap()
        };
        record("abc").keep("6.1", "object", &outcome).unwrap();
        assert_eq!(record("abc").find("6.1", "object"), Some(outcome));
        for (release, name, sources) in [
            ("6.12", "object", "abc"),
            ("6.1", "verdict", "abc"),
            ("6.1", "object", "abd"),
        ] {
            assert_eq!(record(sources).find(release, name), None);
        }
        let failed = Outcome::failure();
        record("abc").keep("6.1", "object", &failed).unwrap();
        assert_eq!(record("abc").find("6.1", "object"), None);
    }

    #[test]
    fn record_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels.json");
        fs::write(&path, "{").unwrap();
        assert!(Record::at(path, BTreeMap::new()).is_err());
    }
}
