//! Text to nodes that know their place.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};

/// Largest file read.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting of lists and maps.
const MAX_DEPTH: usize = 16;
/// Most values in a file: bounds the memory that a file of single characters takes.
const MAX_NODES: usize = 1_000_000;

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node<'s> {
    pub(crate) at: Position,
    /// All of it in the text, counted in characters. Lists and maps without brackets end where the
    /// next thing begins.
    pub(crate) span: Range<usize>,
    pub(crate) kind: Kind<'s>,
}

#[derive(Debug)]
pub(crate) enum Kind<'s> {
    Scalar(Cow<'s, str>, Style),
    List(Vec<Node<'s>>),
    Map(Vec<Entry<'s>>),
    /// Something refused and reported already.
    Refused,
}

/// Whether a scalar was quoted: only unquoted ones can be numbers, booleans or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Quoted,
    /// Between double quotes, with escapes other than that of the backslash itself, or on several
    /// lines: the text is not what stands in the file.
    Escaped,
}

#[derive(Debug)]
pub(crate) struct Entry<'s> {
    pub(crate) key: Cow<'s, str>,
    pub(crate) key_at: Position,
    /// Where the key ends in the text, counted in characters.
    pub(crate) key_end: usize,
    pub(crate) value: Node<'s>,
}

impl Node<'_> {
    /// Whether nothing was written: `~`, `null` or an empty value.
    pub(crate) fn is_null(&self) -> bool {
        match &self.kind {
            Kind::Scalar(text, Style::Plain) => {
                matches!(&**text, "" | "~" | "null" | "Null" | "NULL")
            }
            Kind::Scalar(_, Style::Quoted | Style::Escaped)
            | Kind::List(_)
            | Kind::Map(_)
            | Kind::Refused => false,
        }
    }
}

/// Reads a file. `None` means that it could not be read to its end, or is empty: the reason is in
/// `problems`.
pub(crate) fn parse<'s>(
    file: &Arc<Path>,
    bytes: &'s [u8],
    problems: &mut Problems,
) -> Option<Node<'s>> {
    let text = decode(file, bytes, problems)?;
    let parser = Parser::new_from_str(text);
    let mut builder = Builder {
        parser,
        text,
        file,
        problems,
        nodes: 0,
        reached: (0, 0),
    };
    builder.document().unwrap_or(None)
}

fn decode<'s>(file: &Arc<Path>, bytes: &'s [u8], problems: &mut Problems) -> Option<&'s str> {
    if bytes.len() > MAX_BYTES {
        let message = format!("the file is larger than {} MiB", MAX_BYTES >> 20);
        problems.push(
            Diagnostic::error("file-too-large", Location::whole(file), message)
                .help("split it: any file may hold any section"),
        );
        return None;
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        problems.push(
            Diagnostic::error("not-utf8", Location::whole(file), "the file is UTF-16")
                .help("save it as UTF-8"),
        );
        return None;
    }
    // Editors on Windows write this mark; it means nothing in UTF-8.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let at = position_after(bytes.get(..error.valid_up_to()).unwrap_or_default());
            problems.push(
                Diagnostic::error("not-utf8", Location::at(file, at), "this is not UTF-8")
                    .help("save the file as UTF-8"),
            );
            None
        }
    }
}

fn position_after(valid: &[u8]) -> Position {
    let text = String::from_utf8_lossy(valid);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let line = text.matches('\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Position {
        line: saturate(line),
        column: saturate(column),
        width: 1,
    }
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The file cannot be read any further; the reason has been reported.
#[derive(Debug)]
struct Stop;

struct Builder<'s, 'a> {
    parser: Parser<'s, StrInput<'s>>,
    text: &'s str,
    file: &'a Arc<Path>,
    problems: &'a mut Problems,
    nodes: usize,
    /// A place in the text, in characters and in bytes: places are asked for in their order.
    reached: (usize, usize),
}

impl<'s> Builder<'s, '_> {
    fn document(&mut self) -> Result<Option<Node<'s>>, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                Event::DocumentStart(_) if root.is_none() => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, 0)?);
                }
                Event::DocumentStart(_) => {
                    let error = self.error("several-documents", span, "a second document starts");
                    self.problems
                        .push(error.help("one document a file: put it into another file"));
                    return Err(Stop);
                }
                Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => return Err(self.unbalanced(span)),
            }
        }
        if root.is_none() {
            self.problems.push(
                Diagnostic::error(
                    "empty-file",
                    Location::whole(self.file),
                    "the file is empty",
                )
                .help("every file says `schema: 1`"),
            );
        }
        Ok(root)
    }

    fn node(&mut self, event: Event<'s>, span: Span, depth: usize) -> Result<Node<'s>, Stop> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let error = self.error("too-many-values", span, "the file holds too many values");
            self.problems
                .push(error.help("split it: any file may hold any section"));
            return Err(Stop);
        }
        let mut at = position(span);
        let start = span.start.index();
        let mut end = span.end.index();
        let kind = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_anchor(span, anchor);
                self.refuse_tag(span, tag.is_some());
                let style = match style {
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                        let written = self.quoted(start);
                        let length = written.chars().count();
                        end = start + length;
                        at.width = match written.contains(['\n', '\r']) {
                            true => 1,
                            false => saturate(length),
                        };
                        style_of(style, &text, written)
                    }
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Quoted,
                };
                Kind::Scalar(text, style)
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_anchor(span, anchor);
                self.refuse_tag(span, tag.is_some());
                self.refuse_depth(span, depth)?;
                Kind::List(self.list(depth + 1, &mut end)?)
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_anchor(span, anchor);
                self.refuse_tag(span, tag.is_some());
                self.refuse_depth(span, depth)?;
                Kind::Map(self.map(depth + 1, &mut end)?)
            }
            Event::Alias(_) => {
                let error = self.error("alias", span, "an alias stands here");
                self.problems.push(error.help(
                    "write the value out; a pattern that starts with `*` needs quotes: \"*\"",
                ));
                Kind::Refused
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(self.unbalanced(span)),
        };
        let span = start..end;
        Ok(Node { at, span, kind })
    }

    /// `end` is set to where it ends.
    fn list(&mut self, depth: usize, end: &mut usize) -> Result<Vec<Node<'s>>, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                *end = span.end.index();
                return Ok(items);
            }
            items.push(self.node(event, span, depth)?);
        }
    }

    /// `end` is set to where it ends.
    fn map(&mut self, depth: usize, end: &mut usize) -> Result<Vec<Entry<'s>>, Stop> {
        let mut entries: Vec<Entry<'s>> = Vec::new();
        let mut seen = BTreeMap::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                *end = span.end.index();
                return Ok(entries);
            }
            let key = self.node(event, span, depth)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth)?;
            let text = match key.kind {
                Kind::Scalar(text, _) => text,
                Kind::Refused => continue,
                Kind::List(_) | Kind::Map(_) => {
                    let location = Location::at(self.file, key.at);
                    let message = "a key must be a word, not a list or a map";
                    self.problems
                        .push(Diagnostic::error("key-type", location, message));
                    continue;
                }
            };
            if text == "<<" {
                let location = Location::at(self.file, key.at);
                self.problems.push(
                    Diagnostic::error("merge-key", location, "merge keys are not read")
                        .help("write the keys out"),
                );
                continue;
            }
            if let Some(&first) = seen.get(&text) {
                let message = format!("the key {} is written twice", quoted(&text));
                self.problems.push(
                    Diagnostic::error("duplicate-key", Location::at(self.file, key.at), message)
                        .related(Location::at(self.file, first), "first written here"),
                );
                continue;
            }
            seen.insert(text.clone(), key.at);
            entries.push(Entry {
                key: text,
                key_at: key.at,
                key_end: key.span.end,
                value,
            });
        }
    }

    /// What is written from a quote on to the one that ends it. The parser's own end lies behind
    /// white space and remarks that follow.
    fn quoted(&mut self, start: usize) -> &'s str {
        let (from, text) = (self.byte(start), self.text);
        let rest = text.get(from..).unwrap_or_default();
        let mut inside = rest.char_indices().peekable();
        let quote = inside.next().map_or('"', |(_, quote)| quote);
        while let Some((at, c)) = inside.next() {
            if c == '\\' && quote == '"' {
                inside.next();
            } else if c == quote {
                // Two single ones stand for one.
                let doubled = |(_, next): &(usize, char)| quote == '\'' && *next == quote;
                if inside.next_if(doubled).is_none() {
                    return rest.get(..=at).unwrap_or(rest);
                }
            }
        }
        rest
    }

    /// Where a character begins in the text.
    fn byte(&mut self, character: usize) -> usize {
        if character < self.reached.0 {
            self.reached = (0, 0);
        }
        let (characters, bytes) = self.reached;
        let ahead = self.text.get(bytes..).unwrap_or_default();
        let step = ahead.char_indices().nth(character - characters);
        self.reached = (
            character,
            bytes + step.map_or(ahead.len(), |(step, _)| step),
        );
        self.reached.1
    }

    fn next(&mut self) -> Result<(Event<'s>, Span), Stop> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.scan_error(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn refuse_anchor(&mut self, span: Span, anchor: usize) {
        if anchor > 0 {
            let error = self.error("anchor", span, "an anchor stands here");
            self.problems
                .push(error.help("write the value out where it is needed"));
        }
    }

    fn refuse_tag(&mut self, span: Span, tagged: bool) {
        if tagged {
            let error = self.error("tag", span, "a tag stands here");
            self.problems
                .push(error.help("leave it out; text that starts with `!` needs quotes"));
        }
    }

    fn refuse_depth(&mut self, span: Span, depth: usize) -> Result<(), Stop> {
        if depth < MAX_DEPTH {
            return Ok(());
        }
        let message = format!("nested deeper than {MAX_DEPTH} levels");
        let error = self.error("too-deep", span, message);
        self.problems.push(error);
        Err(Stop)
    }

    fn scan_error(&mut self, error: &ScanError) -> Stop {
        let marker = error.marker();
        let at = Position {
            line: saturate(marker.line()),
            column: saturate(marker.col() + 1),
            width: 1,
        };
        let location = Location::at(self.file, at);
        let found = self.text.chars().nth(marker.index());
        self.problems.push(match found {
            Some('*') => Diagnostic::error("alias", location, "an alias stands here")
                .help("write the value out; a pattern that starts with `*` needs quotes: \"*\""),
            _ if error.info() == "recursion limit exceeded" => {
                let message = format!("nested deeper than {MAX_DEPTH} levels");
                Diagnostic::error("too-deep", location, message)
            }
            _ if error.info().contains("tab") => {
                Diagnostic::error("yaml-syntax", location, error.info())
                    .help("YAML is indented with spaces")
            }
            _ if error.info().starts_with("simple key expect") => Diagnostic::error(
                "yaml-syntax",
                location,
                "what stands before this is a key without `:`",
            )
            .help("the file may have been cut off, or somebody may be writing it"),
            _ => Diagnostic::error("yaml-syntax", location, error.info()),
        });
        Stop
    }

    fn unbalanced(&mut self, span: Span) -> Stop {
        let error = self.error("yaml-syntax", span, "nothing can be read here");
        self.problems.push(error);
        Stop
    }

    fn error(&self, code: &'static str, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, Location::at(self.file, position(span)), message)
    }
}

/// `written` is what the text was read from, its quotes included.
fn style_of(style: ScalarStyle, text: &str, written: &str) -> Style {
    // Two quotes, and two characters for each backslash.
    let backslashes = text.bytes().filter(|byte| *byte == b'\\').count();
    let expected = text.chars().count() + backslashes + 2;
    let is_as_written = written.chars().count() == expected && !written.contains(['\n', '\r']);
    if style == ScalarStyle::DoubleQuoted && !is_as_written {
        Style::Escaped
    } else {
        Style::Quoted
    }
}

fn position(span: Span) -> Position {
    let width = if span.start.line() == span.end.line() {
        span.end.col().saturating_sub(span.start.col()).max(1)
    } else {
        1
    };
    Position {
        line: saturate(span.start.line()),
        column: saturate(span.start.col() + 1),
        width: saturate(width),
    }
}
