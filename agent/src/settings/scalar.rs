//! Scalars of the settings.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::{Schema, json_schema};

use super::{Backend, Enforcement, LogFormat, LogLevel};
use crate::diagnostic::quoted;
use crate::guard::Mark;
use crate::yaml::read::{Fault, Scalar};
use crate::yaml::scalar::{FilePath, Words};
use crate::yaml::tree::Style;

/// Longest path of a socket in bytes (`sun_path` less the closing zero).
const MAX_SOCKET: usize = 107;
/// Longest name of a group in bytes (useradd's limit).
const MAX_GROUP: usize = 32;

/// Path of a socket.
#[derive(Debug, Clone)]
pub(super) struct SocketPath(pub(super) PathBuf);

impl Scalar for SocketPath {
    const EXPECTED: &'static str = FilePath::EXPECTED;

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        let FilePath(path) = FilePath::parse(text, style)?;
        let fault = |what: &str| Fault::new("bad-path", format!("{} {what}", quoted(text)));
        if text.ends_with('/') {
            return Err(fault("is a folder").help("write the path of the socket in it"));
        }
        if text.len() > MAX_SOCKET {
            return Err(fault("is too long for a socket")
                .help(format!("the kernel takes {MAX_SOCKET} bytes at most")));
        }
        Ok(Self(path))
    }

    fn schema() -> Schema {
        FilePath::schema()
    }
}

impl Scalar for Mark {
    const EXPECTED: &'static str = "a bit of a packet's mark";

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        let digits = text.strip_prefix("0x").filter(|_| style == Style::Plain);
        let bits = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        bits.and_then(Self::new).ok_or_else(|| {
            let message = format!("{} is not one bit of a packet's mark", quoted(text));
            Fault::new("bad-mark", message)
                .help("write `0x` and one bit of 32 as a hexadecimal number: `0x10000000`")
        })
    }

    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": u32::MAX })
    }
}

/// The name of a group of the host.
#[derive(Debug, Clone)]
pub(super) struct GroupName(pub(super) String);

impl Scalar for GroupName {
    const EXPECTED: &'static str = "the name of a group";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let is_name = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !text.starts_with('-')
            && !text.bytes().all(|byte| byte.is_ascii_digit())
            && text.len() <= MAX_GROUP;
        if !is_name {
            let message = format!("{} is not the name of a group", quoted(text));
            return Err(Fault::new("bad-name", message)
                .help("`root` leaves the socket to root alone; a number is no name"));
        }
        Ok(Self(text.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9._][A-Za-z0-9._-]*$" })
    }
}

/// A host's name; empty means the one it has.
#[derive(Debug, Clone)]
pub(super) struct HostName(pub(super) Option<String>);

impl Scalar for HostName {
    const EXPECTED: &'static str = "a host name";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || "*?/".contains(c);
        if text.chars().any(is_odd) {
            return Err(
                Fault::new("bad-name", format!("{} is not a host name", quoted(text)))
                    .help("patterns go into the policy; here goes the name of this host"),
            );
        }
        Ok(Self((!text.is_empty()).then(|| text.to_owned())))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[^\\s*?/]*$" })
    }
}

impl Scalar for SocketAddr {
    const EXPECTED: &'static str = "an address and a port";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        text.parse().ok().ok_or_else(|| {
            Fault::new(
                "bad-address",
                format!("{} is not an address and a port", quoted(text)),
            )
            .help("as in \"127.0.0.1:9425\" or \"[::1]:9425\"")
        })
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": ":[0-9]+$" })
    }
}

impl Words for Enforcement {
    const WORDS: &'static [(&'static str, Self)] =
        &[("policy", Self::Policy), ("observe", Self::Observe)];
    const LATER: &'static [&'static str] = &[];
}

impl Words for Backend {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("ebpf", Self::Ebpf),
        ("nftables", Self::Nftables),
    ];
    const LATER: &'static [&'static str] = &[];
}

impl Words for LogLevel {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
    const LATER: &'static [&'static str] = &[];
}

impl Words for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("text", Self::Text),
        ("json", Self::Json),
        ("journal", Self::Journal),
    ];
    const LATER: &'static [&'static str] = &[];
}
