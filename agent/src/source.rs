//! The policy's files, read again and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gate25_common::abi::CustomerId;
use jiff::Timestamp;
use tracing::{error, warn};

use crate::chain::in_full;
use crate::compile::{CompileError, Compiled, Image, compile_after};
use crate::diagnostic::{Diagnostic, Severity};
use crate::policy::Policy;
use crate::policy::directory::{self, DirectoryError};
use crate::policy::loader::{Circumstances, Loader, Purpose, Refused, SetHash, SourceFile};
use crate::state::StoredSet;
use crate::status::Source;
use crate::trust::{Keepers, Trust};

const TRANSIENT_RETRIES: u32 = 5;
const TRANSIENT_PAUSE: Duration = Duration::from_millis(20);

/// A set of files that was accepted.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// What it says.
    pub policy: Arc<Policy>,
    /// The same as tables.
    pub image: Arc<Image>,
    /// Identifies the files.
    pub hash: SetHash,
    /// The files themselves.
    pub files: Arc<[SourceFile]>,
    /// Where they were.
    pub source: Source,
}

impl Accepted {
    /// The set in the form that is kept for later starts; `now` is when it was accepted.
    #[must_use]
    pub fn stored(&self, now: Timestamp) -> StoredSet {
        StoredSet {
            files: Arc::clone(&self.files),
            hash: self.hash,
            accepted: now,
        }
    }
}

/// Why the files were refused.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory could not be read.
    #[error("the policy directory was not read")]
    Directory(#[from] DirectoryError),
    /// The set is invalid.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The set has no tables.
    #[error("the policy has no form as tables")]
    Compile(#[from] CompileError),
}

/// The policy directory.
pub struct PolicyFiles {
    directory: PathBuf,
    trust: Trust,
    loader: Loader,
    /// The set that was last found valid.
    last: Option<Compiled>,
}

impl PolicyFiles {
    /// The files in `directory`, which must have been written by those whom this process trusts.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            trust: Trust::Keepers(Keepers::of_process()),
            loader: Loader::default(),
            last: None,
        }
    }

    /// Reads the set as it is now, parsing only files that have changed.
    ///
    /// # Errors
    ///
    /// [`SourceError`]; everything that is wrong is in it.
    pub fn load(&mut self, now: Timestamp) -> Result<Accepted, SourceError> {
        let directory::Contents { files, warnings } = self.read()?;
        let accepted = self.accept(files.into(), Source::Files, now)?;
        warnings.iter().for_each(report);
        Ok(accepted)
    }

    /// Judges a set that was accepted earlier as if its files were read now: this program may be
    /// newer than the one that accepted it.
    ///
    /// # Errors
    ///
    /// [`SourceError::Refused`] or [`SourceError::Compile`].
    pub fn load_stored(
        &mut self,
        stored: &StoredSet,
        now: Timestamp,
    ) -> Result<Accepted, SourceError> {
        self.accept(Arc::clone(&stored.files), Source::LastKnownGood, now)
    }

    fn accept(
        &mut self,
        files: Arc<[SourceFile]>,
        source: Source,
        now: Timestamp,
    ) -> Result<Accepted, SourceError> {
        let circumstances = Circumstances {
            purpose: Purpose::Run,
            now,
            customer_key: |id| CustomerId::from_name(id).get(),
        };
        let loaded = self.loader.load(&files, &circumstances)?;
        loaded.warnings.iter().for_each(report);
        let image = compile_after(&loaded.policy, now, self.last.as_ref())?;
        let compiled = Compiled {
            policy: Arc::new(loaded.policy),
            image: Arc::new(image),
        };
        let Compiled { policy, image } = compiled.clone();
        self.last = Some(compiled);
        Ok(Accepted {
            policy,
            image,
            hash: loaded.hash,
            files,
            source,
        })
    }

    /// Reads the directory, again where somebody is writing to it.
    fn read(&self) -> Result<directory::Contents, DirectoryError> {
        for _ in 0..TRANSIENT_RETRIES {
            match directory::read(&self.directory, &self.trust, &self.loader) {
                Err(error) if error.is_transient() => std::thread::sleep(TRANSIENT_PAUSE),
                result => return result,
            }
        }
        directory::read(&self.directory, &self.trust, &self.loader)
    }
}

/// Logs everything that is wrong with a set.
pub fn report_refusal(refusal: &SourceError) {
    error!(
        error = in_full(refusal),
        "policy refused, the running one stays"
    );
    diagnostics(refusal).iter().for_each(report);
}

/// Logs everything that is wrong with the set that was kept for this start.
pub fn report_stored_refusal(refusal: &SourceError) {
    error!(error = in_full(refusal), "last-known-good policy refused");
    diagnostics(refusal).iter().for_each(report);
}

fn diagnostics(refusal: &SourceError) -> &[Diagnostic] {
    match refusal {
        SourceError::Refused(refused) => &refused.diagnostics,
        SourceError::Directory(DirectoryError::Refused(diagnostics)) => diagnostics,
        SourceError::Directory(_) | SourceError::Compile(_) => &[],
    }
}

fn report(diagnostic: &Diagnostic) {
    let Diagnostic {
        severity,
        code,
        message,
        help,
        primary,
        ..
    } = diagnostic;
    let place = primary.to_string();
    let source = primary
        .excerpt
        .as_ref()
        .map(|excerpt| excerpt.text.as_str());
    match severity {
        Severity::Error => error!(place, code, message, source, help, "policy"),
        Severity::Warning => warn!(place, code, message, source, help, "policy"),
    }
}
