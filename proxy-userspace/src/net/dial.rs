//! Connecting to a target: resolve, judge every address, try the permitted ones in turn.
//!
//! The address that was judged is the address that is dialled; a name is resolved once.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpStream, lookup_host},
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::listen::{is_local, prepare};
use crate::{
    authority::{Authority, Host},
    http::{ProxyError, Refusal},
    policy::{Denial, Policy},
};

/// A connection to the target.
#[derive(Debug)]
pub struct Dialled {
    /// The connected socket.
    pub stream: TcpStream,
    /// The address it is connected to.
    pub address: SocketAddr,
}

/// Why there is no connection.
#[derive(Debug)]
pub struct DialError {
    /// What the client is told.
    pub refusal: Refusal,
    /// The address that was tried last, if any was.
    pub tried: Option<SocketAddr>,
    /// Whether the policy said no, rather than the network.
    pub denied: bool,
}

impl DialError {
    fn denied(refusal: Refusal) -> Self {
        Self {
            refusal,
            tried: None,
            denied: true,
        }
    }

    fn failed(error: ProxyError, reason: String, tried: Option<SocketAddr>) -> Self {
        Self {
            refusal: Refusal::new(error, reason),
            tried,
            denied: false,
        }
    }
}

/// What a dialler goes by.
#[derive(Clone, Copy, Debug)]
pub struct Dialler<'a> {
    /// Judges each address.
    pub policy: &'a Policy,
    /// Our own listeners, which a tunnel must not lead back to.
    pub listeners: &'a [SocketAddr],
    /// For resolving and connecting together.
    pub timeout: Duration,
    /// Held until the resolver has answered, also if nobody waits for it any more: a name that is
    /// being resolved takes a thread, and a descriptor or two.
    pub room: &'a Arc<OwnedSemaphorePermit>,
}

impl Dialler<'_> {
    /// Connects to the target.
    pub async fn dial(&self, target: &Authority) -> Result<Dialled, DialError> {
        let deadline = Instant::now() + self.timeout;
        let addresses = self.resolve(target, deadline).await?;
        let permitted = self.permitted(&addresses)?;
        let mut left = u32::try_from(permitted.len()).unwrap_or(u32::MAX);
        let mut last = None;
        for address in permitted {
            // A silent address may use up its share of the time, not that of the next one.
            let now = Instant::now();
            let share = deadline.saturating_duration_since(now) / left.max(1);
            left -= 1;
            match timeout_at(now + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => match finish(stream, address) {
                    Ok(dialled) => return Ok(dialled),
                    Err(error) => last = Some(error),
                },
                Ok(Err(error)) => last = Some(connect_error(address, &error)),
                Err(_elapsed) => {
                    last = Some(DialError::failed(
                        ProxyError::ConnectionTimeout,
                        format!("{address} did not answer in time"),
                        Some(address),
                    ));
                }
            }
        }
        Err(last.unwrap_or_else(|| no_address(target)))
    }

    async fn resolve(
        &self,
        target: &Authority,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, DialError> {
        let port = target.port().get();
        let name = match target.host() {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            Host::Name(name) => name,
        };
        let lookup = tokio::spawn({
            let (name, room) = (name.as_str().to_owned(), Arc::clone(self.room));
            async move {
                let addresses = lookup_host((name, port)).await.map(unique);
                drop(room);
                addresses
            }
        });
        let found = timeout_at(deadline, lookup)
            .await
            .map(|ended| ended.unwrap_or_else(|error| Err(io::Error::other(error))));
        match found {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(DialError::failed(
                ProxyError::DnsError,
                format!("cannot resolve {}: {error}", name.as_str()),
                None,
            )),
            Err(_elapsed) => Err(DialError::failed(
                ProxyError::DnsTimeout,
                format!("resolving {} took too long", name.as_str()),
                None,
            )),
        }
    }

    /// The addresses that may be dialled; the first reason against one if none may.
    fn permitted(&self, addresses: &[SocketAddr]) -> Result<Vec<SocketAddr>, DialError> {
        let mut first = None;
        let mut permitted = Vec::with_capacity(addresses.len());
        for &address in addresses {
            match self.judge(address) {
                Ok(()) => permitted.push(address),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            Some(error) if permitted.is_empty() => Err(error),
            _ => Ok(permitted),
        }
    }

    fn judge(&self, address: SocketAddr) -> Result<(), DialError> {
        let denied = |denial: Denial| DialError::denied(denial.into());
        self.policy.address(address.ip()).map_err(denied)?;
        let ip = address.ip().to_canonical();
        let ours = is_local(ip).map_err(|error| connect_error(address, &error))?;
        if ours {
            self.policy.own_address(ip).map_err(denied)?;
        }
        if self.is_self(ip, address.port(), ours) {
            return Err(DialError::denied(Refusal::new(
                ProxyError::ProxyLoopDetected,
                format!("{address} is this proxy itself"),
            )));
        }
        Ok(())
    }

    /// Whether a connection to the address, which may be `ours`, would arrive at one of our
    /// listeners.
    fn is_self(&self, ip: IpAddr, port: u16, ours: bool) -> bool {
        self.listeners
            .iter()
            .filter(|listener| listener.port() == port)
            .any(|listener| {
                let own = listener.ip().to_canonical();
                own == ip || (own.is_unspecified() || ip.is_unspecified()) && ours
            })
    }
}

/// Each address once, in order.
fn unique(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut unique = Vec::new();
    for address in addresses {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique
}

fn finish(stream: TcpStream, address: SocketAddr) -> Result<Dialled, DialError> {
    let failed = |error: io::Error| connect_error(address, &error);
    if stream.local_addr().map_err(failed)? == stream.peer_addr().map_err(failed)? {
        // A port of the ephemeral range that nobody listens on can be answered by our own connect
        // (simultaneous open): the socket is connected to itself.
        return Err(DialError::failed(
            ProxyError::ConnectionRefused,
            format!("{address} refused the connection"),
            Some(address),
        ));
    }
    prepare(&stream).map_err(failed)?;
    Ok(Dialled { stream, address })
}

fn connect_error(address: SocketAddr, error: &io::Error) -> DialError {
    let (kind, reason) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (
            ProxyError::ConnectionRefused,
            format!("{address} refused the connection"),
        ),
        io::ErrorKind::TimedOut => (
            ProxyError::ConnectionTimeout,
            format!("{address} did not answer in time"),
        ),
        // Of IPv6 it can also mean that we have no address to connect from.
        io::ErrorKind::AddrNotAvailable if address.is_ipv4() => (
            ProxyError::ProxyInternalError,
            format!("the proxy has no free port to connect to {address} from"),
        ),
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable => (
            ProxyError::DestinationIpUnroutable,
            format!("no way to {address}: {error}"),
        ),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => (
            ProxyError::ConnectionTerminated,
            format!("{address} closed the connection at once"),
        ),
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => (
                ProxyError::ProxyInternalError,
                format!("the proxy is out of resources: {error}"),
            ),
            _ => (
                ProxyError::DestinationIpUnroutable,
                format!("cannot connect to {address}: {error}"),
            ),
        },
    };
    DialError::failed(kind, reason, Some(address))
}

fn no_address(target: &Authority) -> DialError {
    DialError::failed(
        ProxyError::DnsError,
        format!("{} has no address", target.host()),
        None,
    )
}
