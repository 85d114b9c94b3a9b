//! The decision about one packet, written once for the kernel, for `explain` and for the tests.

use crate::abi::{
    Blocked, CustomerId, CustomerPolicy, Exemption, MAX_EXEMPTIONS, Mode, PrefixValue, Quarantine,
    SetId,
};
use crate::address::{Address, Family};
use crate::filter::{Beginning, SetFilter};
use crate::packet::{Form, Malformed};

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    /// Passes.
    Allow = 0,
    /// Would be refused, and passes.
    Observe = 1,
    /// Is answered.
    Reject = 2,
    /// Disappears.
    Drop = 3,
    /// Goes to the provider's relay.
    Redirect = 4,
    /// Goes to the agent's SMTP responder.
    Notice = 5,
    /// Disappears because its exemption's rate is used up.
    Throttle = 6,
}

impl Verdict {
    /// Every verdict, in the order of the counters.
    pub const ALL: [Self; 7] = [
        Self::Allow,
        Self::Observe,
        Self::Reject,
        Self::Drop,
        Self::Redirect,
        Self::Notice,
        Self::Throttle,
    ];

    /// Whether the packet does not go where it was sent.
    #[inline(always)]
    pub const fn refuses(self) -> bool {
        match self {
            Self::Allow | Self::Observe => false,
            Self::Reject | Self::Drop | Self::Redirect | Self::Notice | Self::Throttle => true,
        }
    }

    /// The word for it in metrics and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Observe => "observe",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::Redirect => "redirect",
            Self::Notice => "notice",
            Self::Throttle => "throttle",
        }
    }
}

/// Why a verdict was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// The destination is in one of the customer's allowlists.
    Allowlist = 0,
    /// An exemption holds.
    Exemption = 1,
    /// The customer's profile.
    Profile = 2,
    /// The default profile, since no customer owns the workload.
    Unassigned = 3,
    /// The rate of an exemption is used up.
    Throttled = 4,
    /// The customer is cut off.
    Quarantine = 5,
    /// The packet's form, or tables that cannot be read.
    Malformed = 6,
}

impl Reason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 7] = [
        Self::Allowlist,
        Self::Exemption,
        Self::Profile,
        Self::Unassigned,
        Self::Throttled,
        Self::Quarantine,
        Self::Malformed,
    ];

    /// The word for it in metrics and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowlist => "allowlist",
            Self::Exemption => "exemption",
            Self::Profile => "profile",
            Self::Unassigned => "unassigned",
            Self::Throttled => "throttled",
            Self::Quarantine => "quarantine",
            Self::Malformed => "malformed",
        }
    }
}

/// Whether this host carries out refusals at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostMode {
    /// As the policy says.
    Policy,
    /// Nothing is refused, whatever the policy says.
    Observe,
}

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A packet for a guarded port.
    Guarded {
        /// Where it goes.
        destination: Address,
        /// The port it goes to, in network order.
        port: [u8; 2],
        /// Whether the address is all of the truth.
        route: Route,
        /// The family of its IP header: an IPv6 packet may go to an IPv4 address by NAT64.
        family: Family,
        /// Whether its headers can be rewritten.
        form: Form,
    },
    /// A packet that cannot be told from one for a guarded port.
    Malformed(Malformed),
}

/// Whether the sender chose the path of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The address in the header is where it goes.
    Direct,
    /// A source route or routing header may hide where it goes.
    SourceRouted,
}

/// The outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whose packet it is.
    pub customer: CustomerId,
    /// What happens to it.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Which entry decided: for an allowlist the source's index within the set (with
    /// [`CUSTOMER_SET`] where the set is the customer's own), for an exemption its slot; 0 for
    /// other reasons.
    pub entry: u16,
    /// What was wrong, where the reason is [`Reason::Malformed`].
    pub malformed: Option<Malformed>,
}

impl Decision {
    /// The same where this host only observes: what [`decide`] says with [`HostMode::Observe`].
    /// Afterwards, so that the clock is asked about what is refused alone.
    #[inline(always)]
    pub const fn observed(&self) -> Self {
        let verdict = match self.verdict.refuses() {
            true => Verdict::Observe,
            false => self.verdict,
        };
        Self {
            customer: self.customer,
            verdict,
            reason: self.reason,
            entry: self.entry,
            malformed: self.malformed,
        }
    }

    /// The decision about the connection that was redirected to where this one lets it through.
    #[inline(always)]
    pub const fn redirected(&self) -> Self {
        Self {
            customer: self.customer,
            verdict: Verdict::Redirect,
            reason: of_profile(self.customer),
            entry: 0,
            malformed: None,
        }
    }
}

/// Why, where the profile decides.
#[inline(always)]
const fn of_profile(customer: CustomerId) -> Reason {
    match customer {
        CustomerId::UNASSIGNED => Reason::Unassigned,
        _ => Reason::Profile,
    }
}

/// Bit of [`Decision::entry`] that tells the customer's own allowlists from the profile's.
pub const CUSTOMER_SET: u16 = 1 << 15;

/// How the tables are read: kernel maps, or an image of them in memory.
pub trait Tables {
    /// Owner of the workload that sent the packet, if anybody claims it.
    fn owner(&self) -> Option<CustomerId>;
    /// The customer's policy.
    fn policy(&self, customer: CustomerId) -> Option<&CustomerPolicy>;
    /// The longest prefix of `set` that holds `address`.
    fn prefix(&self, set: SetId, address: &Address) -> Option<PrefixValue>;
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    fn now(&self) -> u64;
    /// [`SetFilter::may_hold`]; the kernel's tables run it as a function of its own, for the verifier.
    #[inline(always)]
    fn may_hold(&self, filter: &SetFilter, beginning: Beginning) -> bool {
        filter.may_hold(beginning)
    }
    /// [`rank`] in these tables; the kernel's run it as a function of its own, since the verifier
    /// would otherwise follow all combinations of sixteen outcomes.
    #[inline(always)]
    fn rank(&self, exemption: &Exemption, slot: usize, destination: &Address, now: u64) -> u32
    where
        Self: Sized,
    {
        rank(self, exemption, slot, destination, now)
    }
}

/// Judges `subject` by the order of the design: owner, quarantine, form, allowlists, exemptions,
/// profile. Tables that cannot be read close the port.
#[inline(always)]
pub fn decide<T: Tables>(tables: &T, host: HostMode, subject: &Subject) -> Decision {
    let customer = tables.owner().unwrap_or(CustomerId::UNASSIGNED);
    let Some((policy, rules)) = tables.policy(customer).and_then(Rules::read) else {
        return Decision {
            customer,
            verdict: match host {
                HostMode::Policy => Verdict::Drop,
                HostMode::Observe => Verdict::Observe,
            },
            reason: Reason::Malformed,
            entry: 0,
            malformed: Some(Malformed::Lookup),
        };
    };
    let refuse = |verdict, reason, malformed| Decision {
        customer,
        verdict: match (host, rules.mode) {
            (HostMode::Policy, Mode::Enforce) => verdict,
            (HostMode::Observe, _) | (_, Mode::Observe) => Verdict::Observe,
        },
        reason,
        entry: 0,
        malformed,
    };
    let (destination, port, route, family, form) = match subject {
        Subject::Guarded {
            destination,
            port,
            route,
            family,
            form,
        } => (destination, *port, *route, *family, *form),
        Subject::Malformed(kind) => {
            return refuse(Verdict::Drop, Reason::Malformed, Some(*kind));
        }
    };
    // What is refused for other reasons than the profile's is not carried on elsewhere.
    let blocked = match rules.blocked {
        Blocked::Reject | Blocked::Redirect | Blocked::Notice => Verdict::Reject,
        Blocked::Drop => Verdict::Drop,
    };
    match rules.quarantine {
        Quarantine::Yes => return refuse(blocked, Reason::Quarantine, None),
        Quarantine::No => {}
    }
    match route {
        Route::SourceRouted => {
            return refuse(blocked, Reason::Malformed, Some(Malformed::SourceRoute));
        }
        Route::Direct => {}
    }
    let allow = |reason, entry| Decision {
        customer,
        verdict: Verdict::Allow,
        reason,
        entry,
        malformed: None,
    };
    let beginning = Beginning::of(destination);
    if tables.may_hold(policy.profile_filter(), beginning)
        && let Some(hit) = lookup(tables, policy.profile_set(), destination)
    {
        return allow(Reason::Allowlist, hit.entry());
    }
    if tables.may_hold(policy.customer_filter(), beginning)
        && let Some(hit) = lookup(tables, policy.customer_set(), destination)
    {
        return allow(Reason::Allowlist, hit.entry() | CUSTOMER_SET);
    }
    if policy.has_exemptions()
        && let Some(slot) = exemption(tables, policy, destination)
    {
        return allow(Reason::Exemption, slot);
    }
    let reason = of_profile(customer);
    let elsewhere = match rules.blocked {
        Blocked::Reject | Blocked::Drop => return refuse(blocked, reason, None),
        Blocked::Redirect => Verdict::Redirect,
        Blocked::Notice => Verdict::Notice,
    };
    match redirect(policy, destination, port, family, form) {
        Redirect::Possible => refuse(elsewhere, reason, None),
        Redirect::Arrived => allow(reason, 0),
        Redirect::Impossible => refuse(blocked, reason, None),
    }
}

enum Redirect {
    Possible,
    /// It goes to the target already: container's sockets have connected there, and what was
    /// redirected on one interface may leave by another.
    Arrived,
    Impossible,
}

#[inline(always)]
fn redirect(
    policy: &CustomerPolicy,
    destination: &Address,
    port: [u8; 2],
    family: Family,
    form: Form,
) -> Redirect {
    let Some(target) = policy.target(family) else {
        return Redirect::Impossible;
    };
    if target.is_at(destination) & (target.port() == port) {
        return Redirect::Arrived;
    }
    // What else is at a target's address was asked for by name.
    if policy.is_target(destination) | matches!(form, Form::Unusual) {
        return Redirect::Impossible;
    }
    Redirect::Possible
}

struct Rules {
    mode: Mode,
    blocked: Blocked,
    quarantine: Quarantine,
}

impl Rules {
    #[inline(always)]
    fn read(policy: &CustomerPolicy) -> Option<(&CustomerPolicy, Self)> {
        let rules = Self {
            mode: policy.mode()?,
            blocked: policy.blocked()?,
            quarantine: policy.quarantine()?,
        };
        Some((policy, rules))
    }
}

#[inline(always)]
fn lookup<T: Tables>(tables: &T, set: SetId, destination: &Address) -> Option<PrefixValue> {
    match set {
        SetId::NONE => None,
        SetId::ANY => Some(PrefixValue::new(0, 0)),
        set => tables.prefix(set, destination),
    }
}

/// Slot of the active exemption with the longest prefix; the first of equals, which is the one
/// with the smallest id.
#[inline(always)]
fn exemption<T: Tables>(tables: &T, policy: &CustomerPolicy, destination: &Address) -> Option<u16> {
    let now = tables.now();
    let mut best = 0;
    for slot in 0..MAX_EXEMPTIONS {
        let Some(exemption) = policy.exemption(slot) else {
            break;
        };
        best = tables.rank(exemption, slot, destination, now).max(best);
    }
    match best {
        0 => None,
        best => Some((MAX_EXEMPTIONS as u32 - (best & RANK_SLOT)) as u16),
    }
}

/// Bits of a rank that say which slot it is: the greater the earlier.
const RANK_SLOT: u32 = 0xff;
const RANK_LENGTH_SHIFT: u32 = 8;

/// How well `exemption`, which is in `slot`, covers `destination` at `now`: 0 for not at all, else the
/// greater the longer its prefix, and among equals the earlier the slot.
#[inline(always)]
pub fn rank<T: Tables>(
    tables: &T,
    exemption: &Exemption,
    slot: usize,
    destination: &Address,
    now: u64,
) -> u32 {
    if !exemption.active(now) {
        return 0;
    }
    match lookup(tables, exemption.set(), destination) {
        Some(hit) => u32::from(hit.length()) << RANK_LENGTH_SHIFT | (MAX_EXEMPTIONS - slot) as u32,
        None => 0,
    }
}
