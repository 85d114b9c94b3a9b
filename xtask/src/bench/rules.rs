//! The same policy as others would write it.

use std::fmt::Write as _;

use super::scale::{RELAYS, Scale, interface};

/// Interfaces that are not there have numbers from here on.
const ABSENT: usize = 1_000_000;

/// A guest's interface, among those of all customers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) scale: Scale,
    /// The index of the measured customer's interface, which is there.
    pub(crate) index: u32,
}

impl Place {
    /// The index of a customer's interface.
    fn index(self, customer: usize) -> usize {
        if customer == self.scale.measured() {
            self.index as usize
        } else {
            ABSENT + customer
        }
    }

    fn device(self) -> String {
        interface(self.scale.measured())
    }

    /// nftables with a verdict map by interface, and a set of intervals for each customer: few
    /// steps for a packet.
    pub(crate) fn nft_map(self) -> String {
        let mut text = String::from("table netdev hand {\n");
        set(&mut text, "relays", "type ipv4_addr", &RELAYS.join(", "));
        let mut elements = Vec::new();
        for customer in 0..self.scale.customers {
            let name = format!("s{customer}");
            set(
                &mut text,
                &name,
                "type ipv4_addr; flags interval",
                &self.prefixes(customer),
            );
            // Writing to a String does not fail.
            writeln!(
                text,
                "chain c{customer} {{ ip daddr @{name} accept; ip daddr @relays accept; drop; }}"
            )
            .ok();
            elements.push(format!("{} : goto c{customer}", self.index(customer)));
        }
        let kind = "type iface_index : verdict";
        writeln!(
            text,
            "map customers {{ {kind}; elements = {{ {} }}; }}",
            elements.join(", ")
        )
        .ok();
        self.hook(&mut text, "tcp dport 25 iif vmap @customers");
        text
    }

    /// nftables with one set of interfaces and intervals: quick to load.
    pub(crate) fn nft_set(self) -> String {
        let mut text = String::from("table netdev hand {\n");
        set(&mut text, "relays", "type ipv4_addr", &RELAYS.join(", "));
        let pairs: Vec<_> = (0..self.scale.customers)
            .flat_map(|customer| {
                let index = self.index(customer);
                let prefixes = self.scale.prefixes(customer);
                prefixes.map(move |prefix| format!("{index} . {prefix}"))
            })
            .collect();
        let kind = "type iface_index . ipv4_addr; flags interval";
        set(&mut text, "allowed", kind, &pairs.join(", "));
        writeln!(
            text,
            "chain judged {{ ip daddr @relays accept; iif . ip daddr @allowed accept; drop; }}"
        )
        .ok();
        self.hook(&mut text, "tcp dport 25 goto judged");
        text
    }

    fn hook(self, text: &mut String, rule: &str) {
        writeln!(
            text,
            "chain guest {{ type filter hook ingress device \"{}\" priority -450; policy accept; {rule}; }}\n}}",
            self.device()
        )
        .ok();
    }

    fn prefixes(self, customer: usize) -> String {
        let prefixes = self.scale.prefixes(customer);
        let texts: Vec<_> = prefixes.map(|prefix| prefix.to_string()).collect();
        texts.join(", ")
    }

    /// The table of [`Place::ipset`], for `ipset restore`.
    pub(crate) fn ipset_members(self) -> String {
        let size = self.scale.total().next_power_of_two().max(64);
        let mut text = format!(
            "create relays hash:net\ncreate allowed hash:net,iface hashsize {size} maxelem {}\n",
            size * 2
        );
        for relay in RELAYS {
            writeln!(text, "add relays {relay}").ok();
        }
        for customer in 0..self.scale.customers {
            let name = interface(customer);
            for prefix in self.scale.prefixes(customer) {
                writeln!(text, "add allowed {prefix},{name}").ok();
            }
        }
        text
    }

    /// iptables with two sets for all customers.
    pub(crate) fn ipset(self) -> String {
        raw("-A SMTP -m set --match-set relays dst -j ACCEPT\n\
             -A SMTP -m set --match-set allowed dst,src -j ACCEPT\n\
             -A SMTP -j DROP\n")
    }

    /// iptables with a rule a customer, and none for their prefixes.
    pub(crate) fn iptables(self) -> String {
        let mut rules = String::new();
        for relay in RELAYS {
            writeln!(rules, "-A SMTP -d {relay} -j ACCEPT").ok();
        }
        for customer in 0..self.scale.customers {
            writeln!(rules, "-A SMTP -i {} -j DROP", interface(customer)).ok();
        }
        raw(&rules)
    }

    /// nftables that decides nothing, where [`Place::nft_map`] decides.
    pub(crate) fn nft_empty(self, policy: &str) -> String {
        format!(
            "table netdev hand {{ chain guest {{ type filter hook ingress device \"{}\" priority -450; policy {policy}; }}\n}}",
            self.device()
        )
    }
}

/// iptables that decides nothing, where the others decide.
pub(crate) fn iptables_empty(policy: &str) -> String {
    format!("*raw\n:PREROUTING {policy} [0:0]\nCOMMIT\n")
}

/// As early as iptables can be, and out at once for all but SMTP.
fn raw(rules: &str) -> String {
    format!(
        "*raw\n:PREROUTING ACCEPT [0:0]\n:SMTP - [0:0]\n-A PREROUTING -p tcp --dport 25 -j SMTP\n{rules}COMMIT\n"
    )
}

fn set(text: &mut String, name: &str, kind: &str, elements: &str) {
    writeln!(
        text,
        "set {name} {{ {kind}; elements = {{ {elements} }}; }}"
    )
    .ok();
}
