//! Who answers for a packet or a connect, and what is counted of it.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_skb_ancestor_cgroup_id,
    bpf_skb_cgroup_id,
};
use gate25_common::abi::{Counting, CustomerId, MAX_CGROUP_LEVELS};
use gate25_common::counters::Origin;

use crate::maps::{CGROUPS, INTERFACES};

/// What sends.
#[derive(Clone, Copy)]
pub(crate) struct Workload {
    /// Who owns it.
    pub(crate) customer: CustomerId,
    /// What is counted of it.
    pub(crate) counting: Counting,
    /// Where it was seen.
    pub(crate) origin: Origin,
}

/// The guest behind the interface with this index.
#[inline(always)]
pub(crate) fn of_interface(index: u32) -> Workload {
    // SAFETY: the value is copied at once; entries are replaced, never changed in place.
    let owner = unsafe { INTERFACES.get(index) }.copied();
    let (customer, counting) = match owner {
        Some(owner) => (owner.customer(), owner.counting()),
        None => (CustomerId::UNASSIGNED, Counting::All),
    };
    Workload {
        customer,
        counting,
        origin: Origin::Interface(index),
    }
}

/// The control group of the socket that sent a packet.
#[inline(always)]
pub(crate) fn of_packet(skb: *mut __sk_buff) -> Workload {
    Workload {
        customer: CustomerId::from_raw(packet_owner(skb)),
        counting: Counting::All,
        // SAFETY: the kernel hands every program a valid `__sk_buff`.
        origin: Origin::Cgroup(unsafe { bpf_skb_cgroup_id(skb) }),
    }
}

/// The control group of the running task.
#[inline(always)]
pub(crate) fn of_task() -> Workload {
    Workload {
        customer: CustomerId::from_raw(task_owner()),
        counting: Counting::All,
        origin: Origin::Cgroup(task_cgroup()),
    }
}

/// Id of the control group of the running task.
#[inline(always)]
pub(crate) fn task_cgroup() -> u64 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_get_current_cgroup_id() }
}

/// A function of its own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn packet_owner(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    deepest_owner(|level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) })
}

/// A function of its own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn task_owner() -> u64 {
    // SAFETY: takes a number only.
    deepest_owner(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// The owner of the deepest group that has one, of the groups from the root's children (level 1)
/// down to the group itself; [`CustomerId::UNASSIGNED`] without. `ancestor` is 0 below that.
#[inline(always)]
fn deepest_owner(ancestor: impl Fn(i32) -> u64) -> u64 {
    let mut customer = CustomerId::UNASSIGNED;
    for level in 1..=MAX_CGROUP_LEVELS as i32 {
        let cgroup = ancestor(level);
        if cgroup == 0 {
            break;
        }
        // SAFETY: the value is copied at once; entries are replaced, never changed in place.
        if let Some(owner) = unsafe { CGROUPS.get(cgroup) } {
            customer = *owner;
        }
    }
    customer.get()
}
