//! Every metric's name, labels and help text.

/// How a metric behaves, in Prometheus's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

impl Kind {
    /// The word for it on a metrics page.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Its name without the prefix `gate25_`.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Its help text.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
}

impl Definition {
    /// Its name as Prometheus sees it.
    pub fn full_name(&self) -> String {
        format!("gate25_{}", self.name)
    }
}

macro_rules! catalogue {
    ($($(#[$doc:meta])* $constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Definition =
                Definition {
                    name: $name,
                    kind: Kind::$kind,
                    help: $help,
                    labels: &[$($label),*],
                };
        )+

        /// Every metric.
        pub const ALL: &[Definition] = &[$($constant),+];
    };
}

catalogue! {
    BUILD_INFO = Gauge "build_info" ["version", "ebpf_toolchain"]
        "What was built; always 1.";
    ENFORCING = Gauge "enforcing" ["backend", "hook"]
        "Whether refusals are carried out by the policy; 0 while this host only observes or is bypassed, while the kernel's tables are not as the policy wants them, and while there are guests' interfaces and none goes by them.";
    PROBLEMS = Gauge "problems" []
        "Reasons why enforcement is not complete; status and /readyz tell them.";
    COMPLAINTS = Gauge "complaints" ["subject"]
        "1 for what somebody should look at although the policy is in force; status tells why.";
    GUARD_IN_PLACE = Gauge "guard_in_place" []
        "Whether the guard's nftables rules are there; 0 where the settings want none.";
    HOST_MODE = Gauge "host_mode" ["mode"]
        "1 for the mode of this host: policy, or observe (nothing is refused).";
    BYPASS_END = Gauge "bypass_end_timestamp_seconds" []
        "When the bypass of this host ends, in which nothing is refused whatever the policy says; 0 while there is none.";
    GUARD_PACKETS = Counter "guard_packets_total" ["table"]
        "Packets to guarded ports that no program had marked, by the guard's table (inet: routed or for the host; bridge). The guard stops them, unless this host only observes. If it rises while every program is in place, somebody takes the guard's bit off the mark.";
    POLICY_SOURCE = Gauge "policy_source" ["source"]
        "1 for where the running policy comes from: files, last_known_good (the set last accepted), kernel (an earlier start), builtin (everything refused), undone (the set before a change that was undone).";
    BACKEND_INFO = Gauge "backend_info" ["backend", "reason"]
        "The enforcement backend and why it was chosen; always 1.";
    BACKEND_FEATURE = Gauge "backend_feature" ["feature"]
        "1 for what the enforcement backend can do on this kernel, 0 for what it cannot (status says what is done instead).";
    WORKLOADS = Gauge "workloads" ["kind", "state"]
        "Workloads by state: enforced, unassigned (no customer's), conflict (several customers'), failed (without a program).";
    WORKLOAD_ENFORCEMENT_DELAY = Histogram "workload_enforcement_delay_seconds" []
        "Time from the announcement of a new interface or root of cgroups to its programs in place.";
    CONNECTIONS = Counter "connections_total" ["verdict", "reason", "family"]
        "Connection attempts to guarded ports (SYN without ACK, retransmissions included; a container's refused connects).";
    PACKETS = Counter "packets_total" ["verdict", "family"]
        "Packets to guarded ports, large buffers counted by their segments.";
    BYTES = Counter "bytes_total" ["verdict", "family"]
        "Bytes of packets to guarded ports, headers included.";
    MALFORMED = Counter "malformed_total" ["kind"]
        "Packets judged by their form, or without their policy; refused except where only observing.";
    REDIRECTS_REFUSED = Counter "redirects_refused_total" ["reason"]
        "Packets and connects that were to be led to a relay or to the notice and were refused instead: unknown_connection (of none that is known), port_in_use (for another destination), too_many (of one interface), not_listening (the notice is not told), tables (the policy has just changed, or memory is short). Counted under redirect or notice as well.";
    TUNNEL_PACKETS = Counter "tunnel_packets_total" ["protocol"]
        "Packets of IP protocols 4, 41 and 47, whose inside is not seen; they pass.";
    RETURN_PACKETS = Counter "return_packets_total" ["verdict", "family"]
        "Packets that came back to guests from guarded ports and acknowledge something, where `block_return` is on: allow, observe (would be dropped), drop.";
    CUSTOMER_CONNECTIONS = Counter "customer_connections_total" ["customer", "verdict"]
        "Connection attempts of customers with workloads here, from the first that no allowlist covered.";
    CUSTOMER_DISTINCT_DESTINATIONS = Gauge "customer_distinct_destinations" ["customer"]
        "Estimate of distinct destinations of attempts that no allowlist covered, within the current window of an hour.";
    CUSTOMER_RETURN_PACKETS = Counter "customer_return_packets_total" ["customer", "verdict"]
        "The same of customers with workloads here; only on /metrics/customers.";
    CUSTOMER_SERIES_LIMIT = Gauge "customer_series_limit" []
        "Customers with series of their own on this page at most.";
    CUSTOMER_SERIES_SUPPRESSED = Gauge "customer_series_suppressed" []
        "Customers left out of this page by the limit; /metrics/customers has them all.";
    EXEMPTION_EXPIRY = Gauge "exemption_expiry_timestamp_seconds" ["customer", "exemption"]
        "When an exemption of a customer with workloads here ends.";
    POLICY_CUSTOMERS = Gauge "policy_customers" []
        "Customers in the running policy.";
    POLICY_EXEMPTIONS = Gauge "policy_exemptions" ["state"]
        "Exemptions in the running policy by state: active, scheduled, expired.";
    POLICY_GENERATION = Gauge "policy_generation" []
        "Policies put into the kernel since the start.";
    POLICY_HASH = Gauge "policy_hash" []
        "First 48 bits of the SHA-256 of the running policy's files.";
    POLICY_APPLY_DURATION = Histogram "policy_apply_duration_seconds" []
        "Time to put an accepted policy into the kernel.";
    TRIAL_END = Gauge "policy_trial_end_timestamp_seconds" []
        "When the policy on trial is undone unless somebody confirms; 0 while none is on trial.";
    FILES_HELD = Gauge "policy_files_held" []
        "1 while the policy's files are not in force because what they say was undone.";
    RELOAD_SUCCESSFUL = Gauge "config_last_reload_successful" []
        "Whether the last attempt to load the policy's files succeeded.";
    RELOAD_SUCCESS_TIMESTAMP = Gauge "config_last_reload_success_timestamp_seconds" []
        "When an attempt to load the policy's files last succeeded; 0 if none has.";
    RELOADS = Counter "config_reloads_total" []
        "Attempts to load changed policy files.";
    RELOAD_FAILURES = Counter "config_reload_failures_total" []
        "Attempts that were refused.";
    MAP_ENTRIES = Gauge "map_entries" ["map"]
        "Entries of a kernel table.";
    MAP_MAX_ENTRIES = Gauge "map_max_entries" ["map"]
        "Entries that a kernel table can hold.";
    EVENTS_LOST = Counter "events_lost_total" []
        "Reports of attempts that found the ring buffer full.";
    UNTRACKED = Counter "untracked_connections_total" []
        "Attempts of customers that had no counters of their own; host totals include them.";
    DRIFT_REPAIRS = Counter "drift_repairs_total" ["backend"]
        "Programs, pins and rules put back after somebody else removed or displaced them.";
    NOTICE_CONNECTIONS = Counter "notice_connections_total" ["result"]
        "Connections to the SMTP notice: answered (with the notice), unanswered (ended before they tried to send), limited (reset at once), timeout (cut off), error (broken, or closed for what they said).";
    NOTICE_REFUSALS = Counter "notice_refusals_total" []
        "Times that the SMTP notice was told.";
    NOTICE_OPEN = Gauge "notice_open_connections" []
        "Connections to the SMTP notice that are open.";
    NOTICE_LISTENERS = Gauge "notice_listeners" ["state"]
        "Addresses of the SMTP notice by state: listening, waiting (not bound).";
    COVERAGE_FINDINGS = Gauge "coverage_findings" ["kind"]
        "What is wrong with the coverage of workloads by kind, as the kernel tells it (gate25 doctor names each); looked at after changes of interfaces and at every rescan.";
    COVERAGE_LOOKED = Gauge "coverage_last_look_timestamp_seconds" []
        "When the kernel was last asked what covers workloads; 0 before the first time.";
    SCRAPE_COLLECTOR_DURATION = Gauge "scrape_collector_duration_seconds" ["collector"]
        "Time that a part of this page took.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{ALL, Kind};

    #[test]
    fn names_tell_counters_and_are_unique() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            let is_total = metric.name.ends_with("_total");
            assert_eq!(metric.kind == Kind::Counter, is_total, "{}", metric.name);
        }
    }
}
