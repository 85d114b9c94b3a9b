//! What the agent counted, against what was sent and what arrived.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::source::{Arrived, Totals};
use crate::{Agent, Metrics, NetNs};

const CONNECTIONS: &str = "gate25_connections_total";
const PACKETS: &str = "gate25_packets_total";
const CUSTOMER_CONNECTIONS: &str = "gate25_customer_connections_total";
const MALFORMED: &str = "gate25_malformed_total";
const UNTRACKED: &str = "gate25_untracked_connections_total";
/// Verdicts under which nothing goes on to where it was sent.
const REFUSING: [&str; 5] = ["reject", "drop", "redirect", "notice", "throttle"];
const PASSING: [&str; 2] = ["allow", "observe"];

/// How far the agent's counters must agree with what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accounts {
    /// Each customer's, and the host's.
    Customers,
    /// The host's: workloads have changed hands meanwhile.
    Host,
    /// They may have counted less: they have begun anew meanwhile, or the guard may have refused some.
    AtMost,
    /// The same, since the guard refused as well: it must have met some.
    Guarded,
}

/// What one owner's sources have sent, and what of it arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) sent: Totals,
    pub(super) arrived: Arrived,
}

/// The counters at one moment.
#[derive(Debug)]
pub(super) struct Books {
    host: Metrics,
    customers: Metrics,
    /// Packets that the guard has stopped.
    stopped: u64,
    /// Packets that the kernel has lost because a queue of received ones was full.
    lost: u64,
}

impl Books {
    pub(super) fn open(agent: &Agent, host: &NetNs) -> anyhow::Result<Self> {
        let (status, page) = agent.get("/metrics/customers")?;
        if status != 200 {
            bail!("/metrics/customers: status {status}: {page}");
        }
        Ok(Self {
            host: agent.metrics()?,
            customers: Metrics::parse(&page)?,
            stopped: stopped(host)?,
            lost: lost()?,
        })
    }

    /// What does not add up between `self`, which was read before, and now.
    pub(super) fn differences(
        &self,
        now: &Self,
        accounts: Accounts,
        owners: &BTreeMap<String, Account>,
    ) -> Vec<String> {
        let lost = now.lost - self.lost;
        let leeway = |sent: &Totals| Leeway {
            accounts,
            lost,
            repeated: sent.late,
        };
        let mut wrong = Vec::new();
        let mut sum = Account::default();
        for (owner, account) in owners {
            let Account { sent, arrived } = *account;
            sum.sent.sum(sent);
            sum.arrived.sum(arrived);
            if accounts == Accounts::Customers {
                let counted =
                    |verdicts: &[&str]| self.more(now, CUSTOMER_CONNECTIONS, Some(owner), verdicts);
                wrong.extend(compare(owner, leeway(&sent), account, counted));
            }
        }
        let counted = |verdicts: &[&str]| self.more(now, CONNECTIONS, None, verdicts);
        wrong.extend(compare("the host", leeway(&sum.sent), &sum, counted));
        // Attempts and all else, but not by customer.
        let refused = self.more(now, PACKETS, None, &REFUSING);
        wrong.extend(mismatch(
            "the host: packets refused and arrived",
            leeway(&sum.sent),
            [sum.sent.forbidden_packets(), refused + sum.arrived.leaked()],
        ));
        if accounts == Accounts::Guarded && now.stopped <= self.stopped {
            wrong.push("the guard met no packet".to_owned());
        }
        for name in [MALFORMED, UNTRACKED] {
            let more = increase(&self.host, &now.host, name, &[]);
            if more != 0 {
                wrong.push(format!("{name} rose by {more}"));
            }
        }
        wrong
    }

    fn more(&self, now: &Self, name: &str, customer: Option<&str>, verdicts: &[&str]) -> u64 {
        let pages = match customer {
            Some(_) => (&self.customers, &now.customers),
            None => (&self.host, &now.host),
        };
        let each = verdicts.iter().map(|verdict| {
            let mut labels = vec![("verdict", *verdict)];
            labels.extend(customer.map(|customer| ("customer", customer)));
            increase(pages.0, pages.1, name, &labels)
        });
        each.sum()
    }
}

/// How far what is accounted for may be from what was sent.
#[derive(Clone, Copy)]
struct Leeway {
    accounts: Accounts,
    /// Packets that the kernel says it lost on its own: as many may be missing.
    lost: u64,
    /// Packets that senders' kernels may have sent again without an answer in time: as many may be too many.
    repeated: u64,
}

/// Sent is refused plus arrived, to the packet, but for the leeway.
fn compare(
    whose: &str,
    leeway: Leeway,
    account: &Account,
    counted: impl Fn(&[&str]) -> u64,
) -> Vec<String> {
    let Account { sent, arrived } = account;
    let (refused, passed) = (counted(&REFUSING), counted(&PASSING));
    let forbidden = refused + arrived.forbidden_syns;
    let passing = sent.allowed + arrived.forbidden_syns;
    let must = sent.allowed + sent.free;
    [
        ("refused and arrived", [sent.forbidden, forbidden]),
        ("counted as passed", [passing, passed]),
        ("allowed and arrived", [must, arrived.allowed_syns]),
    ]
    .into_iter()
    .filter_map(|(what, pair)| mismatch(&format!("{whose}: {what}"), leeway, pair))
    .collect()
}

fn mismatch(what: &str, leeway: Leeway, [sent, accounted]: [u64; 2]) -> Option<String> {
    let Leeway {
        accounts,
        lost,
        repeated,
    } = leeway;
    let may_miss = match accounts {
        Accounts::Customers | Accounts::Host => lost,
        Accounts::AtMost | Accounts::Guarded => sent,
    };
    let adds_up = (sent.saturating_sub(may_miss)..=sent + repeated).contains(&accounted);
    (!adds_up).then(|| {
        format!(
            "{what}: sent {sent}, accounted for {accounted} (the kernel lost {lost}, \
             {repeated} may have been sent again)"
        )
    })
}

/// By how much the sum of the series with these labels has risen; one that is not there is 0.
fn increase(before: &Metrics, now: &Metrics, name: &str, labels: &[(&str, &str)]) -> u64 {
    let value = |page: &Metrics| page.sum(name, labels).unwrap_or_default();
    (value(now) - value(before)) as u64
}

/// What the guard's tables have counted; 0 where there are none.
fn stopped(host: &NetNs) -> anyhow::Result<u64> {
    let listed = host.exec("nft", &["-j", "list", "counters"])?;
    let listed: Value = serde_json::from_str(&listed).context("read what nft says")?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let ours = objects
        .map(|object| &object["counter"])
        .filter(|counter| counter["table"] == "gate25_guard" && counter["name"] == "unmarked");
    let packets = ours.map(|counter| counter["packets"].as_u64());
    packets
        .sum::<Option<u64>>()
        .context("a counter of the guard's without packets")
}

/// The second column of `/proc/net/softnet_stat`, a line a processor, of the whole machine.
fn lost() -> anyhow::Result<u64> {
    const FILE: &str = "/proc/net/softnet_stat";
    let text = fs::read_to_string(FILE).with_context(|| format!("read {FILE}"))?;
    let column = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    let each = text.lines().map(column);
    each.sum::<Option<u64>>()
        .with_context(|| format!("no count of lost packets in {FILE}"))
}
