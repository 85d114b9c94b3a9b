//! Mail sent by swaks, an SMTP client that others wrote.

use std::{net::SocketAddr, time::Duration};

use crate::NetNs;

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The server took the message.
    pub accepted: bool,
    /// The client's transcript.
    pub transcript: String,
}

impl Delivery {
    /// The line that tells why it failed, or the server's last answer.
    #[must_use]
    pub fn summary(&self) -> String {
        let telling = |line: &&str| line.starts_with("***") || line.starts_with("<** ");
        let accepted = |line: &&str| line.starts_with("<-  250") && line.contains("queued");
        let mut lines = self.transcript.lines();
        let found = if self.accepted {
            lines.find(accepted)
        } else {
            lines.find(telling)
        };
        let line = found
            .or_else(|| self.transcript.lines().last())
            .unwrap_or_default();
        line.trim_start_matches(['*', '<', '-', ' ']).to_owned()
    }
}

/// Sends a message from inside `from`, straight to `server`.
///
/// # Errors
/// When swaks cannot be started or does not end. A refusal is an outcome, not an error.
pub fn send(
    from: &NetNs,
    server: SocketAddr,
    recipient: &str,
    subject: &str,
) -> anyhow::Result<Delivery> {
    let name = from.name();
    let mut command = from.command("swaks");
    command
        .args([
            "--server",
            &server.ip().to_string(),
            "--port",
            &server.port().to_string(),
        ])
        .args(["--helo", &format!("{name}.example.com")])
        .args([
            "--from",
            &format!("sender@{name}.example.com"),
            "--to",
            recipient,
        ])
        .args([
            "--header",
            &format!("Subject: {subject}"),
            "--body",
            "A message of gate25's lab.",
        ])
        .args(["--timeout", "5"]);
    if server.is_ipv6() {
        command.arg("-6");
    }
    let output = from.output(command, Duration::from_secs(20))?;
    let transcript = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Delivery {
        accepted: output.status.success(),
        transcript,
    })
}
