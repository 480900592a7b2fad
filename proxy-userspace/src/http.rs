//! HTTP/1.1 as a proxy needs it: a request head in, a reply out.
//!
//! Pure: bytes and values go in, values and bytes come out. Who reads the socket, and until when,
//! is not known here. The way of a request is [`HeadParser`] (syntax of any request), then
//! [`ConnectRequest`] or [`PlainRequest`] (is it one that we serve), then [`BodyDecoder`]; what goes
//! wrong on the way, here or later, becomes a [`Refusal`].

mod body;
mod connect;
mod head;
mod plain;
mod reply;
mod response;
mod status;
mod target;

pub use body::{BodyDecoder, BodyError, Found, Framing, FramingError};
pub use connect::{ConnectRequest, RequestError, Strictness};
pub use head::{Head, HeadError, HeadParser, Progress, Version};
pub use plain::{PlainRequest, end_to_end};
pub use reply::{CONNECTION_ESTABLISHED, ProxyError, RETRY_AFTER, Refusal};
pub use response::{ResponseError, ResponseHead};
pub use status::Status;
pub use target::AbsoluteTarget;
