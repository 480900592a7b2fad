//! One client connection from its first byte to its log line.
//!
//! `head -> policy -> dial -> relay`, or a refusal at any step; requests that are forwarded come one behind the other.
//! Everything that decides is elsewhere and pure; this drives it with sockets and clocks.

mod captured;
mod exchange;
mod forward;
mod greeting;
mod hello;
mod reach;
mod reply;
mod shared;
mod upstream;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    net::TcpStream,
    select,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::reach::dice;
pub use self::shared::{Current, Shared, State, pseudonym};
use self::{
    forward::{After, Forward},
    hello::Start,
};
use crate::{
    access::Claim,
    access_log::{Event, Record, Tag, Timings},
    auth::Credentials,
    authority::Authority,
    capture::Captured,
    config::Live,
    http::{
        ConnectRequest, Head, HeadParser, PlainRequest, Progress, ProxyError, Refusal,
        RequestError, Status, Version,
    },
    limits::TURNED_AWAY_HEAD_TIMEOUT,
    net::{listen::canonical, wire::Wire},
    pool::Own,
    registry::{Counted, Stop, Tunnel, loggable},
    relay::{Ending, Limits, Order, Outcome, Pair, selection::EngineChoice},
    shaping::Shaper,
};

/// What the access log shows in place of a target, in Squid's words.
const INVALID: &str = "error:invalid-request";
const TOO_LARGE: &str = "error:request-too-large";

/// An address that the system does not tell.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

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
    /// The listener's address, as it is configured.
    pub listener: SocketAddr,
    /// The listener's name.
    pub listener_name: Arc<str>,
    /// The names in the certificate that the client has shown.
    pub certificate: Option<Arc<[String]>>,
    /// Where it meant to go, if it does not know of us.
    pub captured: Option<Box<Captured>>,
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

/// A client that is to be listened to.
struct Visit {
    wire: Wire,
    /// What it has sent and was not looked at.
    received: BytesMut,
    /// Requests that it got answers to.
    served: u32,
    /// A connection to an origin that it has authenticated.
    own: Own,
}

/// A request that is to be served.
enum Request {
    Tunnel(TunnelRequest),
    Plain(Forward),
}

/// A tunnel that the client asks for.
struct TunnelRequest {
    wire: Wire,
    start: Start,
    target: Authority,
    claim: Claim,
    /// Which proxies the request has passed.
    via: String,
}

/// Both sides of a tunnel that is to run, and by what.
struct Joint {
    pair: Box<Pair>,
    tunnel: Arc<Tunnel>,
    counted: Counted,
    engine: EngineChoice,
    limits: Limits,
    lifetime: Option<Duration>,
    shaper: Option<Arc<Shaper>>,
    /// Bytes of the answer that the client has or is owed.
    answer: u64,
    /// Bytes that the client has got of it already.
    told: u64,
}

/// One client connection.
pub struct Session {
    shared: Arc<Shared>,
    arrival: Arrival,
    cancel: CancellationToken,
    /// When the request head was complete; until then, when the connection was accepted.
    since: Instant,
    /// The address of ours that the client has connected to.
    local: SocketAddr,
    /// What is logged of the head of its request.
    head: LoggedHead,
    /// How long the steps took so far.
    timings: Mutex<Timings>,
}

/// What is logged of a request's head.
#[derive(Debug, Default)]
struct LoggedHead {
    bytes: u64,
    version: Option<Version>,
    fields: Box<[(Box<str>, Box<str>)]>,
}

impl Session {
    /// A session for a client that was just accepted.
    pub fn new(shared: Arc<Shared>, arrival: Arrival, cancel: CancellationToken) -> Box<Self> {
        Box::new(Self {
            shared,
            arrival,
            cancel,
            since: Instant::now(),
            local: UNKNOWN,
            head: LoggedHead::default(),
            timings: Mutex::default(),
        })
    }

    /// How long the steps took so far.
    fn timings(&self) -> Timings {
        *self.timings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step has taken its time.
    fn note_time(&self, note: impl FnOnce(&mut Timings)) {
        note(&mut self.timings.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Serves the client to the end.
    pub async fn run(mut self: Box<Self>, stream: TcpStream) {
        self.local = stream.local_addr().map_or(UNKNOWN, canonical);
        // On the heap, and gone once it is over: a tunnel may idle for hours.
        let Some(joint) = Box::pin(self.converse(stream)).await else {
            return;
        };
        let Joint {
            pair,
            tunnel,
            counted,
            engine,
            limits,
            lifetime,
            shaper,
            answer,
            told,
        } = joint;
        self.arrival.live = None;
        self.head.fields = Box::default();
        let traffic = &tunnel.traffic;
        traffic.begin(answer, told, pair.upstream.written);
        let live = self.shared.current.get();
        self.shared.log(&live, &tunnel.record(Event::Start));
        drop(live);
        let order = Order {
            engine,
            limits,
            shaper: shaper.as_deref(),
            traffic,
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
        let end = Record {
            engine: Some(outcome.engine),
            declined: outcome.declined.as_deref(),
            moved_after: outcome.moved_after,
            ending: Some(&outcome.ending),
            ..tunnel.record(Event::End)
        };
        self.shared.log(&self.live(), &end);
        self.report(&tunnel, &outcome);
    }

    /// Answers requests until one of them leads to a tunnel.
    async fn converse(&mut self, stream: TcpStream) -> Option<Joint> {
        if let Some(captured) = self.arrival.captured.clone() {
            let request = Box::pin(self.overhear(stream, &captured)).await?;
            return Box::pin(self.connect(request)).await;
        }
        let (wire, received) = Box::pin(self.greet(stream)).await?;
        let mut visit = Visit {
            wire,
            received,
            served: 0,
            own: Own::default(),
        };
        loop {
            let forward = match Box::pin(self.receive(visit)).await? {
                Request::Tunnel(request) => return Box::pin(self.connect(request)).await,
                Request::Plain(forward) => forward,
            };
            match Box::pin(self.forward(forward)).await {
                After::Stays(stays) => visit = stays,
                After::Upgraded(joint) => return Some(*joint),
                After::Over => return None,
            }
        }
    }

    /// How long the client may take for its head; none if it gets not even a word.
    fn patience(&self) -> Option<Duration> {
        let head_timeout = self.live().head_timeout;
        match self.arrival.admission {
            Admission::Served(_) | Admission::Over => Some(head_timeout),
            // A client that is going to be refused is not waited for.
            Admission::TurnedAway {
                permit: Some(_), ..
            } => Some(head_timeout.min(TURNED_AWAY_HEAD_TIMEOUT)),
            Admission::TurnedAway { permit: None, .. } => None,
        }
    }

    /// Reads the request; without one that is to be served, ends with what the client is told.
    async fn receive(&mut self, visit: Visit) -> Option<Request> {
        let Visit {
            wire,
            mut received,
            served,
            own,
        } = visit;
        if served > 0 && received.is_empty() {
            // Nothing is owed to a client that does not ask for more.
            let patience = self.shared.current.get().keep_alive;
            select! {
                read = timeout(patience, wire.read(&mut received)) => {
                    read.ok()?.ok().filter(|bytes| *bytes > 0)?;
                }
                () = self.cancel.cancelled() => return None,
                () = self.shared.draining.cancelled() => return None,
            }
        }
        let Some(patience) = self.patience() else {
            drop(wire);
            if let Admission::TurnedAway { tag, .. } = self.arrival.admission {
                self.log(Record {
                    tag,
                    ..self.no_request()
                });
            }
            return None;
        };
        let (wire, head) = self.head(wire, &mut received, patience).await?;
        self.since = Instant::now();
        // Browsers connect in advance: the rules of the moment count in which something is asked for.
        self.arrival.live = Some(self.shared.current.get());
        let live = self.live();
        self.head.version = Some(head.version());
        self.head.fields = live.logged_fields(&head);
        *self
            .timings
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner) = Timings::default();
        let asked = Asked::of(&head, &live);
        let via = via(&head);
        let problem = match &asked {
            Err(error) => Some(((*error).into(), loggable_target(&head, *error))),
            Ok(asked) if self.shared.is_in(&via) => {
                let reason = "the request has passed this proxy before; a parent leads back to it";
                let refusal = Refusal::new(ProxyError::ProxyLoopDetected, reason);
                Some((refusal, asked.url()))
            }
            Ok(_) => None,
        };
        if let Some((refusal, url)) = problem {
            self.refuse_request(wire, &refusal, Some(head.method()), &url)
                .await;
            return None;
        }
        let claim = claim(&head);
        Some(match asked.ok()? {
            Asked::Tunnel(target) => Request::Tunnel(TunnelRequest {
                wire,
                start: Start::asked_for(received),
                target,
                claim,
                via,
            }),
            Asked::Plain(request) => Request::Plain(Forward {
                visit: Visit {
                    wire,
                    received,
                    served,
                    own,
                },
                request,
                claim,
                via,
            }),
        })
    }

    /// Reads the head; without one, ends with what the client is told.
    async fn head(
        &mut self,
        wire: Wire,
        received: &mut BytesMut,
        patience: Duration,
    ) -> Option<(Wire, Head)> {
        let mut parser = HeadParser::new();
        self.head = LoggedHead::default();
        let bytes = &mut self.head.bytes;
        let head = select! {
            head = timeout(patience, read_head(&wire, received, &mut parser, bytes)) => head,
            () = self.cancel.cancelled() => {
                self.log_no_request();
                return None;
            }
        };
        match head {
            Ok(Ok(())) => {}
            Ok(Err(NoHead::Refused(refusal, method))) => {
                let url = match refusal.status() {
                    Status::URI_TOO_LONG | Status::HEADER_FIELDS_TOO_LARGE => TOO_LARGE,
                    _ => INVALID,
                };
                self.refuse_request(wire, &refusal, method.as_deref(), url)
                    .await;
                return None;
            }
            Err(_elapsed) if !parser.is_empty() => {
                let refusal = Refusal::head_timeout();
                self.refuse_request(wire, &refusal, None, INVALID).await;
                return None;
            }
            // Nothing said, nothing owed: browsers open connections in advance.
            Ok(Err(NoHead::Left)) | Err(_) => {
                self.log_no_request();
                return None;
            }
        }
        let Some(head) = parser.into_head() else {
            self.log_no_request();
            return None;
        };
        Some((wire, head))
    }
}

/// What a head asks for, as it is meant by the configuration.
enum Asked {
    Tunnel(Authority),
    Plain(Box<PlainRequest>),
}

impl Asked {
    fn of(head: &Head, live: &Live) -> Result<Self, RequestError> {
        if head.method() == "CONNECT" {
            let request = ConnectRequest::from_head(head, live.strictness)?;
            return Ok(Self::Tunnel(live.meant(request.authority)));
        }
        let mut request = Box::new(PlainRequest::from_head(head, live.strictness)?);
        request.target.authority = live.meant(request.target.authority);
        Ok(Self::Plain(request))
    }

    /// What the access log shows of it.
    fn url(&self) -> String {
        match self {
            Self::Tunnel(target) => target.to_string(),
            Self::Plain(request) => loggable(&request.target.to_string()).to_owned(),
        }
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

/// Reads until the parser has a whole head, and leaves what is behind it.
async fn read_head(
    wire: &Wire,
    received: &mut BytesMut,
    parser: &mut HeadParser,
    bytes: &mut u64,
) -> Result<(), NoHead> {
    loop {
        match parser.feed(received) {
            Ok(Progress::NeedMore) => {
                *bytes += received.len() as u64;
                received.clear();
            }
            Ok(Progress::Complete { consumed }) => {
                *bytes += consumed as u64;
                received.advance(consumed);
                return Ok(());
            }
            Err(error) => {
                *bytes += received.len() as u64;
                let method = parser.method_read().map(str::to_owned);
                return Err(NoHead::Refused(error.into(), method));
            }
        }
        match wire.read(received).await {
            Ok(0) | Err(_) => return Err(NoHead::Left),
            Ok(_) => {}
        }
    }
}

/// What the access log shows of a well-formed request that we do not serve.
fn loggable_target(head: &Head, error: RequestError) -> String {
    if matches!(error, RequestError::Target(_)) {
        return INVALID.to_owned();
    }
    loggable(&String::from_utf8_lossy(head.target())).to_owned()
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
