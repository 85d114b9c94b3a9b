//! `gate25 guard`: the guard's ruleset, for loading it before any agent runs.

use std::io;
use std::process::ExitCode;

use crate::cli::console::{Console, Surroundings};
use crate::cli::files;
use crate::guard::{self, Guard};

/// Shows the guard: an nftables ruleset that closes guests' ports while no program does
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print the ruleset as JSON for `nft -j -f -`
    #[arg(long, required = true)]
    pub print: bool,
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
    let Args { print: _required } = args;
    let settings = match files::settings(surroundings.config, surroundings.missing) {
        Ok(loaded) => loaded.settings,
        Err(diagnostics) => return console.refuse_beside(surroundings.colour, &diagnostics),
    };
    let commands = match Guard::new(&settings) {
        Some(guard) => {
            for unguarded in guard.unguarded() {
                console.say(&unguarded.to_string())?;
            }
            guard.commands()
        }
        // Loading it must leave the host as the settings want it.
        None => guard::removal(),
    };
    serde_json::to_writer(&mut *console.out, &commands.to_json())?;
    writeln!(console.out)?;
    Ok(ExitCode::SUCCESS)
}
