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
    entries: Mutex<Entries>,
}

impl Record {
    pub(super) fn open() -> anyhow::Result<Self> {
        Self::at(root().join(FILE))
    }

    fn at(path: PathBuf) -> anyhow::Result<Self> {
        let entries = match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Entries::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self {
            path,
            entries: Mutex::new(entries),
        })
    }

    /// What this binary came to when it passed on this kernel with the present sources.
    pub(super) fn find(&self, release: &str, binary: &Binary) -> anyhow::Result<Option<Outcome>> {
        let sources = sources::hash(binary)?;
        Ok(self.outcome_of(release, &binary.name, &sources))
    }

    fn outcome_of(&self, release: &str, name: &str, sources: &str) -> Option<Outcome> {
        let entries = self.entries();
        let entry = entries.get(release)?.get(name)?;
        (entry.sources == sources).then(|| entry.outcome.clone())
    }

    /// Keeps what a binary came to if it has passed, and forgets earlier times if it has not.
    pub(super) fn keep(
        &self,
        release: &str,
        binary: &Binary,
        outcome: &Outcome,
    ) -> anyhow::Result<()> {
        let entry = if outcome.count.failed == 0 {
            Some(Entry {
                sources: sources::hash(binary)?,
                outcome: outcome.clone(),
            })
        } else {
            None
        };
        self.put(release, &binary.name, entry)
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
        let entry = Entry {
            sources: "abc".to_owned(),
            outcome: outcome.clone(),
        };
        let record = Record::at(path.clone()).unwrap();
        record.put("6.1", "object", Some(entry)).unwrap();
        let again = Record::at(path.clone()).unwrap();
        assert_eq!(again.outcome_of("6.1", "object", "abc"), Some(outcome));
        for (release, name, sources) in [
            ("6.12", "object", "abc"),
            ("6.1", "verdict", "abc"),
            ("6.1", "object", "abd"),
        ] {
            assert_eq!(again.outcome_of(release, name, sources), None);
        }
        again.put("6.1", "object", None).unwrap();
        let forgotten = Record::at(path).unwrap();
        assert_eq!(forgotten.outcome_of("6.1", "object", "abc"), None);
    }

    #[test]
    fn record_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels.json");
        fs::write(&path, "{").unwrap();
        assert!(Record::at(path).is_err());
    }
}
