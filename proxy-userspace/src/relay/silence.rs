//! How long a tunnel may be silent: the limits, against what TCP says has moved.
//!
//! Progress is bytes that arrived and bytes that a peer has acknowledged. Not the time of the last
//! transmission, which a retransmission to a peer that has vanished renews; and not what an engine
//! has written, which is still on its way while a slow receiver empties the send buffer.

use std::{os::fd::AsFd, time::Duration};

use tokio::time::Instant;

use super::{Ending, Limits, Side, ending_of};
use crate::net::sockopt;

/// Watches one tunnel. Costs nothing until a limit could have been reached.
#[derive(Debug)]
pub(super) struct Silence {
    limits: Limits,
    /// When one side had finished.
    half_closed: Option<Instant>,
    /// Bytes of both sockets together when they were last looked at.
    progress: u64,
    /// When something moved last, as far as is known.
    moved: Instant,
    /// When to look.
    next: Instant,
}

impl Silence {
    /// A tunnel that begins now.
    pub(super) fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Self {
            limits,
            half_closed: None,
            progress: 0,
            moved: now,
            next: now + limits.idle,
        }
    }

    /// One side has finished; from the first call on the smaller limit counts.
    pub(super) fn half_close(&mut self) {
        if self.half_closed.is_none() {
            let now = Instant::now();
            self.half_closed = Some(now);
            self.next = self.next.min(now + self.limits.half_closed);
        }
    }

    /// When to [`check`](Self::check): not before a limit could have been reached.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Looks at the sockets; the ending if nothing has moved for too long.
    pub(super) fn check(&mut self, client: impl AsFd, upstream: impl AsFd) -> Result<(), Ending> {
        let now = Instant::now();
        let client = sockopt::tcp_info(client).map_err(|error| ending_of(Side::Client, &error))?;
        let upstream =
            sockopt::tcp_info(upstream).map_err(|error| ending_of(Side::Upstream, &error))?;
        let progress = [client, upstream]
            .iter()
            .map(|info| info.bytes_acked + info.bytes_received)
            .sum();
        self.observe(now, progress, client.quiet.min(upstream.quiet))
    }

    /// The same, from what was seen: so many bytes in all, the last of them about `quiet` ago.
    fn observe(&mut self, now: Instant, progress: u64, quiet: Duration) -> Result<(), Ending> {
        if progress != self.progress {
            self.progress = progress;
            self.moved = now.checked_sub(quiet).unwrap_or(now).max(self.moved);
        }
        let (since, allowance, ending) = match self.half_closed {
            // The smaller allowance begins with the half-close.
            Some(at) => (
                self.moved.max(at),
                self.limits.half_closed.min(self.limits.idle),
                Ending::HalfClosedTimeout,
            ),
            None => (self.moved, self.limits.idle, Ending::IdleTimeout),
        };
        self.next = since + allowance;
        if self.next > now { Ok(()) } else { Err(ending) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn silence() -> Silence {
        Silence::new(Limits {
            idle: seconds(60),
            half_closed: seconds(10),
        })
    }

    #[test]
    fn progress_counts_from_when_it_happened() {
        let mut silence = silence();
        let begin = silence.moved;
        assert_eq!(silence.next(), begin + seconds(60));
        // At the first look the last byte was 20 s old.
        assert_eq!(silence.observe(begin + seconds(60), 5, seconds(20)), Ok(()));
        assert_eq!(silence.next(), begin + seconds(100));
        let late = silence.observe(begin + seconds(100), 5, seconds(60));
        assert_eq!(late, Err(Ending::IdleTimeout));
    }

    #[test]
    fn retransmissions_are_no_progress() {
        let mut silence = silence();
        let begin = silence.moved;
        assert_eq!(silence.observe(begin + seconds(60), 5, seconds(50)), Ok(()));
        // Something was sent just now, and still nothing was acknowledged.
        let late = silence.observe(begin + seconds(70), 5, Duration::ZERO);
        assert_eq!(late, Err(Ending::IdleTimeout));
    }

    #[test]
    fn the_smaller_limit_begins_with_the_half_close() {
        let mut silence = silence();
        let begin = silence.moved;
        silence.half_close();
        let at = silence.half_closed.unwrap();
        assert_eq!(silence.next(), at + seconds(10));
        assert_eq!(silence.observe(begin + seconds(9), 5, seconds(9)), Ok(()));
        // Bytes in the other direction renew it.
        assert_eq!(silence.observe(at + seconds(15), 6, seconds(8)), Ok(()));
        assert_eq!(silence.next(), at + seconds(17));
        let late = silence.observe(at + seconds(17), 6, seconds(10));
        assert_eq!(late, Err(Ending::HalfClosedTimeout));
    }
}
