//! What a policy has come to, kept for as long as it would come to the same: most of what happens on a
//! host is about who owns what, and leaves the customers' entries as they are.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::clock::Offset;
use crate::compile::Image;
use crate::dataplane::{Customers, Sets};

/// Tables, and what they were made from.
pub(super) struct Settled {
    pub(super) image: Arc<Image>,
    pub(super) offset: Offset,
    /// Where the notice was told.
    pub(super) told: BTreeSet<SocketAddr>,
    /// Whether what goes to guests could be looked at.
    pub(super) has_replies: bool,
    pub(super) customers: Customers,
    pub(super) sets: Arc<Sets>,
}
