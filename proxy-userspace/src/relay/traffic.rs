//! Live byte counters of a tunnel, readable by anybody at any time without disturbing it.

use std::{
    ops::AddAssign,
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{EngineKind, Side, sockmap::KernelCounters};

/// Bytes written so far, by peer: all of them, or the payload, as is said where they come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// To the client.
    pub to_client: u64,
    /// To the upstream.
    pub to_upstream: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.to_client += other.to_client;
        self.to_upstream += other.to_upstream;
    }
}

/// What a tunnel has moved. Shared by the engine, which counts, and whoever looks.
#[derive(Debug)]
pub struct Traffic {
    since: Instant,
    /// Bytes that user space has written to the client: by copying, and through pipes.
    to_client: [AtomicU64; 2],
    /// The same to the upstream.
    to_upstream: [AtomicU64; 2],
    /// Bytes to the client that are our own answer.
    answer: AtomicU64,
    /// Bytes to the upstream that asked for the tunnel, or told who the client is.
    asked: AtomicU64,
    kernel: OnceLock<KernelCounters>,
    /// What the kernel had moved in the end.
    settled: OnceLock<Counts>,
    /// The engine that has it.
    engine: AtomicU8,
    /// The side that finished first.
    finished: AtomicU8,
    /// Microseconds until the first byte behind the answer, and one; 0 while there is none.
    first_byte: AtomicU64,
}

/// What stands for none in an atomic.
const NOTHING: u8 = u8::MAX;

impl Traffic {
    /// Counters of a tunnel whose request came at this time.
    #[must_use]
    pub fn new(since: Instant) -> Self {
        Self {
            since,
            to_client: Default::default(),
            to_upstream: Default::default(),
            answer: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            kernel: OnceLock::new(),
            settled: OnceLock::new(),
            engine: AtomicU8::new(NOTHING),
            finished: AtomicU8::new(NOTHING),
            first_byte: AtomicU64::new(0),
        }
    }

    /// The tunnel begins. Of its answer, which has so many bytes, the client has got so many; and its upstream so many
    /// that are not the client's.
    pub fn begin(&self, answer: u64, told: u64, asked: u64) {
        self.answer.store(answer, Relaxed);
        self.asked.store(asked, Relaxed);
        self.to_client[0].store(told, Relaxed);
        self.to_upstream[0].store(asked, Relaxed);
        self.note_engine(EngineKind::Copy);
    }

    /// Counts bytes that user space wrote to the client.
    pub(crate) fn add_to_client(&self, bytes: u64) {
        self.own(&self.to_client).fetch_add(bytes, Relaxed);
        if self.first_byte.load(Relaxed) == 0 && sum(&self.to_client) > self.answer.load(Relaxed) {
            self.note_first_byte(Instant::now());
        }
    }

    /// The first byte behind the answer was at the client then, unless one was there before.
    fn note_first_byte(&self, when: Instant) {
        let micros = when.saturating_duration_since(self.since).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX - 1) + 1;
        let earlier = |known| (known == 0 || micros < known).then_some(micros);
        // Whoever was there before stays.
        let _ = self.first_byte.fetch_update(Relaxed, Relaxed, earlier);
    }

    /// Counts bytes that user space wrote to the upstream.
    pub(crate) fn add_to_upstream(&self, bytes: u64) {
        self.own(&self.to_upstream).fetch_add(bytes, Relaxed);
    }

    /// The counter of what moves bytes now.
    fn own<'a>(&self, [copied, piped]: &'a [AtomicU64; 2]) -> &'a AtomicU64 {
        if self.engine.load(Relaxed) == EngineKind::Splice as u8 {
            piped
        } else {
            copied
        }
    }

    /// From now on this engine has the tunnel.
    pub(super) fn note_engine(&self, engine: EngineKind) {
        self.engine.store(engine as u8, Relaxed);
    }

    /// A side has finished, maybe as the first one.
    pub(super) fn note_finished(&self, side: Side) {
        // Whoever is later changes nothing.
        let _ = self
            .finished
            .compare_exchange(NOTHING, side as u8, Relaxed, Relaxed);
    }

    /// The engine that has the tunnel; none if nobody has it, as a request that is forwarded.
    pub fn engine(&self) -> Option<EngineKind> {
        let engine = self.engine.load(Relaxed);
        EngineKind::ALL
            .into_iter()
            .find(|known| *known as u8 == engine)
    }

    /// The side that finished first.
    pub fn finished(&self) -> Option<Side> {
        let side = self.finished.load(Relaxed);
        [Side::Client, Side::Upstream]
            .into_iter()
            .find(|known| *known as u8 == side)
    }

    /// From the request to the first byte behind the answer, whoever moved that one.
    pub fn first_byte(&self) -> Option<Duration> {
        if let Some(first) = self.kernel.get().and_then(KernelCounters::first_to_client) {
            self.note_first_byte(first);
        }
        let micros = self.first_byte.load(Relaxed).checked_sub(1);
        micros.map(Duration::from_micros)
    }

    /// Bytes to the upstream that were not the client's.
    pub fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }

    /// The bytes moved so far that are neither our answer nor our question.
    pub fn payload(&self) -> Counts {
        let counts = self.counts();
        Counts {
            to_client: counts.to_client.saturating_sub(self.answer.load(Relaxed)),
            to_upstream: counts.to_upstream.saturating_sub(self.asked()),
        }
    }

    /// From now on, adds what the kernel moves by itself.
    pub(super) fn attach(&self, counters: KernelCounters) {
        // A tunnel is spliced at most once.
        let _ = self.kernel.set(counters);
    }

    /// Ends the live view of the kernel's counters with their last value, or with what is known
    /// better.
    pub(super) fn settle(&self, counts: Counts) {
        // In this order: whoever looks takes what is settled for better than what it has just read.
        let _ = self.settled.set(Counts {
            to_client: counts.to_client.saturating_sub(sum(&self.to_client)),
            to_upstream: counts.to_upstream.saturating_sub(sum(&self.to_upstream)),
        });
        if let Some(kernel) = self.kernel.get() {
            if let Some(first) = kernel.first_to_client() {
                self.note_first_byte(first);
            }
            kernel.detach();
        }
    }

    /// The bytes that the kernel has moved so far.
    fn spliced(&self) -> Counts {
        let read = self.kernel.get().map(KernelCounters::read);
        let settled = self.settled.get().copied();
        settled.or(read).unwrap_or_default()
    }

    /// The bytes moved so far, our answer and our question included.
    pub fn counts(&self) -> Counts {
        let kernel = self.spliced();
        Counts {
            to_client: sum(&self.to_client) + kernel.to_client,
            to_upstream: sum(&self.to_upstream) + kernel.to_upstream,
        }
    }

    /// The payload moved so far, by what moved it: copying, pipes, the kernel.
    pub fn by_engine(&self) -> [(EngineKind, Counts); 3] {
        let load = |index: usize| {
            let at = |counters: &[AtomicU64; 2]| {
                counters
                    .get(index)
                    .map_or(0, |counter| counter.load(Relaxed))
            };
            Counts {
                to_client: at(&self.to_client),
                to_upstream: at(&self.to_upstream),
            }
        };
        let mut copied = load(0);
        copied.to_client = copied.to_client.saturating_sub(self.answer.load(Relaxed));
        copied.to_upstream = copied.to_upstream.saturating_sub(self.asked());
        [
            (EngineKind::Copy, copied),
            (EngineKind::Splice, load(1)),
            (EngineKind::Sockmap, self.spliced()),
        ]
    }
}

fn sum(counters: &[AtomicU64; 2]) -> u64 {
    counters.iter().map(|counter| counter.load(Relaxed)).sum()
}
