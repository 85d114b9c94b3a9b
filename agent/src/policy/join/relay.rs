//! Relays: there where connections are redirected, and nowhere else.

use std::net::IpAddr;

use super::Join;
use super::names::Named;
use crate::diagnostic::{Diagnostic, Location, quoted};
use crate::policy::language::ProfileMap;
use crate::policy::scalar::relay::RelayAddress;
use crate::policy::{Blocked, Relay};
use crate::yaml::read::{At, Placed};

impl Join<'_, '_> {
    /// Where the profile redirects to.
    pub(super) fn relay(
        &mut self,
        named: &Named<'_, ProfileMap>,
        blocked: Option<&At<Blocked>>,
        list: Option<&Placed<Vec<At<RelayAddress>>>>,
    ) -> Relay {
        match (blocked.map(|it| (it.value, it.at)), list) {
            (Some((Blocked::Notice, _)), Some(list)) => {
                let relay = self.one_a_family(named, &list.value);
                self.warn_of_unlisted(named, &list.value);
                relay
            }
            (None | Some((Blocked::Reject | Blocked::Drop, _)), Some(list)) => {
                let at = Location::at(named.file, list.at);
                let message = "a relay is of no use without `blocked: redirect` or `notice`";
                self.problems.push(
                    Diagnostic::error("relay-without-redirect", at, message)
                        .help("write `blocked: redirect`, or remove `relay`"),
                );
                Relay::default()
            }
            (Some((Blocked::Redirect, at)), list) => {
                let listed = list.map_or(&[][..], |list| &list.value);
                if listed.is_empty() {
                    let at = list.map_or(at, |list| list.at);
                    let message = "nothing says where connections are redirected to";
                    self.problems.push(
                        Diagnostic::error("no-relay", Location::at(named.file, at), message)
                            .help("list the relay's addresses, as in `relay: [192.0.2.25]`"),
                    );
                }
                let relay = self.one_a_family(named, listed);
                self.warn_of_missing_family(named, relay, list);
                self.warn_of_unlisted(named, listed);
                relay
            }
            (_, None) => Relay::default(),
        }
    }

    fn one_a_family(
        &mut self,
        named: &Named<'_, ProfileMap>,
        listed: &[At<RelayAddress>],
    ) -> Relay {
        let mut relay = Relay::default();
        let mut first: [Option<&At<RelayAddress>>; 2] = [None; 2];
        for address in listed {
            let RelayAddress(ip) = address.value;
            let slot = usize::from(ip.is_ipv6());
            if let Some(Some(first)) = first.get(slot) {
                let message = format!(
                    "{} is a second relay of its family",
                    quoted(&ip.to_string())
                );
                self.problems.push(
                    Diagnostic::error(
                        "second-relay",
                        Location::at(named.file, address.at),
                        message,
                    )
                    .help("keep one: what balances load or fails over belongs behind its address")
                    .related(Location::at(named.file, first.at), "the first one"),
                );
                continue;
            }
            if let Some(first) = first.get_mut(slot) {
                *first = Some(address);
            }
            match ip {
                IpAddr::V4(v4) => relay.v4 = Some(v4),
                IpAddr::V6(v6) => relay.v6 = Some(v6),
            }
        }
        relay
    }

    fn warn_of_missing_family(
        &mut self,
        named: &Named<'_, ProfileMap>,
        relay: Relay,
        list: Option<&Placed<Vec<At<RelayAddress>>>>,
    ) {
        let missing = match (relay.v4, relay.v6) {
            (Some(_), None) => "IPv6",
            (None, Some(_)) => "IPv4",
            (Some(_), Some(_)) | (None, None) => return,
        };
        let Some(list) = list else { return };
        let message = format!("the relay has no {missing} address");
        self.problems.push(
            Diagnostic::warning("relay-family", Location::at(named.file, list.at), message)
                .help(format!("connections over {missing} are rejected")),
        );
    }

    /// What is sent to the relay by its own address is to be let through as well.
    fn warn_of_unlisted(&mut self, named: &Named<'_, ProfileMap>, listed: &[At<RelayAddress>]) {
        for address in listed {
            let RelayAddress(ip) = address.value;
            let allow = named.map.allow.as_deref().unwrap_or_default();
            let lists = allow
                .iter()
                .filter_map(|name| self.names.allowlists.get(name.value.0.as_str()));
            let lists = lists.filter_map(|list| list.map.to.as_ref());
            let mut prefixes = lists.flat_map(|list| list.nets.iter());
            if prefixes.any(|prefix| prefix.contains(&ip)) {
                continue;
            }
            let message = format!(
                "no allowlist of the profile holds the relay {}",
                quoted(&ip.to_string())
            );
            self.problems.push(
                Diagnostic::warning(
                    "relay-not-allowed",
                    Location::at(named.file, address.at),
                    message,
                )
                .help("its port 25 can be reached all the same, its other guarded ports cannot"),
            );
        }
    }
}
