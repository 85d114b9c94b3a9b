//! `gate25 metrics --list`: every metric that the agent exports, for those who write dashboards.

use std::io::{self, Write};

use serde::Serialize;

use crate::metrics::catalogue::{self, Definition};

/// Names the metrics of the agent
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Args {
    /// Print name, type, labels and meaning of each
    #[arg(long, required = true)]
    pub list: bool,
    /// Print a JSON array
    #[arg(short, long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    r#type: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
}

impl From<&Definition> for Entry {
    fn from(definition: &Definition) -> Self {
        let Definition {
            name: _,
            kind,
            help,
            labels,
        } = definition;
        Self {
            name: definition.full_name(),
            r#type: kind.as_str(),
            labels,
            help,
        }
    }
}

/// Prints the catalogue in the order of its definition.
///
/// # Errors
/// Writing failed.
pub fn run(args: &Args, out: &mut dyn Write) -> io::Result<()> {
    let entries = catalogue::ALL.iter().map(Entry::from);
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &entries.collect::<Vec<_>>())?;
        return writeln!(out);
    }
    for entry in entries {
        let Entry {
            name,
            r#type,
            labels,
            help,
        } = entry;
        let labels = match labels {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        writeln!(out, "{name}{labels} {type}: {help}", type = r#type)?;
    }
    Ok(())
}
