//! The control socket over real sockets, and the commands as people start them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "control/clients.rs"]
mod clients;
#[path = "control/commands.rs"]
mod commands;
#[path = "control/lab.rs"]
mod lab;
#[path = "control/messages.rs"]
mod messages;
#[path = "control/presence.rs"]
mod presence;
#[path = "control/socket.rs"]
mod socket;
