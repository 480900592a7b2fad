//! Tunnels through a parent proxy: by hand, so that its every word is known, and Debian's Squid, over TCP and TLS.

mod tls;

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{
    daemon::Daemon,
    deadline::{PATIENCE, uninterrupted, wait_for},
    lab::{Family, Lab},
    ordeal::Ordeal,
    origin::{Listen, Origin},
    payload::{Payload, Random},
    peer::Peer,
    require_root_or_skip, require_tool_or_skip,
};

use crate::scene::{Scene, Tunnel, client, configured, for_every_engine, origin_on};

/// The parent of the tests that are played for every engine.
const PARENT: &str = r#"
[parent.up]
url = "http://10.77.2.1:3999"
login = "anna:secret"
check = "1h"
[[route]]
via = ["up"]
"#;

for_every_engine!(
    config = super::PARENT;
    bytes_behind_the_answer_belong_to_the_tunnel,
    ordeals_through_a_parent,
);

/// A listener in the origin's place that speaks for a parent.
fn parent_by_hand(lab: &Lab, port: u16) -> Origin {
    let listen = Listen {
        port,
        ..Listen::default()
    };
    Origin::bind_with(&lab.origin, Family::V4.origin(), listen)
}

/// Reads the request of the proxy, and answers in one segment.
fn answer(parent: &Origin, answer: &[u8]) -> (TcpStream, String) {
    let mut stream = parent.accept();
    let request = read_head(&mut stream);
    stream.write_all(answer).unwrap();
    (stream, request)
}

/// A head, byte by byte.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(
            uninterrupted(|| stream.read(&mut byte)).unwrap(),
            1,
            "{head:?}"
        );
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

/// A tunnel through the parent to a name that nobody here knows.
fn tunnel(scene: &Scene, early: &[u8], behind: &[u8]) -> Tunnel {
    let parent = parent_by_hand(scene.lab(), 3999);
    let reply = [b"HTTP/1.1 200 Fine\r\nVia: x\r\n\r\n", behind].concat();
    let (client, (origin, request)) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let client = scene.client();
            scene.counted(|| client.tunnel_with_early_data("far.test:443", early))
        });
        let answered = answer(&parent, &reply);
        (client.join().unwrap(), answered)
    });
    let (begin, rest) = request.split_once("Via: 1.1 underpass-").unwrap();
    assert_eq!(
        begin,
        "CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n"
    );
    let (_, rest) = rest.split_once("\r\n").unwrap();
    assert_eq!(rest, "Proxy-Authorization: Basic YW5uYTpzZWNyZXQ=\r\n\r\n");
    Tunnel { client, origin }
}

fn bytes_behind_the_answer_belong_to_the_tunnel(scene: &Scene) {
    let (up, down) = (Payload::new(1), Payload::new(2));
    let (mut early, mut behind) = (Vec::new(), Vec::new());
    up.send(&mut early, 3000).unwrap();
    down.send(&mut behind, 5000).unwrap();
    let mut tunnel = tunnel(scene, &early, &behind);
    thread::scope(|scope| {
        scope.spawn(|| {
            let step = |_| proxy_tests::payload::Step::fast();
            up.send_range(&mut &tunnel.client, 3000, 200_000, step)
                .unwrap();
            tunnel.client.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            let step = |_| proxy_tests::payload::Step::fast();
            down.send_range(&mut &tunnel.origin, 5000, 300_000, step)
                .unwrap();
            tunnel.origin.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| up.receive(&mut &tunnel.origin, 200_000).unwrap());
        scope.spawn(|| down.receive(&mut &tunnel.client, 300_000).unwrap());
    });
    assert_eq!(tunnel.client.read(&mut [0]).unwrap(), 0);
    assert_eq!(tunnel.origin.read(&mut [0]).unwrap(), 0);
    let record = scene.daemon().wait_tunnel_records(1).remove(0);
    assert_eq!((record.up, record.down), (200_000, 300_000));
    let line = scene.daemon().wait_access_lines(1).remove(0);
    assert!(line.contains(" FIRSTUP_PARENT/10.77.2.1 "), "{line}");
}

fn ordeals_through_a_parent(scene: &Scene) {
    let mut random = Random::new(7);
    for _ in 0..3 {
        let ordeal = Ordeal::draw(&mut random, 300_000);
        let Tunnel { client, origin } = tunnel(scene, b"", b"");
        ordeal.play(client, origin).unwrap();
    }
    // An ordeal may end before an engine has begun.
    scene.may_decline(3);
}

/// A daemon with a parent at this URL, and something more.
fn behind(lab: &Lab, url: &str, more: &str) -> Daemon {
    configured(
        lab,
        &format!("[[route]]\nvia = [\"up\"]\n[parent.up]\nurl = \"{url}\"\ncheck = \"1h\"\n{more}"),
    )
}

#[test]
fn what_a_parent_says_no_with_is_ours_to_tell() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = behind(&lab, "http://10.77.2.1:3999", "");
    let parent = parent_by_hand(&lab, 3999);
    for (said, status, error, part) in [
        (
            "HTTP/1.1 403 No\r\n\r\nsecret",
            502,
            "http_request_denied",
            "received-status=403",
        ),
        (
            "HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n",
            502,
            "proxy_configuration_error",
            "login",
        ),
        (
            "HTTP/1.1 503 Later\r\n\r\n",
            502,
            "destination_unavailable",
            "received-status=503",
        ),
        (
            "HTTP/1.1 504 Late\r\n\r\n",
            504,
            "http_response_timeout",
            "received-status=504",
        ),
        (
            "SSH-2.0-OpenSSH\r\n\r\n",
            502,
            "http_protocol_error",
            "not HTTP",
        ),
    ] {
        let reply = thread::scope(|scope| {
            let reply = scope.spawn(|| client(&lab).refusal("far.test:443"));
            drop(answer(&parent, said.as_bytes()));
            reply.join().unwrap()
        });
        reply.check_refusal(status, error).unwrap();
        let field = reply.header("proxy-status").unwrap();
        assert!(field.contains(part), "{field}");
        assert!(field.contains("next-hop=\"up\""), "{field}");
        assert!(reply.header("proxy-authenticate").is_none());
    }
    // Nothing at all.
    let reply = thread::scope(|scope| {
        let reply = scope.spawn(|| client(&lab).refusal("far.test:443"));
        let mut stream = parent.accept();
        read_head(&mut stream);
        stream.shutdown(Shutdown::Both).unwrap();
        reply.join().unwrap()
    });
    reply.check_refusal(502, "connection_terminated").unwrap();
    drop(parent);
    client(&lab)
        .refusal("far.test:443")
        .check_refusal(502, "connection_refused")
        .unwrap();
    for line in daemon.wait_access_lines(7) {
        assert!(line.contains(" FIRSTUP_PARENT/10.77.2.1 "), "{line}");
        assert!(line.contains(" TCP_TUNNEL/50"), "{line}");
    }
}

/// Neither a parent that hangs nor a client that leaves takes longer than it may.
#[test]
fn a_silent_parent_is_not_waited_for_longer_than_configured() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(
        &lab,
        "timeouts.connect = \"2s\"\n[[route]]\nvia = [\"up\"]\n[parent.up]\nurl = \"http://10.77.2.1:3999\"\ncheck = \"1h\"\n",
    );
    let parent = parent_by_hand(&lab, 3999);
    let begin = Instant::now();
    let reply = client(&lab).refusal("far.test:443");
    reply.check_refusal(504, "http_response_timeout").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(6));
    drop(parent.accept());
    let leaving = client(&lab).open();
    (&leaving)
        .write_all(b"CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n\r\n")
        .unwrap();
    let mut stream = parent.accept();
    read_head(&mut stream);
    proxy_tests::client::reset(leaving);
    let begin = Instant::now();
    assert_eq!(uninterrupted(|| stream.read(&mut [0])).unwrap_or(0), 0);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

/// The first one is dead, then comes back; then both are, and what may go straight does.
#[test]
fn the_next_way_is_taken_when_one_fails() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(
        &lab,
        r#"
        [parent.one]
        url = "http://10.77.2.1:3991"
        check = "1s"
        [parent.two]
        url = "http://10.77.2.1:3992"
        check = "1s"
        [[route]]
        host = [".strict.test"]
        via = ["one", "two"]
        [[route]]
        via = ["one", "two", "direct"]
        "#,
    );
    lab.proxy.set_hosts(&[("10.77.2.1", "open.test")]);
    let accepts = |parent: &Origin, target: &str| {
        thread::scope(|scope| {
            let tunnel = scope.spawn(|| client(&lab).tunnel(target));
            // Between them come the looks of the proxy, which hang up.
            loop {
                let mut stream = parent.accept();
                let mut byte = [0];
                if uninterrupted(|| stream.peek(&mut byte)).unwrap_or(0) == 1 {
                    read_head(&mut stream);
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                    break;
                }
            }
            drop(tunnel.join().unwrap());
        });
    };
    let two = parent_by_hand(&lab, 3992);
    accepts(&two, "a.strict.test:443");
    let one = parent_by_hand(&lab, 3991);
    daemon.wait_said("parent one (http://10.77.2.1:3991) is up again", 1);
    accepts(&one, "a.strict.test:443");
    drop((one, two));
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    client(&lab)
        .refusal("a.strict.test:443")
        .check_refusal(502, "connection_refused")
        .unwrap();
    drop(client(&lab).tunnel("open.test:443"));
    drop(origin.accept());
    let lines = daemon.wait_access_lines(4);
    assert!(lines[3].contains(" HIER_DIRECT/10.77.2.1 "), "{lines:#?}");
}

/// A refusal is the parent's decision: nobody gets around it by going straight.
#[test]
fn a_refusal_is_final() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "open.test")]);
    let _daemon = configured(
        &lab,
        "[parent.up]\nurl = \"http://10.77.2.1:3999\"\ncheck = \"1h\"\n[[route]]\nvia = [\"up\", \"direct\"]\n",
    );
    let parent = parent_by_hand(&lab, 3999);
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let reply = thread::scope(|scope| {
        let reply = scope.spawn(|| client(&lab).refusal("open.test:443"));
        drop(answer(&parent, b"HTTP/1.1 403 Forbidden\r\n\r\n"));
        reply.join().unwrap()
    });
    reply.check_refusal(502, "http_request_denied").unwrap();
    assert!(!origin.is_called_within(Duration::from_millis(100)));
}

/// What the rules say of addresses holds where they are known, and a name is the parent's to resolve otherwise.
#[test]
fn rules_hold_for_what_goes_through_a_parent() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy.set_hosts(&[
        ("10.77.2.1", "open.test"),
        ("192.168.9.9", "inner.test"),
        ("10.77.2.1", "known.test"),
        ("10.88.0.1", "shut.test"),
    ]);
    let daemon = configured(
        &lab,
        r#"
        [parent.name]
        url = "http://10.77.2.1:3991"
        [parent.address]
        url = "http://10.77.2.1:3992"
        names = "here"
        [[rule]]
        action = "deny"
        host = ["bad.test"]
        [[rule]]
        action = "deny"
        host = ["known.test", "shut.test"]
        destination = ["10.88.0.0/16"]
        [[route]]
        host = [".here.test", "open.test", "inner.test"]
        via = ["address"]
        [[route]]
        via = ["name"]
        "#,
    );
    let address = parent_by_hand(&lab, 3992);
    let request = thread::scope(|scope| {
        scope.spawn(|| drop(client(&lab).tunnel("open.test:443")));
        answer(&address, b"HTTP/1.1 200 OK\r\n\r\n").1
    });
    assert!(request.starts_with("CONNECT 10.77.2.1:443 "), "{request}");
    // A rule that asks for the address does not change who finds it in the end.
    let name = parent_by_hand(&lab, 3991);
    let request = thread::scope(|scope| {
        scope.spawn(|| drop(client(&lab).tunnel("known.test:443")));
        answer(&name, b"HTTP/1.1 200 OK\r\n\r\n").1
    });
    assert!(request.starts_with("CONNECT known.test:443 "), "{request}");
    drop((address, name));
    for (target, status, error) in [
        ("shut.test:443", 403, "http_request_denied"),
        ("bad.test:443", 403, "http_request_denied"),
        // Private, and not opened.
        ("192.168.9.9:443", 403, "destination_ip_prohibited"),
        ("inner.test:443", 403, "destination_ip_prohibited"),
        ("none.here.invalid:443", 502, "connection_refused"),
    ] {
        client(&lab)
            .refusal(target)
            .check_refusal(status, error)
            .unwrap_or_else(|error| panic!("{target}: {error}"));
    }
    drop(daemon);
}

/// Two proxies that are each other's parents.
#[test]
fn a_circle_of_parents_is_noticed() {
    require_root_or_skip!();
    let lab = Lab::new();
    let config = |port: u16, other: u16| {
        format!(
            "listen = [\"10.77.1.2:{port}\"]\nallow_client = [\"10.77.0.0/16\"]\n\
             [[route]]\nvia = [\"other\"]\n[parent.other]\nurl = \"http://10.77.1.2:{other}\"\ncheck = \"1h\"\n"
        )
    };
    let other = lab.scratch().write("other.toml", config(3129, 3128));
    let _other = proxy_tests::daemon::Setup::bare(&lab.proxy)
        .option("--config", other)
        .start();
    let daemon = proxy_tests::daemon::Setup::bare(&lab.proxy)
        .config(&lab, &config(3128, 3129))
        .start();
    client(&lab)
        .refusal("far.test:443")
        .check_refusal(502, "destination_unavailable")
        .unwrap();
    // Once around: the request, and the one that came back.
    let lines = daemon.wait_access_lines(2);
    assert!(
        lines.iter().any(|line| line.contains("/403 ")),
        "{lines:#?}"
    );
    assert_eq!(lines.len(), 2);
}

/// Debian's Squid as the parent, with and without a login.
#[test]
fn squid_is_a_parent() {
    require_root_or_skip!();
    require_tool_or_skip!("squid", "--version");
    let lab = Lab::new();
    lab.origin.set_hosts(&[("10.77.2.1", "origin.test")]);
    let users = lab
        .scratch()
        .write("users", "anna:$apr1$saltSALT$WDJf6wM5.GXmxK8jyj/4v.\n");
    let login = lab.scratch().write("login", "anna:secret\n");
    let squid_config = squid(
        &lab,
        &format!(
            "http_port 3128\nauth_param basic program /usr/lib/squid/basic_ncsa_auth {}\nacl user proxy_auth REQUIRED\n\
             acl free localport 3129\nhttp_port 3129\nhttp_access allow free\nhttp_access allow user\n",
            users.display()
        ),
    );
    let mut command = lab.origin.command("squid");
    command.args(["-N", "-f"]).arg(squid_config);
    let at = SocketAddr::new(Family::V4.origin(), 3128);
    let _peer = Peer::listening(&lab.origin, &mut command, at);
    let origin = origin_on(&lab, Family::V4.origin(), 8443);
    let squid_conf = format!(
        "http_port 10.77.1.2:3128\nacl deaf dstdomain deaf.test\n\
         cache_peer 10.77.2.1 parent 3129 0 no-query default name=free\n\
         cache_peer 10.77.2.1 parent 3128 0 no-query login=anna:wrong name=wrong\n\
         cache_peer_access wrong allow deaf\ncache_peer_access free deny deaf\n\
         never_direct allow all\nhttp_access allow all\naccess_log stdio:{}\n",
        lab.scratch().path().join("ours.log").display()
    );
    let ours = lab.scratch().write("ours.conf", squid_conf);
    {
        let _daemon = proxy_tests::daemon::Setup::bare(&lab.proxy)
            .option("--squid-conf", &ours)
            .start();
        // As Squid has it, a parent's failure is a 503.
        client(&lab)
            .refusal("deaf.test:8443")
            .check_refusal(503, "proxy_configuration_error")
            .unwrap();
        expect_tunnel(&lab, "origin.test:8443", &origin);
        let log = lab.scratch().path().join("ours.log");
        wait_for("two lines", PATIENCE, || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            (log.matches(" FIRSTUP_PARENT/10.77.2.1 ").count() == 2).then_some(())
        });
    }
    let more = format!("login_file = \"{}\"\n", login.display());
    let _daemon = behind(&lab, "http://10.77.2.1:3128", &more);
    expect_tunnel(&lab, "origin.test:8443", &origin);
}

/// A squid.conf with what every one needs to run here; its path.
fn squid(lab: &Lab, lines: &str) -> std::path::PathBuf {
    let scratch = lab.scratch().path();
    let mut text = lines.to_owned();
    writeln!(
        text,
        "access_log none\ncache_log {0}/cache.log\npid_filename none\ncoredump_dir {0}\n\
         visible_hostname squid.test\nshutdown_lifetime 1 second\npinger_enable off",
        scratch.display()
    )
    .unwrap();
    lab.scratch().write("squid.conf", text)
}

/// Bytes go both ways. Nobody ends before all are there: for Squid a half-close is the end of both directions.
fn expect_tunnel(lab: &Lab, target: &str, origin: &Origin) {
    let client = client(lab).tunnel(target);
    let upstream = origin.accept();
    exchange(&client, &upstream);
}

fn exchange(client: &TcpStream, upstream: &TcpStream) {
    let (up, down) = (Payload::new(8), Payload::new(9));
    thread::scope(|scope| {
        scope.spawn(|| up.send(&mut &*client, 3_000_000).unwrap());
        scope.spawn(|| down.send(&mut &*upstream, 2_000_000).unwrap());
        scope.spawn(|| up.receive(&mut &*upstream, 3_000_000).unwrap());
        scope.spawn(|| down.receive(&mut &*client, 2_000_000).unwrap());
    });
}
