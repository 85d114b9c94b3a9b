//! Settings and policy sets as commands read them: whatever is wrong becomes a diagnostic whose
//! path an editor finds.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Location};
use crate::policy::Policy;
use crate::policy::directory::{self, DirectoryError};
use crate::policy::loader::{Circumstances, Loader, SetHash};
use crate::settings::{self, Missing, SettingsError};

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

/// Reads the settings of this host.
///
/// # Errors
/// Everything that is wrong with them.
pub(super) fn settings(
    config: &Path,
    missing: Missing,
) -> Result<settings::Loaded, Vec<Diagnostic>> {
    settings::read(config, missing).map_err(settings_failure)
}

/// Reads the policy set in `dir`.
pub(super) fn policy(dir: &Path, circumstances: &Circumstances) -> Set {
    let contents = match directory::read(dir) {
        Ok(contents) => contents,
        Err(error) => {
            return Set {
                diagnostics: directory_failure(dir, error),
                ..Set::default()
            };
        }
    };
    let (hash, policy, diagnostics) = match Loader::default().load(&contents.files, circumstances) {
        Ok(loaded) => (loaded.hash, Some(loaded.policy), loaded.warnings),
        Err(refused) => (refused.hash, None, refused.diagnostics),
    };
    let all = diagnostics.into_iter().chain(contents.warnings);
    Set {
        files: contents.files.len(),
        hash: Some(hash),
        policy,
        diagnostics: all.map(|one| below(dir, one)).collect(),
    }
}

/// The diagnostic with paths that an editor finds: those of a set are relative to its directory.
fn below(dir: &Path, mut diagnostic: Diagnostic) -> Diagnostic {
    let related = diagnostic
        .related
        .iter_mut()
        .map(|related| &mut related.location);
    for location in std::iter::once(&mut diagnostic.primary).chain(related) {
        let path = if *location.file == *Path::new(".") {
            dir.to_owned()
        } else {
            dir.join(&location.file)
        };
        location.file = Arc::from(path);
    }
    diagnostic
}

fn settings_failure(error: SettingsError) -> Vec<Diagnostic> {
    match error {
        SettingsError::Io { path, source } => vec![unreadable(&path, &source)],
        SettingsError::Invalid {
            path: _,
            diagnostics,
        } => diagnostics,
    }
}

fn directory_failure(dir: &Path, error: DirectoryError) -> Vec<Diagnostic> {
    let whole = |path: &Path| Location::whole(&Arc::from(path));
    match error {
        DirectoryError::Missing { path } => {
            vec![Diagnostic::error(
                "no-directory",
                whole(&path),
                "the directory does not exist",
            )]
        }
        DirectoryError::NotADirectory { path } => {
            vec![Diagnostic::error(
                "no-directory",
                whole(&path),
                "this is not a directory",
            )]
        }
        DirectoryError::Vanished { path } => vec![
            Diagnostic::error(
                "vanished",
                whole(&path),
                "the file vanished while it was read",
            )
            .help("check again when nobody is writing; a link may lead nowhere"),
        ],
        DirectoryError::Io { path, source } => vec![unreadable(&path, &source)],
        DirectoryError::Refused(diagnostics) => {
            diagnostics.into_iter().map(|one| below(dir, one)).collect()
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    let location = Location::whole(&Arc::from(path));
    Diagnostic::error(
        "unreadable",
        location,
        format!("this cannot be read: {error}"),
    )
}
