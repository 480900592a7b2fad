//! What a client is told instead of getting its tunnel, and what the logs are told of either.

use std::{borrow::Cow, net::IpAddr, time::SystemTime};

use bytes::BytesMut;
use tokio::{
    select,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{Arrival, Session, reach::Failure};
use crate::{
    access::{Cause, Refused},
    access_log::{Record, Tag},
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
    pub(super) async fn fail(&self, wire: Wire, failure: Failure, entry: Entry<'_>) {
        match failure {
            Failure::Left => self.log(entry),
            Failure::Refused(refused) => self.deny(wire, &refused, entry).await,
            Failure::Limit { refusal, user } => {
                let entry = Entry {
                    tag: Tag::TcpDenied,
                    user: user.as_deref(),
                    ..entry
                };
                self.refuse(wire, &refusal, entry).await;
            }
            Failure::Unreachable {
                refusal,
                tried,
                hierarchy,
                user,
            } => {
                let entry = Entry {
                    peer: tried,
                    hierarchy,
                    user: user.as_deref(),
                    ..entry
                };
                self.refuse(wire, &self.in_dialect(refusal), entry).await;
            }
        }
    }

    /// Tells the client what the rules say, or what kept them from deciding.
    pub(super) async fn deny(&self, wire: Wire, refused: &Refused, entry: Entry<'_>) {
        let Arrival { id, client, .. } = &self.arrival;
        debug!(id, %client, target = entry.url, by = ?refused.cause, "not permitted");
        let is_decision = refused.cause != Cause::Failure
            || refused.refusal.error() == ProxyError::ProxyLoopDetected;
        let tag = if is_decision {
            Tag::TcpDenied
        } else {
            entry.tag
        };
        let entry = Entry {
            tag,
            user: refused.user.as_deref(),
            ..entry
        };
        if refused.reset {
            wire.reset();
            self.log(entry);
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
    pub(super) fn report(
        &self,
        tunnel: &Tunnel,
        rule: Option<&str>,
        outcome: &Outcome,
        up: u64,
        down: u64,
    ) {
        let Tunnel {
            id,
            target,
            upstream,
            parent,
            user,
            opening,
            ..
        } = tunnel;
        let sni = opening.as_ref().and_then(Opening::name);
        let detail = match &outcome.ending {
            Ending::Integrity(what) | Ending::Failed(what) => {
                warn!(id, %target, "the tunnel was reset: {what}");
                Some(what.as_str())
            }
            Ending::Forbidden(why) => Some(why.as_str()),
            _ => None,
        };
        info!(
            id,
            client = %self.arrival.client,
            user = user.as_deref(),
            %target,
            sni,
            %upstream,
            parent = parent.as_deref(),
            rule,
            engine = %outcome.engine,
            moved_after = outcome.moved_after,
            up,
            down,
            spliced = outcome.spliced.bytes,
            pauses = outcome.spliced.pauses,
            trimmed = outcome.spliced.trimmed,
            floods = outcome.spliced.floods,
            ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            end = %outcome.ending,
            detail,
            declined = outcome.declined.as_deref(),
            "tunnel ended"
        );
    }

    /// Refuses a request for a known target; one that was answered already ends with a reset.
    pub(super) async fn refuse(&self, wire: Wire, refusal: &Refusal, entry: Entry<'_>) {
        let Arrival { id, client, .. } = &self.arrival;
        if entry.status != 0 {
            let reason = refusal.reason();
            info!(id, %client, target = entry.url, "reset behind the 200: {reason}");
            wire.reset();
            self.log(entry);
            return;
        }
        debug!(id, %client, target = entry.url, "refused: {}", refusal.reason());
        let bytes = send_refusal(&wire, refusal, entry.method == "HEAD").await;
        self.log(Entry {
            status: refusal.status().code(),
            bytes,
            content_type: Some(TEXT_PLAIN.into()),
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
        let bytes = send_refusal(&wire, refusal, head_request).await;
        self.shared.access_log.log(&Record {
            status: refusal.status().code(),
            bytes,
            method: method.unwrap_or("NONE").to_owned(),
            url: url.to_owned(),
            content_type: Some(TEXT_PLAIN.into()),
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
        self.shared.access_log.log(&self.no_request());
    }

    pub(super) fn no_request(&self) -> Record {
        Record {
            ended: SystemTime::now(),
            elapsed: self.since.elapsed(),
            client: self.arrival.client.ip(),
            user: None,
            tag: Tag::None,
            status: 0,
            bytes: 0,
            method: "NONE".to_owned(),
            url: "error:transaction-end-before-headers".to_owned(),
            peer: None,
            hierarchy: Hierarchy::Direct,
            content_type: None,
        }
    }

    pub(super) fn log(&self, entry: Entry<'_>) {
        let Entry {
            tag,
            status,
            bytes,
            method,
            url,
            user,
            peer,
            hierarchy,
            content_type,
        } = entry;
        self.shared.access_log.log(&Record {
            ended: SystemTime::now(),
            elapsed: self.since.elapsed(),
            client: self.arrival.client.ip(),
            user: user.map(str::to_owned),
            tag,
            status,
            bytes,
            method: method.to_owned(),
            url,
            peer,
            hierarchy,
            content_type,
        });
    }
}

/// What the access log is told of a request.
#[derive(Clone)]
pub(super) struct Entry<'a> {
    pub(super) tag: Tag,
    /// What the client was told; 0 is nothing.
    pub(super) status: u16,
    pub(super) bytes: u64,
    pub(super) method: &'a str,
    pub(super) url: String,
    pub(super) user: Option<&'a str>,
    pub(super) peer: Option<IpAddr>,
    pub(super) hierarchy: Hierarchy,
    pub(super) content_type: Option<Cow<'static, str>>,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            tag: Tag::TcpTunnel,
            status: 0,
            bytes: 0,
            method: "CONNECT",
            url: String::new(),
            user: None,
            peer: None,
            hierarchy: Hierarchy::Direct,
            content_type: None,
        }
    }
}

/// Sends the refusal and our FIN: the bytes of it that the client can have received, all or none.
/// [`Session::linger`] has to follow.
async fn send_refusal(wire: &Wire, refusal: &Refusal, head_request: bool) -> u64 {
    let reply = refusal.encode(SystemTime::now(), head_request);
    let send = async {
        wire.write_all(&reply).await?;
        wire.finish().await
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
