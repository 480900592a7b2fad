//! Two directions in user space: what the engines that move bytes from there have in common.
//!
//! An engine is a [`Mover`], which knows how bytes get from one socket to another. Turns, ends,
//! limits and resets are here, and the moment at which a tunnel can leave for another engine: when
//! no byte of it is in user space.

use std::{
    future::poll_fn,
    io, mem,
    net::Shutdown,
    pin::pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    select,
    time::{sleep_until, timeout},
};

use super::{
    Ending, Limits, Pair, Side, Terms, Traffic, end_on_close, ending_of, evidence::Evidence,
    flush_before_reset, silence::Silence,
};
use crate::{
    limits::{RECEIVE_BUFFER_BYTES, RESET_FLUSH, TURN_BYTES, UNBOUNDED_READ_BYTES},
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

    /// The same, with no more than so many bytes, if that can be said beforehand.
    fn fill_at_most(&mut self, source: &TcpStream, _most: usize) -> Result<Reading, Failed> {
        self.fill(source)
    }

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

/// How a tunnel's time in user space ended.
#[derive(Debug)]
pub(super) enum Parting {
    /// The tunnel ended.
    Ended(Ending),
    /// It goes on, and would be cheaper in the kernel. No byte of it is in user space.
    Leaves,
}

impl Parting {
    /// The ending of a tunnel that ran without evidence, which is what makes one leave.
    pub(super) fn ending(self) -> Ending {
        match self {
            Self::Ended(ending) => ending,
            Self::Leaves => Ending::Failed("a tunnel left that was to stay".to_owned()),
        }
    }
}

/// Joins the pair until the tunnel ends; the movers are given as up, down, with what the pair owed
/// in them. With `evidence`, until that says that the tunnel belongs into the kernel.
pub(super) async fn run<M: Mover>(
    pair: &mut Pair,
    [up, down]: [&mut M; 2],
    evidence: Option<Evidence>,
    terms: &Terms<'_>,
) -> Parting {
    let mut tunnel = Tunnel {
        client: &pair.client.stream,
        upstream: &pair.upstream.stream,
        traffic: terms.traffic,
        up: Direction::new(up),
        down: Direction::new(down),
        evidence,
    };
    let parting = select! {
        parting = tunnel.drive(terms.limits) => parting,
        () = terms.cancel.cancelled() => Parting::Ended(Ending::Cancelled),
    };
    match parting {
        Parting::Ended(Ending::Closed) => {
            end_on_close(&pair.client.stream);
            end_on_close(&pair.upstream.stream);
        }
        Parting::Ended(Ending::Reset(side)) => tunnel.deliver_rest(side).await,
        Parting::Ended(_) => {}
        Parting::Leaves => {
            // What was read has been written.
            let (up, down) = (tunnel.up.read, tunnel.down.read);
            pair.client.note_moved(up, down);
            pair.upstream.note_moved(down, up);
        }
    }
    parting
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
    evidence: Option<Evidence>,
}

/// What a turn of a tunnel was interrupted by.
enum Turn {
    /// A direction has finished that had not.
    Finished,
    /// The tunnel is to leave, and may.
    Leaves,
}

impl<M: Mover> Tunnel<'_, M> {
    /// Moves bytes until both directions have finished, one breaks, it is quiet for too long, or it
    /// leaves.
    async fn drive(&mut self, limits: Limits) -> Parting {
        let mut silence = Silence::new(limits);
        loop {
            let half_closed = self.up.finished || self.down.finished;
            if half_closed {
                silence.half_close();
                self.note_finished();
            }
            let (client, upstream) = (self.client, self.upstream);
            let ended = select! {
                biased;
                result = poll_fn(|cx| self.poll(cx, half_closed)) => Some(result),
                // A reset is noticed even while nobody reads from that side.
                _ = client.ready(Interest::ERROR) => {
                    return Parting::Ended(Ending::Reset(Side::Client));
                }
                _ = upstream.ready(Interest::ERROR) => {
                    return Parting::Ended(Ending::Reset(Side::Upstream));
                }
                () = sleep_until(silence.next()) => None,
            };
            match ended {
                Some(Ok(Turn::Leaves)) => return Parting::Leaves,
                Some(Ok(Turn::Finished)) if self.up.finished && self.down.finished => {
                    self.note_finished();
                    return Parting::Ended(Ending::Closed);
                }
                Some(Ok(Turn::Finished)) => {}
                Some(Err(broken)) => {
                    return Parting::Ended(ending_of(broken.side, &broken.error));
                }
                None => {
                    if let Err(ending) = silence.check(client, upstream) {
                        return Parting::Ended(ending);
                    }
                }
            }
        }
    }

    fn note_finished(&self) {
        let side = if self.up.finished {
            Side::Client
        } else {
            Side::Upstream
        };
        self.traffic.note_finished(side);
    }

    /// Ready when a direction finishes that had not, when one breaks, or when the tunnel leaves.
    fn poll(&mut self, cx: &mut Context<'_>, was_half_closed: bool) -> Poll<Result<Turn, Broken>> {
        let evidence = &mut self.evidence;
        let up = self
            .up
            .poll(cx, self.client, self.upstream, evidence, |n| {
                self.traffic.add_to_upstream(n);
            })
            .map_err(|failed| failed.of(Side::Client, Side::Upstream));
        if let Poll::Ready(Err(broken)) = up {
            return Poll::Ready(Err(broken));
        }
        let down = self
            .down
            .poll(cx, self.upstream, self.client, evidence, |n| {
                self.traffic.add_to_client(n);
            })
            .map_err(|failed| failed.of(Side::Upstream, Side::Client));
        match (up, down) {
            (_, Poll::Ready(Err(broken))) => Poll::Ready(Err(broken)),
            (Poll::Ready(_), Poll::Ready(Ok(()))) => Poll::Ready(Ok(Turn::Finished)),
            (Poll::Ready(_), Poll::Pending) | (Poll::Pending, Poll::Ready(_))
                if !was_half_closed =>
            {
                Poll::Ready(Ok(Turn::Finished))
            }
            (Poll::Pending, Poll::Pending)
                if self.up.empty_handed
                    && self.down.empty_handed
                    && self.evidence.is_some_and(Evidence::is_chatty) =>
            {
                Poll::Ready(Ok(Turn::Leaves))
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
                    let _ =
                        poll_fn(|cx| self.up.poll_bytes(cx, client, upstream, &mut None, count))
                            .await;
                    flush_before_reset(upstream).await;
                }
                Side::Upstream => {
                    let count = |n| traffic.add_to_client(n);
                    let _ =
                        poll_fn(|cx| self.down.poll_bytes(cx, upstream, client, &mut None, count))
                            .await;
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
    /// Bytes read from the source.
    read: u64,
    /// Bytes of them since there was nothing to read.
    burst: usize,
    /// Everything read is written, and there is nothing to read.
    empty_handed: bool,
    /// The source's FIN has been seen.
    end_of_file: bool,
    /// It has been passed on.
    finished: bool,
}

impl<'a, M: Mover> Direction<'a, M> {
    fn new(mover: &'a mut M) -> Self {
        Self {
            mover,
            read: 0,
            burst: 0,
            empty_handed: false,
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
        evidence: &mut Option<Evidence>,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_bytes(cx, source, target, evidence, count))?;
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
        evidence: &mut Option<Evidence>,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        let mut budget = TURN_BYTES;
        self.empty_handed = false;
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
                self.empty_handed = true;
                let burst = mem::take(&mut self.burst);
                if let Some(evidence) = evidence
                    && burst > 0
                {
                    evidence.add(burst);
                }
                return Poll::Pending;
            }
            match self.mover.fill(source)? {
                Reading::Bytes(n) => {
                    budget = budget.saturating_sub(n);
                    self.note_read(source, n);
                }
                Reading::EndOfFile => self.end_of_file = true,
                Reading::Nothing => {}
            }
        }
    }
}

impl<M> Direction<'_, M> {
    /// The kernel lets a receive buffer grow as its reader takes bytes out, so that the first few
    /// need no bound; most tunnels end before.
    fn note_read(&mut self, source: &TcpStream, bytes: usize) {
        let bounded = self.read > UNBOUNDED_READ_BYTES;
        self.read += bytes as u64;
        self.burst += bytes;
        if !bounded && self.read > UNBOUNDED_READ_BYTES {
            sockopt::bound_receive_buffer(source, RECEIVE_BUFFER_BYTES);
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
        super::{
            copy::Buffer,
            splice::{Manner, Splice},
        },
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
                    .poll_bytes(&mut cx, &source, &target, &mut None, count)
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
        let traffic = std::sync::Arc::new(Traffic::new(std::time::Instant::now()));
        let splice = Splice::new(1).unwrap();
        takes_turns(&mut splice.mover(Vec::new(), Manner::Always, &traffic)).await;
    }
}
