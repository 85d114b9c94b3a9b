//! What a policy is compared with: another directory, or a git revision of its own.

use std::path::{Path, PathBuf};

use gate25_common::abi::CustomerId;
use jiff::Timestamp;
use serde::Serialize;

use crate::access::{Shift, shifts};
use crate::cli::files;
use crate::compile::{CompileError, compile};
use crate::diagnostic::Diagnostic;
use crate::git::{GitError, checkout};
use crate::policy::Policy;
use crate::policy::changes::{Change, compare};
use crate::policy::loader::{Circumstances, Purpose};

/// What is different from what it was compared with.
#[derive(Debug, Serialize)]
pub(super) struct Difference {
    /// What it was compared with.
    pub(super) base: String,
    /// Who may newly send where, and who no longer.
    pub(super) access: Vec<Shift>,
    /// What the policies say differently.
    pub(super) changes: Vec<Change>,
}

/// Why there is nothing to compare with.
#[derive(Debug, thiserror::Error)]
pub(super) enum BaseError {
    #[error("compare with {base}")]
    Git { base: String, source: GitError },
    #[error("what to compare with, {base}, is no valid policy")]
    Invalid {
        base: String,
        diagnostics: Vec<Diagnostic>,
    },
    #[error("the policies have no form as tables")]
    Compile(#[from] CompileError),
}

/// Compares `policy`, which is in `directory`, with the one in another directory or in a revision.
pub(super) fn difference(
    policy: &Policy,
    directory: &Path,
    base: &Path,
    now: Timestamp,
) -> Result<Difference, BaseError> {
    let shown = base.to_string_lossy().into_owned();
    let before = read(directory, base, now)?;
    let (earlier, later) = (compile(&before, now)?, compile(policy, now)?);
    Ok(Difference {
        base: shown,
        access: shifts(&earlier, &later, now),
        changes: compare(&before, policy),
    })
}

fn read(directory: &Path, base: &Path, now: Timestamp) -> Result<Policy, BaseError> {
    // As an agent would run it: what is wrong with the past only by now does not matter.
    let circumstances = Circumstances {
        purpose: Purpose::Run,
        now,
        customer_key: |id| CustomerId::from_name(id).get(),
    };
    let shown = base.to_string_lossy().into_owned();
    let set = if base.is_dir() {
        files::policy(base, &circumstances)
    } else {
        let copied = checkout(directory, &shown).map_err(|source| BaseError::Git {
            base: shown.clone(),
            source,
        })?;
        let name = PathBuf::from(format!("{shown}:{}", directory.display()));
        files::policy_shown_as(copied.path(), &name, &circumstances)
    };
    set.policy.ok_or(BaseError::Invalid {
        base: shown,
        diagnostics: set.diagnostics,
    })
}
