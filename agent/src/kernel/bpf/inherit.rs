//! Tables that outlive the version of the agent that made them.

use std::error::Error;
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
        if is_there(&own)? {
            continue;
        }
        for earlier in pins.earlier(since)? {
            let pin = earlier.join(name);
            if is_there(&pin)? && fits(&pin, name)? {
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

/// Whether something is pinned there.
pub(super) fn is_there(pin: &Path) -> Result<bool, BpfError> {
    pin.try_exists().map_err(|source| unreadable(pin, source))
}

/// Whether the table `name` of this version looks like what is pinned. Where the kernel does not say,
/// nobody knows: what is unfit goes, with what it has counted.
pub(super) fn fits(pin: &Path, name: &str) -> Result<bool, BpfError> {
    let pinned = link::open(pin).map_err(|source| unreadable(pin, source))?;
    let kind = link::kind(pinned.as_fd()).map_err(|source| unreadable(pin, source))?;
    if kind != Some(link::Object::Map) {
        return Ok(false);
    }
    let shape = Shape::pinned(pin).map_err(|source| unreadable(pin, source))?;
    Ok(shape.is_some() && shape == Shape::wanted(name))
}

fn unreadable(pin: &Path, source: impl Error + Send + Sync + 'static) -> BpfError {
    BpfError::Unreadable {
        path: pin.to_owned(),
        source: Box::new(source),
    }
}
