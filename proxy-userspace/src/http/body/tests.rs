use proptest::prelude::*;

use super::*;

fn framing(fields: &str) -> Result<Framing, FramingError> {
    of_version("1.1", fields)
}

fn of_version(version: &str, fields: &str) -> Result<Framing, FramingError> {
    let text = format!("POST http://origin.test/ HTTP/{version}\r\nHost: x\r\n{fields}\r\n");
    let mut parser = HeadParser::new();
    parser.feed(text.as_bytes()).unwrap();
    Framing::of(&parser.into_head().unwrap())
}

/// The data, how much was consumed, and whether that was all.
fn decode(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), BodyError> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut data, mut total) = (Vec::new(), 0);
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let found = decoder.feed(rest)?;
            data.extend_from_slice(&rest[found.data]);
            total += found.consumed;
            rest = &rest[found.consumed..];
            if found.consumed == 0 || rest.is_empty() {
                break;
            }
        }
    }
    Ok((data, total, decoder.is_ended()))
}

#[test]
fn one_way_to_tell_the_end_is_understood() {
    assert_eq!(framing(""), Ok(Framing::None));
    assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::Length(0)));
    assert_eq!(framing("Content-Length: 0012\r\n"), Ok(Framing::Length(12)));
    assert_eq!(
        framing("Transfer-Encoding: Chunked\r\n"),
        Ok(Framing::Chunked)
    );
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    use FramingError as E;
    for (fields, error) in [
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            E::Both,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            E::Both,
        ),
        ("Transfer-Encoding: x\r\nContent-Length: 5\r\n", E::Both),
        (
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            E::RepeatedLength,
        ),
        (
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            E::RepeatedLength,
        ),
        ("Content-Length: 5, 5\r\n", E::InvalidLength),
        ("Content-Length: +5\r\n", E::InvalidLength),
        ("Content-Length: -5\r\n", E::InvalidLength),
        ("Content-Length: 0x5\r\n", E::InvalidLength),
        ("Content-Length: 5 \x0b\r\n", E::InvalidLength),
        ("Content-Length: 1e3\r\n", E::InvalidLength),
        ("Content-Length:\r\n", E::InvalidLength),
        ("Content-Length: 18446744073709551616\r\n", E::InvalidLength),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            E::InvalidCoding,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            E::InvalidCoding,
        ),
        ("Transfer-Encoding: chunked, chunked\r\n", E::InvalidCoding),
        ("Transfer-Encoding: chunked, identity\r\n", E::InvalidCoding),
        ("Transfer-Encoding: xchunked\r\n", E::InvalidCoding),
        ("Transfer-Encoding: \"chunked\"\r\n", E::InvalidCoding),
        ("Transfer-Encoding: chunked;q=1\r\n", E::InvalidCoding),
        ("Transfer-Encoding: identity\r\n", E::InvalidCoding),
        ("Transfer-Encoding:\r\n", E::InvalidCoding),
        ("Transfer-Encoding: gzip, chunked\r\n", E::UnknownCoding),
        ("Transfer-Encoding: gzip\r\n", E::UnknownCoding),
    ] {
        // A control character in a value does not even get past the parser of heads.
        if fields.contains('\x0b') {
            continue;
        }
        assert_eq!(framing(fields), Err(error), "{fields:?}");
    }
    let chunked = "Transfer-Encoding: chunked\r\n";
    assert_eq!(of_version("1.0", chunked), Err(E::OldCoding));
    assert_eq!(E::UnknownCoding.status().code(), 501);
    assert_eq!(E::Both.status().code(), 400);
}

#[test]
fn a_body_ends_where_it_is_said_to() {
    for (framing, text, data, consumed) in [
        (Framing::None, &b"GET"[..], &b""[..], 0),
        (Framing::Length(3), b"abcGET", b"abc", 3),
        (Framing::Chunked, b"0\r\n\r\nGET", b"", 5),
        (Framing::Chunked, b"3\r\nabc\r\n0\r\n\r\nGET", b"abc", 13),
        (
            Framing::Chunked,
            b"003;a=\"b\"\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\nG",
            b"abc0123456789",
            42,
        ),
    ] {
        assert_eq!(
            decode(framing, &[text]).unwrap(),
            (data.to_vec(), consumed, true),
            "{text:?}"
        );
        // In pieces of one byte, too.
        let bytes: Vec<&[u8]> = text[..consumed].chunks(1).collect();
        assert_eq!(
            decode(framing, &bytes).unwrap(),
            (data.to_vec(), consumed, true)
        );
        // And never before.
        for end in 0..consumed {
            assert!(
                !decode(framing, &[&text[..end]]).unwrap().2,
                "{end} of {text:?}"
            );
        }
    }
}

#[test]
fn chunks_that_can_be_read_in_two_ways_are_refused() {
    use BodyError as E;
    let long = [b"1;".to_vec(), vec![b'a'; 2000]].concat();
    for (text, error) in [
        (&b"3\nabc\r\n0\r\n\r\n"[..], E::BareLf),
        (b"3\r\nabc\n0\r\n\r\n", E::BareLf),
        (b"3;x\nabc\r\n0\r\n\r\n", E::BareLf),
        (b"3\rabc\r\n0\r\n\r\n", E::BareCr),
        (b"3\r\nabc\r0\r\n\r\n", E::BareCr),
        (b"3\r\nabcd\r\n0\r\n\r\n", E::ChunkTooLong),
        (b"\r\nabc", E::InvalidSize),
        (b";x\r\n", E::InvalidSize),
        (b" 3\r\nabc", E::InvalidSize),
        (b"3 \r\nabc", E::InvalidSize),
        (b"0x3\r\nabc", E::InvalidSize),
        (b"+3\r\nabc", E::InvalidSize),
        (b"-1\r\n", E::InvalidSize),
        (b"g\r\n", E::InvalidSize),
        (b"fffffffffffffffff\r\n", E::SizeTooLarge),
        (b"00000000000000000003\r\n", E::SizeTooLarge),
        (b"3;\0\r\n", E::InvalidExtension),
        (&long, E::ExtensionTooLong),
        (
            b"0\r\nX : y\r\n\r\n",
            E::Trailer(HeadError::SpaceBeforeColon),
        ),
        (b"0\r\nX: y\n\r\n", E::Trailer(HeadError::BareLf)),
        (b"0\r\n\n", E::Trailer(HeadError::BareLf)),
        (b"0\r\n X: y\r\n\r\n", E::Trailer(HeadError::FoldedLine)),
    ] {
        assert_eq!(decode(Framing::Chunked, &[text]), Err(error), "{text:?}");
    }
}

proptest! {
    /// However the network cuts it, the data is the same, and so is what is left behind.
    #[test]
    fn cuts_do_not_matter(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        cuts in prop::collection::vec(1_usize..30, 1..20),
    ) {
        let mut text = Vec::new();
        for chunk in &chunks {
            text.extend(format!("{:x}\r\n", chunk.len()).bytes());
            text.extend(chunk);
            text.extend(b"\r\n");
        }
        text.extend(b"0\r\nA: b\r\n\r\n");
        let mut pieces = Vec::new();
        let mut rest = text.as_slice();
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        let decoded = decode(Framing::Chunked, &pieces).unwrap();
        prop_assert_eq!(decoded, (chunks.concat(), text.len(), true));
    }

    /// Nothing makes it panic, and it never takes more than it was given.
    #[test]
    fn hostile_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = BodyDecoder::new(Framing::Chunked);
        if let Ok(found) = decoder.feed(&bytes) {
            prop_assert!(found.consumed <= bytes.len());
            prop_assert!(found.data.end <= found.consumed || found.data.is_empty());
        }
    }
}
