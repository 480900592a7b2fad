//! Connecting to a target: the permitted addresses in turn.
//!
//! The address that was judged is the address that is dialled; a name is resolved once, by whoever
//! judges.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::listen::prepare;
use crate::http::{ProxyError, Refusal};

/// A connection to the target.
#[derive(Debug)]
pub struct Dialled {
    /// The connected socket.
    pub stream: TcpStream,
    /// Which of the addresses it is connected to.
    pub index: usize,
}

/// Why there is no connection.
#[derive(Debug)]
pub struct DialError {
    /// What the client is told.
    pub refusal: Refusal,
    /// The address that was tried last.
    pub tried: SocketAddr,
}

/// An address to try.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The address.
    pub target: SocketAddr,
    /// The address of ours to connect from; the kernel's choice if there is none.
    pub source: Option<IpAddr>,
}

/// Connects to the first of the addresses that answers; none if there is none.
pub async fn dial(routes: &[Route], deadline: Instant) -> Result<Dialled, Option<DialError>> {
    let mut left = u32::try_from(routes.len()).unwrap_or(u32::MAX);
    let mut last = None;
    for (index, &route) in routes.iter().enumerate() {
        // A silent address may use up its share of the time, not that of the next one.
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / left.max(1);
        left -= 1;
        let address = route.target;
        match timeout_at(now + share, connect(route)).await {
            Ok(Ok(stream)) => match finish(&stream, address) {
                Ok(()) => return Ok(Dialled { stream, index }),
                Err(error) => last = Some(error),
            },
            Ok(Err(error)) => last = Some(connect_error(route, &error)),
            Err(_elapsed) => {
                last = Some(failed(
                    ProxyError::ConnectionTimeout,
                    format!("{address} did not answer in time"),
                    address,
                ));
            }
        }
    }
    Err(last)
}

async fn connect(route: Route) -> io::Result<TcpStream> {
    let Some(source) = route.source else {
        return TcpStream::connect(route.target).await;
    };
    let socket = match route.target {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // The port is chosen when the target is known: one port serves many targets.
    super::sockopt::bind_address_no_port(&socket)?;
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(route.target).await
}

fn finish(stream: &TcpStream, address: SocketAddr) -> Result<(), DialError> {
    let failed_with = |error: io::Error| {
        connect_error(
            Route {
                target: address,
                source: None,
            },
            &error,
        )
    };
    if stream.local_addr().map_err(failed_with)? == stream.peer_addr().map_err(failed_with)? {
        // A port of the ephemeral range that nobody listens on can be answered by our own connect
        // (simultaneous open): the socket is connected to itself.
        return Err(failed(
            ProxyError::ConnectionRefused,
            format!("{address} refused the connection"),
            address,
        ));
    }
    prepare(stream).map_err(failed_with)
}

fn failed(error: ProxyError, reason: String, tried: SocketAddr) -> DialError {
    DialError {
        refusal: Refusal::new(error, reason),
        tried,
    }
}

fn connect_error(route: Route, error: &io::Error) -> DialError {
    let address = route.target;
    let (kind, reason) = match (error.kind(), route.source) {
        (io::ErrorKind::AddrNotAvailable, Some(source)) => (
            ProxyError::ProxyInternalError,
            format!(
                "the proxy cannot connect from {source}: this host does not have the address, or no free port on it"
            ),
        ),
        (io::ErrorKind::ConnectionRefused, _) => (
            ProxyError::ConnectionRefused,
            format!("{address} refused the connection"),
        ),
        (io::ErrorKind::TimedOut, _) => (
            ProxyError::ConnectionTimeout,
            format!("{address} did not answer in time"),
        ),
        // Of IPv6 it can also mean that we have no address to connect from.
        (io::ErrorKind::AddrNotAvailable, None) if address.is_ipv4() => (
            ProxyError::ProxyInternalError,
            format!("the proxy has no free port to connect to {address} from"),
        ),
        (
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable,
            _,
        ) => (
            ProxyError::DestinationIpUnroutable,
            format!("no way to {address}: {error}"),
        ),
        (io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted, _) => (
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
    failed(kind, reason, address)
}
