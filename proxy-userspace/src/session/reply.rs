//! What a client is told instead of getting its tunnel, and what the logs are told of either.

use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::{
    select,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{Arrival, Session, reach::Failure};
use crate::{
    access::{Cause, Refused},
    access_log::{Event, Record, Tag},
    client_hello::Opening,
    http::{ProxyError, Refusal, Status},
    limits::{LINGER_MAX_BYTES, LINGER_TIMEOUT},
    net::wire::Wire,
    parent::Hierarchy,
    registry::Tunnel,
    relay::{Ending, Outcome},
};

/// The type of the replies we make ourselves.
const TEXT_PLAIN: &str = "text/plain";

impl Session {
    /// Tells the client why there is no tunnel.
    pub(super) async fn fail(&self, wire: Wire, failure: Failure, entry: Record<'_>) {
        match failure {
            Failure::Left => self.log(entry),
            Failure::Refused(refused) => self.deny(wire, &refused, entry).await,
            Failure::Limit {
                refusal,
                user,
                rule,
            } => {
                let entry = Record {
                    tag: Tag::TcpDenied,
                    user: user.as_deref(),
                    rule: rule.as_deref(),
                    ..entry
                };
                self.refuse(wire, &refusal, entry).await;
            }
            Failure::Unreachable {
                refusal,
                tried,
                hop,
                user,
            } => {
                let entry = Record {
                    peer: tried,
                    hierarchy: hop.hierarchy(),
                    parent: hop.parent(),
                    user: user.as_deref(),
                    ..entry
                };
                self.refuse(wire, &self.in_dialect(refusal), entry).await;
            }
        }
    }

    /// Tells a client that is not served why, if it is to be told.
    pub(super) async fn turn_away(
        &self,
        wire: Wire,
        why: Option<(Tag, &Refusal)>,
        entry: Record<'_>,
    ) {
        if let Some((tag, refusal)) = why {
            let entry = Record {
                tag,
                rule: (tag == Tag::TcpDenied).then_some("allow_client"),
                ..entry
            };
            self.refuse(wire, refusal, entry).await;
        }
    }

    /// Tells the client what the rules say, or what kept them from deciding.
    pub(super) async fn deny(&self, wire: Wire, refused: &Refused, entry: Record<'_>) {
        let Arrival { id, client, .. } = &self.arrival;
        debug!(id, %client, target = &*entry.url, by = ?refused.cause, "not permitted");
        let is_decision = refused.cause != Cause::Failure
            || refused.refusal.error() == ProxyError::ProxyLoopDetected;
        let tag = if is_decision {
            Tag::TcpDenied
        } else {
            entry.tag
        };
        let entry = Record {
            tag,
            user: refused.user.as_deref(),
            rule: refused.cause.rule(),
            ..entry
        };
        if refused.reset {
            wire.reset();
            self.log(Record {
                refusal: Some(&refused.refusal),
                ..entry
            });
            return;
        }
        let refusal = self.in_dialect(refused.refusal.clone());
        self.refuse(wire, &refusal, entry).await;
    }

    /// Squid says 503 where we say 502 and 504.
    fn in_dialect(&self, refusal: Refusal) -> Refusal {
        let is_gateway = matches!(
            refusal.status(),
            Status::BAD_GATEWAY | Status::GATEWAY_TIMEOUT
        );
        if is_gateway && self.live().is_squid() {
            return refusal.with_other_status(Status::SERVICE_UNAVAILABLE);
        }
        refusal
    }

    /// The tunnel's record in the diagnostics: what the access log's format has no field for.
    pub(super) fn report(&self, tunnel: &Tunnel, outcome: &Outcome) {
        let Tunnel {
            id,
            target,
            upstream,
            parent,
            user,
            opening,
            rule,
            ..
        } = tunnel;
        let payload = tunnel.traffic.payload();
        let sni = opening.as_ref().and_then(Opening::name);
        if let Ending::Integrity(what) | Ending::Failed(what) = &outcome.ending {
            warn!(id, %target, "the tunnel was reset: {what}");
        }
        info!(
            id,
            client = %self.arrival.client,
            user = user.as_deref(),
            %target,
            sni,
            %upstream,
            parent = parent.as_deref(),
            rule = rule.as_deref(),
            engine = %outcome.engine,
            moved_after = outcome.moved_after,
            up = payload.to_upstream,
            down = payload.to_client,
            spliced = outcome.spliced.bytes,
            pauses = outcome.spliced.pauses,
            trimmed = outcome.spliced.trimmed,
            floods = outcome.spliced.floods,
            ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            end = %outcome.ending,
            detail = outcome.ending.detail(),
            declined = outcome.declined.as_deref(),
            "tunnel ended"
        );
    }

    /// Refuses a request for a known target; one that was answered already ends with a reset.
    pub(super) async fn refuse(&self, wire: Wire, refusal: &Refusal, entry: Record<'_>) {
        let Arrival { id, client, .. } = &self.arrival;
        if entry.status != 0 {
            let reason = refusal.reason();
            info!(id, %client, target = &*entry.url, "reset behind the 200: {reason}");
            wire.reset();
            self.log(Record {
                refusal: Some(refusal),
                ..entry
            });
            return;
        }
        debug!(id, %client, target = &*entry.url, "refused: {}", refusal.reason());
        let sent = send_refusal(&wire, refusal, entry.method == "HEAD").await;
        self.log(Record {
            status: refusal.status().code(),
            sent,
            content_type: Some(TEXT_PLAIN.into()),
            refusal: Some(refusal),
            ..entry
        });
        self.linger(wire).await;
    }

    /// Refuses what was no request that we serve; `url` is what the access log shows of it.
    pub(super) async fn refuse_request(
        &self,
        wire: Wire,
        refusal: &Refusal,
        method: Option<&str>,
        url: &str,
    ) {
        let Arrival { id, client, .. } = &self.arrival;
        debug!(id, %client, "refused: {}", refusal.reason());
        let head_request = method == Some("HEAD");
        let sent = send_refusal(&wire, refusal, head_request).await;
        self.log(Record {
            status: refusal.status().code(),
            sent,
            method: method.unwrap_or("NONE"),
            url: url.into(),
            content_type: Some(TEXT_PLAIN.into()),
            refusal: Some(refusal),
            ..self.no_request()
        });
        self.linger(wire).await;
    }

    /// Keeps the connection until the client has closed it or has had its time.
    ///
    /// Nothing that arrives behind a refused request is interpreted (RFC 9931): it is read and thrown
    /// away, within bounds, because a close with unread bytes becomes a reset that may overtake the
    /// reply (RFC 9112 section 9.6).
    pub(super) async fn linger(&self, wire: Wire) {
        let discard = async {
            let mut scrap = BytesMut::new();
            let mut discarded = 0;
            while discarded < LINGER_MAX_BYTES {
                match wire.read(&mut scrap).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => discarded += n,
                }
                scrap.clear();
            }
        };
        select! {
            () = discard => {}
            // The client does not close; we do.
            () = sleep(LINGER_TIMEOUT) => {}
            () = self.cancel.cancelled() => {}
        }
    }

    pub(super) fn log_no_request(&self) {
        self.log(self.no_request());
    }

    /// What there is to say of a client that has not asked for anything.
    pub(super) fn no_request(&self) -> Record<'_> {
        Record {
            tag: Tag::None,
            method: "NONE",
            url: "error:transaction-end-before-headers".into(),
            ..self.record()
        }
    }

    /// What there is to say of any request; of one for a tunnel if nothing else is said.
    pub(super) fn record(&self) -> Record<'_> {
        let Arrival {
            id,
            client,
            listener_name,
            certificate,
            captured,
            ..
        } = &self.arrival;
        Record {
            event: Event::End,
            id: *id,
            time: SystemTime::UNIX_EPOCH,
            elapsed: Duration::ZERO,
            client: *client,
            listener: self.local,
            listener_name,
            user: None,
            certificate: certificate.as_deref(),
            captured: captured.as_deref(),
            tag: Tag::TcpTunnel,
            status: 0,
            sent: 0,
            received: self.head.bytes,
            method: "CONNECT",
            url: "".into(),
            version: self.head.version,
            target: None,
            peer: None,
            peer_port: None,
            local: None,
            hierarchy: Hierarchy::Direct,
            parent: None,
            content_type: None,
            rule: None,
            engine: None,
            declined: None,
            moved_after: None,
            ending: None,
            finished: None,
            refusal: None,
            sni: None,
            timings: self.timings(),
            fields: &self.head.fields,
        }
    }

    /// Writes the record to the logs that it is meant for.
    pub(super) fn log(&self, record: Record<'_>) {
        let record = Record {
            time: SystemTime::now(),
            elapsed: self.since.elapsed(),
            ..record
        };
        self.shared.log(&self.live(), &record);
    }
}

/// Sends the refusal and our FIN: the bytes of it that the client can have received, all or none.
/// [`Session::linger`] has to follow.
async fn send_refusal(wire: &Wire, refusal: &Refusal, head_request: bool) -> u64 {
    let reply = refusal.encode(SystemTime::now(), head_request);
    let send = async {
        wire.write_all(&reply).await?;
        // It may have read that, and closed at once.
        let _ = wire.finish().await;
        Ok::<_, std::io::Error>(())
    };
    match timeout(LINGER_TIMEOUT, send).await {
        Ok(Ok(())) => reply.len() as u64,
        Ok(Err(error)) => {
            debug!(%error, "the client did not wait for its refusal");
            0
        }
        Err(_elapsed) => 0,
    }
}
