//! Wakes a spliced tunnel's task, and only when there is something to do.
//!
//! Tokio registers sockets for readability, and a spliced socket "becomes readable" with every
//! segment that the kernel redirects: a wake-up per message, for nothing. Here a socket is
//! registered for what its tunnel waits for, which in the normal case is only the peer's FIN
//! (`EPOLLRDHUP`) and errors. Everything is one-shot: a wait is armed, fires once, and is armed
//! again by the tunnel.
//!
//! The epoll instance is itself polled by Tokio; one task serves it, and another the program's event
//! ring.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
};
use tokio::sync::Notify;

use crate::net::sockopt::when_readable;

/// Epoll events taken in one go.
const BATCH: usize = 64;

/// What one tunnel is told. The task waits on `notify` and takes the flags.
#[derive(Debug, Default)]
pub(super) struct Wake {
    /// One permit, however many events.
    pub(super) notify: Notify,
    client: AtomicU32,
    upstream: AtomicU32,
}

impl Wake {
    /// Takes the events of both sockets since the last call: client, upstream.
    pub(super) fn take(&self) -> (EventFlags, EventFlags) {
        let take = |flags: &AtomicU32| EventFlags::from_bits_retain(flags.swap(0, Relaxed));
        (take(&self.client), take(&self.upstream))
    }
}

/// A tunnel's place in the poller; leaves it on drop.
#[derive(Debug)]
pub(super) struct Watch {
    poller: Arc<Poller>,
    id: u64,
    /// What wakes the tunnel.
    pub(super) wake: Arc<Wake>,
}

impl Watch {
    /// Registers the sockets, waiting for nothing but errors.
    pub(super) fn add(&self, client: impl AsFd, upstream: impl AsFd) -> io::Result<()> {
        for (socket, side) in [(client.as_fd(), 0), (upstream.as_fd(), 1)] {
            let data = EventData::new_u64(self.id << 1 | side);
            epoll::add(&self.poller.epoll, socket, data, EventFlags::ONESHOT)?;
        }
        Ok(())
    }

    /// Whether nobody hands out events any more.
    pub(super) fn has_failed(&self) -> bool {
        self.poller.has_failed()
    }

    /// Takes the sockets out before they are closed: a poll in progress would keep one of them open,
    /// and in the map, for a moment longer. This waits for it.
    pub(super) fn remove(&self, client: impl AsFd, upstream: impl AsFd) {
        for socket in [client.as_fd(), upstream.as_fd()] {
            // It fails only on what was not added.
            let _ = epoll::delete(&self.poller.epoll, socket);
        }
    }

    /// Waits once for `interest`, errors included, on the client's socket.
    pub(super) fn arm_client(&self, socket: impl AsFd, interest: EventFlags) -> io::Result<()> {
        self.arm(socket, 0, interest)
    }

    /// Waits once for `interest`, errors included, on the upstream's socket.
    pub(super) fn arm_upstream(&self, socket: impl AsFd, interest: EventFlags) -> io::Result<()> {
        self.arm(socket, 1, interest)
    }

    fn arm(&self, socket: impl AsFd, side: u64, interest: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(self.id << 1 | side);
        epoll::modify(
            &self.poller.epoll,
            socket,
            data,
            interest | EventFlags::ONESHOT,
        )?;
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.poller.tunnels().remove(&self.id);
    }
}

/// The epoll instance and who is in it.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    /// By an id that is never used again, so that a late event cannot hit another tunnel.
    tunnels: Mutex<HashMap<u64, Arc<Wake>>>,
    next_id: AtomicU64,
    /// Set when events are no longer handed out, which only a failing kernel or a defect of ours can
    /// bring about.
    failed: AtomicBool,
}

/// Held by a task that tunnels depend on: when the task ends, for whatever reason, they are told.
pub(super) struct Service {
    poller: Arc<Poller>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.poller.failed.store(true, Relaxed);
        self.poller.wake_all();
    }
}

impl Poller {
    /// An empty poller.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            tunnels: Mutex::default(),
            next_id: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }))
    }

    /// For a task that tunnels depend on.
    pub(super) fn service(self: &Arc<Self>) -> Service {
        Service {
            poller: Arc::clone(self),
        }
    }

    /// Whether such a task has ended.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// A place for one tunnel.
    pub(super) fn watch(self: &Arc<Self>) -> Watch {
        let watch = Watch {
            poller: Arc::clone(self),
            id: self.next_id.fetch_add(1, Relaxed),
            wake: Arc::default(),
        };
        self.tunnels().insert(watch.id, Arc::clone(&watch.wake));
        watch
    }

    /// Wakes every tunnel: events may have been lost.
    pub(super) fn wake_all(&self) {
        for wake in self.tunnels().values() {
            wake.notify.notify_one();
        }
    }

    /// Hands out events for ever, or until epoll fails.
    pub(super) async fn serve(&self) -> io::Result<()> {
        let readable = when_readable(self.epoll.try_clone()?)?;
        loop {
            let mut guard = readable.readable().await?;
            if self.hand_out()? < BATCH {
                guard.clear_ready();
            }
        }
    }

    /// Hands out one batch of events: how many there were.
    fn hand_out(&self) -> io::Result<usize> {
        let mut buffer = [const { MaybeUninit::uninit() }; BATCH];
        let (events, _) = epoll::wait(&self.epoll, &mut buffer, Some(&Timespec::default()))?;
        let tunnels = self.tunnels();
        for event in events.iter() {
            let token = event.data.u64();
            let Some(wake) = tunnels.get(&(token >> 1)) else {
                continue;
            };
            let flags = if token & 1 == 0 {
                &wake.client
            } else {
                &wake.upstream
            };
            // The structure is packed: copy the field.
            let fired = event.flags;
            flags.fetch_or(fired.bits(), Relaxed);
            wake.notify.notify_one();
        }
        Ok(events.len())
    }

    fn tunnels(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Wake>>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
