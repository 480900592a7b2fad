//! What the proxy itself says to a client: the tunnel is up, or one refusal.
//!
//! A refusal is a whole response with one line of plain text as its body, for the people who will
//! see it in a terminal, and the same line in `Proxy-Status` (RFC 9209), for their tools. After it
//! the connection is closed.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::{HeadError, RequestError, Status};

#[cfg(test)]
mod tests;

/// The reply to a CONNECT request whose tunnel is up (RFC 9110 §9.3.6).
///
/// No fields: none may say anything about a body, and clients of old fail on fields that they do
/// not expect here.
pub const CONNECTION_ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// The access log counts these bytes; see the size of a `TCP_TUNNEL/200` record.
const _: () = assert!(CONNECTION_ESTABLISHED.len() == 39);

/// When a client that met a limit may try again: tunnels end at any time.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

/// 10000-01-01T00:00:00Z in seconds since 1970: an HTTP date has four digits for the year.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// The kind of a failure, in the words of RFC 9209 §2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyError {
    /// The request is wrong.
    HttpRequestError,
    /// The policy denies the client or the port.
    HttpRequestDenied,
    /// The policy denies the address that the name leads to.
    DestinationIpProhibited,
    /// The tunnel would lead to the proxy itself.
    ProxyLoopDetected,
    /// The origin refused the connection.
    ConnectionRefused,
    /// There is no way to the address.
    DestinationIpUnroutable,
    /// The name has no address.
    DnsError,
    /// The origin did not answer in time.
    ConnectionTimeout,
    /// The name could not be resolved in time.
    DnsTimeout,
    /// The origin closed the connection before it was of use.
    ConnectionTerminated,
    /// We hold as many connections as we can.
    ConnectionLimitReached,
    /// Our own fault.
    ProxyInternalError,
    /// The parent proxy and we do not agree on how to talk to it.
    ProxyConfigurationError,
    /// The parent proxy says that it does not reach the target.
    DestinationUnavailable,
    /// The parent proxy does not speak HTTP.
    HttpProtocolError,
    /// The parent proxy did not answer in time.
    HttpResponseTimeout,
    /// The parent proxy's TLS handshake failed.
    TlsProtocolError,
}

/// One refusal: what the client is told instead of getting its tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: Status,
    error: ProxyError,
    /// One line: control characters are replaced when it is made.
    reason: Box<str>,
    /// What else the client is told in fields.
    extra: Extra,
}

/// A field that some refusals have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Extra {
    #[default]
    Nothing,
    /// `Proxy-Authenticate`, for this realm.
    Realm(String),
    /// `Location`.
    Location(String),
    /// `Retry-After`.
    RetryAfter(Duration),
    /// Further parameters of `Proxy-Status`.
    Parameters(String),
}

impl ProxyError {
    /// The token of RFC 9209.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HttpRequestError => "http_request_error",
            Self::HttpRequestDenied => "http_request_denied",
            Self::DestinationIpProhibited => "destination_ip_prohibited",
            Self::ProxyLoopDetected => "proxy_loop_detected",
            Self::ConnectionRefused => "connection_refused",
            Self::DestinationIpUnroutable => "destination_ip_unroutable",
            Self::DnsError => "dns_error",
            Self::ConnectionTimeout => "connection_timeout",
            Self::DnsTimeout => "dns_timeout",
            Self::ConnectionTerminated => "connection_terminated",
            Self::ConnectionLimitReached => "connection_limit_reached",
            Self::ProxyInternalError => "proxy_internal_error",
            Self::ProxyConfigurationError => "proxy_configuration_error",
            Self::DestinationUnavailable => "destination_unavailable",
            Self::HttpProtocolError => "http_protocol_error",
            Self::HttpResponseTimeout => "http_response_timeout",
            Self::TlsProtocolError => "tls_protocol_error",
        }
    }

    /// The status that goes with the error, unless the refusal knows a better one.
    ///
    /// RFC 9209 recommends `502` for a prohibited address and for a loop. Both are decisions of
    /// ours and will not go away by trying again, so they are `403`.
    #[must_use]
    pub const fn usual_status(self) -> Status {
        match self {
            Self::HttpRequestError => Status::BAD_REQUEST,
            Self::HttpRequestDenied | Self::DestinationIpProhibited | Self::ProxyLoopDetected => {
                Status::FORBIDDEN
            }
            Self::ConnectionRefused
            | Self::DestinationIpUnroutable
            | Self::DnsError
            | Self::ConnectionTerminated
            | Self::HttpProtocolError
            | Self::TlsProtocolError => Status::BAD_GATEWAY,
            Self::ConnectionTimeout | Self::DnsTimeout | Self::HttpResponseTimeout => {
                Status::GATEWAY_TIMEOUT
            }
            Self::ConnectionLimitReached | Self::DestinationUnavailable => {
                Status::SERVICE_UNAVAILABLE
            }
            Self::ProxyInternalError | Self::ProxyConfigurationError => {
                Status::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Refusal {
    /// A refusal with the usual status of its error.
    #[must_use]
    pub fn new(error: ProxyError, reason: impl Into<String>) -> Self {
        Self::with_status(error.usual_status(), error, reason)
    }

    /// A refusal with a status of its own.
    #[must_use]
    pub fn with_status(status: Status, error: ProxyError, reason: impl Into<String>) -> Self {
        let reason = reason.into().replace(char::is_control, " ").into();
        Self {
            status,
            error,
            reason,
            extra: Extra::Nothing,
        }
    }

    /// A rule asks for a user (RFC 9110 §15.5.8).
    #[must_use]
    pub fn challenge(realm: &str, reason: impl Into<String>) -> Self {
        let status = Status::PROXY_AUTHENTICATION_REQUIRED;
        let mut refusal = Self::with_status(status, ProxyError::HttpRequestDenied, reason);
        refusal.extra = Extra::Realm(realm.replace(char::is_control, " "));
        refusal
    }

    /// The same refusal with another status.
    #[must_use]
    pub fn with_other_status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    /// The same refusal, and where to go instead. What no URL can have is left out of it.
    #[must_use]
    pub fn with_location(mut self, location: &str) -> Self {
        let visible = location.chars().filter(char::is_ascii_graphic).collect();
        self.extra = Extra::Location(visible);
        self
    }

    /// The same refusal, and when to try again (RFC 9110 §10.2.3).
    #[must_use]
    pub fn with_retry_after(mut self, pause: Duration) -> Self {
        self.extra = Extra::RetryAfter(pause);
        self
    }

    /// The same refusal, and what the name server has answered (RFC 9209 section 2.3.2).
    #[must_use]
    pub fn with_rcode(mut self, code: &str) -> Self {
        self.extra = Extra::Parameters(format!(" rcode=\"{}\";", structured_string(code)));
        self
    }

    /// The same refusal, and which parent proxy it is about, with the status that it gave (RFC 9209 section 2.1).
    #[must_use]
    pub fn with_next_hop(mut self, name: &str, status: Option<u16>) -> Self {
        let status = status.map_or(String::new(), |status| {
            format!(" received-status={status};")
        });
        let name = structured_string(name);
        self.extra = Extra::Parameters(format!(" next-hop=\"{name}\";{status}"));
        self
    }

    /// The client began a request and did not end its head in time.
    #[must_use]
    pub fn head_timeout() -> Self {
        Self::with_status(
            Status::REQUEST_TIMEOUT,
            ProxyError::HttpRequestError,
            "the request head did not end in time",
        )
    }

    /// Every tunnel that we have room for is in use.
    #[must_use]
    pub fn no_room() -> Self {
        Self::new(
            ProxyError::ConnectionLimitReached,
            "this proxy has no room for another tunnel at present; try again later",
        )
        .with_retry_after(RETRY_AFTER)
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The kind of failure.
    #[must_use]
    pub fn error(&self) -> ProxyError {
        self.error
    }

    /// The reason: one line, without a full stop.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The response as it goes over the wire. The reply to a HEAD request has no body, and says
    /// how long it would have been (RFC 9110 §9.3.2).
    #[must_use]
    pub fn encode(&self, date: SystemTime, head_request: bool) -> Vec<u8> {
        let date = date_field(date).unwrap_or_default();
        let extra = match &self.extra {
            Extra::Nothing | Extra::Parameters(_) => String::new(),
            Extra::Realm(realm) => format!(
                "Proxy-Authenticate: Basic realm=\"{}\", charset=\"UTF-8\"\r\n",
                structured_string(realm)
            ),
            Extra::Location(location) => format!("Location: {location}\r\n"),
            Extra::RetryAfter(pause) => format!("Retry-After: {}\r\n", pause.as_secs()),
        };
        let parameters = match &self.extra {
            Extra::Parameters(parameters) => parameters.as_str(),
            _ => "",
        };
        let body = if head_request {
            String::new()
        } else {
            format!("{}\n", self.reason)
        };
        format!(
            "HTTP/1.1 {code} {phrase}\r\n\
             {date}\
             Connection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n\
             Proxy-Status: underpass; error={error};{parameters} details=\"{details}\"\r\n\
             {extra}\
             \r\n\
             {body}",
            code = self.status.code(),
            phrase = self.status.phrase(),
            length = self.reason.len() + 1,
            error = self.error,
            details = structured_string(&self.reason),
        )
        .into_bytes()
    }
}

impl From<HeadError> for Refusal {
    fn from(error: HeadError) -> Self {
        Self::with_status(
            error.status(),
            ProxyError::HttpRequestError,
            error.to_string(),
        )
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        Self::with_status(
            error.status(),
            ProxyError::HttpRequestError,
            error.to_string(),
        )
    }
}

/// The `Date` field; none if the clock is beyond what the field can say, as RFC 9110 §6.6.1 asks
/// of a server without a sensible clock.
fn date_field(date: SystemTime) -> Option<String> {
    let since_1970 = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since_1970 < YEAR_10000).then(|| format!("Date: {}\r\n", httpdate::fmt_http_date(date)))
}

/// The inside of an `sf-string` (RFC 8941 §3.3.3), which can hold printable ASCII only.
fn structured_string(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\\' => escaped.extend(['\\', character]),
            ' '..='~' => escaped.push(character),
            _other => escaped.push('?'),
        }
    }
    escaped
}
