//! Looks at all tunnels, at most so often, whoever asks.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::sleep};

use super::{Filter, Listing, TunnelView};
use crate::{
    registry::{Moved, Registry, Tunnel},
    relay::Counts,
};

/// How old a look may be. Bytes are seen within two seconds of their flowing.
const FRESH: Duration = Duration::from_millis(900);

/// How old one may be to say how fast tunnels are since.
const STALE: Duration = Duration::from_secs(5);

/// Without one, how far apart two are taken.
const APART: Duration = Duration::from_millis(500);

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
    /// All of them, the oldest first.
    seen: Vec<Seen>,
    /// What is open and was moved, in sums.
    pub(super) moved: Moved,
    /// How fast all that grows.
    pub(super) rates: Rates,
}

/// A tunnel as it was.
#[derive(Debug)]
struct Seen {
    id: u64,
    /// Not held: nobody may look again for long.
    tunnel: Weak<Tunnel>,
    payload: Counts,
    rates: Rates,
}

impl Sampler {
    /// All tunnels, as they were a moment ago at most, and as fast as they were then.
    pub(super) async fn sample(&self, registry: &Registry) -> Arc<Sample> {
        // Whoever comes in the meantime gets the same.
        let mut last = self.last.lock().await;
        let before = match last.as_ref() {
            Some(sample) if sample.taken.elapsed() < FRESH => return Arc::clone(sample),
            Some(sample) if sample.taken.elapsed() < STALE => Arc::clone(sample),
            _ => {
                let first = Arc::new(Sample::take(registry, None));
                sleep(APART).await;
                first
            }
        };
        let sample = Arc::new(Sample::take(registry, Some(&before)));
        *last = Some(Arc::clone(&sample));
        sample
    }
}

impl Sample {
    fn take(registry: &Registry, before: Option<&Self>) -> Self {
        let now = Instant::now();
        let mut seen = Vec::new();
        let moved = registry.look(|tunnel, payload| {
            // One that was not there before has been as fast as it was since it began.
            let (earlier, since) = match before {
                Some(sample) if tunnel.since < sample.taken => {
                    let earlier = sample.find(tunnel.id).map(|seen| seen.payload);
                    (earlier.unwrap_or_default(), sample.taken)
                }
                _ => (Counts::default(), tunnel.since),
            };
            seen.push(Seen {
                id: tunnel.id,
                tunnel: Arc::downgrade(tunnel),
                payload,
                rates: Rates::of(earlier, payload, now.saturating_duration_since(since)),
            });
        });
        seen.sort_unstable_by_key(|seen| seen.id);
        let rates = before.map_or_else(Rates::default, |sample| {
            let time = now.duration_since(sample.taken);
            Rates::of(sample.moved.total(), moved.total(), time)
        });
        Self {
            taken: now,
            seen,
            moved,
            rates,
        }
    }

    fn find(&self, id: u64) -> Option<&Seen> {
        let found = self.seen.binary_search_by_key(&id, |seen| seen.id);
        self.seen.get(found.ok()?)
    }

    /// One of them, if it is still open.
    pub(super) fn tunnel(&self, id: u64) -> Option<TunnelView> {
        self.find(id)?.view()
    }

    /// Those that fit and are still open, in order.
    pub(super) fn listing(&self, filter: &Filter) -> Listing {
        let limit = filter.limit.unwrap_or(usize::MAX);
        let sum = |of: fn(&Seen) -> f64| self.seen.iter().map(of).sum();
        if !filter.is_explicit() && limit < self.seen.len() {
            // Of thousands, those that are not shown need no text.
            let mut seen: Vec<&Seen> = self.seen.iter().collect();
            if filter
                .sort
                .apply_to_numbers(&mut seen, Seen::speed, Seen::bytes)
            {
                let still_open = seen.into_iter().filter_map(Seen::view);
                return Listing {
                    total: self.seen.len(),
                    up_rate: sum(|seen| seen.rates.up),
                    down_rate: sum(|seen| seen.rates.down),
                    tunnels: still_open.take(limit).collect(),
                };
            }
        }
        let open = self.seen.iter().filter_map(Seen::view);
        let mut tunnels: Vec<_> = open.filter(|view| filter.fits(view)).collect();
        let sum = |of: fn(&TunnelView) -> f64| tunnels.iter().map(of).sum();
        let (up_rate, down_rate) = (sum(|view| view.up_rate), sum(|view| view.down_rate));
        let total = tunnels.len();
        filter.sort.apply(&mut tunnels);
        tunnels.truncate(limit);
        Listing {
            total,
            up_rate,
            down_rate,
            tunnels,
        }
    }
}

impl Seen {
    fn view(&self) -> Option<TunnelView> {
        let tunnel = self.tunnel.upgrade()?;
        Some(TunnelView::new(&tunnel, self.payload, self.rates))
    }

    fn speed(&self) -> f64 {
        self.rates.up + self.rates.down
    }

    fn bytes(&self) -> u64 {
        self.payload.to_client + self.payload.to_upstream
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
