//! The origin's end: a listener in a namespace whose connections the test holds itself.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{client::with_deadlines, deadline::PATIENCE, netns::Netns};

/// A listening origin.
///
/// The kernel completes handshakes before anybody accepts, so one thread can ask for a tunnel and accept its other
/// end afterwards.
#[derive(Debug)]
pub struct Origin {
    listener: TcpListener,
    address: SocketAddr,
}

/// How an origin listens.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// Port, or 0 for any.
    pub port: u16,
    /// Connections that may wait to be accepted (the kernel takes one more).
    pub backlog: i32,
    /// Size of the receive buffer of accepted connections, when it is not the kernel's choice.
    pub receive_buffer: Option<usize>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            port: 0,
            backlog: 512,
            receive_buffer: None,
        }
    }
}

impl Origin {
    /// Listens on a free port of `address`.
    ///
    /// # Panics
    ///
    /// When it cannot.
    pub fn bind(netns: &Netns, address: IpAddr) -> Self {
        Self::bind_with(netns, address, Listen::default())
    }

    /// Listens as `listen` says.
    ///
    /// # Panics
    ///
    /// When it cannot.
    pub fn bind_with(netns: &Netns, address: IpAddr, listen: Listen) -> Self {
        let address = SocketAddr::new(address, listen.port);
        let socket =
            netns.run_in(|| Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap());
        socket.set_reuse_address(true).unwrap();
        if let Some(bytes) = listen.receive_buffer {
            // Accepted connections inherit it.
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket.bind(&address.into()).expect("the address is free");
        socket.listen(listen.backlog).unwrap();
        // accept(2) keeps to it as well.
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// An origin whose queue of connections is full, so that the kernel drops further SYNs; and what fills the queue,
    /// each of which [`Self::accept`] takes out.
    ///
    /// # Panics
    ///
    /// When the queue cannot be filled.
    pub fn with_full_queue(netns: &Netns, address: IpAddr) -> (Self, Vec<TcpStream>) {
        let listen = Listen {
            backlog: 0,
            ..Listen::default()
        };
        let origin = Self::bind_with(netns, address, listen);
        let address = origin.address();
        let fillers = netns.run_in(|| {
            (0..4)
                .map_while(|_| {
                    TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
                })
                .collect::<Vec<_>>()
        });
        assert!(
            !fillers.is_empty() && fillers.len() < 4,
            "{} connections fill the queue",
            fillers.len()
        );
        (origin, fillers)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as the target of a CONNECT.
    pub fn target(&self) -> String {
        self.address.to_string()
    }

    /// The next connection.
    ///
    /// # Panics
    ///
    /// When none comes in time.
    pub fn accept(&self) -> TcpStream {
        let (stream, _) = self.listener.accept().expect("a connection from the proxy");
        with_deadlines(stream)
    }

    /// The next connection, if one comes within `patience`.
    ///
    /// # Panics
    ///
    /// When the listener fails.
    pub fn accept_within(&self, patience: Duration) -> Option<TcpStream> {
        SockRef::from(&self.listener)
            .set_read_timeout(Some(patience))
            .unwrap();
        let accepted = self.listener.accept();
        SockRef::from(&self.listener)
            .set_read_timeout(Some(PATIENCE))
            .unwrap();
        accepted.ok().map(|(stream, _)| with_deadlines(stream))
    }

    /// True when a connection comes within `patience`.
    ///
    /// # Panics
    ///
    /// When the listener fails.
    pub fn is_called_within(&self, patience: Duration) -> bool {
        self.accept_within(patience).is_some()
    }
}
