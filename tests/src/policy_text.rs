//! Policy files for tests.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// A policy being put together: the relays, the profile `default`, and what is added.
#[derive(Debug, Clone)]
pub struct PolicyText {
    profiles: String,
    customers: String,
    exemptions: String,
}

impl Default for PolicyText {
    fn default() -> Self {
        Self::with_default("enforce", "reject")
    }
}

impl PolicyText {
    /// A policy whose profile `default` has this mode and refusal.
    #[must_use]
    pub fn with_default(mode: &str, blocked: &str) -> Self {
        let empty = Self {
            profiles: String::new(),
            customers: String::new(),
            exemptions: String::new(),
        };
        empty.profile("default", mode, blocked)
    }

    /// Adds a profile that allows the relays.
    #[must_use]
    pub fn profile(mut self, name: &str, mode: &str, blocked: &str) -> Self {
        self.profiles.push_str(&format!(
            "  - {{name: {name}, mode: {mode}, blocked: {blocked}, allow: [relays]}}\n"
        ));
        self
    }

    /// Adds a profile that redirects to the relays, and allows them.
    #[must_use]
    pub fn redirecting(mut self, name: &str) -> Self {
        self.profiles.push_str(&format!(
            "  - {{name: {name}, blocked: redirect, relay: [192.0.2.25, \"2001:db8:25::25\"], allow: [relays]}}\n"
        ));
        self
    }

    /// Adds a profile that enforces by telling the notice, which names the relay of
    /// [`Hosting`](crate::Hosting).
    #[must_use]
    pub fn noticing(mut self, name: &str) -> Self {
        self.profiles.push_str(&format!(
            "  - {{name: {name}, blocked: notice, relay: [192.0.2.25, \"2001:db8:25::25\"], allow: [relays]}}\n"
        ));
        self
    }

    /// Adds a customer with the profile `default`.
    #[must_use]
    pub fn customer(self, id: &str, pattern: &str) -> Self {
        self.customer_of("default", id, pattern)
    }

    /// Adds a customer with a profile.
    #[must_use]
    pub fn customer_of(mut self, profile: &str, id: &str, pattern: &str) -> Self {
        self.customers.push_str(&format!(
            "  - id: {id}\n    profile: {profile}\n    workloads: [{{interface: {pattern:?}}}]\n"
        ));
        self
    }

    /// Adds a customer with the profile `default` who owns cgroups: a pattern of paths below the
    /// cgroup2 mount.
    #[must_use]
    pub fn container(self, id: &str, pattern: &str) -> Self {
        self.container_of("default", id, pattern)
    }

    /// The same with a profile.
    #[must_use]
    pub fn container_of(mut self, profile: &str, id: &str, pattern: &str) -> Self {
        self.customers.push_str(&format!(
            "  - id: {id}\n    profile: {profile}\n    workloads: [{{cgroup: {pattern:?}}}]\n"
        ));
        self
    }

    /// Adds an exemption to everywhere that has begun and lasts.
    #[must_use]
    pub fn exempt(self, customer: &str) -> Self {
        let expires = Timestamp::now() + SignedDuration::from_hours(24);
        self.exempt_until(customer, expires)
    }

    /// Adds an exemption to everywhere until a moment.
    #[must_use]
    pub fn exempt_until(mut self, customer: &str, expires: Timestamp) -> Self {
        self.exemption(customer, &format!("    expires: {expires}\n"));
        self
    }

    /// Adds an exemption to everywhere from a moment on.
    #[must_use]
    pub fn exempt_from(mut self, customer: &str, starts: Timestamp) -> Self {
        let expires = starts + SignedDuration::from_hours(24);
        let times = format!("    starts: {starts}\n    expires: {expires}\n");
        self.exemption(customer, &times);
        self
    }

    fn exemption(&mut self, customer: &str, times: &str) {
        self.exemptions.push_str(&format!(
            "  - id: {customer}-exemption\n    customer: {customer}\n    reason: a test\n    ticket: NOC-1\n    approved_by: noc\n{times}    to: any\n"
        ));
    }

    /// The file.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            profiles,
            customers,
            exemptions,
        } = self;
        let mut text = format!(
            "schema: 1\nallowlists:\n  - {{name: relays, to: [192.0.2.25, \"2001:db8:25::25\"]}}\nprofiles:\n{profiles}"
        );
        for (section, entries) in [("customers", customers), ("exemptions", exemptions)] {
            if !entries.is_empty() {
                text.push_str(&format!("{section}:\n{entries}"));
            }
        }
        text
    }
}

/// A file of customers `g-FIRST` and on: each has ten prefixes that are nobody else's and owns the
/// interfaces of the guest of its number plus 900,000, such as `tap900017i0`.
#[must_use]
pub fn customers_text(first: usize, count: usize) -> String {
    let (mut lists, mut customers) = (String::new(), String::new());
    for id in first..first + count {
        let prefixes: Vec<String> = (0..10)
            .map(|n| format!("\"2001:db8:{id:x}:{n:x}::/64\""))
            .collect();
        lists.push_str(&format!(
            "  - {{name: l-{id}, to: [{}]}}\n",
            prefixes.join(", ")
        ));
        customers.push_str(&format!(
            "  - {{id: g-{id}, allow: [l-{id}], workloads: [{{interface: \"tap9{id:05}i*\"}}]}}\n"
        ));
    }
    format!("schema: 1\nallowlists:\n{lists}customers:\n{customers}")
}

/// The moment in so long a time.
#[must_use]
pub fn after(wait: Duration) -> Timestamp {
    Timestamp::now() + SignedDuration::try_from(wait).unwrap_or(SignedDuration::ZERO)
}
