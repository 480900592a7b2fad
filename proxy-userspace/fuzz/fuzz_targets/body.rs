//! A chunked body cut in two anywhere has the data that it has whole, and ends where it does.

#![no_main]

use libfuzzer_sys::fuzz_target;
use underpass::http::{BodyDecoder, Framing};

/// The data, the bytes that belong to the body, and whether that is all of it; or the error.
fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), String> {
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    let (mut data, mut total) = (Vec::new(), 0);
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() && !decoder.is_ended() {
            let found = decoder.feed(rest).map_err(|error| error.to_string())?;
            assert!(found.consumed > 0, "it goes on");
            data.extend_from_slice(&rest[found.data]);
            total += found.consumed;
            rest = &rest[found.consumed..];
        }
    }
    Ok((data, total, decoder.is_ended()))
}

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let cut = usize::from(cut) % (bytes.len() + 1);
    let whole = decode(&[bytes]);
    assert_eq!(whole, decode(&[&bytes[..cut], &bytes[cut..]]));
});
