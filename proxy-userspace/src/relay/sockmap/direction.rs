//! One direction of a spliced tunnel, as user space drives it.
//!
//! Normally the kernel moves the bytes and [`Direction::step`] has nothing to do. When the target's
//! send buffer is full the program leaves the bytes on the source ("pauses"); user space then moves
//! them, which holds the sender back, and asks the program to take over again. Four rules keep every
//! byte in order:
//!
//! 1. User space writes only when everything redirected has [landed](super::ledger::Landed).
//! 2. A request is open only while user space holds no byte that is not written.
//! 3. The program takes over only at a segment before which every byte was read. What user space
//!    reads while a request is open it has written before (it had *peeked*), so a verdict in the
//!    middle of that read finds nothing to overtake. All other reads happen with no request open; a
//!    verdict that saw a request just before it was taken back has finished when such a read
//!    returns, since both hold the source's lock: so the program's counters are looked at again.
//! 4. The target is shut down only when every byte the source received was redirected or read, and
//!    everything has landed.
//!
//! Peeking hands a busy direction over while little is waiting, above all a new tunnel whose server
//! speaks first: reading would open the window, and more would have come by the time the bytes are
//! written. Peeked bytes keep the window shut until they are with the target; then they are read
//! off, and the next segment finds the way clear. Until then the target is told that more is coming
//! (`MSG_MORE`), so that the last of them does not leave: what it would be answered with could be
//! back before a process that was preempted has come to ask.

use std::{
    cmp::Ordering,
    io::{self, ErrorKind},
    net::{Shutdown, TcpStream},
    ops::Range,
};

use proxy_common::{Direction as KernelState, fault, mover};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::ledger::{Landed, Ledger};
use crate::{
    kernel::object::Tables,
    limits::{
        HANDOVER_BACKOFF_BYTES, HANDOVER_MAX_BYTES, SPLICE_BUFFER_MAX_BYTES,
        SPLICE_BUFFER_MIN_BYTES, TURN_BYTES,
    },
    net::sockopt,
    relay::{Ending, Side, ending_of},
};

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The source's FIN, or an event of the program.
    Nothing,
    /// Bytes on the source.
    Readable,
    /// Space on the target.
    Writable,
    /// The kernel's backlog, which announces nothing: look again soon.
    Soon,
    /// Nothing; it used up its share and wants another turn.
    Turn,
}

/// The sockets of a direction and what is known of them.
pub(super) struct Ends<'a> {
    /// Where bytes come from.
    pub(super) source: &'a TcpStream,
    /// Where they go.
    pub(super) target: &'a TcpStream,
    /// How the source stands.
    pub(super) stage: Stage,
}

/// How far the peer at the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It may send more.
    Open,
    /// Its FIN has arrived.
    Finished,
    /// It reset the connection. What it sent before may be delivered, but no FIN passed on: the
    /// kernel reports a reset once, and end of file from then on.
    Reset,
}

/// User space's half of a direction.
pub(super) struct Direction {
    slot: u32,
    /// Which side the bytes come from.
    from: Side,
    ledger: Ledger,
    /// Whether the program may take this direction at all.
    spliced: bool,
    /// Number of the latest request.
    request: u32,
    /// Whether it is open: the program may act on it at any moment.
    request_open: bool,
    /// The program's count of redirected bytes when they were last seen to have landed.
    landed_at: u64,
    /// Allocated only while user space moves bytes; `held` of it wait to be written.
    buffer: Vec<u8>,
    /// Bytes of the next buffer to read into.
    size: usize,
    held: Range<usize>,
    /// How many bytes at the head of the source's queue are in `buffer` but not read off.
    peeked: usize,
    /// Bytes to move by plain reading before the next attempt to hand over.
    plain: usize,
    /// Attempts to hand over that failed in a row.
    failures: u32,
    /// The source's FIN was passed on.
    finished: bool,
}

impl Direction {
    /// A direction that nobody moves yet. Without `spliced` user space moves it to the end.
    pub(super) fn new(slot: u32, from: Side, ledger: Ledger, spliced: bool) -> Self {
        Self {
            slot,
            from,
            ledger,
            spliced,
            request: 0,
            request_open: false,
            landed_at: 0,
            buffer: Vec::new(),
            size: SPLICE_BUFFER_MIN_BYTES,
            held: 0..0,
            peeked: 0,
            plain: 0,
            failures: 0,
            finished: false,
        }
    }

    /// Whether the source's FIN was passed on.
    pub(super) fn finished(&self) -> bool {
        self.finished
    }

    /// Bytes the target was or will be given, as far as anybody knows.
    pub(super) fn due(&self, tables: &Tables) -> u64 {
        let redirected = tables
            .direction(self.slot)
            .map_or(self.landed_at, |state| state.redirected);
        self.ledger.due(redirected)
    }

    /// Whether everything redirected is in the target's send queue.
    pub(super) fn landed(&self, tables: &Tables, target: &TcpStream) -> Result<Landed, Ending> {
        let state = self.state(tables)?;
        self.compare(&state, target)
    }

    /// Does what can be done without waiting. `count` is told the bytes that user space wrote.
    pub(super) fn step(
        &mut self,
        tables: &Tables,
        ends: &Ends<'_>,
        count: impl Fn(u64),
    ) -> Result<Need, Ending> {
        let mut budget = TURN_BYTES;
        while !self.finished {
            let state = self.state(tables)?;
            if !self.held.is_empty() {
                if !self.has_landed(&state, ends.target)? {
                    return Ok(Need::Soon);
                }
                match self.write(ends.target)? {
                    Some(n) => count(n as u64),
                    None => return Ok(Need::Writable),
                }
                continue;
            }
            if self.peeked > 0 {
                if !self.hand_over(tables, &state, ends)? {
                    return Ok(Need::Soon);
                }
                continue;
            }
            if state.mover == mover::KERNEL {
                self.request_open = false;
                self.failures = 0;
                self.buffer = Vec::new();
                return match ends.stage {
                    Stage::Finished => self.finish(tables, ends),
                    Stage::Open | Stage::Reset => Ok(Need::Nothing),
                };
            }
            let unread = self.ledger.unread(state.passed);
            if self.request_open && unread == 0 && ends.stage == Stage::Open {
                self.buffer = Vec::new();
                return Ok(Need::Nothing);
            }
            self.close_request(tables)?;
            if budget == 0 {
                return Ok(Need::Turn);
            }
            let reading = match usize::try_from(unread) {
                Ok(unread @ 1..=HANDOVER_MAX_BYTES) if self.may_peek(ends.stage) => {
                    self.peek(ends.source, unread)?
                }
                _ => self.read(ends.source)?,
            };
            match (reading, ends.stage) {
                (Reading::Bytes(n), _) => {
                    budget = budget.saturating_sub(n);
                    self.plain = self.plain.saturating_sub(n);
                }
                // No FIN to pass on; but bytes may still come out of the other direction's backlog.
                (Reading::EndOfFile | Reading::Nothing, Stage::Reset) => {
                    return Ok(if unread > 0 {
                        Need::Soon
                    } else {
                        Need::Nothing
                    });
                }
                (Reading::EndOfFile, _) | (Reading::Nothing, Stage::Finished) => {
                    return self.finish(tables, ends);
                }
                (Reading::Nothing, Stage::Open) => {
                    let state = self.state(tables)?;
                    if state.mover == mover::KERNEL {
                        continue;
                    }
                    if self.ledger.unread(state.passed) > 0 {
                        // Queued behind the other direction's backlog; epoll would call the socket
                        // readable all the time.
                        self.buffer = Vec::new();
                        return Ok(Need::Soon);
                    }
                    if !self.spliced {
                        self.buffer = Vec::new();
                        return Ok(Need::Readable);
                    }
                    self.open_request(tables)?;
                    self.kick(ends.source)?;
                }
            }
        }
        Ok(Need::Nothing)
    }

    fn may_peek(&self, stage: Stage) -> bool {
        self.spliced && self.plain == 0 && stage == Stage::Open
    }

    /// Reads off the peeked bytes, which the target has; with a request open, unless more bytes have
    /// arrived behind them. False if the kernel wants more time.
    fn hand_over(
        &mut self,
        tables: &Tables,
        state: &KernelState,
        ends: &Ends<'_>,
    ) -> Result<bool, Ending> {
        let alone = self.ledger.unread(state.passed) == self.peeked as u64;
        if alone {
            self.open_request(tables)?;
        } else {
            // The sender is too fast for that now.
            self.plain = HANDOVER_BACKOFF_BYTES << self.failures.min(6);
            self.failures += 1;
        }
        while self.peeked > 0 {
            let scrap = self.buffer.get_mut(..self.peeked).unwrap_or_default();
            match receive(ends.source, scrap, RecvFlags::empty()) {
                Ok(0) => return Err(self.integrity("peeked bytes vanished")),
                Ok(n) => {
                    self.peeked = self.peeked.saturating_sub(n);
                    self.ledger.note_read(n);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(ending_of(self.from, &error)),
            }
        }
        if alone {
            self.kick(ends.source)?;
        }
        // What was held back may go.
        sockopt::push(ends.target).map_err(|error| ending_of(self.to(), &error))?;
        Ok(true)
    }

    /// Passes the source's FIN on, if every byte before it is safely with the target.
    fn finish(&mut self, tables: &Tables, ends: &Ends<'_>) -> Result<Need, Ending> {
        if self.ledger.unread(self.state(tables)?.passed) > 0 {
            // Behind the other direction's backlog, where a read does not find them yet.
            return Ok(Need::Soon);
        }
        let received = sockopt::tcp_info(ends.source)
            .map_err(|error| ending_of(self.from, &error))?
            .bytes_received
            // The FIN.
            .saturating_sub(1);
        // After TCP_INFO, which waits for a verdict in progress.
        let state = self.state(tables)?;
        match self.ledger.taken(state.redirected, received) {
            Ordering::Less => return Ok(Need::Soon),
            Ordering::Equal => {}
            // No FIN was counted: what looked like an end was a reset.
            Ordering::Greater => return Err(Ending::Reset(self.from)),
        }
        // In any case, also if nothing was redirected: the last look at the books.
        if !self.all_landed(&state, ends.target)? {
            return Ok(Need::Soon);
        }
        ends.target
            .shutdown(Shutdown::Write)
            .map_err(|error| ending_of(self.to(), &error))?;
        self.finished = true;
        self.buffer = Vec::new();
        Ok(Need::Nothing)
    }

    /// The program's view, checked.
    fn state(&self, tables: &Tables) -> Result<KernelState, Ending> {
        let state = tables
            .direction(self.slot)
            .map_err(|error| Ending::Failed(format!("cannot read the splice state: {error}")))?;
        match state.fault {
            fault::NONE => Ok(state),
            fault::TRIM => Err(self.integrity("an overlapping segment could not be trimmed")),
            _ => Err(self.integrity("bytes are missing from the stream")),
        }
    }

    fn has_landed(&mut self, state: &KernelState, target: &TcpStream) -> Result<bool, Ending> {
        if state.redirected == self.landed_at {
            return Ok(true);
        }
        self.all_landed(state, target)
    }

    /// The same, by the target's counters.
    fn all_landed(&mut self, state: &KernelState, target: &TcpStream) -> Result<bool, Ending> {
        match self.compare(state, target)? {
            Landed::All => {
                self.landed_at = state.redirected;
                Ok(true)
            }
            Landed::NotYet => Ok(false),
            Landed::Excess(bytes) => Err(self.integrity(&format!("{bytes} bytes too many"))),
        }
    }

    fn compare(&self, state: &KernelState, target: &TcpStream) -> Result<Landed, Ending> {
        let opened_by_us = self.to() == Side::Upstream;
        let written = sockopt::bytes_written(target, opened_by_us)
            .map_err(|error| ending_of(self.to(), &error))?;
        Ok(self.ledger.landed(state.redirected, written))
    }

    fn open_request(&mut self, tables: &Tables) -> Result<(), Ending> {
        self.request = self.request.wrapping_add(1).max(1);
        self.put_request(tables, self.request)?;
        self.request_open = true;
        Ok(())
    }

    /// Offers the program what arrived unseen, and waits for a verdict that missed the request.
    fn kick(&self, source: &TcpStream) -> Result<(), Ending> {
        sockopt::kick(source).map_err(|error| ending_of(self.from, &error))
    }

    fn close_request(&mut self, tables: &Tables) -> Result<(), Ending> {
        if self.request_open {
            self.put_request(tables, 0)?;
            self.request_open = false;
        }
        Ok(())
    }

    fn put_request(&self, tables: &Tables, number: u32) -> Result<(), Ending> {
        tables
            .request(self.slot, number)
            .map_err(|error| Ending::Failed(format!("cannot ask for the splice: {error}")))
    }

    /// Writes held bytes: how many, or none if the target is full.
    fn write(&mut self, target: &TcpStream) -> Result<Option<usize>, Ending> {
        let unwritten = self.buffer.get(self.held.clone()).unwrap_or_default();
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::MORE, self.peeked > 0);
        match retry(|| Ok(send(target, unwritten, flags)?)) {
            Ok(n) => {
                self.held.start += n;
                self.ledger.note_written(n);
                Ok(Some(n))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(ending_of(self.to(), &error)),
        }
    }

    /// Reads into the (empty) buffer, whose size follows what comes.
    fn read(&mut self, source: &TcpStream) -> Result<Reading, Ending> {
        let reading = self.fill(source, self.size, RecvFlags::empty())?;
        if let Reading::Bytes(n) = reading {
            self.ledger.note_read(n);
            if n == self.size {
                self.size = (self.size * 4).min(SPLICE_BUFFER_MAX_BYTES);
            }
        }
        Ok(reading)
    }

    /// Looks at all `unread` bytes without reading them off.
    fn peek(&mut self, source: &TcpStream, unread: usize) -> Result<Reading, Ending> {
        let reading = self.fill(source, unread, RecvFlags::PEEK)?;
        if let Reading::Bytes(n) = reading {
            self.peeked = n;
        }
        Ok(reading)
    }

    fn fill(
        &mut self,
        source: &TcpStream,
        size: usize,
        flags: RecvFlags,
    ) -> Result<Reading, Ending> {
        self.buffer.resize(size, 0);
        match receive(source, &mut self.buffer, flags) {
            Ok(0) => Ok(Reading::EndOfFile),
            Ok(n) => {
                self.held = 0..n;
                Ok(Reading::Bytes(n))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Reading::Nothing),
            Err(error) => Err(ending_of(self.from, &error)),
        }
    }

    /// Which side the bytes go to.
    fn to(&self) -> Side {
        match self.from {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }

    fn integrity(&self, what: &str) -> Ending {
        Ending::Integrity(format!("from the {:?}: {what}", self.from))
    }
}

/// What a read found.
enum Reading {
    Bytes(usize),
    EndOfFile,
    Nothing,
}

fn receive(source: &TcpStream, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    retry(|| Ok(recv(source, &mut *buffer, flags)?.0))
}

/// Repeats what a signal interrupted.
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
