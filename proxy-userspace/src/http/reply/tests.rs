use proptest::prelude::*;

use super::*;

/// 2026-01-02T03:04:05Z.
fn date() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045)
}

fn encode(refusal: &Refusal) -> String {
    String::from_utf8(refusal.encode(date(), false)).unwrap()
}

/// The status line, the field lines and the body of one response.
fn parse(response: &str) -> (&str, Vec<(&str, &str)>, &str) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let (line, fields) = head.split_once("\r\n").unwrap();
    let fields = fields
        .split("\r\n")
        .map(|field| field.split_once(": ").unwrap());
    (line, fields.collect(), body)
}

#[test]
fn a_refusal_is_one_response_with_its_reason_in_the_body_and_in_proxy_status() {
    let refusal = Refusal::new(
        ProxyError::DestinationIpProhibited,
        "10.0.0.5 is a private address",
    );
    assert_eq!(
        encode(&refusal),
        "HTTP/1.1 403 Forbidden\r\n\
         Date: Fri, 02 Jan 2026 03:04:05 GMT\r\n\
         Connection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Content-Length: 30\r\n\
         Proxy-Status: underpass; error=destination_ip_prohibited; details=\"10.0.0.5 is a private address\"\r\n\
         \r\n\
         10.0.0.5 is a private address\n"
    );
}

#[test]
fn the_reply_to_head_has_no_body() {
    let refusal = Refusal::from(RequestError::NotUrl);
    let with_body = encode(&refusal);
    let without = String::from_utf8(refusal.encode(date(), true)).unwrap();
    let (head, _body) = with_body.split_once("\r\n\r\n").unwrap();
    assert_eq!(without, format!("{head}\r\n\r\n"));
}

#[test]
fn errors_become_refusals_with_their_status_and_text() {
    let refusal = Refusal::from(HeadError::TargetTooLong);
    assert_eq!(refusal.status().code(), 414);
    assert_eq!(refusal.error(), ProxyError::HttpRequestError);
    assert_eq!(
        refusal.reason(),
        "the request target is longer than 8192 bytes"
    );
    assert_eq!(Refusal::head_timeout().status().code(), 408);
    for (error, status) in [
        (ProxyError::HttpRequestError, 400),
        (ProxyError::HttpRequestDenied, 403),
        (ProxyError::DestinationIpProhibited, 403),
        (ProxyError::ProxyLoopDetected, 403),
        (ProxyError::ConnectionRefused, 502),
        (ProxyError::DestinationIpUnroutable, 502),
        (ProxyError::DnsError, 502),
        (ProxyError::ConnectionTerminated, 502),
        (ProxyError::ConnectionTimeout, 504),
        (ProxyError::DnsTimeout, 504),
        (ProxyError::ConnectionLimitReached, 503),
        (ProxyError::ProxyInternalError, 500),
    ] {
        assert_eq!(
            Refusal::new(error, "why").status().code(),
            status,
            "{error}"
        );
    }
}

#[test]
fn a_reason_can_not_break_out_of_its_line_or_its_string() {
    let refusal = Refusal::new(
        ProxyError::DnsError,
        "a\r\nSet-Cookie: x=\"\\\" b\u{fc}\u{85}\0",
    );
    assert_eq!(refusal.reason(), "a  Set-Cookie: x=\"\\\" b\u{fc}  ");
    let response = encode(&refusal);
    assert!(
        response.contains("details=\"a  Set-Cookie: x=\\\"\\\\\\\" b?  \"\r\n"),
        "{response}"
    );
    assert!(!response.contains("\nSet-Cookie"), "{response}");
}

#[test]
fn a_clock_that_no_date_can_express_leaves_the_date_out() {
    let refusal = Refusal::head_timeout();
    for broken in [
        SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        SystemTime::UNIX_EPOCH + YEAR_10000,
    ] {
        let response = String::from_utf8(refusal.encode(broken, false)).unwrap();
        assert!(!response.contains("Date"), "{response}");
    }
    let last = SystemTime::UNIX_EPOCH + YEAR_10000 - Duration::from_secs(1);
    let response = String::from_utf8(refusal.encode(last, false)).unwrap();
    assert!(
        response.contains("Date: Fri, 31 Dec 9999 23:59:59 GMT\r\n"),
        "{response}"
    );
}

proptest! {
    #[test]
    fn every_refusal_is_exactly_one_response(reason: String, head_request: bool) {
        let refusal = Refusal::new(ProxyError::ProxyInternalError, reason);
        let bytes = refusal.encode(date(), head_request);
        let response = String::from_utf8(bytes).unwrap();
        let (line, fields, body) = parse(&response);
        prop_assert_eq!(line, "HTTP/1.1 500 Internal Server Error");
        let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
        prop_assert_eq!(names, ["Date", "Connection", "Content-Type", "Content-Length", "Proxy-Status"]);
        let length: usize = fields[3].1.parse().unwrap();
        prop_assert_eq!(body.len(), if head_request { 0 } else { length });
        prop_assert_eq!(length, refusal.reason().len() + 1);
        prop_assert_eq!(body.matches('\n').count(), usize::from(!head_request));

        let details = fields[4].1.split_once("details=\"").unwrap().1;
        prop_assert!(details.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        let mut rest = details.bytes();
        let mut is_closed = false;
        while let Some(byte) = rest.next() {
            prop_assert!(!is_closed, "text after the closing quote: {}", details);
            match byte {
                b'"' => is_closed = true,
                b'\\' => prop_assert!(matches!(rest.next(), Some(b'"' | b'\\'))),
                _character => {}
            }
        }
        prop_assert!(is_closed);
    }
}
