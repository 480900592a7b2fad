//! The status codes that a refusal can have.

use std::fmt;

/// The status code of a refusal (RFC 9110 §15, RFC 6585 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    /// The request is malformed.
    BadRequest = 400,
    /// The policy does not permit it.
    Forbidden = 403,
    /// A known method other than CONNECT; the reply carries `Allow`.
    MethodNotAllowed = 405,
    /// The head did not end in time.
    RequestTimeout = 408,
    /// The target is longer than any authority.
    UriTooLong = 414,
    /// The head is too large.
    HeaderFieldsTooLarge = 431,
    /// Our own fault.
    InternalServerError = 500,
    /// A method that we do not know.
    NotImplemented = 501,
    /// The origin can not be reached.
    BadGateway = 502,
    /// We have no room for the request at present.
    ServiceUnavailable = 503,
    /// The origin did not answer in time.
    GatewayTimeout = 504,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    VersionNotSupported = 505,
}

impl Status {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The reason phrase of the status line.
    #[must_use]
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::BadRequest => "Bad Request",
            Self::Forbidden => "Forbidden",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::RequestTimeout => "Request Timeout",
            Self::UriTooLong => "URI Too Long",
            Self::HeaderFieldsTooLarge => "Request Header Fields Too Large",
            Self::InternalServerError => "Internal Server Error",
            Self::NotImplemented => "Not Implemented",
            Self::BadGateway => "Bad Gateway",
            Self::ServiceUnavailable => "Service Unavailable",
            Self::GatewayTimeout => "Gateway Timeout",
            Self::VersionNotSupported => "HTTP Version Not Supported",
        }
    }

    /// Whether the reply must name the methods that are allowed (RFC 9110 §15.5.6).
    #[must_use]
    pub const fn requires_allow(self) -> bool {
        matches!(self, Self::MethodNotAllowed)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.code().fmt(f)
    }
}
