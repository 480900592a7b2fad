use proptest::prelude::*;

use super::*;

const SIMPLE: &[u8] = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n";

/// What became of some bytes: the head and its length, nothing yet, or a refusal.
type Answer = Result<Option<(usize, Head)>, HeadError>;

/// Feeds the bytes in pieces that end at the given places.
fn feed(bytes: &[u8], ends: impl IntoIterator<Item = usize>) -> Answer {
    let mut parser = HeadParser::new();
    let mut start = 0;
    for end in ends.into_iter().chain([bytes.len()]) {
        match parser.feed(&bytes[start..end]) {
            Ok(Progress::NeedMore) => start = end,
            Ok(Progress::Complete { consumed }) => {
                return Ok(parser.into_head().map(|head| (start + consumed, head)));
            }
            Err(error) => {
                assert_eq!(
                    parser.feed(SIMPLE),
                    Err(error),
                    "a failed parser stays failed"
                );
                assert!(!parser.is_empty() && parser.into_head().is_none());
                return Err(error);
            }
        }
    }
    assert!(parser.into_head().is_none());
    Ok(None)
}

fn whole(bytes: &[u8]) -> Answer {
    feed(bytes, [])
}

fn complete(bytes: &[u8]) -> Head {
    let (consumed, head) = whole(bytes)
        .unwrap_or_else(|error| panic!("{error}: {}", bytes.escape_ascii()))
        .unwrap_or_else(|| panic!("not complete: {}", bytes.escape_ascii()));
    assert_eq!(consumed, bytes.len());
    head
}

/// A head of exactly `size` bytes, with a field that fills it up.
fn head_of(size: usize) -> Vec<u8> {
    let mut head = b"CONNECT a:1 HTTP/1.1\r\nX: ".to_vec();
    head.resize(size - 4, b'x');
    head.extend(b"\r\n\r\n");
    head
}

const ACCEPTED: &[&[u8]] = &[
    SIMPLE,
    b"CONNECT a:1 HTTP/1.0\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n\x16\x03\x01early data",
    b"\r\n\r\nCONNECT a:1 HTTP/1.1\r\nHost:a:1\r\n\r\n",
    b"GET http://example.com/?q#f HTTP/1.9\r\nHost:\t example.com \t\r\nX: \r\nY:\r\nZ: a b\tc\r\nZ: \xe9:\xff\r\n\r\n",
];

/// Bytes of which the last is impossible where it stands, and why.
const REFUSED: &[(&[u8], HeadError)] = {
    use HeadError as E;
    &[
        (b"\x16", E::Tls),
        (b"\x05", E::Socks),
        (b"\x04", E::Socks),
        (b"\x00", E::InvalidMethod),
        (b"\x80", E::InvalidMethod),
        (b"{", E::InvalidMethod),
        (b"CONN\x16", E::InvalidMethod),
        (b"CONNECT\t", E::InvalidMethod),
        (b" ", E::ExtraSpace),
        (b"CONNECT  ", E::ExtraSpace),
        (b"CONNECT a:1  ", E::ExtraSpace),
        (b"CONNECT\r", E::MissingTarget),
        (b"CONNECT \r", E::MissingTarget),
        (b"CONNECT a\0", E::InvalidTarget),
        (b"CONNECT a\x7f", E::InvalidTarget),
        (b"CONNECT a\t", E::InvalidTarget),
        (b"CONNECT b\xc3", E::InvalidTarget),
        (b"GET /\r", E::MissingVersion),
        (b"CONNECT a:1 \r", E::MissingVersion),
        (b"CONNECT a:1 h", E::InvalidVersion),
        (b"CONNECT a:1 HTTP/1.1 ", E::InvalidVersion),
        (b"CONNECT a:1 HTTP/1.10", E::InvalidVersion),
        (b"CONNECT a:1 HTTP/11", E::InvalidVersion),
        (b"CONNECT a:1 HTTP/1\r", E::InvalidVersion),
        (b"CONNECT a:1 HTTP/x", E::InvalidVersion),
        (b"CONNECT a:1 HTTPS", E::InvalidVersion),
        (b"CONNECT a:1 b", E::InvalidVersion),
        (b"PRI * HTTP/2.0", E::UnsupportedVersion),
        (b"CONNECT a:1 HTTP/0.9", E::UnsupportedVersion),
        (b"CONNECT a:1 HTTP/1.1\r\n ", E::FoldedLine),
        (b"CONNECT a:1 HTTP/1.1\r\nX: a\r\n ", E::FoldedLine),
        (b"CONNECT a:1 HTTP/1.1\r\nX: a\r\n\t", E::FoldedLine),
        (b"CONNECT a:1 HTTP/1.1\r\n:", E::InvalidFieldName),
        (b"CONNECT a:1 HTTP/1.1\r\nX\0", E::InvalidFieldName),
        (b"CONNECT a:1 HTTP/1.1\r\nX\xe9", E::InvalidFieldName),
        (b"CONNECT a:1 HTTP/1.1\r\n(", E::InvalidFieldName),
        (b"CONNECT a:1 HTTP/1.1\r\nHost ", E::SpaceBeforeColon),
        (b"CONNECT a:1 HTTP/1.1\r\nHost\t", E::SpaceBeforeColon),
        (b"CONNECT a:1 HTTP/1.1\r\nHost\r", E::MissingColon),
        (b"CONNECT a:1 HTTP/1.1\r\nX: a\0", E::InvalidFieldValue),
        (b"CONNECT a:1 HTTP/1.1\r\nX: \x1b", E::InvalidFieldValue),
        (b"CONNECT a:1 HTTP/1.1\r\nX: a\x7f", E::InvalidFieldValue),
        (b"\n", E::BareLf),
        (b"CONNECT\n", E::BareLf),
        (b"GET /\n", E::BareLf),
        (b"CONNECT a:1 HTTP/1.1\n", E::BareLf),
        (b"CONNECT a:1 HTTP/1.1\r\n\n", E::BareLf),
        (b"CONNECT a:1 HTTP/1.1\r\nHost\n", E::BareLf),
        (b"CONNECT a:1 HTTP/1.1\r\nHost:\n", E::BareLf),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\n", E::BareLf),
        (b"\rC", E::BareCr),
        (b"\r\r", E::BareCr),
        (b"CONNECT a:1 HTTP/1.1\rH", E::BareCr),
        (b"CONNECT a:1 HTTP/1.1\r\r", E::BareCr),
        (b"CONNECT a:1 HTTP/1.1\r\nX: a\rb", E::BareCr),
        (b"CONNECT a:1 HTTP/1.1\r\nX: a\r\n\r\r", E::BareCr),
        (b"\r\n\r\n\r\n\r\n\r", E::EmptyLines),
        (b"AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHI", E::MethodTooLong),
    ]
};

#[test]
fn reads_the_parts_of_a_head() {
    let head = complete(SIMPLE);
    assert_eq!(head.method(), "CONNECT");
    assert_eq!(head.target(), b"example.com:443");
    assert_eq!(head.version(), Version::Http11);
    assert_eq!(
        head.fields().collect::<Vec<_>>(),
        [("host", &b"example.com:443"[..])]
    );

    let head = complete(ACCEPTED[4]);
    let fields: Vec<_> = head.fields().collect();
    let expected: [(&str, &[u8]); 5] = [
        ("host", b"example.com"),
        ("x", b""),
        ("y", b""),
        ("z", b"a b\tc"),
        ("z", b"\xe9:\xff"),
    ];
    assert_eq!(fields, expected);
    assert_eq!(
        head.version(),
        Version::Http11,
        "a higher minor version is read as 1.1"
    );
    assert_eq!(
        head.values("z").collect::<Vec<_>>(),
        [&b"a b\tc"[..], b"\xe9:\xff"]
    );
    assert_eq!(head.values("absent").count(), 0);
}

#[test]
fn leaves_the_bytes_after_the_head_to_the_tunnel() {
    let early = b"\x16\x03\x01\r\n\r\n";
    let bytes = [SIMPLE, early].concat();
    let mut parser = HeadParser::new();
    let consumed = SIMPLE.len();
    assert_eq!(parser.feed(&bytes), Ok(Progress::Complete { consumed }));
    assert_eq!(parser.feed(early), Ok(Progress::Complete { consumed: 0 }));
    assert_eq!(parser.feed(b""), Ok(Progress::Complete { consumed: 0 }));
    assert_eq!(parser.into_head(), Some(complete(SIMPLE)));
}

#[test]
fn is_empty_until_a_byte_of_a_request_came() {
    let mut parser = HeadParser::new();
    for piece in [&b""[..], b"\r", b"\n", b"\r\n"] {
        assert_eq!(parser.feed(piece), Ok(Progress::NeedMore));
        assert!(parser.is_empty());
    }
    assert_eq!(parser.feed(b"C"), Ok(Progress::NeedMore));
    assert!(!parser.is_empty());
}

#[test]
fn refuses_at_the_first_impossible_byte_and_says_why() {
    for (bytes, expected) in REFUSED {
        let shown = bytes.escape_ascii();
        let (_impossible, before) = bytes.split_last().unwrap();
        assert_eq!(whole(before), Ok(None), "too early: {shown}");
        assert_eq!(whole(bytes), Err(*expected), "{shown}");
        let text = expected.to_string();
        assert!(
            !text.contains(['\r', '\n']) && !text.ends_with('.'),
            "{text}"
        );
    }
}

#[test]
fn each_error_has_its_status() {
    let status = |bytes: &[u8]| whole(bytes).unwrap_err().status().code();
    assert_eq!(status(b"PRI * HTTP/2.0\r\n"), 505);
    assert_eq!(status(b"GET /\r\n"), 400);
    assert_eq!(status(b"\x16\x03"), 400);
    assert_eq!(status(&[b'A'; 33]), 501);
    assert_eq!(status(&[b"GET /", &[b'a'; 9000][..]].concat()), 414);
    assert_eq!(status(&head_of(MAX_HEAD_BYTES + 1)), 431);
}

#[test]
fn limits_are_exact() {
    assert_eq!(complete(&head_of(MAX_HEAD_BYTES)).fields().count(), 1);
    assert_eq!(
        whole(&head_of(MAX_HEAD_BYTES + 1)),
        Err(HeadError::TooLarge)
    );
    let with_empty_lines = [b"\r\n", &head_of(MAX_HEAD_BYTES - 1)[..]].concat();
    assert_eq!(whole(&with_empty_lines), Err(HeadError::TooLarge));

    let request = |method: usize, target: usize| {
        [
            &vec![b'M'; method][..],
            b" ",
            &vec![b't'; target],
            b" HTTP/1.1\r\n\r\n",
        ]
        .concat()
    };
    assert_eq!(
        complete(&request(MAX_METHOD_BYTES, 1)).method().len(),
        MAX_METHOD_BYTES
    );
    assert_eq!(
        whole(&request(MAX_METHOD_BYTES + 1, 1)),
        Err(HeadError::MethodTooLong)
    );
    assert_eq!(
        complete(&request(1, MAX_TARGET_BYTES)).target().len(),
        MAX_TARGET_BYTES
    );
    assert_eq!(
        whole(&request(1, MAX_TARGET_BYTES + 1)),
        Err(HeadError::TargetTooLong)
    );

    let empty_lines = |count: usize| ["\r\n".repeat(count).as_bytes(), SIMPLE].concat();
    complete(&empty_lines(MAX_EMPTY_LINES));
    assert_eq!(
        whole(&empty_lines(MAX_EMPTY_LINES + 1)),
        Err(HeadError::EmptyLines)
    );
}

#[test]
fn many_short_fields_cost_no_more_than_their_bytes() {
    let mut bytes = b"CONNECT a:1 HTTP/1.1\r\n".to_vec();
    while bytes.len() + 6 <= MAX_HEAD_BYTES {
        bytes.extend(b"a:\r\n");
    }
    bytes.extend(b"\r\n");
    let head = complete(&bytes);
    assert!(head.fields().count() > 16_000);
    assert!(head.fields.capacity() <= MAX_HEAD_BYTES * 2);
}

#[test]
fn debug_output_shows_no_values() {
    let head = complete(b"CONNECT a:1 HTTP/1.1\r\nProxy-Authorization: Basic c2VjcmV0\r\n\r\n");
    let shown = format!("{head:?}");
    assert!(
        shown.contains("proxy-authorization") && !shown.contains("c2VjcmV0"),
        "{shown}"
    );
}

#[test]
fn splitting_at_any_byte_changes_nothing() {
    let refused = REFUSED.iter().map(|(bytes, _)| *bytes);
    for bytes in ACCEPTED.iter().copied().chain(refused) {
        let expected = whole(bytes);
        assert_eq!(
            feed(bytes, 0..bytes.len()),
            expected,
            "byte by byte: {}",
            bytes.escape_ascii()
        );
        for end in 0..=bytes.len() {
            assert_eq!(
                feed(bytes, [end]),
                expected,
                "at {end}: {}",
                bytes.escape_ascii()
            );
        }
    }
}

/// Heads that are nearly always valid, with bytes of a tunnel after them.
fn any_head() -> impl Strategy<Value = Vec<u8>> {
    let field = "[A-Za-z-]{1,12}:[ \t]{0,2}[!-~ \t]{0,20}[ \t]{0,2}\r\n";
    let fields = prop::collection::vec(field, 0..6).prop_map(|fields| fields.concat());
    let line = "(\r\n){0,2}[A-Z]{1,10} [!-~]{1,30} HTTP/1\\.[0-9]\r\n";
    (line, fields, prop::collection::vec(any::<u8>(), 0..16)).prop_map(|(line, fields, early)| {
        [line.as_bytes(), fields.as_bytes(), b"\r\n", &early].concat()
    })
}

/// Bytes that mean something to the parser, and any other.
fn any_byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        prop::sample::select(&b"\r\n :\t\0HTP/1.02\x16\x05"[..]),
        any::<u8>()
    ]
}

proptest! {
    #[test]
    fn random_splits_of_a_valid_head_change_nothing(bytes in any_head(), mut ends in prop::collection::vec(0usize..400, 0..8)) {
        let expected = whole(&bytes);
        prop_assert!(matches!(expected, Ok(Some(_))), "{:?}", expected);
        for end in &mut ends { *end = (*end).min(bytes.len()); }
        ends.sort_unstable();
        prop_assert_eq!(feed(&bytes, ends), expected);
    }

    #[test]
    fn random_splits_of_a_damaged_head_change_nothing(
        mut bytes in any_head(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any_byte(), any::<bool>()), 1..4),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        for (place, byte, replace) in damage {
            let place = place.index(bytes.len());
            if replace { bytes[place] = byte } else { bytes.insert(place, byte) }
        }
        let mut ends: Vec<usize> = ends.iter().map(|end| end.index(bytes.len() + 1)).collect();
        ends.sort_unstable();
        let expected = whole(&bytes);
        prop_assert_eq!(feed(&bytes, ends), expected.clone());
        prop_assert_eq!(feed(&bytes, 0..bytes.len()), expected);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any_byte(), 0..200)) {
        prop_assert_eq!(feed(&bytes, 0..bytes.len()), whole(&bytes));
    }
}
