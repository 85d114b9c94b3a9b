//! A table on the terminal, its rows printed as they come.

use std::time::Instant;

/// Rows of what was tried, expected and seen, counted.
#[derive(Debug)]
pub(crate) struct Table {
    started: Instant,
    passed: u32,
    failed: u32,
}

const TRIED: usize = 52;
const EXPECTED: usize = 24;

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            passed: 0,
            failed: 0,
        }
    }

    /// Starts a section of rows.
    pub(crate) fn heading(&self, text: &str) {
        println!("\n{text}");
        println!("       {:TRIED$} {:EXPECTED$} seen", "tried", "expected");
    }

    /// One row; it passes when what was seen is right.
    pub(crate) fn row(
        &mut self,
        tried: &str,
        expected: &str,
        seen: anyhow::Result<(bool, String)>,
    ) {
        let (right, seen) = seen.unwrap_or_else(|error| (false, format!("{error:#}")));
        if right {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        let mark = if right { "ok  " } else { "FAIL" };
        let mut seen = seen.lines();
        let first = seen.next().unwrap_or_default();
        println!("  {mark} {tried:TRIED$} {expected:EXPECTED$} {first}");
        for line in seen {
            println!("         | {line}");
        }
    }

    /// The closing line, and whether all rows passed.
    pub(crate) fn close(self) -> bool {
        println!("\ntook {:.1} s", self.started.elapsed().as_secs_f64());
        println!("demo: {} passed, {} failed", self.passed, self.failed);
        self.failed == 0 && self.passed > 0
    }
}
