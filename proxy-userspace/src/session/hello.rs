//! Rules on the name in a ClientHello: to hear it, the client is told that its tunnel is open before it is.

use bytes::BytesMut;
use tokio::time::timeout;

use super::Session;
use crate::{
    authority::HostName,
    client_hello::{self, Opening},
    http::{CONNECTION_ESTABLISHED, ProxyError, Refusal},
    net::wire::Wire,
    parent::Link,
    relay::Pair,
};

/// How far the client's side of a tunnel is when the upstream's is not there yet.
#[derive(Debug)]
pub(super) struct Start {
    /// Bytes behind the head.
    pub(super) early_data: BytesMut,
    /// The client has its answer: whatever happens now, it can only be told by a reset.
    pub(super) is_answered: bool,
    /// What it is told when the tunnel is open.
    pub(super) answer: &'static [u8],
}

impl Start {
    /// Of a tunnel that the client asks for.
    pub(super) fn asked_for(early_data: BytesMut) -> Self {
        Self {
            early_data,
            is_answered: false,
            answer: CONNECTION_ESTABLISHED,
        }
    }

    /// Of one that it does not know of.
    pub(super) fn captured(early_data: BytesMut) -> Self {
        Self {
            early_data,
            is_answered: true,
            answer: &[],
        }
    }

    /// The status and the bytes that the client has.
    pub(super) fn told(&self) -> (u16, u64) {
        if self.is_answered {
            (200, self.answer.len() as u64)
        } else {
            (0, 0)
        }
    }

    /// Both sides, with what each is owed.
    pub(super) fn pair(self, client: Wire, link: Link) -> Box<Pair> {
        let answer = if self.is_answered { &[] } else { self.answer };
        join(client, self.early_data, link, answer)
    }
}

/// Joins a client that has sent `early` bytes, and is owed an `answer`.
pub(super) fn join(client: Wire, early: BytesMut, link: Link, answer: &[u8]) -> Box<Pair> {
    let (mut upstream, opened) = link.wire.into_leg(Vec::new());
    let owed = [answer, &link.early, &opened].concat();
    let (client, opened) = client.into_leg(owed);
    upstream.owed = early.into();
    upstream.owed.extend(opened);
    Pair::new(client, upstream)
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
        wire: &Wire,
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
                    wire.write_all(start.answer)
                        .await
                        .map_err(|_| NoOpening::Left)?;
                }
                match wire.read(&mut start.early_data).await {
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

/// Why a tunnel to this host must not begin with that.
pub(super) fn objection(host: &HostName, opening: &Opening, begins: &[u8]) -> Option<Refusal> {
    let expected = host.without_root();
    let what = match opening {
        Opening::Named(name) if name.trim_end_matches('.').eq_ignore_ascii_case(expected) => {
            return None;
        }
        Opening::Named(name) => format!("names {name}"),
        Opening::Nameless if client_hello::is_one(begins) => "names no server".to_owned(),
        Opening::Nameless => return None,
    };
    let reason = format!(
        "the tunnel is for {expected}, and the ClientHello {what}, which strict_sni does not allow"
    );
    Some(Refusal::new(ProxyError::HttpRequestDenied, reason))
}

fn unclear(what: &dyn std::fmt::Display) -> NoOpening {
    let reason = format!("the rules ask for the name in the ClientHello, and there was {what}");
    NoOpening::Unclear(Refusal::new(ProxyError::HttpRequestDenied, reason))
}
