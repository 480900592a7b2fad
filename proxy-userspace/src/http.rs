//! HTTP/1.1 as a CONNECT proxy needs it: one request head in, one reply out.
//!
//! Pure: bytes and values go in, values and bytes come out. Who reads the socket, and until when,
//! is not known here. The way of a request is [`HeadParser`] (syntax of any request), then
//! [`ConnectRequest`] (is it a CONNECT that we serve); what goes wrong on the way, here or later,
//! becomes a [`Refusal`].

mod connect;
mod head;
mod reply;
mod response;
mod status;
mod target;

pub use connect::{ConnectRequest, RequestError, Strictness};
pub use head::{Head, HeadError, HeadParser, Progress, Version};
pub use reply::{CONNECTION_ESTABLISHED, ProxyError, RETRY_AFTER, Refusal};
pub use response::{ResponseError, ResponseHead};
pub use status::Status;
pub use target::AbsoluteTarget;
