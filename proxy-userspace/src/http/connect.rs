//! Is this head a CONNECT request that we serve (RFC 9110 §9.3.6)?
//!
//! The target alone says where the tunnel leads. `Host` must be there and well formed, because RFC
//! 9112 §3.2 demands it, but it is not compared with the target: nothing reads it. A head that
//! announces a body is refused: CONNECT has none, and what follows the head belongs to the tunnel.

use thiserror::Error;

use super::{FramingError, Head, Status, Version};
use crate::authority::{Authority, AuthorityError, is_valid_host_field};

#[cfg(test)]
mod tests;

/// A request for a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where the tunnel is to lead.
    pub authority: Authority,
}

/// How much of RFC 9112 we insist on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// All of it.
    #[default]
    Strict,
    /// All but one: an HTTP/1.1 request may lack `Host`, as some old clients send it.
    Relaxed,
}

/// Why a well formed head is not a request that we serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// A path instead of a URL: somebody takes us for a web server.
    #[error(
        "this is a proxy and has no pages of its own; set it as the proxy of a client, such as: \
         curl --proxy http://HOST:PORT http://example.com/"
    )]
    OwnResource,
    /// Neither that nor a URL; or one with a user or a fragment.
    #[error("the target is not a URL; write http://host/path, or CONNECT host:port")]
    NotUrl,
    /// A URL of another scheme than `http`.
    #[error("only http URLs are forwarded; for others ask for a tunnel with CONNECT host:port")]
    Scheme,
    /// A body in a TRACE request (RFC 9110 §9.3.8).
    #[error("a TRACE request has no body")]
    TraceBody,
    /// `Max-Forwards` is no number.
    #[error("Max-Forwards is not a number")]
    MaxForwards,
    /// More fields than a head can have.
    #[error("the request has too many header fields")]
    TooManyFields,
    /// It is not known where the body ends.
    #[error("{0}")]
    Framing(#[from] FramingError),
    /// The target is not `host:port`.
    #[error("{0}")]
    Target(#[from] AuthorityError),
    /// No `Host` in an HTTP/1.1 request.
    #[error("the Host header is missing; HTTP/1.1 requires it")]
    MissingHost,
    /// `Host` more than once.
    #[error("the Host header is repeated; send it once")]
    RepeatedHost,
    /// `Host` is not `host` or `host:port`.
    #[error("the Host header is malformed; write host:port")]
    InvalidHost,
    /// `Transfer-Encoding` in any form.
    #[error("a CONNECT request has no body; send no Transfer-Encoding")]
    TransferEncoding,
    /// A `Content-Length` other than 0.
    #[error("a CONNECT request has no body; send no Content-Length, or 0")]
    ContentLength,
}

impl ConnectRequest {
    /// Makes a request of the head of a CONNECT request, or says why it is none.
    pub fn from_head(head: &Head, strictness: Strictness) -> Result<Self, RequestError> {
        let authority = Authority::parse(head.target())?;
        check_host(head, strictness)?;
        check_no_body(head)?;
        Ok(Self { authority })
    }
}

impl RequestError {
    /// The status of the refusal.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Scheme => Status::NOT_IMPLEMENTED,
            Self::TooManyFields => Status::HEADER_FIELDS_TOO_LARGE,
            Self::Framing(error) => error.status(),
            _ => Status::BAD_REQUEST,
        }
    }
}

/// RFC 9112 §3.2: exactly one valid `Host` in HTTP/1.1, at most one in HTTP/1.0.
pub(super) fn check_host(head: &Head, strictness: Strictness) -> Result<(), RequestError> {
    let mut hosts = head.values("host");
    let Some(host) = hosts.next() else {
        return match (head.version(), strictness) {
            (Version::Http11, Strictness::Strict) => Err(RequestError::MissingHost),
            (Version::Http10, _) | (_, Strictness::Relaxed) => Ok(()),
        };
    };
    if hosts.next().is_some() {
        return Err(RequestError::RepeatedHost);
    }
    if !is_valid_host_field(host) {
        return Err(RequestError::InvalidHost);
    }
    Ok(())
}

/// A body would end where only its framing says, and a recipient of the tunnel's bytes who reads
/// the framing differently would be smuggled a request (RFC 9112 §6.3, §11.2).
fn check_no_body(head: &Head) -> Result<(), RequestError> {
    if head.values("transfer-encoding").next().is_some() {
        return Err(RequestError::TransferEncoding);
    }
    // RFC 9110 §8.6: equal values may be repeated, in one line or in several.
    let all_zero = head
        .values("content-length")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .all(|number| !number.is_empty() && number.iter().all(|digit| *digit == b'0'));
    if all_zero {
        Ok(())
    } else {
        Err(RequestError::ContentLength)
    }
}
