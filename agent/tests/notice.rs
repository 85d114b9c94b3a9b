//! The SMTP notice: its words, its conversation, and its bounds against real sockets.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "notice/bounds.rs"]
mod bounds;
#[path = "notice/framing.rs"]
mod framing;
#[path = "notice/session.rs"]
mod session;
#[path = "notice/template.rs"]
mod template;
