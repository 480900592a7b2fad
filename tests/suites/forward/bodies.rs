//! Bodies: whole, slow, and broken off.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use proxy_tests::{
    client::reset,
    lab::Lab,
    payload::{Payload, Random, Step},
    reply::Reply,
    require_root_or_skip,
};

use super::{ask, get, origin, read_head, request};
use crate::scene::{client, configured, expect_nothing_wrong};

/// Megabytes of known bytes both ways at once, with every way to tell their end.
#[test]
fn bodies_arrive_whole() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(&lab, "");
    let origin = origin(&lab);
    let (up, down) = (Payload::new(1), Payload::new(2));
    let len = 3_000_000;
    let mut random = Random::new(5);
    for is_chunked in [false, true] {
        let framing = if is_chunked {
            "Transfer-Encoding: chunked\r\n".to_owned()
        } else {
            format!("Content-Length: {len}\r\n")
        };
        let head = request("POST", &origin, "/", &framing);
        let (mut stream, mut origin_end, got) = ask(&lab, &origin, &head);
        assert!(got.contains(&framing), "{got}");
        origin_end
            .write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n").as_bytes())
            .unwrap();
        let reply = Reply::read_head(&mut stream).unwrap();
        assert!(String::from_utf8_lossy(&reply.head).contains(&framing));
        let mut pieces = || chunks(&mut random, len, is_chunked);
        let (up_pieces, down_pieces) = (pieces(), pieces());
        let send = |payload: Payload, mut stream: &TcpStream, pieces: &[usize]| {
            let mut at = 0;
            for &piece in pieces {
                let mut bytes = vec![0; piece];
                payload.fill(at as u64, &mut bytes);
                if is_chunked {
                    bytes = [format!("{piece:X};x=y\r\n").as_bytes(), &bytes, b"\r\n"].concat();
                }
                stream.write_all(&bytes).unwrap();
                at += piece;
            }
            if is_chunked {
                stream.write_all(b"0\r\n\r\n").unwrap();
            }
        };
        let receive = |payload: Payload, mut stream: &TcpStream| {
            let body = if is_chunked {
                unchunk(&mut stream)
            } else {
                let mut body = vec![0; len];
                stream.read_exact(&mut body).unwrap();
                body
            };
            assert_eq!(body.len(), len);
            payload.check(0, &body).unwrap();
        };
        thread::scope(|scope| {
            scope.spawn(|| send(up, &stream, &up_pieces));
            scope.spawn(|| receive(up, &origin_end));
            scope.spawn(|| send(down, &origin_end, &down_pieces));
            scope.spawn(|| receive(down, &stream));
        });
    }
    // Until the end of the connection: an old client gets it so, a newer one in chunks.
    for version in ["1.0", "1.1"] {
        let target = origin.target();
        let head = format!("GET http://{target}/ HTTP/{version}\r\nHost: {target}\r\n\r\n");
        let (mut stream, mut origin_end, _) = ask(&lab, &origin, &head);
        thread::scope(|scope| {
            scope.spawn(move || {
                origin_end.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
                down.send(&mut origin_end, len as u64).unwrap();
            });
            let reply = Reply::read_head(&mut stream).unwrap();
            let body = if version == "1.0" {
                assert_eq!(reply.header("connection"), Some("close"));
                let mut body = Vec::new();
                stream.read_to_end(&mut body).unwrap();
                body
            } else {
                assert_eq!(reply.header("transfer-encoding"), Some("chunked"));
                unchunk(&mut &stream)
            };
            assert_eq!(body.len(), len);
            down.check(0, &body).unwrap();
        });
    }
}

/// Lengths of pieces that make `len` together.
fn chunks(random: &mut Random, len: usize, is_chunked: bool) -> Vec<usize> {
    let mut left = len;
    let mut pieces = Vec::new();
    while left > 0 {
        let most = if is_chunked && random.between(0, 3) == 0 {
            100
        } else {
            100_000
        };
        let piece = random.between(1, most).min(left);
        pieces.push(piece);
        left -= piece;
    }
    pieces
}

/// A chunked body to its end.
fn unchunk(stream: &mut &TcpStream) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        let text = String::from_utf8(line).unwrap();
        let size = text.trim_end().split(';').next().unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).unwrap();
        assert_eq!(&chunk[size..], b"\r\n");
        if size == 0 {
            return body;
        }
        body.extend(&chunk[..size]);
    }
}

/// Who does not read is not read for: little is held on the way, and all of it arrives.
#[test]
fn a_slow_reader_slows_the_sender_down() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(&lab, "");
    let origin = origin(&lab);
    let payload = Payload::new(3);
    let len = 40_000_000;
    let mut stream = client(&lab).receive_buffer(64 * 1024).open();
    stream.write_all(get(&origin, "/", "").as_bytes()).unwrap();
    let mut origin_end = origin.accept();
    read_head(&mut origin_end);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
    origin_end.write_all(head.as_bytes()).unwrap();
    let patience = Duration::from_millis(500);
    origin_end.set_write_timeout(Some(patience)).unwrap();
    let mut sent = 0;
    while let Ok(n) = origin_end.write(&payload_at(payload, sent, 1 << 16)) {
        sent += n as u64;
        assert!(sent < 24_000_000, "nobody holds the sender back");
    }
    origin_end.set_write_timeout(None).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            payload
                .send_range(&mut origin_end, sent, len, |_| Step::fast())
                .unwrap();
        });
        Reply::read_head(&mut stream).unwrap();
        payload.receive(&mut stream, len).unwrap();
    });
}

fn payload_at(payload: Payload, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    payload.fill(offset, &mut bytes);
    bytes
}

/// A response that is cut off is never taken for a whole one.
#[test]
fn what_is_cut_off_does_not_look_whole() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(&lab, "");
    let origin = origin(&lab);
    let target = origin.target();
    let mut wrong = Vec::new();
    let responses: [(&str, &[u8]); 3] = [
        (
            "length",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        ),
        (
            "chunks",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ),
        ("until close", b"HTTP/1.1 200 OK\r\n\r\nhalf"),
    ];
    for (name, response) in responses {
        for version in ["1.0", "1.1"] {
            for is_reset in [false, true] {
                if name == "until close" && !is_reset {
                    continue;
                }
                let head = format!("GET http://{target}/ HTTP/{version}\r\nHost: {target}\r\n\r\n");
                let (mut stream, mut origin_end, _) = ask(&lab, &origin, &head);
                origin_end.write_all(response).unwrap();
                Reply::read_head(&mut stream).unwrap();
                // Not before it was passed on.
                thread::sleep(Duration::from_millis(20));
                if is_reset {
                    reset(origin_end);
                } else {
                    drop(origin_end);
                }
                let mut body = Vec::new();
                let end = stream.read_to_end(&mut body);
                if end.is_ok() || body.ends_with(b"0\r\n\r\n") {
                    wrong.push(format!("{name} {version} {is_reset}: {end:?} {body:?}"));
                }
            }
        }
    }
    expect_nothing_wrong(&wrong);
    let lines = daemon.wait_access_lines(10);
    assert!(
        lines.iter().all(|line| line.contains(" TCP_MISS/200 ")),
        "{lines:#?}"
    );
}

/// An upload that is broken off is never taken for a whole one either.
#[test]
fn who_leaves_in_the_middle_takes_the_request_along() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(&lab, "");
    let origin = origin(&lab);
    for framing in ["Transfer-Encoding: chunked\r\n", "Content-Length: 9\r\n"] {
        for is_reset in [false, true] {
            let mut stream = client(&lab).open();
            let head = request("POST", &origin, "/", framing);
            stream.write_all(head.as_bytes()).unwrap();
            let body: &[u8] = if framing.starts_with('T') {
                b"4\r\nhalf\r\n"
            } else {
                b"half"
            };
            stream.write_all(body).unwrap();
            let mut origin_end = origin.accept();
            read_head(&mut origin_end);
            let mut got = vec![0; body.len()];
            origin_end.read_exact(&mut got).unwrap();
            if is_reset {
                reset(stream);
            } else {
                drop(stream);
            }
            let mut rest = Vec::new();
            let _ = origin_end.read_to_end(&mut rest);
            assert!(rest.is_empty(), "{rest:?}");
        }
    }
    let lines = daemon.wait_access_lines(4);
    let are_aborted = lines
        .iter()
        .all(|line| line.contains(" TCP_MISS_ABORTED/000 "));
    assert!(are_aborted, "{lines:#?}");
}
