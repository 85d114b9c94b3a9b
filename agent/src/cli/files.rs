//! Settings and policy sets as commands read them: whatever is wrong becomes a diagnostic whose
//! path an editor finds.

use std::path::Path;
use std::sync::Arc;

use crate::cli::console::is_root;
use crate::diagnostic::{Diagnostic, Location};
use crate::policy::Policy;
use crate::policy::directory;
use crate::policy::loader::{Circumstances, Loader, SetHash};
use crate::settings::{self, Missing, SettingsError};
use crate::trust::{Keepers, Trust};

/// What reading a policy directory came to.
#[derive(Debug, Default)]
pub(super) struct Set {
    /// Files that make up the set.
    pub(super) files: usize,
    /// Identifies their contents; `None` if the directory could not be read.
    pub(super) hash: Option<SetHash>,
    /// What they say; `None` if they are refused.
    pub(super) policy: Option<Policy>,
    /// What is wrong with them, or worth a look.
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// Reads the settings of this host, as written by those whom `trust` names.
///
/// # Errors
/// Everything that is wrong with them.
pub(super) fn settings(
    config: &Path,
    missing: Missing,
    trust: &Trust,
) -> Result<settings::Loaded, Vec<Diagnostic>> {
    settings::read(config, missing, trust).map_err(|error| settings_failure(config, error))
}

/// Who may have written the settings for a start to take them: whoever is not root cannot tell whom root trusts.
pub(super) fn trusted_at_a_start() -> Trust {
    if is_root() {
        // They say what is given to the agent's user, so that user is not one.
        Trust::Keepers(Keepers::new(0, Vec::new()))
    } else {
        Trust::Anybody
    }
}

/// Reads the policy set in `dir`.
pub(super) fn policy(dir: &Path, circumstances: &Circumstances) -> Set {
    policy_shown_as(dir, dir, circumstances)
}

/// The same where people know the directory by another name.
pub(super) fn policy_shown_as(dir: &Path, shown: &Path, circumstances: &Circumstances) -> Set {
    let mut loader = Loader::default();
    let contents = match directory::read(dir, &Trust::Anybody, &loader) {
        Ok(contents) => contents,
        Err(error) => {
            return Set {
                diagnostics: error.diagnostics(shown),
                ..Set::default()
            };
        }
    };
    let (hash, policy, diagnostics) = match loader.load(&contents.files, circumstances) {
        Ok(loaded) => (loaded.hash, Some(loaded.policy), loaded.warnings),
        Err(refused) => (refused.hash, None, refused.diagnostics),
    };
    let all = diagnostics.into_iter().chain(contents.warnings);
    Set {
        files: contents.files.len(),
        hash: Some(hash),
        policy,
        diagnostics: all.map(|one| one.below(shown)).collect(),
    }
}

fn settings_failure(config: &Path, error: SettingsError) -> Vec<Diagnostic> {
    match error {
        SettingsError::Io { path, source } => vec![Diagnostic::unreadable(&path, &source)],
        SettingsError::Exposed(error) => vec![Diagnostic::error(
            "exposed",
            Location::whole(&Arc::from(config)),
            error.to_string(),
        )],
        SettingsError::Invalid {
            path: _,
            diagnostics,
        } => diagnostics,
    }
}
