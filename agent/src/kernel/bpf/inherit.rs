//! Tables that outlive the version of the agent that made them.

use std::os::fd::AsFd as _;
use std::path::Path;

use gate25_common::names;

use super::pins::Pins;
use super::shape::Shape;
use super::{BpfError, link, open_pin};

/// Pins tables of an earlier version in this version's folder, where it has none yet and theirs hold
/// what this one's would. Until the programs of both are exchanged, both work on them.
pub(super) fn inherit(pins: &Pins) -> Result<(), BpfError> {
    for (name, since) in names::INHERITED {
        let own = pins.map(name);
        if own.exists() {
            continue;
        }
        for earlier in pins.earlier(since)? {
            let pin = earlier.join(name);
            if pin.exists() && fits(&pin, name)? {
                let table = open_pin(&pin)?;
                link::pin(table.as_fd(), &own)
                    .map_err(|source| BpfError::Pin { path: own, source })?;
                tracing::info!(table = name, from = %earlier.display(), "table goes on");
                break;
            }
        }
    }
    Ok(())
}

/// Whether the table `name` of this version looks like what is pinned.
pub(super) fn fits(pin: &Path, name: &str) -> Result<bool, BpfError> {
    let pinned = open_pin(pin)?;
    let kind = link::kind(pinned.as_fd()).map_err(|source| BpfError::Pin {
        path: pin.to_owned(),
        source,
    })?;
    Ok(kind == Some(link::Object::Map)
        && Shape::pinned(pin).is_ok_and(|shape| Some(shape) == Shape::wanted(name)))
}
