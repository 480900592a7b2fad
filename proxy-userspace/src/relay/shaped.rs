//! Tunnels with a limit on their bandwidth: as `copy`, but bytes are read only as far as there is
//! something in each of the tunnel's buckets ([`crate::shaping`]). What is not read closes the sender's
//! window, so that nothing piles up here.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::{
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{
    Ending, Pair, Terms,
    copy::Buffer,
    duplex::{self, Failed, Mover, Reading},
    sealed::Seals,
};
use crate::shaping::{Bucket, Shaper};

/// What is read at once at most: more would be a burst of its own.
const READ_MAX_BYTES: u64 = 16 * 1024;

/// Joins the pair until the tunnel ends.
pub(super) async fn run(pair: &mut Pair, shaper: &Shaper, terms: &Terms<'_>) -> Ending {
    let Some(seals) = Seals::take(pair) else {
        let buffers = [
            Buffer::new(pair.upstream.take_owed()),
            Buffer::new(pair.client.take_owed()),
        ];
        return limited(pair, buffers, shaper, terms).await;
    };
    let movers = seals.movers(pair);
    limited(pair, movers, shaper, terms).await
}

async fn limited<M: Mover>(
    pair: &mut Pair,
    [up, down]: [M; 2],
    shaper: &Shaper,
    terms: &Terms<'_>,
) -> Ending {
    let mut up = Shaped::new(up, shaper.up());
    let mut down = Shaped::new(down, shaper.down());
    duplex::run(pair, [&mut up, &mut down], None, terms)
        .await
        .ending()
}

/// One direction.
struct Shaped<'a, M> {
    buckets: &'a [Arc<Bucket>],
    inner: M,
    /// Until there is something in the buckets.
    pause: Option<Pin<Box<Sleep>>>,
    /// What the next read may bring.
    allowance: usize,
    /// Nothing more will be read.
    ended: bool,
}

impl<'a, M> Shaped<'a, M> {
    fn new(inner: M, buckets: &'a [Arc<Bucket>]) -> Self {
        Self {
            buckets,
            inner,
            pause: None,
            allowance: 0,
            ended: false,
        }
    }

    /// Waits until the next bytes may be read.
    fn poll_allowance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let now = Instant::now();
            let available = self.buckets.iter().map(|bucket| bucket.available(now));
            match available.reduce(lesser) {
                Some(Err(wait)) => self.pause = Some(Box::pin(sleep(wait))),
                Some(Ok(bytes)) => {
                    let bytes = bytes.clamp(1, READ_MAX_BYTES);
                    self.allowance = usize::try_from(bytes).unwrap_or(1);
                    return Poll::Ready(());
                }
                // The other direction is limited.
                None => {
                    self.allowance = usize::MAX;
                    return Poll::Ready(());
                }
            }
        }
    }
}

type Available = Result<u64, std::time::Duration>;

/// What two buckets allow together.
fn lesser(one: Available, other: Available) -> Available {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok(one.min(other)),
        (Err(one), Err(other)) => Err(one.max(other)),
        (Err(wait), Ok(_)) | (Ok(_), Err(wait)) => Err(wait),
    }
}

impl<M: Mover> Mover for Shaped<'_, M> {
    fn poll_empty(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
        count: &impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        ready!(self.inner.poll_empty(cx, target, count))?;
        if !self.ended {
            ready!(self.poll_allowance(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn fill(&mut self, source: &TcpStream) -> Result<Reading, Failed> {
        let reading = self.inner.fill_at_most(source, self.allowance)?;
        match reading {
            Reading::Bytes(bytes) => {
                let now = Instant::now();
                for bucket in self.buckets {
                    bucket.take(bytes, now);
                }
            }
            Reading::EndOfFile => self.ended = true,
            Reading::Nothing => {}
        }
        Ok(reading)
    }

    fn park(&mut self) {
        self.inner.park();
    }
}
