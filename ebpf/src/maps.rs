//! The tables, and the constants that the agent sets before it loads the programs.
//!
//! Statics are named as in `gate25_common::names`; the object test holds them together.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{
    HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage, SockMap,
};
use aya_ebpf::macros::btf_map;
use gate25_common::abi::{
    CustomerId, CustomerPolicy, EVENTS_BYTES, InterfaceOwner, MAX_CUSTOMERS, MAX_GUARDED_PORTS,
    MAX_PREFIXES, PrefixKey, PrefixValue, SkbLayout,
};
use gate25_common::address::Family;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::redirect::{
    Budget, Flow, Hindrances, MAX_BUDGETS, MAX_REDIRECTS, MAX_TARGET_PORTS, Redirected, SocketPeer,
};
use gate25_common::returns::ReturnCounters;

/// Memory follows what is in use.
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub(crate) static INTERFACES: HashMap<u32, InterfaceOwner, MAX_CUSTOMERS, NO_PREALLOC> =
    HashMap::new();

#[btf_map]
pub(crate) static CGROUPS: HashMap<u64, CustomerId, MAX_CUSTOMERS, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub(crate) static SOCKETS: SkStorage<u64> = SkStorage::new();

#[btf_map]
pub(crate) static SOCKET_PEERS: SkStorage<SocketPeer> = SkStorage::new();

/// Decides nothing: what is not in it is refused.
#[btf_map]
pub(crate) static REDIRECTS: LruHashMap<Flow, Redirected, MAX_REDIRECTS> = LruHashMap::new();

/// Whoever is pushed out of it has all of its budget again.
#[btf_map]
pub(crate) static BUDGETS: LruHashMap<u32, Budget, MAX_BUDGETS> = LruHashMap::new();

#[btf_map]
pub(crate) static HINDRANCES: PerCpuArray<Hindrances, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static RESPONDERS: SockMap<{ Family::ALL.len() }> = SockMap::new();

#[btf_map]
pub(crate) static CUSTOMERS: HashMap<CustomerId, CustomerPolicy, MAX_CUSTOMERS, NO_PREALLOC> =
    HashMap::new();

#[btf_map]
pub(crate) static PREFIXES: LpmTrie<PrefixKey, PrefixValue, MAX_PREFIXES> = LpmTrie::new();

#[btf_map]
pub(crate) static HOST_COUNTERS: PerCpuArray<HostCounters, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static CUSTOMER_COUNT: PerCpuHashMap<
    CustomerId,
    CustomerCounters,
    MAX_CUSTOMERS,
    NO_PREALLOC,
> = PerCpuHashMap::new();

#[btf_map]
pub(crate) static SKETCHES: HashMap<CustomerId, Sketch, MAX_CUSTOMERS, NO_PREALLOC> =
    HashMap::new();

#[btf_map]
pub(crate) static RETURN_COUNTERS: PerCpuArray<ReturnCounters, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static RETURN_CUSTOMER: PerCpuHashMap<
    CustomerId,
    ReturnCounters,
    MAX_CUSTOMERS,
    NO_PREALLOC,
> = PerCpuHashMap::new();

/// Holds `Event`s; typed as nothing, since libbpf wants a ring buffer without a value size.
#[btf_map]
pub(crate) static EVENTS: RingBuf<(), EVENTS_BYTES> = RingBuf::new();

#[unsafe(no_mangle)]
pub(crate) static GUARDED_PORTS: Global<[u16; MAX_GUARDED_PORTS]> =
    Global::new([0; MAX_GUARDED_PORTS]);

#[unsafe(no_mangle)]
pub(crate) static GUARDED_COUNT: Global<u8> = Global::new(0);

#[unsafe(no_mangle)]
pub(crate) static TARGET_PORTS: Global<[u16; MAX_TARGET_PORTS]> =
    Global::new([0; MAX_TARGET_PORTS]);

#[unsafe(no_mangle)]
pub(crate) static GUARD_MARK: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
pub(crate) static SKB_LAYOUT: Global<SkbLayout> = Global::new(SkbLayout::UNKNOWN);

#[unsafe(no_mangle)]
pub(crate) static HOST_OBSERVES: Global<u8> = Global::new(0);

#[unsafe(no_mangle)]
pub(crate) static BLOCK_RETURN: Global<u8> = Global::new(0);

#[unsafe(no_mangle)]
pub(crate) static HAS_SET_RETVAL: Global<u8> = Global::new(0);
