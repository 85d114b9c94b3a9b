//! `gate25 guard`: the guard's ruleset, for loading it before any agent runs.

use std::io;
use std::process::ExitCode;

use crate::cli::console::{Console, Surroundings};
use crate::cli::files;
use crate::guard::Guard;
use crate::trust::Trust;

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
    let settings = match files::settings(surroundings.config, surroundings.missing, &Trust::Anybody)
    {
        Ok(loaded) => loaded.settings,
        Err(diagnostics) => return console.refuse_beside(surroundings.colour, &diagnostics),
    };
    let commands = match Guard::new(&settings) {
        Some(guard) => {
            for pattern in guard.unguarded() {
                console.say(&format!(
                    "`{pattern}` is not covered: the guard knows beginnings of names only"
                ))?;
            }
            guard.commands()
        }
        // Loading it must leave the host as the settings want it.
        None => crate::guard::removal_commands(),
    };
    serde_json::to_writer(&mut *console.out, &commands)?;
    writeln!(console.out)?;
    Ok(ExitCode::SUCCESS)
}
