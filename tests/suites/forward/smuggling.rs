//! Requests that two recipients could read in two ways: all are refused, and the origin never sees the second one.

use std::{io::Read as _, time::Duration};

use proxy_tests::{lab::Lab, require_root_or_skip};

use super::{origin, read_head};
use crate::scene::{client, configured, expect_nothing_wrong};

/// Fields and what follows the head: refused before anything is sent on.
const HEADS: &[(&str, &str, u16)] = &[
    (
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "0\r\n\r\n",
        400,
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "0\r\n\r\n",
        400,
    ),
    ("Content-Length: 0\r\nContent-Length: 0\r\n", "", 400),
    ("Content-Length: 0\r\nContent-Length: 44\r\n", "", 400),
    ("Content-Length: 0, 0\r\n", "", 400),
    ("Content-Length: +0\r\n", "", 400),
    ("Content-Length: 0x0\r\n", "", 400),
    ("Content-Length: 0 0\r\n", "", 400),
    ("Content-Length: 0_0\r\n", "", 400),
    ("Content-Length:\r\n", "", 400),
    ("Content-Length : 0\r\n", "", 400),
    ("Content-Length: 99999999999999999999\r\n", "", 400),
    ("Content\rLength: 0\r\n", "", 400),
    ("X: y\nContent-Length: 0\r\n", "", 400),
    ("X: y\r\n Content-Length: 0\r\n", "", 400),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "0\r\n\r\n",
        400,
    ),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n",
        "0\r\n\r\n",
        400,
    ),
    ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n", 400),
    ("Transfer-Encoding: identity\r\n", "", 400),
    ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n", 400),
    ("Transfer-Encoding: [chunked]\r\n", "0\r\n\r\n", 400),
    ("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\x0b\r\n", "0\r\n\r\n", 400),
    ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n", 400),
    ("\x20Transfer-Encoding: chunked\r\n", "0\r\n\r\n", 400),
    ("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n", 400),
    ("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", 501),
    ("Transfer-Encoding: gzip\r\n", "", 501),
    ("Host: other.test\r\n", "", 400),
];

/// Chunked bodies: what is sent on of them is broken off.
const BODIES: &[&str] = &[
    "0\n\r\n",
    "0\r\n\n",
    "0\r\nX: y\n\r\n",
    "3\nabc\r\n0\r\n\r\n",
    "3\r\nabc\n0\r\n\r\n",
    "3\r\nabcd\r\n0\r\n\r\n",
    "3\r\nab\r\n0\r\n\r\n",
    "3;\nabc\r\n0\r\n\r\n",
    "3;a\rb\r\nabc\r\n0\r\n\r\n",
    "3 \r\nabc\r\n0\r\n\r\n",
    " 3\r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    "-1\r\nabc\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "\r\nabc\r\n0\r\n\r\n",
    "0\r\nX : y\r\n\r\n",
    "0\r\n X: y\r\n\r\n",
];

/// The origin that whoever smuggles would like to reach, and with what.
const SECOND: &str = "GET http://10.77.2.1:9/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn heads_that_can_be_read_in_two_ways() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(&lab, "");
    let origin = origin(&lab);
    let target = origin.target();
    let mut wrong = Vec::new();
    for &(fields, body, status) in HEADS {
        let request = format!(
            "POST http://{target}/ HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n{body}{SECOND}"
        );
        let reply = client(&lab).exchange(fields, request.as_bytes());
        // Also checks that nothing follows.
        if let Err(error) = reply.check_refusal(status, "http_request_error") {
            wrong.push(format!("{fields:?}: {error}"));
        }
    }
    expect_nothing_wrong(&wrong);
    assert!(
        !origin.is_called_within(Duration::from_millis(200)),
        "something was sent on"
    );
    assert_eq!(daemon.wait_access_lines(HEADS.len()).len(), HEADS.len());
}

#[test]
fn bodies_that_can_be_read_in_two_ways() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(&lab, "");
    let origin = origin(&lab);
    let target = origin.target();
    let mut wrong = Vec::new();
    for body in BODIES {
        let request = format!(
            "POST http://{target}/ HTTP/1.1\r\nHost: {target}\r\nTransfer-Encoding: chunked\r\n\r\n{body}{SECOND}"
        );
        let reply = client(&lab).exchange(body, request.as_bytes());
        if let Err(error) = reply.check_refusal(400, "http_request_error") {
            wrong.push(format!("{body:?}: {error}"));
        }
        let mut origin_end = origin.accept();
        let mut got = Vec::new();
        let _ = origin_end.read_to_end(&mut got);
        let text = String::from_utf8_lossy(&got);
        if text.ends_with("0\r\n\r\n") || text.contains("smuggled") {
            wrong.push(format!("{body:?}: the origin got {text:?}"));
        }
    }
    expect_nothing_wrong(&wrong);
    assert_eq!(daemon.wait_access_lines(BODIES.len()).len(), BODIES.len());
}

/// Responses, too: the client is told nothing of what could be read in two ways.
#[test]
fn responses_that_can_be_read_in_two_ways() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(&lab, "");
    let origin = origin(&lab);
    let target = origin.target();
    let mut wrong = Vec::new();
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
        "HTTP/9 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ] {
        let request = format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n");
        let reply = std::thread::scope(|scope| {
            let reply = scope.spawn(|| client(&lab).exchange(response, request.as_bytes()));
            let mut origin_end = origin.accept();
            read_head(&mut origin_end);
            std::io::Write::write_all(&mut origin_end, response.as_bytes()).unwrap();
            reply.join().unwrap()
        });
        if let Err(error) = reply.check_refusal(502, "http_protocol_error") {
            wrong.push(format!("{response:?}: {error}"));
        }
    }
    expect_nothing_wrong(&wrong);
}
