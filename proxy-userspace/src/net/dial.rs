//! Connecting to a target: the permitted addresses race, as RFC 8305 has it.
//!
//! The address that was judged is the address that is dialled; a name is resolved once, by whoever
//! judges. The next address is tried when one has failed, or has kept us waiting for
//! a quarter of a second; the first that answers wins, and the others are given up.

use std::{future::poll_fn, io, net::SocketAddr, pin::Pin, task::Poll, time::Duration};

use tokio::{
    net::{TcpSocket, TcpStream},
    select,
    time::{Instant, sleep, timeout_at},
};

use super::{listen::prepare, outgoing::Outgoing};
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
    /// The address that it is about.
    pub tried: SocketAddr,
}

impl DialError {
    /// Whether this one is worth telling rather than the other: a host without IPv6 has no way to any IPv6
    /// address, and nobody wants to hear of it.
    fn says_more_than(&self, other: &Self) -> bool {
        let is_unroutable =
            |error: &Self| error.refusal.error() == ProxyError::DestinationIpUnroutable;
        is_unroutable(other) && !is_unroutable(self)
    }
}

/// An address to try.
#[derive(Clone, Debug)]
pub struct Route {
    /// The address.
    pub target: SocketAddr,
    /// How to get there.
    pub outgoing: Outgoing,
}

/// How long an address has a lead over the next (RFC 8305 section 5).
const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How many addresses are tried at a time: each takes a descriptor, and a name may have hundreds.
const RACERS: usize = 3;

/// How long dialling may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// When all of it is over.
    pub deadline: Instant,
    /// How long one address is waited for at most.
    pub attempt: Duration,
}

/// Connects to the first of the addresses that answers; without an error if there is none.
pub async fn dial(routes: &[Route], patience: Patience) -> Result<Dialled, Option<DialError>> {
    let mut waiting = order(routes).into_iter();
    let mut racing = Vec::new();
    let mut error: Option<DialError> = None;
    loop {
        if racing.len() < RACERS
            && let Some(index) = waiting.next()
            && let Some(route) = routes.get(index)
        {
            let until = give_up(Instant::now(), patience, waiting.len() + 1);
            racing.push((index, Box::pin(attempt(route, until))));
        }
        if racing.is_empty() {
            return Err(error);
        }
        let is_next_due = racing.len() < RACERS && waiting.len() > 0;
        let (position, result) = select! {
            finished = first(&mut racing) => finished,
            () = sleep(CONNECTION_ATTEMPT_DELAY), if is_next_due => continue,
        };
        let (index, _) = racing.swap_remove(position);
        match result {
            Ok(stream) => return Ok(Dialled { stream, index }),
            Err(next)
                if error
                    .as_ref()
                    .is_none_or(|known| !known.says_more_than(&next)) =>
            {
                error = Some(next);
            }
            Err(_) => {}
        }
    }
}

/// The order in which addresses are tried: the resolver's, but with the other IP version after each
/// (RFC 8305 section 4), so that one that leads nowhere costs one lead and not many.
fn order(routes: &[Route]) -> Vec<usize> {
    let is_v4 = |index: &usize| {
        routes
            .get(*index)
            .is_some_and(|route| route.target.is_ipv4())
    };
    let (v4, v6): (Vec<_>, Vec<_>) = (0..routes.len()).partition(is_v4);
    let (first, second) = if v4.first() < v6.first() && !v4.is_empty() || v6.is_empty() {
        (v4, v6)
    } else {
        (v6, v4)
    };
    let mut second = second.into_iter();
    let mut order = Vec::with_capacity(routes.len());
    for index in first {
        order.push(index);
        order.extend(second.next());
    }
    order.extend(second);
    order
}

/// When an address is given up: so that all those that are left, itself included, get their turn.
fn give_up(now: Instant, patience: Patience, left: usize) -> Instant {
    let time = patience.deadline.saturating_duration_since(now);
    let racers = u32::try_from(RACERS).unwrap_or(u32::MAX);
    let left = u32::try_from(left).unwrap_or(u32::MAX).max(racers);
    let share = time.saturating_mul(racers) / left;
    now + share.min(patience.attempt)
}

/// One address, from the first segment to a socket that is ready for its tunnel.
async fn attempt(route: &Route, until: Instant) -> Result<TcpStream, DialError> {
    let address = route.target;
    let connected = timeout_at(until, connect(route)).await;
    let stream = connected.unwrap_or_else(|_elapsed| {
        Err(failed(
            ProxyError::ConnectionTimeout,
            format!("{address} did not answer in time"),
            address,
        ))
    })?;
    finish(&stream, route)?;
    Ok(stream)
}

/// Waits for the first of the attempts that comes to an end.
async fn first<F: Future + Unpin>(racing: &mut [(usize, F)]) -> (usize, F::Output) {
    poll_fn(|context| {
        for (position, (_, attempt)) in racing.iter_mut().enumerate() {
            if let Poll::Ready(result) = Pin::new(attempt).poll(context) {
                return Poll::Ready((position, result));
            }
        }
        Poll::Pending
    })
    .await
}

async fn connect(route: &Route) -> Result<TcpStream, DialError> {
    let target = route.target;
    let new = || match target {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = new().map_err(|error| connect_error(target, &error))?;
    route.outgoing.before(&socket, target).map_err(|unset| {
        let reason = format!("the proxy cannot {}", unset.0);
        failed(ProxyError::ProxyInternalError, reason, target)
    })?;
    socket
        .connect(target)
        .await
        .map_err(|error| connect_error(target, &error))
}

fn finish(stream: &TcpStream, route: &Route) -> Result<(), DialError> {
    let address = route.target;
    let failed_with = |error: io::Error| connect_error(address, &error);
    if stream.local_addr().map_err(failed_with)? == stream.peer_addr().map_err(failed_with)? {
        // A port of the ephemeral range that nobody listens on can be answered by our own connect
        // (simultaneous open): the socket is connected to itself.
        return Err(failed(
            ProxyError::ConnectionRefused,
            format!("{address} refused the connection"),
            address,
        ));
    }
    prepare(stream)
        .and_then(|()| route.outgoing.after(stream))
        .map_err(failed_with)
}

fn failed(error: ProxyError, reason: String, tried: SocketAddr) -> DialError {
    DialError {
        refusal: Refusal::new(error, reason),
        tried,
    }
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
    failed(kind, reason, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(targets: &[&str]) -> Vec<Route> {
        let route = |target: &&str| Route {
            target: target.parse().unwrap(),
            outgoing: Outgoing::default(),
        };
        targets.iter().map(route).collect()
    }

    #[test]
    fn the_versions_take_turns_and_the_first_stays_first() {
        const V4: &str = "192.0.2.1:443";
        const V6: &str = "[2001:db8::1]:443";
        for (targets, expected) in [
            (&[][..], &[][..]),
            (&[V4], &[0]),
            (&[V6, V6, V4, V4], &[0, 2, 1, 3]),
            (&[V4, V6, V6, V6], &[0, 1, 2, 3]),
            (&[V4, V4, V4, V6], &[0, 3, 1, 2]),
            (&[V6, V6], &[0, 1]),
        ] {
            assert_eq!(order(&routes(targets)), expected, "{targets:?}");
        }
    }

    #[test]
    fn every_address_gets_its_turn() {
        let now = Instant::now();
        let patience = |attempt| Patience {
            deadline: now + Duration::from_secs(30),
            attempt: Duration::from_secs(attempt),
        };
        for (attempt, left, seconds) in [
            (60, 1, 30),
            (60, 3, 30),
            (60, 6, 15),
            (60, 90, 1),
            (10, 1, 10),
            (10, 90, 1),
        ] {
            let until = give_up(now, patience(attempt), left);
            assert_eq!(until, now + Duration::from_secs(seconds), "{left}");
        }
        let late = patience(1).deadline;
        assert_eq!(give_up(late, patience(1), 5), late);
    }

    #[tokio::test]
    async fn the_first_that_answers_wins() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        // Nobody listens on a port that was just given back.
        let shut = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let targets = [shut.local_addr().unwrap(), open];
        drop(shut);
        let routes = targets.map(|target| Route {
            target,
            outgoing: Outgoing::default(),
        });
        let patience = Patience {
            deadline: Instant::now() + Duration::from_secs(20),
            attempt: Duration::from_secs(10),
        };
        let dialled = dial(&routes, patience).await.unwrap();
        assert_eq!(dialled.index, 1);
        assert_eq!(dialled.stream.peer_addr().unwrap(), open);
        drop(listener);
        let error = dial(&routes, patience).await.unwrap_err().unwrap();
        assert_eq!(error.refusal.error(), ProxyError::ConnectionRefused);
        assert!(dial(&[], patience).await.unwrap_err().is_none());
    }
}
