//! What an enforcement backend counts, for whoever reports it.

use std::error::Error;

use gate25_common::abi::CustomerId;
use gate25_common::bypass::Bypass;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::redirect::{Flow, Hindrances, Redirected};
use gate25_common::returns::ReturnCounters;

/// Why counters could not be read.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FiguresError(Box<dyn Error + Send + Sync>);

impl FiguresError {
    /// A backend's own error.
    pub fn new(source: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(source))
    }
}

/// Counters as the kernel holds them. The functions may block.
pub trait Figures: Send + Sync + 'static {
    /// Totals of the host.
    ///
    /// # Errors
    /// When the kernel does not give them.
    fn host(&self) -> Result<HostCounters, FiguresError>;

    /// Totals of a customer; `None` for one that never had a workload here.
    ///
    /// # Errors
    /// When the kernel does not give them.
    fn customer(&self, id: CustomerId) -> Result<Option<CustomerCounters>, FiguresError>;

    /// The same of many customers, in their order.
    ///
    /// # Errors
    /// When the kernel does not give them.
    fn customers(&self, ids: &[CustomerId]) -> Result<Vec<Option<CustomerCounters>>, FiguresError> {
        ids.iter().map(|id| self.customer(*id)).collect()
    }

    /// Destinations of a customer since its sketch was last cleared; `None` for one that never
    /// had a workload here.
    ///
    /// # Errors
    /// When the kernel does not give them.
    fn sketch(&self, id: CustomerId) -> Result<Option<Sketch>, FiguresError>;

    /// Packets that came back to guests from guarded ports.
    ///
    /// # Errors
    /// When the kernel does not give them.
    fn returns(&self) -> Result<ReturnCounters, FiguresError>;

    /// The same of a customer; `None` for one of whom none were counted here.
    ///
    /// # Errors
    /// When the kernel does not give them.
    fn customer_returns(&self, id: CustomerId) -> Result<Option<ReturnCounters>, FiguresError>;

    /// What is remembered of a connection that was led elsewhere; `None` for one that is not known.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn redirected(&self, flow: &Flow) -> Result<Option<Redirected>, FiguresError>;

    /// What kept packets and connects from being led elsewhere.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn hindrances(&self) -> Result<Hindrances, FiguresError>;

    /// Whether this host only observes for a time.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn bypass(&self) -> Result<Bypass, FiguresError>;

    /// Starts a customer's sketch afresh.
    ///
    /// # Errors
    /// When the kernel refuses it.
    fn clear_sketch(&self, id: CustomerId) -> Result<(), FiguresError>;
}
