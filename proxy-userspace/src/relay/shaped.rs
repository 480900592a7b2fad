//! Tunnels with a limit on their bandwidth: as `copy`, but bytes are read only as far as there is
//! something in each of the tunnel's buckets ([`crate::shaping`]). What is not read closes the sender's
//! window, so that nothing piles up here.

use std::{
    future::Future as _,
    io,
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
    duplex::{self, Failed, Mover, Parting, Reading},
};
use crate::shaping::{Bucket, Shaper};

/// What is read at once at most: more would be a burst of its own.
const READ_MAX_BYTES: u64 = 16 * 1024;

/// Joins the pair until the tunnel ends.
pub(super) async fn run(pair: &mut Pair, shaper: &Shaper, terms: &Terms<'_>) -> Ending {
    let mut up = Shaped::new(pair.upstream.take_owed(), shaper.up());
    let mut down = Shaped::new(pair.client.take_owed(), shaper.down());
    match duplex::run(pair, [&mut up, &mut down], None, terms).await {
        Parting::Ended(ending) => ending,
        // Without evidence nothing says that it should.
        Parting::Leaves => Ending::Failed("a tunnel with limited bandwidth left".to_owned()),
    }
}

/// One direction.
struct Shaped<'a> {
    buckets: &'a [Arc<Bucket>],
    buffer: Buffer,
    /// Until there is something in the buckets.
    pause: Option<Pin<Box<Sleep>>>,
    /// What the next read may bring.
    allowance: usize,
    /// Nothing more will be read.
    ended: bool,
}

impl<'a> Shaped<'a> {
    fn new(owed: Vec<u8>, buckets: &'a [Arc<Bucket>]) -> Self {
        Self {
            buckets,
            buffer: Buffer::new(owed),
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

impl Mover for Shaped<'_> {
    fn poll_empty(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
        count: &impl Fn(u64),
    ) -> Poll<Result<(), Failed>> {
        ready!(self.buffer.poll_empty(cx, target, count))?;
        if !self.ended {
            ready!(self.poll_allowance(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn fill(&mut self, source: &TcpStream) -> Result<Reading, Failed> {
        let reading = self.buffer.fill_at_most(source, self.allowance)?;
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
        self.buffer.park();
    }
}

impl Buffer {
    /// Reads as [`Mover::fill`], but no more than this.
    fn fill_at_most(&mut self, source: &TcpStream, most: usize) -> Result<Reading, Failed> {
        if most >= self.size() {
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
}
