//! Why a connection passes or does not. Pure.
//!
//! The verdict is the kernel's own function over the tables that the agent would write; the chain
//! around it is description and decides nothing.

pub mod report;
pub(crate) mod tables;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use gate25_common::abi::CustomerId;
use gate25_common::address::{Address, Family};
use gate25_common::decide::{
    CUSTOMER_SET, Decision, HostMode, Reason, Route, Subject, Verdict, decide,
};
use gate25_common::packet::Form;
use ipnet::IpNet;
use jiff::Timestamp;

use crate::compile::{CompileError, Image, Prefix, compile};
use crate::dataplane::{CapacityError, MapImage};
use crate::diagnostic::quoted;
use crate::policy::{
    ANY, Allowlist, Customer, DEFAULT_PROFILE, Destinations, Exemption, Mode, Origin, Policy,
    Profile,
};
use crate::settings::{Enforcement, Settings};
use report::{
    AllowlistStep, Asked, Chain, CustomerStep, Entry, EntryKind, ExemptionState, ExemptionStep,
    Explanation, HostStep, Of, Outcome, Place, ProfileStep,
};
use tables::TablesAt;

/// The tables' clock is the wall clock here, since 1970.
const WALL_MINUS_BOOT: i64 = 0;

/// A connection to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// A customer's id, or else an interface's name or the path of a cgroup.
    pub subject: String,
    /// Where it goes.
    pub destination: IpAddr,
    /// The destination's port; `None` means the first that is guarded.
    pub port: Option<u16>,
    /// When.
    pub at: Timestamp,
}

/// Where the connection is made.
#[derive(Debug, Clone, Copy)]
pub struct Host<'h> {
    /// What `hosts:` is matched against.
    pub name: &'h str,
    /// The host's settings.
    pub settings: &'h Settings,
    /// Names of the interfaces that exist: they may be asked about whatever they are called.
    pub interfaces: &'h BTreeSet<String>,
    /// Where the policy's files are.
    pub directory: &'h Path,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExplainError {
    /// The word is neither a customer nor a workload.
    #[error(
        "{} is no customer, and neither interface nor cgroup by its name{}",
        quoted(word),
        meant(close)
    )]
    Unknown {
        /// The word.
        word: String,
        /// Names that may have been meant.
        close: Vec<String>,
    },
    /// The word has the form of a path, but not of a cgroup's.
    #[error("{} is no path of a cgroup: leave out empty components, `.` and `..`", quoted(.0))]
    Path(String),
    /// The kernel's clock, nanoseconds in 64 bits from 1970 on, does not reach the time.
    #[error("{0} is not between 1970 and 2554")]
    Time(Timestamp),
    /// The policy has no tables.
    #[error("the policy has no form as tables")]
    Compile(#[from] CompileError),
    /// The policy does not fit the kernel's tables.
    #[error("the policy does not fit the kernel's tables")]
    Capacity(#[from] CapacityError),
}

/// Judges the connection by the tables that `policy` makes at the question's time, and says what
/// was looked at.
///
/// # Errors
///
/// [`ExplainError`].
pub fn explain(
    policy: &Policy,
    host: &Host<'_>,
    question: &Question,
) -> Result<Explanation, ExplainError> {
    let Question {
        subject,
        destination,
        port,
        at,
    } = question;
    let Ok(now) = u64::try_from(at.as_nanosecond()) else {
        return Err(ExplainError::Time(*at));
    };
    let (workload, owner) = workload::resolve(policy, host, subject)?;
    let address = Address::from(*destination);
    let guarded = &host.settings.guarded_ports;
    let port = port.or(guarded.first().copied()).unwrap_or_default();
    let asked = Asked {
        subject: subject.clone(),
        destination: *destination,
        judged_as: address.into(),
        port,
        at: *at,
    };
    let (chain, decision) = match owner {
        None => (None, Outcome::NotAWorkload),
        Some(_) if !guarded.contains(&port) => {
            let guarded_ports = guarded.clone();
            (None, Outcome::PortNotGuarded { guarded_ports })
        }
        Some(owner) => {
            let image = compile(policy, *at)?;
            let case = Case {
                policy,
                host,
                image: &image,
                owner,
                destination: *destination,
                address,
                port,
                at: *at,
            };
            (case.chain(), case.judge(now)?)
        }
    };
    Ok(Explanation {
        question: asked,
        workload,
        chain,
        decision,
    })
}

/// A connection of a known owner to a guarded port.
struct Case<'c> {
    policy: &'c Policy,
    host: &'c Host<'c>,
    image: &'c Image,
    owner: CustomerId,
    /// As the headers of its packets say it.
    destination: IpAddr,
    address: Address,
    port: u16,
    at: Timestamp,
}

impl Case<'_> {
    fn judge(&self, now: u64) -> Result<Outcome, ExplainError> {
        let (interfaces, cgroups) = (BTreeMap::new(), BTreeMap::new());
        let notice = &self.host.settings.notice.listen;
        let tables = MapImage::new(self.image, WALL_MINUS_BOOT, notice, interfaces, cgroups)?;
        let tables = TablesAt::new(&tables, self.owner, now);
        let mode = match self.host.settings.enforcement {
            Enforcement::Policy => HostMode::Policy,
            Enforcement::Observe => HostMode::Observe,
        };
        let subject = Subject::Guarded {
            destination: self.address,
            port: self.port.to_be_bytes(),
            route: Route::Direct,
            family: self.family(),
            form: Form::Plain,
        };
        let decision = decide(&tables, mode, &subject);
        Ok(Outcome::Judged {
            verdict: decision.verdict.as_str(),
            reason: decision.reason.as_str(),
            entry: self.entry(&decision),
            redirected_to: match decision.verdict {
                Verdict::Redirect | Verdict::Notice => self.led_to(),
                Verdict::Allow
                | Verdict::Observe
                | Verdict::Reject
                | Verdict::Drop
                | Verdict::Throttle => None,
            },
        })
    }

    /// The family of its packets: a connection to a mapped address is one over IPv4.
    fn family(&self) -> Family {
        match self.destination.to_canonical() {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Where its customer's connections are led.
    fn led_to(&self) -> Option<SocketAddr> {
        let customer = self.image.customers.get(&self.owner)?;
        customer.led_to(self.family(), &self.host.settings.notice.listen)
    }

    /// The entry that decided, by the number that the kernel would report.
    fn entry(&self, decision: &Decision) -> Option<Entry> {
        let customer = self.image.customers.get(&decision.customer)?;
        let (kind, name, matched, origin) = match decision.reason {
            Reason::Allowlist => {
                let set = if decision.entry & CUSTOMER_SET == 0 {
                    customer.profile_set
                } else {
                    customer.customer_set
                };
                let sources = &self.image.sets.get(&set)?.sources;
                let source = sources.get(usize::from(decision.entry & !CUSTOMER_SET))?;
                let name = source.as_ref()?;
                let Allowlist { to, origin, .. } = self.policy.allowlists.get(name)?;
                (EntryKind::Allowlist, name, self.matched(to.iter()), origin)
            }
            Reason::Exemption => {
                let name = &customer.exemptions.get(usize::from(decision.entry))?.id;
                let exemption = self.policy.exemptions.get(name)?;
                let matched = self.matched_destinations(&exemption.to);
                (EntryKind::Exemption, name, matched, &exemption.origin)
            }
            Reason::Profile | Reason::Unassigned => {
                let (name, profile) = self.profile()?;
                (EntryKind::Profile, name, None, &profile.origin)
            }
            // Only a packet's form, its rate or an operator can bring these about.
            Reason::Throttled | Reason::Quarantine | Reason::Malformed => return None,
        };
        Some(Entry {
            kind,
            name: name.clone(),
            matched,
            place: self.place(origin),
        })
    }

    fn chain(&self) -> Option<Chain> {
        let id = &self.image.customers.get(&self.owner)?.id;
        let customer = self.customer();
        let (profile_name, profile) = self.profile()?;
        let own = customer.map_or(&[][..], |customer| &customer.allow);
        let lists = self.allowlists(&profile.allow, Of::Profile);
        Some(Chain {
            customer: CustomerStep {
                id: id.clone(),
                name: customer.map(|customer| customer.name.clone()),
                place: customer.map(|customer| self.place(&customer.origin)),
            },
            allowlists: lists.chain(self.allowlists(own, Of::Customer)).collect(),
            exemptions: self
                .policy
                .exemptions
                .iter()
                .filter(|(_, exemption)| customer.is_some() && exemption.customer == *id)
                .map(|(id, exemption)| self.exemption(id, exemption))
                .collect(),
            profile: ProfileStep {
                name: profile_name.clone(),
                default: profile_name == DEFAULT_PROFILE,
                mode: match profile.mode {
                    Mode::Enforce => "enforce",
                    Mode::Observe => "observe",
                },
                blocked: profile.blocked.as_str(),
                relay: profile.relay.addresses().collect(),
                place: self.place(&profile.origin),
            },
            host: HostStep {
                name: self.host.name.to_owned(),
                enforcement: self.host.settings.enforcement,
            },
        })
    }

    /// The owner in the policy; `None` for the built-in customer.
    fn customer(&self) -> Option<&Customer> {
        let id = &self.image.customers.get(&self.owner)?.id;
        self.policy.customers.get(id)
    }

    fn profile(&self) -> Option<(&String, &Profile)> {
        let customer = self.customer();
        let name = customer.map_or(DEFAULT_PROFILE, |customer| &customer.profile);
        self.policy.profiles.get_key_value(name)
    }

    fn allowlists(&self, names: &[String], of: Of) -> impl Iterator<Item = AllowlistStep> {
        names.iter().filter_map(move |name| {
            let Allowlist { to, origin, .. } = self.policy.allowlists.get(name)?;
            Some(AllowlistStep {
                name: name.clone(),
                of,
                matched: self.matched(to.iter()),
                place: self.place(origin),
            })
        })
    }

    fn exemption(&self, id: &str, exemption: &Exemption) -> ExemptionStep {
        let Exemption {
            customer: _,
            reason: _,
            ticket,
            approved_by: _,
            starts,
            expires,
            to,
            origin,
        } = exemption;
        let state = if *expires <= self.at {
            ExemptionState::Expired
        } else if starts.is_some_and(|starts| starts > self.at) {
            ExemptionState::NotStarted
        } else {
            ExemptionState::Active
        };
        ExemptionStep {
            id: id.to_owned(),
            state,
            starts: *starts,
            expires: *expires,
            ticket: ticket.clone(),
            matched: self.matched_destinations(to),
            place: self.place(origin),
        }
    }

    fn matched_destinations(&self, destinations: &Destinations) -> Option<String> {
        match destinations {
            Destinations::Any => Some(ANY.to_owned()),
            Destinations::Listed {
                prefixes,
                allowlists,
            } => {
                let lists = allowlists
                    .iter()
                    .filter_map(|name| self.policy.allowlists.get(name))
                    .flat_map(|list| list.to.iter());
                self.matched(prefixes.iter().chain(lists))
            }
        }
    }

    /// The longest prefix that holds the destination.
    fn matched<'n>(&self, nets: impl IntoIterator<Item = &'n IpNet>) -> Option<String> {
        nets.into_iter()
            .map(|net| (Prefix::new(*net, 0), net))
            .filter(|(prefix, _)| prefix.contains(&self.address))
            .max_by_key(|(prefix, _)| prefix.length)
            .map(|(_, net)| net.to_string())
    }

    fn place(&self, origin: &Origin) -> Place {
        Place::new(self.host.directory, origin)
    }
}

fn meant(close: &[String]) -> String {
    if close.is_empty() {
        return String::new();
    }
    let names: Vec<_> = close.iter().map(|name| quoted(name)).collect();
    format!("; did you mean {}?", names.join(", "))
}
