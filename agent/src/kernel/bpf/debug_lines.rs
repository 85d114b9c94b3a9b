//! The programs' own debug lines, written to the log at TRACE.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use crate::chain::in_full;
use crate::kernel::bpf::BpfError;
use crate::kernel::readiness::readable;

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

/// The lines of an object that has them.
pub struct DebugLog(AsyncFd<EbpfLogger<ToTracing>>);

impl DebugLog {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let logger = EbpfLogger::init_with_logger(ebpf, ToTracing).map_err(BpfError::DebugLines)?;
        Ok(Self(readable(logger).map_err(BpfError::Reactor)?))
    }

    /// Writes the lines to the log, as they come.
    pub async fn follow(mut self) {
        loop {
            match self.0.readable_mut().await {
                Ok(mut ready) => {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
                Err(error) => {
                    tracing::warn!(
                        error = in_full(&error),
                        "no more debug lines of the programs"
                    );
                    return;
                }
            }
        }
    }
}
