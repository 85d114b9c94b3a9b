//! `gate25 pages`: man pages and shell completions, made from the commands as they are. For whoever
//! builds packages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// The manual's section: commands of the administrator.
const SECTION: &str = "8";
/// Shells whose completions are made.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes man pages and shell completions into a folder
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Gets the folders `man` and `completions`
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Writes the pages of `command` and of its subcommands, but for hidden ones.
///
/// # Errors
/// A folder or a file cannot be written.
pub fn run(args: &Args, command: clap::Command) -> io::Result<ExitCode> {
    let name = command.get_name().to_owned();
    let completions = args.dir.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in SHELLS {
        generate_to(shell, &mut command.clone(), &name, &completions)?;
    }
    let man = args.dir.join("man");
    fs::create_dir_all(&man)?;
    let mut command = command.disable_help_subcommand(true);
    // Has the subcommands know their full names and the global options.
    command.build();
    write(&command, &name, &man)?;
    Ok(ExitCode::SUCCESS)
}

fn write(command: &clap::Command, name: &str, dir: &Path) -> io::Result<()> {
    let page = Man::new(command.clone())
        .section(SECTION)
        .title(name.to_uppercase());
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(dir.join(format!("{name}.{SECTION}")), text)?;
    let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
    for subcommand in shown {
        write(
            subcommand,
            &format!("{name}-{}", subcommand.get_name()),
            dir,
        )?;
    }
    Ok(())
}
