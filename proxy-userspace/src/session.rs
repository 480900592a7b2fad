//! One client connection from its first byte to its log line.
//!
//! `head -> policy -> dial -> relay`, or a refusal at any step. Everything that decides is elsewhere
//! and pure; this drives it with sockets and clocks.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::TcpStream,
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    access::{self, Access, Candidate, Claim, Permit, Refused},
    access_log::{AccessLog, Record, Tag},
    auth::Credentials,
    authority::Authority,
    config::{Live, Quotas},
    http::{
        AbsoluteTarget, CONNECTION_ESTABLISHED, ConnectRequest, Head, HeadParser, Progress,
        ProxyError, Refusal, RequestError, Status,
    },
    limits::{LINGER_MAX_BYTES, LINGER_TIMEOUT, TURNED_AWAY_HEAD_TIMEOUT},
    net::{
        dial::{Dialled, Route, dial},
        listen::canonical,
    },
    policy::{self, Facts},
    registry::{Applicant, Counted, Registry, Stop, Tunnel},
    relay::{
        self, Ending, Leg, Limits, Order, Outcome, Pair, Relay, Traffic, selection::EngineChoice,
    },
    shaping::{Buckets, Shaper},
};

/// What is read from a client at once while its head is incomplete.
const READ_BYTES: usize = 16 * 1024;
/// The type of the replies we make ourselves.
const TEXT_PLAIN: &str = "text/plain";
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
    client: Leg,
    /// Bytes behind the head.
    early_data: Vec<u8>,
    target: Authority,
    claim: Claim,
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
        let reply_bytes = pair.client.owed.len() as u64;
        let traffic = Arc::new(Traffic::default());
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
            ..Entry::default()
        });
        self.report(&tunnel, rule.as_deref(), &outcome, counts.to_upstream, {
            counts.to_client.saturating_sub(reply_bytes)
        });
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
        let claim = claim(&head);
        let request = match ConnectRequest::from_head(&head, self.live().strictness) {
            Ok(request) => request,
            Err(error) => {
                self.refuse_other(stream, &head, error, &claim).await;
                return None;
            }
        };
        let early_data = received.split_off(head_bytes);
        Some(Request {
            client: Leg {
                stream,
                owed: CONNECTION_ESTABLISHED.to_vec(),
                consumed: (head_bytes + early_data.len()) as u64,
                written: 0,
            },
            early_data,
            target: request.authority,
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
            let request = access::Request {
                method: head.method(),
                scheme: Some(&absolute.scheme),
                url: text,
                ..self.asked(&stream, &absolute.authority, text, claim)
            };
            let live = self.live();
            let deadline = access::deadline(live.connect_timeout);
            if let Err(refused) = self
                .access(&live, room, deadline)
                .decide(&request, false)
                .await
                && refused.rule.is_some()
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

    /// The request as it is judged.
    fn asked<'a>(
        &'a self,
        stream: &TcpStream,
        target: &'a Authority,
        url: &'a str,
        claim: &'a Claim,
    ) -> access::Request<'a> {
        let Arrival {
            id,
            client,
            listener_name,
            ..
        } = &self.arrival;
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mark = if self.live().needs_mark() {
            SockRef::from(stream).mark().unwrap_or_default()
        } else {
            0
        };
        access::Request {
            client: client.ip(),
            listener: stream.local_addr().map_or(unknown, canonical),
            listener_name,
            method: "CONNECT",
            scheme: None,
            target,
            url,
            claim,
            connections: self.shared.registry.connections(client.ip()),
            mark,
            dice: dice(*id),
        }
    }

    /// What the client is judged by.
    fn live(&self) -> Arc<Live> {
        let own = self.arrival.live.clone();
        own.unwrap_or_else(|| self.shared.current.get())
    }

    fn access<'a>(
        &'a self,
        live: &'a Live,
        room: &'a Arc<OwnedSemaphorePermit>,
        deadline: time::Instant,
    ) -> Access<'a> {
        Access {
            live,
            listeners: &self.shared.listeners,
            deadline,
            checks: &self.shared.checks,
            room,
        }
    }

    /// Judges and dials the target, or ends with a refusal.
    async fn connect(&self, request: Request) -> Option<Joint> {
        let Request {
            client,
            early_data,
            target,
            claim,
        } = request;
        let url = target.to_string();
        let entry = || Entry {
            url: url.clone(),
            ..Entry::default()
        };
        let room = match &self.arrival.admission {
            Admission::Served(permit) => permit,
            Admission::TurnedAway { tag, refusal, .. } => {
                let entry = Entry {
                    tag: *tag,
                    ..entry()
                };
                self.refuse(client.stream, refusal, entry).await;
                return None;
            }
            Admission::Over => return None,
        };
        let asked = self.asked(&client.stream, &target, &url, &claim);
        let joined = select! {
            joined = self.join(asked, room) => joined,
            () = self.cancel.cancelled() => {
                relay::reset_on_close(&client.stream);
                self.log(entry());
                return None;
            }
            // Its reset: it does not want the tunnel any more.
            _ = client.stream.ready(Interest::ERROR) => {
                self.log(entry());
                return None;
            }
        };
        let joined = match joined {
            Ok(joined) => joined,
            Err(failure) => {
                self.fail(client.stream, failure, entry()).await;
                return None;
            }
        };
        let Joined {
            dialled,
            permit,
            candidate,
            mut counted,
            shaper,
        } = joined;
        let tunnel = Arc::new(Tunnel {
            id: self.arrival.id,
            client: self.arrival.client.ip(),
            listener: asked.listener,
            listener_name: Arc::clone(&self.arrival.listener_name),
            user: permit.user,
            upstream: candidate.address,
            mark: asked.mark,
            dice: asked.dice,
            stop: Stop::new(&self.cancel),
            target,
        });
        counted.enlist(Arc::clone(&tunnel));
        let (live, rule) = (self.live(), candidate.rule);
        let upstream = Leg {
            stream: dialled.stream,
            owed: early_data,
            consumed: 0,
            written: 0,
        };
        Some(Joint {
            pair: Pair::new(client, upstream),
            engine: live.engine(rule, candidate.address),
            limits: live.limits(rule),
            lifetime: live.lifetime(rule),
            rule: rule
                .and_then(|index| live.policy.rules().get(index))
                .map(|rule| rule.name.as_str().into()),
            tunnel,
            counted,
            shaper,
        })
    }

    /// Everything between the request and the connected socket.
    async fn join(
        &self,
        asked: access::Request<'_>,
        room: &Arc<OwnedSemaphorePermit>,
    ) -> Result<Joined, Failure> {
        let live = &*self.live();
        let deadline = access::deadline(live.connect_timeout);
        let access = self.access(live, room, deadline);
        let mut permit = access
            .decide(&asked, true)
            .await
            .map_err(Failure::Refused)?;
        for rule in &permit.would_deny {
            self.shared.registry.note_would_deny(rule);
            info!(
                id = self.arrival.id,
                client = %self.arrival.client,
                target = asked.url,
                rule,
                "would be denied"
            );
        }
        // The limits of the first address's rule: all addresses of a host have the same one, or nearly.
        let Some(first) = permit.candidates.first().cloned() else {
            let reason = format!("{} has no address", asked.target.host());
            return Err(Failure::Unreachable(
                Refusal::new(ProxyError::DnsError, reason),
                None,
            ));
        };
        let counted = self.count(&permit, &first).map_err(Failure::Limit)?;
        let now = live.moment();
        let routes: Vec<Route> = permit
            .candidates
            .iter()
            .map(|candidate| {
                let addresses = [candidate.address.ip()];
                let facts = access::facts(&asked, &permit, now, Some(&addresses), false);
                source_route(live, candidate.address, &facts)
            })
            .collect();
        let dialled = dial(&routes, deadline).await.map_err(|error| match error {
            Some(error) => Failure::Unreachable(error.refusal, Some(error.tried.ip())),
            None => Failure::Unreachable(Refusal::no_room(), None),
        })?;
        let candidate = permit.candidates.swap_remove(dialled.index);
        let counted = if candidate.rule == first.rule {
            counted
        } else {
            drop(counted);
            self.count(&permit, &candidate).map_err(Failure::Limit)?
        };
        let addresses = [candidate.address.ip()];
        let facts = access::facts(&asked, &permit, now, Some(&addresses), false);
        let shape = live
            .shapes
            .iter()
            .find(|(terms, _)| policy::hold(terms, &facts));
        let of_rule = live.grant(candidate.rule).map(|grant| &grant.buckets);
        let specs: Vec<_> = shape
            .map(|(_, specs)| specs)
            .into_iter()
            .chain(of_rule)
            .flatten()
            .chain(&live.bandwidth_per_tunnel)
            .collect();
        let client = self.arrival.client.ip();
        let shaper = self
            .shared
            .buckets
            .shaper(&specs, client, permit.user.as_deref());
        Ok(Joined {
            dialled,
            permit,
            candidate,
            counted,
            shaper,
        })
    }

    /// Counts the tunnel, if the limits permit it.
    fn count(&self, permit: &Permit, candidate: &Candidate) -> Result<Counted, Refusal> {
        let live = self.live();
        let rule = candidate
            .rule
            .and_then(|index| live.policy.rules().get(index));
        let who = Applicant {
            client: self.arrival.client.ip(),
            user: permit.user.as_ref(),
            rule: rule.map(|rule| rule.name.as_str()),
        };
        let of_rule = live
            .grant(candidate.rule)
            .map_or_else(Quotas::default, |grant| grant.quotas);
        let begun = self.shared.registry.begin(&who, live.quotas, of_rule);
        begun.map_err(Into::into)
    }

    /// Tells the client why there is no tunnel.
    async fn fail(&self, stream: TcpStream, failure: Failure, entry: Entry<'_>) {
        match failure {
            Failure::Refused(refused) => self.deny(stream, &refused, entry).await,
            Failure::Limit(refusal) => {
                let entry = Entry {
                    tag: Tag::TcpDenied,
                    ..entry
                };
                self.refuse(stream, &refusal, entry).await;
            }
            Failure::Unreachable(refusal, peer) => {
                let entry = Entry { peer, ..entry };
                self.refuse(stream, &self.in_dialect(refusal), entry).await;
            }
        }
    }

    /// Tells the client what the rules say, or what kept them from deciding.
    async fn deny(&self, stream: TcpStream, refused: &Refused, entry: Entry<'_>) {
        let Arrival { id, client, .. } = &self.arrival;
        debug!(id, %client, target = entry.url, rule = refused.rule.as_deref(), "refused");
        let is_decision =
            refused.rule.is_some() || refused.refusal.error() == ProxyError::ProxyLoopDetected;
        let tag = if is_decision {
            Tag::TcpDenied
        } else {
            entry.tag
        };
        let user = refused.user.clone();
        let entry = Entry {
            tag,
            user: user.as_deref(),
            ..entry
        };
        if refused.reset {
            debug!(id = self.arrival.id, client = %self.arrival.client, "reset by a rule");
            relay::reset_on_close(&stream);
            drop(stream);
            self.log(entry);
            return;
        }
        let refusal = self.in_dialect(refused.refusal.clone());
        self.refuse(stream, &refusal, entry).await;
    }

    /// Squid says 503 where we say 502 and 504.
    fn in_dialect(&self, refusal: Refusal) -> Refusal {
        let is_gateway = matches!(
            refusal.status(),
            Status::BAD_GATEWAY | Status::GATEWAY_TIMEOUT
        );
        if is_gateway && self.live().is_squid() {
            return refusal.with_other_status(Status::SERVICE_UNAVAILABLE);
        }
        refusal
    }

    /// The tunnel's record in the diagnostics: what the access log's format has no field for.
    fn report(&self, tunnel: &Tunnel, rule: Option<&str>, outcome: &Outcome, up: u64, down: u64) {
        let Tunnel {
            id,
            target,
            upstream,
            user,
            ..
        } = tunnel;
        let detail = match &outcome.ending {
            Ending::Integrity(what) | Ending::Failed(what) => {
                warn!(id, %target, "the tunnel was reset: {what}");
                Some(what.as_str())
            }
            Ending::Forbidden(why) => Some(why.as_str()),
            _ => None,
        };
        info!(
            id,
            client = %self.arrival.client,
            user = user.as_deref(),
            %target,
            %upstream,
            rule,
            engine = %outcome.engine,
            moved_after = outcome.moved_after,
            up,
            down,
            spliced = outcome.spliced.bytes,
            pauses = outcome.spliced.pauses,
            trimmed = outcome.spliced.trimmed,
            floods = outcome.spliced.floods,
            ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            end = %outcome.ending,
            detail,
            declined = outcome.declined.as_deref(),
            "tunnel ended"
        );
    }

    /// Refuses a request for a known target.
    async fn refuse(&self, mut stream: TcpStream, refusal: &Refusal, entry: Entry<'_>) {
        let Arrival { id, client, .. } = &self.arrival;
        debug!(id, %client, target = entry.url, "refused: {}", refusal.reason());
        let bytes = send_refusal(&mut stream, refusal, entry.method == "HEAD").await;
        self.log(Entry {
            status: refusal.status().code(),
            bytes,
            content_type: Some(TEXT_PLAIN),
            ..entry
        });
        self.linger(stream).await;
    }

    /// Refuses what was no request that we serve; `url` is what the access log shows of it.
    async fn refuse_request(
        &self,
        mut stream: TcpStream,
        refusal: &Refusal,
        method: Option<&str>,
        url: &str,
    ) {
        let Arrival { id, client, .. } = &self.arrival;
        debug!(id, %client, "refused: {}", refusal.reason());
        let head_request = method == Some("HEAD");
        let bytes = send_refusal(&mut stream, refusal, head_request).await;
        self.shared.access_log.log(&Record {
            status: refusal.status().code(),
            bytes,
            method: method.unwrap_or("NONE").to_owned(),
            url: url.to_owned(),
            content_type: Some(TEXT_PLAIN),
            ..self.no_request()
        });
        self.linger(stream).await;
    }

    /// Keeps the connection until the client has closed it or has had its time.
    ///
    /// Nothing that arrives behind a refused request is interpreted (RFC 9931): it is read and thrown
    /// away, within bounds, because a close with unread bytes becomes a reset that may overtake the
    /// reply (RFC 9112 section 9.6).
    async fn linger(&self, mut stream: TcpStream) {
        let discard = async {
            let mut scrap = vec![0; READ_BYTES];
            let mut discarded = 0;
            while discarded < LINGER_MAX_BYTES {
                match stream.read(&mut scrap).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => discarded += n,
                }
            }
        };
        select! {
            () = discard => {}
            // The client does not close; we do.
            () = sleep(LINGER_TIMEOUT) => {}
            () = self.cancel.cancelled() => {}
        }
    }

    fn log_no_request(&self) {
        self.shared.access_log.log(&self.no_request());
    }

    fn no_request(&self) -> Record {
        Record {
            ended: SystemTime::now(),
            elapsed: self.since.elapsed(),
            client: self.arrival.client.ip(),
            user: None,
            tag: Tag::None,
            status: 0,
            bytes: 0,
            method: "NONE".to_owned(),
            url: "error:transaction-end-before-headers".to_owned(),
            peer: None,
            content_type: None,
        }
    }

    fn log(&self, entry: Entry<'_>) {
        let Entry {
            tag,
            status,
            bytes,
            method,
            url,
            user,
            peer,
            content_type,
        } = entry;
        self.shared.access_log.log(&Record {
            ended: SystemTime::now(),
            elapsed: self.since.elapsed(),
            client: self.arrival.client.ip(),
            user: user.map(str::to_owned),
            tag,
            status,
            bytes,
            method: method.to_owned(),
            url,
            peer,
            content_type,
        });
    }
}

/// What the access log is told of a request.
struct Entry<'a> {
    tag: Tag,
    status: u16,
    bytes: u64,
    method: &'a str,
    url: String,
    user: Option<&'a str>,
    peer: Option<IpAddr>,
    content_type: Option<&'static str>,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            tag: Tag::TcpTunnel,
            status: 0,
            bytes: 0,
            method: "CONNECT",
            url: String::new(),
            user: None,
            peer: None,
            content_type: None,
        }
    }
}

/// A target that is permitted and connected to.
struct Joined {
    dialled: Dialled,
    permit: Permit,
    candidate: Candidate,
    counted: Counted,
    shaper: Option<Arc<Shaper>>,
}

/// Why there is no such target.
enum Failure {
    /// It is not permitted, or it could not be found out whether it is.
    Refused(Refused),
    /// There are as many tunnels as there may be.
    Limit(Refusal),
    /// It cannot be connected to; with the address that was tried.
    Unreachable(Refusal, Option<IpAddr>),
}

/// Where to connect to an address from.
fn source_route(live: &Live, target: SocketAddr, facts: &Facts<'_>) -> Route {
    let fits = |(terms, source): &&(Vec<policy::Term>, IpAddr)| {
        source.is_ipv4() == target.is_ipv4() && policy::hold(terms, facts)
    };
    Route {
        target,
        source: live.outgoing.iter().find(fits).map(|(_, source)| *source),
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

/// Who the client says it is. Several answers are none.
fn claim(head: &Head) -> Claim {
    let mut fields = head.values("proxy-authorization");
    match (fields.next(), fields.next()) {
        (Some(field), None) => Credentials::parse(field).map_or(Claim::Nothing, Claim::Credentials),
        _ => Claim::Nothing,
    }
}

/// A number that nobody can foretell, for conditions on chance.
fn dice(id: u64) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};

    RandomState::new().hash_one(id)
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

/// Sends the refusal and our FIN: the bytes of it that the client can have received, all or none.
/// [`Session::linger`] has to follow.
async fn send_refusal(stream: &mut TcpStream, refusal: &Refusal, head_request: bool) -> u64 {
    let reply = refusal.encode(SystemTime::now(), head_request);
    let send = async {
        stream.write_all(&reply).await?;
        stream.shutdown().await
    };
    match timeout(LINGER_TIMEOUT, send).await {
        Ok(Ok(())) => reply.len() as u64,
        Ok(Err(error)) => {
            debug!(%error, "the client did not wait for its refusal");
            0
        }
        Err(_elapsed) => 0,
    }
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
