use super::*;
use crate::http::HeadParser;

fn read(head: &str, strictness: Strictness) -> Result<ConnectRequest, RequestError> {
    let mut parser = HeadParser::new();
    parser
        .feed(head.as_bytes())
        .unwrap_or_else(|error| panic!("{error}: {head:?}"));
    let head = parser
        .into_head()
        .unwrap_or_else(|| panic!("not complete: {head:?}"));
    ConnectRequest::from_head(&head, strictness)
}

/// A CONNECT request in HTTP/1.1 with these field lines.
fn with_fields(fields: &str) -> Result<ConnectRequest, RequestError> {
    read(
        &format!("CONNECT a:443 HTTP/1.1\r\n{fields}\r\n"),
        Strictness::Strict,
    )
}

#[test]
fn the_target_says_where_the_tunnel_leads() {
    let request = with_fields("Host: somewhere.else:80\r\n").unwrap();
    assert_eq!(request.authority.to_string(), "a:443");
}

#[test]
fn the_target_must_be_an_authority() {
    for (target, expected) in [
        ("/", AuthorityError::Path),
        ("*", AuthorityError::MissingPort),
        ("https://a:443", AuthorityError::Scheme),
        ("a", AuthorityError::MissingPort),
    ] {
        let head = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
        let error = read(&head, Strictness::Strict).unwrap_err();
        assert_eq!(
            error,
            RequestError::Target(expected),
            "judged before the missing Host"
        );
        assert_eq!(error.status(), Status::BAD_REQUEST);
        assert_eq!(error.to_string(), expected.to_string());
    }
}

#[test]
fn host_is_required_once_and_well_formed() {
    use RequestError as E;
    let strict = |head| read(head, Strictness::Strict).err();
    let relaxed = |head| read(head, Strictness::Relaxed).err();
    for (head, when_strict, when_relaxed) in [
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", None, None),
        ("CONNECT a:1 HTTP/1.1\r\nHOST:\r\n\r\n", None, None),
        ("CONNECT a:1 HTTP/1.0\r\n\r\n", None, None),
        ("CONNECT a:1 HTTP/1.1\r\n\r\n", Some(E::MissingHost), None),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nhost: a:1\r\n\r\n",
            Some(E::RepeatedHost),
            Some(E::RepeatedHost),
        ),
        (
            "CONNECT a:1 HTTP/1.0\r\nHost: a:1\r\nhost: a:1\r\n\r\n",
            Some(E::RepeatedHost),
            Some(E::RepeatedHost),
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a b\r\n\r\n",
            Some(E::InvalidHost),
            Some(E::InvalidHost),
        ),
        (
            "CONNECT a:1 HTTP/1.0\r\nHost: user@a\r\n\r\n",
            Some(E::InvalidHost),
            Some(E::InvalidHost),
        ),
    ] {
        assert_eq!(strict(head), when_strict, "{head:?}");
        assert_eq!(relaxed(head), when_relaxed, "{head:?}");
    }
}

#[test]
fn a_body_is_refused_and_an_empty_one_is_not() {
    use RequestError as E;
    for (fields, expected) in [
        ("Content-Length: 0\r\n", None),
        ("Content-Length: 0, 0\r\n", None),
        ("Content-Length: 0\r\nContent-Length: 0\r\n", None),
        ("Content-Length: 1\r\n", Some(E::ContentLength)),
        ("Content-Length: 0, 1\r\n", Some(E::ContentLength)),
        (
            "Content-Length: 0\r\nContent-Length: 5\r\n",
            Some(E::ContentLength),
        ),
        ("Content-Length: -0\r\n", Some(E::ContentLength)),
        ("Content-Length: +0\r\n", Some(E::ContentLength)),
        ("Content-Length: 0x0\r\n", Some(E::ContentLength)),
        ("Content-Length: 0 0\r\n", Some(E::ContentLength)),
        ("Content-Length: 0,\r\n", Some(E::ContentLength)),
        ("Content-Length:\r\n", Some(E::ContentLength)),
        (
            "Content-Length: 99999999999999999999\r\n",
            Some(E::ContentLength),
        ),
        ("Transfer-Encoding: chunked\r\n", Some(E::TransferEncoding)),
        ("Transfer-Encoding:\r\n", Some(E::TransferEncoding)),
        (
            "transfer-encoding: identity\r\nContent-Length: 0\r\n",
            Some(E::TransferEncoding),
        ),
    ] {
        assert_eq!(
            with_fields(&format!("Host: a\r\n{fields}")).err(),
            expected,
            "{fields:?}"
        );
    }
    assert_eq!(E::TransferEncoding.status(), Status::BAD_REQUEST);
    assert_eq!(E::ContentLength.status(), Status::BAD_REQUEST);
}
