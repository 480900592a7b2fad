//! System calls that no dependency wraps safely. With `kernel/mapped.rs`, the only `unsafe` code of this crate.

#![expect(
    unsafe_code,
    reason = "TCP_INFO, SIOCOUTQ, SO_RCVLOWAT and AsyncFd have no safe wrapper"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use bytemuck::{Pod, Zeroable};
use socket2::SockRef;
use tokio::io::{Interest, unix::AsyncFd};

/// The cookie of the network namespace that a socket is in (`SO_NETNS_COOKIE`).
pub fn namespace_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: `cookie` is writable for `len` bytes, any of which the kernel may set.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if status == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `TCP_ESTABLISHED` of the kernel's `net/tcp_states.h`.
const TCP_ESTABLISHED: u8 = 1;

/// The head of the kernel's `struct tcp_info` (`include/uapi/linux/tcp.h`), up to
/// `tcpi_bytes_received`; the kernel fills as much as it is given room for.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawTcpInfo {
    state: u8,
    small: [u8; 7],
    timers: [u32; 9],
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
    path: [u32; 11],
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
}

const _: () = assert!(size_of::<RawTcpInfo>() == 136);

/// What `TCP_INFO` says of a connection. The kernel fills it under the socket's lock, so it also
/// serialises with whatever the receive path was doing.
#[derive(Clone, Copy, Debug)]
pub struct TcpInfo {
    /// Whether the connection is ESTABLISHED: open both ways.
    pub established: bool,
    /// Bytes the peer has acknowledged; counts 1 for our SYN on a socket that connected (not on one
    /// that was accepted), and 1 for our FIN once that is acknowledged.
    pub bytes_acked: u64,
    /// In-order bytes received; counts 1 for the peer's FIN.
    pub bytes_received: u64,
    /// Time since payload last came in or went out.
    pub quiet: Duration,
}

/// Reads `TCP_INFO`.
pub fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut raw = RawTcpInfo::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<RawTcpInfo>()).unwrap_or_default();
    // SAFETY: `raw` is writable for `len` bytes, any of which the kernel may set.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut raw).cast(),
            &raw mut len,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpInfo {
        established: raw.state == TCP_ESTABLISHED,
        bytes_acked: raw.bytes_acked,
        bytes_received: raw.bytes_received,
        quiet: Duration::from_millis(raw.last_data_sent.min(raw.last_data_recv).into()),
    })
}

/// Bytes in the send queue that the peer has not acknowledged (`SIOCOUTQ`).
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (TIOCOUTQ) writes one int.
    let status = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// Bytes ever written to the socket, ours and the kernel's: acknowledged plus queued, less what
/// TCP counts for a SYN.
///
/// Read in this order, an acknowledgement in between makes the sum too small, never too large:
/// whoever waits for it to reach a number waits a little longer.
pub fn bytes_written(socket: impl AsFd, opened_by_us: bool) -> io::Result<u64> {
    let acked = tcp_info(&socket)?.bytes_acked;
    let queued = unacknowledged(&socket)?;
    Ok((acked + queued).saturating_sub(u64::from(opened_by_us)))
}

/// `SOCK_RCVBUF_LOCK` of the kernel's `net/sock.h`.
const LOCK_RECEIVE: libc::c_int = 2;

/// Bounds the memory of what the socket has received and nobody has read, beyond which the window
/// closes, to `bytes`; otherwise the kernel lets it grow to the last number of
/// `net.ipv4.tcp_rmem`.
///
/// Best effort: it takes `CAP_NET_ADMIN`, since without it `net.core.rmem_max` would make a good
/// deal less of it.
pub fn bound_receive_buffer(socket: impl AsFd, bytes: usize) {
    let set = |level, option, value| set_int(&socket, level, option, value);
    // The kernel doubles it (`sock_setsockopt`), and fixes the buffer from then on.
    let _ = set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, int(bytes / 2))
        // With a fixed receive buffer it no longer raises the bound of the window, which it had set
        // for the buffer that a new connection has.
        .and_then(|()| set(libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, int(bytes)));
}

/// Makes room for `bytes` of memory on their way out, from where the kernel may go on widening it by
/// need. Best effort, as [`bound_receive_buffer`], which has to come first.
pub fn widen_send_buffer(socket: impl AsFd, bytes: usize) {
    let set = |option, value| set_int(&socket, libc::SOL_SOCKET, option, value);
    let narrow = SockRef::from(&socket)
        .send_buffer_size()
        .is_ok_and(|now| now < bytes);
    if narrow {
        // Doubled and fixed as above; but the send buffer need not stay so.
        let _ = set(libc::SO_SNDBUFFORCE, int(bytes / 2))
            .and_then(|()| set(libc::SO_BUF_LOCK, LOCK_RECEIVE));
    }
}

/// Bytes as an option's value.
fn int(bytes: usize) -> libc::c_int {
    libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX)
}

fn set_int(
    socket: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option value is one int that lives across the call.
    let status = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default(),
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a BPF program of the type `socket` the filter of what the socket receives, in place of any
/// other.
pub fn attach_filter(socket: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let program = program.as_fd().as_raw_fd();
    set_int(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program)
}

/// Lets the socket take bytes as long as its send buffer has room (`tcp_stream_memory_free`), also
/// where `net.ipv4.tcp_notsent_lowat` would stop it earlier.
///
/// # Errors
/// The peer is gone.
pub fn fill_whole_send_buffer(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_tcp_notsent_lowat(u32::MAX)
}

/// Lets a socket that is bound to an address alone have its port chosen when it connects, so that
/// connections to different targets can share one (`IP_BIND_ADDRESS_NO_PORT`).
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Sends what `MSG_MORE` has held back (`__tcp_sock_set_nodelay`), on a socket that does not delay anyway.
pub fn push(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_tcp_nodelay(true)
}

/// Makes the kernel offer everything in the receive queue to the socket's data-ready handler again
/// (`tcp_set_rcvlowat` calls `tcp_data_ready` under the socket's lock): for a spliced socket, to
/// the verdict program. Sets the low-water mark to its default of one byte.
pub fn kick(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1)
}

/// What owns its descriptor: it keeps the same one, open, for as long as it lives.
pub trait Owner: AsRawFd {}

impl Owner for OwnedFd {}
impl Owner for RingBuf<MapData> {}
#[cfg(feature = "program-log")]
impl<T> Owner for aya_log::EbpfLogger<T> {}

/// Lets Tokio say when a descriptor that is no socket is readable. Call within a runtime.
///
/// # Errors
/// The reactor does not take it.
pub fn when_readable<T: Owner>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: an `Owner` neither closes nor changes its descriptor while the `AsyncFd` owns it.
    unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn counters_of_a_loopback_pair_add_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[7; 1000]).unwrap();
        let mut buffer = [0; 1000];
        server.read_exact(&mut buffer).unwrap();
        server.write_all(&[8; 10]).unwrap();
        client.read_exact(&mut buffer[..10]).unwrap();

        assert_eq!(bytes_written(&client, true).unwrap(), 1000);
        assert_eq!(bytes_written(&server, false).unwrap(), 10);
        let info = tcp_info(&server).unwrap();
        assert!(info.established);
        assert_eq!(info.bytes_received, 1000);
        assert!(info.quiet < Duration::from_secs(5));

        drop(client);
        while tcp_info(&server).unwrap().established {
            std::thread::yield_now();
        }
        assert_eq!(tcp_info(&server).unwrap().bytes_received, 1001, "FIN");
        kick(&server).unwrap();
    }
}
