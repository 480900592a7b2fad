//! Looks at all tunnels, at most so often, whoever asks: the counters of a tunnel in the kernel are system calls away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::TunnelView;
use crate::{registry::Registry, relay::Counts};

/// How old a look may be. Bytes are seen within two seconds of their flowing.
const FRESH: Duration = Duration::from_millis(900);

/// Bytes in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) up: f64,
    pub(super) down: f64,
}

/// The last look.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    last: Mutex<Option<Arc<Sample>>>,
}

/// A look at all tunnels.
#[derive(Debug)]
pub(super) struct Sample {
    taken: Instant,
    counts: HashMap<u64, Counts>,
    /// All of them.
    pub(super) tunnels: Vec<TunnelView>,
    /// All bytes since the process began.
    pub(super) total: Counts,
    /// How fast those grow.
    pub(super) rates: Rates,
}

impl Sampler {
    /// All tunnels, as they were a moment ago at most.
    pub(super) fn sample(&self, registry: &Registry) -> Arc<Sample> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(sample) = &*last
            && now.duration_since(sample.taken) < FRESH
        {
            return Arc::clone(sample);
        }
        let sample = Arc::new(Sample::take(registry, last.as_deref(), now));
        *last = Some(Arc::clone(&sample));
        sample
    }
}

impl Sample {
    fn take(registry: &Registry, before: Option<&Self>, now: Instant) -> Self {
        let mut counts = HashMap::new();
        let mut tunnels = Vec::new();
        for tunnel in registry.tunnels() {
            let moved = tunnel.traffic.payload();
            // One that was not there before has been as fast as it was since it began.
            let (earlier, since) = match before {
                Some(sample) if tunnel.since < sample.taken => (
                    sample.counts.get(&tunnel.id).copied().unwrap_or_default(),
                    sample.taken,
                ),
                _ => (Counts::default(), tunnel.since),
            };
            let rates = Rates::of(earlier, moved, now.saturating_duration_since(since));
            counts.insert(tunnel.id, moved);
            tunnels.push(TunnelView::new(&tunnel, moved, rates));
        }
        let total = registry.moved().total();
        let rates = before.map_or_else(Rates::default, |sample| {
            Rates::of(sample.total, total, now.duration_since(sample.taken))
        });
        Self {
            taken: now,
            counts,
            tunnels,
            total,
            rates,
        }
    }
}

impl Rates {
    /// From one count to another.
    fn of(before: Counts, after: Counts, time: Duration) -> Self {
        // Shorter says nothing.
        let seconds = time.as_secs_f64().max(0.1);
        let rate = |before: u64, after: u64| {
            let bytes = after.saturating_sub(before);
            // Whole bytes are exact enough; counts beyond 2^53 are not met in a second.
            #[expect(clippy::cast_precision_loss, reason = "of a rate nobody minds")]
            let rate = bytes as f64 / seconds;
            rate.round()
        };
        Self {
            up: rate(before.to_upstream, after.to_upstream),
            down: rate(before.to_client, after.to_client),
        }
    }
}
