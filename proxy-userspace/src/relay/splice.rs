//! The `splice` engine: `splice(2)` from socket to pipe and from pipe to socket. The bytes stay in
//! the kernel; user space moves references to their pages.
//!
//! A direction borrows a pipe only while bytes are in it, so an idle tunnel holds its two sockets
//! and nothing else. There are so many pipes; who finds none copies, until one is free again.
//!
//! Where the engine is chosen by evidence, a direction begins by copying, which is cheaper for a
//! message, and takes a pipe once it fills large buffers (`Manner::Bulk`).

mod pipes;

use std::{
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustix::pipe::{SpliceFlags, splice};
use tokio::{io::Interest, net::TcpStream};

use self::pipes::{Lease, Pipes, try_out};
use super::{
    EngineKind, Pair, Terms, Traffic,
    copy::Buffer,
    duplex::{self, Failed, Mover, Parting, Reading},
    evidence::Evidence,
};
use crate::limits::{PIPE_BYTES, PIPE_FROM_BYTES, PIPE_UNTIL_BYTES};

/// The engine.
#[derive(Debug)]
pub struct Splice {
    pipes: Arc<Pipes>,
}

/// How a pair fared.
#[derive(Debug)]
pub(super) struct Ran {
    /// How the tunnel ended, or that it left.
    pub(super) parting: Parting,
    /// Bytes that were copied, since there was no pipe.
    pub(super) copied: u64,
    /// What moved the rest.
    pub(super) engine: EngineKind,
}

/// For which reads a direction borrows a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// For each.
    Always,
    /// For those of a flow that fills large buffers.
    Bulk,
}

impl Splice {
    /// An engine that holds at most this many pipes at a time, two descriptors each.
    ///
    /// # Errors
    /// The system gives us no pipe, or does not splice.
    pub fn new(pipes: usize) -> io::Result<Self> {
        try_out()?;
        Ok(Self {
            pipes: Pipes::new(pipes),
        })
    }

    /// Joins the pair until the tunnel ends or, with `evidence`, leaves.
    pub(super) async fn run(
        &self,
        pair: &mut Pair,
        manner: Manner,
        evidence: Option<Evidence>,
        terms: &Terms<'_>,
    ) -> Ran {
        let mut up = self.mover(pair.upstream.take_owed(), manner, terms.traffic);
        let mut down = self.mover(pair.client.take_owed(), manner, terms.traffic);
        let movers = [&mut up, &mut down];
        let parting = duplex::run(pair, movers, evidence, terms).await;
        let piped = manner == Manner::Always || up.moved + down.moved > 0;
        Ran {
            parting,
            copied: up.copied + down.copied,
            engine: if piped {
                EngineKind::Splice
            } else {
                EngineKind::Copy
            },
        }
    }

    /// A direction with bytes that are to go ahead of all others.
    pub(super) fn mover(&self, owed: Vec<u8>, manner: Manner, traffic: &Arc<Traffic>) -> Piped {
        Piped {
            pipes: Arc::clone(&self.pipes),
            traffic: Arc::clone(traffic),
            manner,
            pipe: None,
            held: 0,
            buffer: Buffer::new(owed),
            copied: 0,
            moved: 0,
        }
    }
}

/// One direction's bytes on their way through a pipe.
pub(super) struct Piped {
    pipes: Arc<Pipes>,
    /// Told of the first byte that goes through one.
    traffic: Arc<Traffic>,
    manner: Manner,
    pipe: Option<Lease>,
    /// Bytes in the pipe.
    held: usize,
    /// What is owed, and what is copied.
    buffer: Buffer,
    /// Bytes that were copied for want of a pipe.
    copied: u64,
    /// Bytes that went through one.
    moved: u64,
}

impl Piped {
    /// Whether the next bytes are for a pipe.
    fn wants_pipe(&self) -> bool {
        self.manner == Manner::Always || self.buffer.size() >= PIPE_FROM_BYTES
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

impl Mover for Piped {
    fn poll_empty(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
        count: &impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        ready!(self.buffer.poll_empty(cx, target, count))?;
        while self.held > 0 {
            let Some(pipe) = &self.pipe else {
                return Poll::Ready(Err(Failed::Target(io::ErrorKind::BrokenPipe.into())));
            };
            let moved = target.try_io(Interest::WRITABLE, || {
                Ok(splice(pipe.output(), None, target, None, self.held, FLAGS)?)
            });
            match moved {
                Ok(0) => {
                    return Poll::Ready(Err(Failed::Target(io::ErrorKind::WriteZero.into())));
                }
                Ok(n) => {
                    self.held = self.held.saturating_sub(n);
                    count(n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(target.poll_write_ready(cx)).map_err(Failed::Target)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(Failed::Target(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The pipe; without one, the buffer.
    fn fill(&mut self, source: &TcpStream) -> Result<Reading, Failed> {
        let wants_pipe = self.wants_pipe();
        if wants_pipe && self.pipe.is_none() {
            self.pipe = self.pipes.borrow();
        }
        let Some(pipe) = self.pipe.as_ref().filter(|_| wants_pipe) else {
            let reading = self.buffer.fill(source)?;
            if let Reading::Bytes(n) = reading
                && wants_pipe
            {
                self.copied += n as u64;
            }
            return Ok(reading);
        };
        let moved = source.try_io(Interest::READABLE, || {
            Ok(splice(source, None, pipe.input(), None, PIPE_BYTES, FLAGS)?)
        });
        match moved {
            Ok(0) => Ok(Reading::EndOfFile),
            Ok(n) => {
                self.held = n;
                if self.moved == 0 {
                    self.traffic.note_engine(EngineKind::Splice);
                }
                self.moved += n as u64;
                if n < PIPE_UNTIL_BYTES {
                    self.buffer.shrink();
                }
                Ok(Reading::Bytes(n))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(Reading::Nothing)
            }
            Err(error) => Err(Failed::Source(error)),
        }
    }

    fn park(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
        self.buffer.park();
    }
}
