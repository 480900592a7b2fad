//! Requests that are forwarded: an `http` URL instead of a tunnel. They are judged, limited and logged as tunnels are,
//! and the connection stays for the next one.

use std::{
    fmt::{Display, Write as _},
    sync::Arc,
    time::SystemTime,
};

use bytes::BytesMut;
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::uri::PathAndQuery,
    upgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{select, sync::OwnedSemaphorePermit, time::timeout};
use tracing::debug;

use super::{
    Joint, Session, Visit,
    exchange::{Broken, End, Exchange, Told, switching},
    hello::{Start, join},
    reach::{Failure, Joined},
    upstream::{Purpose, Way, whose},
};
use crate::{
    access::{self, Claim, Known},
    access_log::{Event, Record, Tag},
    config::file::ForwardedFor,
    http::{Framing, PlainRequest, ProxyError, Refusal},
    limits::LINGER_TIMEOUT,
    net::wire::Wire,
    parent::{Hop, Link},
    policy::ServerName,
    pool::{Line, Whose},
    registry::{Plain, Tunnel, loggable},
};

/// What we serve, for a client that asks us and nobody behind us.
const ALLOW: &str = "CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, TRACE";

/// A request that is to be forwarded.
pub(super) struct Forward {
    pub(super) visit: Visit,
    pub(super) request: Box<PlainRequest>,
    pub(super) claim: Claim,
    /// Which proxies it has passed.
    pub(super) via: String,
}

/// What comes after it.
pub(super) enum After {
    /// The client may ask for more.
    Stays(Visit),
    /// The connection is something else from now on.
    Upgraded(Box<Joint>),
    /// Nothing.
    Over,
}

/// How passing a request on ended.
enum Passed {
    /// The client has its response, and may go on.
    Well { persists: bool },
    /// The connection was closed while the request was on its way: it goes by another one.
    Again,
    /// The client gets none, or not all of it.
    Not(Failure),
    /// The client was told something, and cannot be told that it was wrong.
    Cut,
    /// The origin speaks something else.
    Switched(Box<Switched>),
}

/// A connection that is to be a tunnel.
struct Switched {
    response: Response<Incoming>,
    joined: Joined,
    tunnel: Arc<Tunnel>,
}

impl Session {
    /// Judges and forwards a request, or ends with a refusal.
    pub(super) async fn forward(&self, forward: Forward) -> After {
        let Forward {
            mut visit,
            request,
            claim,
            via,
        } = forward;
        let url = request.target.to_string();
        let entry = || Record {
            tag: Tag::TcpMiss,
            method: request.method.as_str(),
            url: loggable(&url).into(),
            target: Some(&request.target.authority),
            ..self.record()
        };
        let room = match self.room() {
            Ok(room) => room,
            Err(turned_away) => {
                self.turn_away(visit.wire, turned_away, entry()).await;
                return After::Over;
            }
        };
        let asked = access::Request {
            method: request.method.as_str(),
            scheme: Some(&request.target.scheme),
            server_name: ServerName::None,
            ..self.asked(&visit.wire, &request.target.authority, &url, &claim)
        };
        let via = self.via(&via, request.version);
        if request.max_forwards == Some(0) {
            self.answer(visit.wire, &request, asked, room, via.as_deref(), entry())
                .await;
            return After::Over;
        }
        // A request that must not be repeated must not meet a connection that is about to be closed.
        let mut reuse = request.is_repeatable();
        loop {
            let purpose = Purpose::Message {
                via: via.as_deref(),
                own: &visit.own,
                reuse,
            };
            let mut start = Start::asked_for(BytesMut::new());
            let joined = select! {
                joined = self.join(asked, &purpose, room, &visit.wire, &mut start) => joined,
                () = self.cancel.cancelled() => Err(Failure::Left),
                () = visit.wire.broken() => Err(Failure::Left),
            };
            let joined = match joined {
                Ok(joined) => joined,
                Err(failure) => {
                    let mut entry = entry();
                    if matches!(failure, Failure::Left) {
                        entry.tag = Tag::TcpMissAborted;
                    }
                    self.fail(visit.wire, failure, entry).await;
                    return After::Over;
                }
            };
            let passing = Passing {
                session: self,
                request: &request,
                asked,
                via: via.as_deref(),
            };
            match passing.pass_on(&mut visit, joined).await {
                Passed::Again => reuse = false,
                Passed::Well { persists: true } => {
                    visit.served += 1;
                    return After::Stays(visit);
                }
                Passed::Well { persists: false } => {
                    let _ = timeout(LINGER_TIMEOUT, visit.wire.finish()).await;
                    self.linger(visit.wire).await;
                    return After::Over;
                }
                Passed::Cut => {
                    visit.wire.reset();
                    return After::Over;
                }
                Passed::Not(failure) => {
                    self.fail(visit.wire, failure, entry()).await;
                    return After::Over;
                }
                Passed::Switched(switched) => {
                    return match self.switch(visit, *switched).await {
                        Ok(joint) => After::Upgraded(Box::new(joint)),
                        Err(wire) => {
                            wire.reset();
                            self.log(entry());
                            After::Over
                        }
                    };
                }
            }
        }
    }

    /// Makes a tunnel of a connection whose origin has agreed to speak something else.
    async fn switch(&self, visit: Visit, switched: Switched) -> Result<Joint, Wire> {
        let Switched {
            response,
            joined,
            tunnel,
        } = switched;
        let answer = switching(&response);
        let Visit { wire, received, .. } = visit;
        let Ok(upgraded) = upgrade::on(response).await else {
            return Err(wire);
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<Wire>>() else {
            return Err(wire);
        };
        let link = Link {
            wire: parts.io.into_inner(),
            address: tunnel.upstream,
            early: parts.read_buf.into(),
        };
        let answered = [answer.len() as u64, 0];
        let pair = join(wire, received, link, &answer);
        let Joined {
            reached,
            counted,
            shaper,
            ..
        } = joined;
        Ok(self.joint(pair, tunnel, counted, reached.rule, shaper, answered))
    }

    /// Answers a request that is to go no further than to us (RFC 9110 section 7.6.2).
    async fn answer(
        &self,
        wire: Wire,
        request: &PlainRequest,
        asked: access::Request<'_>,
        room: &Arc<OwnedSemaphorePermit>,
        via: Option<&str>,
        entry: Record<'_>,
    ) {
        let live = self.live();
        let deadline = access::deadline(live.connect_timeout);
        let access = self.access(&live, room, deadline);
        let judged = access.decide(&asked, &mut Known::default(), false).await;
        if let Err(refused) = judged {
            self.deny(wire, &refused, entry).await;
            return;
        }
        let date = httpdate::fmt_http_date(SystemTime::now());
        let head = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nConnection: close\r\n");
        let (reply, content_type) = if request.method == Method::TRACE {
            let echo = echo(request, via);
            let len = echo.len();
            let head = format!("{head}Content-Type: message/http\r\nContent-Length: {len}\r\n\r\n");
            (format!("{head}{echo}"), Some("message/http"))
        } else {
            let reply = format!("{head}Allow: {ALLOW}\r\nContent-Length: 0\r\n\r\n");
            (reply, None)
        };
        let tell = async {
            wire.write_all(reply.as_bytes()).await?;
            wire.finish().await
        };
        let _ = timeout(LINGER_TIMEOUT, tell).await;
        self.log(Record {
            tag: Tag::None,
            status: 200,
            sent: reply.len() as u64,
            content_type: content_type.map(Into::into),
            ..entry
        });
        self.linger(wire).await;
    }
}

/// The request as we got it, without what nobody else is to know (RFC 9110 section 9.3.8).
fn echo(request: &PlainRequest, via: Option<&str>) -> String {
    let via = via.map_or(String::new(), |via| format!("Via: {via}\r\n"));
    let mut text = format!(
        "{} {} HTTP/{}\r\nHost: {}\r\n{via}",
        request.method,
        request.target,
        request.version,
        request.target.host()
    );
    for (name, value) in &request.fields {
        let is_secret = [header::AUTHORIZATION, header::COOKIE].contains(name);
        if let Ok(value) = value.to_str()
            && !is_secret
        {
            // Writing to a string cannot fail.
            let _ = write!(text, "{name}: {value}\r\n");
        }
    }
    text.push_str("\r\n");
    text
}

/// A request with what is needed to pass it on.
struct Passing<'a> {
    session: &'a Session,
    request: &'a PlainRequest,
    asked: access::Request<'a>,
    via: Option<&'a str>,
}

impl Passing<'_> {
    /// Passes the request on over the connection that was found for it.
    async fn pass_on(&self, visit: &mut Visit, mut joined: Joined) -> Passed {
        let session = self.session;
        let live = session.live();
        let plain = Plain {
            method: self.asked.method.to_owned(),
            url: self.asked.url.to_owned(),
        };
        let tunnel = session.tunnel(&self.asked, &mut joined, Some(Box::new(plain)));
        let whose = whose(&joined.permit.hop, self.asked.target);
        let outgoing = joined.reached.outgoing.clone();
        let line = match joined.reached.way.take() {
            Some(Way::Idle(line)) => Ok(line),
            Some(Way::Fresh(link)) => Line::open(*link, whose, outgoing).await.map(Box::new),
            None => return Passed::Not(Failure::Left),
        };
        let mut line = match line {
            Ok(line) => line,
            Err(error) => {
                return self.unreachable(&joined, &tunnel, ProxyError::HttpProtocolError, &error);
            }
        };
        let Some(head) = self.head(&line.whose, &joined.permit.hop) else {
            let what = "the request cannot be written";
            return self.unreachable(&joined, &tunnel, ProxyError::ProxyInternalError, &what);
        };
        let rule = joined.reached.rule;
        let written = visit.wire.written();
        let exchange = Exchange {
            wire: &visit.wire,
            request: self.request,
            pseudonym: live.http.via.then_some(&*session.shared.pseudonym),
            removed: &live.http.remove_response_fields,
            shaper: joined.shaper.as_deref(),
            idle: live.limits(rule).idle,
            lifetime: live.lifetime(rule),
            traffic: &tunnel.traffic,
            cancel: tunnel.stop.token(),
        };
        let (told, result) = exchange.run(&mut visit.received, &mut line, head).await;
        let bytes = visit.wire.written() - written;
        match result {
            Ok(End::Switched(response)) => Passed::Switched(Box::new(Switched {
                response: *response,
                joined,
                tunnel,
            })),
            Ok(End::Complete { persists }) => {
                let is_announced = joined.reached.outgoing.announce.is_some();
                if told.is_private || is_announced {
                    visit.own.keep(line);
                } else {
                    session.shared.pool.keep(line, live.upstream_keep_alive);
                }
                self.log(Tag::TcpMiss, told, bytes, &tunnel);
                Passed::Well { persists }
            }
            Err(broken) => {
                debug!(id = tunnel.id, url = self.asked.url, "broken off: {broken}");
                let has_left = matches!(broken, Broken::ClientLeft | Broken::Cancelled);
                if has_left || told.status != 0 {
                    let tag = if has_left {
                        Tag::TcpMissAborted
                    } else {
                        Tag::TcpMiss
                    };
                    self.log(tag, told, bytes, &tunnel);
                    return Passed::Cut;
                }
                if matches!(broken, Broken::Upstream(_))
                    && line.is_used
                    && self.request.is_repeatable()
                {
                    return Passed::Again;
                }
                self.failure(&broken, &joined, &tunnel)
            }
        }
    }

    /// What the client is told of an exchange that failed before it got anything.
    fn failure(&self, broken: &Broken, joined: &Joined, tunnel: &Tunnel) -> Passed {
        let (error, what): (_, &dyn Display) = match broken {
            Broken::Body(error) => {
                return Passed::Not(Failure::Limit {
                    refusal: Refusal::new(ProxyError::HttpRequestError, error.to_string()),
                    user: tunnel.user.clone(),
                    rule: tunnel.rule.clone(),
                });
            }
            Broken::Stalled | Broken::TooLong => {
                (ProxyError::HttpResponseTimeout, &"no response in time")
            }
            Broken::Upstream(error) if error.is_parse() => (ProxyError::HttpProtocolError, error),
            Broken::Upstream(error) => (ProxyError::ConnectionTerminated, error),
            Broken::Protocol(what) => (ProxyError::HttpProtocolError, what),
            Broken::ClientLeft | Broken::Cancelled => return Passed::Cut,
        };
        self.unreachable(joined, tunnel, error, what)
    }

    fn unreachable(
        &self,
        joined: &Joined,
        tunnel: &Tunnel,
        error: ProxyError,
        what: &dyn Display,
    ) -> Passed {
        Passed::Not(Failure::Unreachable {
            refusal: match &joined.permit.hop {
                Hop::Direct => Refusal::new(error, format!("{}: {what}", self.asked.target)),
                Hop::Parent(parent, _) => Refusal::new(error, format!("{parent}: {what}"))
                    .with_next_hop(&parent.name, None),
            },
            tried: Some(tunnel.upstream.ip()),
            hop: joined.permit.hop.clone(),
            user: tunnel.user.clone(),
        })
    }

    fn log(&self, tag: Tag, told: Told, sent: u64, tunnel: &Tunnel) {
        self.session.log(Record {
            tag,
            status: told.status,
            sent,
            content_type: told.content_type.map(Into::into),
            ..tunnel.record(Event::End)
        });
    }

    /// What the configuration wants of the fields.
    fn edit(&self, fields: &mut HeaderMap) -> Option<()> {
        let http = &self.session.live().http;
        let client = self.asked.client.to_string();
        let name = HeaderName::from_static("x-forwarded-for");
        match http.forwarded_for {
            ForwardedFor::Transparent => {}
            ForwardedFor::On => _ = fields.append(name, client.parse().ok()?),
            ForwardedFor::Off => _ = fields.append(name, HeaderValue::from_static("unknown")),
            ForwardedFor::Delete => _ = fields.remove(name),
            ForwardedFor::Truncate => _ = fields.insert(name, client.parse().ok()?),
        }
        if let Some(via) = self.via {
            fields.insert(header::VIA, via.parse().ok()?);
        }
        for name in &http.remove_request_fields {
            fields.remove(&name.0.0);
        }
        Some(())
    }

    /// The head as the origin gets it, or a parent.
    fn head(&self, whose: &Whose, hop: &Hop) -> Option<Request<()>> {
        let request = self.request;
        let target = &request.target;
        let is_absolute = matches!(whose, Whose::Parent(_));
        // RFC 9112 section 3.2.4.
        let is_about_server = request.method == Method::OPTIONS && target.path.is_empty();
        let uri = match (is_absolute, is_about_server) {
            (true, true) => format!("http://{}", target.host()).parse().ok()?,
            (true, false) => target.to_string().parse().ok()?,
            (false, true) => Uri::from_static("*"),
            (false, false) => {
                let form = PathAndQuery::try_from(&*target.origin_form()).ok()?;
                Uri::builder().path_and_query(form).build().ok()?
            }
        };
        let mut fields = HeaderMap::with_capacity(request.fields.len() + 6);
        fields.insert(header::HOST, target.host().parse().ok()?);
        fields.extend(request.fields.clone());
        self.edit(&mut fields)?;
        if request.framing == Framing::Length(0) {
            fields.insert(header::CONTENT_LENGTH, 0.into());
        }
        if let Some(left) = request.max_forwards {
            fields.insert(header::MAX_FORWARDS, left.saturating_sub(1).into());
        }
        if let Some(upgrade) = &request.upgrade {
            fields.insert(header::UPGRADE, upgrade.clone());
            fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        }
        if is_absolute
            && let Hop::Parent(parent, _) = hop
            && let Some(login) = parent.authorization()
        {
            let name = header::PROXY_AUTHORIZATION;
            fields.insert(name, login.parse().ok()?);
        }
        let mut head = Request::new(());
        *head.method_mut() = request.method.clone();
        *head.uri_mut() = uri;
        *head.headers_mut() = fields;
        Some(head)
    }
}
