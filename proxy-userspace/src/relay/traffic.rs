//! Live byte counters of a tunnel, readable by anybody at any time without disturbing it.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::sockmap::KernelCounters;

/// Bytes written so far, by peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// To the client, the `200` included.
    pub to_client: u64,
    /// To the upstream, what asked a parent for the tunnel included.
    pub to_upstream: u64,
}

/// What a tunnel has moved. Shared by the engine, which counts, and whoever looks.
#[derive(Debug, Default)]
pub struct Traffic {
    to_client: AtomicU64,
    to_upstream: AtomicU64,
    kernel: OnceLock<KernelCounters>,
}

impl Traffic {
    /// Counters of a tunnel whose peers have received so many bytes already.
    pub fn with_sent(to_client: u64, to_upstream: u64) -> Self {
        Self {
            to_client: to_client.into(),
            to_upstream: to_upstream.into(),
            ..Self::default()
        }
    }

    /// Counts bytes that user space wrote to the client.
    pub(super) fn add_to_client(&self, bytes: u64) {
        self.to_client.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes that user space wrote to the upstream.
    pub(super) fn add_to_upstream(&self, bytes: u64) {
        self.to_upstream.fetch_add(bytes, Relaxed);
    }

    /// From now on, adds what the kernel moves by itself.
    pub(super) fn attach(&self, counters: KernelCounters) {
        // A tunnel is spliced at most once.
        let _ = self.kernel.set(counters);
    }

    /// Ends the live view of the kernel's counters with their last value, or with what is known
    /// better.
    pub(super) fn settle(&self, counts: Counts) {
        if let Some(kernel) = self.kernel.get() {
            kernel.detach();
        }
        self.to_client.store(counts.to_client, Relaxed);
        self.to_upstream.store(counts.to_upstream, Relaxed);
    }

    /// The bytes moved so far.
    pub fn counts(&self) -> Counts {
        let kernel = self
            .kernel
            .get()
            .map(KernelCounters::read)
            .unwrap_or_default();
        Counts {
            to_client: self.to_client.load(Relaxed) + kernel.to_client,
            to_upstream: self.to_upstream.load(Relaxed) + kernel.to_upstream,
        }
    }
}
