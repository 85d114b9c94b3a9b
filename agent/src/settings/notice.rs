//! The SMTP notice: where it listens, what it says, and to how many.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use schemars::{Schema, json_schema};

use super::language::Judge;
use crate::diagnostic::{Diagnostic, Location, quoted};
use crate::notice::template::{MAX_URL, Template, TemplateError, is_printable};
use crate::notice::{Limits, Settings};
use crate::yaml::read::{At, Fault, Scalar, keys};
use crate::yaml::scalar::{Number, Span, Text};
use crate::yaml::tree::Style;

keys! {
    /// The server that tells senders why their mail is not taken.
    pub(super) struct NoticeMap {
        /// Addresses and ports to listen on, one for IPv4 and one for IPv6.
        optional listen: Vec<At<SocketAddr>>,
        /// What senders are told, with `{customer}`, `{relay}` and `{url}`.
        optional text: At<Text>,
        /// A page that tells more.
        optional url: At<Url>,
        /// Connections at once.
        optional max_connections: At<Number<1, 10_000>>,
        /// Connections at once from one IPv4 address or IPv6 /64.
        optional max_connections_per_peer: At<Number<1, 10_000>>,
        /// New connections a second.
        optional max_connections_per_second: At<Number<1, 10_000>>,
        /// How long a client may say nothing, and take to read an answer.
        optional idle_time: At<Span<1_000, 300_000>>,
        /// How long a connection may take in all.
        optional connection_time: At<Span<1_000, 600_000>>,
    }
}

/// The address of a page: what is told goes out as it is.
#[derive(Debug, Clone)]
pub(super) struct Url(String);

impl Scalar for Url {
    const EXPECTED: &'static str = "the address of a page";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let is_url = ["https://", "http://", "mailto:"]
            .iter()
            .filter_map(|scheme| text.strip_prefix(scheme))
            .any(|rest| !rest.is_empty());
        if !is_url || !text.chars().all(|c| is_printable(c) && c != ' ') {
            let message = format!("{} is not the address of a page", quoted(text));
            return Err(Fault::new("bad-url", message)
                .help("begin with https://, http:// or mailto:, and write ASCII without spaces"));
        }
        if text.len() > MAX_URL {
            let message = format!("{} is too long", quoted(text));
            return Err(Fault::new("bad-url", message).help(format!("{MAX_URL} characters fit")));
        }
        Ok(Self(text.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(https?://|mailto:)[!-~]+$",
            "maxLength": MAX_URL,
        })
    }
}

impl Judge<'_> {
    pub(super) fn notice(&mut self, map: NoticeMap, guarded: &[u16], notice: &mut Settings) {
        let NoticeMap {
            listen,
            text,
            url,
            max_connections,
            max_connections_per_peer,
            max_connections_per_second,
            idle_time,
            connection_time,
        } = map;
        if let Some(listen) = listen {
            notice.listen = self.reachable(listen, guarded);
        }
        self.text(text, url, &mut notice.text);
        let limits = &mut notice.limits;
        let per_peer = max_connections_per_peer.as_ref().map(|it| it.at);
        set(&mut limits.connections, max_connections);
        set(&mut limits.per_peer, max_connections_per_peer);
        if let Some(second) = max_connections_per_second {
            limits.per_second = second.value.0;
        }
        if let Some(idle) = idle_time {
            limits.idle = idle.value.0;
        }
        if let Some(connection) = connection_time {
            limits.connection = connection.value.0;
        }
        let Limits {
            connections,
            per_peer: of_one,
            ..
        } = *limits;
        if let Some(at) = per_peer.filter(|_| of_one > connections) {
            let message = "`max_connections_per_peer` has no effect above `max_connections`";
            self.problems.push(
                Diagnostic::warning("no-effect", Location::at(self.file, at), message)
                    .help(format!("there are {connections} connections for all")),
            );
        }
    }

    /// Addresses that packets of guests can be rewritten to.
    fn reachable(&mut self, list: Vec<At<SocketAddr>>, guarded: &[u16]) -> Vec<SocketAddr> {
        let mut seen = BTreeMap::new();
        let mut families = BTreeMap::new();
        for At { value, at } in list {
            let location = Location::at(self.file, at);
            if let Some(why) = unreachable(value) {
                let message = format!("{} {why}", quoted(&value.to_string()));
                self.problems.push(
                    Diagnostic::error("unreachable-address", location, message)
                        .help("what guests send is led here: write an address of this host that they can reach, and a port"),
                );
                continue;
            }
            if guarded.contains(&value.port()) {
                let message = format!("port {} is guarded", value.port());
                self.problems.push(
                    Diagnostic::error("guarded-port", location, message).help(
                        "take another one: guests do not see it, and anybody may connect to it",
                    ),
                );
                continue;
            }
            if seen.contains_key(&value) {
                self.once(&mut seen, value, at);
                continue;
            }
            seen.insert(value, at);
            let family = if value.is_ipv4() { "IPv4" } else { "IPv6" };
            if let Some(first) = families.insert(family, at) {
                let message = format!("a second {family} address");
                self.problems.push(
                    Diagnostic::error("second-address", location, message)
                        .help("what guests send is led to one address a family: remove one")
                        .related(Location::at(self.file, first), "the first one is here"),
                );
            }
        }
        seen.into_keys().collect()
    }

    fn text(&mut self, text: Option<At<Text>>, url: Option<At<Url>>, template: &mut Template) {
        let page = url.as_ref().map(|url| url.value.0.as_str());
        let Some(At {
            value: Text(text),
            at,
        }) = text
        else {
            *template = Template::standard(page);
            return;
        };
        match Template::new(&text, page) {
            Ok(read) => *template = read,
            Err(error) => {
                let (code, help) = advice(&error);
                let location = Location::at(self.file, at);
                self.problems
                    .push(Diagnostic::error(code, location, error.to_string()).help(help));
                return;
            }
        }
        if let Some(url) = url.filter(|_| !text.contains("{url}")) {
            let message = "`url` has no effect: the text does not have `{url}`";
            self.problems.push(
                Diagnostic::warning("no-effect", Location::at(self.file, url.at), message)
                    .help("write `{url}` where the text should have it"),
            );
        }
    }
}

fn set(target: &mut usize, value: Option<At<Number<1, 10_000>>>) {
    if let Some(At {
        value: Number(number),
        at: _,
    }) = value
    {
        *target = number as usize;
    }
}

/// Why guests' packets cannot be led to an address.
fn unreachable(address: SocketAddr) -> Option<&'static str> {
    let ip = address.ip();
    let is_link_local = |ip: IpAddr| match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let is_broadcast = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    if ip.is_unspecified() {
        Some("means all addresses, not one")
    } else if ip.to_canonical() != ip {
        Some("is an IPv4 address in the form of IPv6")
    } else if ip.is_loopback() {
        Some("is reached from this host only")
    } else if ip.is_multicast() || is_broadcast(ip) {
        Some("is not the address of one host")
    } else if is_link_local(ip) {
        Some("is known on one link only")
    } else if address.port() == 0 {
        Some("has no port")
    } else {
        None
    }
}

fn advice(error: &TemplateError) -> (&'static str, &'static str) {
    match error {
        TemplateError::Empty => ("missing-value", "leave it out: there is a text of its own"),
        TemplateError::Character { .. } => (
            "bad-text",
            "write printable ASCII; a line feed, as in YAML's `|` blocks, begins a new line",
        ),
        TemplateError::Unknown { .. } => (
            "bad-placeholder",
            "there are {customer}, {relay} and {url}; write {{ and }} for braces",
        ),
        TemplateError::Brace { .. } => ("bad-placeholder", "write {{ and }} for braces"),
        TemplateError::NoUrl => ("missing-key", "write `url: https://...` beside the text"),
        TemplateError::TooLong { .. } => ("text-too-long", "tell the rest on a page: `{url}`"),
    }
}
