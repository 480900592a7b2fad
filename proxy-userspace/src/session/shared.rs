//! What all sessions share: the configuration of the moment, the engines, what is open, and what is counted.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    access_log::Record, config::Live, http::Version, lines::Lines, metrics::Metrics, pool::Pool,
    registry::Registry, relay::Relay, shaping::Buckets,
};

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    /// What requests are judged by.
    pub current: Current,
    /// Our own listeners.
    pub listeners: Vec<SocketAddr>,
    /// The engines.
    pub relay: Relay,
    /// What is open.
    pub registry: Arc<Registry>,
    /// What limits the bandwidth.
    pub buckets: Buckets,
    /// Connections to origins that are kept.
    pub(crate) pool: Arc<Pool>,
    /// How many passwords are checked at a time.
    pub checks: Arc<Semaphore>,
    /// What is counted of all this.
    pub metrics: Metrics,
    /// The diagnostics' queue.
    pub diagnostics: Lines,
    /// Tunnels that there is room for.
    pub room: u32,
    /// When the process began to serve.
    pub began: Instant,
    /// Whether clients are not served any more, but those that are there.
    pub draining: CancellationToken,
    /// What we call ourselves in `Via` (RFC 9110 section 7.6.3); no other process is called so.
    pub pseudonym: Box<str>,
}

/// Whether clients are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet.
    Starting,
    /// They are.
    Ready,
    /// Those that are there still are.
    Draining,
}

impl State {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl Shared {
    /// Whether clients are served.
    pub fn state(&self) -> State {
        if self.draining.is_cancelled() {
            State::Draining
        } else {
            State::Ready
        }
    }

    /// Counts what a record tells, and writes it to the logs of a configuration that it is meant for.
    pub(super) fn log(&self, live: &Live, record: &Record<'_>) {
        self.metrics.note(record);
        live.log(record);
    }

    /// The proxies that a message has passed, and us, who got it in this version.
    pub(super) fn via(&self, before: &str, version: Version) -> String {
        let comma = if before.is_empty() { "" } else { ", " };
        format!("{before}{comma}{version} {}", self.pseudonym)
    }

    /// Whether we are one of them.
    pub(super) fn is_in(&self, via: &str) -> bool {
        via.split([' ', ',', '\t'])
            .any(|word| word == &*self.pseudonym)
    }
}

/// A name for a process.
#[must_use]
pub fn pseudonym() -> Box<str> {
    use std::hash::{BuildHasher as _, RandomState};

    format!("underpass-{:016x}", RandomState::new().hash_one(())).into()
}

/// The configuration that new requests are judged by. Those that are being served keep theirs.
#[derive(Debug)]
pub struct Current(RwLock<Arc<Live>>);

impl Current {
    /// Begins with this one.
    #[must_use]
    pub fn new(live: Live) -> Self {
        Self(RwLock::new(Arc::new(live)))
    }

    /// The present one.
    pub fn get(&self) -> Arc<Live> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on this one.
    pub fn set(&self, live: Arc<Live>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = live;
    }
}
