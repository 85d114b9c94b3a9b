//! `gate25 enforcement`: what the settings say, for scripts of packages.

use std::io;
use std::process::ExitCode;

use crate::cli::console::{Console, Surroundings};
use crate::cli::files;
use crate::settings::Enforcement;
use crate::trust::Trust;

/// Prints `observe` or `policy`, as the settings on disk say.
///
/// # Errors
/// Writing failed.
pub fn run(surroundings: &Surroundings<'_>, console: &mut Console<'_>) -> io::Result<ExitCode> {
    let settings = files::settings(surroundings.config, surroundings.missing, &Trust::Anybody);
    let word = match settings {
        Ok(loaded) => match loaded.settings.enforcement {
            Enforcement::Observe => "observe",
            Enforcement::Policy => "policy",
        },
        Err(diagnostics) => return console.refuse_beside(surroundings.colour, &diagnostics),
    };
    writeln!(console.out, "{word}")?;
    Ok(ExitCode::SUCCESS)
}
