//! Requests to the admin endpoint, and what they get.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::IpAddr,
    process,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{
        ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue,
        ORIGIN,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::sleep,
};
use tracing::{info, warn};

use super::{
    Filter, Place, Status, TunnelView,
    bind::{Endpoint, bind},
    filter::decode,
    sample::{Rates, Sampler},
};
use crate::{
    diagnostics::Levels,
    limits::{ACCEPT_BACKOFF, ADMIN_HEAD_TIMEOUT, MAX_ADMIN_CONNECTIONS},
    metrics,
    registry::Tunnel,
    relay::{Ending, EngineKind},
    session::{Shared, State},
};

/// What the endpoint asks of the process.
#[derive(Debug)]
pub enum Command {
    /// To read the configuration again: what it says then, or why it is refused.
    Reload(oneshot::Sender<Result<String, String>>),
    /// To serve no more clients, and to end with the last of them.
    Drain,
}

/// What may be done over a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Everything.
    Full,
    /// To look.
    View,
    /// To look at metrics and state.
    Metrics,
}

/// The endpoint.
#[derive(Debug)]
pub struct Admin {
    /// Once there is something to look at.
    shared: OnceLock<Arc<Shared>>,
    commands: mpsc::Sender<Command>,
    levels: Levels,
    sampler: Sampler,
}

type Reply = Response<Full<Bytes>>;

/// Serves whoever connects, for as long as the process runs.
async fn serve(admin: Arc<Admin>, endpoint: Endpoint, rights: Rights) {
    // Of its own: whoever holds all connections to one listener keeps nobody away from another.
    let connections = Arc::new(Semaphore::new(MAX_ADMIN_CONNECTIONS));
    loop {
        // Whoever comes when all are in use waits in the kernel's queue.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let accepted = match &endpoint {
            Endpoint::Socket { listener, .. } => listener
                .accept()
                .await
                .map(|(stream, _)| Either::Unix(stream)),
            Endpoint::Tcp(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Either::Tcp(stream)),
        };
        let admin = Arc::clone(&admin);
        match accepted {
            Ok(stream) => drop(tokio::spawn(async move {
                match stream {
                    Either::Unix(stream) => admin.converse(stream, rights).await,
                    Either::Tcp(stream) => admin.converse(stream, rights).await,
                }
                drop(permit);
            })),
            Err(error) => {
                warn!(%error, "cannot accept at the admin endpoint for the moment");
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

enum Either {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Admin {
    /// An endpoint of a process that starts.
    #[must_use]
    pub fn new(commands: mpsc::Sender<Command>, levels: Levels) -> Arc<Self> {
        Arc::new(Self {
            shared: OnceLock::new(),
            commands,
            levels,
            sampler: Sampler::default(),
        })
    }

    /// From now on there is something to look at.
    pub fn begin(&self, shared: Arc<Shared>) {
        let _ = self.shared.set(shared);
    }

    async fn converse(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        rights: Rights,
    ) {
        let service = service_fn(|request| {
            let admin = Arc::clone(self);
            async move { Ok::<_, Infallible>(admin.answer(request, rights).await) }
        });
        // Whoever leaves in the middle of it does not get it.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(ADMIN_HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>, rights: Rights) -> Reply {
        if rights == Rights::View && !is_from_here(&request) {
            let why = "the admin endpoint answers to localhost and loopback addresses only";
            return error(StatusCode::MISDIRECTED_REQUEST, why);
        }
        let path = request.uri().path().trim_end_matches('/');
        let query = request.uri().query().unwrap_or_default();
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let public = match path {
            "/healthz" => Some(text(StatusCode::OK, "ok")),
            "/readyz" => Some(self.readiness()),
            "/metrics" => Some(match self.shared.get() {
                Some(shared) => typed(shared.metrics.text(shared), metrics::CONTENT_TYPE),
                None => starting(),
            }),
            _ => None,
        };
        match public {
            Some(reply) if is_read => return reply,
            Some(_) => return method_not_allowed("GET, HEAD"),
            None if rights == Rights::Metrics => return not_found(path),
            None => {}
        }
        let Some(shared) = self.shared.get() else {
            return starting();
        };
        if !is_read && rights != Rights::Full {
            let why = "over TCP one can only look; the Unix socket takes commands";
            return error(StatusCode::FORBIDDEN, why);
        }
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match (request.method().as_str(), segments.as_slice()) {
            ("GET" | "HEAD", []) if wants_html(&request) => page(),
            ("GET" | "HEAD", []) => text(StatusCode::OK, INDEX),
            ("GET" | "HEAD", ["status"]) => self.status(shared).await,
            ("GET" | "HEAD", ["tunnels"]) => match Filter::from_query(query) {
                Ok(filter) => {
                    let sample = self.sampler.sample(&shared.registry).await;
                    json(&sample.listing(&shared.registry, &filter))
                }
                Err(why) => error(StatusCode::BAD_REQUEST, &why),
            },
            ("GET" | "HEAD", ["tunnels", id]) => match self.tunnel(shared, id).await {
                Some(view) => json(&view),
                None => not_found(path),
            },
            ("POST", ["tunnels", "kill"]) => match Filter::from_query(query) {
                Ok(filter) if filter.is_explicit() => {
                    json(&json!({ "killed": kill(shared, &filter) }))
                }
                Ok(_) => error(StatusCode::BAD_REQUEST, "say which tunnels, or all=true"),
                Err(why) => error(StatusCode::BAD_REQUEST, &why),
            },
            ("POST", ["tunnels", id, "kill"]) => match Filter::from_query(&format!("id={id}")) {
                Ok(filter) => match kill(shared, &filter) {
                    killed if killed.is_empty() => not_found(path),
                    killed => json(&json!({ "killed": killed })),
                },
                Err(why) => error(StatusCode::BAD_REQUEST, &why),
            },
            ("GET" | "HEAD", ["log-level"]) => json(&json!({ "level": self.levels.get() })),
            ("PUT" | "POST", ["log-level"]) => self.set_level(query),
            ("POST", ["reload"]) => self.reload().await,
            ("POST", ["drain"]) => self.drain().await,
            (_, [] | ["tunnels" | "status"]) => method_not_allowed("GET, HEAD"),
            (_, ["reload" | "drain"] | ["tunnels", .., "kill"]) => method_not_allowed("POST"),
            _ => not_found(path),
        }
    }

    fn readiness(&self) -> Reply {
        let state = self
            .shared
            .get()
            .map_or(State::Starting, |shared| shared.state());
        match state {
            State::Ready => text(StatusCode::OK, "ready"),
            state => text(StatusCode::SERVICE_UNAVAILABLE, state.as_str()),
        }
    }

    async fn status(&self, shared: &Shared) -> Reply {
        let sample = self.sampler.sample(&shared.registry).await;
        let moved = &sample.moved;
        let total = moved.total();
        let tunnels = EngineKind::ALL.into_iter().map(|engine| {
            let open = moved.open.get(engine as usize).copied().unwrap_or_default();
            (engine.to_string(), open)
        });
        let (reloads, failed_reloads) = shared.registry.reloads();
        json(&Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            state: shared.state().as_str().to_owned(),
            uptime: shared.began.elapsed().as_secs_f64().round(),
            listeners: shared.listeners.iter().map(ToString::to_string).collect(),
            engines: shared
                .relay
                .engines()
                .map(|engine| engine.to_string())
                .collect(),
            connections: shared.registry.all_connections(),
            tunnels: tunnels.collect(),
            forwarding: moved.forwarding,
            tunnels_max: shared.room,
            up: total.to_upstream,
            down: total.to_client,
            up_rate: sample.rates.up,
            down_rate: sample.rates.down,
            refusals: shared.metrics.refusals(),
            reloads,
            failed_reloads,
            config_error: shared.registry.config_error(),
        })
    }

    async fn tunnel(&self, shared: &Shared, id: &str) -> Option<TunnelView> {
        let id: u64 = id.parse().ok()?;
        let tunnel = shared.registry.tunnel(id)?;
        let sample = self.sampler.sample(&shared.registry).await;
        // One that has just begun is not there yet.
        Some(
            sample
                .tunnel(&shared.registry, id)
                .unwrap_or_else(|| now(&tunnel)),
        )
    }

    fn set_level(&self, query: &str) -> Reply {
        let level = query.strip_prefix("level=").unwrap_or_default();
        match self.levels.set(&decode(level)) {
            Ok(()) => {
                let level = self.levels.get();
                info!("the level of the diagnostics is {level} now");
                json(&json!({ "level": level }))
            }
            Err(why) => error(StatusCode::BAD_REQUEST, &why),
        }
    }

    async fn reload(&self) -> Reply {
        let (answer, wait) = oneshot::channel();
        if self.commands.send(Command::Reload(answer)).await.is_err() {
            return error(StatusCode::SERVICE_UNAVAILABLE, "the proxy is ending");
        }
        match wait.await {
            Ok(Ok(said)) => json(&json!({ "configuration": said })),
            Ok(Err(why)) => error(StatusCode::UNPROCESSABLE_ENTITY, &why),
            Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, "the proxy is ending"),
        }
    }

    async fn drain(&self) -> Reply {
        match self.commands.send(Command::Drain).await {
            Ok(()) => json(&json!({ "state": State::Draining.as_str() })),
            Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, "the proxy is ending"),
        }
    }
}

/// What there is, for whoever looks around.
const INDEX: &str = "\
GET  /                    this list, and for browsers a page
GET  /healthz             whether the process runs
GET  /readyz              whether clients are served
GET  /metrics             for Prometheus
GET  /status              totals
GET  /tunnels             what is open; ?client= &user= &target= &upstream= &parent= &rule= &listener= &engine=
                          &min_age= &min_bytes= &sort=rate|bytes|age|client|target|engine
                          &reverse=true &limit=
GET  /tunnels/ID          one of them
POST /tunnels/ID/kill     ends it
POST /tunnels/kill?...    ends those that fit, or with all=true all
GET  /log-level           what the diagnostics tell
PUT  /log-level?level=... changes it, as RUST_LOG does
POST /reload              reads the configuration again
POST /drain               serves no more clients, and ends with the last of them
";

/// For browsers: one file, which asks for the rest of what is here once a second.
const PAGE: &str = include_str!("page.html");

/// Nothing of the page comes from elsewhere, or goes there.
const PAGE_POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether a browser asks.
fn wants_html(request: &Request<Incoming>) -> bool {
    let accepted = request.headers().get(ACCEPT);
    accepted.is_some_and(|accepted| {
        accepted
            .to_str()
            .is_ok_and(|accepted| accepted.contains("text/html"))
    })
}

fn page() -> Reply {
    let mut reply = typed(PAGE.to_owned(), "text/html; charset=utf-8");
    let policy = HeaderValue::from_static(PAGE_POLICY);
    reply.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    reply
}

/// How a tunnel is now, without knowing how fast it is.
fn now(tunnel: &Tunnel) -> TunnelView {
    TunnelView::new(tunnel, tunnel.traffic.payload(), Rates::default())
}

/// Ends the tunnels that fit: which.
fn kill(shared: &Shared, filter: &Filter) -> Vec<u64> {
    let mut killed = Vec::new();
    for tunnel in shared.registry.tunnels() {
        if filter.fits(&now(&tunnel)) {
            tunnel.stop.end(Ending::Killed);
            killed.push(tunnel.id);
        }
    }
    info!(tunnels = killed.len(), "killed at the admin endpoint");
    killed
}

/// Whether a page of another site cannot have asked, not even one whose name leads here.
fn is_from_here(request: &Request<Incoming>) -> bool {
    let hosts: Vec<_> = request.headers().get_all(HOST).iter().collect();
    let is_here = |host: &HeaderValue| {
        let host = host.to_str().unwrap_or_default();
        let name =
            host.rsplit_once(':').map_or(
                host,
                |(name, port)| {
                    if port.ends_with(']') { host } else { name }
                },
            );
        let address = name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    let is_foreign = request.headers().get(ORIGIN).is_some_and(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let host = hosts.first().and_then(|host| host.to_str().ok());
        origin.strip_prefix("http://") != host
    });
    matches!(hosts.as_slice(), [host] if is_here(host)) && !is_foreign
}

fn typed(body: String, content_type: &'static str) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    let fields = reply.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn text(status: StatusCode, body: &str) -> Reply {
    let mut reply = typed(
        format!("{}\n", body.trim_end()),
        "text/plain; charset=utf-8",
    );
    *reply.status_mut() = status;
    reply
}

fn json(value: &impl Serialize) -> Reply {
    let mut body = serde_json::to_string_pretty(value).unwrap_or_default();
    body.push('\n');
    typed(body, "application/json")
}

fn error(status: StatusCode, why: &str) -> Reply {
    let mut reply = json(&BTreeMap::from([("error", why)]));
    *reply.status_mut() = status;
    reply
}

fn starting() -> Reply {
    error(StatusCode::SERVICE_UNAVAILABLE, "the proxy is starting")
}

fn not_found(path: &str) -> Reply {
    error(
        StatusCode::NOT_FOUND,
        &format!("there is no {path}; / lists what there is"),
    )
}

fn method_not_allowed(allowed: &'static str) -> Reply {
    let mut reply = error(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("{allowed} is what it takes"),
    );
    reply
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

/// Listens and serves, or says why not. Call within a Tokio runtime.
///
/// # Errors
/// The place is taken, or may not be.
pub fn open(admin: &Arc<Admin>, place: &Place, rights: Rights) -> io::Result<JoinHandle<()>> {
    let endpoint = bind(place)?;
    Ok(tokio::spawn(serve(Arc::clone(admin), endpoint, rights)))
}
