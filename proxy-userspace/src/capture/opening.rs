//! The name that a connection begins with: of a TLS ClientHello, or the `Host` of an HTTP request. Pure.

use crate::{
    authority::Authority,
    client_hello::{self, Opening},
    http::{HeadParser, Progress},
};

/// What was heard of it so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// There may be one yet.
    Wait,
    /// There is none.
    None,
    /// This one.
    Is(Box<str>),
    /// It begins as if there were one, and cannot be read for certain.
    Unclear(String),
}

/// Reads what a client has sent so far.
#[must_use]
pub fn name(bytes: &[u8]) -> Name {
    match client_hello::read(bytes) {
        Ok(None) => Name::Wait,
        Ok(Some(Opening::Named(name))) => Name::Is(name),
        Ok(Some(Opening::Nameless)) if is_like_http(bytes) => host(bytes),
        Ok(Some(Opening::Nameless)) => Name::None,
        Err(error) => Name::Unclear(error.to_string()),
    }
}

/// Whether it may be a request: a method in capitals, and a space if it is long enough for one.
fn is_like_http(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase());
    let length = method.count();
    (1..=20).contains(&length) && bytes.get(length).is_none_or(|&byte| byte == b' ')
}

/// The host of a request (RFC 9112 section 3.2).
fn host(bytes: &[u8]) -> Name {
    let mut parser = HeadParser::new();
    match parser.feed(bytes) {
        Ok(Progress::NeedMore) => return Name::Wait,
        Ok(Progress::Complete { .. }) => {}
        Err(error) => return Name::Unclear(format!("a malformed request: {error}")),
    }
    let Some(head) = parser.into_head() else {
        return Name::None;
    };
    let mut hosts = head.values("host");
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Name::None;
    };
    // With or without a port: the one that was connected to counts.
    let text = String::from_utf8_lossy(host);
    let whole = format!("{text}:80");
    let authority = Authority::parse(host).or_else(|_| Authority::parse(whole.as_bytes()));
    match authority {
        Ok(authority) => Name::Is(authority.host().to_string().into()),
        Err(error) => Name::Unclear(format!("a Host that is none: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_request_is_heard() {
        let is = |name: &str| Name::Is(name.into());
        for (bytes, expected) in [
            (&b"G"[..], Name::Wait),
            (b"GET / HTTP/1.1\r\n", Name::Wait),
            (b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", is("a.test")),
            (
                b"GET / HTTP/1.1\r\nHost: a.test:8080\r\n\r\nrest",
                is("a.test"),
            ),
            (b"GET / HTTP/1.0\r\n\r\n", Name::None),
            (b"SSH-2.0-x\r\n", Name::None),
            (b"hello", Name::None),
        ] {
            assert_eq!(name(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
        let unclear = name(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n");
        assert!(matches!(unclear, Name::Unclear(_)), "{unclear:?}");
        assert!(matches!(name(b"\x16\x03\x01\0\0"), Name::Unclear(_)));
        assert_eq!(name(b"\x16"), Name::Wait);
        assert_eq!(name(b""), Name::Wait);
    }
}
