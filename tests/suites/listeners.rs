//! Listeners that begin with something else than a request: a PROXY header, TLS, or both; and how clients are announced
//! to others.

mod tls;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use proxy_tests::{
    client::{Client, connect_head},
    daemon::{Setup, run_to_end},
    deadline::uninterrupted,
    lab::{Family, Lab},
    netns::Netns,
    ordeal::Ordeal,
    origin::{Listen, Origin},
    payload::Random,
    peer::Peer,
    reply::{ESTABLISHED, Reply},
    require_root_or_skip, require_tool_or_skip,
};

use crate::scene::{Scene, Tunnel, client, configured, expect_nothing_wrong, for_every_engine};

/// The listeners of the scenes, in front of which somebody announces clients.
const ANNOUNCED: &str = r#"
listen = [
    { address = "10.77.1.2:3128", proxy_protocol = ["10.77.1.0/24"] },
    { address = "[fd77:1::2]:3128", proxy_protocol = ["fd77:1::/64"] },
]
"#;

/// Whoever is connected to is told of the client.
const ANNOUNCING: &str = "[[outgoing]]\nproxy_protocol = \"v2\"\n";

/// What version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

for_every_engine!(config = super::ANNOUNCED; tunnels_behind_a_header);
for_every_engine!(config = super::ANNOUNCING; tunnels_with_a_header);

/// Early data in the segment of the header and the request: the ledgers of the engines count all of it.
fn tunnels_behind_a_header(scene: &Scene) {
    let origin = scene.origin();
    let mut random = Random::new(21);
    for header in [
        &b"PROXY TCP4 10.77.1.99 10.77.1.2 1234 3128\r\n"[..],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x4d\x01\x63\x0a\x4d\x01\x02\x04\xd2\x0c\x38",
    ] {
        let mut stream = scene.client().open();
        let request = connect_head(&origin.target());
        let tunnel = scene.counted(|| {
            stream
                .write_all(&[header, request.as_bytes()].concat())
                .unwrap();
            let reply = Reply::read_head(&mut stream).unwrap();
            assert_eq!(reply.head, ESTABLISHED);
            Tunnel {
                client: stream,
                origin: origin.accept(),
            }
        });
        Ordeal::draw(&mut random, 300_000)
            .play(tunnel.client, tunnel.origin)
            .unwrap();
    }
    scene.may_decline(2);
    let lines = scene.daemon().wait_access_lines(2);
    assert!(
        lines
            .iter()
            .all(|line| line.contains(" 10.77.1.99 TCP_TUNNEL/200 ")),
        "{lines:#?}"
    );
}

/// The origin is told who the client is, before anything else.
fn tunnels_with_a_header(scene: &Scene) {
    let origin = scene.origin();
    let mut random = Random::new(22);
    for _ in 0..2 {
        let client = scene.client();
        let tunnel = scene.counted(|| {
            let client = client.tunnel(&origin.target());
            let mut origin_end = origin.accept();
            let (source, target) = read_header(&mut origin_end);
            assert_eq!(source, client.local_addr().unwrap());
            assert_eq!(target, origin.address());
            Tunnel {
                client,
                origin: origin_end,
            }
        });
        Ordeal::draw(&mut random, 300_000)
            .play(tunnel.client, tunnel.origin)
            .unwrap();
    }
    scene.may_decline(2);
}

/// A header of version 2: from where, and to where.
fn read_header(stream: &mut TcpStream) -> (SocketAddr, SocketAddr) {
    let mut begin = [0; 16];
    uninterrupted(|| stream.read_exact(&mut begin)).unwrap();
    assert_eq!(&begin[..12], SIGNATURE);
    assert_eq!(begin[12], 0x21);
    let mut rest = vec![0; usize::from(u16::from_be_bytes([begin[14], begin[15]]))];
    uninterrupted(|| stream.read_exact(&mut rest)).unwrap();
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    if begin[13] == 0x11 {
        let ip = |at: usize| <[u8; 4]>::try_from(&rest[at..at + 4]).unwrap();
        ((ip(0), port(8)).into(), (ip(4), port(10)).into())
    } else {
        assert_eq!(begin[13], 0x21);
        let ip = |at: usize| <[u8; 16]>::try_from(&rest[at..at + 16]).unwrap();
        ((ip(0), port(32)).into(), (ip(16), port(34)).into())
    }
}

/// An HAProxy with these lines of a `listen` section, at a port of its own namespace.
fn haproxy(lab: &Lab, netns: &Netns, port: u16, lines: &str) -> Peer {
    let config = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen it\n bind 127.0.0.1:{port}\n {lines}\n"
    );
    let config = lab.scratch().write(&format!("haproxy-{port}.cfg"), config);
    let mut command = netns.command("haproxy");
    command.arg("-db").arg("-f").arg(config);
    Peer::listening(netns, &mut command, ([127, 0, 0, 1], port).into())
}

/// Clients behind HAProxy are themselves: to the rules, and to the log.
#[test]
fn haproxy_announces_clients() {
    require_root_or_skip!();
    require_tool_or_skip!("haproxy", "-v");
    let lab = Lab::new();
    let text = r#"
listen = [{ address = "10.77.1.2:3128", name = "lb", proxy_protocol = ["10.77.1.1"] }, "[fd77:1::2]:3128"]
allow_client = ["127.0.0.0/8"]
allow_destination = ["10.77.2.0/24"]
allow_port = ["1-65535"]
[[rule]]
action = "deny"
client = ["127.0.0.2"]
message = "not you"
"#;
    let path = lab.scratch().write("announced.toml", text);
    let daemon = Setup::bare(&lab.proxy)
        .option("--config", path)
        .listeners(2)
        .start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    for (port, option) in [(4001, "send-proxy"), (4002, "send-proxy-v2")] {
        let line = format!("server up 10.77.1.2:3128 {option}");
        let _haproxy = haproxy(&lab, &lab.client, port, &line);
        let through = Client::new(&lab.client, ([127, 0, 0, 1], port).into());
        drop(through.tunnel(&origin.target()));
        drop(origin.accept());
        let mut curl = lab.client.command("curl");
        curl.args(["-sS", "--max-time", "10", "--interface", "127.0.0.2", "-x"])
            .arg(format!("http://127.0.0.1:{port}"))
            .arg("http://10.77.2.1:9/");
        let told = run_to_end(&mut curl).stdout;
        assert_eq!(String::from_utf8_lossy(&told), "not you\n", "{option}");
    }
    // HAProxy itself is no client.
    let mut local = client(&lab).open();
    local.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    local
        .write_all(connect_head(&origin.target()).as_bytes())
        .unwrap();
    let reply = Reply::read_to_end(&mut local).unwrap();
    reply.check_refusal(403, "http_request_denied").unwrap();
    daemon.wait_access_line(|line| line.contains(" 10.77.1.1 TCP_DENIED/403 "));
    let lines = daemon.access_lines();
    let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    assert_eq!(count(" 127.0.0.1 TCP_TUNNEL/200 "), 2, "{lines:#?}");
    assert_eq!(count(" 127.0.0.2 TCP_DENIED/403 "), 2, "{lines:#?}");
    assert_eq!(count(" 10.77.1.1 TCP_DENIED/403 "), 1, "{lines:#?}");
}

/// A header is believed from whom it is expected, and from nobody else.
#[test]
fn headers_that_are_not_believed() {
    require_root_or_skip!();
    let lab = Lab::new();
    let text = r#"
listen = [
    { address = "10.77.1.2:3128", proxy_protocol = ["10.99.0.0/16"] },
    { address = "10.77.1.2:3130", proxy_protocol = ["10.77.1.0/24"] },
]
allow_client = ["10.77.1.0/24"]
allow_destination = ["10.77.2.0/24"]
allow_port = ["1-65535"]
[timeouts]
head = "1s"
"#;
    let path = lab.scratch().write("strict.toml", text);
    let daemon = Setup::bare(&lab.proxy)
        .option("--config", path)
        .listeners(2)
        .start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let request = connect_head(&origin.target());
    let announced = Client::new(&lab.client, "10.77.1.2:3130".parse().unwrap());
    let mut wrong = Vec::new();
    let mut expect = |name: &str, client: Client<'_>, begin: &[u8]| {
        let bytes = [begin, request.as_bytes()].concat();
        let reply = client.exchange(name, &bytes);
        if let Err(error) = reply.check_refusal(400, "http_request_error") {
            wrong.push(format!("{name}: {error}"));
        }
    };
    let v1 = b"PROXY TCP4 10.77.1.9 10.77.1.2 1 2\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x4d\x01\x09\x0a\x4d\x01\x02\0\x01\0\x02";
    expect("version 1 from a stranger", client(&lab), v1);
    expect("version 2 from a stranger", client(&lab), v2);
    expect("none", announced, b"");
    expect(
        "a port too large",
        announced,
        b"PROXY TCP4 10.77.1.9 10.77.1.2 1 65536\r\n",
    );
    expect("no CR", announced, b"PROXY TCP4 10.77.1.9 10.77.1.2 1 2\n");
    expect("two", announced, &[&v1[..], v1].concat());
    expect_nothing_wrong(&wrong);
    // One that does not come.
    let mut slow = announced.open();
    slow.write_all(&v1[..9]).unwrap();
    let start = Instant::now();
    assert_eq!(uninterrupted(|| slow.read(&mut [0])).unwrap_or(0), 0);
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    assert!(!origin.is_called_within(Duration::from_millis(100)));
    // Byte by byte it is as good as any.
    for header in [&v1[..], v2] {
        let mut stream = announced.open();
        for byte in header {
            stream.write_all(&[*byte]).unwrap();
        }
        stream.write_all(request.as_bytes()).unwrap();
        let reply = Reply::read_head(&mut stream).unwrap();
        assert_eq!(reply.head, ESTABLISHED);
        drop(origin.accept());
    }
    let lines = daemon.wait_access_lines(9);
    let good = lines
        .iter()
        .filter(|line| line.contains(" 10.77.1.9 TCP_TUNNEL/200 "));
    assert_eq!(good.count(), 2, "{lines:#?}");
}

/// HAProxy as the origin, and as a parent over TLS, believes what we announce; and what is announced is nobody else's.
#[test]
fn clients_are_announced_to_others() {
    require_root_or_skip!();
    require_tool_or_skip!("haproxy", "-v");
    let lab = Lab::new();
    let config = "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
                  frontend it\n bind 10.77.2.1:8080 accept-proxy\n\
                  http-request return status 200 content-type text/plain lf-string \"%[src] %[dst]\"\n";
    let config = lab.scratch().write("haproxy.cfg", config);
    let mut command = lab.origin.command("haproxy");
    command.arg("-db").arg("-f").arg(config);
    let at = SocketAddr::new(Family::V4.origin(), 8080);
    let _haproxy = Peer::listening(&lab.origin, &mut command, at);
    let _daemon = configured(
        &lab,
        r#"
[[outgoing]]
proxy_protocol = "v1"
url_regex = ["old"]
[[outgoing]]
proxy_protocol = "v2"
port = [8080]
"#,
    );
    for proxy in ["http://10.77.1.2:3128", "http://[fd77:1::2]:3128"] {
        let (from, to) = if proxy.contains("fd77") {
            ("fd77:1::1", "::ffff:10.77.2.1")
        } else {
            ("10.77.1.1", "10.77.2.1")
        };
        for path in ["", "old"] {
            for options in [&["-x", proxy][..], &["-x", proxy, "--proxytunnel"]] {
                let mut curl = lab.client.command("curl");
                curl.args(["-sS", "--max-time", "10"]).args(options);
                // Of a tunnel only the host is known.
                let url = format!("http://10.77.2.1:8080/{path}");
                let told = run_to_end(curl.arg(url)).stdout;
                let told = String::from_utf8_lossy(&told).into_owned();
                assert!(
                    told == format!("{from} {to}") || told == format!("{from} 10.77.2.1"),
                    "{told}"
                );
            }
        }
    }
    // Two clients, two connections.
    let listen = Listen {
        port: 8081,
        ..Listen::default()
    };
    let origin = Origin::bind_with(&lab.origin, Family::V4.origin(), listen);
    let get = "GET http://10.77.2.1:8081/old HTTP/1.1\r\nHost: x\r\n\r\n";
    for _ in 0..2 {
        let mut stream = client(&lab).open();
        stream.write_all(get.as_bytes()).unwrap();
        let mut origin_end = origin.accept();
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            origin_end.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        let port = stream.local_addr().unwrap().port();
        let expected = format!("PROXY TCP4 10.77.1.1 10.77.2.1 {port} 8081\r\n");
        assert_eq!(String::from_utf8(line).unwrap(), expected);
        origin_end
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        assert_eq!(Reply::read_head(&mut stream).unwrap().status, 200);
    }
}
