//! From the request to the connected socket: the rules, the limits, the dialling.

use std::{net::IpAddr, sync::Arc};

use socket2::SockRef;
use tokio::{select, sync::OwnedSemaphorePermit, time::Instant};
use tracing::{debug, info};

use super::{
    Admission, Arrival, Joint, Session, TunnelRequest, UNKNOWN,
    hello::{self, NoOpening, Start},
    upstream::{Purpose, Reached, Way},
};
use crate::{
    access::{self, Access, Claim, Known, Outcome, Permit, Refused},
    access_log::{Record, Tag},
    authority::{Authority, Host},
    client_hello::Opening,
    config::{Live, Quotas},
    http::{Refusal, Version},
    net::{listen::canonical, wire::Wire},
    parent::Hop,
    policy::{self, ServerName},
    registry::{Applicant, Counted, Plain, Stop, Tunnel},
    relay::{self, Pair, Traffic},
    shaping::Shaper,
};

impl Session {
    /// The request as it is judged.
    pub(super) fn asked<'a>(
        &'a self,
        wire: &Wire,
        target: &'a Authority,
        url: &'a str,
        claim: &'a Claim,
    ) -> access::Request<'a> {
        let stream = wire.socket();
        let Arrival {
            id,
            client,
            listener_name,
            ..
        } = &self.arrival;
        let mark = if self.live().needs_mark() {
            SockRef::from(stream).mark().unwrap_or_default()
        } else {
            0
        };
        access::Request {
            client: client.ip(),
            listener: stream.local_addr().map_or(UNKNOWN, canonical),
            listener_name,
            method: "CONNECT",
            scheme: None,
            target,
            url,
            claim,
            certificate: self.arrival.certificate.as_deref(),
            process: self.process().map(Arc::as_ref),
            server_name: ServerName::Unheard,
            connections: self.shared.registry.connections(client.ip()),
            mark,
            dice: dice(*id),
        }
    }

    /// What the client is judged by.
    pub(super) fn live(&self) -> Arc<Live> {
        let own = self.arrival.live.clone();
        own.unwrap_or_else(|| self.shared.current.get())
    }

    pub(super) fn access<'a>(
        &'a self,
        live: &'a Live,
        room: &'a Arc<OwnedSemaphorePermit>,
        deadline: Instant,
    ) -> Access<'a> {
        Access {
            live,
            listeners: &self.shared.listeners,
            deadline,
            checks: &self.shared.checks,
            room,
        }
    }

    /// What others are told of the way that a request has come, if they are.
    pub(super) fn via(&self, before: &str, version: Version) -> Option<String> {
        let is_told = self.live().http.via;
        is_told.then(|| self.shared.via(before, version))
    }

    /// The room of a client that is served, or what the others are told.
    pub(super) fn room(&self) -> Result<&Arc<OwnedSemaphorePermit>, Option<(Tag, &Refusal)>> {
        match &self.arrival.admission {
            Admission::Served(permit) => Ok(permit),
            Admission::TurnedAway { tag, refusal, .. } => Err(Some((*tag, refusal))),
            Admission::Over => Err(None),
        }
    }

    /// Judges and dials the target, or ends with a refusal.
    pub(super) async fn connect(&self, request: TunnelRequest) -> Option<Joint> {
        let TunnelRequest {
            wire,
            mut start,
            target,
            claim,
            via,
        } = request;
        let url = target.to_string();
        let room = match self.room() {
            Ok(room) => room,
            Err(turned_away) => {
                let entry = Record {
                    status: start.told().0,
                    url: url.as_str().into(),
                    target: Some(&target),
                    ..self.record()
                };
                self.turn_away(wire, turned_away, entry).await;
                return None;
            }
        };
        let asked = self.asked(&wire, &target, &url, &claim);
        let via = self.via(&via, Version::Http11);
        let purpose = Purpose::Tunnel {
            via: via.as_deref(),
        };
        let joined = select! {
            joined = self.join(asked, &purpose, room, &wire, &mut start) => joined,
            () = self.cancel.cancelled() => {
                relay::reset_on_close(wire.socket());
                Err(Failure::Left)
            }
            // It does not want the tunnel any more.
            () = wire.broken() => Err(Failure::Left),
        };
        let mut joined = match joined {
            Ok(joined) => joined,
            Err(failure) => {
                let (status, sent) = start.told();
                let entry = Record {
                    status,
                    sent,
                    url: url.as_str().into(),
                    target: Some(&target),
                    ..self.record()
                };
                self.fail(wire, failure, entry).await;
                return None;
            }
        };
        let tunnel = self.tunnel(&asked, &mut joined, None);
        let Joined {
            reached,
            counted,
            shaper,
            ..
        } = joined;
        let Some(Way::Fresh(link)) = reached.way else {
            // The others are for requests that are forwarded.
            return None;
        };
        let (_, told) = start.told();
        let answer = start.answer.len() as u64;
        let pair = start.pair(wire, *link);
        Some(self.joint(pair, tunnel, counted, reached.rule, shaper, [answer, told]))
    }

    /// Puts a tunnel on the table, or a request that is forwarded.
    pub(super) fn tunnel(
        &self,
        asked: &access::Request<'_>,
        joined: &mut Joined,
        plain: Option<Box<Plain>>,
    ) -> Arc<Tunnel> {
        let Joined {
            reached,
            opening,
            permit,
            counted,
            ..
        } = joined;
        let tunnel = Arc::new(Tunnel {
            id: self.arrival.id,
            client: self.arrival.client,
            listener: asked.listener,
            listener_name: Arc::clone(&self.arrival.listener_name),
            user: permit.user.clone(),
            reverse_name: permit.reverse_name.clone(),
            certificate: self.arrival.certificate.clone(),
            captured: self.arrival.captured.clone(),
            opening: opening.clone(),
            upstream: reached.address,
            destination: reached.destination,
            hierarchy: permit.hop.hierarchy(),
            parent: match &permit.hop {
                Hop::Direct => None,
                Hop::Parent(parent, _) => Some(Arc::clone(&parent.name)),
            },
            mark: asked.mark,
            dice: asked.dice,
            stop: Stop::new(&self.cancel),
            target: asked.target.clone(),
            since: self.since,
            head_bytes: self.head.bytes,
            version: self.head.version,
            fields: self.head.fields.clone(),
            rule: self.live().rule_name(reached.rule).map(Into::into),
            local: reached.local,
            timings: self.timings(),
            traffic: Arc::new(Traffic::new(self.since)),
            plain,
        });
        counted.enlist(Arc::clone(&tunnel));
        let live = self.live();
        // Whoever changed the rules while we were connecting has not found the tunnel yet.
        let present = self.shared.current.get();
        if !Arc::ptr_eq(&present, &live) && present.enforce_on_live {
            tunnel.enforce(&present);
        }
        tunnel
    }

    /// What a tunnel is run with. Of its answer there are so many bytes, of which the client has got so many.
    pub(super) fn joint(
        &self,
        pair: Box<Pair>,
        tunnel: Arc<Tunnel>,
        counted: Counted,
        rule: Option<usize>,
        shaper: Option<Arc<Shaper>>,
        [answer, told]: [u64; 2],
    ) -> Joint {
        let live = self.live();
        Joint {
            engine: live.engine(rule, tunnel.upstream),
            pair,
            limits: live.limits(rule),
            lifetime: live.lifetime(rule),
            tunnel,
            counted,
            shaper,
            answer,
            told,
        }
    }

    /// Everything between the request and the connection to the target.
    pub(super) async fn join(
        &self,
        mut asked: access::Request<'_>,
        purpose: &Purpose<'_>,
        room: &Arc<OwnedSemaphorePermit>,
        wire: &Wire,
        start: &mut Start,
    ) -> Result<Joined, Failure> {
        let live = &*self.live();
        let mut deadline = access::deadline(live.connect_timeout);
        let mut known = Known::default();
        let access = self.access(live, room, deadline);
        let mut outcome = access.decide(&asked, &mut known, true).await;
        self.note_time(|times| times.dns = known.resolving());
        // Only of tunnels to hosts by name, and of those that are permitted without it.
        let strict = match (purpose, asked.target.host()) {
            (Purpose::Tunnel { .. }, Host::Name(host)) if live.strict_sni && outcome.is_ok() => {
                Some(host)
            }
            _ => None,
        };
        let is_needed = matches!(outcome, Ok(Outcome::NeedsServerName));
        let opening = if is_needed || strict.is_some() {
            Some(self.opening(wire, start).await.map_err(|why| match why {
                NoOpening::Left => Failure::Left,
                NoOpening::Unclear(refusal) => Failure::Refused(known.unclear(refusal)),
            })?)
        } else {
            None
        };
        if let (Some(host), Some(opening)) = (strict, &opening)
            && let Some(refusal) = hello::objection(host, opening, &start.early_data)
        {
            return Err(Failure::Refused(known.unclear(refusal)));
        }
        if let Some(opening) = &opening {
            asked.server_name = opening.into();
            deadline = access::deadline(live.connect_timeout);
            let access = self.access(live, room, deadline);
            outcome = access.decide(&asked, &mut known, true).await;
            self.note_time(|times| times.dns = known.resolving());
        }
        let mut permit = permitted(outcome)?;
        self.note_would_deny(&permit, asked.url);
        let limit = |permit: &Permit, refusal, rule| Failure::Limit {
            refusal,
            user: permit.user.clone(),
            rule: live.rule_name(rule).map(Into::into),
        };
        // The limits of the first address's rule: all addresses of a host have the same one, or nearly.
        let first = permit
            .candidates
            .first()
            .map_or(permit.rule, |first| first.rule);
        let mut counted = self
            .count(&permit, first)
            .map_err(|refusal| limit(&permit, refusal, first))?;
        let begun = Instant::now();
        let reached = loop {
            // The ways that are left have their share of the time.
            let ways = u32::try_from(known.hops().len()).unwrap_or(u32::MAX).max(1);
            let now = Instant::now();
            let until = now + deadline.saturating_duration_since(now) / ways;
            let reached = self.reach(&asked, purpose, &permit, room, until).await;
            self.note_time(|times| times.connect = Some(begun.elapsed()));
            let failed = match reached {
                Ok(reached) => break reached,
                Err(failed) => failed,
            };
            if failed.is_final || !known.next_hop() {
                return Err(Failure::Unreachable {
                    refusal: failed.refusal,
                    tried: failed.tried,
                    hop: permit.hop,
                    user: permit.user,
                });
            }
            debug!(
                id = self.arrival.id,
                target = asked.url,
                "the next way: {}",
                failed.refusal.reason()
            );
            let access = self.access(live, room, deadline);
            let outcome = access.decide(&asked, &mut known, true).await;
            self.note_time(|times| times.dns = known.resolving());
            permit = permitted(outcome)?;
        };
        if reached.rule != first {
            drop(counted);
            counted = self
                .count(&permit, reached.rule)
                .map_err(|refusal| limit(&permit, refusal, reached.rule))?;
        }
        let shaper = self.shaper(live, &asked, &permit, &reached);
        Ok(Joined {
            reached,
            opening,
            permit,
            counted,
            shaper,
        })
    }

    /// Tells of rules that only report.
    fn note_would_deny(&self, permit: &Permit, url: &str) {
        for rule in &permit.would_deny {
            self.shared.registry.note_would_deny(rule);
            info!(
                id = self.arrival.id,
                client = %self.arrival.client,
                target = url,
                rule,
                "would be denied"
            );
        }
    }

    /// What limits the tunnel's bandwidth.
    fn shaper(
        &self,
        live: &Live,
        asked: &access::Request<'_>,
        permit: &Permit,
        reached: &Reached,
    ) -> Option<Arc<Shaper>> {
        let addresses = reached.destination.map(|address| [address]);
        let known = addresses.as_ref().map(<[IpAddr; 1]>::as_slice);
        let facts = access::facts(asked, permit, live.moment(), known, false);
        let shape = live
            .shapes
            .iter()
            .find(|(terms, _)| policy::hold(terms, &facts));
        let of_rule = live.grant(reached.rule).map(|grant| &grant.buckets);
        let specs: Vec<_> = shape
            .map(|(_, specs)| specs)
            .into_iter()
            .chain(of_rule)
            .flatten()
            .chain(&live.bandwidth_per_tunnel)
            .collect();
        let client = self.arrival.client.ip();
        self.shared
            .buckets
            .shaper(&specs, client, permit.user.as_deref())
    }

    /// Counts the tunnel, if the limits permit it.
    fn count(&self, permit: &Permit, index: Option<usize>) -> Result<Counted, Refusal> {
        let live = self.live();
        let rule = index.and_then(|index| live.policy.rules().get(index));
        let who = Applicant {
            client: self.arrival.client.ip(),
            user: permit.user.as_ref(),
            rule: rule.map(|rule| rule.name.as_str()),
        };
        let of_rule = live
            .grant(index)
            .map_or_else(Quotas::default, |grant| grant.quotas);
        let begun = self.shared.registry.begin(&who, live.quotas, of_rule);
        begun.map_err(Into::into)
    }
}

/// A target that is permitted and connected to.
pub(super) struct Joined {
    pub(super) reached: Reached,
    pub(super) opening: Option<Opening>,
    pub(super) permit: Permit,
    pub(super) counted: Counted,
    pub(super) shaper: Option<Arc<Shaper>>,
}

/// Why there is no such target.
pub(super) enum Failure {
    /// It is not permitted, or it could not be found out whether it is.
    Refused(Refused),
    /// The client has gone, or we are about to.
    Left,
    /// There are as many tunnels as there may be.
    Limit {
        refusal: Refusal,
        user: Option<Arc<str>>,
        rule: Option<Box<str>>,
    },
    /// It cannot be connected to.
    Unreachable {
        refusal: Refusal,
        tried: Option<IpAddr>,
        hop: Hop,
        user: Option<Arc<str>>,
    },
}

/// The permit of a decision that everything is known for.
fn permitted(outcome: Result<Outcome, Refused>) -> Result<Permit, Failure> {
    match outcome.map_err(Failure::Refused)? {
        Outcome::Permit(permit) => Ok(permit),
        // It is asked for once.
        Outcome::NeedsServerName => Err(Failure::Left),
    }
}

/// A number that nobody can foretell, for conditions on chance.
pub(crate) fn dice(id: u64) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};

    RandomState::new().hash_one(id)
}
