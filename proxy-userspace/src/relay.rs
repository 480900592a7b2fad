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
pub mod selection;
mod silence;
pub mod sockmap;
pub mod splice;
mod traffic;

use std::{fmt, io, os::fd::AsFd, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use self::traffic::{Counts, Traffic};
use crate::{limits::RESET_FLUSH, net::sockopt};

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

impl Pair {
    /// Puts the two together.
    pub fn new(client: Leg, upstream: Leg) -> Self {
        reset_on_close(&client.stream);
        reset_on_close(&upstream.stream);
        Self { client, upstream }
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
    /// Somebody asked for it: shutdown, or an operator.
    Cancelled,
    /// The engine's own counters contradicted each other; nothing doubtful was delivered.
    Integrity(String),
    /// A system call failed that cannot fail while the tunnel is well.
    Failed(String),
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
    pub pair: Pair,
    /// Why, for the tunnel's record.
    pub reason: String,
}

/// What became of a tunnel.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The engine that carried it.
    pub engine: EngineKind,
    /// Why a better engine did not.
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
}

/// The engines of this process, best first; `copy` is always there.
#[derive(Clone, Debug, Default)]
pub struct Relay {
    sockmap: Option<Arc<sockmap::Sockmap>>,
    splice: Option<Arc<splice::Splice>>,
}

impl Relay {
    /// A relay that copies.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, but it lets the kernel join the sockets where it can.
    #[must_use]
    pub fn with_sockmap(mut self, sockmap: Arc<sockmap::Sockmap>) -> Self {
        self.sockmap = Some(sockmap);
        self
    }

    /// The same, but it uses pipes rather than buffers where user space moves bytes.
    #[must_use]
    pub fn with_splice(mut self, splice: Arc<splice::Splice>) -> Self {
        self.splice = Some(splice);
        self
    }

    /// Joins the pair until the tunnel ends. Both sockets are closed on return.
    ///
    /// Cancel it through `cancel`: a dropped future closes the sockets too, but says nothing.
    pub async fn run(
        &self,
        mut pair: Pair,
        limits: Limits,
        traffic: &Arc<Traffic>,
        cancel: &CancellationToken,
    ) -> Outcome {
        let mut declined = None;
        if let Some(sockmap) = &self.sockmap {
            match sockmap.run(pair, limits, traffic, cancel).await {
                Ok(ran) => {
                    let engine = if ran.degraded.is_some() {
                        EngineKind::Copy
                    } else {
                        EngineKind::Sockmap
                    };
                    return Outcome {
                        engine,
                        declined: ran.degraded.map(|reason| format!("sockmap: {reason}")),
                        spliced: ran.spliced,
                        ending: ran.ending,
                    };
                }
                Err(refusal) => {
                    pair = refusal.pair;
                    declined = Some(format!("sockmap: {}", refusal.reason));
                }
            }
        }
        let (engine, ending) = match &self.splice {
            Some(splice) => {
                let ran = splice.run(pair, limits, traffic, cancel).await;
                if ran.copied > 0 {
                    let reason = format!("splice: {} bytes copied for want of a pipe", ran.copied);
                    declined = Some(
                        declined
                            .map_or(reason.clone(), |first: String| format!("{first}; {reason}")),
                    );
                }
                (EngineKind::Splice, ran.ending)
            }
            None => (
                EngineKind::Copy,
                copy::run(pair, limits, traffic, cancel).await,
            ),
        };
        Outcome {
            engine,
            declined,
            spliced: Spliced::default(),
            ending,
        }
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
