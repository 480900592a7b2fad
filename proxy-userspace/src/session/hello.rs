//! Rules on the name in a ClientHello: to hear it, the client is told that its tunnel is open before it is.

use std::io;

use tokio::{net::TcpStream, time::timeout};

use super::{READ_BYTES, Session};
use crate::{
    client_hello::{self, Opening},
    http::{CONNECTION_ESTABLISHED, ProxyError, Refusal},
    parent::Link,
    relay::{Leg, Pair},
};

/// How far the client's side of a tunnel is when the upstream's is not there yet.
#[derive(Debug, Default)]
pub(super) struct Start {
    /// The length of the head.
    pub(super) head_bytes: usize,
    /// Bytes behind the head.
    pub(super) early_data: Vec<u8>,
    /// The client has its `200`: whatever happens now, it can only be told by a reset.
    pub(super) is_answered: bool,
}

impl Start {
    /// The status and the bytes that the client has.
    pub(super) fn told(&self) -> (u16, u64) {
        if self.is_answered {
            (200, CONNECTION_ESTABLISHED.len() as u64)
        } else {
            (0, 0)
        }
    }

    /// Both sides, with what each is owed.
    pub(super) fn pair(self, client: TcpStream, link: Link) -> Box<Pair> {
        let (_, written) = self.told();
        let answer: &[u8] = if self.is_answered {
            &[]
        } else {
            CONNECTION_ESTABLISHED
        };
        let client = Leg {
            stream: client,
            tls: None,
            owed: [answer, &link.early].concat(),
            consumed: (self.head_bytes + self.early_data.len()) as u64,
            written,
        };
        let upstream = Leg {
            stream: link.stream,
            tls: link.tls.map(|tls| Box::new((*tls).into())),
            owed: self.early_data,
            consumed: link.consumed,
            written: link.written,
        };
        Pair::new(client, upstream)
    }
}

/// How waiting for it ended, other than with an opening.
#[derive(Debug)]
pub(super) enum NoOpening {
    /// It went away.
    Left,
    /// It says nothing that could be judged.
    Unclear(Refusal),
}

impl Session {
    /// What the client begins with, which may be there already.
    ///
    /// Silence is not taken for a tunnel without TLS: who waits long enough would get past the rules.
    pub(super) async fn opening(
        &self,
        stream: &TcpStream,
        start: &mut Start,
    ) -> Result<Opening, NoOpening> {
        let patience = self.live().hello_timeout;
        let listen = async {
            loop {
                if let Some(opening) =
                    client_hello::read(&start.early_data).map_err(|error| unclear(&error))?
                {
                    return Ok(opening);
                }
                if !start.is_answered {
                    start.is_answered = true;
                    write_all(stream, CONNECTION_ESTABLISHED)
                        .await
                        .map_err(|_| NoOpening::Left)?;
                }
                match read_some(stream, &mut start.early_data).await {
                    Ok(0) if start.early_data.is_empty() => return Ok(Opening::Nameless),
                    Ok(0) => return Err(unclear(&"half a ClientHello")),
                    Ok(_) => {}
                    Err(_) => return Err(NoOpening::Left),
                }
            }
        };
        timeout(patience, listen)
            .await
            .unwrap_or_else(|_elapsed| Err(unclear(&format!("no ClientHello within {patience:?}"))))
    }
}

fn unclear(what: &dyn std::fmt::Display) -> NoOpening {
    let reason = format!("the rules ask for the name in the ClientHello, and there was {what}");
    NoOpening::Unclear(Refusal::new(ProxyError::HttpRequestDenied, reason))
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn read_some(stream: &TcpStream, into: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        into.reserve(READ_BYTES);
        match stream.try_read_buf(into) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}
