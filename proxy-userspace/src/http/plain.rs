//! Is this head a request that we forward (RFC 9112 section 3.2.2), and what of it do we pass on?
//!
//! A client that takes us for its proxy writes the whole URL. The URL alone says where the request goes: `Host` is made
//! of it, whatever the client's own says. What is about the client's connection, and not for the origin, is taken away
//! (RFC 9110 section 7.6.1). Pure.

use hyper::{
    Method,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::uri::PathAndQuery,
};

use super::{
    AbsoluteTarget, Framing, Head, RequestError, Strictness, Version, connect::check_host,
};

/// What a connection's two ends agree on, beside what `Connection` names (RFC 9110 section 7.6.1), and what becomes of
/// the body on its way.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::UPGRADE,
];

/// A request for a resource.
#[derive(Clone, Debug)]
pub struct PlainRequest {
    /// The method.
    pub method: Method,
    /// Where to, and what there.
    pub target: AbsoluteTarget,
    /// Where its body ends.
    pub framing: Framing,
    /// The fields that are for the origin, but those that are written anew: `Host`, `Via`, `Max-Forwards`.
    pub fields: HeaderMap,
    /// The client's version.
    pub version: Version,
    /// Whether the client would go on using its connection.
    pub persists: bool,
    /// What the client would like to speak instead.
    pub upgrade: Option<HeaderValue>,
    /// How many more proxies it may pass (RFC 9110 section 7.6.2).
    pub max_forwards: Option<u32>,
}

impl PlainRequest {
    /// Makes a request of a head, or says why it is none.
    ///
    /// # Errors
    /// It is none that we forward.
    pub fn from_head(head: &Head, strictness: Strictness) -> Result<Self, RequestError> {
        let text = str::from_utf8(head.target()).unwrap_or_default();
        if text.starts_with('/') || text == "*" {
            return Err(RequestError::OwnResource);
        }
        let target = AbsoluteTarget::parse(text).ok_or(RequestError::NotUrl)?;
        if target.scheme != "http" {
            return Err(RequestError::Scheme);
        }
        let form = target.origin_form();
        PathAndQuery::try_from(&*form).map_err(|_| RequestError::NotUrl)?;
        check_host(head, strictness)?;
        let framing = Framing::of(head)?;
        let method =
            Method::from_bytes(head.method().as_bytes()).map_err(|_| RequestError::NotUrl)?;
        if method == Method::TRACE && framing != Framing::None {
            return Err(RequestError::TraceBody);
        }
        let fields = fields(head)?;
        let options = connection_options(&fields, header::CONNECTION);
        let named_options =
            connection_options(&fields, HeaderName::from_static("proxy-connection"));
        let says = |option: &str| {
            options
                .iter()
                .chain(&named_options)
                .any(|said| said == option)
        };
        let is_current = head.version() == Version::Http11;
        let persists = !says("close") && (is_current || says("keep-alive"));
        let upgrade = fields.get(header::UPGRADE).cloned();
        // What is behind a body would be neither the request's nor the new protocol's for certain.
        let has_body = !matches!(framing, Framing::None | Framing::Length(0));
        let upgrade = upgrade.filter(|_| is_current && !has_body && says("upgrade"));
        let max_forwards = match (&method, fields.get(header::MAX_FORWARDS)) {
            (&(Method::TRACE | Method::OPTIONS), Some(value)) => {
                let number = value.to_str().ok().and_then(|text| text.parse().ok());
                Some(number.ok_or(RequestError::MaxForwards)?)
            }
            _ => None,
        };
        let is_written_anew = |name: &HeaderName| match *name {
            header::HOST | header::VIA => true,
            header::MAX_FORWARDS => max_forwards.is_some(),
            // RFC 9110 section 10.1.1.
            header::EXPECT => !is_current,
            _ => false,
        };
        let fields = keep(&fields, |name| {
            is_end_to_end(name, &options) && !is_written_anew(name)
        });
        Ok(Self {
            method,
            target,
            framing,
            fields,
            version: head.version(),
            persists,
            upgrade: upgrade.filter(is_harmless),
            max_forwards,
        })
    }

    /// Whether it may be sent again if nobody knows whether it arrived (RFC 9110 section 9.2.2).
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        self.method.is_idempotent() && matches!(self.framing, Framing::None | Framing::Length(0))
    }
}

/// `h2c` would let the client ask for anything else behind our back, over the same connection.
fn is_harmless(upgrade: &HeaderValue) -> bool {
    upgrade
        .to_str()
        .is_ok_and(|text| !text.contains(',') && !text.to_ascii_lowercase().starts_with("h2c"))
}

fn fields(head: &Head) -> Result<HeaderMap, RequestError> {
    let mut fields = HeaderMap::new();
    for (name, value) in head.fields() {
        // The parser has let nothing through that these would not have.
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value),
        ) else {
            continue;
        };
        fields
            .try_append(name, value)
            .map_err(|_| RequestError::TooManyFields)?;
    }
    Ok(fields)
}

/// What a field lists, in lower case.
fn connection_options(fields: &HeaderMap, name: HeaderName) -> Vec<String> {
    fields
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|option| option.trim().to_ascii_lowercase())
        .filter(|option| !option.is_empty())
        .collect()
}

/// Whether a field is about more than one connection, and not between a client and its proxy.
fn is_end_to_end(name: &HeaderName, options: &[String]) -> bool {
    let is_of_proxies = name.as_str().starts_with("proxy-") && name != "proxy-status";
    !is_of_proxies
        && !HOP_BY_HOP.contains(name)
        && !options.iter().any(|option| option == name.as_str())
}

/// The fields with these names, in their order.
fn keep(fields: &HeaderMap, is_kept: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter().filter(|(name, _)| is_kept(name)) {
        kept.append(name, value.clone());
    }
    kept
}

/// The fields of a response that are for the client.
#[must_use]
pub fn end_to_end(fields: &HeaderMap) -> HeaderMap {
    let options = connection_options(fields, header::CONNECTION);
    keep(fields, |name| is_end_to_end(name, &options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HeadParser;

    fn read(text: &str) -> Result<PlainRequest, RequestError> {
        let mut parser = HeadParser::new();
        parser.feed(text.as_bytes()).unwrap();
        PlainRequest::from_head(&parser.into_head().unwrap(), Strictness::Strict)
    }

    /// A request in HTTP/1.1 with these field lines.
    fn with_fields(method: &str, fields: &str) -> Result<PlainRequest, RequestError> {
        read(&format!(
            "{method} http://origin.test/a?b HTTP/1.1\r\nHost: other.test\r\n{fields}\r\n"
        ))
    }

    #[test]
    fn the_url_says_where_it_goes() {
        let request = with_fields("GET", "").unwrap();
        assert_eq!(request.target.authority.to_string(), "origin.test:80");
        assert_eq!(request.target.origin_form(), "/a?b");
        assert!(request.fields.is_empty(), "{:?}", request.fields);
    }

    #[test]
    fn what_is_not_for_us() {
        use RequestError as E;
        for (line, error, status) in [
            ("GET / HTTP/1.1", E::OwnResource, 400),
            ("GET /http://origin.test/ HTTP/1.1", E::OwnResource, 400),
            ("OPTIONS * HTTP/1.1", E::OwnResource, 400),
            ("GET origin.test HTTP/1.1", E::NotUrl, 400),
            ("connect origin.test:443 HTTP/1.1", E::NotUrl, 400),
            ("GET http:///x HTTP/1.1", E::NotUrl, 400),
            ("GET http://u:p@origin.test/ HTTP/1.1", E::NotUrl, 400),
            ("GET http://origin.test/#x HTTP/1.1", E::NotUrl, 400),
            ("GET https://origin.test/ HTTP/1.1", E::Scheme, 501),
            ("GET ftp://origin.test/ HTTP/1.1", E::Scheme, 501),
        ] {
            let refused = read(&format!("{line}\r\nHost: x\r\n\r\n")).unwrap_err();
            assert_eq!(
                (refused, refused.status().code()),
                (error, status),
                "{line}"
            );
        }
        let without_host = read("GET http://origin.test/ HTTP/1.1\r\n\r\n");
        assert_eq!(without_host.unwrap_err(), E::MissingHost);
        assert!(read("GET http://origin.test/ HTTP/1.0\r\n\r\n").is_ok());
        let trace = with_fields("TRACE", "Content-Length: 1\r\n");
        assert_eq!(trace.unwrap_err(), E::TraceBody);
    }

    #[test]
    fn what_is_between_client_and_proxy_stays_there() {
        let request = with_fields(
            "POST",
            "Connection: close, X-Mine\r\nX-Mine: 1\r\nX-Other: 2\r\nProxy-Authorization: Basic x\r\n\
             Proxy-Anything: x\r\nKeep-Alive: x\r\nTE: trailers\r\nContent-Length: 5\r\n\
             Expect: 100-continue\r\nUpgrade: websocket\r\n",
        )
        .unwrap();
        let left: Vec<_> = request.fields.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-other", "expect"]);
        assert_eq!(request.framing, Framing::Length(5));
        assert!(!request.persists);
        assert_eq!(request.upgrade, None, "Connection does not name it");
    }

    #[test]
    fn upgrades() {
        let upgrade = |value: &str| {
            let fields = format!("Connection: Upgrade\r\nUpgrade: {value}\r\n");
            with_fields("GET", &fields).unwrap().upgrade
        };
        assert_eq!(upgrade("websocket").unwrap(), "websocket");
        assert_eq!(upgrade("h2c"), None);
        assert_eq!(upgrade("websocket, h2c"), None);
    }

    #[test]
    fn how_long_connections_last() {
        let old = |fields: &str| {
            read(&format!("GET http://a.test/ HTTP/1.0\r\n{fields}\r\n"))
                .unwrap()
                .persists
        };
        assert!(!old(""));
        assert!(old("Proxy-Connection: keep-alive\r\n"));
        assert!(with_fields("GET", "").unwrap().persists);
        assert!(
            !with_fields("GET", "Proxy-Connection: close\r\n")
                .unwrap()
                .persists
        );
    }

    #[test]
    fn what_may_be_sent_twice() {
        assert!(with_fields("GET", "").unwrap().is_repeatable());
        assert!(!with_fields("POST", "").unwrap().is_repeatable());
        assert!(
            !with_fields("PUT", "Content-Length: 1\r\n")
                .unwrap()
                .is_repeatable()
        );
    }

    #[test]
    fn max_forwards_is_for_some_methods() {
        let of = |method, value: &str| {
            with_fields(method, &format!("Max-Forwards: {value}\r\n")).map(|it| it.max_forwards)
        };
        assert_eq!(of("TRACE", "3"), Ok(Some(3)));
        assert_eq!(of("GET", "x"), Ok(None));
        assert_eq!(of("OPTIONS", "x"), Err(RequestError::MaxForwards));
    }
}
