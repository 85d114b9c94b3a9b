//! What is wrong with a file, as data: where, why, and what to do about it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

pub mod terminal;

/// Diagnostics kept of one file or one set; what goes beyond is only counted.
const MAX_KEPT: usize = 1000;
/// Characters of a source line shown before and after the place it is shown for.
const EXCERPT_BEFORE: usize = 100;
const EXCERPT_AFTER: usize = 120;
/// Characters of a name repeated in a message.
const MAX_QUOTED: usize = 80;

/// Whether a set with this diagnostic can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The set is refused.
    Error,
    /// The set holds; somebody should look.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Stable short name of the rule, such as `unknown-key`.
    pub code: &'static str,
    /// What is wrong, in lower case, without control characters.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Where it is.
    pub primary: Location,
    /// Other places it has to do with.
    pub related: Vec<Related>,
}

/// A further place and what it has to do with the diagnostic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// Where it is.
    pub location: Location,
    /// What is there.
    pub label: String,
}

/// A place in a file, or a whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file, as the reader of the message knows it.
    pub file: Arc<Path>,
    /// The place in it; `None` means the whole file.
    pub position: Option<Position>,
    /// The source there, for display.
    pub excerpt: Option<Excerpt>,
}

/// A span on one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in characters, counted from 1.
    pub column: u32,
    /// Length in characters; at least 1, ending at the end of the line.
    pub width: u32,
}

/// Part of a source line, escaped for display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The text without control characters.
    pub text: String,
    /// The bytes of `text` that the position covers.
    pub mark: Range<usize>,
}

impl Diagnostic {
    /// An error at a place.
    #[must_use]
    pub fn error(code: &'static str, primary: Location, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            help: None,
            primary,
            related: Vec::new(),
        }
    }

    /// A warning at a place.
    #[must_use]
    pub fn warning(code: &'static str, primary: Location, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, primary, message)
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds a further place.
    #[must_use]
    pub fn related(mut self, location: Location, label: impl Into<String>) -> Self {
        self.related.push(Related {
            location,
            label: label.into(),
        });
        self
    }

    /// An error about a file that the system did not let be read.
    #[must_use]
    pub fn unreadable(path: &Path, error: &io::Error) -> Self {
        let location = Location::whole(&Arc::from(path));
        Self::error(
            "unreadable",
            location,
            format!("this cannot be read: {error}"),
        )
    }

    /// The same with paths that an editor finds: those of a set are relative to its directory.
    #[must_use]
    pub fn below(mut self, dir: &Path) -> Self {
        let related = self.related.iter_mut().map(|related| &mut related.location);
        for location in std::iter::once(&mut self.primary).chain(related) {
            let path = if *location.file == *Path::new(".") {
                dir.to_owned()
            } else {
                dir.join(&location.file)
            };
            location.file = Arc::from(path);
        }
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}[{}]: {}",
            self.primary, self.severity, self.code, self.message
        )
    }
}

impl Location {
    /// A place in a file.
    #[must_use]
    pub fn at(file: &Arc<Path>, position: Position) -> Self {
        Self {
            file: Arc::clone(file),
            position: Some(position),
            excerpt: None,
        }
    }

    /// A whole file.
    #[must_use]
    pub fn whole(file: &Arc<Path>) -> Self {
        Self {
            file: Arc::clone(file),
            position: None,
            excerpt: None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.file.to_string_lossy()))?;
        match self.position {
            Some(Position {
                line,
                column,
                width: _,
            }) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("file", &escape(&self.file.to_string_lossy()))?;
        if let Some(Position {
            line,
            column,
            width,
        }) = self.position
        {
            map.serialize_entry("line", &line)?;
            map.serialize_entry("column", &column)?;
            map.serialize_entry("width", &width)?;
        }
        if let Some(excerpt) = &self.excerpt {
            map.serialize_entry("source", &excerpt.text)?;
        }
        map.end()
    }
}

/// Diagnostics being gathered; bounded, so that a hostile file cannot fill the memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    kept: Vec<Diagnostic>,
    errors: usize,
    left_out: usize,
}

impl Problems {
    /// Adds a diagnostic.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.errors += usize::from(diagnostic.severity == Severity::Error);
        if self.kept.len() < MAX_KEPT {
            self.kept.push(diagnostic);
        } else {
            self.left_out += 1;
        }
    }

    /// Adds those of another gathering.
    pub fn append(&mut self, other: &Problems) {
        for diagnostic in &other.kept {
            self.push(diagnostic.clone());
        }
        self.left_out += other.left_out;
    }

    /// Whether any error was added.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// The diagnostics by severity and place, with the source shown; `sources` holds the files'
    /// contents. The last one says how many were left out, if any were.
    #[must_use]
    pub fn finish(mut self, sources: &BTreeMap<&Path, &[u8]>) -> Vec<Diagnostic> {
        self.kept.sort_by(|a, b| {
            let key = |d: &Diagnostic| (d.severity, d.primary.file.clone(), d.primary.position);
            key(a).cmp(&key(b))
        });
        let mut lines = BTreeMap::new();
        for diagnostic in &mut self.kept {
            let related = diagnostic
                .related
                .iter_mut()
                .map(|related| &mut related.location);
            for location in std::iter::once(&mut diagnostic.primary).chain(related) {
                attach_excerpt(location, sources, &mut lines);
            }
        }
        if let (Some(last), true) = (self.kept.last(), self.left_out > 0) {
            let message = format!("{} further problems are not shown", self.left_out);
            let location = Location::whole(&last.primary.file);
            self.kept.push(Diagnostic {
                severity: last.severity,
                ..Diagnostic::error("more-problems", location, message)
            });
        }
        self.kept
    }
}

/// Text without control, formatting or line-breaking characters: they could forge or hide output.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_deceptive(c) {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

/// A name as messages show it: quoted, escaped, shortened.
#[must_use]
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("`{}…`", escape(&text[..end])),
        None => format!("`{}`", escape(text)),
    }
}

/// Whether a character could forge or hide output.
#[must_use]
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

fn attach_excerpt<'s>(
    location: &mut Location,
    sources: &BTreeMap<&'s Path, &'s [u8]>,
    lines: &mut BTreeMap<&'s Path, Vec<&'s [u8]>>,
) {
    let Some(position) = location.position else {
        return;
    };
    let Some((path, bytes)) = sources.get_key_value(&*location.file) else {
        return;
    };
    let lines = lines.entry(path).or_insert_with(|| split_lines(bytes));
    let Some(line) = lines.get((position.line as usize).saturating_sub(1)) else {
        return;
    };
    location.excerpt = Some(excerpt(&String::from_utf8_lossy(line), position));
}

/// Lines as YAML counts them: ended by LF, CR LF or a lone CR.
fn split_lines(bytes: &[u8]) -> Vec<&[u8]> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut lines = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        let width = match bytes[at..] {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => {
                at += 1;
                continue;
            }
        };
        lines.push(&bytes[start..at]);
        at += width;
        start = at;
    }
    lines.push(&bytes[start..]);
    lines
}

fn excerpt(line: &str, position: Position) -> Excerpt {
    let from = (position.column as usize).saturating_sub(1);
    let to = from + (position.width as usize).max(1);
    let first = from.saturating_sub(EXCERPT_BEFORE);
    let last = to.min(from + EXCERPT_AFTER);
    let mut text = String::from(if first > 0 { "…" } else { "" });
    let mut mark = None;
    let mut end = None;
    let mut chars = line.chars().enumerate().skip(first);
    for (index, c) in chars.by_ref().take(EXCERPT_BEFORE + EXCERPT_AFTER) {
        if index == from {
            mark = Some(text.len());
        }
        if index == last {
            end = Some(text.len());
        }
        if is_deceptive(c) {
            text.extend(c.escape_default())
        } else {
            text.push(c)
        }
    }
    let start = mark.unwrap_or(text.len());
    let mark = start..end.unwrap_or(text.len());
    if chars.next().is_some() {
        text.push('…');
    }
    Excerpt { text, mark }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpt_with_control_characters_marks_the_right_bytes() {
        let shown = excerpt(
            "a\u{1b}[31m: bäd",
            Position {
                line: 1,
                column: 9,
                width: 3,
            },
        );
        assert_eq!(shown.text, "a\\u{1b}[31m: bäd");
        assert_eq!(&shown.text[shown.mark], "bäd");
    }

    #[test]
    fn excerpt_of_a_long_line_is_short() {
        let line = "x".repeat(5000);
        let shown = excerpt(
            &line,
            Position {
                line: 1,
                column: 2000,
                width: 4000,
            },
        );
        assert!(shown.text.chars().count() < 250);
        assert!(shown.text.get(shown.mark).is_some());
    }

    #[test]
    fn excerpt_beyond_the_line_marks_its_end() {
        let shown = excerpt(
            "ab",
            Position {
                line: 1,
                column: 9,
                width: 1,
            },
        );
        assert_eq!(shown.mark, 2..2);
    }

    #[test]
    fn escape_of_direction_override_shows_its_number() {
        assert_eq!(escape("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn problems_beyond_the_bound_are_counted() {
        let file: Arc<Path> = Arc::from(Path::new("a.yaml"));
        let mut problems = Problems::default();
        for _ in 0..MAX_KEPT + 5 {
            problems.push(Diagnostic::error("x", Location::whole(&file), "y"));
        }
        let shown = problems.finish(&BTreeMap::new());
        assert_eq!(shown.len(), MAX_KEPT + 1);
        assert!(shown[MAX_KEPT].message.starts_with("5 further"));
    }
}
