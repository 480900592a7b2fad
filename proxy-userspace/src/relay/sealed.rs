//! Tunnels with TLS on one of their sockets, or both: as `copy`, with records opened and sealed on the way.
//!
//! The peer's `close_notify` is its end of file, and is answered by ours only when our direction ends (RFC 8446
//! section 6.1). A FIN without one may be somebody else's doing, and is taken for a reset.

use std::{
    io::{self, Read as _, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use rustls::Connection;
use tokio::net::TcpStream;

use super::{
    Pair,
    copy::Buffer,
    duplex::{Failed, Mover, Reading},
};
use crate::tls::Socket;

/// What seals the two sockets, while both directions use it.
#[derive(Debug)]
pub(super) struct Seals {
    client: Option<Mutex<Connection>>,
    upstream: Option<Mutex<Connection>>,
}

impl Seals {
    /// Takes them from a pair; none if it has none.
    pub(super) fn take(pair: &mut Pair) -> Option<Self> {
        let seals = Self {
            client: pair.client.tls.take().map(|tls| Mutex::new(*tls)),
            upstream: pair.upstream.tls.take().map(|tls| Mutex::new(*tls)),
        };
        (seals.client.is_some() || seals.upstream.is_some()).then_some(seals)
    }

    /// The movers for both directions, up and down, with what the pair owes.
    pub(super) fn movers(&self, pair: &mut Pair) -> [Sealed<'_>; 2] {
        let (client, upstream) = (self.client.as_ref(), self.upstream.as_ref());
        [
            Sealed::new(client, upstream, pair.upstream.take_owed()),
            Sealed::new(upstream, client, pair.client.take_owed()),
        ]
    }
}

/// Bytes of one direction, readable only here.
pub(super) struct Sealed<'a> {
    source: Option<&'a Mutex<Connection>>,
    target: Option<&'a Mutex<Connection>>,
    buffer: Buffer,
    /// The source's end of file has been seen.
    ended: bool,
    /// The target has been told.
    notified: bool,
}

impl<'a> Sealed<'a> {
    fn new(
        source: Option<&'a Mutex<Connection>>,
        target: Option<&'a Mutex<Connection>>,
        owed: Vec<u8>,
    ) -> Self {
        Self {
            source,
            target,
            buffer: Buffer::new(owed),
            ended: false,
            notified: false,
        }
    }

    /// Opens what the source has sent.
    fn open(&mut self, tls: &Mutex<Connection>, source: &TcpStream) -> Result<Reading, Failed> {
        let mut tls = lock(tls);
        let received = match tls.read_tls(&mut Socket(source)) {
            Ok(received) => Some(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(Failed::Source(error)),
        };
        let state = tls.process_new_packets().map_err(|error| {
            Failed::Source(io::Error::new(io::ErrorKind::ConnectionReset, error))
        })?;
        let len = state.plaintext_bytes_to_read();
        if len > 0 {
            let mut bytes = vec![0; len];
            tls.reader()
                .read_exact(&mut bytes)
                .map_err(Failed::Source)?;
            self.buffer.replace(bytes);
            return Ok(Reading::Bytes(len));
        }
        if state.peer_has_closed() {
            return Ok(Reading::EndOfFile);
        }
        match received {
            Some(0) => Err(Failed::Source(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the connection ended without a close_notify",
            ))),
            Some(_) | None => Ok(Reading::Nothing),
        }
    }
}

impl Mover for Sealed<'_> {
    fn poll_empty(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
        count: &impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        let Some(tls) = self.target else {
            return self.buffer.poll_empty(cx, target, count);
        };
        let mut tls = lock(tls);
        loop {
            while tls.wants_write() {
                match tls.write_tls(&mut Socket(target)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(target.poll_write_ready(cx)).map_err(Failed::Target)?;
                    }
                    Err(error) => return Poll::Ready(Err(Failed::Target(error))),
                }
            }
            let unsealed = self.buffer.unwritten();
            if !unsealed.is_empty() {
                let sealed = tls.writer().write(unsealed).map_err(Failed::Target)?;
                self.buffer.note_written(sealed);
                count(sealed as u64);
            } else if self.ended && !self.notified {
                self.notified = true;
                tls.send_close_notify();
            } else {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn fill(&mut self, source: &TcpStream) -> Result<Reading, Failed> {
        let reading = match self.source {
            Some(tls) => self.open(tls, source)?,
            None => self.buffer.fill(source)?,
        };
        self.ended |= matches!(reading, Reading::EndOfFile);
        Ok(reading)
    }

    fn park(&mut self) {
        self.buffer.park();
    }
}

fn lock(tls: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}
