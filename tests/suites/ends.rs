//! How tunnels end when nobody closes them: time limits, a stopping daemon, an origin that dies, a client that leaves.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{
    daemon::Setup,
    deadline::{PATIENCE, uninterrupted, wait_for},
    lab::{Family, Lab},
    payload::{Payload, Step},
    require_root_or_skip, require_sockmap_or_skip,
};

use rustix::process::Signal;

use crate::scene::{Direction, Engine, Scene, Tunnel, client, for_every_engine};

/// Idle tunnels end after a second.
const SHORT_IDLE: &str = "[timeouts]\nidle = \"1s\"\nhalf_closed = \"1m\"\n";

/// Idle tunnels end after three seconds.
const MEDIUM_IDLE: &str = "[timeouts]\nidle = \"3s\"\nhalf_closed = \"1m\"\n";

/// Half-closed tunnels end after a second, open ones only after a minute.
const SHORT_HALF_CLOSED: &str = "[timeouts]\nidle = \"1m\"\nhalf_closed = \"1s\"\n";

/// Reads until the connection ends, and says how.
fn ending(mut stream: &TcpStream) -> io::Result<u64> {
    io::copy(&mut stream, &mut io::sink())
}

/// The connection ends by a reset.
fn expect_reset(stream: &TcpStream) {
    let error = ending(stream).expect_err("a reset, no clean end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

/// Moves a few bytes each way.
fn talk(tunnel: &Tunnel) {
    for direction in [Direction::Up, Direction::Down] {
        let (sender, receiver) = tunnel.towards(direction);
        Payload::new(3).send(&mut &*sender, 500).unwrap();
        Payload::new(3).receive(&mut &*receiver, 500).unwrap();
    }
}

/// A limit of one second struck neither early nor much too late.
fn expect_one_second(start: Instant) {
    let elapsed = start.elapsed();
    assert!(
        elapsed > Duration::from_millis(900),
        "too early: {elapsed:?}"
    );
    assert!(elapsed < Duration::from_secs(6), "too late: {elapsed:?}");
}

fn an_idle_tunnel_is_reset_on_both_sides(scene: &Scene) {
    let tunnel = scene.tunnel();
    let start = Instant::now();
    talk(&tunnel);
    expect_reset(&tunnel.client);
    expect_reset(&tunnel.origin);
    expect_one_second(start);
    let record = scene.record();
    assert_eq!(
        (record.end.as_str(), record.up, record.down),
        ("idle-timeout", 500, 500),
        "{record:?}"
    );
}

fn a_tunnel_that_never_said_anything_is_reset(scene: &Scene) {
    let start = Instant::now();
    let tunnel = scene.tunnel();
    expect_reset(&tunnel.client);
    expect_reset(&tunnel.origin);
    expect_one_second(start);
    assert_eq!(scene.record().end, "idle-timeout");
}

/// Bytes in either direction alone keep the whole tunnel alive.
fn activity_keeps_a_tunnel(scene: &Scene) {
    for direction in [Direction::Up, Direction::Down] {
        let tunnel = scene.tunnel();
        let (mut sender, mut receiver) = tunnel.towards(direction);
        for round in 0..5 {
            thread::sleep(Duration::from_secs(1));
            sender.write_all(&[round]).unwrap();
            let mut byte = [0];
            receiver
                .read_exact(&mut byte)
                .unwrap_or_else(|error| panic!("{direction:?} {round}: {error}"));
            assert_eq!(byte, [round]);
        }
        tunnel.client.shutdown(Shutdown::Write).unwrap();
        tunnel.origin.shutdown(Shutdown::Write).unwrap();
        ending(&tunnel.client).unwrap();
        ending(&tunnel.origin).unwrap();
    }
}

/// Data on its way to a reader that pauses is no idleness of the tunnel.
fn a_transfer_longer_than_the_limit_is_not_cut(scene: &Scene) {
    let Tunnel { client, origin } = &scene.tunnel();
    let len = 30 << 20;
    thread::scope(|scope| {
        scope.spawn(|| {
            Payload::new(4).send(&mut &*origin, len).unwrap();
            origin.shutdown(Shutdown::Write).unwrap();
        });
        let slow = |_| Step::after(Duration::from_millis(10), 128 * 1024);
        Payload::new(4)
            .receive_range(&mut &*client, 0, len, slow)
            .unwrap();
    });
    client.shutdown(Shutdown::Write).unwrap();
}

for_every_engine!(
    config = super::SHORT_IDLE;
    an_idle_tunnel_is_reset_on_both_sides,
    a_tunnel_that_never_said_anything_is_reset,
    a_transfer_longer_than_the_limit_is_not_cut,
);
for_every_engine!(
    config = super::MEDIUM_IDLE;
    activity_keeps_a_tunnel,
);

/// One end has said goodbye and the other says nothing any more.
fn a_half_closed_tunnel_ends_after_its_own_limit(scene: &Scene) {
    for direction in [Direction::Up, Direction::Down] {
        let tunnel = scene.tunnel();
        talk(&tunnel);
        let (closer, other) = tunnel.towards(direction);
        let start = Instant::now();
        closer.shutdown(Shutdown::Write).unwrap();
        // At once: with the limit comes a reset.
        assert_eq!(ending(other).unwrap(), 0, "the half-close is relayed");
        expect_reset(closer);
        expect_one_second(start);
        // The other end has read its clean end already; what it learns now is that nobody listens.
        let error = Payload::new(5).send_range(&mut &*other, 0, 1 << 30, |_| {
            Step::after(Duration::from_millis(1), 1000)
        });
        error.expect_err("the other side is gone as well");
    }
    let records = scene.daemon().wait_tunnel_records(2);
    assert!(
        records
            .iter()
            .all(|record| record.end == "half-closed-timeout"),
        "{records:#?}"
    );
}

/// The other direction lives on for as long as it has something to say.
fn a_half_closed_tunnel_that_talks_is_not_cut(scene: &Scene) {
    for direction in [Direction::Up, Direction::Down] {
        let tunnel = scene.tunnel();
        talk(&tunnel);
        let (mut closer, mut other) = tunnel.towards(direction);
        closer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(ending(other).unwrap(), 0);
        for round in 0..10 {
            thread::sleep(Duration::from_millis(300));
            other.write_all(&[round]).unwrap();
        }
        other.shutdown(Shutdown::Write).unwrap();
        let mut said = Vec::new();
        closer.read_to_end(&mut said).unwrap();
        assert_eq!(said, (0..10).collect::<Vec<_>>());
    }
    let records = scene.daemon().wait_tunnel_records(2);
    assert!(
        records.iter().all(|record| record.end == "closed"),
        "{records:#?}"
    );
}

/// Bytes behind which the sender has said goodbye, and which a slow receiver takes longer for than the limit.
fn a_slow_receiver_of_the_last_bytes_is_not_cut(scene: &Scene) {
    // Little fits at the receiver, so the rest waits in the proxy.
    let client = scene.client().receive_buffer(32 * 1024);
    let Tunnel { client, origin } = scene.tunnel_between(client, &scene.origin(), b"");
    let len = 1 << 20;
    Payload::new(4).send(&mut &origin, len).unwrap();
    origin.shutdown(Shutdown::Write).unwrap();
    let slow = |_| Step::after(Duration::from_millis(50), 16 * 1024);
    Payload::new(4)
        .receive_range(&mut &client, 0, len, slow)
        .unwrap();
    assert_eq!(ending(&client).unwrap(), 0);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(ending(&origin).unwrap(), 0);
    assert_eq!(scene.record().end, "closed");
}

/// The limit is for open tunnels only.
fn an_open_tunnel_outlives_the_half_closed_limit(scene: &Scene) {
    let tunnel = scene.tunnel();
    thread::sleep(Duration::from_millis(2500));
    talk(&tunnel);
}

for_every_engine!(
    config = super::SHORT_HALF_CLOSED;
    a_half_closed_tunnel_ends_after_its_own_limit,
    a_half_closed_tunnel_that_talks_is_not_cut,
    a_slow_receiver_of_the_last_bytes_is_not_cut,
    an_open_tunnel_outlives_the_half_closed_limit,
);

/// A process that is killed with unread data in its socket leaves a reset, and the client has to learn of it.
fn an_origin_that_dies_resets_the_client(scene: &Scene) {
    let tunnel = scene.tunnel();
    talk(&tunnel);
    let Tunnel { client, origin } = tunnel;
    Payload::new(6).send(&mut &client, 5000).unwrap();
    // Wait for the data without taking it.
    let mut byte = [0];
    assert_eq!(uninterrupted(|| origin.peek(&mut byte)).unwrap(), 1);
    drop(origin);
    expect_reset(&client);
    assert_eq!(scene.record().end, "upstream-reset");
}

fn a_clean_end_is_a_clean_end(scene: &Scene) {
    let tunnel = scene.tunnel();
    talk(&tunnel);
    let Tunnel { client, origin } = tunnel;
    drop(origin);
    assert_eq!(ending(&client).unwrap(), 0);
    drop(client);
    assert_eq!(scene.record().end, "closed");
}

for_every_engine!(
    an_origin_that_dies_resets_the_client,
    a_clean_end_is_a_clean_end
);

/// A download that is cut off must not look complete, whatever happens to the proxy.
fn a_killed_proxy_resets_both_sides(scene: &Scene) {
    let tunnel = scene.tunnel_unrecorded();
    talk(&tunnel);
    scene.daemon().signal(Signal::KILL);
    expect_reset(&tunnel.client);
    expect_reset(&tunnel.origin);
}

for_every_engine!(a_killed_proxy_resets_both_sides);

/// SIGTERM lets live tunnels go on for a while, then resets them, writes their lines, and ends the daemon with success.
fn sigterm(engine: Engine) {
    require_root_or_skip!();
    if engine == Engine::Sockmap {
        require_sockmap_or_skip!();
    }
    let lab = Lab::new();
    let time = Duration::from_secs(2);
    let config = format!("[timeouts]\ndrain = \"{}s\"\n", time.as_secs());
    let mut daemon = Setup::open(&lab)
        .option("--engine", engine.name())
        .config(&lab, &config)
        .start();
    let origin = proxy_tests::origin::Origin::bind(&lab.origin, Family::V4.origin());
    let client = client(&lab);
    let tunnels = (0..5)
        .map(|_| {
            let client = client.tunnel(&origin.target());
            Tunnel {
                client,
                origin: origin.accept(),
            }
        })
        .collect::<Vec<_>>();
    tunnels.iter().for_each(talk);
    let silent = client.open();

    let begin = Instant::now();
    daemon.signal(Signal::TERM);
    wait_for("no more clients", PATIENCE, || {
        let refused = lab.client.run_in(|| TcpStream::connect(Family::V4.proxy()));
        refused.is_err().then_some(())
    });
    tunnels.iter().for_each(talk);
    let status = daemon.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(begin.elapsed() >= time, "they had {:?}", begin.elapsed());
    daemon.wait_said("the time to drain is over", 1);
    for tunnel in &tunnels {
        expect_reset(&tunnel.client);
        expect_reset(&tunnel.origin);
    }
    assert!(
        ending(&silent).map_or(true, |bytes| bytes == 0),
        "nobody answers a request that was not made"
    );
    let records = daemon.tunnel_records();
    assert_eq!(records.len(), 5, "{records:#?}");
    for record in &records {
        assert_eq!(
            (record.end.as_str(), record.up, record.down),
            ("cancelled", 1000, 1000),
            "{record:?}"
        );
        assert_eq!(record.engine, engine.name());
    }
    let lines = daemon.access_lines();
    let tunnel_lines = lines
        .iter()
        .filter(|line| line.contains(" TCP_TUNNEL/200 1039 CONNECT "))
        .count();
    assert_eq!(tunnel_lines, 5, "{lines:#?}");
}

#[test]
fn sigterm_cancels_live_tunnels_of_the_copy_engine() {
    sigterm(Engine::Copy);
}

#[test]
fn sigterm_cancels_live_tunnels_of_the_splice_engine() {
    sigterm(Engine::Splice);
}

#[test]
fn sigterm_cancels_live_tunnels_of_the_sockmap_engine() {
    sigterm(Engine::Sockmap);
}

/// Tunnels that end by themselves end as ever, and the proxy with the last of them.
#[test]
fn sigterm_waits_for_the_last_tunnel() {
    require_root_or_skip!();
    let lab = Lab::new();
    let mut daemon = Setup::open(&lab).start();
    let origin = proxy_tests::origin::Origin::bind(&lab.origin, Family::V4.origin());
    let client = client(&lab).tunnel(&origin.target());
    let tunnel = Tunnel {
        client,
        origin: origin.accept(),
    };
    daemon.signal(Signal::TERM);
    daemon.wait_said("SIGTERM: draining", 1);
    talk(&tunnel);
    assert!(daemon.is_running());
    tunnel.client.shutdown(Shutdown::Write).unwrap();
    tunnel.origin.shutdown(Shutdown::Write).unwrap();
    let status = daemon.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    let records = daemon.tunnel_records();
    assert_eq!(records[0].end, "closed", "{records:?}");
}

/// Whoever is in a hurry says so twice, or by the other signals.
#[test]
fn a_second_signal_and_sigint_and_sigquit_wait_for_nobody() {
    require_root_or_skip!();
    let lab = Lab::new();
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut daemon = Setup::open(&lab).start();
        let origin = proxy_tests::origin::Origin::bind(&lab.origin, Family::V4.origin());
        let stream = client(&lab).tunnel(&origin.target());
        let _server = origin.accept();
        if signal == Signal::TERM {
            daemon.signal(signal);
            daemon.wait_said("SIGTERM: draining", 1);
        }
        let begin = Instant::now();
        let status = daemon.stop_with(signal);
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{signal:?}");
        expect_reset(&stream);
        let records = daemon.tunnel_records();
        assert_eq!(records[0].end, "cancelled", "{signal:?}: {records:?}");
    }
}

#[test]
fn a_client_that_leaves_before_its_request_is_complete_is_forgotten() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).start();
    let mut stream = client(&lab).open();
    stream.write_all(b"CONNECT example.org:443 HT").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(ending(&stream).unwrap(), 0, "no reply to half a request");
    drop(stream);
    let line = daemon.wait_access_line(|line| line.contains("NONE_NONE/000"));
    assert!(
        line.ends_with(
            " NONE_NONE/000 0 NONE error:transaction-end-before-headers - HIER_NONE/- -"
        ),
        "{line}"
    );
    assert!(daemon.tunnel_records().is_empty());
}
