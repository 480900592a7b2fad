//! What comes before the first request at some listeners: a PROXY header, which says who the client is, and TLS.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use rustls::{ServerConfig, ServerConnection};
use tokio::{
    net::TcpStream,
    select,
    time::{Instant, timeout, timeout_at},
};
use tracing::debug;

use super::{Admission, INVALID, Session};
use crate::{
    access_log::Tag,
    http::{ProxyError, Refusal},
    net::{
        announce::{self, Announcement},
        wire::Wire,
    },
    tls,
};

impl Session {
    /// The connection as requests come over it, and what has come already. Without one, ends with what the client is
    /// told.
    pub(super) async fn greet(&mut self, stream: TcpStream) -> Option<(Wire, BytesMut)> {
        let live = self.live();
        let (Some(front), Some(patience)) = (live.front(self.arrival.listener), self.patience())
        else {
            return Some((Wire::plain(stream), BytesMut::new()));
        };
        let mut stream = stream;
        let (mut consumed, mut received) = (0, BytesMut::new());
        if front.is_announced_by(self.arrival.client.ip()) {
            let announcement;
            (stream, announcement) = self
                .announcement(stream, patience, front.tls.is_some())
                .await?;
            consumed = announcement.bytes + announcement.rest.len();
            received = announcement.rest;
            self.meet(announcement.client.unwrap_or(self.arrival.client));
        }
        let Some(config) = &front.tls else {
            let wire = Wire::plain(stream).with_moved(consumed, 0);
            return Some((wire, received));
        };
        let wire = self
            .seal(stream, &received, Arc::clone(config), patience)
            .await?;
        let certificate = wire.certificate();
        self.arrival.certificate = certificate.map(|certificate| tls::names(&certificate).into());
        Some((wire, BytesMut::new()))
    }

    /// Reads a PROXY header.
    async fn announcement(
        &self,
        stream: TcpStream,
        patience: Duration,
        is_sealed: bool,
    ) -> Option<(TcpStream, Announcement)> {
        let received = select! {
            received = timeout(patience, announce::receive(&stream)) => received,
            () = self.cancel.cancelled() => return None,
        };
        match received {
            Ok(Ok(announcement)) => Some((stream, announcement)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData && !is_sealed => {
                let reason = format!(
                    "connections from {} begin with a PROXY protocol header at this port; {error}",
                    self.arrival.client.ip()
                );
                let refusal = Refusal::new(ProxyError::HttpRequestError, reason);
                self.refuse_request(Wire::plain(stream), &refusal, None, INVALID)
                    .await;
                None
            }
            other => {
                debug!(id = self.arrival.id, client = %self.arrival.client, ?other, "no PROXY header");
                self.log_no_request();
                None
            }
        }
    }

    /// From now on this is the client.
    fn meet(&mut self, client: SocketAddr) {
        self.arrival.client = client;
        self.arrival.counted = self.shared.registry.connected(client.ip());
        let Err(denial) = self.live().policy.client(client.ip()) else {
            return;
        };
        let admission = std::mem::replace(&mut self.arrival.admission, Admission::Over);
        self.arrival.admission = match admission {
            Admission::Served(permit) => Admission::TurnedAway {
                tag: Tag::TcpDenied,
                refusal: denial.into(),
                // Nobody else has it yet.
                permit: Arc::try_unwrap(permit).ok(),
            },
            other => other,
        };
    }

    /// Answers a TLS handshake, of which some may have been `received`.
    async fn seal(
        &self,
        stream: TcpStream,
        received: &[u8],
        config: Arc<ServerConfig>,
        patience: Duration,
    ) -> Option<Wire> {
        let until = Instant::now() + patience;
        let mut first = [0];
        let begun = async {
            match received {
                [byte, ..] => first = [*byte],
                [] => _ = stream.peek(&mut first).await?,
            }
            io::Result::Ok(())
        };
        let begun = select! {
            begun = timeout_at(until, begun) => begun,
            () = self.cancel.cancelled() => return None,
        };
        if matches!(begun, Ok(Ok(()))) && first[0].is_ascii_alphabetic() {
            let reason = "this port speaks TLS; write https:// in the URL of the proxy";
            let refusal = Refusal::new(ProxyError::HttpRequestError, reason);
            self.refuse_request(Wire::plain(stream), &refusal, None, INVALID)
                .await;
            return None;
        }
        let shake = async {
            let tls = ServerConnection::new(config).map_err(io::Error::other)?;
            Wire::sealed(stream, received, tls).await
        };
        let shaken = select! {
            shaken = timeout_at(until, shake) => shaken,
            () = self.cancel.cancelled() => return None,
        };
        match shaken {
            Ok(Ok(wire)) => Some(wire),
            failed => {
                let why = match &failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "it took too long".to_owned(),
                };
                debug!(id = self.arrival.id, client = %self.arrival.client, "no TLS: {why}");
                self.log_no_request();
                None
            }
        }
    }
}
