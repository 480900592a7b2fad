//! The head of a response: what a parent proxy says to our CONNECT. Pure.

use thiserror::Error;

/// Header fields of a response at most.
const MAX_FIELDS: usize = 100;

/// Bytes of a head at most.
const MAX_BYTES: usize = 64 * 1024;

/// As much of a head as a tunnel depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// Bytes of the head, interim responses before it included.
    pub bytes: usize,
}

/// Why it is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// It is not HTTP/1.
    #[error("the answer is not HTTP/1")]
    NotHttp,
    /// It goes on for too long.
    #[error("the head of the answer is longer than 64 KiB, or has more than 100 fields")]
    TooLong,
}

impl ResponseHead {
    /// Reads the first response that is final (RFC 9110 section 15.2); none while it is incomplete.
    ///
    /// # Errors
    /// It never will be one.
    pub fn parse(received: &[u8]) -> Result<Option<Self>, ResponseError> {
        let mut begin = 0;
        loop {
            let rest = received.get(begin..).unwrap_or_default();
            let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut response = httparse::Response::new(&mut fields);
            let bytes = match response.parse(rest) {
                Ok(httparse::Status::Complete(bytes)) => bytes,
                Ok(httparse::Status::Partial) if received.len() >= MAX_BYTES => {
                    return Err(ResponseError::TooLong);
                }
                Ok(httparse::Status::Partial) => return Ok(None),
                Err(httparse::Error::TooManyHeaders) => return Err(ResponseError::TooLong),
                Err(_) => return Err(ResponseError::NotHttp),
            };
            let status = response.code.unwrap_or_default();
            begin += bytes;
            // 101 is no answer to a request without an Upgrade.
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            return Ok(Some(Self {
                status,
                bytes: begin,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_ends_where_the_tunnel_begins() {
        let head = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n";
        let early = [head.as_slice(), b"\0early"].concat();
        let parsed = ResponseHead::parse(&early).unwrap().unwrap();
        assert_eq!((parsed.status, parsed.bytes), (200, head.len()));
        for end in 0..head.len() {
            assert_eq!(ResponseHead::parse(&head[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn interim_responses_are_passed_over() {
        let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 403 Forbidden\r\n\r\nno";
        let parsed = ResponseHead::parse(text).unwrap().unwrap();
        assert_eq!((parsed.status, parsed.bytes), (403, text.len() - 2));
        let half = &text[..30];
        assert_eq!(ResponseHead::parse(half), Ok(None));
    }

    #[test]
    fn what_is_no_response_is_an_error() {
        for text in [
            &b"SSH-2.0-x\r\n"[..],
            b"\x15\x03\x01\0\x02",
            b"HTTP/2 200\r\n\r\n",
        ] {
            assert_eq!(
                ResponseHead::parse(text),
                Err(ResponseError::NotHttp),
                "{text:?}"
            );
        }
        let long = [b"HTTP/1.1 200 OK\r\nA: ".to_vec(), vec![b'a'; MAX_BYTES]].concat();
        assert_eq!(ResponseHead::parse(&long), Err(ResponseError::TooLong));
        let many = [
            b"HTTP/1.1 200 OK\r\n".to_vec(),
            b"a: b\r\n".repeat(MAX_FIELDS + 1),
        ]
        .concat();
        assert_eq!(ResponseHead::parse(&many), Err(ResponseError::TooLong));
    }
}
