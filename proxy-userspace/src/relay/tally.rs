//! What the relay has done since the process began.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Ending, EngineKind, Outcome};

/// Counts of tunnels that have ended.
#[derive(Debug, Default)]
pub struct Tally {
    copy: AtomicU64,
    splice: AtomicU64,
    sockmap: AtomicU64,
    moved: AtomicU64,
    declined: AtomicU64,
    alarms: AtomicU64,
}

impl Tally {
    /// Counts a tunnel that has ended.
    pub(super) fn add(&self, outcome: &Outcome) {
        let engine = match outcome.engine {
            EngineKind::Copy => &self.copy,
            EngineKind::Splice => &self.splice,
            EngineKind::Sockmap => &self.sockmap,
        };
        let count = |counter: &AtomicU64, applies| counter.fetch_add(u64::from(applies), Relaxed);
        count(engine, true);
        count(&self.moved, outcome.moved_after.is_some());
        count(&self.declined, outcome.declined.is_some());
        count(&self.alarms, matches!(outcome.ending, Ending::Integrity(_)));
    }

    /// Tunnels that were reset because the engine's counters contradicted each other.
    pub fn integrity_alarms(&self) -> u64 {
        self.alarms.load(Relaxed)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [copy, splice, sockmap, moved, declined, alarms] = [
            &self.copy,
            &self.splice,
            &self.sockmap,
            &self.moved,
            &self.declined,
            &self.alarms,
        ]
        .map(|counter| counter.load(Relaxed));
        write!(
            f,
            "copy={copy} splice={splice} sockmap={sockmap} moved={moved} declined={declined} \
             integrity_alarms={alarms}"
        )
    }
}
