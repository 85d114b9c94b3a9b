//! How a file's exemptions are laid out in its text, and where an edit goes.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{EditError, NewExemption, Value};
use crate::diagnostic::Problems;
use crate::yaml::tree::{self, Entry, Kind, Node};
use crate::yaml::write::Place;

const SECTION: &str = "exemptions";
/// What some editors begin UTF-8 with.
const MARK: &str = "\u{feff}";
/// How far the dashes of a new list are moved in.
const INDENT: usize = 2;

/// A place in the text, and what goes there instead.
pub(super) type Splice = (Range<usize>, String);

/// A file of the policy as text with positions.
pub(super) struct Layout<'s> {
    file: &'s Arc<Path>,
    mark: &'static str,
    text: &'s str,
    newline: &'static str,
    root: Node<'s>,
    /// Where each character begins in the text; `None` where a character is a byte.
    places: Option<Vec<usize>>,
}

/// The section of exemptions.
enum Form<'n, 's> {
    /// There is none.
    Missing,
    /// Nothing is in it, or an empty list in brackets.
    Empty(&'n Entry<'s>),
    /// With a dash for each.
    Dashes(&'n [Node<'s>]),
    /// In brackets.
    Brackets(&'n Node<'s>, &'n [Node<'s>]),
}

impl<'s> Layout<'s> {
    pub(super) fn read(file: &'s Arc<Path>, bytes: &'s [u8]) -> Result<Self, EditError> {
        let unusual = |line, why| EditError::Unusual {
            file: Arc::clone(file),
            line,
            why,
        };
        let mut problems = Problems::default();
        let root = tree::parse(file, bytes, &mut problems);
        let (Some(root), false) = (root, problems.has_errors()) else {
            return Err(EditError::Invalid(
                problems.finish(&[(&**file, bytes)].into()),
            ));
        };
        let Ok(whole) = std::str::from_utf8(bytes) else {
            return Err(unusual(1, "this is not UTF-8"));
        };
        let (mark, text) = match whole.strip_prefix(MARK) {
            Some(text) => (MARK, text),
            None => ("", whole),
        };
        let returns = text.matches('\r').count();
        let newline = match (returns, text.matches("\r\n").count()) {
            (0, _) => "\n",
            (all, pairs) if all == pairs => "\r\n",
            _ => return Err(unusual(1, "lines end in different ways")),
        };
        let places = (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect());
        Ok(Self {
            file,
            mark,
            text,
            newline,
            root,
            places,
        })
    }

    pub(super) fn has_section(&self) -> bool {
        self.section().is_some()
    }

    /// The file after these changes, which do not overlap.
    pub(super) fn spliced(&self, mut splices: Vec<Splice>) -> Vec<u8> {
        splices.sort_by_key(|(range, _)| (range.start, range.end));
        let mut out = self.mark.to_owned();
        let mut at = 0;
        for (range, replacement) in splices {
            out.push_str(self.text.get(at..range.start).unwrap_or_default());
            out.push_str(&replacement);
            at = range.end;
        }
        out.push_str(self.text.get(at..).unwrap_or_default());
        out.into_bytes()
    }

    /// Behind the others, in their notation.
    pub(super) fn add(&self, new: &NewExemption) -> Result<Vec<Splice>, EditError> {
        match self.form()? {
            Form::Missing => {
                if self.starts_with(self.root.span.start, '{') {
                    return Err(self.unusual(0, "the file is one map in braces"));
                }
                let end = self.text.len();
                let lines = format!("{SECTION}:{}{}", self.newline, self.lines(new, INDENT));
                Ok(vec![(end..end, self.on_a_new_line(end, lines))])
            }
            Form::Empty(entry) => {
                let key_end = self.byte(entry.key_end);
                let is_written = !entry.value.span.is_empty();
                let mut splices = Vec::new();
                let mut end = self.colon(key_end)?;
                if is_written {
                    end = self.end(&entry.value)?;
                    splices.push((key_end..end, ":".to_owned()));
                }
                let end = self.rest_of_line(end)?;
                splices.push((end..end, self.on_a_new_line(end, self.lines(new, INDENT))));
                Ok(splices)
            }
            Form::Dashes(items) => {
                let Some(last) = items.last() else {
                    return Err(self.unusual(0, "the list has a form that is not known"));
                };
                let (lines, dash) = self.extent(last)?;
                let mut text = self.lines(new, dash);
                let is_apart = items.len() > 1 && self.follows_blank_line(lines.start);
                if is_apart {
                    text = format!("{}{text}", self.newline);
                }
                let end = lines.end;
                Ok(vec![(end..end, self.on_a_new_line(end, text))])
            }
            Form::Brackets(list, items) => {
                let Some(last) = items.last() else {
                    return Err(self.unusual(0, "the list has a form that is not known"));
                };
                let end = self.end(last)?;
                let close = self.end(list)?.saturating_sub(1);
                let between = self.text.get(end..close).unwrap_or_default();
                let entries = new.entries(Place::Brackets);
                let entries = entries.iter().map(|(key, value)| format!("{key}: {value}"));
                let map = format!("{{{}}}", entries.collect::<Vec<_>>().join(", "));
                match between.trim() {
                    "" => Ok(vec![(end..end, format!(", {map}"))]),
                    "," => {
                        let comma = end + between.find(',').unwrap_or_default() + 1;
                        Ok(vec![(comma..comma, format!(" {map},"))])
                    }
                    _ => Err(self.unusual(end, "there are remarks between the brackets")),
                }
            }
        }
    }

    /// Values in place of those that are written.
    pub(super) fn set(&self, id: &str, values: &[Value]) -> Result<Vec<Splice>, EditError> {
        let item = self.item(id)?;
        let Kind::Map(entries) = &item.kind else {
            return Err(self.unusual(self.byte(item.span.start), "this is no map"));
        };
        let mut splices = Vec::new();
        for value in values {
            let start = self.byte(item.span.start);
            let Some(entry) = entries.iter().find(|entry| entry.key == value.key()) else {
                return Err(self.unusual(start, "a key is missing"));
            };
            let (start, end) = (self.byte(entry.value.span.start), self.end(&entry.value)?);
            let written = self.text.get(start..end).unwrap_or_default();
            let is_word = matches!(entry.value.kind, Kind::Scalar(..));
            if !is_word || written.contains('\n') || written.starts_with(['|', '>']) {
                return Err(self.unusual(start, "the value is written over several lines"));
            }
            splices.push((start..end, value.text()));
        }
        Ok(splices)
    }

    /// Without an exemption's lines, or what is between the commas around it.
    pub(super) fn remove(&self, id: &str) -> Result<Vec<Splice>, EditError> {
        let item = self.item(id)?;
        let (list, items) = match self.form()? {
            Form::Dashes(_) => return Ok(vec![(self.extent(item)?.0, String::new())]),
            Form::Brackets(list, items) => (list, items),
            Form::Missing | Form::Empty(_) => return Err(self.absent(id)),
        };
        let (start, end) = (self.byte(item.span.start), self.end(item)?);
        let position = items.iter().position(|one| one.span == item.span);
        let position = position.unwrap_or_default();
        let before = position.checked_sub(1).and_then(|at| items.get(at));
        let range = match (items.get(position + 1), before) {
            (Some(next), _) => start..self.byte(next.span.start),
            (None, Some(before)) => self.end(before)?..end,
            (None, None) => start..self.end(list)?.saturating_sub(1),
        };
        if self
            .text
            .get(range.clone())
            .unwrap_or_default()
            .contains('#')
        {
            return Err(self.unusual(start, "there may be remarks between the brackets"));
        }
        Ok(vec![(range, String::new())])
    }

    fn section(&self) -> Option<&Entry<'s>> {
        match &self.root.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == SECTION),
            Kind::Scalar(..) | Kind::List(_) | Kind::Refused => None,
        }
    }

    fn form(&self) -> Result<Form<'_, 's>, EditError> {
        let Some(entry) = self.section() else {
            return Ok(Form::Missing);
        };
        match &entry.value.kind {
            Kind::List(items) if items.is_empty() => Ok(Form::Empty(entry)),
            Kind::List(items) if self.starts_with(entry.value.span.start, '[') => {
                Ok(Form::Brackets(&entry.value, items))
            }
            Kind::List(items) => Ok(Form::Dashes(items)),
            Kind::Scalar(..) if entry.value.is_null() => Ok(Form::Empty(entry)),
            Kind::Scalar(..) | Kind::Map(_) | Kind::Refused => {
                let at = self.byte(entry.value.span.start);
                Err(self.unusual(at, "this is no list of exemptions"))
            }
        }
    }

    fn item(&self, id: &str) -> Result<&Node<'s>, EditError> {
        let items = match self.form()? {
            Form::Dashes(items) | Form::Brackets(_, items) => items,
            Form::Missing | Form::Empty(_) => return Err(self.absent(id)),
        };
        let has_id = |item: &&Node<'s>| {
            let Kind::Map(entries) = &item.kind else {
                return false;
            };
            entries.iter().any(|entry| {
                entry.key == "id"
                    && matches!(&entry.value.kind, Kind::Scalar(text, _) if text == id)
            })
        };
        items.iter().find(has_id).ok_or_else(|| self.absent(id))
    }

    /// The whole lines of an item with a dash, and how far the dash is moved in. Remarks right
    /// below that are moved in further than the dash are the item's, too.
    fn extent(&self, item: &Node<'s>) -> Result<(Range<usize>, usize), EditError> {
        let first = self.byte(item.span.start);
        let start = self.line_start(first);
        let lead = self.text.get(start..first).unwrap_or_default();
        let dash = lead.len() - lead.trim_start_matches(' ').len();
        if lead.trim() != "-" {
            return Err(self.unusual(first, "the dash of the list is not alone before it"));
        }
        let mut end = self.rest_of_line(self.end(item)?)?;
        loop {
            let line = self.line_at(end);
            let indent = line.len() - line.trim_start_matches(' ').len();
            if indent <= dash || !line.trim_start().starts_with('#') {
                return Ok((start..end, dash));
            }
            end += line.len();
        }
    }

    /// Where what is written of a value ends. The parser's own ends of brackets lie behind white
    /// space and remarks that follow.
    fn end(&self, node: &Node<'s>) -> Result<usize, EditError> {
        let start = self.byte(node.span.start);
        let text = self.text.get(start..).unwrap_or_default();
        let bracket = match text.chars().next() {
            Some('[') => Some(']'),
            Some('{') => Some('}'),
            Some(_) | None => None,
        };
        let last = match &node.kind {
            Kind::Refused => return Err(self.unusual(start, "this is not read")),
            Kind::Scalar(..) => {
                // Plain text, and text in several lines, is followed by white space that is not its.
                let end = self.byte(node.span.end);
                let written = self.text.get(start..end).unwrap_or_default();
                return Ok(start + written.trim_end().len());
            }
            Kind::List(items) => items.last().map(|last| self.end(last)).transpose()?,
            Kind::Map(entries) => match entries.last() {
                Some(entry) if entry.value.span.is_empty() => {
                    Some(self.colon(self.byte(entry.key_end))?)
                }
                Some(entry) => Some(self.end(&entry.value)?),
                None => None,
            },
        };
        match (bracket, last) {
            (Some(bracket), last) => self.closing(last.unwrap_or(start + 1), bracket),
            (None, Some(last)) => Ok(last),
            (None, None) => Err(self.unusual(start, "the value has a form that is not known")),
        }
    }

    /// Behind a closing bracket that follows `at`, with nothing but commas and remarks before it.
    fn closing(&self, mut at: usize, bracket: char) -> Result<usize, EditError> {
        loop {
            let rest = self.text.get(at..).unwrap_or_default();
            let follows = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            at += rest.len() - follows.len();
            if follows.starts_with(bracket) {
                return Ok(at + bracket.len_utf8());
            }
            if !follows.starts_with('#') {
                return Err(self.unusual(at, "the closing bracket is not where it belongs"));
            }
            at += self.line_at(at).len();
        }
    }

    /// Behind the colon that follows a key.
    fn colon(&self, key_end: usize) -> Result<usize, EditError> {
        let rest = self.text.get(key_end..).unwrap_or_default();
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        match rest.trim_start_matches(' ').starts_with(':') {
            true => Ok(key_end + spaces + 1),
            false => Err(self.unusual(key_end, "the colon is not behind its key")),
        }
    }

    /// Behind the end of the line, on which nothing but a remark may follow.
    fn rest_of_line(&self, at: usize) -> Result<usize, EditError> {
        let line = self.line_at(at);
        let rest = line.trim();
        if rest.is_empty() || rest.starts_with('#') {
            Ok(at + line.len())
        } else {
            Err(self.unusual(at, "something else follows on the line"))
        }
    }

    /// From a place to the end of its line, the line's end included.
    fn line_at(&self, at: usize) -> &str {
        let rest = self.text.get(at..).unwrap_or_default();
        match rest.find('\n') {
            Some(end) => rest.get(..=end).unwrap_or(rest),
            None => rest,
        }
    }

    fn line_start(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or_default();
        before.rfind('\n').map_or(0, |end| end + 1)
    }

    fn follows_blank_line(&self, line: usize) -> bool {
        let above = self.text.get(..line).unwrap_or_default();
        let above = above.strip_suffix('\n').unwrap_or(above);
        self.line_at(self.line_start(above.len())).trim().is_empty()
    }

    /// Lines that go in at `end`, where the last line may lack its end.
    fn on_a_new_line(&self, end: usize, lines: String) -> String {
        let above = self.text.get(..end).unwrap_or_default();
        if above.is_empty() || above.ends_with('\n') {
            return lines;
        }
        let lines = lines.strip_suffix(self.newline).unwrap_or(&lines);
        format!("{}{lines}", self.newline)
    }

    fn lines(&self, new: &NewExemption, dash: usize) -> String {
        let mut lines = String::new();
        for (number, (key, value)) in new.entries(Place::Line).into_iter().enumerate() {
            let lead = if number == 0 { "- " } else { "  " };
            let indent = " ".repeat(dash);
            lines.push_str(&format!("{indent}{lead}{key}: {value}{}", self.newline));
        }
        lines
    }

    fn starts_with(&self, character: usize, expected: char) -> bool {
        let rest = self.text.get(self.byte(character)..).unwrap_or_default();
        rest.starts_with(expected)
    }

    /// Where a character begins in the text.
    fn byte(&self, character: usize) -> usize {
        let end = self.text.len();
        match &self.places {
            None => character.min(end),
            Some(places) => places.get(character).copied().unwrap_or(end),
        }
    }

    fn absent(&self, id: &str) -> EditError {
        EditError::Absent {
            file: Arc::clone(self.file),
            id: id.to_owned(),
        }
    }

    fn unusual(&self, at: usize, why: &'static str) -> EditError {
        let above = self.text.get(..at).unwrap_or_default();
        EditError::Unusual {
            file: Arc::clone(self.file),
            line: above.matches('\n').count() + 1,
            why,
        }
    }
}
