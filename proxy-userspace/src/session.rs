//! One client connection from its first byte to its log line.
//!
//! `head -> policy -> dial -> relay`, or a refusal at any step. Everything that decides is elsewhere
//! and pure; this drives it with sockets and clocks.

mod hello;
mod reach;
mod reply;
mod upstream;

use std::{
    borrow::Cow,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{hello::Start, reply::Entry};
use crate::{
    access::{self, Cause, Claim, Known},
    access_log::{AccessLog, Record, Tag},
    auth::Credentials,
    authority::Authority,
    config::Live,
    http::{
        AbsoluteTarget, CONNECTION_ESTABLISHED, ConnectRequest, Head, HeadParser, Progress,
        ProxyError, Refusal, RequestError, Status,
    },
    limits::TURNED_AWAY_HEAD_TIMEOUT,
    policy::ServerName,
    registry::{Counted, Registry, Stop, Tunnel},
    relay::{Ending, Limits, Order, Outcome, Pair, Relay, Traffic, selection::EngineChoice},
    shaping::{Buckets, Shaper},
};

/// What is read from a client at once while its head is incomplete.
const READ_BYTES: usize = 16 * 1024;
/// What the access log shows in place of a target, in Squid's words.
const INVALID: &str = "error:invalid-request";
const TOO_LARGE: &str = "error:request-too-large";

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    /// What requests are judged by.
    pub current: Current,
    /// Our own listeners.
    pub listeners: Vec<SocketAddr>,
    /// The engines.
    pub relay: Relay,
    /// The access log.
    pub access_log: AccessLog,
    /// What is open.
    pub registry: Arc<Registry>,
    /// What limits the bandwidth.
    pub buckets: Buckets,
    /// How many passwords are checked at a time.
    pub checks: Arc<Semaphore>,
    /// What we call ourselves in `Via` (RFC 9110 section 7.6.3); no other process is called so.
    pub pseudonym: Box<str>,
}

impl Shared {
    /// The proxies that a request has passed, and us.
    fn via(&self, before: &str) -> String {
        let comma = if before.is_empty() { "" } else { ", " };
        format!("{before}{comma}1.1 {}", self.pseudonym)
    }

    /// Whether we are one of them.
    fn is_in(&self, via: &str) -> bool {
        via.split([' ', ',', '\t'])
            .any(|word| word == &*self.pseudonym)
    }
}

/// A name for a process.
#[must_use]
pub fn pseudonym() -> Box<str> {
    use std::hash::{BuildHasher as _, RandomState};

    format!("underpass-{:016x}", RandomState::new().hash_one(())).into()
}

/// The configuration that new requests are judged by. Those that are being served keep theirs.
#[derive(Debug)]
pub struct Current(RwLock<Arc<Live>>);

impl Current {
    /// Begins with this one.
    #[must_use]
    pub fn new(live: Live) -> Self {
        Self(RwLock::new(Arc::new(live)))
    }

    /// The present one.
    pub fn get(&self) -> Arc<Live> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on this one.
    pub fn set(&self, live: Arc<Live>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = live;
    }
}

/// What a client may expect of us.
#[derive(Debug)]
pub enum Admission {
    /// To be served. The permit is for everything that is begun for it.
    Served(Arc<OwnedSemaphorePermit>),
    /// To be told why not, whatever it asks for.
    TurnedAway {
        /// For the access log.
        tag: Tag,
        /// What it is told.
        refusal: Refusal,
        /// For as long as that takes; without one there are too many like it.
        permit: Option<OwnedSemaphorePermit>,
    },
    /// Its tunnel has ended, and its room is somebody else's.
    Over,
}

/// A client that was just accepted.
#[derive(Debug)]
pub struct Arrival {
    /// Its number.
    pub id: u64,
    /// Who.
    pub client: SocketAddr,
    /// The listener's name.
    pub listener_name: Arc<str>,
    /// What it is judged by; let go once its tunnel runs, which may outlive many configurations.
    pub live: Option<Arc<Live>>,
    /// Whether it is served.
    pub admission: Admission,
    /// Its being counted.
    pub counted: Counted,
}

/// How reading the head ended, other than with a head.
enum NoHead {
    /// The client went away, or never said anything.
    Left,
    /// It gets this refusal; with the method, where the request got that far.
    Refused(Refusal, Option<String>),
}

/// What the client asks for.
struct Request {
    stream: TcpStream,
    start: Start,
    target: Authority,
    claim: Claim,
    /// Which proxies it has passed.
    via: String,
}

/// Both sides of a tunnel that is to run, and by what.
struct Joint {
    pair: Box<Pair>,
    tunnel: Arc<Tunnel>,
    counted: Counted,
    /// The name of the rule that allowed it.
    rule: Option<Box<str>>,
    engine: EngineChoice,
    limits: Limits,
    lifetime: Option<Duration>,
    shaper: Option<Arc<Shaper>>,
}

/// One client connection.
pub struct Session {
    shared: Arc<Shared>,
    arrival: Arrival,
    cancel: CancellationToken,
    /// When the request head was complete; until then, when the connection was accepted.
    since: Instant,
}

impl Session {
    /// A session for a client that was just accepted.
    pub fn new(shared: Arc<Shared>, arrival: Arrival, cancel: CancellationToken) -> Box<Self> {
        Box::new(Self {
            shared,
            arrival,
            cancel,
            since: Instant::now(),
        })
    }

    /// Serves the client to the end.
    pub async fn run(mut self: Box<Self>, stream: TcpStream) {
        // On the heap, and gone once they are over: a tunnel may idle for hours in the third part.
        let Some(request) = Box::pin(self.receive(stream)).await else {
            return;
        };
        let Some(joint) = Box::pin(self.connect(request)).await else {
            return;
        };
        let Joint {
            pair,
            tunnel,
            counted,
            rule,
            engine,
            limits,
            lifetime,
            shaper,
        } = joint;
        self.arrival.live = None;
        let request_bytes = pair.upstream.written;
        let traffic = Arc::new(Traffic::with_sent(pair.client.written, request_bytes));
        let order = Order {
            engine,
            limits,
            shaper: shaper.as_deref(),
            traffic: &traffic,
            cancel: tunnel.stop.token(),
        };
        let relay = &self.shared.relay;
        let mut outcome = match lifetime {
            None => relay.run(pair, order).await,
            // On the heap: most tunnels have no such limit, and all would carry its size.
            Some(lifetime) => {
                Box::pin(end_after(lifetime, relay.run(pair, order), &tunnel.stop)).await
            }
        };
        if outcome.ending == Ending::Cancelled
            && let Some(why) = tunnel.stop.why()
        {
            outcome.ending = why.clone();
        }
        // Whoever reads of the end may use the room.
        drop(counted);
        self.arrival.admission = Admission::Over;
        let counts = traffic.counts();
        self.log(Entry {
            tag: Tag::TcpTunnel,
            status: 200,
            bytes: counts.to_client,
            url: tunnel.target.to_string(),
            user: tunnel.user.as_deref(),
            peer: Some(tunnel.upstream.ip()),
            hierarchy: tunnel.hierarchy,
            ..Entry::default()
        });
        self.report(
            &tunnel,
            rule.as_deref(),
            &outcome,
            counts.to_upstream.saturating_sub(request_bytes),
            {
                counts
                    .to_client
                    .saturating_sub(CONNECTION_ESTABLISHED.len() as u64)
            },
        );
    }

    /// Reads the request; without one that is to be served, ends with what the client is told.
    async fn receive(&mut self, mut stream: TcpStream) -> Option<Request> {
        // A client that is going to be refused is not waited for.
        let head_timeout = self.live().head_timeout;
        let patience = match self.arrival.admission {
            Admission::Served(_) | Admission::Over => head_timeout,
            Admission::TurnedAway {
                permit: Some(_), ..
            } => head_timeout.min(TURNED_AWAY_HEAD_TIMEOUT),
            // Not even a word.
            Admission::TurnedAway {
                tag, permit: None, ..
            } => {
                drop(stream);
                self.shared.access_log.log(&Record {
                    tag,
                    ..self.no_request()
                });
                return None;
            }
        };
        let mut received = Vec::new();
        let mut parser = HeadParser::new();
        let head = select! {
            head = timeout(patience, read_head(&mut stream, &mut received, &mut parser)) => head,
            () = self.cancel.cancelled() => {
                self.log_no_request();
                return None;
            }
        };
        let head_bytes = match head {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(NoHead::Refused(refusal, method))) => {
                let url = match refusal.status() {
                    Status::URI_TOO_LONG | Status::HEADER_FIELDS_TOO_LARGE => TOO_LARGE,
                    _ => INVALID,
                };
                self.refuse_request(stream, &refusal, method.as_deref(), url)
                    .await;
                return None;
            }
            Err(_elapsed) if !parser.is_empty() => {
                let refusal = Refusal::head_timeout();
                self.refuse_request(stream, &refusal, None, INVALID).await;
                return None;
            }
            // Nothing said, nothing owed: browsers open connections in advance.
            Ok(Err(NoHead::Left)) | Err(_) => {
                self.log_no_request();
                return None;
            }
        };
        let Some(head) = parser.into_head() else {
            self.log_no_request();
            return None;
        };
        self.since = Instant::now();
        // Browsers connect in advance: the rules of the moment count in which something is asked for.
        self.arrival.live = Some(self.shared.current.get());
        let claim = claim(&head);
        let request = match ConnectRequest::from_head(&head, self.live().strictness) {
            Ok(request) => request,
            Err(error) => {
                self.refuse_other(stream, &head, error, &claim).await;
                return None;
            }
        };
        let via = via(&head);
        if self.shared.is_in(&via) {
            let reason = "the request has passed this proxy before; a parent leads back to it";
            let refusal = Refusal::new(ProxyError::ProxyLoopDetected, reason);
            let url = request.authority.to_string();
            self.refuse_request(stream, &refusal, Some("CONNECT"), &url)
                .await;
            return None;
        }
        Some(Request {
            via,
            stream,
            start: Start {
                head_bytes,
                early_data: received.split_off(head_bytes),
                is_answered: false,
            },
            target: self.live().meant(request.authority),
            claim,
        })
    }

    /// Refuses what is no request that we serve. The rules come first: who may not ask for something is
    /// told so, and not that we do not have it.
    async fn refuse_other(
        &self,
        stream: TcpStream,
        head: &Head,
        error: RequestError,
        claim: &Claim,
    ) {
        let mut url = loggable_target(head, error);
        let is_other_method = matches!(
            error,
            RequestError::MethodNotAllowed | RequestError::UnknownMethod
        );
        let text = str::from_utf8(head.target()).unwrap_or_default();
        if is_other_method
            && let Admission::Served(room) = &self.arrival.admission
            && let Some(absolute) = AbsoluteTarget::parse(text)
        {
            let live = self.live();
            let target = live.meant(absolute.authority);
            let request = access::Request {
                method: head.method(),
                scheme: Some(&absolute.scheme),
                server_name: ServerName::None,
                url: text,
                ..self.asked(&stream, &target, text, claim)
            };
            let deadline = access::deadline(live.connect_timeout);
            if let Err(refused) = self
                .access(&live, room, deadline)
                .decide(&request, &mut Known::default(), false)
                .await
                // What is shut by default is so for tunnels; to open it would not help.
                && matches!(refused.cause, Cause::Rule(_))
            {
                let entry = Entry {
                    method: head.method(),
                    url: std::mem::take(&mut url).into_owned(),
                    ..Entry::default()
                };
                self.deny(stream, &refused, entry).await;
                return;
            }
        }
        self.refuse_request(stream, &error.into(), Some(head.method()), &url)
            .await;
    }
}

/// Ends a tunnel that is still open after its time.
async fn end_after(
    lifetime: Duration,
    relay: impl Future<Output = Outcome>,
    stop: &Stop,
) -> Outcome {
    let mut relay = pin!(relay);
    select! {
        outcome = &mut relay => return outcome,
        () = sleep(lifetime) => stop.end(Ending::Lifetime),
    }
    relay.await
}

/// Which proxies the request has passed, in one line; what is no text is left out.
fn via(head: &Head) -> String {
    let values = head
        .values("via")
        .filter_map(|value| str::from_utf8(value).ok());
    values.collect::<Vec<_>>().join(", ")
}

/// Who the client says it is. Several answers are none.
fn claim(head: &Head) -> Claim {
    let mut fields = head.values("proxy-authorization");
    match (fields.next(), fields.next()) {
        (Some(field), None) => Credentials::parse(field).map_or(Claim::Nothing, Claim::Credentials),
        _ => Claim::Nothing,
    }
}

/// Reads until the parser has a whole head: how many of the `received` bytes that took.
async fn read_head(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    parser: &mut HeadParser,
) -> Result<usize, NoHead> {
    let mut parsed = 0;
    loop {
        received.reserve(READ_BYTES);
        match stream.read_buf(received).await {
            Ok(0) | Err(_) => return Err(NoHead::Left),
            Ok(_) => {}
        }
        let fresh = received.get(parsed..).unwrap_or_default();
        match parser.feed(fresh) {
            Ok(Progress::NeedMore) => parsed = received.len(),
            Ok(Progress::Complete { consumed }) => return Ok(parsed + consumed),
            Err(error) => {
                let method = parser.method_read().map(str::to_owned);
                return Err(NoHead::Refused(error.into(), method));
            }
        }
    }
}

/// What the access log shows of a well-formed request that we do not serve: its target without the
/// query, which may hold secrets, but with its question mark, as Squid does.
fn loggable_target(head: &Head, error: RequestError) -> Cow<'_, str> {
    if matches!(error, RequestError::Target(_)) {
        return INVALID.into();
    }
    let path = head.target().split_inclusive(|byte| *byte == b'?').next();
    String::from_utf8_lossy(path.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of what a function returns, without calling it.
    fn size_of_output<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// A tunnel may idle for hours, and there may be tens of thousands.
    #[test]
    fn a_session_is_small() {
        let size = size_of_output(Session::run);
        assert!(size <= 1664, "{size} bytes");
    }
}
