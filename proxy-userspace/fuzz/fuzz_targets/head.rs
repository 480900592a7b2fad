//! A request head cut in two anywhere gives the answer that it gives whole, and a refusal is always
//! one response.

#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use underpass::http::{ConnectRequest, HeadParser, Progress, Refusal, Strictness};

/// The bytes that belong to the head, or the error.
fn parse(pieces: &[&[u8]]) -> Result<Option<usize>, String> {
    let mut parser = HeadParser::new();
    let mut before = 0;
    for piece in pieces {
        match parser.feed(piece) {
            Ok(Progress::NeedMore) => before += piece.len(),
            Ok(Progress::Complete { consumed }) => return Ok(Some(before + consumed)),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(None)
}

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let cut = usize::from(cut) % (bytes.len() + 1);
    let whole = parse(&[bytes]);
    assert_eq!(whole, parse(&[&bytes[..cut], &bytes[cut..]]));

    let mut parser = HeadParser::new();
    let refusal = match parser.feed(bytes) {
        Ok(Progress::NeedMore) => return,
        Ok(Progress::Complete { .. }) => {
            let head = parser.into_head().expect("complete");
            match ConnectRequest::from_head(&head, Strictness::Strict) {
                Ok(_) => return,
                Err(error) => Refusal::from(error),
            }
        }
        Err(error) => Refusal::from(error),
    };
    let reply = refusal.encode(SystemTime::UNIX_EPOCH, false);
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n");
    let body = &reply[end.expect("a head") + 4..];
    let length = format!("Content-Length: {}\r\n", body.len());
    assert!(String::from_utf8_lossy(&reply).contains(&length));
});
