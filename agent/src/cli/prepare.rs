//! `gate25 prepare`: what only root may do for an agent that is not.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::unistd::{Gid, Group, Uid, User};

use crate::cli::console::{Console, FAILED, Surroundings, is_root};
use crate::cli::files;
use crate::kernel::bpf::pins::DEFAULT_FILESYSTEM;
use crate::prepare::{Identity, PrepareError};
use crate::settings::Settings;

/// Makes folders ready for an agent that is not root
///
/// Only root may. To be run before each start: mounts the BPF filesystem where it is not mounted, lets
/// the agent's group through it, and gives to the agent's user gate25's folder there, `state_dir` and
/// the folder of `control.socket`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Who runs the agent: a name or a number
    #[arg(long, default_value = "gate25")]
    pub user: String,
    /// The agent's group: a name or a number [default: the user's]
    #[arg(long)]
    pub group: Option<String>,
    /// BPF filesystem on which tables and links are pinned
    #[arg(long, hide = true, value_name = "DIR", default_value = DEFAULT_FILESYSTEM)]
    pub bpffs: PathBuf,
}

/// Makes the folders ready.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    if !is_root() {
        console.say("only root may give folders to the agent's user")?;
        return Ok(ExitCode::from(FAILED));
    }
    let identity = match identity(&args.user, args.group.as_deref()) {
        Ok(identity) => identity,
        Err(why) => {
            console.say(&why)?;
            return Ok(ExitCode::from(FAILED));
        }
    };
    let trust = files::trusted_at_a_start();
    let settings = match files::settings(surroundings.config, surroundings.missing, &trust) {
        Ok(loaded) => loaded.settings,
        Err(diagnostics) => return console.refuse_beside(surroundings.colour, &diagnostics),
    };
    match prepare(identity, args, &settings) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => console.complain(&error, FAILED),
    }
}

fn prepare(identity: Identity, args: &Args, settings: &Settings) -> Result<(), PrepareError> {
    identity.open_pins(&args.bpffs)?;
    identity.open_state(&settings.state_dir)?;
    identity.open_socket_folder(&settings.control.socket)
}

/// The user and the group of these names or numbers.
fn identity(user: &str, group: Option<&str>) -> Result<Identity, String> {
    let known = match user.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(user),
    };
    let known = known.map_err(|error| format!("look up user {user}: {error}"))?;
    let number = match (&known, user.parse()) {
        (Some(known), _) => known.uid.as_raw(),
        (None, Ok(number)) => number,
        (None, Err(_)) => return Err(format!("there is no user {user}")),
    };
    let group = match (group, known) {
        (Some(group), _) => group_number(group)?,
        (None, Some(known)) => known.gid.as_raw(),
        (None, None) => return Err(format!("user {user} has no entry: say --group, too")),
    };
    Ok(Identity {
        user: number,
        group,
    })
}

fn group_number(group: &str) -> Result<u32, String> {
    let known = match group.parse() {
        Ok(number) => return Ok(Gid::from_raw(number).as_raw()),
        Err(_) => Group::from_name(group),
    };
    match known {
        Ok(Some(known)) => Ok(known.gid.as_raw()),
        Ok(None) => Err(format!("there is no group {group}")),
        Err(error) => Err(format!("look up group {group}: {error}")),
    }
}
