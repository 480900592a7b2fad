//! Whether the running kernel splices correctly: tried on loopback at start-up, before anybody's
//! bytes depend on it.
//!
//! Each trial runs the engine itself between two loopback connections, `C - A` and `B - S`, and
//! checks what C and S receive. A failure names the trial; the engine is then not offered.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use proxy_common::Direction;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Sockmap;
use crate::{
    kernel::version::SOUND_KERNELS,
    relay::{Ending, Leg, Limits, Pair, Side, Terms, Traffic, reset_on_close},
};

/// All trials together take a few milliseconds, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(15);
/// Two handshakes over loopback take no time at all.
const SETUP_PATIENCE: Duration = Duration::from_secs(1);
/// What a sender may get rid of while nobody reads, in one trial: the buffers of four sockets.
const HELD_MAX_BYTES: usize = 64 * 1024 * 1024;

/// Why the engine is not offered.
#[derive(Debug, Error)]
pub enum SelfTestError {
    /// The trials could not be run at all.
    #[error("the self-test could not run over loopback: {0}")]
    Setup(#[from] io::Error),
    /// A trial showed wrong behaviour.
    #[error("this kernel failed the self-test: {0}")]
    Failed(String),
    /// A trial hung.
    #[error("this kernel failed the self-test: {0} did not finish")]
    Hung(&'static str),
}

impl SelfTestError {
    /// What the operator can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Setup(_) => "bring the loopback interface up: ip link set lo up".to_owned(),
            Self::Failed(_) | Self::Hung(_) => {
                format!("run {SOUND_KERNELS}, and no other BPF program on the proxy's sockets")
            }
        }
    }
}

/// Runs every trial.
pub async fn run(engine: &Arc<Sockmap>) -> Result<(), SelfTestError> {
    bounded(
        "the trial of residue and half-close",
        residue_and_half_close(engine),
    )
    .await?;
    bounded("the trial of back-pressure", back_pressure(engine)).await?;
    bounded("the trial of a reset", reset_is_passed_on(engine)).await
}

async fn bounded(
    name: &'static str,
    trial: impl Future<Output = Result<(), SelfTestError>>,
) -> Result<(), SelfTestError> {
    match timeout(PATIENCE, trial).await {
        Ok(result) => result,
        Err(_elapsed) => Err(SelfTestError::Hung(name)),
    }
}

/// Two loopback connections and the engine between them.
struct Bench {
    /// Plays the client.
    c: TcpStream,
    /// Plays the server.
    s: TcpStream,
    a: TcpStream,
    b: TcpStream,
}

impl Bench {
    async fn new() -> io::Result<Self> {
        match timeout(SETUP_PATIENCE, Self::connect()).await {
            Ok(bench) => bench,
            // Without loopback the handshake's segments just vanish.
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    async fn connect() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let c = TcpStream::connect(address).await?;
        let (a, _) = listener.accept().await?;
        let b = TcpStream::connect(address).await?;
        let (s, _) = listener.accept().await?;
        Ok(Self { c, s, a, b })
    }

    /// Starts the engine; `consumed` bytes of the client were read already.
    fn splice(self, engine: &Arc<Sockmap>, consumed: u64) -> Spliced {
        let leg = |stream, consumed| Leg {
            stream,
            tls: None,
            owed: Vec::new(),
            consumed,
            written: 0,
        };
        let pair = Pair::new(leg(self.a, consumed), leg(self.b, 0));
        let limits = Limits {
            idle: PATIENCE,
            half_closed: PATIENCE,
        };
        let traffic = Arc::new(Traffic::new(std::time::Instant::now()));
        let task = tokio::spawn({
            let (engine, traffic) = (Arc::clone(engine), Arc::clone(&traffic));
            async move {
                let cancel = CancellationToken::new();
                let terms = Terms {
                    limits,
                    traffic: &traffic,
                    cancel: &cancel,
                };
                match engine.run(pair, &terms).await {
                    Ok(ran) => match ran.degraded {
                        None => Ok(ran.ending),
                        Some(reason) => Err(reason),
                    },
                    Err(declined) => Err(declined.reason),
                }
            }
        });
        Spliced {
            c: self.c,
            s: self.s,
            traffic,
            task,
        }
    }
}

/// A bench whose engine runs.
struct Spliced {
    c: TcpStream,
    s: TcpStream,
    traffic: Arc<Traffic>,
    task: Task,
}

/// Waits for the tunnel's end.
async fn ending(task: Task) -> Result<Ending, SelfTestError> {
    match task.await {
        Ok(Ok(ending)) => Ok(ending),
        Ok(Err(reason)) => Err(failed(&format!("loopback sockets were declined: {reason}"))),
        Err(error) => Err(failed(&error.to_string())),
    }
}

type Task = JoinHandle<Result<Ending, String>>;

fn failed(what: &str) -> SelfTestError {
    SelfTestError::Failed(what.to_owned())
}

/// Bytes that differ at every position of interest.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + i / 251 + seed) % 256).unwrap_or_default())
        .collect()
}

fn check(what: &str, ok: bool) -> Result<(), SelfTestError> {
    if ok { Ok(()) } else { Err(failed(what)) }
}

/// What waited before the splice, and a partly read first segment, arrive once and in order; a
/// half-close passes without hurting the other direction; the kernel did move bytes.
async fn residue_and_half_close(engine: &Arc<Sockmap>) -> Result<(), SelfTestError> {
    const HEAD: usize = 100;
    let mut bench = Bench::new().await?;
    let request = pattern(5_000, 1);
    let banner = pattern(3_000, 2);
    bench.c.write_all(&request).await?;
    bench.s.write_all(&banner).await?;
    let mut head = [0; HEAD];
    bench.a.read_exact(&mut head).await?;
    let mut spliced = bench.splice(engine, HEAD as u64);

    let mut got = vec![0; request.len() - HEAD];
    spliced.s.read_exact(&mut got).await?;
    check(
        "bytes from before the splice arrived damaged",
        request.get(HEAD..) == Some(&got[..]),
    )?;
    let mut got = vec![0; banner.len()];
    spliced.c.read_exact(&mut got).await?;
    check("a server's first bytes arrived damaged", got == banner)?;

    let rounds = until_redirected(engine, &mut spliced).await?;
    let last = pattern(200_000, 3);
    spliced.c.write_all(&last).await?;
    spliced.c.shutdown().await?;
    let mut got = Vec::new();
    spliced.s.read_to_end(&mut got).await?;
    check("bytes right before a FIN were lost", got == last)?;
    spliced.s.write_all(&last).await?;
    spliced.s.shutdown().await?;
    let mut got = Vec::new();
    spliced.c.read_to_end(&mut got).await?;
    check("a half-close harmed the other direction", got == last)?;

    let sent = (request.len() - HEAD + rounds * MESSAGE + last.len()) as u64;
    let traffic = Arc::clone(&spliced.traffic);
    let ending = ending(spliced.task).await?;
    check("a clean end was not seen as one", ending == Ending::Closed)?;
    check(
        "TCP_INFO does not count bytes as expected",
        traffic.counts().to_upstream == sent,
    )
}

/// Bytes of a message in [`until_redirected`].
const MESSAGE: usize = 512;

/// Sends messages back and forth until the program has redirected some each way: how many. While
/// user space is kept busy it moves them itself, so it gets time to come to rest in between.
async fn until_redirected(engine: &Sockmap, spliced: &mut Spliced) -> Result<usize, SelfTestError> {
    const ROUNDS: usize = 200;
    for round in 1..=ROUNDS {
        let message = pattern(MESSAGE, round);
        let mut echo = vec![0; message.len()];
        spliced.c.write_all(&message).await?;
        spliced.s.read_exact(&mut echo).await?;
        check("a message to the server arrived damaged", echo == message)?;
        spliced.s.write_all(&message).await?;
        spliced.c.read_exact(&mut echo).await?;
        check("a message to the client arrived damaged", echo == message)?;
        let [up, down] = kernel_state(engine)?;
        if up.redirected > 0 && down.redirected > 0 {
            return Ok(round);
        }
        sleep(Duration::from_millis(1)).await;
    }
    Err(failed("the program redirected nothing"))
}

/// The program's view of the only tunnel.
fn kernel_state(engine: &Sockmap) -> io::Result<[Direction; 2]> {
    let tables = engine.slots.tables();
    Ok([tables.direction(0)?, tables.direction(1)?])
}

/// A sender whose receiver stops reading is held back, and everything arrives once it reads.
async fn back_pressure(engine: &Arc<Sockmap>) -> Result<(), SelfTestError> {
    let spliced = Bench::new().await?.splice(engine, 0);
    let block = pattern(256 * 1024, 7);
    let mut sent = 0;
    let mut offset = 0;
    // Held back means that nothing goes for a while.
    while let Ok(writable) = timeout(Duration::from_millis(30), spliced.s.writable()).await {
        writable?;
        let rest = block.get(offset..).unwrap_or_default();
        match spliced.s.try_write(rest) {
            Ok(n) => {
                sent += n;
                offset = (offset + n) % block.len();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        check("a sender is not held back", sent < HELD_MAX_BYTES)?;
    }
    let Spliced { mut c, s, task, .. } = spliced;
    // The FIN, with megabytes still on their way.
    drop(s);
    let mut received = 0;
    let mut buffer = vec![0; block.len()];
    loop {
        let n = c.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        check(
            "held-back bytes arrived damaged",
            repeats(&block, received, buffer.get(..n).unwrap_or_default()),
        )?;
        received += n;
    }
    check("held-back bytes were lost", received == sent)?;
    drop(c);
    // Its ending is of no interest: a closed client may still reset.
    task.abort();
    let _ = task.await;
    Ok(())
}

/// Whether these bytes are what stands at `offset` where a block is repeated without end.
fn repeats(block: &[u8], offset: usize, mut bytes: &[u8]) -> bool {
    let mut expected = block.get(offset % block.len()..).unwrap_or_default();
    while !bytes.is_empty() {
        let (now, later) = bytes.split_at(bytes.len().min(expected.len()));
        if !expected.starts_with(now) {
            return false;
        }
        (bytes, expected) = (later, block);
    }
    true
}

/// A reset of one side is seen, and becomes a reset of the other.
async fn reset_is_passed_on(engine: &Arc<Sockmap>) -> Result<(), SelfTestError> {
    let mut spliced = Bench::new().await?.splice(engine, 0);
    let mut byte = [0];
    spliced.c.write_all(&[1]).await?;
    spliced.s.read_exact(&mut byte).await?;
    reset_on_close(&spliced.s);
    let Spliced { mut c, s, task, .. } = spliced;
    drop(s);
    let seen = c.read(&mut byte).await;
    check(
        "a reset looked like a clean end",
        seen.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset),
    )?;
    check(
        "a reset was not recognised",
        ending(task).await? == Ending::Reset(Side::Upstream),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_repeated_without_end() {
        for (offset, bytes, repeated) in [
            (0, "", true),
            (0, "abcabca", true),
            (5, "cab", true),
            (5, "cabd", false),
            (3, "abx", false),
            (1, "abc", false),
        ] {
            let found = repeats(b"abc", offset, bytes.as_bytes());
            assert_eq!(found, repeated, "{bytes} at {offset}");
        }
    }
}
