//! Scalars that every language uses.

use std::path::PathBuf;
use std::time::Duration;

use schemars::{Schema, json_schema};

use super::read::{Fault, Scalar, nearest};
use super::tree::Style;
use crate::diagnostic::quoted;

/// The version of the language; there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version;

impl Scalar for Version {
    const EXPECTED: &'static str = "the version of the language";

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        match (text, style) {
            ("1", Style::Plain) => Ok(Self),
            _ => Err(Fault::new(
                "schema-version",
                format!("the schema {} is not known", quoted(text)),
            )
            .help("this version of gate25 reads `schema: 1`")),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "const": 1 })
    }
}

/// Free text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl Scalar for Text {
    const EXPECTED: &'static str = "text";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        Ok(Self(text.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// A whole number from `MIN` to `MAX`, as what it is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number<const MIN: u32, const MAX: u32, T = u32>(pub(crate) T);

impl<const MIN: u32, const MAX: u32, T: TryFrom<u32>> Scalar for Number<MIN, MAX, T> {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || style != Style::Plain {
            return Err(Fault::new(
                "wrong-type",
                format!("{} is not a whole number", quoted(text)),
            )
            .help(format!("write digits, from {MIN} to {MAX}, without quotes")));
        }
        let number = text.parse().ok();
        let number = number.filter(|number| (MIN..=MAX).contains(number));
        let kept = number.and_then(|number| T::try_from(number).ok());
        kept.map(Self).ok_or_else(|| {
            let message = format!("{} is out of range", quoted(text));
            Fault::new("out-of-range", message).help(format!("from {MIN} to {MAX}"))
        })
    }

    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// `true` or `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truth(pub(crate) bool);

impl Scalar for Truth {
    const EXPECTED: &'static str = "`true` or `false`";

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        match (text, style) {
            ("true", Style::Plain) => Ok(Self(true)),
            ("false", Style::Plain) => Ok(Self(false)),
            _ => Err(Fault::new(
                "wrong-type",
                format!("{} is neither `true` nor `false`", quoted(text)),
            )
            .help("write one of them, without quotes")),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "boolean" })
    }
}

/// One of a few words.
pub(crate) trait Words: Copy + 'static {
    /// The words and what they mean.
    const WORDS: &'static [(&'static str, Self)];
    /// Words of the language that this version does not have.
    const LATER: &'static [&'static str];
}

impl<T: Words> Scalar for T {
    const EXPECTED: &'static str = "a word";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        if let Some((_, value)) = T::WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words = || T::WORDS.iter().map(|(word, _)| *word);
        let all = words().collect::<Vec<_>>().join(" or ");
        if T::LATER.contains(&text) {
            let message = format!("this version of gate25 does not have `{text}`");
            return Err(Fault::new("not-yet", message).help(format!("write {all}")));
        }
        let help = match nearest(text, words()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write {all}"),
        };
        Err(Fault::new(
            "unknown-word",
            format!("{} is not known here", quoted(text)),
        )
        .help(help))
    }

    fn schema() -> Schema {
        json_schema!({ "enum": T::WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
    }
}

/// A length of time from `MIN_MS` to `MAX_MS` milliseconds, written as a number and a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span<const MIN_MS: u64, const MAX_MS: u64>(pub(crate) Duration);

impl<const MIN_MS: u64, const MAX_MS: u64> Scalar for Span<MIN_MS, MAX_MS> {
    const EXPECTED: &'static str = "a length of time";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let end = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(end);
        let scale = match unit {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let (Some(scale), false) = (scale, number.is_empty()) else {
            return Err(Fault::new(
                "bad-duration",
                format!("{} is not a length of time", quoted(text)),
            )
            .help("write a number and a unit, without a space: 300ms, 60s, 5m, 1h"));
        };
        match number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(scale))
        {
            Some(ms) if (MIN_MS..=MAX_MS).contains(&ms) => Ok(Self(Duration::from_millis(ms))),
            Some(_) | None => {
                let (min, max) = (Duration::from_millis(MIN_MS), Duration::from_millis(MAX_MS));
                Err(
                    Fault::new("out-of-range", format!("{} is out of range", quoted(text)))
                        .help(format!("from {min:?} to {max:?}")),
                )
            }
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" })
    }
}

/// An absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePath(pub(crate) PathBuf);

impl Scalar for FilePath {
    const EXPECTED: &'static str = "a path";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        if !text.starts_with('/') || text.contains('\0') {
            return Err(Fault::new(
                "bad-path",
                format!("{} is not an absolute path", quoted(text)),
            )
            .help("start it with `/`"));
        }
        Ok(Self(PathBuf::from(text)))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^/" })
    }
}
