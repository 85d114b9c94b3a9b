//! What is wrong with this host, as far as can be told from what the kernel reports.
//!
//! [`Survey`] looks, [`judge`] decides. Nothing here trusts what an agent believes of itself: hooks
//! are asked of the kernel and compared with what is pinned. The part that concerns the coverage of
//! workloads is judged by the running agent as well, for its metrics.

mod facts;
mod findings;
mod judge;
mod survey;

pub use facts::{
    Agent, Coverage, Covering, Facts, Host, Interface, Look, NftFacts, Owner, Policy, Role, Root,
    RootHook, Sample, Station,
};
pub use findings::{Area, Finding, Kind, Severity};
pub use judge::{coverage as judge_coverage, judge};
pub use survey::{Sampling, Survey};
