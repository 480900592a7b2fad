//! The client's end: opens connections to the proxy and asks for tunnels.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
};

use socket2::SockRef;

use crate::{
    deadline::PATIENCE,
    netns::Netns,
    reply::{ESTABLISHED, Reply},
};

/// Gives every operation on the socket a deadline, so that no test can hang.
///
/// # Panics
///
/// When the socket is closed.
pub fn with_deadlines(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Closes with a reset instead of a clean end.
///
/// # Panics
///
/// When the socket is closed.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(stream);
}

/// The head of a well-formed request for a tunnel.
pub fn connect_head(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

/// A place from which connections to the proxy are made.
#[derive(Clone, Copy, Debug)]
pub struct Client<'lab> {
    netns: &'lab Netns,
    proxy: SocketAddr,
    receive_buffer: Option<usize>,
}

impl<'lab> Client<'lab> {
    /// A client in `netns` that uses the proxy at `proxy`.
    pub fn new(netns: &'lab Netns, proxy: SocketAddr) -> Self {
        Self {
            netns,
            proxy,
            receive_buffer: None,
        }
    }

    /// Connects with a receive buffer of this size.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// A connection to the proxy on which nothing was said.
    ///
    /// # Panics
    ///
    /// When the proxy does not accept.
    pub fn open(&self) -> TcpStream {
        let connect = || -> io::Result<TcpStream> {
            let domain = socket2::Domain::for_address(self.proxy);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            if let Some(bytes) = self.receive_buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            socket.connect_timeout(&self.proxy.into(), PATIENCE)?;
            Ok(socket.into())
        };
        with_deadlines(self.netns.run_in(connect).expect("the proxy accepts"))
    }

    /// A tunnel to `target`.
    ///
    /// # Panics
    ///
    /// When the proxy does not answer with exactly [`ESTABLISHED`].
    pub fn tunnel(&self, target: &str) -> TcpStream {
        self.tunnel_with_early_data(target, b"")
    }

    /// A tunnel to `target`, with the first bytes for it in the same segment as the request.
    ///
    /// # Panics
    ///
    /// When the proxy does not answer with exactly [`ESTABLISHED`].
    pub fn tunnel_with_early_data(&self, target: &str, early: &[u8]) -> TcpStream {
        let mut stream = self.open();
        let mut request = connect_head(target).into_bytes();
        request.extend_from_slice(early);
        stream.write_all(&request).unwrap();
        let reply = Reply::read_head(&mut stream).expect("the proxy answers");
        assert_eq!(
            String::from_utf8_lossy(&reply.head),
            String::from_utf8_lossy(ESTABLISHED),
            "reply to CONNECT {target}"
        );
        stream
    }

    /// Sends `request` as it is and reads until the proxy closes.
    ///
    /// # Panics
    ///
    /// When the proxy does not answer or does not close; `name` says which request it was.
    pub fn exchange(&self, name: &str, request: &[u8]) -> Reply {
        let mut stream = self.open();
        stream
            .write_all(request)
            .unwrap_or_else(|error| panic!("{name}: cannot send: {error}"));
        Reply::read_to_end(&mut stream)
            .unwrap_or_else(|error| panic!("{name}: no complete reply: {error}"))
    }

    /// Asks for a tunnel that has to be refused.
    ///
    /// # Panics
    ///
    /// When the proxy does not answer or does not close.
    pub fn refusal(&self, target: &str) -> Reply {
        self.exchange(target, connect_head(target).as_bytes())
    }
}
