//! The `copy` engine: `read` and `write`. Always available, and the behaviour that every other
//! engine must reproduce.
//!
//! Each direction has a buffer only while bytes are in it: small at first, larger while reads keep
//! filling it, none when the tunnel is quiet.

use std::{
    io,
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;

use super::{
    Pair, Terms,
    duplex::{self, Failed, Mover, Parting, Reading},
    evidence::Evidence,
};
use crate::limits::{COPY_BUFFER_MAX_BYTES, COPY_BUFFER_MIN_BYTES};

/// Joins the pair until the tunnel ends or, with `evidence`, leaves.
pub(super) async fn run(pair: &mut Pair, evidence: Option<Evidence>, terms: &Terms<'_>) -> Parting {
    let mut up = Buffer::new(pair.upstream.take_owed());
    let mut down = Buffer::new(pair.client.take_owed());
    let movers = [&mut up, &mut down];
    duplex::run(pair, movers, evidence, terms).await
}

/// Bytes of one direction on their way through user space.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// How many of them are written.
    done: usize,
    /// Capacity of the next buffer.
    size: usize,
}

impl Buffer {
    /// A buffer with bytes that are to go ahead of all others.
    pub(super) fn new(owed: Vec<u8>) -> Self {
        Self {
            bytes: owed,
            done: 0,
            size: COPY_BUFFER_MIN_BYTES,
        }
    }

    /// How much the next read may bring; it follows what the flow has filled so far.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// What is not written yet.
    pub(super) fn unwritten(&self) -> &[u8] {
        self.bytes.get(self.done..).unwrap_or_default()
    }

    /// So many more of them are.
    pub(super) fn note_written(&mut self, bytes: usize) {
        self.done += bytes;
    }

    /// Holds these bytes, which were read elsewhere; it was empty.
    pub(super) fn replace(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
        self.done = 0;
    }

    /// Begins small again.
    pub(super) fn shrink(&mut self) {
        self.size = COPY_BUFFER_MIN_BYTES;
    }
}

impl Mover for Buffer {
    fn poll_empty(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
        count: &impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        while !self.unwritten().is_empty() {
            match target.try_write(self.unwritten()) {
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

    fn fill(&mut self, source: &TcpStream) -> Result<Reading, Failed> {
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
            // Also after a short read one must ask again, for it may have stopped at an urgent byte.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Reading::Nothing),
            Err(error) => Err(Failed::Source(error)),
        }
    }

    fn fill_at_most(&mut self, source: &TcpStream, most: usize) -> Result<Reading, Failed> {
        if most >= self.size {
            return self.fill(source);
        }
        let mut bytes = vec![0; most];
        match source.try_read(&mut bytes) {
            Ok(0) => Ok(Reading::EndOfFile),
            Ok(n) => {
                bytes.truncate(n);
                self.replace(bytes);
                Ok(Reading::Bytes(n))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Reading::Nothing),
            Err(error) => Err(Failed::Source(error)),
        }
    }

    fn park(&mut self) {
        self.bytes = Vec::new();
        self.done = 0;
    }
}
