//! The one place that declares which types may cross into the kernel as bytes.

use crate::abi::{CustomerId, CustomerPolicy, InterfaceOwner, PrefixKey, PrefixValue, SkbLayout};
use crate::bypass::Bypass;
use crate::counters::{CustomerCounters, Event, HostCounters, Sketch};
use crate::redirect::{Budget, Flow, Hindrances, Redirected, SocketPeer};
use crate::returns::ReturnCounters;

macro_rules! pod {
    ($($t:ty),+ $(,)?) => {$(
        // SAFETY: `repr(C)` or `repr(transparent)` over integers and byte arrays with explicit
        // padding (sizes asserted beside each type); every bit pattern is a value.
        unsafe impl aya::Pod for $t {}
    )+};
}

pod!(
    Bypass,
    CustomerId,
    CustomerPolicy,
    InterfaceOwner,
    PrefixKey,
    PrefixValue,
    SkbLayout,
    Flow,
    Redirected,
    SocketPeer,
    Budget,
    Hindrances,
    HostCounters,
    CustomerCounters,
    Sketch,
    ReturnCounters,
    Event,
);
