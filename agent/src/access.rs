//! Who may newly send where, and who no longer, if one policy takes another's place. Pure.
//!
//! Compared are the tables that the policies make, not their words: what an allowlist, a profile or
//! an exemption opens is the same to whoever may send there. A customer that one of the two does not
//! know is compared with the built-in one, which owns his workloads there.

mod ranges;

use std::collections::{BTreeMap, BTreeSet};

use gate25_common::abi::{CustomerId, SetId};
use gate25_common::address::{Address, Family};
use jiff::Timestamp;
use serde::Serialize;

use crate::compile::{CustomerImage, Image};
use crate::policy::Mode;
use ranges::Ranges;

/// What changes for customers to whom the same happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shift {
    /// Their ids, sorted; `unassigned` stands for workloads that nobody claims.
    pub customers: Vec<String>,
    /// Where they may newly send.
    pub opened: Vec<Grant>,
    /// Where they may no longer send.
    pub closed: Vec<Grant>,
}

/// Destinations for a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Grant {
    /// From when on; now, if nothing is said.
    pub from: Option<Timestamp>,
    /// Until when; for good, if nothing is said.
    pub until: Option<Timestamp>,
    /// `any` alone, or prefixes.
    pub to: Vec<String>,
    /// Prefixes for which nothing changes, where `to` says `any`.
    pub except: Vec<String>,
}

/// What changes for whom as of `now`, the customers in their order.
#[must_use]
pub fn shifts(before: &Image, after: &Image, now: Timestamp) -> Vec<Shift> {
    let numbers: BTreeSet<&CustomerId> = before
        .customers
        .keys()
        .chain(after.customers.keys())
        .collect();
    let (mut earlier, mut later) = (Side::new(before), Side::new(after));
    let mut shifts: BTreeMap<(Vec<Grant>, Vec<Grant>), Vec<String>> = BTreeMap::new();
    for number in numbers {
        let sides = (earlier.customer(*number), later.customer(*number));
        let (Some(was), Some(is)) = sides else {
            continue;
        };
        if opens_alike(was, is) {
            continue;
        }
        let id = match (before.customers.get(number), after.customers.get(number)) {
            (_, Some(customer)) | (Some(customer), None) => customer.id.clone(),
            (None, None) => continue,
        };
        let (mut opened, mut closed) = (Spans::default(), Spans::default());
        for (from, until) in moments(was, is, now) {
            let at = from.unwrap_or(now);
            let (was, is) = (earlier.reach(was, at), later.reach(is, at));
            opened.add((from, until), is.without(&was));
            closed.add((from, until), was.without(&is));
        }
        let shift = (opened.grants(), closed.grants());
        if shift != (Vec::new(), Vec::new()) {
            shifts.entry(shift).or_default().push(id);
        }
    }
    let mut shifts: Vec<Shift> = shifts
        .into_iter()
        .map(|((opened, closed), mut customers)| {
            customers.sort_unstable();
            Shift {
                customers,
                opened,
                closed,
            }
        })
        .collect();
    shifts.sort_by(|a, b| a.customers.cmp(&b.customers));
    shifts
}

/// Whether the two open the same by the same sets: most customers of most changes.
fn opens_alike(was: &CustomerImage, is: &CustomerImage) -> bool {
    let named = CustomerImage {
        id: was.id.clone(),
        ..is.clone()
    };
    *was == named
}

/// Spans of time in which neither side changes, the first from now on.
fn moments(
    was: &CustomerImage,
    is: &CustomerImage,
    now: Timestamp,
) -> Vec<(Option<Timestamp>, Option<Timestamp>)> {
    let exemptions = was.exemptions.iter().chain(&is.exemptions);
    let turns: BTreeSet<Timestamp> = exemptions
        .flat_map(|one| [one.starts, Some(one.expires)])
        .flatten()
        .filter(|turn| *turn > now)
        .collect();
    let begins = std::iter::once(None).chain(turns.iter().copied().map(Some));
    let ends = turns.iter().copied().map(Some).chain([None]);
    begins.zip(ends).collect()
}

/// One of the policies, its sets as ranges.
struct Side<'i> {
    image: &'i Image,
    sets: BTreeMap<SetId, Ranges>,
}

impl<'i> Side<'i> {
    fn new(image: &'i Image) -> Self {
        Self {
            image,
            sets: BTreeMap::new(),
        }
    }

    /// Who answers for the customer's workloads.
    fn customer(&self, number: CustomerId) -> Option<&'i CustomerImage> {
        let customers = &self.image.customers;
        customers
            .get(&number)
            .or_else(|| customers.get(&CustomerId::UNASSIGNED))
    }

    /// Where the customer's packets pass at a moment.
    fn reach(&mut self, customer: &CustomerImage, at: Timestamp) -> Ranges {
        match customer.mode {
            Mode::Enforce => {}
            Mode::Observe => return Ranges::all(),
        }
        let mut reach = self.set(customer.profile_set).clone();
        reach.add(self.set(customer.customer_set));
        for exemption in &customer.exemptions {
            let begun = exemption.starts.is_none_or(|starts| starts <= at);
            if begun && at < exemption.expires {
                reach.add(self.set(exemption.set));
            }
        }
        // What goes to the relay itself passes where others' is led there.
        for family in Family::ALL {
            if let Some(relay) = customer.led_to(family, &[]) {
                let relay = u128::from_be_bytes(Address::from(relay.ip()).octets());
                reach.add(&Ranges::of([(relay, relay)]));
            }
        }
        reach
    }

    fn set(&mut self, set: SetId) -> &Ranges {
        let image = self.image;
        self.sets.entry(set).or_insert_with(|| match set {
            SetId::NONE => Ranges::default(),
            SetId::ANY => Ranges::all(),
            set => {
                let prefixes = image.sets.get(&set).map(|set| &set.prefixes[..]);
                Ranges::of(prefixes.unwrap_or_default().iter().map(|prefix| {
                    let first = u128::from_be_bytes(prefix.address.octets());
                    let rest = u128::MAX.checked_shr(u32::from(prefix.length));
                    (first, first | rest.unwrap_or(0))
                }))
            }
        })
    }
}

type Span = (Option<Timestamp>, Option<Timestamp>);

/// What changes, span by span.
#[derive(Default)]
struct Spans(Vec<(Span, Ranges)>);

impl Spans {
    fn add(&mut self, span: Span, ranges: Ranges) {
        if !ranges.is_empty() {
            self.0.push((span, ranges));
        }
    }

    /// The same by destinations: each with the whole time for which it changes.
    fn grants(&self) -> Vec<Grant> {
        let mut by_span: BTreeMap<Span, Ranges> = BTreeMap::new();
        let all = self.0.iter().map(|(_, ranges)| ranges);
        for piece in Ranges::pieces(all) {
            let spans = self.0.iter().filter(|(_, ranges)| ranges.hold(piece));
            let mut whole: Vec<Span> = Vec::new();
            for ((from, until), _) in spans {
                match whole.last_mut() {
                    Some(last) if last.1.is_some() && last.1 == *from => last.1 = *until,
                    Some(_) | None => whole.push((*from, *until)),
                }
            }
            for span in whole {
                by_span.entry(span).or_default().add(&Ranges::of([piece]));
            }
        }
        by_span
            .into_iter()
            .map(|((from, until), ranges)| {
                let (to, except) = ranges.words();
                Grant {
                    from,
                    until,
                    to,
                    except,
                }
            })
            .collect()
    }
}
