//! `gate25 doctor`: what follows from what was seen, how the machine's files are read, and whether
//! README tells the same as the code.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "doctor/facts.rs"]
mod facts;
#[path = "doctor/files.rs"]
mod files;
#[path = "doctor/judge.rs"]
mod judge;
#[path = "doctor/kinds.rs"]
mod kinds;
#[path = "doctor/readme.rs"]
mod readme;
