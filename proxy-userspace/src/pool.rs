//! Connections over which requests are forwarded, and that are kept for the next one.
//!
//! Who speaks HTTP over them is hyper, in a task of its own for each: it notices when the other end closes one that is
//! idle. A connection that somebody has authenticated is never given to anybody else.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::{
    Request, Response,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
    header::HeaderMap,
};
use hyper_util::rt::TokioIo;
use tokio::{sync::mpsc, time::sleep};

use crate::{
    authority::Authority,
    limits::{FORWARD_BUFFER_BYTES, MAX_IDLE_UPSTREAMS, POOL_SWEEP_PAUSE},
    net::{listen::canonical, outgoing::Outgoing},
    parent::{Link, Parent},
};

/// What a connection leads to. A parent that was configured anew is another one, whatever its name: it may be elsewhere.
#[derive(Clone, Debug)]
pub(crate) enum Whose {
    /// An origin.
    Origin(Authority),
    /// A parent that is given URLs, for any origin.
    Parent(Arc<Parent>),
    /// An origin, through a tunnel that a parent has opened.
    Through(Arc<Parent>, Authority),
}

impl PartialEq for Whose {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Origin(one), Self::Origin(other)) => one == other,
            (Self::Parent(one), Self::Parent(other)) => Arc::ptr_eq(one, other),
            (Self::Through(one, target), Self::Through(other, another)) => {
                Arc::ptr_eq(one, other) && target == another
            }
            _ => false,
        }
    }
}

/// A connection over which requests are forwarded, one at a time.
#[derive(Debug)]
pub(crate) struct Line {
    sender: SendRequest<Upload>,
    /// What it leads to.
    pub(crate) whose: Whose,
    /// The address at its other end.
    pub(crate) address: SocketAddr,
    /// The address at ours.
    pub(crate) local: Option<SocketAddr>,
    /// How it was connected.
    pub(crate) outgoing: Outgoing,
    /// Whether requests were forwarded over it before.
    pub(crate) is_used: bool,
}

impl Line {
    /// Begins to speak HTTP over a connection.
    ///
    /// # Errors
    /// The other end has spoken first.
    pub(crate) async fn open(link: Link, whose: Whose, outgoing: Outgoing) -> io::Result<Self> {
        if !link.early.is_empty() {
            let early = "it speaks before it is asked";
            return Err(io::Error::new(io::ErrorKind::InvalidData, early));
        }
        let local = link.wire.socket().local_addr().ok().map(canonical);
        let (sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(FORWARD_BUFFER_BYTES)
            .handshake(TokioIo::new(link.wire))
            .await
            .map_err(io::Error::other)?;
        // Whoever waits for a response is told of its errors.
        tokio::spawn(connection.with_upgrades());
        Ok(Self {
            sender,
            whose,
            address: link.address,
            local,
            outgoing,
            is_used: false,
        })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// There is no response.
    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Whether the other end has not closed it. It may not be ready yet, if its last response has only just been passed
    /// on: [`Line::send`] waits for that.
    fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }
}

/// What is sent of a request's body.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Some of it.
    Data(Bytes),
    /// Its end, and the fields behind it.
    End(HeaderMap),
}

/// A request's body on its way. Unless its [`Piece::End`] comes, it is broken off.
#[derive(Debug)]
pub(crate) struct Upload {
    pieces: Option<mpsc::Receiver<Piece>>,
    len: Option<u64>,
}

impl Upload {
    /// No body.
    pub(crate) fn empty() -> Self {
        Self {
            pieces: None,
            len: Some(0),
        }
    }

    /// A body of this length, if that is known, and what its pieces go into.
    pub(crate) fn new(len: Option<u64>) -> (mpsc::Sender<Piece>, Self) {
        let (sender, pieces) = mpsc::channel(1);
        let pieces = Some(pieces);
        (sender, Self { pieces, len })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let body = self.get_mut();
        let Some(pieces) = &mut body.pieces else {
            return Poll::Ready(None);
        };
        Poll::Ready(match ready!(pieces.poll_recv(cx)) {
            Some(Piece::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End(trailer)) => {
                body.pieces = None;
                (!trailer.is_empty()).then(|| Ok(Frame::trailers(trailer)))
            }
            None => Some(Err(io::ErrorKind::ConnectionAborted.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.len.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// A private connection of a client that does not use it at present.
#[derive(Debug, Default)]
pub(crate) struct Own(Mutex<Option<Box<Line>>>);

impl Own {
    /// Takes it, if it fits.
    pub(crate) fn take(&self, fits: impl Fn(&Line) -> bool) -> Option<Box<Line>> {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        own.take_if(|line| fits(line) && line.is_open())
    }

    /// Keeps it.
    pub(crate) fn keep(&self, mut line: Box<Line>) {
        line.is_used = true;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
    }
}

/// Connections that nobody uses at present.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The one that was used last at the end.
    idle: Vec<Idle>,
    is_swept: bool,
}

#[derive(Debug)]
struct Idle {
    line: Box<Line>,
    until: Instant,
}

impl Pool {
    /// A connection that fits, for one more request.
    pub(crate) fn take(&self, fits: impl Fn(&Line) -> bool) -> Option<Box<Line>> {
        let mut state = self.state();
        state.sweep(Instant::now());
        let index = state
            .idle
            .iter()
            .rposition(|idle| fits(&idle.line) && idle.line.is_open())?;
        Some(state.idle.remove(index).line)
    }

    /// Keeps a connection for a while, if it can be used again.
    pub(crate) fn keep(self: &Arc<Self>, mut line: Box<Line>, patience: Duration) {
        if !line.is_open() {
            return;
        }
        line.is_used = true;
        let mut state = self.state();
        if state.idle.len() >= MAX_IDLE_UPSTREAMS {
            state.idle.remove(0);
        }
        let until = Instant::now() + patience;
        state.idle.push(Idle { line, until });
        if !std::mem::replace(&mut state.is_swept, true) {
            tokio::spawn(sweep(Arc::clone(self)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes what has been idle for too long, or was closed at the other end.
    fn sweep(&mut self, now: Instant) {
        self.idle
            .retain(|idle| idle.until > now && idle.line.is_open());
    }
}

/// Closes connections as their time comes, for as long as there are some.
async fn sweep(pool: Arc<Pool>) {
    loop {
        sleep(POOL_SWEEP_PAUSE).await;
        let mut state = pool.state();
        state.sweep(Instant::now());
        if state.idle.is_empty() {
            state.is_swept = false;
            return;
        }
    }
}
