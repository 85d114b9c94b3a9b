//! `gate25 guard`: the guard's ruleset, for loading it before any agent runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::chain::in_full;
use crate::cli::console::{Console, FAILED, Surroundings};
use crate::cli::files;
use crate::guard::{self, Guard};
use crate::settings::Settings;
use crate::trust::Trust;

/// Shows the guard: an nftables ruleset that closes guests' ports while no program does
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print the ruleset as JSON for `nft -j -f -`
    #[arg(long, required = true)]
    pub print: bool,
    /// Keep the ruleset in a file; where the settings are not valid, print what was kept there, or
    /// else the ruleset of a host without settings, and fail
    #[arg(long, value_name = "FILE")]
    pub keep: Option<PathBuf>,
}

/// Prints the commands that put the guard in place, as one transaction.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let Args {
        print: _required,
        keep,
    } = args;
    let settings = match files::settings(surroundings.config, surroundings.missing, &Trust::Anybody)
    {
        Ok(loaded) => loaded.settings,
        Err(diagnostics) => {
            let refused = console.refuse_beside(surroundings.colour, &diagnostics)?;
            if let Some(file) = keep {
                print_kept(file, console)?;
            }
            return Ok(refused);
        }
    };
    if let Some(guard) = Guard::new(&settings) {
        for unguarded in guard.unguarded() {
            console.say(&unguarded.to_string())?;
        }
    }
    let ruleset = ruleset(&settings);
    console.out.write_all(ruleset.as_bytes())?;
    let Some(file) = keep else {
        return Ok(ExitCode::SUCCESS);
    };
    match replace(file, &ruleset) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            let (file, error) = (file.display(), in_full(&error));
            console.say(&format!("the guard is not kept in {file}: {error}"))?;
            Ok(ExitCode::from(FAILED))
        }
    }
}

fn ruleset(settings: &Settings) -> String {
    let commands = match Guard::new(settings) {
        Some(guard) => guard.commands(),
        // Loading it must leave the host as the settings want it.
        None => guard::removal(),
    };
    format!("{}\n", commands.to_json())
}

/// A host whose settings cannot be read is better closed by those of yesterday than open.
fn print_kept(file: &Path, console: &mut Console<'_>) -> io::Result<()> {
    let shown = file.display();
    let ruleset = match fs::read_to_string(file) {
        Ok(kept) => {
            console.say(&format!("the guard that was kept in {shown} is taken"))?;
            kept
        }
        Err(error) => {
            let error = in_full(&error);
            console.say(&format!(
                "no guard is kept in {shown} ({error}), that of a host without settings is taken"
            ))?;
            ruleset(&Settings::default())
        }
    };
    console.out.write_all(ruleset.as_bytes())
}

/// A reader finds the old text or the new one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, file)
}
