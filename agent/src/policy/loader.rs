//! Files to a policy: every file is read by itself, then the set is judged as a whole.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::Policy;
use super::join;
use super::language::{self, PolicyFile};
use crate::diagnostic::{Diagnostic, Problems, Severity};

/// A file of the set, its contents not looked at yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Path relative to the policy directory.
    pub path: Arc<Path>,
    /// Contents.
    pub bytes: Arc<[u8]>,
}

/// What the set is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To tell whether people should use it: everything that is wrong is an error.
    Check,
    /// To run it. Clocks are wrong at boot, so what is an error only because of the time is a
    /// warning here, and what it is about is left out of the policy: that opens nothing.
    Run,
}

/// Circumstances of a load.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// What the set is loaded for.
    pub purpose: Purpose,
    /// The time.
    pub now: Timestamp,
    /// The number that stands for a customer's id in the kernel.
    pub customer_key: fn(&str) -> u64,
}

/// A valid set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What the set says.
    pub policy: Policy,
    /// What somebody should look at.
    pub warnings: Vec<Diagnostic>,
    /// Identifies the set's contents.
    pub hash: SetHash,
    /// Files that had to be parsed, the others being known from the last load.
    pub parsed: usize,
}

/// Why a set is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the policy set has {} errors", self.errors())]
pub struct Refused {
    /// Errors first, then warnings.
    pub diagnostics: Vec<Diagnostic>,
    /// Identifies the set's contents.
    pub hash: SetHash,
}

impl Refused {
    /// How many errors the set has.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.diagnostics
            .iter()
            .filter(|one| one.severity == Severity::Error)
            .count()
    }
}

/// SHA-256 over the paths of a set in order, each followed by the SHA-256 of its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetHash(pub [u8; 32]);

impl SetHash {
    /// The first 48 bits: as much as a metric's value holds exactly.
    #[must_use]
    pub fn metric(&self) -> u64 {
        self.0
            .iter()
            .take(6)
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

impl fmt::Display for SetHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Loads a set again and again, parsing only what has changed.
#[derive(Debug, Default)]
pub struct Loader {
    known: BTreeMap<Arc<Path>, Known>,
}

#[derive(Debug)]
struct Known {
    bytes: Arc<[u8]>,
    digest: [u8; 32],
    file: Option<PolicyFile>,
    problems: Problems,
}

impl Loader {
    /// Loads the set that these files make up; their order does not matter.
    ///
    /// # Errors
    /// Everything that is wrong with the set, in one go.
    pub fn load(
        &mut self,
        files: &[SourceFile],
        circumstances: &Circumstances,
    ) -> Result<Loaded, Refused> {
        let sources: BTreeMap<&Arc<Path>, &Arc<[u8]>> =
            files.iter().map(|file| (&file.path, &file.bytes)).collect();
        let (hash, parsed) = self.refresh(&sources);
        let mut problems = Problems::default();
        for known in self.known.values() {
            problems.append(&known.problems);
        }
        let readable: Vec<_> = self
            .known
            .iter()
            .filter_map(|(path, known)| known.file.as_ref().map(|file| (path, file)))
            .collect();
        let complete = readable.len() == self.known.len();
        let policy = join::join(&readable, complete, circumstances, &mut problems);
        let refused = problems.has_errors();
        let sources = sources
            .iter()
            .map(|(path, bytes)| (&***path, &***bytes))
            .collect();
        let diagnostics = problems.finish(&sources);
        if refused {
            return Err(Refused { diagnostics, hash });
        }
        Ok(Loaded {
            policy,
            warnings: diagnostics,
            hash,
            parsed,
        })
    }

    /// Parses what is new and forgets what is gone; returns the set's hash and how many files were
    /// parsed.
    fn refresh(&mut self, sources: &BTreeMap<&Arc<Path>, &Arc<[u8]>>) -> (SetHash, usize) {
        self.known.retain(|path, _| sources.contains_key(path));
        let mut parsed = 0;
        let mut set = Sha256::new();
        for (path, bytes) in sources {
            let known = match self.known.entry(Arc::clone(path)) {
                Entry::Occupied(known) if known.get().bytes == **bytes => known.into_mut(),
                other @ (Entry::Vacant(_) | Entry::Occupied(_)) => {
                    parsed += 1;
                    other.insert_entry(Known::read(path, bytes)).into_mut()
                }
            };
            let name = path.as_os_str().as_encoded_bytes();
            set.update((name.len() as u64).to_le_bytes());
            set.update(name);
            set.update(known.digest);
        }
        (SetHash(set.finalize().into()), parsed)
    }

    /// What a file of the last load held.
    pub(super) fn contents(&self, path: &Path) -> Option<&Arc<[u8]>> {
        self.known.get(path).map(|known| &known.bytes)
    }
}

impl Known {
    fn read(path: &Arc<Path>, bytes: &Arc<[u8]>) -> Self {
        let mut problems = Problems::default();
        let file = language::read(path, bytes, &mut problems);
        Self {
            bytes: Arc::clone(bytes),
            digest: Sha256::digest(bytes).into(),
            file,
            problems,
        }
    }
}
