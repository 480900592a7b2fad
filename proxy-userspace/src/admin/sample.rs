//! Looks at all tunnels, at most so often, whoever asks.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::sleep};

use super::{Filter, Listing, TunnelView, filter::Sortable};
use crate::{
    access_log::Event,
    registry::{Moved, Registry},
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

/// A tunnel as it was. Numbers alone: whoever is shown is looked up, and nobody is held.
#[derive(Debug)]
struct Seen {
    id: u64,
    since: Instant,
    payload: Counts,
    rates: Rates,
}

/// One that may be shown.
struct Candidate<'a> {
    seen: &'a Seen,
    registry: &'a Registry,
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
            seen.push(Seen {
                id: tunnel.id,
                since: tunnel.since,
                payload,
                rates: Rates::default(),
            });
        });
        seen.sort_unstable_by_key(|seen| seen.id);
        let mut earlier = before
            .map_or(&[][..], |sample| &sample.seen)
            .iter()
            .peekable();
        for seen in &mut seen {
            while earlier.next_if(|earlier| earlier.id < seen.id).is_some() {}
            let known = earlier.next_if(|earlier| earlier.id == seen.id);
            // One that was not there before has been as fast as it was since it began.
            let (payload, since) = match before {
                Some(sample) if seen.since < sample.taken => (
                    known.map(|known| known.payload).unwrap_or_default(),
                    sample.taken,
                ),
                _ => (Counts::default(), seen.since),
            };
            let time = now.saturating_duration_since(since);
            seen.rates = Rates::of(payload, seen.payload, time);
        }
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
    pub(super) fn tunnel(&self, registry: &Registry, id: u64) -> Option<TunnelView> {
        let seen = self.find(id)?;
        Candidate { seen, registry }.view()
    }

    /// Those that fit and are still open, in order.
    pub(super) fn listing(&self, registry: &Registry, filter: &Filter) -> Listing {
        let limit = filter.limit.unwrap_or(usize::MAX);
        let candidates = self.seen.iter().map(|seen| Candidate { seen, registry });
        if !filter.is_explicit() {
            // Of thousands, those that are not shown need no text.
            let mut candidates: Vec<_> = candidates.collect();
            filter.order(&mut candidates);
            let sum = |of: fn(&Seen) -> f64| self.seen.iter().map(of).sum();
            return Listing {
                total: self.seen.len(),
                up_rate: sum(|seen| seen.rates.up),
                down_rate: sum(|seen| seen.rates.down),
                tunnels: candidates
                    .iter()
                    .filter_map(Candidate::view)
                    .take(limit)
                    .collect(),
            };
        }
        let open = candidates.filter_map(|candidate| candidate.view());
        let mut tunnels: Vec<_> = open.filter(|view| filter.fits(view)).collect();
        let sum = |of: fn(&TunnelView) -> f64| tunnels.iter().map(of).sum();
        let (up_rate, down_rate) = (sum(|view| view.up_rate), sum(|view| view.down_rate));
        let total = tunnels.len();
        filter.order(&mut tunnels);
        tunnels.truncate(limit);
        Listing {
            total,
            up_rate,
            down_rate,
            tunnels,
        }
    }
}

impl Candidate<'_> {
    /// All about it, if it is still open.
    fn view(&self) -> Option<TunnelView> {
        let tunnel = self.registry.tunnel(self.seen.id)?;
        Some(TunnelView::new(&tunnel, self.seen.payload, self.seen.rates))
    }
}

impl Sortable for Candidate<'_> {
    fn rate(&self) -> f64 {
        self.seen.rates.up + self.seen.rates.down
    }

    fn bytes(&self) -> u64 {
        self.seen.payload.to_client + self.seen.payload.to_upstream
    }

    fn client(&self) -> Option<SocketAddr> {
        let tunnel = self.registry.tunnel(self.seen.id)?;
        Some(tunnel.client)
    }

    fn target(&self) -> Option<String> {
        let tunnel = self.registry.tunnel(self.seen.id)?;
        Some(tunnel.record(Event::Progress).url.to_string())
    }

    fn engine(&self) -> Option<String> {
        let tunnel = self.registry.tunnel(self.seen.id)?;
        Some(tunnel.traffic.engine()?.to_string())
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
