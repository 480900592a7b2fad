//! Listening sockets that the service manager has opened (`sd_listen_fds(3)`).

#![expect(unsafe_code, reason = "descriptors that somebody else has opened")]

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{FromRawFd as _, OwnedFd},
};

use socket2::{Protocol, SockRef, Type};

use super::listen::prepare;

/// A socket that listens, with its address.
#[derive(Debug)]
pub struct Inherited {
    /// Where it listens.
    pub address: SocketAddr,
    /// The socket.
    pub listener: TcpListener,
}

/// The sockets that were passed to this process; none without a service manager. To be called once.
///
/// # Errors
/// One is not what clients can be accepted from: not TCP, or not listening.
pub fn inherited() -> io::Result<Vec<Inherited>> {
    sd_notify::listen_fds()?
        .map(|descriptor| {
            // SAFETY: it was passed to this process (`LISTEN_PID`) to be its own, and nobody else takes it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            adopt(descriptor)
        })
        .collect()
}

fn adopt(descriptor: OwnedFd) -> io::Result<Inherited> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    let socket = SockRef::from(&descriptor);
    let address = socket.local_addr()?.as_socket();
    let address = address.ok_or_else(|| wrong("a passed socket is not of IPv4 or IPv6"))?;
    if socket.r#type()? != Type::STREAM || socket.protocol()? != Some(Protocol::TCP) {
        return Err(wrong("a passed socket is not of TCP"));
    }
    if !socket.is_listener()? {
        return Err(wrong("a passed socket does not listen; is it Accept=yes?"));
    }
    socket.set_nonblocking(true)?;
    prepare(&descriptor)?;
    Ok(Inherited {
        address,
        listener: descriptor.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_listen_over_tcp_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(adopt(listener.into()).unwrap().address, address);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(adopt(udp.into()).unwrap_err().to_string().contains("TCP"));
        let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(adopt(unix.into()).unwrap_err().to_string().contains("IPv4"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(
            adopt(stream.into())
                .unwrap_err()
                .to_string()
                .contains("listen")
        );
    }
}
