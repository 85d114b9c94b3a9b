//! Exemptions: terms, references, and how many of them hold at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::Join;
use super::names::Named;
use crate::diagnostic::{Diagnostic, Location, Position, Severity, quoted};
use crate::policy::language::{ExemptionMap, To};
use crate::policy::loader::Purpose;
use crate::policy::scalar::{Id, Target, Time, Told};
use crate::policy::{Destinations, Exemption, MAX_EXEMPTIONS};
use crate::yaml::read::At;

const SECONDS_A_DAY: i64 = 86_400;
/// How long an expired exemption may stay before `check` speaks of it.
const HISTORY_DAYS: i64 = 30;

/// What every exemption must have; one that lacks any of it has been reported already.
struct Complete<'f> {
    file: &'f Arc<Path>,
    at: Position,
    customer: &'f At<Id>,
    reason: &'f str,
    ticket: &'f str,
    approved_by: &'f str,
    starts: Option<&'f At<Time>>,
    expires: &'f At<Time>,
    to: &'f To,
}

impl<'f> Join<'f, '_> {
    pub(super) fn exemptions(&mut self) -> BTreeMap<String, Exemption> {
        let mut exemptions = BTreeMap::new();
        for (id, named) in &self.names.exemptions {
            let Some(exemption) = complete(named) else {
                continue;
            };
            self.judge_term(&exemption);
            if let Some(built) = self.build(&exemption) {
                exemptions.insert((*id).to_owned(), built);
            }
        }
        self.limit_live(&mut exemptions);
        exemptions
    }

    fn judge_term(&mut self, exemption: &Complete<'f>) {
        let now = self.circumstances.now;
        let Complete {
            expires,
            starts,
            file,
            ..
        } = exemption;
        let expires_at = Location::at(file, expires.at);
        let end = expires.value.0;
        if let Some(starts) = starts.filter(|starts| starts.value.0 >= end) {
            self.problems.push(
                Diagnostic::error("ends-before-start", expires_at, "it ends before it starts")
                    .help("`expires` must be later than `starts`")
                    .related(Location::at(file, starts.at), "it starts here"),
            );
            return;
        }
        let begin = match (starts, self.circumstances.purpose) {
            (Some(starts), Purpose::Check | Purpose::Run) => Some(starts.value.0),
            (None, Purpose::Check) => Some(now),
            (None, Purpose::Run) => None,
        };
        let days = i64::from(self.rules.max_exemption_days);
        if begin.is_some_and(|begin| is_longer(begin, end, days)) {
            let from = if starts.is_some() {
                "after it starts"
            } else {
                "from now"
            };
            let error = Diagnostic::error(
                "term-too-long",
                expires_at.clone(),
                format!("it ends more than {days} days {from}"),
            );
            self.problems
                .push(error.help("`rules.max_exemption_days` sets the longest term"));
        }
        if is_longer(end, now, HISTORY_DAYS) {
            let message = format!("it ended more than {HISTORY_DAYS} days ago");
            self.problems.push(
                Diagnostic::warning("long-expired", expires_at, message)
                    .help("remove it: the history of the files keeps it"),
            );
        }
    }

    /// The exemption, or `None` where its customer does not exist and it has not expired.
    fn build(&mut self, exemption: &Complete<'f>) -> Option<Exemption> {
        let expired = exemption.expires.value.0 <= self.circumstances.now;
        let customer = exemption.customer.value.0.as_str();
        let to = match exemption.to {
            To::Any => Destinations::Any,
            To::Listed(list) => self.listed(exemption.file, list, expired),
        };
        if !expired && !self.names.customers.contains_key(customer) {
            let location = Location::at(exemption.file, exemption.customer.at);
            let known = self.names.customers.keys().copied();
            let unknown = self.unknown(location, "customer", customer, known);
            self.push_timed(unknown, "left out: it opens nothing");
            return None;
        }
        Some(Exemption {
            customer: customer.to_owned(),
            reason: exemption.reason.to_owned(),
            ticket: exemption.ticket.to_owned(),
            approved_by: exemption.approved_by.to_owned(),
            starts: exemption.starts.map(|starts| starts.value.0),
            expires: exemption.expires.value.0,
            to,
            origin: super::origin(exemption.file, exemption.at),
        })
    }

    fn listed(&mut self, file: &Arc<Path>, list: &'f [At<Target>], expired: bool) -> Destinations {
        let mut nets = Vec::new();
        let mut names = Vec::new();
        for At { value, at } in list {
            match value {
                Target::Prefix(net) => nets.push((*net, *at)),
                Target::List(name) => names.push((name.as_str(), *at)),
            }
        }
        let prefixes = self.prefixes(file, nets);
        let mut allowlists = Vec::new();
        for (name, at) in self.distinct(file, names) {
            let is_known = self
                .names
                .allowlists
                .get(name)
                .is_some_and(Named::mark_used);
            if !is_known && !expired {
                let known = self.names.allowlists.keys().copied();
                let unknown = self.unknown(Location::at(file, at), "allowlist", name, known);
                self.push_timed(unknown, "left out: it opens nothing");
            }
            // What is run says the same before it ends and afterwards.
            if !is_known && (!expired || self.circumstances.purpose == Purpose::Run) {
                continue;
            }
            allowlists.push(name.to_owned());
        }
        Destinations::Listed {
            prefixes,
            allowlists,
        }
    }

    /// The kernel holds so many exemptions of a customer. With a clock that is too early, expired
    /// ones seem to hold: those that end last are the ones that do.
    fn limit_live(&mut self, exemptions: &mut BTreeMap<String, Exemption>) {
        let mut live: BTreeMap<&str, Vec<(Timestamp, &str)>> = BTreeMap::new();
        for (id, exemption) in &*exemptions {
            if exemption.expires > self.circumstances.now {
                live.entry(&exemption.customer)
                    .or_default()
                    .push((exemption.expires, id));
            }
        }
        live.retain(|_, list| list.len() > MAX_EXEMPTIONS);
        let mut surplus = Vec::new();
        for (customer, mut list) in live {
            list.sort_unstable_by(|a, b| b.cmp(a));
            for (_, id) in list.iter().skip(MAX_EXEMPTIONS) {
                surplus.push((customer.to_owned(), (*id).to_owned()));
            }
        }
        for (customer, id) in surplus {
            let Some(place) = self.names.exemptions.get(id.as_str()) else {
                continue;
            };
            let message = format!(
                "the customer {} has more than {MAX_EXEMPTIONS} exemptions that have not expired",
                quoted(&customer)
            );
            let error = Diagnostic::error("too-many-exemptions", place.location(), message)
                .help("give one exemption several destinations");
            self.push_timed(error, "left out: it opens nothing");
            exemptions.remove(&id);
        }
    }

    /// Reports what is wrong only if the clock is right.
    fn push_timed(&mut self, mut diagnostic: Diagnostic, consequence: &str) {
        if !self.complete && diagnostic.code == "unknown-name" {
            return;
        }
        match self.circumstances.purpose {
            Purpose::Check => {}
            Purpose::Run => {
                diagnostic.severity = Severity::Warning;
                diagnostic.message = format!("{} ({consequence})", diagnostic.message);
            }
        }
        self.problems.push(diagnostic);
    }
}

fn complete<'f>(named: &Named<'f, ExemptionMap>) -> Option<Complete<'f>> {
    let ExemptionMap {
        id: _,
        customer,
        reason,
        ticket,
        approved_by,
        starts,
        expires,
        to,
    } = named.map;
    Some(Complete {
        file: named.file,
        at: named.at,
        customer: customer.as_ref()?,
        reason: told(reason)?,
        ticket: told(ticket)?,
        approved_by: told(approved_by)?,
        starts: starts.as_ref(),
        expires: expires.as_ref()?,
        to: to.as_ref()?,
    })
}

fn told(text: &Option<At<Told>>) -> Option<&str> {
    text.as_ref().map(|text| text.value.0.as_str())
}

/// Whether more than so many days lie between the two.
fn is_longer(from: Timestamp, to: Timestamp, days: i64) -> bool {
    to.duration_since(from) > jiff::SignedDuration::from_secs(days * SECONDS_A_DAY)
}
