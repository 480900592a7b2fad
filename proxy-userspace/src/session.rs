//! One client connection from its first byte to its log line.
//!
//! `head -> policy -> dial -> relay`, or a refusal at any step. Everything that decides is elsewhere
//! and pure; this drives it with sockets and clocks.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::TcpStream,
    select,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    access_log::{AccessLog, Record, Tag},
    authority::Authority,
    http::{
        CONNECTION_ESTABLISHED, ConnectRequest, Head, HeadParser, Progress, Refusal, RequestError,
        Status, Strictness,
    },
    limits::{LINGER_MAX_BYTES, LINGER_TIMEOUT, TURNED_AWAY_HEAD_TIMEOUT},
    net::dial::Dialler,
    policy::Policy,
    relay::{self, Ending, Leg, Limits, Outcome, Pair, Relay, Traffic, rules::EngineRules},
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
    /// Who may go where.
    pub policy: Policy,
    /// How request heads are read.
    pub strictness: Strictness,
    /// Our own listeners.
    pub listeners: Vec<SocketAddr>,
    /// For the request head.
    pub head_timeout: Duration,
    /// For resolving and connecting.
    pub connect_timeout: Duration,
    /// For the tunnel.
    pub limits: Limits,
    /// The engines.
    pub relay: Relay,
    /// Which of them a tunnel is for.
    pub engines: EngineRules,
    /// The access log.
    pub access_log: AccessLog,
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
}

/// Both sides of a tunnel that is to run.
struct Joint {
    pair: Box<Pair>,
    target: Authority,
    /// The address that the target turned out to have.
    upstream: SocketAddr,
}

/// One client connection.
pub struct Session {
    shared: Arc<Shared>,
    id: u64,
    client: SocketAddr,
    admission: Admission,
    cancel: CancellationToken,
    /// When the request head was complete; until then, when the connection was accepted.
    since: Instant,
}

impl Session {
    /// A session for a client that was just accepted.
    pub fn new(
        shared: Arc<Shared>,
        id: u64,
        client: SocketAddr,
        admission: Admission,
        cancel: CancellationToken,
    ) -> Box<Self> {
        Box::new(Self {
            shared,
            id,
            client,
            admission,
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
            target,
            upstream,
        } = joint;
        let reply_bytes = pair.client.owed.len() as u64;
        let traffic = Arc::new(Traffic::default());
        let engine = self.shared.engines.choose(upstream);
        let (relay, limits) = (&self.shared.relay, self.shared.limits);
        let outcome = relay
            .run(engine, pair, limits, &traffic, &self.cancel)
            .await;
        let counts = traffic.counts();
        self.log(
            Tag::TcpTunnel,
            200,
            counts.to_client,
            &target,
            Some(upstream.ip()),
            None,
        );
        self.report(&target, upstream, &outcome, counts.to_upstream, {
            counts.to_client.saturating_sub(reply_bytes)
        });
    }

    /// Reads the request; without one that is to be served, ends with what the client is told.
    async fn receive(&mut self, mut stream: TcpStream) -> Option<Request> {
        // A client that is going to be refused is not waited for.
        let patience = match self.admission {
            Admission::Served(_) => self.shared.head_timeout,
            Admission::TurnedAway {
                permit: Some(_), ..
            } => self.shared.head_timeout.min(TURNED_AWAY_HEAD_TIMEOUT),
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
                    Status::UriTooLong | Status::HeaderFieldsTooLarge => TOO_LARGE,
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
        let request = match ConnectRequest::from_head(&head, self.shared.strictness) {
            Ok(request) => request,
            Err(error) => {
                let url = loggable_target(&head, error);
                self.refuse_request(stream, &error.into(), Some(head.method()), &url)
                    .await;
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
        })
    }

    /// Judges and dials the target, or ends with a refusal.
    async fn connect(&self, request: Request) -> Option<Joint> {
        let Request {
            client,
            early_data,
            target,
        } = request;
        let policy = &self.shared.policy;
        let room = match &self.admission {
            Admission::Served(permit) => permit,
            Admission::TurnedAway { tag, refusal, .. } => {
                self.refuse(client.stream, refusal, *tag, &target, None)
                    .await;
                return None;
            }
        };
        if let Err(denial) = policy.port(target.port().get()) {
            let refusal = denial.into();
            self.refuse(client.stream, &refusal, Tag::TcpDenied, &target, None)
                .await;
            return None;
        }
        let dialler = Dialler {
            policy,
            listeners: &self.shared.listeners,
            timeout: self.shared.connect_timeout,
            room,
        };
        let dialled = select! {
            dialled = dialler.dial(&target) => dialled,
            () = self.cancel.cancelled() => {
                relay::reset_on_close(&client.stream);
                self.log(Tag::TcpTunnel, 0, 0, &target, None, None);
                return None;
            }
            // Its reset: it does not want the tunnel any more.
            _ = client.stream.ready(Interest::ERROR) => {
                self.log(Tag::TcpTunnel, 0, 0, &target, None, None);
                return None;
            }
        };
        match dialled {
            Ok(dialled) => {
                let upstream = Leg {
                    stream: dialled.stream,
                    owed: early_data,
                    consumed: 0,
                    written: 0,
                };
                Some(Joint {
                    pair: Pair::new(client, upstream),
                    target,
                    upstream: dialled.address,
                })
            }
            Err(error) => {
                let tag = if error.denied {
                    Tag::TcpDenied
                } else {
                    Tag::TcpTunnel
                };
                let tried = error.tried.map(|address| address.ip());
                self.refuse(client.stream, &error.refusal, tag, &target, tried)
                    .await;
                None
            }
        }
    }

    /// The tunnel's record in the diagnostics: what the access log's format has no field for.
    fn report(
        &self,
        target: &Authority,
        upstream: SocketAddr,
        outcome: &Outcome,
        up: u64,
        down: u64,
    ) {
        let detail = match &outcome.ending {
            Ending::Integrity(what) | Ending::Failed(what) => {
                warn!(id = self.id, %target, "the tunnel was reset: {what}");
                Some(what.as_str())
            }
            _ => None,
        };
        info!(
            id = self.id,
            client = %self.client,
            %target,
            %upstream,
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
    async fn refuse(
        &self,
        mut stream: TcpStream,
        refusal: &Refusal,
        tag: Tag,
        target: &Authority,
        tried: Option<IpAddr>,
    ) {
        debug!(id = self.id, client = %self.client, %target, "refused: {}", refusal.reason());
        let bytes = send_refusal(&mut stream, refusal, false).await;
        let status = refusal.status().code();
        self.log(tag, status, bytes, target, tried, Some(TEXT_PLAIN));
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
        debug!(id = self.id, client = %self.client, "refused: {}", refusal.reason());
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
            client: self.client.ip(),
            tag: Tag::None,
            status: 0,
            bytes: 0,
            method: "NONE".to_owned(),
            url: "error:transaction-end-before-headers".to_owned(),
            peer: None,
            content_type: None,
        }
    }

    fn log(
        &self,
        tag: Tag,
        status: u16,
        bytes: u64,
        target: &Authority,
        peer: Option<IpAddr>,
        content_type: Option<&'static str>,
    ) {
        self.shared.access_log.log(&Record {
            ended: SystemTime::now(),
            elapsed: self.since.elapsed(),
            client: self.client.ip(),
            tag,
            status,
            bytes,
            method: "CONNECT".to_owned(),
            url: target.to_string(),
            peer,
            content_type,
        });
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
/// query, which may hold secrets.
fn loggable_target(head: &Head, error: RequestError) -> Cow<'_, str> {
    if matches!(error, RequestError::Target(_)) {
        return INVALID.into();
    }
    let path = head.target().split(|byte| *byte == b'?').next();
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
        assert!(size <= 1536, "{size} bytes");
    }
}
