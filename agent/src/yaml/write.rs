//! Values as text that reads as the same values. Pure.

/// Where a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Alone behind a key or a dash, to the end of the line.
    Line,
    /// Between brackets or braces, among others.
    Brackets,
}

/// Words that other readers of YAML take for something else than text.
const WORDS: [&str; 10] = [
    "null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan",
];

/// Text without control characters, quoted where it is not plain.
pub(crate) fn text(text: &str, place: Place) -> String {
    if is_plain(text, place) {
        text.to_owned()
    } else {
        quoted(text)
    }
}

/// Between single quotes YAML takes every character as it is; systemd's names hold backslashes.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Stricter than YAML: what anybody could take for something else is quoted.
fn is_plain(text: &str, place: Place) -> bool {
    let harmless = |c: char| {
        let punctuation = match place {
            Place::Line => " ._/-+@(),",
            Place::Brackets => " ._/-+@()",
        };
        c.is_alphanumeric() || punctuation.contains(c)
    };
    text.starts_with(char::is_alphanumeric)
        && !text.ends_with(' ')
        && text.chars().all(harmless)
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::diagnostic::{Problems, is_deceptive};
    use crate::yaml::tree::{Kind, Node, parse};

    proptest! {
        #[test]
        fn text_written_anywhere_reads_as_the_same_text(
            written in "\\PC{1,20}|[a-z:#'\" ,\\[\\]{}&*!|>%@`-]{1,12}"
        ) {
            prop_assume!(!written.contains(is_deceptive) && !written.trim().is_empty());
            let line = text(&written, Place::Line);
            let file = format!("- k: {line} # remark\n  next: 1\n");
            prop_assert_eq!(first(&file), Some(written.clone()), "{}", file);
            let inside = text(&written, Place::Brackets);
            let file = format!("[{{k: {inside}, next: 1}}]\n");
            prop_assert_eq!(first(&file), Some(written), "{}", file);
        }
    }

    #[test]
    fn text_is_plain_where_nobody_takes_it_for_something_else() {
        for plain in ["NOC-48213", "192.0.2.0/24", "double opt-in, PTR checked"] {
            assert_eq!(text(plain, Place::Line), plain);
        }
        for quoted in [
            "yes",
            "2001:db8::/32",
            "# 1",
            "a: b",
            "- a",
            " a",
            "*",
            "No",
        ] {
            assert_eq!(text(quoted, Place::Line), format!("'{quoted}'"));
        }
        assert_eq!(text("a, b", Place::Brackets), "'a, b'");
    }

    /// The text of the first value in a list of maps.
    fn first(file: &str) -> Option<String> {
        let path = Arc::from(Path::new("a.yaml"));
        let mut problems = Problems::default();
        let Kind::List(items) = parse(&path, file.as_bytes(), &mut problems)?.kind else {
            return None;
        };
        let Some(Node {
            kind: Kind::Map(entries),
            ..
        }) = items.into_iter().next()
        else {
            return None;
        };
        match entries.into_iter().next()?.value.kind {
            Kind::Scalar(text, _) => Some(text.into_owned()),
            Kind::List(_) | Kind::Map(_) | Kind::Refused => None,
        }
    }
}
