//! The relay contract, and the engines that fulfil it.
//!
//! A relay gets a [`Pair`] of connected sockets with the bytes already owed to either side, moves
//! bytes until the tunnel ends, and says how it ended. `copy` is the reference; every other engine
//! must be indistinguishable from it to both peers. An engine that cannot take a pair gives it back
//! untouched or with its owed bytes sent ([`Declined`]), and the next one takes it.
//!
//! What every engine guarantees:
//! - bytes arrive complete and in order, or the tunnel ends in a reset;
//! - one side's FIN becomes a FIN to the other after its last byte, and the other direction lives on;
//! - one side's reset, a timeout or a cancellation becomes a reset of both, never a clean end;
//! - what is buffered for a slow receiver is bounded.

mod copy;
mod duplex;
mod evidence;
pub mod rules;
mod sealed;
pub mod selection;
mod shaped;
mod silence;
pub mod sockmap;
pub mod splice;
mod tally;
mod traffic;

use std::{fmt, io, os::fd::AsFd, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    duplex::Parting, evidence::Evidence, sealed::Seals, selection::EngineChoice, splice::Manner,
};
pub use self::{
    tally::Tally,
    traffic::{Counts, Traffic},
};
use crate::{limits::RESET_FLUSH, net::sockopt, shaping::Shaper};

/// One of a tunnel's two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that sent CONNECT.
    Client,
    /// The one that we connected to.
    Upstream,
}

/// One of a tunnel's two sockets, with what was done on it before the relay.
#[derive(Debug)]
pub struct Leg {
    /// The connected socket, non-blocking.
    pub stream: TcpStream,
    /// What seals the connection, if it is TLS; bytes are counted as they are inside then.
    pub tls: Option<Box<rustls::Connection>>,
    /// Bytes that this peer must receive before any the relay reads: the `200` for the client, early
    /// data for the upstream.
    pub owed: Vec<u8>,
    /// Bytes read from the socket so far.
    pub consumed: u64,
    /// Bytes written to the socket so far.
    pub written: u64,
}

/// Two connected sockets to be joined.
///
/// Whatever closes them ends both connections with a reset, be it the end of this process; only
/// after both sides have finished does an engine permit a clean end.
#[derive(Debug)]
pub struct Pair {
    /// The accepted socket.
    pub client: Leg,
    /// The socket we opened.
    pub upstream: Leg,
}

impl Leg {
    /// What this peer must receive first; an engine does that only once.
    fn take_owed(&mut self) -> Vec<u8> {
        let owed = std::mem::take(&mut self.owed);
        self.written += owed.len() as u64;
        owed
    }

    /// An engine has moved so many bytes from and to the socket.
    fn note_moved(&mut self, consumed: u64, written: u64) {
        self.consumed += consumed;
        self.written += written;
    }
}

impl Pair {
    /// Puts the two together, on the heap: they go from hand to hand.
    pub fn new(client: Leg, upstream: Leg) -> Box<Self> {
        reset_on_close(&client.stream);
        reset_on_close(&upstream.stream);
        Box::new(Self { client, upstream })
    }
}

/// How long a tunnel may be quiet.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Without a byte in either direction.
    pub idle: Duration,
    /// The same, once one side has finished.
    pub half_closed: Duration,
}

/// What a tunnel is run with.
#[derive(Debug)]
pub struct Order<'a> {
    /// The engine to begin with.
    pub engine: EngineChoice,
    /// How long it may be quiet.
    pub limits: Limits,
    /// Its buckets, if its bandwidth is limited.
    pub shaper: Option<&'a Shaper>,
    /// Its counters.
    pub traffic: &'a Arc<Traffic>,
    /// How it is told to end.
    pub cancel: &'a CancellationToken,
}

/// What a tunnel runs under, whichever engine carries it.
#[derive(Debug)]
struct Terms<'a> {
    limits: Limits,
    /// Its counters.
    traffic: &'a Arc<Traffic>,
    /// How it is told to end.
    cancel: &'a CancellationToken,
}

/// How a tunnel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both sides finished with a FIN that was relayed.
    Closed,
    /// A side reset its connection, or stopped answering.
    Reset(Side),
    /// No byte in either direction for [`Limits::idle`].
    IdleTimeout,
    /// One side finished and the other was quiet for [`Limits::half_closed`].
    HalfClosedTimeout,
    /// The proxy was ended.
    Cancelled,
    /// An operator has ended it.
    Killed,
    /// It was open for as long as a tunnel may be.
    Lifetime,
    /// The rules have changed, and forbid it: which of them.
    Forbidden(String),
    /// The engine's own counters contradicted each other; nothing doubtful was delivered.
    Integrity(String),
    /// A system call failed that cannot fail while the tunnel is well.
    Failed(String),
}

impl Ending {
    /// What its name does not say.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Forbidden(what) | Self::Integrity(what) | Self::Failed(what) => Some(what),
            _ => None,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Reset(Side::Client) => "client-reset",
            Self::Reset(Side::Upstream) => "upstream-reset",
            Self::IdleTimeout => "idle-timeout",
            Self::HalfClosedTimeout => "half-closed-timeout",
            Self::Cancelled => "cancelled",
            Self::Killed => "killed",
            Self::Lifetime => "lifetime",
            Self::Forbidden(_) => "forbidden",
            Self::Integrity(_) => "integrity",
            Self::Failed(_) => "error",
        })
    }
}

/// The engines by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// `sk_skb` redirection in the kernel.
    Sockmap,
    /// `splice(2)` through pipes.
    Splice,
    /// `read` and `write`.
    Copy,
}

impl EngineKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sockmap, Self::Splice, Self::Copy];
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sockmap => "sockmap",
            Self::Splice => "splice",
            Self::Copy => "copy",
        })
    }
}

/// An engine's refusal of a pair, which it gives back.
#[derive(Debug)]
pub struct Declined {
    /// The pair; bytes it owed may have been sent.
    pub pair: Box<Pair>,
    /// Why, for the tunnel's record.
    pub reason: String,
}

/// What became of a tunnel.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The engine that carried it, in the end.
    pub engine: EngineKind,
    /// Bytes that user space had moved, both ways, when the tunnel went on in the kernel.
    pub moved_after: Option<u64>,
    /// Why a better engine did not carry it.
    pub declined: Option<String>,
    /// What the kernel moved by itself.
    pub spliced: Spliced,
    /// How it ended.
    pub ending: Ending,
}

/// The kernel's share of a tunnel's work, both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spliced {
    /// Bytes that user space never saw.
    pub bytes: u64,
    /// How often a receiver was so slow that user space had to step in.
    pub pauses: u64,
    /// Segments that overlapped bytes already passed on, as retransmissions do, and were trimmed.
    pub trimmed: u64,
    /// How often so much waited behind the other direction that a sender had to be held back by losses.
    pub floods: u64,
}

/// The engines of this process; `copy` is always there.
#[derive(Clone, Debug, Default)]
pub struct Relay {
    sockmap: Option<Arc<sockmap::Sockmap>>,
    splice: Option<Arc<splice::Splice>>,
    tally: Arc<Tally>,
}

impl Relay {
    /// A relay that copies.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, but it can let the kernel join the sockets.
    #[must_use]
    pub fn with_sockmap(mut self, sockmap: Arc<sockmap::Sockmap>) -> Self {
        self.sockmap = Some(sockmap);
        self
    }

    /// The same, but it can use pipes.
    #[must_use]
    pub fn with_splice(mut self, splice: Arc<splice::Splice>) -> Self {
        self.splice = Some(splice);
        self
    }

    /// The engines that there are.
    pub fn engines(&self) -> impl Iterator<Item = EngineKind> + '_ {
        EngineKind::ALL.into_iter().filter(|engine| match engine {
            EngineKind::Sockmap => self.sockmap.is_some(),
            EngineKind::Splice => self.splice.is_some(),
            EngineKind::Copy => true,
        })
    }

    /// How many tunnels the kernel engine carries, and has room for.
    pub fn kernel_slots(&self) -> Option<(usize, usize)> {
        self.sockmap.as_ref().map(|sockmap| sockmap.slots())
    }

    /// What it has done so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Joins the pair until the tunnel ends, by the chosen engine or the next best that there is.
    /// Both sockets are closed on return.
    ///
    /// Cancel it through the order: a dropped future closes the sockets too, but says nothing.
    pub async fn run(&self, pair: Box<Pair>, order: Order<'_>) -> Outcome {
        let Order {
            engine,
            limits,
            shaper,
            traffic,
            cancel,
        } = order;
        let terms = Terms {
            limits,
            traffic,
            cancel,
        };
        let is_sealed = pair.client.tls.is_some() || pair.upstream.tls.is_some();
        let outcome = match shaper {
            Some(shaper) => shape(engine, pair, shaper, &terms).await,
            // On the heap: most tunnels have no TLS of ours, and all would carry its size.
            None if is_sealed => Box::pin(unseal(engine, pair, &terms)).await,
            None => self.carry(engine, pair, &terms).await,
        };
        self.tally.add(&outcome);
        outcome
    }

    async fn carry(&self, choice: EngineChoice, mut pair: Box<Pair>, terms: &Terms<'_>) -> Outcome {
        let mut declined = Declines::default();
        if choice == EngineChoice::Sockmap {
            pair = match self.in_kernel(pair, terms).await {
                Ok(outcome) => return outcome,
                Err(refusal) => declined.add(refusal),
            };
        }
        let mut evidence =
            (choice == EngineChoice::Auto && self.sockmap.is_some()).then(Evidence::default);
        loop {
            let (engine, parting) = self
                .in_user_space(choice, evidence.take(), &mut pair, terms, &mut declined)
                .await;
            match parting {
                Parting::Ended(ending) => {
                    return Outcome {
                        engine,
                        moved_after: None,
                        declined: declined.0,
                        spliced: Spliced::default(),
                        ending,
                    };
                }
                Parting::Leaves => {
                    let moved = pair.client.written + pair.upstream.written;
                    pair = match self.in_kernel(pair, terms).await {
                        Ok(outcome) => {
                            return Outcome {
                                moved_after: Some(moved),
                                ..outcome
                            };
                        }
                        // Then it stays.
                        Err(refusal) => declined.add(refusal),
                    };
                }
            }
        }
    }

    /// Lets the kernel join the pair until the tunnel ends, or gives it back.
    async fn in_kernel(&self, pair: Box<Pair>, terms: &Terms<'_>) -> Result<Outcome, Declined> {
        let Some(sockmap) = &self.sockmap else {
            let reason = "not loaded".to_owned();
            return Err(Declined { pair, reason });
        };
        terms.traffic.note_engine(EngineKind::Sockmap);
        // On the heap: most tunnels never need it, and all would carry its size.
        let ran = match Box::pin(sockmap.run(pair, terms)).await {
            Ok(ran) => ran,
            Err(declined) => {
                terms.traffic.note_engine(EngineKind::Copy);
                return Err(declined);
            }
        };
        let engine = if ran.degraded.is_some() {
            EngineKind::Copy
        } else {
            EngineKind::Sockmap
        };
        Ok(Outcome {
            engine,
            moved_after: None,
            declined: ran.degraded.map(|reason| format!("sockmap: {reason}")),
            spliced: ran.spliced,
            ending: ran.ending,
        })
    }

    /// Moves the pair's bytes from here until the tunnel ends or, with evidence, leaves: by what,
    /// and which of the two.
    async fn in_user_space(
        &self,
        choice: EngineChoice,
        evidence: Option<Evidence>,
        pair: &mut Pair,
        terms: &Terms<'_>,
        declined: &mut Declines,
    ) -> (EngineKind, Parting) {
        let splice = self
            .splice
            .as_ref()
            .filter(|_| choice != EngineChoice::Copy);
        let Some(splice) = splice else {
            let parting = copy::run(pair, evidence, terms).await;
            return (EngineKind::Copy, parting);
        };
        let manner = if choice == EngineChoice::Splice {
            Manner::Always
        } else {
            Manner::Bulk
        };
        let ran = splice.run(pair, manner, evidence, terms).await;
        if ran.copied > 0 {
            declined.note(format!(
                "splice: {} bytes copied for want of a pipe",
                ran.copied
            ));
        }
        (ran.engine, ran.parting)
    }
}

/// Limits the tunnel's bandwidth, which takes an engine that can wait: `copy`.
async fn shape(
    choice: EngineChoice,
    mut pair: Box<Pair>,
    shaper: &Shaper,
    terms: &Terms<'_>,
) -> Outcome {
    // On the heap: few tunnels are limited, and all would carry its size.
    let ending = Box::pin(shaped::run(&mut pair, shaper, terms)).await;
    let named = matches!(choice, EngineChoice::Sockmap | EngineChoice::Splice);
    Outcome {
        engine: EngineKind::Copy,
        moved_after: None,
        declined: named.then(|| format!("{choice}: the bandwidth is limited")),
        spliced: Spliced::default(),
        ending,
    }
}

/// Carries a tunnel with TLS on one of its sockets, whose bytes only user space can read.
async fn unseal(choice: EngineChoice, mut pair: Box<Pair>, terms: &Terms<'_>) -> Outcome {
    let ending = match Seals::take(&mut pair) {
        Some(seals) => {
            let [mut up, mut down] = seals.movers(&mut pair);
            duplex::run(&mut pair, [&mut up, &mut down], None, terms)
                .await
                .ending()
        }
        None => copy::run(&mut pair, None, terms).await.ending(),
    };
    let named = matches!(choice, EngineChoice::Sockmap | EngineChoice::Splice);
    Outcome {
        engine: EngineKind::Copy,
        moved_after: None,
        declined: named.then(|| format!("{choice}: a connection of it is TLS")),
        spliced: Spliced::default(),
        ending,
    }
}

/// Why engines did not carry a tunnel, or not all of it.
#[derive(Debug, Default)]
struct Declines(Option<String>);

impl Declines {
    fn note(&mut self, reason: String) {
        self.0 = Some(match self.0.take() {
            Some(first) => format!("{first}; {reason}"),
            None => reason,
        });
    }

    /// Takes the pair back from the kernel engine.
    fn add(&mut self, refusal: Declined) -> Box<Pair> {
        self.note(format!("sockmap: {}", refusal.reason));
        refusal.pair
    }
}

/// Makes the socket's close send RST: pending data is dropped and nobody takes it for an end.
pub fn reset_on_close(stream: &impl AsFd) {
    // It fails only on a descriptor that is no socket.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Makes the socket's close what it is by default: what was written is delivered, then a FIN.
fn end_on_close(stream: &impl AsFd) {
    // As above.
    let _ = SockRef::from(stream).set_linger(None);
}

/// Waits until the peer has acknowledged all that was written to it, at most [`RESET_FLUSH`].
///
/// A side's reset is passed on with a reset, which drops what is still queued for the other side.
/// On a direct connection those bytes would have been delivered already; give them a moment.
async fn flush_before_reset(stream: &impl AsFd) {
    let deadline = Instant::now() + RESET_FLUSH;
    let mut pause = Duration::from_millis(1);
    while sockopt::unacknowledged(stream).is_ok_and(|bytes| bytes > 0) {
        let now = Instant::now();
        if now >= deadline {
            return;
        }
        sleep_until(deadline.min(now + pause)).await;
        pause *= 2;
    }
}

/// Whether an I/O error on a socket means that its peer is gone, rather than that we erred.
fn is_peer_gone(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    )
}

/// The ending that an I/O error on `side`'s socket means.
fn ending_of(side: Side, error: &io::Error) -> Ending {
    if is_peer_gone(error) {
        Ending::Reset(side)
    } else {
        Ending::Failed(format!("{side:?} socket: {error}"))
    }
}
