//! One client's conversation: bytes in, replies out.
//!
//! The refusal comes at `MAIL` and not in the greeting, since clients take a greeting of 5xx for a
//! server that is out of order and try the next one, or later (Postfix: `smtp_skip_5xx_greeting`).
//! No reply repeats anything that the client has said.

use super::template::{MAX_LINE, shown};

/// Commands of one connection.
pub const MAX_COMMANDS: u32 = 100;
/// Commands among them that make no sense here.
pub const MAX_ERRORS: u32 = 10;
/// Octets of one connection, what follows `BDAT` included.
pub const MAX_INPUT: u64 = 1024 * 1024;

/// Longest name of a host (RFC 5321, 4.5.3.1.2).
const MAX_HOST: usize = 255;

const TOO_MUCH: &str = "421 4.7.0 Too much of it: come back later\r\n";
const TOO_MANY_ERRORS: &str = "421 4.7.0 Too many errors: come back later\r\n";
const OK: &str = "250 2.0.0 Ok\r\n";
const HELP: &str = "214 2.0.0 No mail is taken here: the answer to MAIL tells why\r\n";
const CANNOT_VERIFY: &str = "252 2.5.0 Cannot verify: no mail is taken here\r\n";
const UNKNOWN: &str = "500 5.5.2 Unknown command\r\n";
const LONG_LINE: &str = "500 5.5.2 Line too long\r\n";
const NO_NAME: &str = "501 5.5.4 Name yourself\r\n";
const NO_SIZE: &str = "501 5.5.4 Size expected\r\n";
const NOT_HERE: &str = "502 5.5.1 Not available here\r\n";

/// A conversation.
#[derive(Debug, Clone)]
pub struct Session {
    host: String,
    refusal: String,
    refusals: u64,
    commands: u32,
    errors: u32,
    received: u64,
    /// Octets of a chunk of mail that are still to come; they are let fall.
    chunk: u64,
    /// In the middle of a line that is too long.
    in_long_line: bool,
}

/// What comes of input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing before there is more.
    More,
    /// A reply.
    Reply(String),
    /// The last reply: the client asked for the end.
    Asked(String),
    /// The last reply: the client went too far.
    TooFar(String),
}

/// What the beginning of the input comes to, before it is known whether it is too much.
enum Heard {
    More,
    Refused,
    Answered(Step),
}

/// What a command comes to.
enum Answer {
    Fine(String),
    Refused,
    /// Refused once this many octets have come.
    RefusedAfter(u64),
    Wrong(&'static str),
    Last(String),
}

impl Session {
    /// A conversation with a server of this name, in which mail is refused by `refusal`, a whole
    /// reply.
    #[must_use]
    pub fn new(host: &str, refusal: String) -> Self {
        Self {
            host: shown(host, MAX_HOST),
            refusal,
            refusals: 0,
            commands: 0,
            errors: 0,
            received: 0,
            chunk: 0,
            in_long_line: false,
        }
    }

    /// What the server says first.
    #[must_use]
    pub fn greeting(&self) -> String {
        format!("220 {} ESMTP\r\n", self.host)
    }

    /// What the server says to a client that has taken too long.
    #[must_use]
    pub fn too_slow(&self) -> String {
        format!("421 4.4.2 {} has waited long enough\r\n", self.host)
    }

    /// What the server says when it stops.
    #[must_use]
    pub fn stopping(&self) -> String {
        format!("421 4.3.2 {} stops\r\n", self.host)
    }

    /// How often mail was refused.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Takes the beginning of the input: no more than up to the end of a line, so that there is at
    /// most one reply at a time. Tells how many octets it took; the rest is to be given again, with
    /// what has come since. Of [`MAX_LINE`] octets or more it takes at least one.
    pub fn step(&mut self, input: &[u8]) -> (usize, Step) {
        let (taken, step) = if self.chunk > 0 {
            self.skip(input)
        } else {
            self.line(input)
        };
        self.received += taken as u64;
        if self.received > MAX_INPUT {
            return (taken, Step::TooFar(TOO_MUCH.to_owned()));
        }
        match step {
            Heard::More => (taken, Step::More),
            Heard::Refused => {
                self.refusals += 1;
                (taken, Step::Reply(self.refusal.clone()))
            }
            Heard::Answered(step) => (taken, step),
        }
    }

    fn skip(&mut self, input: &[u8]) -> (usize, Heard) {
        let length = input.len() as u64;
        if length < self.chunk {
            self.chunk -= length;
            return (input.len(), Heard::More);
        }
        // At most the input's length.
        let taken = usize::try_from(self.chunk).unwrap_or(input.len());
        self.chunk = 0;
        (taken, Heard::Refused)
    }

    fn line(&mut self, input: &[u8]) -> (usize, Heard) {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
            self.in_long_line |= input.len() >= MAX_LINE;
            let taken = if self.in_long_line { input.len() } else { 0 };
            return (taken, Heard::More);
        };
        let taken = end + 1;
        let is_long = std::mem::take(&mut self.in_long_line) || taken > MAX_LINE;
        self.commands += 1;
        if self.commands > MAX_COMMANDS {
            return (taken, Heard::Answered(Step::TooFar(TOO_MUCH.to_owned())));
        }
        let answer = if is_long {
            Answer::Wrong(LONG_LINE)
        } else {
            // A line feed alone ends a line, too: no mail comes after it that could be smuggled.
            let line = input.get(..end).unwrap_or_default();
            self.answer(line.strip_suffix(b"\r").unwrap_or(line))
        };
        let heard = match answer {
            Answer::Fine(reply) => Heard::Answered(Step::Reply(reply)),
            Answer::Refused | Answer::RefusedAfter(0) => Heard::Refused,
            Answer::RefusedAfter(octets) => {
                self.chunk = octets;
                Heard::More
            }
            Answer::Wrong(reply) => {
                self.errors += 1;
                Heard::Answered(if self.errors > MAX_ERRORS {
                    Step::TooFar(TOO_MANY_ERRORS.to_owned())
                } else {
                    Step::Reply(reply.to_owned())
                })
            }
            Answer::Last(reply) => Heard::Answered(Step::Asked(reply)),
        };
        (taken, heard)
    }

    fn answer(&self, line: &[u8]) -> Answer {
        let (verb, rest) = match line.iter().position(|byte| *byte == b' ') {
            Some(at) => line.split_at(at),
            None => (line, [].as_slice()),
        };
        let rest = rest.trim_ascii();
        let is = |names: &[&str]| {
            names
                .iter()
                .any(|it| verb.eq_ignore_ascii_case(it.as_bytes()))
        };
        if is(&["MAIL", "RCPT", "DATA"]) {
            Answer::Refused
        } else if is(&["BDAT"]) {
            // What follows a chunk's size is no command, whatever becomes of the mail (RFC 3030).
            chunk_size(rest).map_or(Answer::Wrong(NO_SIZE), Answer::RefusedAfter)
        } else if is(&["EHLO", "HELO"]) && rest.is_empty() {
            Answer::Wrong(NO_NAME)
        } else if is(&["EHLO"]) {
            // Clients with mail that needs these give up before MAIL where they are missing.
            Answer::Fine(format!(
                "250-{}\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n",
                self.host
            ))
        } else if is(&["HELO"]) {
            Answer::Fine(format!("250 {}\r\n", self.host))
        } else if is(&["NOOP", "RSET"]) {
            Answer::Fine(OK.to_owned())
        } else if is(&["QUIT"]) {
            Answer::Last(format!("221 2.0.0 {} closes\r\n", self.host))
        } else if is(&["HELP"]) {
            Answer::Fine(HELP.to_owned())
        } else if is(&["VRFY"]) {
            Answer::Fine(CANNOT_VERIFY.to_owned())
        } else if is(&["STARTTLS", "AUTH", "EXPN", "ETRN"]) {
            Answer::Wrong(NOT_HERE)
        } else {
            Answer::Wrong(UNKNOWN)
        }
    }
}

/// The size in `BDAT`'s arguments, `SIZE` or `SIZE LAST`.
fn chunk_size(arguments: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(arguments).ok()?;
    let (size, last) = text.split_once(' ').unwrap_or((text, "LAST"));
    let is_number = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || !last.trim().eq_ignore_ascii_case("LAST") {
        return None;
    }
    size.parse().ok()
}
