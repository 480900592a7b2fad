//! What rules, limits and timeouts do to requests: the same as to tunnels.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{lab::Lab, payload::Payload, reply::Reply, require_root_or_skip};

use super::{ask, get, origin, request};
use crate::scene::{client, configured};

/// The rules, the limits and the timeouts are those of tunnels.
#[test]
fn requests_are_judged_and_limited_as_tunnels_are() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(
        &lab,
        r#"
[timeouts]
idle = "1s"
[limits]
tunnels_per_client = 1
[[rule]]
action = "deny"
method = ["DELETE"]
[[rule]]
action = "deny"
path_regex = ["^/secret"]
status = 404
[[rule]]
action = "deny"
scheme = ["http"]
host = ["named.test"]
"#,
    );
    let origin = origin(&lab);
    let status = |request: String| client(&lab).exchange("denied", request.as_bytes()).status;
    assert_eq!(status(request("DELETE", &origin, "/", "")), 403);
    assert_eq!(status(get(&origin, "/secret/x", "")), 404);
    let named = "GET http://named.test/ HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(status(named.to_owned()), 403);
    // One at a time.
    let (mut stream, _origin_end, _) = ask(&lab, &origin, &get(&origin, "/", ""));
    assert_eq!(status(get(&origin, "/", "")), 429);
    // An origin that does not answer.
    let start = Instant::now();
    let reply = Reply::read_to_end(&mut stream).unwrap();
    reply.check_refusal(504, "http_response_timeout").unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    // One that stops in the middle.
    let (mut stream, mut origin_end, _) = ask(&lab, &origin, &get(&origin, "/", ""));
    origin_end
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        .unwrap();
    assert!(stream.read_to_end(&mut Vec::new()).is_err());
    daemon.wait_access_line(|line| line.contains(" TCP_MISS/504 "));
    // A client that does.
    let mut stream = client(&lab).open();
    let post = request("POST", &origin, "/", "Content-Length: 9\r\n");
    stream.write_all(post.as_bytes()).unwrap();
    let reply = Reply::read_to_end(&mut stream).unwrap();
    reply.check_refusal(504, "http_response_timeout").unwrap();
}

#[test]
fn an_open_request_ends_when_the_rules_forbid_it() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(&lab, "enforce_on_live = true\n");
    let origin = origin(&lab);
    let (mut stream, mut origin_end, _) = ask(&lab, &origin, &get(&origin, "/", ""));
    origin_end
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        .unwrap();
    let mut half = Reply::read_head(&mut stream).unwrap();
    half.body = vec![0; 4];
    stream.read_exact(&mut half.body).unwrap();
    let denied = format!(
        "{}\nenforce_on_live = true\n[[rule]]\naction = \"deny\"\nmethod = [\"GET\"]\n",
        crate::scene::OPEN
    );
    lab.scratch().write("underpass.toml", &denied);
    assert!(stream.read_to_end(&mut Vec::new()).is_err());
    daemon.wait_said("the rules forbid them now", 1);
}

#[test]
fn the_bandwidth_is_that_of_tunnels() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(&lab, "[limits]\nbandwidth_per_tunnel = \"1MB/s\"\n");
    let origin = origin(&lab);
    let (mut stream, mut origin_end, _) = ask(&lab, &origin, &get(&origin, "/", ""));
    let (payload, len) = (Payload::new(4), 3_000_000);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            origin_end.write_all(head.as_bytes()).unwrap();
            payload.send(&mut origin_end, len).unwrap();
        });
        Reply::read_head(&mut stream).unwrap();
        payload.receive(&mut stream, len).unwrap();
    });
    // What a second brings is there at once.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
}
