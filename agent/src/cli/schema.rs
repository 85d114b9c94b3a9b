//! `gate25 schema`: the JSON schema of the policy language, for editors and other checkers.

use std::io::{self, Write};

use crate::policy::language;

/// Prints the schema.
///
/// # Errors
/// Writing failed.
pub fn run(out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &language::json_schema())?;
    writeln!(out)
}
