//! Labs in network namespaces for gate25's tests and its demo.
//!
//! A [`Lab`] is a folder, a cgroup and a set of namespaces of its own. Nothing in it touches the
//! machine's interfaces, rules or mounts, labs run in parallel, and whatever ends the owning
//! process (also SIGKILL) removes all of it: a guardian process waits for that.

mod agent;
pub mod bench;
mod bpf;
mod cgroup;
mod container;
mod far_side;
pub mod faults;
mod feature;
mod flood;
mod foreign;
mod foreign_entries;
mod http;
mod lab;
mod ledger;
mod machine;
mod meter;
mod metrics;
mod netns;
mod object;
mod pace;
mod pid;
mod policy_text;
mod postfix;
mod privileges;
mod probe;
mod process;
mod rounds;
mod runtime;
mod sender;
mod skip;
mod smtp;
mod tap;
mod tenant;
mod topology;
mod v1_group;
mod vm;
mod wires;
mod world;

pub use agent::{Agent, Build, Settings, binary};
pub use cgroup::{Cgroup, mount as cgroup_mount};
pub use container::{Container, Containers, Network, Runtime};
pub use far_side::{Witness, greet};
pub use feature::{Feature, kernel_version};
pub use foreign::{ForeignLink, ForeignProgram};
pub use foreign_entries::ForeignEntries;
pub use http::get;
pub use lab::{Lab, Remover};
pub use ledger::{Trial, Tried};
pub use machine::Machine;
pub use meter::{Accounts, May, Measured, Meter, Phase, Verdict};
pub use metrics::Metrics;
pub use netns::{NetNs, Said};
pub use object::Object;
pub use pace::{fewer, paced, slowness};
pub use policy_text::{PolicyText, after, customers_text};
pub use postfix::{Postfix, Role};
pub use privileges::{Privileges, User};
pub use probe::{Attempt, Held, Outcome, connect};
pub use process::{Process, poll};
pub use rounds::Rounds;
pub use sender::{Sender, Tally};
pub use skip::skip;
pub use smtp::{Delivery, send};
pub use tap::{Offload, Pump, Tap, pump_stdio};
pub use tenant::{Frame, MEETING_PORT, Target, Tenant, Trick, program as tenant_program, tenant};
pub use topology::{Addresses, Guest, Hosting, Link};
pub use v1_group::V1Group;
pub use vm::{Debian, Files, Kernel, Patience, Testbed, Vm, inside};
pub use wires::{Wires, spare_bridges};
pub use world::World;
