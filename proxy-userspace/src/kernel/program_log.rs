//! What the BPF program says, in a build for debugging: passed on to the diagnostics.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::task::JoinHandle;

use super::object::LoadError;
use crate::net::sockopt::when_readable;

/// Passes the program's records on while it lives.
pub(super) struct ProgramLog {
    task: JoinHandle<()>,
}

impl ProgramLog {
    /// Call it before the program is loaded, within a Tokio runtime.
    ///
    /// # Errors
    /// The object is not one that logs.
    pub(super) fn follow(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let refused = |what: String| LoadError::Refused(format!("no program log: {what}"));
        let logger = EbpfLogger::init(ebpf).map_err(|error| refused(error.to_string()))?;
        let mut logger = when_readable(logger).map_err(|error| refused(error.to_string()))?;
        let task = tokio::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        });
        Ok(Self { task })
    }
}

impl Drop for ProgramLog {
    fn drop(&mut self) {
        self.task.abort();
    }
}
