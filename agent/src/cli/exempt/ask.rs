//! What is missing on the command line: asked for on a terminal, named all at once elsewhere.

use std::io::{self, BufRead};
use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};

use crate::cli::console::{Console, USAGE};
use crate::cli::term::term;
use crate::diagnostic::{escape, is_deceptive, quoted};
use crate::policy::ANY;
use crate::policy::scalar::{Id, Target, Time, Told};
use crate::yaml::read::{Fault, Scalar as _};
use crate::yaml::tree::Style;

/// Asks, where there is somebody to answer, and remembers what is still missing.
pub(super) struct Interview<'a> {
    answers: Option<&'a mut dyn BufRead>,
    missing: Vec<String>,
}

/// When an exemption ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// At a moment.
    At(Timestamp),
    /// So long after something.
    After(SignedDuration),
}

impl<'a> Interview<'a> {
    /// `answers` come from a terminal.
    pub(super) fn new(answers: Option<&'a mut dyn BufRead>) -> Self {
        Self {
            answers,
            missing: Vec::new(),
        }
    }

    /// What was given, or what is answered once `read` takes it; `None` if there is no answer.
    pub(super) fn want<T>(
        &mut self,
        given: Option<T>,
        flag: &str,
        question: &str,
        read: impl Fn(&str) -> Result<T, String>,
        console: &mut Console<'_>,
    ) -> io::Result<Option<T>> {
        if given.is_some() {
            return Ok(given);
        }
        while let Some(answers) = &mut self.answers {
            write!(console.complaints, "{}: ", escape(question))?;
            console.complaints.flush()?;
            let mut line = String::new();
            if answers.read_line(&mut line)? == 0 {
                writeln!(console.complaints)?;
                self.answers = None;
                break;
            }
            match read(line.trim()) {
                Ok(value) => return Ok(Some(value)),
                Err(why) => writeln!(console.complaints, "  {}", escape(&why))?,
            }
        }
        self.missing.push(flag.to_owned());
        Ok(None)
    }

    /// Says what is missing, if anything is.
    pub(super) fn close(self, console: &mut Console<'_>) -> io::Result<Result<(), ExitCode>> {
        if self.missing.is_empty() {
            return Ok(Ok(()));
        }
        let missing = self.missing.join(", ");
        console.say(&format!("missing: {missing} (asked for on a terminal)"))?;
        Ok(Err(ExitCode::from(USAGE)))
    }
}

/// An id of an exemption or a customer.
pub(super) fn id(text: &str) -> Result<String, String> {
    Id::parse(text, Style::Plain).map(|Id(id)| id).map_err(told)
}

/// Text for people who read it in a year.
pub(super) fn words(text: &str) -> Result<String, String> {
    if text.contains(is_deceptive) {
        return Err(format!(
            "{} holds characters that are not shown",
            quoted(text)
        ));
    }
    Told::parse(text, Style::Plain)
        .map(|Told(text)| text)
        .map_err(told)
}

/// A moment.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    Time::parse(text, Style::Plain)
        .map(|Time(time)| time)
        .map_err(told)
}

/// A moment, or how long it takes to it.
pub(super) fn end(text: &str) -> Result<End, String> {
    match term(text) {
        Ok(term) => Ok(End::After(term)),
        Err(_) => time(text).map(End::At),
    }
}

/// One destination.
pub(super) fn destination(text: &str) -> Result<String, String> {
    if text == ANY {
        return Ok(text.to_owned());
    }
    Target::parse(text, Style::Plain)
        .map(|_known| text.to_owned())
        .map_err(told)
}

/// Destinations, between spaces or commas.
pub(super) fn destinations(text: &str) -> Result<Vec<String>, String> {
    let words = text.split([' ', ',']).filter(|word| !word.is_empty());
    let all = words.map(destination).collect::<Result<Vec<_>, _>>()?;
    match &all[..] {
        [] => Err("write `any`, or prefixes and names of allowlists".to_owned()),
        [_] => Ok(all),
        several if several.iter().any(|one| one == ANY) => Err("`any` stands alone".to_owned()),
        _ => Ok(all),
    }
}

fn told(fault: Fault) -> String {
    let Fault {
        code: _,
        message,
        help,
    } = fault;
    match help {
        Some(help) => format!("{message}: {help}"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interview_asks_again_until_the_answer_can_be_used() {
        let mut answers: &[u8] = b"not an id!\nacme\n";
        let (mut out, mut complaints) = (Vec::new(), Vec::new());
        let mut console = Console {
            out: &mut out,
            complaints: &mut complaints,
        };
        let mut interview = Interview::new(Some(&mut answers));
        let asked = interview.want(None, "--customer", "Customer", id, &mut console);
        assert_eq!(asked.unwrap(), Some("acme".to_owned()));
        let given = Some("given".to_owned());
        let given = interview.want(given, "ID", "Id", id, &mut console);
        assert_eq!(given.unwrap(), Some("given".to_owned()));
        assert!(interview.close(&mut console).unwrap().is_ok());
        let said = String::from_utf8(complaints).unwrap();
        assert_eq!(said.matches("Customer: ").count(), 2, "{said}");
        assert!(said.contains("is not a name"), "{said}");
    }

    #[test]
    fn interview_without_answers_names_all_that_is_missing() {
        for answers in [None, Some(&b""[..])] {
            let mut answers = answers;
            let answers = answers.as_mut().map(|it| it as &mut dyn BufRead);
            let (mut out, mut complaints) = (Vec::new(), Vec::new());
            let mut console = Console {
                out: &mut out,
                complaints: &mut complaints,
            };
            let mut interview = Interview::new(answers);
            for flag in ["--customer", "--to"] {
                let asked = interview.want(None, flag, "?", id, &mut console);
                assert_eq!(asked.unwrap(), None);
            }
            assert!(interview.close(&mut console).unwrap().is_err());
            let said = String::from_utf8(complaints).unwrap();
            assert!(said.contains("missing: --customer, --to"), "{said}");
        }
    }

    #[test]
    fn destinations_are_any_alone_or_a_list() {
        let read = |text| destinations(text).map(|all| all.join("|"));
        assert_eq!(read("any"), Ok("any".to_owned()));
        let list = "192.0.2.0/24, relays 2001:db8::/32";
        assert_eq!(
            read(list),
            Ok("192.0.2.0/24|relays|2001:db8::/32".to_owned())
        );
        for wrong in ["", " , ", "any relays", "192.0.2.1/24", "a b!"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn end_is_a_moment_or_a_term() {
        assert_eq!(end("2h"), Ok(End::After(SignedDuration::from_hours(2))));
        let moment = "2026-11-23T08:00:00Z";
        assert_eq!(end(moment), Ok(End::At(moment.parse().unwrap())));
        assert!(end("2026-11-23").is_err());
    }

    #[test]
    fn words_that_hide_something_are_refused() {
        for hidden in ["a\nb", "a\u{202e}b", "a\tb", "\u{1b}[2J"] {
            assert!(words(hidden).is_err(), "{hidden:?}");
        }
        assert_eq!(words("größer: #1, 'x'"), Ok("größer: #1, 'x'".to_owned()));
    }
}
