//! The requests that the proxy refuses before it looks at any policy, each with the status it deserves.

/// A complete head with this request line and a Host header.
pub(crate) fn line(request_line: &str) -> Vec<u8> {
    format!("{request_line}\r\nHost: origin.test:443\r\n\r\n").into_bytes()
}

/// A complete head with a good request line and these header lines.
pub(crate) fn headers(lines: &str) -> Vec<u8> {
    format!("CONNECT origin.test:443 HTTP/1.1\r\n{lines}\r\n").into_bytes()
}

/// A name for the report, the bytes, and the status.
pub(crate) type Case = (String, Vec<u8>, u16);

/// Every request that has to be refused.
pub(crate) fn refused_requests() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(TARGETS.map(|target| {
        let request = line(&format!("CONNECT {target} HTTP/1.1"));
        (format!("target {target:?}"), request, 400)
    }));
    cases.extend(
        REQUEST_LINES.map(|(text, status)| (format!("request line {text:?}"), line(text), status)),
    );
    cases.extend(HEADERS.map(|text| (format!("headers {text:?}"), headers(text), 400)));
    cases.extend(PROTOCOLS.map(|(name, bytes)| (name.to_owned(), bytes.to_vec(), 400)));
    cases.extend(METHODS.map(|method| {
        let request = line(&format!("{method} origin.test:443 HTTP/1.1"));
        (method.to_owned(), request, 400)
    }));
    cases.extend(oversized());
    cases
}

/// Targets that are no `host:port`.
const TARGETS: [&str; 24] = [
    "origin.test",
    "origin.test:",
    ":443",
    ":",
    "origin.test:0",
    "origin.test:65536",
    "origin.test:99999999999999999999",
    "origin.test:-443",
    "origin.test:+443",
    "origin.test:44a",
    "origin.test:443:443",
    "user@origin.test:443",
    "origin.test:443/",
    "origin.test:443?q",
    "origin.test:443#f",
    "https://origin.test:443/",
    "*",
    "[fd77:2::1:443",
    "[fd77:2::1]443",
    "[origin.test]:443",
    "[]:443",
    "fd77:2::1:443",
    "[fe80::1%25eth0]:443",
    "origin\u{1}.test:443",
];

/// Request lines that are none, or not for us.
const REQUEST_LINES: [(&str, u16); 14] = [
    ("CONNECT origin.test:443", 400),
    ("CONNECT", 400),
    ("CONNECT origin.test:443 HTTP/1.1 HTTP/1.1", 400),
    ("CONNECT  origin.test:443 HTTP/1.1", 400),
    (" CONNECT origin.test:443 HTTP/1.1", 400),
    ("CONNECT\torigin.test:443 HTTP/1.1", 400),
    ("CONNECT origin.test:443 http/1.1", 400),
    ("CONNECT origin.test:443 HTTP/x.y", 400),
    ("CONNECT origin.test:443 HTTP/11", 400),
    ("CONNECT origin.test:443 HTTP/2.0", 505),
    ("CONNECT origin.test:443 HTTP/3.0", 505),
    ("BREW https://origin.test/ HTTP/1.1", 501),
    ("connect origin.test:443 HTTP/1.1", 400),
    ("CON(NECT origin.test:443 HTTP/1.1", 400),
];

/// Header lines that are none, or that do not belong together.
const HEADERS: [&str; 10] = [
    "",
    "Host: origin.test:443\r\nHost: origin.test:443\r\n",
    "Host: origin.test:443\r\nNonsense\r\n",
    "Host: origin.test:443\r\n: value\r\n",
    "Host: origin.test:443\r\nName : value\r\n",
    "Host: origin.test:443\r\nNa me: value\r\n",
    "Host: origin.test:443\r\nName: value\r\n folded\r\n",
    " Host: origin.test:443\r\n",
    "Host: origin.test:443\r\nName: va\0lue\r\n",
    "Host: origin.test:443\r\nName: va\rlue\r\n",
];

/// Methods that HTTP knows, which are for URLs.
const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];

/// Other protocols: refused at their first impossible byte, for nothing more comes.
const PROTOCOLS: [(&str, &[u8]); 7] = [
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ("SOCKS4", b"\x04\x01\x01\xbb\x0a\x4d\x02\x01user\x00"),
    ("SOCKS5", b"\x05\x01\x00"),
    ("one NUL", b"\0"),
    ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ("PROXY protocol", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"),
    ("bytes above 127", b"\xff\xfe\xfd"),
];

/// Requests beyond the limits.
fn oversized() -> [Case; 3] {
    let host = "Host: origin.test:443\r\n";
    let target = line(&format!("CONNECT {}:443 HTTP/1.1", "a".repeat(9 << 10)));
    let value = headers(&format!("{host}Name: {}\r\n", "a".repeat(70 << 10)));
    let count = headers(&format!("{host}{}", "A: b\r\n".repeat(12 << 10)));
    [
        ("target of 9 KiB".to_owned(), target, 414),
        ("head of 70 KiB".to_owned(), value, 431),
        ("70 KiB of small headers".to_owned(), count, 431),
    ]
}
