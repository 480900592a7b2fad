//! A connection to a parent, and through it to a target.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::BytesMut;
use rustls::ClientConnection;
use tokio::time::{Instant, timeout_at};

use super::Parent;
use crate::{
    access::leads_back,
    authority::Host,
    config::Live,
    http::{ProxyError, Refusal, ResponseHead, Status},
    net::{
        announce,
        dial::{Patience, Route, dial},
        outgoing::Outgoing,
        wire::Wire,
    },
};

/// What a parent is connected to with.
pub(crate) struct Dialling<'a> {
    pub(crate) live: &'a Live,
    /// Our own listeners, which a parent cannot be.
    pub(crate) listeners: &'a [SocketAddr],
    /// For all of it.
    pub(crate) deadline: Instant,
    /// Whom the parent is told of, if it is to be.
    pub(crate) client: Option<SocketAddr>,
    /// How to connect to an address.
    pub(crate) outgoing: &'a (dyn Fn(SocketAddr) -> Outgoing + Sync),
}

/// A connection that leads to the target, straight or through a parent.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) wire: Wire,
    /// The address at its other end: the target's, or the parent's.
    pub(crate) address: SocketAddr,
    /// What came behind the parent's answer.
    pub(crate) early: BytesMut,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) struct LinkError {
    /// What the client is told.
    pub(crate) refusal: Refusal,
    /// The address that it is about.
    pub(crate) tried: Option<IpAddr>,
    /// Whether that is the parent's decision: then it is not for another way to get around it.
    pub(crate) is_final: bool,
}

impl Parent {
    /// Connects to the parent, and notes whether it is there. `hold` is kept for as long as its name is resolved.
    pub(crate) async fn connect(
        &self,
        dialling: &Dialling<'_>,
        hold: impl Clone + Send + 'static,
    ) -> Result<(Wire, SocketAddr), LinkError> {
        let connected = self.try_connect(dialling, hold).await;
        match &connected {
            Ok(_) => self.note(Ok(())),
            Err(error) => self.note(Err(error.refusal.reason())),
        }
        connected
    }

    async fn try_connect(
        &self,
        dialling: &Dialling<'_>,
        hold: impl Clone + Send + 'static,
    ) -> Result<(Wire, SocketAddr), LinkError> {
        let address = &self.spec.url.address;
        let port = address.port().get();
        let late = |_| self.failed(ProxyError::ConnectionTimeout, "no answer in time");
        let ips = match address.host() {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => {
                let lookup = dialling.live.resolver.addresses(name.as_str(), hold);
                let found = timeout_at(dialling.deadline, lookup).await.map_err(late)?;
                found.map_err(|error| self.failed(ProxyError::DnsError, error))?
            }
        };
        // If that cannot be found out, dialling fails too, and says why.
        let is_usable = |ip: &IpAddr| {
            !leads_back(dialling.listeners, SocketAddr::new(*ip, port)).unwrap_or_default()
        };
        let routes: Vec<Route> = ips
            .into_iter()
            .filter(is_usable)
            .map(|ip| {
                let target = SocketAddr::new(ip, port);
                Route {
                    target,
                    outgoing: (dialling.outgoing)(target),
                }
            })
            .collect();
        let patience = Patience {
            deadline: dialling.deadline,
            attempt: dialling.live.attempt_timeout,
        };
        let dialled = dial(&routes, patience).await.map_err(|error| match error {
            Some(error) => LinkError {
                tried: Some(error.tried.ip()),
                ..self.failed(error.refusal.error(), error.refusal.reason())
            },
            None => self.failed(ProxyError::ProxyLoopDetected, "its address is our own"),
        })?;
        let peer = routes
            .get(dialled.index)
            .map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |route| route.target);
        let route = routes.get(dialled.index);
        let announce = route.and_then(|route| route.outgoing.announce);
        let announced = match announce.zip(dialling.client) {
            None => 0,
            Some((version, client)) => {
                let sent = announce::send(&dialled.stream, version, client, peer);
                let sent = timeout_at(dialling.deadline, sent).await.map_err(late)?;
                sent.map_err(|error| self.failed(ProxyError::ConnectionTerminated, error))?
            }
        };
        let Some((config, name)) = &self.tls else {
            let wire = Wire::plain(dialled.stream).with_moved(0, announced);
            return Ok((wire, peer));
        };
        let seal = async {
            let tls = ClientConnection::new(Arc::clone(config), name.clone())
                .map_err(io::Error::other)?;
            Wire::sealed(dialled.stream, &[], tls).await
        };
        let sealed = timeout_at(dialling.deadline, seal).await.map_err(late)?;
        let sealed = sealed.map_err(|error| LinkError {
            tried: Some(peer.ip()),
            ..self.failed(ProxyError::TlsProtocolError, error)
        })?;
        Ok((sealed, peer))
    }

    /// Asks for a tunnel by this [request](Parent::request), and notes whether there was an answer.
    pub(crate) async fn tunnel(
        &self,
        request: &[u8],
        dialling: &Dialling<'_>,
        hold: impl Clone + Send + 'static,
    ) -> Result<Link, LinkError> {
        let connected = self.try_connect(dialling, hold).await;
        let (wire, address) =
            connected.inspect_err(|error| self.note(Err(error.refusal.reason())))?;
        let asked = self.ask(&wire, request, dialling.deadline).await;
        let early = asked.map_err(|error| LinkError {
            tried: Some(address.ip()),
            ..error
        })?;
        Ok(Link {
            wire,
            address,
            early,
        })
    }

    /// What came behind the answer.
    async fn ask(
        &self,
        wire: &Wire,
        request: &[u8],
        deadline: Instant,
    ) -> Result<BytesMut, LinkError> {
        let exchange = async {
            wire.write_all(request).await?;
            let mut received = BytesMut::new();
            loop {
                if wire.read(&mut received).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                match ResponseHead::parse(&received) {
                    Ok(None) => {}
                    Ok(Some(head)) => return Ok((received, head)),
                    Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                }
            }
        };
        let answer = timeout_at(deadline, exchange).await.map_err(|_elapsed| {
            self.failed(
                ProxyError::HttpResponseTimeout,
                "no answer to CONNECT in time",
            )
        })?;
        let (mut received, head) = answer.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::InvalidData => ProxyError::HttpProtocolError,
                _ => ProxyError::ConnectionTerminated,
            };
            let failed = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    self.failed(kind, "it closed the connection instead of answering")
                }
                _ => self.failed(kind, &error),
            };
            self.note(Err(failed.refusal.reason()));
            failed
        })?;
        self.note(Ok(()));
        if (200..300).contains(&head.status) {
            return Ok(received.split_off(head.bytes));
        }
        Err(self.refused(head.status))
    }

    /// A failure of ours to use the parent.
    fn failed(&self, error: ProxyError, why: impl fmt::Display) -> LinkError {
        let reason = format!("{self}: {why}");
        let status = match error.usual_status() {
            Status::GATEWAY_TIMEOUT => Status::GATEWAY_TIMEOUT,
            Status::INTERNAL_SERVER_ERROR => Status::INTERNAL_SERVER_ERROR,
            _ => Status::BAD_GATEWAY,
        };
        LinkError {
            refusal: Refusal::with_status(status, error, reason).with_next_hop(&self.name, None),
            tried: None,
            is_final: false,
        }
    }

    /// What its refusal means to the client, who did not ask it.
    fn refused(&self, status: u16) -> LinkError {
        let (error, what) = match status {
            407 => (
                ProxyError::ProxyConfigurationError,
                "it does not accept our login",
            ),
            504 => (ProxyError::HttpResponseTimeout, "it had no answer in time"),
            500.. => (
                ProxyError::DestinationUnavailable,
                "it does not reach the target",
            ),
            _ => (ProxyError::HttpRequestDenied, "it refuses the request"),
        };
        let failed = self.failed(error, format_args!("{what} ({status})"));
        LinkError {
            refusal: failed
                .refusal
                .with_other_status(if status == 504 {
                    Status::GATEWAY_TIMEOUT
                } else {
                    Status::BAD_GATEWAY
                })
                .with_next_hop(&self.name, Some(status)),
            is_final: status < 500,
            tried: None,
        }
    }
}
