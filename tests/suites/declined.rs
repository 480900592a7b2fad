//! Pairs that the kernel engine cannot take: `copy` carries them, and the outcome says why.
//!
//! The engines are called as the daemon calls them, in a namespace with nothing but loopback.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use proxy_tests::{netns::Netns, require_root_or_skip, require_sockmap_or_skip};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use underpass::relay::{
    Ending, EngineKind, Leg, Limits, Order, Outcome, Pair, Relay, Traffic, selection::EngineChoice,
    sockmap::Sockmap,
};

/// Both ends of a connection over loopback.
fn connection(protocol: Protocol) -> (TcpStream, TcpStream) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).unwrap();
    let listener = socket();
    let any = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    listener.bind(&any.into()).unwrap();
    listener.listen(1).unwrap();
    let connected = socket();
    connected.connect(&listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let register = |socket: Socket| {
        socket.set_nonblocking(true).unwrap();
        TcpStream::from_std(socket.into()).unwrap()
    };
    (register(connected), register(accepted))
}

/// Another descriptor of the same socket.
fn duplicate(stream: &TcpStream) -> TcpStream {
    let socket = SockRef::from(stream).try_clone().unwrap();
    TcpStream::from_std(socket.into()).unwrap()
}

/// A tunnel that runs until it is cancelled.
struct Running {
    cancel: CancellationToken,
    task: JoinHandle<Outcome>,
}

/// A socket of which we say that it has carried nothing yet.
fn fresh(stream: TcpStream) -> Leg {
    Leg {
        stream,
        tls: None,
        owed: Vec::new(),
        consumed: 0,
        written: 0,
    }
}

impl Running {
    fn start(relay: &Relay, client: TcpStream, upstream: TcpStream) -> Self {
        let pair = Pair::new(fresh(client), fresh(upstream));
        let limits = Limits {
            idle: Duration::from_secs(30),
            half_closed: Duration::from_secs(30),
        };
        let cancel = CancellationToken::new();
        let (relay, token) = (relay.clone(), cancel.clone());
        let task = tokio::spawn(async move {
            let traffic = Arc::new(Traffic::new(std::time::Instant::now()));
            let order = Order {
                engine: EngineChoice::Sockmap,
                limits,
                shaper: None,
                traffic: &traffic,
                cancel: &token,
            };
            relay.run(pair, order).await
        });
        Self { cancel, task }
    }

    async fn cancel(self) -> Outcome {
        self.cancel.cancel();
        self.task.await.unwrap()
    }
}

/// Bytes pass from one end to the other.
async fn talk(from: &mut TcpStream, to: &mut TcpStream) {
    let message = *b"through the tunnel";
    from.write_all(&message).await.unwrap();
    let mut arrived = [0; 18];
    to.read_exact(&mut arrived).await.unwrap();
    assert_eq!(arrived, message);
}

fn expect_declined(outcome: &Outcome, why: &str) {
    assert_eq!(outcome.engine, EngineKind::Copy, "{outcome:?}");
    assert_eq!(outcome.declined.as_deref(), Some(why));
}

/// Runs a test where sockets of its own are all there is.
fn in_namespace(test: impl Future<Output = ()> + Send) {
    let netns = Netns::create("relay");
    proxy_tests::netns::run(netns.command("ip").args(["link", "set", "lo", "up"]));
    netns.run_in(|| {
        // One thread: only the one that has entered the namespace makes sockets there.
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test);
    });
}

#[test]
fn a_tunnel_for_which_the_map_has_no_room_is_copied() {
    require_root_or_skip!();
    require_sockmap_or_skip!();
    in_namespace(async {
        let relay = Relay::new().with_sockmap(Sockmap::load(1).unwrap());
        let (mut client, a) = connection(Protocol::TCP);
        let (mut origin, b) = connection(Protocol::TCP);
        let first = Running::start(&relay, a, b);
        talk(&mut client, &mut origin).await;

        let (mut second_client, a) = connection(Protocol::TCP);
        let (mut second_origin, b) = connection(Protocol::TCP);
        let second = Running::start(&relay, a, b);
        talk(&mut second_client, &mut second_origin).await;
        talk(&mut second_origin, &mut second_client).await;
        expect_declined(
            &second.cancel().await,
            "sockmap: every splice slot is taken",
        );

        // The room of a tunnel that has ended is there for the next one.
        let first = first.cancel().await;
        assert_eq!((first.engine, first.declined), (EngineKind::Sockmap, None));
        let (mut client, a) = connection(Protocol::TCP);
        let (mut origin, b) = connection(Protocol::TCP);
        let third = Running::start(&relay, a, b);
        talk(&mut client, &mut origin).await;
        let third = third.cancel().await;
        assert_eq!((third.engine, third.declined), (EngineKind::Sockmap, None));
    });
}

#[test]
fn a_socket_that_another_program_has_is_copied() {
    require_root_or_skip!();
    require_sockmap_or_skip!();
    in_namespace(async {
        // What an agent of somebody else would do: a sockmap of its own with a program of its own.
        let agent = Relay::new().with_sockmap(Sockmap::load(1).unwrap());
        let relay = Relay::new().with_sockmap(Sockmap::load(1).unwrap());
        for taken in ["upstream", "client"] {
            let (mut client, a) = connection(Protocol::TCP);
            let (mut origin, b) = connection(Protocol::TCP);
            let (_elsewhere, c) = connection(Protocol::TCP);
            let theirs = match taken {
                "upstream" => duplicate(&b),
                _ => duplicate(&a),
            };
            let theirs = Running::start(&agent, theirs, c);
            tokio::time::sleep(Duration::from_millis(50)).await;

            let ours = Running::start(&relay, a, b);
            tokio::time::sleep(Duration::from_millis(50)).await;
            let why = format!(
                "sockmap: {taken} socket: another BPF program has the socket in its sockmap"
            );
            if taken == "client" {
                // Their program lets nothing of the client's through to us.
                talk(&mut origin, &mut client).await;
            }
            expect_declined(&ours.cancel().await, &why);
            theirs.cancel().await;
        }
    });
}

#[test]
fn a_multipath_connection_is_copied() {
    require_root_or_skip!();
    require_sockmap_or_skip!();
    if Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_err() {
        proxy_tests::privilege::skip("this kernel has no MPTCP");
        return;
    }
    in_namespace(async {
        let relay = Relay::new().with_sockmap(Sockmap::load(1).unwrap());
        let (mut client, a) = connection(Protocol::MPTCP);
        let (mut origin, b) = connection(Protocol::TCP);
        let tunnel = Running::start(&relay, a, b);
        talk(&mut client, &mut origin).await;
        talk(&mut origin, &mut client).await;
        expect_declined(
            &tunnel.cancel().await,
            "sockmap: client socket: not an established plain TCP connection (closing, or MPTCP)",
        );
    });
}

/// A byte too many is a byte that somebody duplicated.
#[test]
fn a_tunnel_whose_counters_contradict_each_other_is_reset() {
    require_root_or_skip!();
    require_sockmap_or_skip!();
    in_namespace(async {
        let relay = Relay::new().with_sockmap(Sockmap::load(1).unwrap());
        let (mut client, mut a) = connection(Protocol::TCP);
        let (mut origin, b) = connection(Protocol::TCP);
        // The engine is not told of this byte.
        a.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        let running = Running::start(&relay, a, b);
        for _ in 0..50 {
            talk(&mut client, &mut origin).await;
            talk(&mut origin, &mut client).await;
        }
        assert_eq!(relay.tally().integrity_alarms(), 0);
        origin.shutdown().await.unwrap();
        for end in [&mut client, &mut origin] {
            let error = end.read(&mut [0]).await.expect_err("a reset, no clean end");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        let outcome = running.task.await.unwrap();
        assert!(
            matches!(&outcome.ending, Ending::Integrity(what) if what.contains("1 bytes too many")),
            "{outcome:?}"
        );
        assert_eq!(relay.tally().integrity_alarms(), 1);
    });
}
