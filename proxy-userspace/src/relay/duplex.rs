//! Two directions in user space: what the engines that move bytes from there have in common.
//!
//! An engine is a [`Mover`], which knows how bytes get from one socket to another. Turns, ends,
//! limits and resets are here.

use std::{
    future::poll_fn,
    io,
    net::Shutdown,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    select,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Ending, Limits, Pair, Side, Traffic, end_on_close, ending_of, flush_before_reset,
    silence::Silence,
};
use crate::{
    limits::{RECEIVE_BUFFER_BYTES, RESET_FLUSH, TURN_BYTES},
    net::sockopt,
};

/// How the bytes of one direction are moved: a place that they are in between two sockets.
pub(super) trait Mover {
    /// Moves what is in that place to the target, and tells `count`; ready once it is empty.
    fn poll_empty(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
        count: &impl Fn(u64),
    ) -> Poll<Result<(), Failed>>;

    /// Fills the place, which is empty, from the source, which was said to be readable.
    fn fill(&mut self, source: &TcpStream) -> Result<Reading, Failed>;

    /// Gives back what a direction without bytes does not need.
    fn park(&mut self);
}

/// What a read from the source found.
pub(super) enum Reading {
    /// So many bytes.
    Bytes(usize),
    /// The source's FIN.
    EndOfFile,
    /// Nothing after all.
    Nothing,
}

/// Which end of a direction failed.
pub(super) enum Failed {
    /// The one that bytes come from.
    Source(io::Error),
    /// The one that they go to.
    Target(io::Error),
}

/// Joins the pair until the tunnel ends; the movers are given as up, down.
pub(super) async fn run<M: Mover>(
    pair: &Pair,
    [up, down]: [&mut M; 2],
    limits: Limits,
    traffic: &Arc<Traffic>,
    cancel: &CancellationToken,
) -> Ending {
    for leg in [&pair.client, &pair.upstream] {
        sockopt::bound_receive_buffer(&leg.stream, RECEIVE_BUFFER_BYTES);
    }
    let mut tunnel = Tunnel {
        client: &pair.client.stream,
        upstream: &pair.upstream.stream,
        traffic,
        up: Direction::new(up),
        down: Direction::new(down),
    };
    let ending = select! {
        ending = tunnel.drive(limits) => ending,
        () = cancel.cancelled() => Ending::Cancelled,
    };
    match ending {
        Ending::Closed => {
            end_on_close(&pair.client.stream);
            end_on_close(&pair.upstream.stream);
        }
        Ending::Reset(side) => tunnel.deliver_rest(side).await,
        _ => {}
    }
    ending
}

/// Why a direction cannot go on.
struct Broken {
    side: Side,
    error: io::Error,
}

/// A pair at work.
struct Tunnel<'a, M> {
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    traffic: &'a Traffic,
    up: Direction<'a, M>,
    down: Direction<'a, M>,
}

impl<M: Mover> Tunnel<'_, M> {
    /// Moves bytes until both directions have finished, one breaks, or it is quiet for too long.
    async fn drive(&mut self, limits: Limits) -> Ending {
        let mut silence = Silence::new(limits);
        loop {
            let half_closed = self.up.finished || self.down.finished;
            if half_closed {
                silence.half_close();
            }
            let (client, upstream) = (self.client, self.upstream);
            let ended = select! {
                biased;
                result = poll_fn(|cx| self.poll(cx, half_closed)) => Some(result),
                // A reset is noticed even while nobody reads from that side.
                _ = client.ready(Interest::ERROR) => return Ending::Reset(Side::Client),
                _ = upstream.ready(Interest::ERROR) => return Ending::Reset(Side::Upstream),
                () = sleep_until(silence.next()) => None,
            };
            match ended {
                Some(Ok(())) if self.up.finished && self.down.finished => return Ending::Closed,
                Some(Ok(())) => {}
                Some(Err(broken)) => return ending_of(broken.side, &broken.error),
                None => {
                    if let Err(ending) = silence.check(client, upstream) {
                        return ending;
                    }
                }
            }
        }
    }

    /// Ready when a direction finishes that had not, or one breaks.
    fn poll(&mut self, cx: &mut Context<'_>, was_half_closed: bool) -> Poll<Result<(), Broken>> {
        let up = self
            .up
            .poll(cx, self.client, self.upstream, |n| {
                self.traffic.add_to_upstream(n);
            })
            .map_err(|failed| failed.of(Side::Client, Side::Upstream));
        if let Poll::Ready(Err(broken)) = up {
            return Poll::Ready(Err(broken));
        }
        let down = self
            .down
            .poll(cx, self.upstream, self.client, |n| {
                self.traffic.add_to_client(n);
            })
            .map_err(|failed| failed.of(Side::Upstream, Side::Client));
        match (up, down) {
            (_, Poll::Ready(Err(broken))) => Poll::Ready(Err(broken)),
            (Poll::Ready(_), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            (Poll::Ready(_), Poll::Pending) | (Poll::Pending, Poll::Ready(_))
                if !was_half_closed =>
            {
                Poll::Ready(Ok(()))
            }
            _ => Poll::Pending,
        }
    }

    /// Gives the other side what `side` had sent before its reset, for a short while.
    async fn deliver_rest(&mut self, side: Side) {
        let (client, upstream, traffic) = (self.client, self.upstream, self.traffic);
        let rest = pin!(async {
            // Ends with the reset's error once the queue is empty, or with end of file where the
            // error was reported already.
            match side {
                Side::Client => {
                    let count = |n| traffic.add_to_upstream(n);
                    let _ = poll_fn(|cx| self.up.poll_bytes(cx, client, upstream, count)).await;
                    flush_before_reset(upstream).await;
                }
                Side::Upstream => {
                    let count = |n| traffic.add_to_client(n);
                    let _ = poll_fn(|cx| self.down.poll_bytes(cx, upstream, client, count)).await;
                    flush_before_reset(client).await;
                }
            }
        });
        // Expiry means the other side does not read; the reset follows either way.
        let _ = timeout(RESET_FLUSH, rest).await;
    }
}

impl Failed {
    fn of(self, source: Side, target: Side) -> Broken {
        match self {
            Self::Source(error) => Broken {
                side: source,
                error,
            },
            Self::Target(error) => Broken {
                side: target,
                error,
            },
        }
    }
}

/// One way through the tunnel.
struct Direction<'a, M> {
    mover: &'a mut M,
    /// The source's FIN has been seen.
    end_of_file: bool,
    /// It has been passed on.
    finished: bool,
}

impl<'a, M: Mover> Direction<'a, M> {
    fn new(mover: &'a mut M) -> Self {
        Self {
            mover,
            end_of_file: false,
            finished: false,
        }
    }

    /// Moves bytes; ready once the source's FIN has been passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        target: &TcpStream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_bytes(cx, source, target, count))?;
        SockRef::from(target)
            .shutdown(Shutdown::Write)
            .map_err(Failed::Target)?;
        self.finished = true;
        Poll::Ready(Ok(()))
    }

    /// Moves bytes; ready once all bytes before the source's end of file are written. After a share
    /// of bytes it asks for another turn, so that bulk one way cannot starve the other way, which
    /// `tokio::io::copy_bidirectional` lets it.
    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        target: &TcpStream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        let mut budget = TURN_BYTES;
        loop {
            ready!(self.mover.poll_empty(cx, target, &count))?;
            if self.end_of_file {
                self.mover.park();
                return Poll::Ready(Ok(()));
            }
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let readable = source.poll_read_ready(cx).map_err(Failed::Source)?;
            if readable.is_pending() {
                self.mover.park();
                return Poll::Pending;
            }
            match self.mover.fill(source)? {
                Reading::Bytes(n) => budget = budget.saturating_sub(n),
                Reading::EndOfFile => self.end_of_file = true,
                Reading::Nothing => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::atomic::{AtomicU64, Ordering::Relaxed},
        task::Waker,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::{
        super::{copy::Buffer, splice::Splice},
        *,
    };
    use crate::limits::COPY_BUFFER_MAX_BYTES;

    /// Both ends of a connection over loopback.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    /// However much there is to move, a direction stops after its budget and asks for another turn.
    async fn takes_turns(mover: &mut impl Mover) {
        let (mut sender, source) = connection().await;
        let (target, mut receiver) = connection().await;
        tokio::spawn(async move {
            let block = vec![7; 64 * 1024];
            while sender.write_all(&block).await.is_ok() {}
        });
        tokio::spawn(async move {
            let mut block = vec![0; 64 * 1024];
            while receiver.read(&mut block).await.is_ok_and(|n| n > 0) {}
        });
        let mut direction = Direction::new(mover);
        let mut spent = 0;
        for _ in 0..200 {
            source.readable().await.unwrap();
            let moved = AtomicU64::new(0);
            let count = |n| {
                moved.fetch_add(n, Relaxed);
            };
            let mut cx = Context::from_waker(Waker::noop());
            assert!(
                direction
                    .poll_bytes(&mut cx, &source, &target, count)
                    .is_pending()
            );
            let moved = moved.into_inner();
            let most = (TURN_BYTES + COPY_BUFFER_MAX_BYTES) as u64;
            assert!(moved <= most, "{moved} bytes in one turn");
            spent += u64::from(moved >= TURN_BYTES as u64);
        }
        assert!(spent > 0, "the budget was never reached");
    }

    #[tokio::test]
    async fn a_buffer_with_much_to_move_gives_the_other_direction_its_turn() {
        takes_turns(&mut Buffer::new(Vec::new())).await;
    }

    #[tokio::test]
    async fn a_pipe_with_much_to_move_gives_the_other_direction_its_turn() {
        takes_turns(&mut Splice::new(1).unwrap().mover(Vec::new())).await;
    }
}
