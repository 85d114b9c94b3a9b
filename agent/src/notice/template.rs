//! The provider's text, and how it becomes lines of SMTP.
//!
//! One rule for characters: what goes over the wire is printable ASCII. In the provider's text a line
//! feed begins a new line of the reply; any other character is refused with the settings. In values
//! that come from elsewhere (a customer's id, a relay, a host's name) any other character is shown as
//! `?`. So nothing that anybody writes can end a line of the reply or begin one of its own.

use crate::diagnostic::quoted;

/// Octets of a reply's line, its end included (RFC 5321, 4.5.3.1.5).
pub const MAX_LINE: usize = 512;
/// Lines of a notice.
pub const MAX_LINES: usize = 16;
/// Characters of a customer's id that are shown: all that a policy allows.
pub const MAX_CUSTOMER: usize = 63;
/// Characters of a relay that are shown.
pub const MAX_RELAY: usize = 255;

/// Characters of the address of a page.
pub const MAX_URL: usize = 255;

/// Every line begins with the reply's code, a dash or a space, and the enhanced code (RFC 3463:
/// delivery is not authorized).
const CODE: &str = "554";
const ENHANCED: &str = "5.7.1";
/// What remains of a line: less `554-5.7.1 ` and its end.
const WIDTH: usize = MAX_LINE - 12;
/// What the end of a value that was cut off looks like.
const CUT: &str = "...";

/// Stands for a relay that is not known.
const ANY_RELAY: &str = "your provider's mail relay";
/// Stands for a customer that is not known.
const NOBODY: &str = "unassigned";

/// A text with places for what differs from sender to sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Customer,
    Relay,
}

/// Why a text is no template. Positions count characters from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// There is nothing to tell.
    #[error("the text is empty")]
    Empty,
    /// A character that cannot be sent.
    #[error("the text has {} at character {at}, which SMTP cannot carry", named(*.found))]
    Character {
        /// The character.
        found: char,
        /// Where it is.
        at: usize,
    },
    /// A placeholder that does not exist.
    #[error("the text has the placeholder {} at character {at}, which does not exist", quoted(.name))]
    Unknown {
        /// What stands between the braces.
        name: String,
        /// Where its brace is.
        at: usize,
    },
    /// A brace without its counterpart.
    #[error("the text has a `{brace}` on its own at character {at}")]
    Brace {
        /// The brace.
        brace: char,
        /// Where it is.
        at: usize,
    },
    /// `{url}` without one.
    #[error("the text has `{{url}}`, but there is no url")]
    NoUrl,
    /// The reply could have too many lines.
    #[error(
        "the text can take {lines} lines of {WIDTH} characters, of which a reply has {MAX_LINES}"
    )]
    TooLong {
        /// Lines that it takes with the longest values.
        lines: usize,
    },
}

impl Template {
    /// Reads a text. `{customer}`, `{relay}` and `{url}` are places, `{{` and `}}` are braces. A
    /// line feed at the end, which YAML's blocks have, begins no line.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn new(text: &str, url: Option<&str>) -> Result<Self, TemplateError> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        if text.trim().is_empty() {
            return Err(TemplateError::Empty);
        }
        let is_odd = |(_, c): &(usize, char)| *c != '\n' && !is_printable(*c);
        if let Some((at, found)) = text.chars().enumerate().find(is_odd) {
            return Err(TemplateError::Character { found, at: at + 1 });
        }
        let template = Self {
            parts: parse(text, url)?,
        };
        let lines = template.longest();
        if lines > MAX_LINES {
            return Err(TemplateError::TooLong { lines });
        }
        Ok(template)
    }

    /// What is told unless the settings say otherwise.
    #[must_use]
    pub fn standard(url: Option<&str>) -> Self {
        let text = |text: &str| Part::Text(text.to_owned());
        let mut parts = vec![
            text("Direct connections to port 25 are closed for this server (customer "),
            Part::Customer,
            text(").\nSend mail through "),
            Part::Relay,
            text(
                ", or by submission on port 587 with a password.\n\
                 Your provider opens port 25 on request.",
            ),
        ];
        if let Some(url) = url {
            parts.push(text(&format!("\nSee {}", shown(url, MAX_URL))));
        }
        Self { parts }
    }

    /// The reply for a sender: lines of at most [`MAX_LINE`] octets, each with its code and its end,
    /// at most [`MAX_LINES`] of them.
    #[must_use]
    pub fn reply(&self, sender: Option<&super::Sender>) -> String {
        let customer = sender.map_or(NOBODY, |sender| &sender.customer);
        let relay = sender.and_then(|sender| sender.relay.as_deref());
        let text = self.filled(
            &shown(customer, MAX_CUSTOMER),
            &shown(relay.unwrap_or(ANY_RELAY), MAX_RELAY),
        );
        let lines = wrapped(&text);
        let mut reply = String::new();
        for (number, line) in lines.iter().enumerate() {
            let more = if number + 1 < lines.len() { '-' } else { ' ' };
            reply.push_str(CODE);
            reply.push(more);
            reply.push_str(ENHANCED);
            if !line.is_empty() {
                reply.push(' ');
                reply.push_str(line);
            }
            reply.push_str("\r\n");
        }
        reply
    }

    fn filled(&self, customer: &str, relay: &str) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Customer => customer.to_owned(),
            Part::Relay => relay.to_owned(),
        };
        self.parts.iter().map(part).collect()
    }

    /// Lines that the reply has with the longest values. Shorter ones, and ones with spaces in them,
    /// never take more: each word then ends no later than the word in its place.
    fn longest(&self) -> usize {
        wrapped(&self.filled(&"x".repeat(MAX_CUSTOMER), &"x".repeat(MAX_RELAY))).len()
    }
}

/// A value from elsewhere as it may be sent: at most `limit` characters, all of them printable ASCII.
#[must_use]
pub fn shown(value: &str, limit: usize) -> String {
    let plain = |c: char| if is_printable(c) { c } else { '?' };
    if value.chars().count() <= limit {
        return value.chars().map(plain).collect();
    }
    let kept = value.chars().take(limit.saturating_sub(CUT.len()));
    kept.map(plain).chain(CUT.chars()).take(limit).collect()
}

pub(crate) fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~')
}

fn named(c: char) -> String {
    match c {
        '\r' => "a carriage return".to_owned(),
        '\t' => "a tab".to_owned(),
        '\0' => "a zero".to_owned(),
        other => format!("the character U+{:04X}", u32::from(other)),
    }
}

fn parse(text: &str, url: Option<&str>) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    // ASCII: a byte is a character.
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        literal.push_str(before);
        let position = text.len() - from.len() + 1;
        if let Some(after) = from.strip_prefix("{{") {
            literal.push('{');
            rest = after;
        } else if let Some(after) = from.strip_prefix("}}") {
            literal.push('}');
            rest = after;
        } else if let Some(inside) = from.strip_prefix('{') {
            let lone = TemplateError::Brace {
                brace: '{',
                at: position,
            };
            let (name, after) = inside.split_once('}').ok_or(lone)?;
            match (name, url) {
                ("customer", _) => push(&mut parts, &mut literal, Part::Customer),
                ("relay", _) => push(&mut parts, &mut literal, Part::Relay),
                ("url", Some(url)) => literal.push_str(url),
                ("url", None) => return Err(TemplateError::NoUrl),
                (name, _) => {
                    let (name, at) = (name.to_owned(), position);
                    return Err(TemplateError::Unknown { name, at });
                }
            }
            rest = after;
        } else {
            return Err(TemplateError::Brace {
                brace: '}',
                at: position,
            });
        }
    }
    literal.push_str(rest);
    parts.push(Part::Text(literal));
    Ok(parts)
}

fn push(parts: &mut Vec<Part>, literal: &mut String, part: Part) {
    parts.push(Part::Text(std::mem::take(literal)));
    parts.push(part);
}

/// The text in lines of at most [`WIDTH`] characters, broken between words, and within a word only
/// where it fills more than a line.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for mut word in paragraph.split(' ').filter(|word| !word.is_empty()) {
            if !line.is_empty() {
                if line.len() + 1 + word.len() <= WIDTH {
                    line.push(' ');
                    line.push_str(word);
                    continue;
                }
                lines.push(std::mem::take(&mut line));
            }
            // ASCII: any byte begins a character.
            while let Some((head, tail)) =
                word.split_at_checked(WIDTH).filter(|it| !it.1.is_empty())
            {
                lines.push(head.to_owned());
                word = tail;
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}
