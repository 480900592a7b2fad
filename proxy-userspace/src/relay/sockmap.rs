//! The `sockmap` engine: the kernel moves the bytes, user space sleeps.
//!
//! Both sockets enter a SOCKHASH whose verdict program (`proxy-ebpf`) redirects every segment that
//! arrives on one to the send queue of the other. User space comes in at the beginning, at the end,
//! and whenever a receiver is too slow for its sender (`direction.rs`).
//!
//! # Insertion
//! What is owed is written first, in full; then the sockets get the filter that bounds what may wait on
//! them, then the flows are published, then the sockets inserted, each of them *paused*: the program
//! leaves bytes alone until user space has read whatever had arrived, holds nothing, and asks. So
//! nothing is overtaken, whoever speaks first.
//!
//! A socket never leaves the map alive: deleting it races with the verdict, which then drops
//! segments. It leaves by being closed.

mod direction;
mod ledger;
mod poller;
pub mod selftest;
mod slots;
mod tunnel;

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use aya::maps::{MapData, RingBuf};
use rustix::net::sockopt::socket_cookie;
use socket2::SockRef;
use tokio::{io::unix::AsyncFd, task::JoinHandle};
use tracing::{error, warn};

use self::{ledger::Ledger, poller::Poller, slots::Slots, tunnel::Tunnel};
use super::{Counts, Declined, Ending, Leg, Pair, Spliced, Terms, Traffic};
use crate::{
    kernel::object::{LoadError, Object},
    limits::{RECEIVE_BUFFER_BYTES, SPLICE_SEND_BUFFER_BYTES},
    net::sockopt,
};

/// The engine: the loaded program, its slots, and the tasks that hand out its events.
pub struct Sockmap {
    slots: Arc<Slots>,
    poller: Arc<Poller>,
    tasks: Vec<JoinHandle<()>>,
    _attached: Box<dyn Send + Sync>,
}

impl fmt::Debug for Sockmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockmap").finish_non_exhaustive()
    }
}

impl Drop for Sockmap {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The program's byte counters of one tunnel.
#[derive(Debug)]
pub(super) struct KernelCounters {
    slots: Arc<Slots>,
    pair: [u32; 2],
    detached: AtomicBool,
}

impl KernelCounters {
    /// Bytes redirected so far; nothing once detached.
    pub(super) fn read(&self) -> Counts {
        if self.detached.load(Relaxed) {
            return Counts::default();
        }
        let redirected = |slot| self.slots.tables().redirected(slot);
        let [up, down] = self.pair;
        Counts {
            to_client: redirected(down),
            to_upstream: redirected(up),
        }
    }

    /// When the first byte to the client was redirected, if one was; nothing once detached.
    pub(super) fn first_to_client(&self) -> Option<Instant> {
        let [_, down] = self.pair;
        let first = self.slots.tables().first_redirected(down);
        first.filter(|_| !self.detached.load(Relaxed))
    }

    /// The tunnel is over; its slots will be somebody else's.
    pub(super) fn detach(&self) {
        self.detached.store(true, Relaxed);
    }
}

/// How a pair that entered the engine fared.
#[derive(Debug)]
pub struct Ran {
    /// How the tunnel ended.
    pub ending: Ending,
    /// Why user space had to move its bytes after all.
    pub degraded: Option<String>,
    /// What the kernel moved.
    pub spliced: Spliced,
}

impl Sockmap {
    /// Loads and attaches the program, with room for `tunnels` tunnels. Call within a Tokio runtime.
    pub fn load(tunnels: u32) -> Result<Arc<Self>, LoadError> {
        let object = Object::load(tunnels.saturating_mul(2).max(2))?;
        let (tables, events, attached) = object.into_parts();
        let failed = |error: io::Error| LoadError::Refused(format!("cannot poll: {error}"));
        let slots = Slots::new(tables, tunnels.max(1));
        let poller = Poller::new().map_err(failed)?;
        let events = sockopt::when_readable(events).map_err(failed)?;
        let tasks = vec![
            tokio::spawn({
                let poller = Arc::clone(&poller);
                async move {
                    let _service = poller.service();
                    let result = poller.serve().await;
                    error!(?result, "the poller of spliced sockets failed");
                }
            }),
            tokio::spawn({
                let (slots, poller) = (Arc::clone(&slots), Arc::clone(&poller));
                async move {
                    let _service = poller.service();
                    let result = serve_events(events, &slots, &poller).await;
                    error!(?result, "reading the splice program's events failed");
                }
            }),
        ];
        Ok(Arc::new(Self {
            slots,
            poller,
            tasks,
            _attached: Box::new(attached),
        }))
    }

    /// How many tunnels it carries, and has room for.
    pub(super) fn slots(&self) -> (usize, usize) {
        self.slots.used()
    }

    /// Joins the pair until the tunnel ends, or gives it back.
    pub(super) async fn run(
        &self,
        mut pair: Box<Pair>,
        terms: &Terms<'_>,
    ) -> Result<Ran, Declined> {
        if let Err(reason) = Self::prepare(&mut pair, terms.traffic) {
            return Err(Declined { pair, reason });
        }
        let cookies = match cookies(&pair) {
            Ok(cookies) => cookies,
            Err(error) => {
                let reason = format!("no socket cookie: {error}");
                return Err(Declined { pair, reason });
            }
        };
        let watch = self.poller.watch();
        // Behind the former: who is in the poller is told of a failure.
        if watch.has_failed() {
            let reason = "its event loop has failed".to_owned();
            return Err(Declined { pair, reason });
        }
        let Some(lease) = self.slots.lease(&watch.wake, cookies) else {
            let reason = "every splice slot is taken".to_owned();
            return Err(Declined { pair, reason });
        };
        let [client_cookie, upstream_cookie] = cookies;
        let tables = lease.tables();
        if let Err(error) = tables.put_brake(&pair.client.stream) {
            let reason = describe("client", &error);
            return Err(Declined { pair, reason });
        }
        if let Err(error) = tables.put_brake(&pair.upstream.stream) {
            let reason = describe("upstream", &error);
            return Err(Declined { pair, reason });
        }
        // The upstream first: a server that has said all it has to say is the likelier refusal.
        let inserted = lease
            .publish()
            .and_then(|()| tables.insert_socket(upstream_cookie, &pair.upstream.stream));
        if let Err(error) = inserted {
            let reason = describe("upstream", &error);
            return Err(Declined { pair, reason });
        }
        let degraded = tables
            .insert_socket(client_cookie, &pair.client.stream)
            .err()
            .map(|error| describe("client", &error));

        for leg in [&pair.client, &pair.upstream] {
            sockopt::bound_receive_buffer(&leg.stream, RECEIVE_BUFFER_BYTES);
            sockopt::widen_send_buffer(&leg.stream, SPLICE_SEND_BUFFER_BYTES);
        }
        let Pair { client, upstream } = *pair;
        let ledgers = [
            Ledger::new(client.consumed, upstream.written),
            Ledger::new(upstream.consumed, client.written),
        ];
        // Out of Tokio's reactor, which would wake us with every segment.
        let streams = client
            .stream
            .into_std()
            .and_then(|client| Ok((client, upstream.stream.into_std()?)));
        let (ending, spliced) = match streams {
            Ok((client, upstream)) => {
                let (slots, slot_pair) = lease.counters();
                terms.traffic.attach(KernelCounters {
                    slots,
                    pair: slot_pair,
                    detached: false.into(),
                });
                let spliced = degraded.is_none();
                let traffic = terms.traffic;
                Tunnel::new(client, upstream, ledgers, spliced, traffic, watch, lease)
                    .run(terms.limits, terms.cancel)
                    .await
            }
            Err(error) => (
                Ending::Failed(format!("cannot leave the reactor: {error}")),
                Spliced::default(),
            ),
        };
        Ok(Ran {
            ending,
            degraded,
            spliced,
        })
    }

    /// Sends what is owed and checks that both connections are open both ways.
    fn prepare(pair: &mut Pair, traffic: &Traffic) -> Result<(), String> {
        let client = flush(&mut pair.client);
        traffic.add_to_client(client.0);
        let upstream = flush(&mut pair.upstream);
        traffic.add_to_upstream(upstream.0);
        client.1.map_err(|reason| format!("client: {reason}"))?;
        upstream.1.map_err(|reason| format!("upstream: {reason}"))?;
        for (leg, name) in [(&pair.client, "client"), (&pair.upstream, "upstream")] {
            // Else redirected bytes for which the send buffer has room could wait in the backlog.
            sockopt::fill_whole_send_buffer(&leg.stream)
                .map_err(|error| format!("{name}: {error}"))?;
            match sockopt::tcp_info(&leg.stream) {
                Ok(info) if info.established => {}
                Ok(_) => return Err(format!("the {name} has half-closed already")),
                Err(error) => return Err(format!("{name}: {error}")),
            }
        }
        Ok(())
    }
}

/// Writes what is owed: the bytes written, and why some could not be.
fn flush(leg: &mut Leg) -> (u64, Result<(), String>) {
    let mut total = 0;
    let result = loop {
        if leg.owed.is_empty() {
            break Ok(());
        }
        // Not through Tokio, which may not know yet that the socket is writable.
        match SockRef::from(&leg.stream).send(&leg.owed) {
            Ok(n) => {
                leg.owed.drain(..n);
                leg.written += n as u64;
                total += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                break Err("the send buffer cannot take what is owed".to_owned());
            }
            Err(error) => break Err(error.to_string()),
        }
    };
    (total, result)
}

fn cookies(pair: &Pair) -> io::Result<[u64; 2]> {
    Ok([
        socket_cookie(&pair.client.stream)?,
        socket_cookie(&pair.upstream.stream)?,
    ])
}

/// A refusal of the map or of the filter in words (`sock_map_update_elem_sys`, `mptcp_setsockopt`).
fn describe(side: &str, error: &io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "not an established plain TCP connection (closing, or MPTCP)",
        Some(libc::EBUSY) => "another BPF program has the socket in its sockmap",
        Some(libc::E2BIG) => "the socket map is full",
        Some(libc::EINVAL) => "the socket carries another protocol layer (kernel TLS?)",
        _ => return format!("{side} socket: {error}"),
    };
    format!("{side} socket: {why}")
}

/// Wakes the tunnels that the program names, for ever.
async fn serve_events(
    mut events: AsyncFd<RingBuf<MapData>>,
    slots: &Slots,
    poller: &Poller,
) -> io::Result<()> {
    let mut lost = 0;
    loop {
        let mut guard = events.readable_mut().await?;
        while let Some(event) = guard.get_inner_mut().next() {
            if let Ok(slot) = <[u8; 8]>::try_from(&event[..]) {
                slots.wake(u64::from_ne_bytes(slot));
            }
        }
        guard.clear_ready();
        let now_lost = slots.tables().lost_events()?;
        if now_lost != lost {
            warn!(
                events = now_lost - lost,
                "the splice program's event ring overflowed; waking every tunnel"
            );
            lost = now_lost;
            poller.wake_all();
        }
    }
}
