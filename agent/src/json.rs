//! JSON that may be shown on a terminal as it is.

use std::io::{self, Write};

use serde::Serialize;

use crate::diagnostic::is_deceptive;

/// Prints one JSON object for programs, and for people who look at what programs get.
///
/// # Errors
/// Writing failed.
pub fn print(out: &mut dyn Write, content: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(Plain(&mut *out), content)?;
    writeln!(out)
}

/// Writes JSON without what a terminal acts upon: serializers escape the first 32 characters only.
/// Outside of strings there are no others, so every one may stand as `\uXXXX`.
#[derive(Debug)]
pub struct Plain<W>(pub W);

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, json: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(json).map_err(io::Error::other)?;
        let is_plain = |c: char| c < '\u{7f}' || !is_deceptive(c);
        if text.chars().all(is_plain) {
            self.0.write_all(json)?;
            return Ok(json.len());
        }
        let mut plain = String::with_capacity(text.len());
        for c in text.chars() {
            if is_plain(c) {
                plain.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    plain += &format!("\\u{unit:04x}");
                }
            }
        }
        self.0.write_all(plain.as_bytes())?;
        Ok(json.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn print_of_what_terminals_act_upon_is_escaped_and_reads_as_it_was() {
        let name = "a\u{1b}[2J\n\u{7f}\u{9b}31m\u{202e}\u{e0041}äöü";
        let mut out = Vec::new();
        print(&mut out, &serde_json::json!({ "name": name })).unwrap();
        let text = String::from_utf8(out).unwrap();
        let shown: String = text.chars().filter(|c| *c != '\n').collect();
        assert!(!shown.chars().any(char::is_control), "{text}");
        assert!(!shown.contains(['\u{202e}', '\u{e0041}']), "{text}");
        assert!(shown.contains("äöü"), "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["name"], name);
    }
}
