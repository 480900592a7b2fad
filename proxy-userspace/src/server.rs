//! The accept loops, and how many sessions may run at once.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::Semaphore,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, debug, debug_span, warn};

use crate::{
    access_log::Tag,
    capture::{Captured, Recognition},
    config::{Live, file},
    http::Refusal,
    limits::{ACCEPT_BACKOFF, MAX_TURNED_AWAY, WARNING_PAUSE},
    net::listen::canonical,
    relay::{Relay, reset_on_close},
    session::{Admission, Arrival, Session, Shared},
};

/// Accepts clients and runs their sessions.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    /// One permit a session that is served: it holds two descriptors at most.
    permits: Arc<Semaphore>,
    /// The same for clients that are only told why they are not served, so that they crowd out
    /// nobody else.
    turned_away_permits: Arc<Semaphore>,
    no_room_warning: Throttle,
    accept_warning: Throttle,
    next_id: AtomicU64,
    sessions: TaskTracker,
    cancel: CancellationToken,
}

impl Server {
    /// A server for at most `tunnels` sessions at once.
    pub fn new(shared: Shared, tunnels: u32) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(shared),
            permits: Arc::new(Semaphore::new(tunnels as usize)),
            turned_away_permits: Arc::new(Semaphore::new(MAX_TURNED_AWAY)),
            no_room_warning: Throttle::default(),
            accept_warning: Throttle::default(),
            next_id: AtomicU64::new(1),
            sessions: TaskTracker::new(),
            cancel: CancellationToken::new(),
        })
    }

    /// The engines.
    pub fn relay(&self) -> &Relay {
        &self.shared.relay
    }

    /// What the sessions share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Accepts from one listener, which the configuration has by this address and name, until [`Server::stop`].
    pub async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        address: SocketAddr,
        name: Arc<str>,
    ) {
        loop {
            let accepted = select! {
                accepted = listener.accept() => accepted,
                () = self.cancel.cancelled() => return,
                () = self.shared.draining.cancelled() => return,
            };
            match accepted {
                Ok((stream, client)) => {
                    self.begin(stream, canonical(client), address, &name, None);
                }
                Err(error) if is_about_one_client(&error) => {}
                Err(error) => {
                    if self.accept_warning.is_due() {
                        warn!(%error, "cannot accept clients for the moment");
                    }
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Accepts connections that were led to us, until [`Server::stop`] or until nobody is there whose they could be.
    pub(crate) async fn accept_captured(
        self: Arc<Self>,
        listener: TcpListener,
        recognition: Recognition,
    ) {
        let name = file::Capture::LISTENER.into();
        loop {
            let accepted = select! {
                accepted = listener.accept() => accepted,
                () = self.cancel.cancelled() => return,
            };
            match accepted {
                Ok((stream, client)) => {
                    let Some(captured) = recognition.captured(client) else {
                        debug!(%client, "reset: nobody has led it here");
                        reset_on_close(&stream);
                        continue;
                    };
                    let address = stream.local_addr().unwrap_or(client);
                    self.begin(stream, canonical(client), address, &name, Some(captured));
                }
                Err(error) if is_about_one_client(&error) => {}
                Err(error) => {
                    if self.accept_warning.is_due() {
                        warn!(%error, "cannot accept captured connections for the moment");
                    }
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Starts the session of a client that was just accepted.
    fn begin(
        &self,
        stream: TcpStream,
        client: SocketAddr,
        listener: SocketAddr,
        listener_name: &Arc<str>,
        captured: Option<Captured>,
    ) {
        self.shared.metrics.note_accepted();
        let live = self.shared.current.get();
        let front = live.front(listener);
        let is_announced = front.is_some_and(|front| front.is_announced_by(client.ip()));
        let id = self.next_id.fetch_add(1, Relaxed);
        let arrival = Arrival {
            id,
            client,
            listener,
            listener_name: Arc::clone(listener_name),
            certificate: None,
            captured: captured.map(Box::new),
            // Whoever announces a client need not be one.
            admission: self.admit(Some(client).filter(|_| !is_announced), &live),
            live: Some(live),
            counted: self.shared.registry.connected(client.ip()),
        };
        let session = Session::new(Arc::clone(&self.shared), arrival, self.cancel.clone());
        // Where nobody wants to know, it costs nothing.
        let span = debug_span!("tunnel", id);
        self.sessions.spawn(session.run(stream).instrument(span));
    }

    /// Whether the client is served; one that is not known yet is.
    fn admit(&self, client: Option<SocketAddr>, live: &Live) -> Admission {
        let take = |permits: &Arc<Semaphore>| Arc::clone(permits).try_acquire_owned().ok();
        let judge = |client: SocketAddr| live.policy.client(client.ip()).err();
        let (tag, refusal) = if let Some(denial) = client.and_then(judge) {
            (Tag::TcpDenied, denial.into())
        } else if let Some(permit) = take(&self.permits) {
            return Admission::Served(Arc::new(permit));
        } else {
            if self.no_room_warning.is_due() {
                warn!("turning clients away: every tunnel is in use");
            }
            (Tag::None, Refusal::no_room())
        };
        let permit = take(&self.turned_away_permits);
        Admission::TurnedAway {
            tag,
            refusal,
            permit,
        }
    }

    /// Stops accepting.
    pub fn drain(&self) {
        self.shared.draining.cancel();
        self.sessions.close();
    }

    /// Returns once it accepts no more and every session has ended.
    pub async fn drained(&self) {
        self.shared.draining.cancelled().await;
        self.sessions.wait().await;
    }

    /// Stops accepting, ends every session, and returns when their log lines are queued.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.sessions.close();
        self.sessions.wait().await;
    }
}

/// When a warning was last given, for one that every client could cause.
#[derive(Debug, Default)]
struct Throttle(Mutex<Option<Instant>>);

impl Throttle {
    /// Whether that is long ago; from now on it is not.
    fn is_due(&self) -> bool {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = given.is_none_or(|at| at.elapsed() >= WARNING_PAUSE);
        if due {
            *given = Some(Instant::now());
        }
        due
    }
}

/// Errors of `accept(2)` that concern the connection that was to be accepted, not the listener.
fn is_about_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    ) || matches!(
        error.raw_os_error(),
        Some(
            libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::EPERM
        )
    )
}
