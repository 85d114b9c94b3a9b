//! Scalars of the policy language.

pub(crate) mod cgroups;
pub(crate) mod relay;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use jiff::Timestamp;
use schemars::{Schema, json_schema};

use super::{ANY, Blocked, Mode, Pattern, UNASSIGNED};
use crate::diagnostic::quoted;
use crate::yaml::read::{Fault, Scalar};
use crate::yaml::scalar::Words;
use crate::yaml::tree::Style;

const MAX_ID: usize = 63;
/// Longest name of a network interface in bytes (IFNAMSIZ less the closing zero).
const MAX_INTERFACE: usize = 15;
/// Longest host name in bytes (RFC 1035).
const MAX_HOST: usize = 253;
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// The name of an object, where it is defined and where it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) String);

impl Scalar for Id {
    const EXPECTED: &'static str = "a name";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let mut bytes = text.bytes();
        let is_id = bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && text.len() <= MAX_ID;
        if !is_id {
            return Err(
                Fault::new("bad-name", format!("{} is not a name", quoted(text))).help(format!(
                    "a name is 1 to {MAX_ID} letters, digits, `.`, `_` and `-`, and starts with a \
                     letter or a digit"
                )),
            );
        }
        if text == ANY || text == UNASSIGNED {
            return Err(
                Fault::new("reserved-name", format!("the name `{text}` is reserved"))
                    .help("choose another name"),
            );
        }
        Ok(Self(text.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({
            "type": ["string", "number"],
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
            "not": { "enum": [ANY, UNASSIGNED] },
        })
    }
}

/// The name of an allowlist: never one that could be taken for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListName(pub(crate) String);

impl Scalar for ListName {
    const EXPECTED: &'static str = "the name of an allowlist";

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        if is_address_like(text) {
            let message = format!("{} is an address, not a name", quoted(text));
            return Err(Fault::new("bad-name", message)
                .help("addresses belong into the `to` of an allowlist; here goes its name"));
        }
        Id::parse(text, style).map(|Id(name)| Self(name))
    }

    fn schema() -> Schema {
        Id::schema()
    }
}

fn is_address_like(text: &str) -> bool {
    text.contains([':', '/'])
        || (text.contains('.')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// Text that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told(pub(crate) String);

impl Scalar for Told {
    const EXPECTED: &'static str = "text";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        if text.trim().is_empty() {
            return Err(Fault::new("missing-value", "the text is empty")
                .help("whoever reads this in a year needs it"));
        }
        Ok(Self(text.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"], "pattern": "\\S" })
    }
}

/// A destination prefix; a single address is its longest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix(pub(crate) IpNet);

impl Scalar for Prefix {
    const EXPECTED: &'static str = "an address or a prefix";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        if text == ANY {
            return Err(Fault::new("bad-prefix", "`any` is not an address")
                .help("only an exemption opens everything: `to: any`, not in a list"));
        }
        let net = text
            .parse::<IpNet>()
            .ok()
            .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let Some(net) = net else {
            return Err(not_a_prefix(text));
        };
        if net.addr() != net.network() {
            let message = format!("{} is not a network: host bits are set", quoted(text));
            return Err(Fault::new("host-bits", message).help(format!(
                "write the network `{}`, or the address `{}`",
                net.trunc(),
                net.addr()
            )));
        }
        match net {
            IpNet::V4(_) => {}
            IpNet::V6(v6) => {
                for range in [MAPPED, NAT64] {
                    judge_embedded(text, v6, range)?;
                }
            }
        }
        Ok(Self(net))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$" })
    }
}

fn not_a_prefix(text: &str) -> Fault {
    let is_host_name = text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if is_host_name && !is_address_like(text) {
        let message = format!(
            "{} is a name: this version of gate25 takes addresses only",
            quoted(text)
        );
        return Fault::new("not-yet", message).help("write its addresses");
    }
    Fault::new(
        "bad-prefix",
        format!("{} is neither an address nor a prefix", quoted(text)),
    )
    .help("as in 192.0.2.25, 192.0.2.0/24, \"2001:db8::25\", \"2001:db8::/48\"")
}

/// Refuses IPv6 that is judged as the IPv4 inside it: an entry written so would never match.
fn judge_embedded(text: &str, net: Ipv6Net, range: Ipv6Net) -> Result<(), Fault> {
    if range.contains(&net) {
        let [.., a, b, c, d] = net.network().octets();
        let inside = Ipv4Addr::new(a, b, c, d);
        let message = format!("{} lies in {range}, which is judged as IPv4", quoted(text));
        let length = net.prefix_len() - range.prefix_len();
        return Err(Fault::new("embedded-ipv4", message)
            .help(format!("write the IPv4 prefix: {inside}/{length}")));
    }
    if net.contains(&range) {
        let message = format!("{} covers {range}, which is judged as IPv4", quoted(text));
        return Err(Fault::new("embedded-ipv4", message)
            .help("write longer prefixes beside it; an exemption from everything says `to: any`"));
    }
    Ok(())
}

/// A destination of an exemption: a prefix, or the name of an allowlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Prefix(IpNet),
    List(String),
}

impl Scalar for Target {
    const EXPECTED: &'static str = "a prefix or the name of an allowlist";

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        if text == ANY {
            return Err(
                Fault::new("reserved-name", "`any` stands alone, not in a list")
                    .help("write `to: any`"),
            );
        }
        if is_address_like(text) {
            return Prefix::parse(text, style).map(|Prefix(net)| Self::Prefix(net));
        }
        Id::parse(text, style).map(|Id(name)| Self::List(name))
    }

    fn schema() -> Schema {
        json_schema!({ "anyOf": [Prefix::schema(), ListName::schema()] })
    }
}

/// A moment, RFC 3339 with an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Timestamp);

impl Scalar for Time {
    const EXPECTED: &'static str = "a time";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let fault = |what: &str| {
            Fault::new("bad-time", format!("{} {what}", quoted(text)))
                .help("write date, time and offset, as in 2026-11-23T08:00:00Z")
        };
        let date = text.get(..10).unwrap_or(text);
        if !fits(date, "0000-00-00") {
            return Err(fault("is not a time"));
        }
        let Some(rest) = text.get(10..).filter(|rest| !rest.is_empty()) else {
            return Err(fault("is a date without a time: say when on that day"));
        };
        let (clock, rest) = rest
            .split_at_checked(9)
            .ok_or_else(|| fault("is not a time"))?;
        let is_clock = ["T00:00:00", "t00:00:00", " 00:00:00"]
            .iter()
            .any(|shape| fits(clock, shape));
        if !is_clock {
            return Err(fault("is not a time"));
        }
        let offset = match rest.strip_prefix('.') {
            Some(fraction) => {
                let offset = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
                if offset.len() == fraction.len() {
                    return Err(fault("is not a time"));
                }
                offset
            }
            None => rest,
        };
        if offset.is_empty() {
            return Err(fault("has no offset from UTC"));
        }
        let is_offset = ["Z", "z", "+00:00", "-00:00"]
            .iter()
            .any(|shape| fits(offset, shape));
        // A leap second would be read as the second before it.
        if !is_offset || clock.ends_with(":60") {
            return Err(fault("is not a time"));
        }
        text.parse()
            .map(Self)
            .map_err(|error: jiff::Error| fault(&format!("is not a time: {error}")))
    }

    fn schema() -> Schema {
        let pattern = "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?\
                       ([Zz]|[+-][0-9]{2}:[0-9]{2})$";
        json_schema!({ "type": "string", "pattern": pattern })
    }
}

/// Whether the text has the shape's length, a digit where it has a digit, and its characters
/// elsewhere.
fn fits(text: &str, shape: &str) -> bool {
    text.len() == shape.len()
        && text
            .bytes()
            .zip(shape.bytes())
            .all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                other => byte == other,
            })
}

/// A pattern for names of network interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InterfacePattern(pub(crate) Pattern);

impl Scalar for InterfacePattern {
    const EXPECTED: &'static str = "a pattern for interface names";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let pattern = plain_glob(text)?;
        let never = |why: &str| {
            let message = format!("{} can never match an interface: {why}", quoted(text));
            Err(Fault::new("pattern-never-matches", message)
                .help("a name has 1 to 15 bytes, without `/`, `:` and white space"))
        };
        if text.contains(['/', ':']) || text.chars().any(char::is_whitespace) {
            return never("no name holds such a character");
        }
        if pattern.shortest() > MAX_INTERFACE {
            return never("it is too long");
        }
        Ok(Self(pattern))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[^/:\\s\\[\\]{}]+$" })
    }
}

/// A pattern for the interfaces of one customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedInterface(pub(crate) Pattern);

impl Scalar for OwnedInterface {
    const EXPECTED: &'static str = InterfacePattern::EXPECTED;

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        let InterfacePattern(pattern) = InterfacePattern::parse(text, style)?;
        let after_digit = text
            .bytes()
            .zip(text.bytes().skip(1))
            .any(|(before, byte)| before.is_ascii_digit() && byte == b'*');
        if after_digit {
            let message = format!("in {} the `*` continues a number", quoted(text));
            return Err(Fault::new("star-after-digit", message)
                .help("`tap10*` takes tap101i0 too: end the number first, as in `tap10i*`"));
        }
        Ok(Self(pattern))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^([^/:\\s\\[\\]{}*]|(^|[^0-9/:\\s\\[\\]{}])[*])+$" })
    }
}

/// A pattern for host names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPattern(pub(crate) Pattern);

impl Scalar for HostPattern {
    const EXPECTED: &'static str = "a pattern for host names";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let pattern = plain_glob(text)?;
        if text.contains('/')
            || text.chars().any(char::is_whitespace)
            || pattern.shortest() > MAX_HOST
        {
            let message = format!("{} can never match a host name", quoted(text));
            return Err(Fault::new("pattern-never-matches", message)
                .help("a name has 1 to 253 bytes, without `/` and white space"));
        }
        Ok(Self(pattern))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[^/\\s\\[\\]{}]+$" })
    }
}

fn plain_glob(text: &str) -> Result<Pattern, Fault> {
    if text.is_empty() {
        return Err(
            Fault::new("missing-value", "the pattern is empty").help("`*` matches every name")
        );
    }
    if text.contains(['[', ']', '{', '}']) {
        let message = format!("{} holds brackets or braces", quoted(text));
        return Err(Fault::new("pattern-syntax", message)
            .help("`*` and `?` are the only wildcards: write several patterns"));
    }
    if text.chars().any(char::is_control) {
        let message = format!("{} holds a control character", quoted(text));
        return Err(Fault::new("pattern-syntax", message).help("write the name as it is shown"));
    }
    Ok(Pattern::new(text))
}

impl Words for Mode {
    const WORDS: &'static [(&'static str, Self)] =
        &[("enforce", Self::Enforce), ("observe", Self::Observe)];
    const LATER: &'static [&'static str] = &[];
}

impl Words for Blocked {
    const WORDS: &'static [(&'static str, Self)] = &[
        (Self::Reject.as_str(), Self::Reject),
        (Self::Drop.as_str(), Self::Drop),
        (Self::Redirect.as_str(), Self::Redirect),
        (Self::Notice.as_str(), Self::Notice),
    ];
    const LATER: &'static [&'static str] = &[];
}
