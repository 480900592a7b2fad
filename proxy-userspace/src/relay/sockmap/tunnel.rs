//! A spliced tunnel: two directions, two sockets, and one loop that sleeps until something other
//! than payload happens.

use std::{net::TcpStream, time::Duration};

use rustix::event::epoll::EventFlags;
use tokio::{
    select,
    task::yield_now,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    direction::{Direction, Ends, Need, Stage},
    ledger::{Landed, Ledger},
    poller::Watch,
    slots::Lease,
};
use crate::{
    limits::{BACKLOG_POLL_MAX, BACKLOG_POLL_MIN, RESET_FLUSH},
    net::sockopt,
    relay::{
        Counts, Ending, Limits, Side, Spliced, Traffic, end_on_close, ending_of,
        flush_before_reset, silence::Silence,
    },
};

/// A socket under splice.
pub(super) struct Socket {
    stream: TcpStream,
    stage: Stage,
    /// Closed both ways: epoll would report nothing but that.
    hung_up: bool,
    /// What the poller waits for on it; `None` after it fired.
    armed: Option<EventFlags>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            stage: Stage::Open,
            hung_up: false,
            armed: None,
        }
    }

    /// Takes in what the poller saw; true for an error.
    fn observe(&mut self, events: EventFlags) -> bool {
        if events.is_empty() {
            return false;
        }
        self.armed = None;
        if events.contains(EventFlags::RDHUP) {
            self.stage = Stage::Finished;
        }
        self.hung_up |= events.contains(EventFlags::HUP);
        events.contains(EventFlags::ERR)
    }

    /// What to wait for, given what the direction from and the one to this socket need.
    fn interest(&self, from: Need, to: Need) -> Option<EventFlags> {
        if self.hung_up {
            return None;
        }
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::RDHUP, self.stage == Stage::Open);
        interest.set(EventFlags::IN, from == Need::Readable);
        interest.set(EventFlags::OUT, to == Need::Writable);
        (self.armed != Some(interest)).then_some(interest)
    }
}

/// The tunnel. Field order matters: the sockets close before the lease ends.
pub(super) struct Tunnel<'a> {
    client: Socket,
    upstream: Socket,
    up: Direction,
    down: Direction,
    traffic: &'a Traffic,
    watch: Watch,
    lease: Lease,
}

/// Waiting for the kernel's backlog worker, which tells nobody when it is done: a few turns of the
/// scheduler first, since it usually runs at once, then growing pauses.
struct BacklogPoll {
    turns: u32,
    pause: Duration,
}

impl Default for BacklogPoll {
    fn default() -> Self {
        Self {
            turns: 3,
            pause: BACKLOG_POLL_MIN,
        }
    }
}

impl BacklogPoll {
    async fn wait(&mut self) {
        if let Some(left) = self.turns.checked_sub(1) {
            self.turns = left;
            yield_now().await;
        } else {
            let pause = self.pause;
            self.pause = (pause * 2).min(BACKLOG_POLL_MAX);
            sleep(pause).await;
        }
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        self.watch
            .remove(&self.client.stream, &self.upstream.stream);
    }
}

/// The ledgers of both directions: up, down.
pub(super) type Ledgers = [Ledger; 2];

impl<'a> Tunnel<'a> {
    /// A tunnel over sockets that are in the map (or, without `spliced`, that could not all be).
    pub(super) fn new(
        client: TcpStream,
        upstream: TcpStream,
        [up, down]: Ledgers,
        spliced: bool,
        traffic: &'a Traffic,
        watch: Watch,
        lease: Lease,
    ) -> Self {
        let [up_slot, down_slot] = lease.pair();
        Self {
            client: Socket::new(client),
            upstream: Socket::new(upstream),
            up: Direction::new(up_slot, Side::Client, up, spliced),
            down: Direction::new(down_slot, Side::Upstream, down, spliced),
            traffic,
            watch,
            lease,
        }
    }

    /// Runs to the end and closes both sockets accordingly.
    pub(super) async fn run(
        mut self,
        limits: Limits,
        cancel: &CancellationToken,
    ) -> (Ending, Spliced) {
        let ending = select! {
            ending = self.drive(limits) => ending,
            () = cancel.cancelled() => Ending::Cancelled,
        };
        if let Ending::Reset(side) = ending {
            // Expiry means the other side does not read; the reset follows either way.
            let _ = timeout(RESET_FLUSH, self.deliver_rest(side)).await;
        }
        self.traffic.settle(self.counts());
        if ending == Ending::Closed {
            end_on_close(&self.client.stream);
            end_on_close(&self.upstream.stream);
        }
        (ending, self.spliced())
    }

    /// Moves what user space has to move, and sleeps while the kernel does the rest.
    async fn drive(&mut self, limits: Limits) -> Ending {
        if let Err(error) = self.watch.add(&self.client.stream, &self.upstream.stream) {
            return Ending::Failed(format!("cannot watch the sockets: {error}"));
        }
        let mut silence = Silence::new(limits);
        let mut backlog = BacklogPoll::default();
        loop {
            let needs = match self.step() {
                Ok(needs) => needs,
                Err(ending) => return ending,
            };
            if self.up.finished() || self.down.finished() {
                silence.half_close();
                let first = if self.up.finished() {
                    Side::Client
                } else {
                    Side::Upstream
                };
                self.traffic.note_finished(first);
            }
            if self.up.finished() && self.down.finished() {
                return Ending::Closed;
            }
            if let Err(ending) = self.arm(needs) {
                return ending;
            }
            let waits_for_backlog = needs.contains(&Need::Soon);
            if !waits_for_backlog {
                backlog = BacklogPoll::default();
            }
            if needs.contains(&Need::Turn) {
                yield_now().await;
            } else {
                select! {
                    () = self.watch.wake.notify.notified() => {}
                    () = backlog.wait(), if waits_for_backlog => {}
                    () = sleep_until(silence.next()) => {
                        let looked = silence.check(&self.client.stream, &self.upstream.stream);
                        if let Err(ending) = looked {
                            return ending;
                        }
                    }
                }
            }
            if self.watch.has_failed() {
                return Ending::Failed("the engine's event loop has failed".to_owned());
            }
            if let Some(side) = self.observe() {
                return Ending::Reset(side);
            }
        }
    }

    /// Takes in what the poller saw: the side that reset its connection, if one did.
    fn observe(&mut self) -> Option<Side> {
        let (client, upstream) = self.watch.wake.take();
        let errors = [self.client.observe(client), self.upstream.observe(upstream)];
        // A socket to which we have not passed on a FIN cannot be closed both ways: it was reset,
        // and its error was taken by the backlog worker a moment ago.
        let client_gone = errors[0] || self.client.hung_up && !self.down.finished();
        let upstream_gone = errors[1] || self.upstream.hung_up && !self.up.finished();
        match (client_gone, upstream_gone) {
            (true, _) => Some(Side::Client),
            (false, true) => Some(Side::Upstream),
            (false, false) => None,
        }
    }

    /// One turn of both directions: what up and down need.
    fn step(&mut self) -> Result<[Need; 2], Ending> {
        Ok([
            self.step_from(Side::Client)?,
            self.step_from(Side::Upstream)?,
        ])
    }

    fn step_from(&mut self, side: Side) -> Result<Need, Ending> {
        let (client, upstream, traffic) = (&self.client, &self.upstream, self.traffic);
        match side {
            Side::Client => {
                let ends = Ends {
                    source: &client.stream,
                    target: &upstream.stream,
                    stage: client.stage,
                };
                let count = |n| traffic.add_to_upstream(n);
                self.up.step(self.lease.tables(), &ends, count)
            }
            Side::Upstream => {
                let ends = Ends {
                    source: &upstream.stream,
                    target: &client.stream,
                    stage: upstream.stage,
                };
                let count = |n| traffic.add_to_client(n);
                self.down.step(self.lease.tables(), &ends, count)
            }
        }
    }

    fn arm(&mut self, [up, down]: [Need; 2]) -> Result<(), Ending> {
        if let Some(interest) = self.client.interest(up, down) {
            self.watch
                .arm_client(&self.client.stream, interest)
                .map_err(|error| ending_of(Side::Client, &error))?;
            self.client.armed = Some(interest);
        }
        if let Some(interest) = self.upstream.interest(down, up) {
            self.watch
                .arm_upstream(&self.upstream.stream, interest)
                .map_err(|error| ending_of(Side::Upstream, &error))?;
            self.upstream.armed = Some(interest);
        }
        Ok(())
    }

    /// Gives the other side what `side` had sent before its reset.
    async fn deliver_rest(&mut self, side: Side) {
        match side {
            Side::Client => self.client.stage = Stage::Reset,
            Side::Upstream => self.upstream.stage = Stage::Reset,
        }
        let mut backlog = BacklogPoll::default();
        // Reading ends with the reset's error, or with end of file where that was reported already.
        while let Ok(Need::Writable | Need::Soon | Need::Turn) = self.step_from(side) {
            backlog.wait().await;
        }
        let (direction, target) = match side {
            Side::Client => (&self.up, &self.upstream.stream),
            Side::Upstream => (&self.down, &self.client.stream),
        };
        backlog = BacklogPoll::default();
        while direction.landed(self.lease.tables(), target) == Ok(Landed::NotYet) {
            backlog.wait().await;
        }
        flush_before_reset(target).await;
    }

    fn spliced(&self) -> Spliced {
        let states = self
            .lease
            .pair()
            .map(|slot| self.lease.tables().direction(slot));
        let mut spliced = Spliced::default();
        for state in states.into_iter().flatten() {
            spliced.bytes += state.redirected;
            spliced.pauses += u64::from(state.paused);
            spliced.trimmed += u64::from(state.trimmed);
            spliced.floods += u64::from(state.floods);
        }
        spliced
    }

    /// Bytes that reached each peer's TCP: what was handed over, less a backlog that died.
    fn counts(&self) -> Counts {
        let reached = |direction: &Direction, target: &Socket, opened_by_us| {
            let due = direction.due(self.lease.tables());
            if direction.finished() {
                return due;
            }
            let written = sockopt::bytes_written(&target.stream, opened_by_us);
            written.map_or(due, |written| written.min(due))
        };
        Counts {
            to_client: reached(&self.down, &self.client, false),
            to_upstream: reached(&self.up, &self.upstream, true),
        }
    }
}
