//! Listening sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;

use super::outgoing::Keepalive;

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
pub(crate) const BACKLOG: i32 = 4096;

/// Opens `loops` sockets that share one address, so that as many accept loops share the work: the
/// kernel gives each its part of the connections (`SO_REUSEPORT`). `[::]` takes IPv4 clients too,
/// unless it is to leave them to another listener or the system says otherwise.
///
/// # Errors
/// Those of `bind(2)` and `listen(2)`.
pub fn listen(address: SocketAddr, leave_ipv4: bool, loops: usize) -> io::Result<Vec<TcpListener>> {
    // Alone: a second proxy is to be told that there is a first, not to share its port.
    let alone = open(address, leave_ipv4, false)?;
    let address = alone.local_addr()?.as_socket().unwrap_or(address);
    drop(alone);
    (0..loops)
        .map(|_| {
            let socket = open(address, leave_ipv4, true)?;
            TcpListener::from_std(socket.into())
        })
        .collect()
}

fn open(address: SocketAddr, leave_ipv4: bool, shared: bool) -> io::Result<Socket> {
    // Plain TCP, never MPTCP: the kernel cannot splice MPTCP connections.
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if leave_ipv4 && address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // What is accepted inherits it (`sk_clone_lock`, `tcp_create_openreq_child`).
    prepare(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Prepares a socket, or all that a listener will accept, for tunnel traffic.
///
/// # Errors
/// Those of `setsockopt(2)`; the peer may be gone already.
pub fn prepare(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    // We forward what we get when we get it; whether small segments wait is the peers' business.
    socket.set_tcp_nodelay(true)?;
    // An urgent byte is a byte of the stream to us: skipping it would upset the byte counts, and a
    // tunnel has no way to say "urgent" anyway.
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_keepalive(&Keepalive::default().options())
}

/// The client's address as policy and log see it: IPv4 clients of an IPv6 socket are IPv4 clients.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether a packet to `ip` would stay on this host.
///
/// It would if the kernel lets us bind the address, which also finds whole networks that are routed
/// to this host. Where binding does not tell, since `ip_nonlocal_bind` permits it for any address or
/// somebody forbids it altogether, it would if the kernel chose the address itself as the source of
/// such a packet.
///
/// # Errors
/// Those of `socket(2)`; but where there are no sockets of its family, no address is ours.
pub fn is_local(ip: IpAddr) -> io::Result<bool> {
    if ip.is_unspecified() || ip.is_loopback() {
        // Connecting to the unspecified address means connecting to this host.
        return Ok(true);
    }
    let any_port = SocketAddr::new(ip, 0);
    let new = || Socket::new(Domain::for_address(any_port), Type::DGRAM, None);
    let socket = match new() {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return Ok(false),
        other => other?,
    };
    match socket.bind(&any_port.into()) {
        Ok(()) if !binds_anything(ip) => return Ok(true),
        // Not ours; or link-local without an interface, which cannot be connected to either.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput
            ) =>
        {
            return Ok(false);
        }
        Ok(()) | Err(_) => {}
    }
    // No packet is sent: UDP connects by looking up the route.
    let socket = new()?;
    let source = socket
        .connect(&SocketAddr::new(ip, 9).into())
        .and_then(|()| socket.local_addr());
    Ok(source.is_ok_and(|source| source.as_socket().is_some_and(|source| source.ip() == ip)))
}

/// Whether the kernel lets us bind addresses that are not ours (`net.ipv4.ip_nonlocal_bind`).
fn binds_anything(ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    std::fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"))
        .is_ok_and(|setting| setting.trim() != "0")
}
