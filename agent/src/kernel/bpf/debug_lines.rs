//! The programs' own debug lines, written to the log at TRACE.

use aya::Ebpf;
use aya_log::EbpfLogger;

use crate::kernel::bpf::BpfError;
use crate::kernel::readiness::readable;

/// The map that only the object with debug lines has.
const MAP: &str = "AYA_LOGS";

struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::trace!(line = %record.args(), "program");
    }

    fn flush(&self) {}
}

/// Follows the lines of `ebpf`; for an object without them there is nothing to follow.
pub(super) fn follow(ebpf: &mut Ebpf) -> Result<impl Future<Output = ()> + Send + use<>, BpfError> {
    let logger = match ebpf.map(MAP) {
        Some(_) => Some(
            EbpfLogger::init_with_logger(ebpf, ToTracing)
                .map_err(BpfError::DebugLines)
                .and_then(|logger| readable(logger).map_err(BpfError::Reactor))?,
        ),
        None => None,
    };
    Ok(async {
        let Some(mut logger) = logger else { return };
        loop {
            match logger.readable_mut().await {
                Ok(mut ready) => {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
                Err(error) => {
                    tracing::warn!(%error, "no more debug lines of the programs");
                    return;
                }
            }
        }
    })
}
