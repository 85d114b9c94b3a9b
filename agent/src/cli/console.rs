//! How commands that talk to the agent print, and how they exit.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use nix::unistd::geteuid;
use serde::Serialize;

use crate::chain::in_full;
use crate::cli::files;
use crate::control::client::ClientError;
use crate::control::presence::Presence;
use crate::diagnostic::terminal::{Colour, render};
use crate::diagnostic::{Diagnostic, escape};
use crate::json;
use crate::settings::{Missing, Settings};
use crate::trust::Trust;

/// Invalid, refused, or not enforcing.
pub const FAILED: u8 = 1;
/// The command line makes no sense.
pub(super) const USAGE: u8 = 2;
/// The agent cannot be asked.
pub(super) const UNREACHABLE: u8 = 4;

/// How lists are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Fields between tabs, without headings.
    Plain,
    /// In columns, with headings.
    Table,
}

/// What a command needs to know of its surroundings.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The settings file.
    pub config: &'a Path,
    /// What a missing settings file means: an error where somebody named it.
    pub missing: Missing,
    /// The time.
    pub now: Timestamp,
    /// The host's name, where the settings give none.
    pub hostname: &'a str,
    /// How lists are laid out.
    pub layout: Layout,
    /// Whether the output may hold colours.
    pub colour: Colour,
}

/// Settings to go by.
pub(super) struct Assumed {
    pub(super) settings: Settings,
    /// Whether they are those of the file.
    pub(super) are_valid: bool,
}

/// Where a command prints.
pub struct Console<'a> {
    /// Answers.
    pub out: &'a mut dyn Write,
    /// What is wrong with the question or the surroundings.
    pub complaints: &'a mut dyn Write,
}

/// What commands are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// People.
    People,
    /// Programs: one JSON object.
    Programs,
}

impl Reader {
    pub(super) fn of(json: bool) -> Self {
        if json { Self::Programs } else { Self::People }
    }
}

impl Console<'_> {
    /// The settings of this host, or what is wrong with them, printed.
    pub(super) fn settings(
        &mut self,
        reader: Reader,
        surroundings: &Surroundings<'_>,
    ) -> io::Result<Result<Settings, ExitCode>> {
        match files::settings(surroundings.config, surroundings.missing, &Trust::Anybody) {
            Ok(loaded) => Ok(Ok(loaded.settings)),
            Err(diagnostics) => self
                .refuse(reader, surroundings.colour, &diagnostics)
                .map(Err),
        }
    }

    /// The settings, or the defaults with a remark: settings that are not valid keep nobody from asking an agent
    /// that runs under those before, nor from looking, closing or opening where it does not start for them.
    pub(super) fn settings_or_defaults(
        &mut self,
        surroundings: &Surroundings<'_>,
    ) -> io::Result<Assumed> {
        match files::settings(surroundings.config, surroundings.missing, &Trust::Anybody) {
            Ok(loaded) => Ok(Assumed {
                settings: loaded.settings,
                are_valid: true,
            }),
            Err(diagnostics) => {
                let defaults = Settings::default();
                let socket = defaults.control.socket.display();
                for diagnostic in diagnostics {
                    self.say(&format!("{}: {}", diagnostic.primary, diagnostic.message))?;
                }
                self.say(&format!(
                    "{} is not valid: the agent is looked for at {socket}, and everything else is taken to be by \
                     default",
                    surroundings.config.display()
                ))?;
                Ok(Assumed {
                    settings: defaults,
                    are_valid: false,
                })
            }
        }
    }

    /// Prints what is wrong with settings or policy.
    pub(super) fn refuse(
        &mut self,
        reader: Reader,
        colour: Colour,
        diagnostics: &[Diagnostic],
    ) -> io::Result<ExitCode> {
        match reader {
            Reader::Programs => {
                self.json(&serde_json::json!({ "valid": false, "diagnostics": diagnostics }))?;
            }
            Reader::People => write(&mut *self.out, diagnostics, colour)?,
        }
        Ok(ExitCode::from(FAILED))
    }

    /// Prints what is wrong with the settings beside an answer that another program reads.
    pub(super) fn refuse_beside(
        &mut self,
        colour: Colour,
        diagnostics: &[Diagnostic],
    ) -> io::Result<ExitCode> {
        write(&mut *self.complaints, diagnostics, colour)?;
        Ok(ExitCode::from(FAILED))
    }

    /// Prints one JSON object.
    pub(super) fn json(&mut self, content: &impl Serialize) -> io::Result<()> {
        json::print(&mut *self.out, content)
    }

    /// Prints a list. Cells may hold text of tenants.
    pub(super) fn rows(
        &mut self,
        layout: Layout,
        headings: &[&str],
        rows: &[Vec<String>],
    ) -> io::Result<()> {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| escape(cell)).collect())
            .collect();
        match layout {
            Layout::Plain => rows
                .iter()
                .try_for_each(|row| writeln!(self.out, "{}", row.join("\t"))),
            Layout::Table => {
                let heading: Vec<String> = headings.iter().map(|it| it.to_uppercase()).collect();
                let all: Vec<&Vec<String>> = std::iter::once(&heading)
                    .filter(|heading| !heading.is_empty())
                    .chain(&rows)
                    .collect();
                all.iter()
                    .try_for_each(|row| writeln!(self.out, "{}", aligned(row, &all)))
            }
        }
    }

    /// Prints what is wrong, reasons included, and tells how to exit.
    pub(super) fn complain(&mut self, error: &dyn Error, code: u8) -> io::Result<ExitCode> {
        self.say(&in_full(error))?;
        Ok(ExitCode::from(code))
    }

    /// Prints a remark that is not part of the answer.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.complaints, "gate25: {}", escape(text))
    }

    /// Prints that an agent runs and is not where it should be, or that nobody knows; with `Ok`, none
    /// runs.
    pub(super) fn unless_stopped(
        &mut self,
        socket: &Path,
        filesystem: &Path,
    ) -> io::Result<Result<(), ExitCode>> {
        let socket_shown = socket.display();
        match Presence::look(socket, filesystem) {
            Presence::Stopped => return Ok(Ok(())),
            // It has just begun, or was just killed.
            Presence::Running => self.say(&format!("an agent serves {socket_shown}: try again"))?,
            Presence::Unserved => {
                self.say(&format!("an agent runs, but nobody serves {socket_shown}"))?;
            }
            Presence::Unknown(error) => {
                let error = in_full(&error);
                self.say(&format!(
                    "nobody serves {socket_shown}, and it is not known whether an agent runs: {error}"
                ))?;
            }
        }
        Ok(Err(ExitCode::from(UNREACHABLE)))
    }

    /// Prints why the agent gave no answer.
    pub(super) fn no_answer(&mut self, error: &ClientError) -> io::Result<ExitCode> {
        let code = if error.is_unreachable() {
            UNREACHABLE
        } else {
            FAILED
        };
        self.complain(error, code)
    }
}

/// Whether what a stopped agent left in the kernel may be read.
pub(super) fn is_root() -> bool {
    geteuid().is_root()
}

fn aligned(row: &[String], all: &[&Vec<String>]) -> String {
    let mut line = String::new();
    for (column, cell) in row.iter().enumerate() {
        let cells = all.iter().filter_map(|row| row.get(column));
        let width = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        line.push_str(&format!("{cell:width$}  "));
    }
    line.truncate(line.trim_end().len());
    line
}

fn write(to: &mut dyn Write, diagnostics: &[Diagnostic], colour: Colour) -> io::Result<()> {
    for diagnostic in diagnostics {
        writeln!(to, "{}\n", render(diagnostic, colour))?;
    }
    Ok(())
}
