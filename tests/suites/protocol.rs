//! What the proxy answers on the wire, request by request: one reply, the documented one, then the end.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{
    client::{connect_head, reset},
    daemon::{Daemon, Setup},
    deadline::{PATIENCE, uninterrupted, wait_for},
    lab::{Family, Lab},
    origin::Origin,
    reply::{ESTABLISHED, Reply},
    require_root_or_skip,
};

use crate::scene::{client, expect_nothing_wrong};

use refused::{headers, line, refused_requests};

mod refused;

const REQUEST_ERROR: &str = "http_request_error";

/// The proxy may take this long to close after a refusal.
const PROMPT: Duration = Duration::from_secs(5);

/// A lab with a daemon that would let its client through to an origin.
fn lab_with(config: &str) -> (Lab, Daemon) {
    let lab = Lab::new();
    let mut setup = Setup::open(&lab);
    if !config.is_empty() {
        setup = setup.config(&lab, config);
    }
    let daemon = setup.start();
    (lab, daemon)
}

#[test]
fn refuses_each_bad_request_with_one_reply_and_closes() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let mut wrong = Vec::new();
    for (name, request, status) in refused_requests() {
        let start = Instant::now();
        let reply = client(&lab).exchange(&name, &request);
        if let Err(error) = reply.check_refusal(status, REQUEST_ERROR) {
            wrong.push(format!("{name}: {error}"));
        }
        if start.elapsed() > PROMPT {
            wrong.push(format!("{name}: closed after {:?}", start.elapsed()));
        }
    }
    expect_nothing_wrong(&wrong);
}

#[test]
fn nothing_behind_a_refused_request_is_interpreted() {
    require_root_or_skip!();
    let (lab, daemon) = lab_with("");
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let second = connect_head(&origin.target());
    let mut cases = refused_requests();
    let count = cases.len();
    for (_, request, _) in &mut cases {
        request.extend_from_slice(second.as_bytes());
    }
    let mut wrong = Vec::new();
    for (name, request, status) in &cases {
        let reply = client(&lab).exchange(name, request);
        // Also checks that nothing follows the body.
        if let Err(error) = reply.check_refusal(*status, REQUEST_ERROR) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    expect_nothing_wrong(&wrong);
    assert!(
        !origin.is_called_within(Duration::from_millis(200)),
        "a request behind a refused one was served"
    );
    let lines = daemon.wait_access_lines(count);
    assert_eq!(lines.len(), count, "one line per connection");
}

/// The same behind good requests that are refused: by the rules, or since nobody answers (RFC 9931).
#[test]
fn nothing_behind_a_refused_tunnel_is_interpreted() {
    require_root_or_skip!();
    let (lab, daemon) = lab_with("");
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let closed = Origin::bind(&lab.origin, Family::V4.origin()).target();
    let second = connect_head(&origin.target());
    let refused = [
        ("10.77.1.1:443", 403, "destination_ip_prohibited"),
        (&closed, 502, "connection_refused"),
        ("unknown.invalid:443", 502, "dns_error"),
    ];
    for (target, status, error) in refused {
        let request = format!("{}{second}", connect_head(target));
        client(&lab)
            .exchange(target, request.as_bytes())
            .check_refusal(status, error)
            .unwrap();
    }
    assert!(
        !origin.is_called_within(Duration::from_millis(200)),
        "a request behind a refused one was served"
    );
    assert_eq!(daemon.wait_access_lines(refused.len()).len(), refused.len());
}

/// A refused client that keeps its connection open does not keep ours.
#[test]
fn a_refused_client_that_does_not_close_is_cut_off() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let mut stream = client(&lab).open();
    stream.write_all(b"nonsense\r\n\r\n").unwrap();
    Reply::read_to_end(&mut stream)
        .unwrap()
        .check_refusal(400, REQUEST_ERROR)
        .unwrap();
    wait_for("the connection is gone", PATIENCE, || {
        stream.write_all(b"x").err().map(drop)
    });
}

/// A client that gives up while its origin does not answer is let go.
#[test]
fn a_client_that_resets_while_we_connect_is_noticed() {
    require_root_or_skip!();
    let (lab, daemon) = lab_with("");
    let (origin, _fillers) = Origin::with_full_queue(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).open();
    stream
        .write_all(connect_head(&origin.target()).as_bytes())
        .unwrap();
    thread::sleep(Duration::from_millis(300));
    reset(stream);
    let line = daemon.wait_access_line(|line| line.contains("CONNECT"));
    let end = format!(
        " TCP_TUNNEL/000 0 CONNECT {} - HIER_NONE/- -",
        origin.target()
    );
    assert!(line.ends_with(&end), "{line}");
}

#[test]
fn a_refused_head_gets_no_body() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let reply = client(&lab).exchange("HEAD", &line("HEAD / HTTP/1.1"));
    assert_eq!((reply.status, reply.body.len()), (400, 0));
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(reply.proxy_error(), Some(REQUEST_ERROR));
}

#[test]
fn an_http2_preface_is_refused_once() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let reply = client(&lab).exchange("preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!([400, 501, 505].contains(&reply.status), "{reply:?}");
    reply.check_refusal(reply.status, REQUEST_ERROR).unwrap();
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).open();
    let request = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\nUser-Agent: test\r\nProxy-Connection: Keep-Alive\r\n\r\nearly",
        origin.target()
    );
    for byte in request.as_bytes() {
        stream.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(Reply::read_head(&mut stream).unwrap().head, ESTABLISHED);
    let mut early = [0; 5];
    origin.accept().read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
}

#[test]
fn a_bad_request_byte_by_byte_is_refused_all_the_same() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let mut stream = client(&lab).open();
    for byte in &headers("Host: origin.test:443\r\nNa me: value\r\n") {
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Reply::read_to_end(&mut stream)
        .unwrap()
        .check_refusal(400, REQUEST_ERROR)
        .unwrap();
}

#[test]
fn accepts_every_form_of_a_good_request() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    for family in [Family::V4, Family::V6] {
        let origin = Origin::bind(&lab.origin, family.origin());
        let target = origin.target();
        let requests = [
            ("plain", connect_head(&target)),
            (
                "HTTP/1.0",
                format!("CONNECT {target} HTTP/1.0\r\nHost: {target}\r\n\r\n"),
            ),
            (
                "HTTP/1.0 without Host",
                format!("CONNECT {target} HTTP/1.0\r\n\r\n"),
            ),
            (
                "header names in capitals",
                format!("CONNECT {target} HTTP/1.1\r\nHOST: {target}\r\n\r\n"),
            ),
            (
                "no space behind the colon",
                format!("CONNECT {target} HTTP/1.1\r\nHost:{target}\r\nA:\r\n\r\n"),
            ),
            (
                "headers of browsers",
                format!(
                    "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Connection: keep-alive\r\n\
                     User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\n\r\n"
                ),
            ),
            (
                "head of 60 KiB",
                format!(
                    "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nCookie: {}\r\n\r\n",
                    "c".repeat(60 << 10)
                ),
            ),
        ];
        for (name, request) in requests {
            let mut stream = client(&lab).open();
            stream.write_all(request.as_bytes()).unwrap();
            let reply =
                Reply::read_head(&mut stream).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(
                String::from_utf8_lossy(&reply.head),
                String::from_utf8_lossy(ESTABLISHED),
                "{name}"
            );
            drop(origin.accept());
        }
    }
}

#[test]
fn a_missing_host_is_accepted_when_relaxed() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("relaxed = true\n");
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).open();
    write!(stream, "CONNECT {} HTTP/1.1\r\n\r\n", origin.target()).unwrap();
    assert_eq!(Reply::read_head(&mut stream).unwrap().head, ESTABLISHED);
}

/// Time limits of one second for the head and for connecting.
const SHORT: &str = "[timeouts]\nhead = \"1s\"\nconnect = \"1s\"\n";

#[test]
fn a_trickling_head_is_cut_at_the_deadline() {
    require_root_or_skip!();
    let (lab, daemon) = lab_with(SHORT);
    let start = Instant::now();
    let mut stream = client(&lab).open();
    let mut trickle = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        for byte in headers("Host: origin.test:443\r\n").iter().take(50) {
            if trickle.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    let reply = Reply::read_to_end(&mut stream).unwrap();
    let elapsed = start.elapsed();
    reply.check_refusal(408, REQUEST_ERROR).unwrap();
    assert!(
        elapsed > Duration::from_millis(900) && elapsed < Duration::from_secs(6),
        "{elapsed:?}"
    );
    writer.join().unwrap();
    daemon.wait_access_line(|line| line.contains("/408 "));
}

#[test]
fn a_silent_connection_is_closed_without_a_word() {
    require_root_or_skip!();
    let (lab, daemon) = lab_with(SHORT);
    let start = Instant::now();
    let mut stream = client(&lab).open();
    let mut said = Vec::new();
    // A reset is as good as an end here: there is nothing to lose.
    drop(stream.read_to_end(&mut said));
    let elapsed = start.elapsed();
    assert_eq!(said, b"");
    assert!(
        elapsed > Duration::from_millis(900) && elapsed < Duration::from_secs(6),
        "{elapsed:?}"
    );
    daemon.wait_access_line(|line| {
        line.contains(" NONE_NONE/000 0 NONE error:transaction-end-before-headers ")
    });
}

#[test]
fn a_complete_head_is_not_cut_by_the_head_deadline() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with(SHORT);
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).tunnel(&origin.target());
    let mut origin = origin.accept();
    thread::sleep(Duration::from_millis(1600));
    stream.write_all(b"still here").unwrap();
    let mut said = [0; 10];
    origin.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"still here");
}

#[test]
fn the_200_waits_for_the_origin_to_accept() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let (origin, fillers) = Origin::with_full_queue(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).open();
    stream
        .write_all(connect_head(&origin.target()).as_bytes())
        .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let error = uninterrupted(|| stream.read(&mut [0]))
        .expect_err("no reply while the origin's SYN is unanswered");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    // Make room: the proxy's next SYN is answered.
    for _ in &fillers {
        origin.accept();
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(Reply::read_head(&mut stream).unwrap().head, ESTABLISHED);
}

#[test]
fn an_origin_that_never_answers_is_a_504() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with(SHORT);
    let (origin, _fillers) = Origin::with_full_queue(&lab.origin, Family::V4.origin());
    let start = Instant::now();
    let reply = client(&lab).refusal(&origin.target());
    let elapsed = start.elapsed();
    reply.check_refusal(504, "connection_timeout").unwrap();
    assert!(
        elapsed > Duration::from_millis(900) && elapsed < Duration::from_secs(6),
        "{elapsed:?}"
    );
}

#[test]
fn a_closed_port_is_a_502() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    for family in [Family::V4, Family::V6] {
        let address = Origin::bind(&lab.origin, family.origin()).address();
        let reply = client(&lab).refusal(&address.to_string());
        reply.check_refusal(502, "connection_refused").unwrap();
    }
}

#[test]
fn a_destination_without_a_route_is_a_502() {
    require_root_or_skip!();
    let lab = Lab::new();
    // A network that this lab has no route to: no packet is sent.
    let _daemon = Setup::open(&lab)
        .option("--allow-destination", "10.78.0.0/16")
        .start();
    let reply = client(&lab).refusal("10.78.0.1:443");
    reply
        .check_refusal(502, "destination_ip_unroutable")
        .unwrap();
}

#[test]
fn an_unknown_name_is_a_502() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    client(&lab)
        .refusal("unknown.invalid:443")
        .check_refusal(502, "dns_error")
        .unwrap();
}

#[test]
fn the_next_address_of_a_name_is_tried_when_one_refuses() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy
        .set_hosts(&[("fd77:2::1", "both.test"), ("10.77.2.1", "both.test")]);
    let daemon = Setup::open(&lab).start();
    for family in [Family::V4, Family::V6] {
        // Listens on one of the two addresses only.
        let origin = Origin::bind(&lab.origin, family.origin());
        let stream = client(&lab).tunnel(&format!("both.test:{}", origin.address().port()));
        drop(origin.accept());
        drop(stream);
    }
    let upstreams = daemon
        .wait_tunnel_records(2)
        .into_iter()
        .map(|record| record.upstream)
        .collect::<Vec<_>>();
    assert!(upstreams[0].starts_with("10.77.2.1:"), "{upstreams:?}");
    assert!(upstreams[1].starts_with("[fd77:2::1]:"), "{upstreams:?}");
}

/// Unread bytes in the proxy's socket would turn its close into a reset, which can destroy the refusal on its way.
#[test]
fn a_client_that_goes_on_sending_still_gets_the_whole_refusal() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let bad = headers("Host: origin.test:443\r\nNa me: value\r\n");
    for (name, request, status) in [
        ("in one go", bad, 400),
        ("denied", connect_head("10.77.1.1:443").into(), 403),
    ] {
        let mut stream = client(&lab).open();
        stream.write_all(&request).unwrap();
        stream
            .write_all(&vec![b'x'; 1 << 20])
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        // Read late, when a reset would have had time to arrive.
        thread::sleep(Duration::from_millis(300));
        let reply =
            Reply::read_to_end(&mut stream).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(reply.status, status, "{name}");
        reply
            .check_refusal(status, reply.proxy_error().unwrap_or_default())
            .unwrap();
    }
}

#[test]
fn a_client_that_half_closes_behind_a_bad_head_gets_the_refusal() {
    require_root_or_skip!();
    let (lab, _daemon) = lab_with("");
    let mut stream = client(&lab).open();
    stream.write_all(b"nonsense\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    Reply::read_to_end(&mut stream)
        .unwrap()
        .check_refusal(400, REQUEST_ERROR)
        .unwrap();
}
