//! Requests for `http` URLs, which are forwarded instead of tunnelled: by hand, so that every byte is known, and
//! Debian's nginx, curl, git and apt-get.

mod bodies;
mod limits;
mod peers;
mod smuggling;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use proxy_tests::{
    deadline::uninterrupted,
    lab::{Family, Lab},
    ordeal::Ordeal,
    origin::Origin,
    payload::Random,
    reply::Reply,
    require_root_or_skip,
};

use crate::scene::{Scene, Tunnel, client, configured, expect_nothing_wrong, for_every_engine};

for_every_engine!(an_upgrade_becomes_a_tunnel);

/// An answer of two bytes.
const HI: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// A head, byte by byte.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let read = uninterrupted(|| stream.read(&mut byte)).unwrap();
        assert_eq!(read, 1, "{:?}", String::from_utf8_lossy(&head));
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

/// A response whose body has this length.
fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut reply = Reply::read_head(stream).unwrap();
    let len = reply.header("content-length").unwrap().parse().unwrap();
    reply.body = vec![0; len];
    stream.read_exact(&mut reply.body).unwrap();
    reply
}

/// A GET of this path of the origin, with more fields.
fn get(origin: &Origin, path: &str, fields: &str) -> String {
    request("GET", origin, path, fields)
}

fn request(method: &str, origin: &Origin, path: &str, fields: &str) -> String {
    let target = origin.target();
    format!("{method} http://{target}{path} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n")
}

/// A client asks, and the origin gets it: their ends, and the head as it arrives.
fn ask(lab: &Lab, origin: &Origin, request: &str) -> (TcpStream, TcpStream, String) {
    let mut stream = client(lab).open();
    stream.write_all(request.as_bytes()).unwrap();
    let mut origin_end = origin.accept();
    let head = read_head(&mut origin_end);
    (stream, origin_end, head)
}

fn origin(lab: &Lab) -> Origin {
    Origin::bind(&lab.origin, Family::V4.origin())
}

/// What the origin gets is written anew: what was between the client and us is not in it.
#[test]
fn what_is_between_client_and_proxy_stays_there() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(&lab, "");
    let origin = origin(&lab);
    let target = origin.target();
    let fields = "Host: other.test\r\nProxy-Authorization: Basic YTpi\r\nProxy-Connection: keep-alive\r\n\
                  Connection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nAccept: */*\r\n\
                  X-Two: a\r\nX-Two: b\r\nVia: 1.0 before\r\n";
    let sent = format!("GET http://{target}/a%20b?c=%2f HTTP/1.1\r\n{fields}\r\n");
    let (mut stream, mut origin_end, head) = ask(&lab, &origin, &sent);
    let (head, via) = head.split_once("Via: 1.0 before, 1.1 underpass-").unwrap();
    assert_eq!(
        head,
        format!(
            "GET /a%20b?c=%2f HTTP/1.1\r\nHost: {target}\r\nAccept: */*\r\nX-Two: a\r\nX-Two: b\r\n"
        )
    );
    assert_eq!(via.len(), 16 + 4, "{via:?}");
    origin_end
        .write_all(
            b"HTTP/1.1 203 Really Fine\r\nContent-Type: text/x; charset=y\r\nConnection: X-Theirs\r\n\
              X-Theirs: 1\r\nProxy-Authenticate: Basic realm=x\r\nKeep-Alive: x\r\nETag: \"e\"\r\n\
              Content-Length: 5\r\n\r\nhello",
        )
        .unwrap();
    let reply = read_reply(&mut stream);
    let head = String::from_utf8(reply.head.clone()).unwrap();
    let (begin, rest) = head.split_once("Via: 1.1 underpass-").unwrap();
    assert_eq!(
        begin,
        "HTTP/1.1 203 Really Fine\r\nContent-Type: text/x; charset=y\r\nEtag: \"e\"\r\n"
    );
    assert_eq!(&rest[16..], "\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(reply.body, b"hello");
    let line = daemon.wait_access_lines(1).remove(0);
    let expected = format!(
        " 10.77.1.1 TCP_MISS/203 {} GET http://{target}/a%20b? - HIER_DIRECT/10.77.2.1 text/x",
        reply.len()
    );
    assert!(line.ends_with(&expected), "{line}\n{expected}");
}

/// What Squid's operators set for the sake of privacy.
#[test]
fn fields_are_as_the_configuration_wants_them() {
    require_root_or_skip!();
    let mut wrong = Vec::new();
    for (config, before, after) in [
        (
            "",
            "X-Forwarded-For: 1.2.3.4\r\n",
            "X-Forwarded-For: 1.2.3.4\r\n",
        ),
        (
            "forwarded_for = \"on\"",
            "X-Forwarded-For: 1.2.3.4\r\n",
            "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 10.77.1.1\r\n",
        ),
        (
            "forwarded_for = \"off\"",
            "",
            "X-Forwarded-For: unknown\r\n",
        ),
        (
            "forwarded_for = \"delete\"",
            "X-Forwarded-For: 1.2.3.4\r\n",
            "",
        ),
        (
            "forwarded_for = \"truncate\"",
            "X-Forwarded-For: 1.2.3.4\r\n",
            "X-Forwarded-For: 10.77.1.1\r\n",
        ),
        (
            "remove_request_fields = [\"User-Agent\"]",
            "User-Agent: x\r\n",
            "",
        ),
    ] {
        let lab = Lab::new();
        let text =
            format!("[http]\nvia = false\nremove_response_fields = [\"Server\"]\n{config}\n");
        let _daemon = configured(&lab, &text);
        let origin = origin(&lab);
        let target = origin.target();
        let (mut stream, mut origin_end, head) = ask(&lab, &origin, &get(&origin, "/", before));
        if head != format!("GET / HTTP/1.1\r\nHost: {target}\r\n{after}\r\n") {
            wrong.push(format!("{config}: {head}"));
        }
        origin_end
            .write_all(b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        let reply = read_reply(&mut stream);
        if reply.head != b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" {
            wrong.push(format!("{config}: {reply:?}"));
        }
    }
    expect_nothing_wrong(&wrong);
}

/// Both connections are used again; what may not be repeated has one of its own.
#[test]
fn connections_are_used_again() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(
        &lab,
        "[timeouts]\nkeep_alive = \"2s\"\nupstream_keep_alive = \"2s\"\n",
    );
    let origin = origin(&lab);
    let mut first = client(&lab).open();
    // Two at once: the second waits for its turn.
    let both = get(&origin, "/1", "") + &get(&origin, "/2", "");
    first.write_all(both.as_bytes()).unwrap();
    let mut origin_end = origin.accept();
    for path in ["/1", "/2"] {
        let head = read_head(&mut origin_end);
        assert!(head.starts_with(&format!("GET {path} ")), "{head}");
        origin_end.write_all(HI).unwrap();
        assert_eq!(read_reply(&mut first).body, b"hi");
    }
    // Of another client, too, once nobody uses it any more, which is when the request is logged.
    daemon.wait_access_lines(2);
    let mut second = client(&lab).open();
    second.write_all(get(&origin, "/3", "").as_bytes()).unwrap();
    assert!(read_head(&mut origin_end).starts_with("GET /3 "));
    origin_end.write_all(HI).unwrap();
    read_reply(&mut second);
    let post = request("POST", &origin, "/4", "Content-Length: 0\r\n");
    second.write_all(post.as_bytes()).unwrap();
    let mut posted = origin.accept();
    let head = read_head(&mut posted);
    assert!(
        head.starts_with("POST /4 ") && head.contains("Content-Length: 0\r\n"),
        "{head}"
    );
    posted.write_all(HI).unwrap();
    read_reply(&mut second);
    // Both ends are closed in time, without a word.
    for stream in [&mut first, &mut second, &mut origin_end, &mut posted] {
        let start = Instant::now();
        assert_eq!(uninterrupted(|| stream.read(&mut [0])).unwrap(), 0);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(daemon.wait_access_lines(4).len(), 4);
}

/// An origin may close a connection at the moment at which it is used again.
#[test]
fn a_request_meets_a_connection_that_is_being_closed() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(&lab, "");
    let origin = origin(&lab);
    let mut stream = client(&lab).open();
    stream.write_all(get(&origin, "/1", "").as_bytes()).unwrap();
    let mut old = origin.accept();
    read_head(&mut old);
    old.write_all(HI).unwrap();
    read_reply(&mut stream);
    stream.write_all(get(&origin, "/2", "").as_bytes()).unwrap();
    read_head(&mut old);
    drop(old);
    // It is asked for again, over a new one.
    let mut new = origin.accept();
    assert!(read_head(&mut new).starts_with("GET /2 "));
    // And then no more.
    drop(new);
    let reply = Reply::read_to_end(&mut stream).unwrap();
    reply.check_refusal(502, "connection_terminated").unwrap();
    assert!(!origin.is_called_within(Duration::from_millis(200)));
}

#[test]
fn a_client_that_asks_before_it_sends_is_answered_by_the_origin() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(&lab, "");
    let origin = origin(&lab);
    let ask = "Expect: 100-continue\r\nContent-Length: 4\r\n";
    let mut stream = client(&lab).open();
    stream
        .write_all(request("PUT", &origin, "/a", ask).as_bytes())
        .unwrap();
    let mut origin_end = origin.accept();
    assert!(read_head(&mut origin_end).contains("Expect: 100-continue\r\n"));
    origin_end
        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        .unwrap();
    let interim = Reply::read_head(&mut stream).unwrap();
    assert_eq!(interim.head, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").unwrap();
    let mut body = [0; 4];
    origin_end.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"body");
    origin_end.write_all(HI).unwrap();
    assert_eq!(read_reply(&mut stream).status, 200);
    // Another one is not let.
    stream
        .write_all(request("PUT", &origin, "/b", ask).as_bytes())
        .unwrap();
    let mut origin_end = origin.accept();
    read_head(&mut origin_end);
    origin_end
        .write_all(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
        .unwrap();
    let reply = read_reply(&mut stream);
    assert_eq!(
        (reply.status, reply.header("connection")),
        (417, Some("close"))
    );
    drop(stream);
    daemon.wait_access_line(|line| line.contains("TCP_MISS/417"));
}

/// `Upgrade` over an http URL, as `WebSocket` does it: then the connection is a tunnel like any other.
fn an_upgrade_becomes_a_tunnel(scene: &Scene) {
    let origin = scene.origin();
    let mut random = Random::new(11);
    for number in 0..3_u8 {
        let mut stream = scene.client().open();
        if number == 1 {
            // Behind another request over the same connections.
            stream.write_all(get(&origin, "/", "").as_bytes()).unwrap();
            let mut origin_end = origin.accept();
            read_head(&mut origin_end);
            origin_end
                .write_all(b"HTTP/1.1 204 Fine\r\nConnection: close\r\n\r\n")
                .unwrap();
            assert_eq!(Reply::read_head(&mut stream).unwrap().status, 204);
        }
        let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n";
        let ask = get(&origin, "/chat", fields);
        let tunnel = scene.counted(|| {
            stream.write_all(ask.as_bytes()).unwrap();
            let mut origin_end = origin.accept();
            let head = read_head(&mut origin_end);
            assert!(
                head.contains("Upgrade: websocket\r\nConnection: Upgrade\r\n"),
                "{head}"
            );
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                          Connection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\n";
            origin_end.write_all(answer.as_bytes()).unwrap();
            let reply = Reply::read_head(&mut stream).unwrap();
            assert_eq!(reply.status, 101);
            assert_eq!(reply.header("upgrade"), Some("websocket"));
            assert_eq!(reply.header("sec-websocket-accept"), Some("y"));
            Tunnel {
                client: stream,
                origin: origin_end,
            }
        });
        Ordeal::draw(&mut random, 300_000)
            .play(tunnel.client, tunnel.origin)
            .unwrap();
    }
    scene.may_decline(3);
    scene
        .daemon()
        .wait_access_line(|line| line.contains(" TCP_MISS/101 ") && line.contains(" GET http://"));
}

/// What nobody asked for is not made a tunnel, and what we do not know is not offered.
#[test]
fn only_what_was_asked_for_is_switched_to() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(&lab, "");
    let origin = origin(&lab);
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n";
    for fields in ["", h2c, "Upgrade: websocket\r\n"] {
        let (mut stream, mut origin_end, head) = ask(&lab, &origin, &get(&origin, "/", fields));
        assert!(
            !head.contains("Upgrade") && !head.contains("Settings"),
            "{head}"
        );
        origin_end
            .write_all(b"HTTP/1.1 101 Surprise\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
            .unwrap();
        let reply = Reply::read_to_end(&mut stream).unwrap();
        reply.check_refusal(502, "http_protocol_error").unwrap();
    }
}

#[test]
fn a_request_that_is_to_go_no_further_is_answered_here() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(&lab, "");
    let origin = origin(&lab);
    let target = origin.target();
    let ask = |method, forwards: &str| {
        let secrets = "Cookie: secret\r\nAuthorization: Basic secret\r\nX-Seen: yes\r\n";
        request(
            method,
            &origin,
            "",
            &format!("Max-Forwards: {forwards}\r\n{secrets}"),
        )
    };
    let reply = client(&lab).exchange("TRACE", ask("TRACE", "0").as_bytes());
    assert_eq!(reply.header("content-type"), Some("message/http"));
    let echo = String::from_utf8(reply.body).unwrap();
    assert!(
        echo.starts_with(&format!("TRACE http://{target}/ HTTP/1.1\r\n")),
        "{echo}"
    );
    assert!(
        echo.contains("x-seen: yes\r\n") && !echo.contains("secret"),
        "{echo}"
    );
    let reply = client(&lab).exchange("OPTIONS", ask("OPTIONS", "0").as_bytes());
    assert_eq!(reply.status, 200);
    assert!(reply.header("allow").unwrap().contains("CONNECT"));
    assert!(!origin.is_called_within(Duration::from_millis(100)));
    // One step further it is the origin's, and about all of it where the URL has no path.
    let mut stream = client(&lab).open();
    stream.write_all(ask("OPTIONS", "1").as_bytes()).unwrap();
    let head = read_head(&mut origin.accept());
    assert!(head.starts_with("OPTIONS * HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Max-Forwards: 0\r\n"), "{head}");
}

/// Who takes us for a web server is told that we are none; who sends us to ourselves, that this is a circle.
#[test]
fn the_proxy_has_no_pages() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(
        &lab,
        "[[rule]]\naction = \"allow\"\ndestination = [\"10.77.1.2\"]\n",
    );
    let reply = client(&lab).exchange("help", b"GET /index.html HTTP/1.1\r\nHost: x\r\n\r\n");
    reply.check_refusal(400, "http_request_error").unwrap();
    let help = String::from_utf8(reply.body).unwrap();
    assert!(
        help.contains("this is a proxy") && help.contains("curl --proxy"),
        "{help}"
    );
    let circle = b"GET http://10.77.1.2:3128/ HTTP/1.1\r\nHost: x\r\n\r\n";
    let reply = client(&lab).exchange("circle", circle);
    reply.check_refusal(403, "proxy_loop_detected").unwrap();
    daemon.wait_access_line(|line| line.contains("TCP_DENIED/403"));
}

/// A connection that somebody has authenticated is nobody else's (NTLM and Negotiate are about connections).
#[test]
fn an_authenticated_connection_stays_with_its_client() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(&lab, "");
    let origin = origin(&lab);
    let mut first = client(&lab).open();
    first.write_all(get(&origin, "/1", "").as_bytes()).unwrap();
    let mut authenticated = origin.accept();
    read_head(&mut authenticated);
    let challenge = b"HTTP/1.1 401 Who\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n";
    authenticated.write_all(challenge).unwrap();
    assert_eq!(read_reply(&mut first).status, 401);
    // The same connection, also for what may not be repeated.
    let login = "Authorization: NTLM abc\r\nContent-Length: 0\r\n";
    first
        .write_all(request("POST", &origin, "/2", login).as_bytes())
        .unwrap();
    assert!(read_head(&mut authenticated).starts_with("POST /2 "));
    authenticated.write_all(HI).unwrap();
    read_reply(&mut first);
    let mut other = client(&lab).open();
    other.write_all(get(&origin, "/3", "").as_bytes()).unwrap();
    let mut another = origin.accept();
    assert!(read_head(&mut another).starts_with("GET /3 "));
    another.write_all(HI).unwrap();
    read_reply(&mut other);
    // It goes with its client.
    first.shutdown(Shutdown::Both).unwrap();
    assert_eq!(uninterrupted(|| authenticated.read(&mut [0])).unwrap(), 0);
}
