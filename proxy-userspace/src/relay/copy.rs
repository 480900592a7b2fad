//! The `copy` engine: `read` and `write`. Always available, and the behaviour that every other
//! engine must reproduce.
//!
//! Each direction has a buffer only while bytes are in it: small at first, larger while reads keep
//! filling it, none when the tunnel is quiet. The directions take turns with a byte budget, so that
//! a bulk transfer one way cannot starve the other (`tokio::io::copy_bidirectional` lets it).

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
    limits::{
        COPY_BUDGET_BYTES, COPY_BUFFER_MAX_BYTES, COPY_BUFFER_MIN_BYTES, RECEIVE_BUFFER_BYTES,
        RESET_FLUSH,
    },
    net::sockopt,
};

/// Joins the pair until the tunnel ends.
pub(super) async fn run(
    pair: Pair,
    limits: Limits,
    traffic: &Arc<Traffic>,
    cancel: &CancellationToken,
) -> Ending {
    for leg in [&pair.client, &pair.upstream] {
        sockopt::bound_receive_buffer(&leg.stream, RECEIVE_BUFFER_BYTES);
    }
    let mut tunnel = Tunnel::new(&pair, traffic);
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
struct Tunnel<'a> {
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    traffic: &'a Traffic,
    up: Direction,
    down: Direction,
}

impl<'a> Tunnel<'a> {
    fn new(pair: &'a Pair, traffic: &'a Traffic) -> Self {
        Self {
            client: &pair.client.stream,
            upstream: &pair.upstream.stream,
            traffic,
            up: Direction::new(pair.upstream.owed.clone()),
            down: Direction::new(pair.client.owed.clone()),
        }
    }

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

/// Which end of a direction failed.
enum Failed {
    Source(io::Error),
    Target(io::Error),
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
struct Direction {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already written.
    done: usize,
    /// Capacity of the next buffer.
    size: usize,
    end_of_file: bool,
    finished: bool,
}

impl Direction {
    fn new(owed: Vec<u8>) -> Self {
        Self {
            buffer: owed,
            done: 0,
            size: COPY_BUFFER_MIN_BYTES,
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

    /// Moves bytes; ready once all bytes before the source's end of file are written.
    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        target: &TcpStream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        let mut budget = COPY_BUDGET_BYTES;
        loop {
            while let Some(unwritten) = self.buffer.get(self.done..)
                && !unwritten.is_empty()
            {
                match target.try_write(unwritten) {
                    Ok(n) => {
                        self.done += n;
                        count(n as u64);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(target.poll_write_ready(cx)).map_err(Failed::Target)?;
                    }
                    Err(error) => return Poll::Ready(Err(Failed::Target(error))),
                }
            }
            if self.end_of_file {
                return Poll::Ready(Ok(()));
            }
            if budget == 0 {
                // The other direction's turn, and other tunnels'.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if source
                .poll_read_ready(cx)
                .map_err(Failed::Source)?
                .is_pending()
            {
                // Parked tunnels hold no buffer.
                self.buffer = Vec::new();
                self.done = 0;
                return Poll::Pending;
            }
            self.buffer.clear();
            self.done = 0;
            self.buffer.reserve(self.size);
            match source.try_read_buf(&mut self.buffer) {
                Ok(0) => self.end_of_file = true,
                Ok(n) => {
                    budget = budget.saturating_sub(n);
                    if n >= self.size {
                        self.size = (self.size * 4).min(COPY_BUFFER_MAX_BYTES);
                    } else if n < self.size / 4 {
                        self.size = (self.size / 2).max(COPY_BUFFER_MIN_BYTES);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Failed::Source(error))),
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

    use super::*;

    /// Both ends of a connection over loopback.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    /// However much there is to move, a direction stops after its budget and asks for another turn.
    #[tokio::test]
    async fn a_direction_with_much_to_move_gives_the_other_its_turn() {
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
        let mut direction = Direction::new(Vec::new());
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
                    .poll(&mut cx, &source, &target, count)
                    .is_pending()
            );
            let moved = moved.into_inner();
            let most = (COPY_BUDGET_BYTES + COPY_BUFFER_MAX_BYTES) as u64;
            assert!(moved <= most, "{moved} bytes in one turn");
            spent += u64::from(moved >= COPY_BUDGET_BYTES as u64);
        }
        assert!(spent > 0, "the budget was never reached");
    }
}
