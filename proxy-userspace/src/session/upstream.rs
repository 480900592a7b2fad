//! Reaching the target: straight to one of its addresses, or through a parent proxy.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::BytesMut;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::Session;
use crate::{
    access::{self, Permit},
    authority::Authority,
    http::{ProxyError, Refusal},
    net::{
        announce,
        dial::{Patience, Route, dial},
        listen::canonical,
        outgoing::Outgoing,
        wire::Wire,
    },
    parent::{Dialling, Hop, Link, LinkError, Names},
    pool::{Line, Own, Whose},
};

/// What a target is to be reached for; `via` is what parents are told of the way that the request has come.
#[derive(Debug)]
pub(super) enum Purpose<'a> {
    /// A tunnel.
    Tunnel { via: Option<&'a str> },
    /// A request that is forwarded: over the client's own connection, or another one that there is already, if it may
    /// be repeated.
    Message {
        via: Option<&'a str>,
        own: &'a Own,
        reuse: bool,
    },
}

/// A connection to a target.
#[derive(Debug)]
pub(super) enum Way {
    /// One that was made for the request.
    Fresh(Box<Link>),
    /// One that there was.
    Idle(Box<Line>),
}

impl Way {
    /// The address at its other end.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Fresh(link) => link.address,
            Self::Idle(line) => line.address,
        }
    }

    /// The address at ours.
    fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Fresh(link) => link.wire.socket().local_addr().ok().map(canonical),
            Self::Idle(line) => line.local,
        }
    }
}

/// A target that was reached.
#[derive(Debug)]
pub(super) struct Reached {
    /// The connection, until somebody takes it.
    pub(super) way: Option<Way>,
    /// Its other end.
    pub(super) address: SocketAddr,
    /// The address that was judged, if one was.
    pub(super) destination: Option<IpAddr>,
    /// Our address of the connection.
    pub(super) local: Option<SocketAddr>,
    /// The rule that allows it.
    pub(super) rule: Option<usize>,
    /// How it was connected.
    pub(super) outgoing: Outgoing,
}

impl Session {
    /// Tries the way that was permitted.
    pub(super) async fn reach(
        &self,
        asked: &access::Request<'_>,
        purpose: &Purpose<'_>,
        permit: &Permit,
        room: &Arc<OwnedSemaphorePermit>,
        deadline: Instant,
    ) -> Result<Reached, LinkError> {
        let live = &*self.live();
        let now = live.moment();
        let idle = |fits: &dyn Fn(&Line) -> bool| match purpose {
            Purpose::Tunnel { .. } => None,
            Purpose::Message { own, reuse, .. } => own
                .take(fits)
                .or_else(|| self.shared.pool.take(|line| *reuse && fits(line))),
        };
        let whose = whose(&permit.hop, asked.target);
        match &permit.hop {
            Hop::Direct => {
                let outgoing = |address: SocketAddr| {
                    let addresses = [address.ip()];
                    let facts = access::facts(asked, permit, now, Some(&addresses), false);
                    live.outgoing(address, &facts)
                };
                let candidate = |address| {
                    let mut candidates = permit.candidates.iter();
                    candidates.find(|candidate| candidate.address == address)
                };
                let idle = idle(&|line| {
                    line.whose == whose
                        && candidate(line.address).is_some()
                        && line.outgoing == outgoing(line.address)
                });
                let way = match idle {
                    Some(line) => Way::Idle(line),
                    None => {
                        self.straight(asked.target, permit, outgoing, deadline)
                            .await?
                    }
                };
                let address = way.address();
                Ok(Reached {
                    destination: Some(address.ip()),
                    rule: candidate(address).map_or(permit.rule, |candidate| candidate.rule),
                    outgoing: outgoing(address),
                    local: way.local(),
                    way: Some(way),
                    address,
                })
            }
            hop @ Hop::Parent(parent, _) => {
                let judged = permit.candidates.first();
                let addresses = judged.map(|candidate| [candidate.address.ip()]);
                let known = addresses.as_ref().map(<[IpAddr; 1]>::as_slice);
                let facts = access::facts(asked, permit, now, known, false);
                let outgoing = |address| live.outgoing(address, &facts);
                // Rules that ask for the address do not change who finds it.
                let target = judged
                    .filter(|_| hop.needs_addresses(asked.target))
                    .and_then(|judged| {
                        Authority::parse(judged.address.to_string().as_bytes()).ok()
                    });
                let target = target.as_ref().unwrap_or(asked.target);
                let dialling = Dialling {
                    live,
                    listeners: &self.shared.listeners,
                    deadline,
                    client: Some(self.arrival.client),
                    outgoing: &outgoing,
                };
                let idle =
                    idle(&|line| line.whose == whose && line.outgoing == outgoing(line.address));
                let way = match (idle, purpose, &whose) {
                    (Some(line), ..) => Way::Idle(line),
                    (None, Purpose::Message { .. }, Whose::Parent(_)) => {
                        let connected = parent.connect(&dialling, Arc::clone(room));
                        let (wire, address) = Box::pin(connected).await?;
                        Way::Fresh(Box::new(Link {
                            wire,
                            address,
                            early: BytesMut::new(),
                        }))
                    }
                    (None, Purpose::Tunnel { via } | Purpose::Message { via, .. }, _) => {
                        let request = parent.request(target, *via);
                        // On the heap: most tunnels go another way, and all would carry its size.
                        let tunnel = parent.tunnel(&request, &dialling, Arc::clone(room));
                        Way::Fresh(Box::new(Box::pin(tunnel).await?))
                    }
                };
                let address = way.address();
                Ok(Reached {
                    destination: judged.map(|candidate| candidate.address.ip()),
                    rule: judged.map_or(permit.rule, |candidate| candidate.rule),
                    outgoing: outgoing(address),
                    local: way.local(),
                    way: Some(way),
                    address,
                })
            }
        }
    }

    /// Dials the addresses that were permitted.
    async fn straight(
        &self,
        target: &Authority,
        permit: &Permit,
        outgoing: impl Fn(SocketAddr) -> Outgoing,
        deadline: Instant,
    ) -> Result<Way, LinkError> {
        let candidates = &permit.candidates;
        let routes: Vec<Route> = candidates
            .iter()
            .map(|candidate| Route {
                target: candidate.address,
                outgoing: outgoing(candidate.address),
            })
            .collect();
        let patience = Patience {
            deadline,
            attempt: self.live().attempt_timeout,
        };
        let unreached = |refusal: Refusal, tried| LinkError {
            refusal,
            tried,
            is_final: false,
        };
        let dialled = dial(&routes, patience).await.map_err(|error| match error {
            Some(error) => unreached(error.refusal, Some(error.tried.ip())),
            None => unreached(access::no_address(target), None),
        })?;
        let Some(Route {
            target: address,
            outgoing,
        }) = routes.into_iter().nth(dialled.index)
        else {
            return Err(unreached(access::no_address(target), None));
        };
        let announced = match outgoing.announce {
            None => 0,
            Some(version) => {
                let client = self.arrival.client;
                let sent = announce::send(&dialled.stream, version, client, address);
                let sent = timeout_at(deadline, sent).await;
                sent.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(|error| {
                        let reason = format!("{address} does not listen: {error}");
                        let refusal = Refusal::new(ProxyError::ConnectionTerminated, reason);
                        unreached(refusal, Some(address.ip()))
                    })?
            }
        };
        Ok(Way::Fresh(Box::new(Link {
            wire: Wire::plain(dialled.stream).with_moved(0, announced),
            address,
            early: BytesMut::new(),
        })))
    }
}

/// Whose a connection is over which a request is forwarded this way. A parent finds the addresses of URLs by itself;
/// where it is not to, it is asked for a tunnel to the address that was judged.
pub(super) fn whose(hop: &Hop, target: &Authority) -> Whose {
    match hop {
        Hop::Direct => Whose::Origin(target.clone()),
        Hop::Parent(parent, _) if parent.spec().names == Names::Here => {
            Whose::Through(Arc::clone(parent), target.clone())
        }
        Hop::Parent(parent, _) => Whose::Parent(Arc::clone(parent)),
    }
}
