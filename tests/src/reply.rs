//! The proxy's reply to a request, read exactly: not a byte beyond the head of a success, everything of a refusal.

use std::io::{self, ErrorKind, Read};

use crate::deadline::uninterrupted;

/// What a tunnel's success looks like on the wire, to the byte.
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Longest head that the proxy may send.
const MAX_HEAD: usize = 16 * 1024;

/// One HTTP reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The head, with its empty line.
    pub head: Vec<u8>,
    /// The body; empty for a success.
    pub body: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Reply {
    /// Reads a head one byte at a time, so that what follows it stays in the socket.
    pub fn read_head(stream: &mut impl Read) -> io::Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if uninterrupted(|| stream.read(&mut byte))? == 0 {
                let text = String::from_utf8_lossy(&head).into_owned();
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("head ends after {text:?}"),
                ));
            }
            head.extend_from_slice(&byte);
            if head.len() > MAX_HEAD {
                return Err(io::Error::new(ErrorKind::InvalidData, "head is too long"));
            }
        }
        Self::parse_head(head)
    }

    /// Reads everything until the proxy closes, and takes it apart; the body is all that follows the head.
    pub fn read_to_end(stream: &mut impl Read) -> io::Result<Self> {
        let mut reply = Self::read_head(stream)?;
        stream.read_to_end(&mut reply.body)?;
        Ok(reply)
    }

    fn parse_head(head: Vec<u8>) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        let text = std::str::from_utf8(&head).map_err(|error| invalid(&error.to_string()))?;
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| invalid(status_line))?;
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':').ok_or_else(|| invalid(line))?;
                Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            status,
            head,
            body: Vec::new(),
            headers,
        })
    }

    /// The value of the only header of that name (in lower case); `None` when there is none or more than one.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key == name);
        let (_, value) = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// The error type of RFC 9209 in `Proxy-Status: underpass; error=<type>; details=".."`.
    pub fn proxy_error(&self) -> Option<&str> {
        let rest = self
            .header("proxy-status")?
            .strip_prefix("underpass; error=")?;
        Some(rest.split(';').next().unwrap_or(rest))
    }

    /// All bytes of the reply, as the access log counts them.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// True for no bytes at all, which a reply that was read never is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that this is one complete refusal as documented; the error says what is wrong.
    pub fn check_refusal(&self, status: u16, error: &str) -> Result<(), String> {
        let mut wrong = Vec::new();
        let mut expect = |what: &str, holds: bool| {
            if !holds {
                wrong.push(what.to_owned());
            }
        };
        expect(&format!("status is {status}"), self.status == status);
        expect(
            &format!("error is {error}"),
            self.proxy_error() == Some(error),
        );
        expect(
            "has details",
            self.header("proxy-status")
                .is_some_and(|value| value.contains("; details=\"")),
        );
        expect(
            "has a date",
            self.header("date")
                .is_some_and(|date| date.ends_with(" GMT")),
        );
        expect("closes", self.header("connection") == Some("close"));
        expect(
            "is plain text",
            self.header("content-type") == Some("text/plain; charset=utf-8"),
        );
        let length = self
            .header("content-length")
            .and_then(|length| length.parse().ok());
        expect(
            "content-length is that of the body, and nothing follows",
            length == Some(self.body.len()),
        );
        let line = self.body.strip_suffix(b"\n").unwrap_or_default();
        expect(
            "body is one line",
            !line.is_empty() && !line.contains(&b'\n'),
        );
        if wrong.is_empty() {
            return Ok(());
        }
        let (head, body) = (
            String::from_utf8_lossy(&self.head),
            String::from_utf8_lossy(&self.body),
        );
        Err(format!("not so: {}\n{head}{body}", wrong.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_head_and_leaves_what_follows() {
        let mut wire: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\nhello";
        let reply = Reply::read_head(&mut wire).unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.head, ESTABLISHED);
        assert_eq!(wire, b"hello");
    }

    #[test]
    fn a_second_reply_behind_a_refusal_is_noticed() {
        let one = "HTTP/1.1 400 Bad Request\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: close\r\n\
                   Content-Type: text/plain; charset=utf-8\r\nContent-Length: 4\r\n\
                   Proxy-Status: underpass; error=http_request_error; details=\"no\"\r\n\r\nbad\n";
        let reply = Reply::read_to_end(&mut one.as_bytes()).unwrap();
        reply.check_refusal(400, "http_request_error").unwrap();
        let two = Reply::read_to_end(&mut one.repeat(2).as_bytes()).unwrap();
        assert!(two.check_refusal(400, "http_request_error").is_err());
    }

    #[test]
    fn a_cut_head_is_an_error() {
        assert!(Reply::read_head(&mut &b"HTTP/1.1 200 Conn"[..]).is_err());
    }
}
