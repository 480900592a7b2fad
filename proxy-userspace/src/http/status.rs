//! Status codes of replies that we make ourselves.

use std::{fmt, num::NonZeroU16};

/// The status code of a refusal (RFC 9110 §15, RFC 6585), from 300 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(NonZeroU16);

/// Makes the constants and the table of phrases of one list.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal $phrase:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self::known($code);)*

            /// The reason phrase of the status line; empty for a status that we know no phrase of.
            #[must_use]
            pub const fn phrase(self) -> &'static str {
                match self.code() {
                    $($code => $phrase,)*
                    _ => "",
                }
            }
        }
    };
}

statuses! {
    /// A rule sends the client elsewhere.
    FOUND = 302 "Found";
    /// The same, with GET.
    SEE_OTHER = 303 "See Other";
    /// The same, with the same method.
    TEMPORARY_REDIRECT = 307 "Temporary Redirect";
    /// The request is malformed.
    BAD_REQUEST = 400 "Bad Request";
    /// The policy does not permit it.
    FORBIDDEN = 403 "Forbidden";
    /// What a rule may say instead.
    NOT_FOUND = 404 "Not Found";
    /// What a rule may say instead.
    METHOD_NOT_ALLOWED = 405 "Method Not Allowed";
    /// The policy asks for a user; the reply carries `Proxy-Authenticate`.
    PROXY_AUTHENTICATION_REQUIRED = 407 "Proxy Authentication Required";
    /// The head did not end in time.
    REQUEST_TIMEOUT = 408 "Request Timeout";
    /// What a rule may say instead.
    GONE = 410 "Gone";
    /// The target is longer than any authority.
    URI_TOO_LONG = 414 "URI Too Long";
    /// The client has as many tunnels as it may have.
    TOO_MANY_REQUESTS = 429 "Too Many Requests";
    /// The head is too large.
    HEADER_FIELDS_TOO_LARGE = 431 "Request Header Fields Too Large";
    /// What a rule may say instead.
    UNAVAILABLE_FOR_LEGAL_REASONS = 451 "Unavailable For Legal Reasons";
    /// Our own fault.
    INTERNAL_SERVER_ERROR = 500 "Internal Server Error";
    /// A scheme or a transfer coding that we do not speak.
    NOT_IMPLEMENTED = 501 "Not Implemented";
    /// The origin can not be reached.
    BAD_GATEWAY = 502 "Bad Gateway";
    /// We have no room for the request at present.
    SERVICE_UNAVAILABLE = 503 "Service Unavailable";
    /// The origin did not answer in time.
    GATEWAY_TIMEOUT = 504 "Gateway Timeout";
    /// Neither HTTP/1.1 nor HTTP/1.0.
    VERSION_NOT_SUPPORTED = 505 "HTTP Version Not Supported";
}

impl Status {
    /// A status of a refusal: a redirection or an error.
    #[must_use]
    pub const fn refusal(code: u16) -> Option<Self> {
        match NonZeroU16::new(code) {
            Some(nonzero) if code >= 300 && code < 600 => Some(Self(nonzero)),
            _ => None,
        }
    }

    const fn known(code: u16) -> Self {
        match Self::refusal(code) {
            Some(status) => status,
            None => Self(NonZeroU16::MAX),
        }
    }

    /// The number.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0.get()
    }

    /// Whether the client is sent elsewhere.
    #[must_use]
    pub const fn is_redirection(self) -> bool {
        self.code() < 400
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.code().fmt(f)
    }
}
