//! The two ends of a connection: an origin that does what the first bytes ask for, and a client that asks.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{client::connect_head, lab::Lab, netns::Netns};
use rustix::{
    fs::{MemfdFlags, memfd_create, sendfile},
    net::{RecvFlags, recv},
};

use crate::subject::{Subject, Way};

/// Where the origin listens.
pub(crate) const ORIGIN: &str = "10.77.2.1:9443";
/// Bytes of a message.
pub(crate) const MESSAGE: usize = 64;
/// Bytes of a file that is sent again and again, and of a read.
const BLOCK: usize = 1 << 20;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the origin is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Send every message back.
    Echo,
    /// Send as fast as it goes, without copying, until the client has enough.
    Source,
    /// Take everything, without copying.
    Sink,
    /// Both at once.
    Both,
    /// Send `bytes` in bursts, so many of them a second, from a buffer.
    Paced { bytes: u64, burst: u64, rate: u64 },
    /// Send one message back, then keep the connection.
    Idle,
}

/// Length of an order as it is sent.
const ORDER: usize = 25;

impl Order {
    fn encode(self) -> [u8; ORDER] {
        let (code, numbers) = match self {
            Self::Echo => (0, [0; 3]),
            Self::Source => (1, [0; 3]),
            Self::Sink => (2, [0; 3]),
            Self::Both => (3, [0; 3]),
            Self::Paced { bytes, burst, rate } => (4, [bytes, burst, rate]),
            Self::Idle => (5, [0; 3]),
        };
        let mut encoded = [code; ORDER];
        for (place, number) in encoded[1..].chunks_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        encoded
    }

    fn decode(encoded: [u8; ORDER]) -> Self {
        let number = |place: usize| {
            let bytes = encoded[1 + 8 * place..9 + 8 * place].try_into();
            u64::from_be_bytes(bytes.unwrap_or_default())
        };
        match encoded[0] {
            1 => Self::Source,
            2 => Self::Sink,
            3 => Self::Both,
            4 => Self::Paced {
                bytes: number(0),
                burst: number(1),
                rate: number(2),
            },
            5 => Self::Idle,
            _ => Self::Echo,
        }
    }
}

/// The origin: a thread for each connection that has something to do.
pub(crate) struct Origin {
    /// Bytes that arrived at it without being copied.
    pub(crate) received: Arc<AtomicU64>,
    idle: Arc<Mutex<Vec<TcpStream>>>,
}

impl Origin {
    /// Starts it in its namespace.
    pub(crate) fn start(lab: &Lab) -> Self {
        let listener = lab.origin.run_in(|| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let address: SocketAddr = ORIGIN.parse().unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(4096).unwrap();
            TcpListener::from(socket)
        });
        let origin = Self {
            received: Arc::default(),
            idle: Arc::default(),
        };
        let (received, idle) = (Arc::clone(&origin.received), Arc::clone(&origin.idle));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (received, idle) = (Arc::clone(&received), Arc::clone(&idle));
                thread::spawn(move || {
                    // A client that has had enough just closes.
                    let _ = serve(stream, &received, &idle);
                });
            }
        });
        origin
    }

    /// Closes the connections that it was asked to keep.
    pub(crate) fn drop_idle(&self) {
        self.idle.lock().unwrap().clear();
    }
}

fn serve(
    mut stream: TcpStream,
    received: &AtomicU64,
    idle: &Mutex<Vec<TcpStream>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut order = [0; ORDER];
    stream.read_exact(&mut order)?;
    match Order::decode(order) {
        Order::Echo => {
            let mut message = [0; MESSAGE];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        }
        Order::Source => pump(&stream),
        Order::Sink => drain(&stream, received),
        Order::Both => {
            let sink = stream.try_clone()?;
            thread::scope(|scope| {
                scope.spawn(move || drain(&sink, received));
                pump(&stream)
            })
        }
        Order::Paced { bytes, burst, rate } => {
            paced(&mut stream, bytes, burst, rate)?;
            stream.shutdown(Shutdown::Write)?;
            stream.read(&mut [0]).map(drop)
        }
        Order::Idle => {
            let mut message = [0; MESSAGE];
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
            idle.lock().unwrap().push(stream);
            Ok(())
        }
    }
}

/// Sends without copying, until the other end closes.
pub(crate) fn pump(stream: &TcpStream) -> io::Result<()> {
    let file = File::from(memfd_create("block", MemfdFlags::CLOEXEC)?);
    file.set_len(BLOCK as u64)?;
    loop {
        sendfile(stream, &file, Some(&mut 0), BLOCK)?;
    }
}

/// Takes without copying (`MSG_TRUNC`), until the other end closes.
pub(crate) fn drain(stream: &TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut place = vec![0; BLOCK];
    loop {
        let (_, len) = recv(stream, place.as_mut_slice(), RecvFlags::TRUNC)?;
        if len == 0 {
            return Ok(());
        }
        received.fetch_add(len as u64, Relaxed);
    }
}

fn paced(stream: &mut TcpStream, bytes: u64, burst: u64, rate: u64) -> io::Result<()> {
    let buffer = vec![7; usize::try_from(burst).unwrap_or(BLOCK)];
    let start = Instant::now();
    let mut sent = 0;
    while sent < bytes {
        // Not earlier than its time.
        let due = Duration::from_secs_f64(sent as f64 / rate as f64);
        thread::sleep(due.saturating_sub(start.elapsed()));
        stream.write_all(&buffer)?;
        sent += burst;
    }
    Ok(())
}

/// Opens a connection to the origin by way of the subject, from a thread that is in the client's namespace.
pub(crate) fn connect(subject: &Subject, order: Order) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&subject.address(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    if subject.way() == Way::Connect {
        stream.write_all(connect_head(ORIGIN).as_bytes())?;
        let mut reply = Vec::new();
        while !reply.ends_with(b"\r\n\r\n") {
            let mut part = [0; 512];
            match stream.read(&mut part)? {
                0 => return Err(io::Error::other("the proxy closed instead of replying")),
                len => reply.extend_from_slice(&part[..len]),
            }
        }
        if !reply.starts_with(b"HTTP/1.1 200") && !reply.starts_with(b"HTTP/1.0 200") {
            let line = String::from_utf8_lossy(&reply)
                .lines()
                .next()
                .map(str::to_owned);
            return Err(io::Error::other(line.unwrap_or_default()));
        }
    }
    stream.write_all(&order.encode())?;
    Ok(stream)
}

/// Sends a message and waits for it to come back.
pub(crate) fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
    let mut message = [9; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}

/// Threads in the client's namespace, one for each number up to `count`; their results.
pub(crate) fn clients<T: Send>(
    netns: &Netns,
    count: usize,
    work: impl Fn(usize) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn(move || {
                    netns.enter();
                    work(number)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
        });
        joined.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_arrives_as_it_was_given() {
        let order = Order::Paced {
            bytes: 1 << 40,
            burst: 3,
            rate: u64::MAX,
        };
        let decoded = Order::decode(order.encode());
        assert_eq!(format!("{decoded:?}"), format!("{order:?}"));
        assert!(matches!(Order::decode(Order::Idle.encode()), Order::Idle));
    }
}
