//! `gate25 guard`: the guard's ruleset, for loading it before any agent runs.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gate25_common::decide::HostMode;
use serde::de::IgnoredAny;

use crate::chain::in_full;
use crate::cli::console::{Console, FAILED, Surroundings};
use crate::cli::files;
use crate::guard::{self, Guard};
use crate::settings::Settings;
use crate::trust::{Keepers, Trust};

/// Of the file beside the one that is kept, on a host that only observes.
const OBSERVING: &str = ".observing";

/// Shows the guard: an nftables ruleset that closes guests' ports while no program does
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print the ruleset as JSON for `nft -j -f -`
    #[arg(long, required_unless_present = "keep")]
    pub print: bool,
    /// Keep the ruleset in a file, for settings that nobody else may have written. Where they are not
    /// valid, keep nothing, print what was kept there, or else the ruleset of a host without settings,
    /// and fail. On a host that only observes, what is kept refuses all the same, and is printed
    /// unless the settings, broken as they are, still say `enforcement: observe`
    #[arg(long, value_name = "FILE")]
    pub keep: Option<PathBuf>,
}

/// Prints the commands that put the guard in place, as one transaction, or keeps them, or both.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let Args { print, keep } = args;
    let trust = match keep {
        // What is kept is loaded by root at every boot to come.
        Some(_) => Trust::Keepers(Keepers::of_process()),
        None => Trust::Anybody,
    };
    let settings = match files::settings(surroundings.config, surroundings.missing, &trust) {
        Ok(loaded) => loaded.settings,
        Err(diagnostics) => {
            let refused = console.refuse_beside(surroundings.colour, &diagnostics)?;
            if let (Some(file), true) = (keep, *print) {
                print_kept(file, surroundings.config, console)?;
            }
            return Ok(refused);
        }
    };
    let guard = Guard::new(&settings);
    if *print {
        for unguarded in guard.iter().flat_map(Guard::unguarded) {
            console.say(&unguarded.to_string())?;
        }
        console.out.write_all(ruleset(guard.as_ref()).as_bytes())?;
    }
    let Some(file) = keep else {
        return Ok(ExitCode::SUCCESS);
    };
    match replace_kept(file, guard.as_ref(), settings.host_mode()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            let (file, error) = (file.display(), in_full(&error));
            console.say(&format!("the guard is not kept in {file}: {error}"))?;
            Ok(ExitCode::from(FAILED))
        }
    }
}

fn ruleset(guard: Option<&Guard>) -> String {
    let commands = match guard {
        Some(guard) => guard.commands(),
        // Loading it must leave the host as the settings want it.
        None => guard::removal(),
    };
    format!("{}\n", commands.to_json())
}

/// Keeps the ruleset that refuses, and beside it the one that observes where that is what the
/// settings want. Whoever dies in between leaves none that observes against them.
fn replace_kept(file: &Path, guard: Option<&Guard>, mode: HostMode) -> io::Result<()> {
    let refusing = guard.map(Guard::refusing);
    let observing = observing(file);
    match mode {
        HostMode::Policy => {
            match fs::remove_file(&observing) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            replace(file, &ruleset(refusing.as_ref()))
        }
        HostMode::Observe => {
            replace(file, &ruleset(refusing.as_ref()))?;
            replace(&observing, &ruleset(guard))
        }
    }
}

fn observing(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(OBSERVING);
    PathBuf::from(name)
}

/// A host whose settings cannot be read is better closed by those of yesterday than open. Nobody is
/// refused on a host that has only ever been told to observe, and still is.
fn print_kept(file: &Path, config: &Path, console: &mut Console<'_>) -> io::Result<()> {
    let observing = observing(file);
    let file = match observing.exists() && still_observes(config) {
        true => &observing,
        false => file,
    };
    let shown = file.display();
    let kept = fs::read_to_string(file).and_then(|kept| match serde_json::from_str(&kept) {
        Ok(IgnoredAny) => Ok(kept),
        // Nothing that nft could load, where a machine lost its power, for instance.
        Err(error) => Err(error.into()),
    });
    let ruleset = match kept {
        Ok(kept) => {
            console.say(&format!("the guard that was kept in {shown} is taken"))?;
            kept
        }
        Err(error) => {
            let error = in_full(&error);
            console.say(&format!(
                "no guard is kept in {shown} ({error}), that of a host without settings is taken"
            ))?;
            ruleset(Guard::new(&Settings::default()).as_ref())
        }
    };
    console.out.write_all(ruleset.as_bytes())
}

/// Whether settings that are not valid say `enforcement: observe` all the same, in so many words. Of
/// settings that others may have written nothing is believed.
fn still_observes(config: &Path) -> bool {
    let keepers = Keepers::of_process();
    let judged = fs::metadata(config).is_ok_and(|it| keepers.judge(config, &it).is_ok());
    let trusted = judged && keepers.judge_way(config).is_ok();
    trusted && fs::read_to_string(config).is_ok_and(|text| says_observe(&text))
}

fn says_observe(text: &str) -> bool {
    let mut said = text
        .lines()
        .filter_map(|line| line.strip_prefix("enforcement:"));
    let (only, further) = (said.next(), said.next());
    let value = only.map(|value| value.split(" #").next().unwrap_or_default().trim());
    further.is_none() && matches!(value, Some("observe" | "\"observe\"" | "'observe'"))
}

/// A reader finds the old text or the new one, after a loss of power, too.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    let mut written = File::create(&temporary)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_say_observe_only_in_so_many_words() {
        for (text, says) in [
            ("schema: 1\nenforcement: observe\nnonsense: 1\n", true),
            ("enforcement:  'observe' # for now\n", true),
            ("enforcement: policy\n", false),
            ("enforcement: observe\nenforcement: policy\n", false),
            ("# enforcement: observe\n", false),
            ("notice:\n  enforcement: observe\n", false),
            ("enforcement: observed\n", false),
            ("enforcement: observe#\n", false),
            ("enforcement:\n", false),
            ("", false),
        ] {
            assert_eq!(says_observe(text), says, "{text}");
        }
    }
}
