//! The `copy` engine: `read` and `write`. Always available, and the behaviour that every other
//! engine must reproduce.
//!
//! Each direction has a buffer only while bytes are in it: small at first, larger while reads keep
//! filling it, none when the tunnel is quiet. The directions take turns with a byte budget, so that
//! a bulk transfer one way cannot starve the other (`tokio::io::copy_bidirectional` lets it).

use std::{
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    Ending, Limits, Pair, Traffic,
    duplex::{self, Failed, Mover},
};
use crate::limits::{COPY_BUFFER_MAX_BYTES, COPY_BUFFER_MIN_BYTES, TURN_BYTES};

/// Joins the pair until the tunnel ends.
pub(super) async fn run(
    mut pair: Pair,
    limits: Limits,
    traffic: &Arc<Traffic>,
    cancel: &CancellationToken,
) -> Ending {
    let mut up = Buffer::new(std::mem::take(&mut pair.upstream.owed));
    let mut down = Buffer::new(std::mem::take(&mut pair.client.owed));
    duplex::run(&pair, [&mut up, &mut down], limits, traffic, cancel).await
}

/// What a read from the source found.
pub(super) enum Reading {
    /// So many bytes.
    Bytes(usize),
    /// The source's FIN.
    EndOfFile,
    /// Nothing yet; the task is woken when there is.
    Nothing,
}

/// Bytes of one direction on their way through user space.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// How many of them are written.
    done: usize,
    /// Capacity of the next buffer.
    size: usize,
    end_of_file: bool,
}

impl Buffer {
    /// A buffer with bytes that are to go ahead of all others.
    pub(super) fn new(owed: Vec<u8>) -> Self {
        Self {
            bytes: owed,
            done: 0,
            size: COPY_BUFFER_MIN_BYTES,
            end_of_file: false,
        }
    }

    /// Writes what is in it; ready once it is empty.
    pub(super) fn poll_empty(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        while let Some(unwritten) = self.bytes.get(self.done..)
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
        Poll::Ready(Ok(()))
    }

    /// Gives its memory back; it must be empty.
    pub(super) fn release(&mut self) {
        self.bytes = Vec::new();
        self.done = 0;
    }

    /// Fills it, empty as it must be, with what the source has, which must be said to be readable.
    pub(super) fn fill(&mut self, source: &TcpStream) -> Result<Reading, Failed> {
        self.bytes.clear();
        self.done = 0;
        self.bytes.reserve(self.size);
        match source.try_read_buf(&mut self.bytes) {
            Ok(0) => Ok(Reading::EndOfFile),
            Ok(n) => {
                if n >= self.size {
                    self.size = (self.size * 4).min(COPY_BUFFER_MAX_BYTES);
                } else if n < self.size / 4 {
                    self.size = (self.size / 2).max(COPY_BUFFER_MIN_BYTES);
                }
                Ok(Reading::Bytes(n))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Reading::Nothing),
            Err(error) => Err(Failed::Source(error)),
        }
    }
}

impl Mover for Buffer {
    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        target: &TcpStream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        let mut budget = TURN_BYTES;
        loop {
            ready!(self.poll_empty(cx, target, &count))?;
            if self.end_of_file {
                return Poll::Ready(Ok(()));
            }
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if source
                .poll_read_ready(cx)
                .map_err(Failed::Source)?
                .is_pending()
            {
                // Parked tunnels hold no buffer.
                self.release();
                return Poll::Pending;
            }
            match self.fill(source)? {
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
        let mut direction = Buffer::new(Vec::new());
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
}
