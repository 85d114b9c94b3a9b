//! Globs: what they match, and whether two of them can match one name.

use std::fmt;

use super::Pattern;

impl Pattern {
    /// A pattern in which `*` stands for any run of characters and `?` for any one, but never for
    /// `/`; every other character stands for itself.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern matches the whole name. Takes time linear in the name for every `*`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut names = name.split('/');
        let segments_match = self
            .0
            .split('/')
            .all(|glob| names.next().is_some_and(|name| segment(glob, name)));
        segments_match && names.next().is_none()
    }

    /// What every matching name starts with.
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        self.0.split(['*', '?']).next().unwrap_or_default()
    }

    /// What every matching name ends with.
    #[must_use]
    pub fn literal_suffix(&self) -> &str {
        self.0.rsplit(['*', '?']).next().unwrap_or_default()
    }

    /// Whether the pattern matches one name only.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.literal_prefix().len() == self.0.len()
    }

    /// Bytes of the shortest name that both patterns match, if there is one.
    #[must_use]
    pub fn shortest_common(&self, other: &Self) -> Option<usize> {
        if self.is_literal() {
            return other.matches(&self.0).then_some(self.0.len());
        }
        if other.is_literal() {
            return self.matches(&other.0).then_some(other.0.len());
        }
        shortest_common(&tokens(&self.0), &tokens(&other.0))
    }

    /// Bytes of the shortest name that the pattern matches.
    #[must_use]
    pub fn shortest(&self) -> usize {
        self.0.bytes().filter(|byte| *byte != b'*').count()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Matches within one path segment: a `*` gives back one character at a time, and only the last
/// `*` seen ever needs to.
fn segment(glob: &str, name: &str) -> bool {
    let mut globs = glob.chars();
    let mut names = name.chars();
    let mut retry = None;
    loop {
        let before = names.clone();
        match (globs.next(), names.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                names = before.clone();
                retry = Some((globs.clone(), before));
                continue;
            }
            (Some('?'), Some(_)) => continue,
            (Some(expected), Some(found)) if expected == found => continue,
            (Some(_) | None, Some(_)) | (Some(_), None) => {}
        }
        let Some((after_star, mut rest)) = retry.take() else {
            return false;
        };
        if rest.next().is_none() {
            return false;
        }
        globs = after_star.clone();
        names = rest.clone();
        retry = Some((after_star, rest));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Star,
    One,
    Char(char),
}

fn tokens(glob: &str) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(glob.len());
    for c in glob.chars() {
        match c {
            '*' if tokens.last() == Some(&Token::Star) => {}
            '*' => tokens.push(Token::Star),
            '?' => tokens.push(Token::One),
            c => tokens.push(Token::Char(c)),
        }
    }
    tokens
}

/// Bytes of the character that both tokens can stand for; a `*` stands for a character here.
fn common_char(a: Token, b: Token) -> Option<usize> {
    match (a, b) {
        (Token::Char(x), Token::Char(y)) => (x == y).then_some(x.len_utf8()),
        (Token::Char(x), Token::One | Token::Star) | (Token::One | Token::Star, Token::Char(x)) => {
            (x != '/').then_some(x.len_utf8())
        }
        (Token::One | Token::Star, Token::One | Token::Star) => Some(1),
    }
}

/// Fills, from the ends backwards, the table of the shortest names that match what is left of
/// both patterns.
fn shortest_common(a: &[Token], b: &[Token]) -> Option<usize> {
    let mut below = vec![None; b.len() + 1];
    for i in (0..=a.len()).rev() {
        let mut row = vec![None; b.len() + 1];
        for j in (0..=b.len()).rev() {
            row[j] = match (a.get(i), b.get(j)) {
                (None, None) => Some(0),
                (Some(Token::Star), None) => below[j],
                (None, Some(Token::Star)) => row[j + 1],
                (None, Some(_)) | (Some(_), None) => None,
                (Some(Token::Star), Some(Token::Star)) => least(below[j], row[j + 1]),
                (Some(Token::Star), Some(&y)) => {
                    let taken = common_char(Token::Star, y);
                    least(
                        below[j],
                        taken.zip(row[j + 1]).map(|(x, y): (usize, usize)| x + y),
                    )
                }
                (Some(&x), Some(Token::Star)) => {
                    let taken = common_char(x, Token::Star);
                    least(
                        row[j + 1],
                        taken.zip(below[j]).map(|(x, y): (usize, usize)| x + y),
                    )
                }
                (Some(&x), Some(&y)) => common_char(x, y)
                    .zip(below[j + 1])
                    .map(|(x, y): (usize, usize)| x + y),
            };
        }
        below = row;
    }
    below.first().copied().flatten()
}

fn least(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (only, None) | (None, only) => only,
    }
}
