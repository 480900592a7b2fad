//! Reaching the target: straight to one of its addresses, or through a parent proxy.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::Session;
use crate::{
    access::{self, Permit},
    authority::Authority,
    config::Live,
    http::Refusal,
    net::dial::{Patience, Route, dial},
    parent::{Dialling, Hop, Link, LinkError},
};

/// A target that was reached.
#[derive(Debug)]
pub(super) struct Reached {
    /// The connection.
    pub(super) link: Link,
    /// The address that was judged, if one was.
    pub(super) destination: Option<IpAddr>,
    /// The rule that allows it.
    pub(super) rule: Option<usize>,
}

impl Session {
    /// Tries the way that was permitted; `via` is what the client's request says of the ways behind it.
    pub(super) async fn reach(
        &self,
        asked: &access::Request<'_>,
        via: &str,
        permit: &Permit,
        room: &Arc<OwnedSemaphorePermit>,
        deadline: Instant,
    ) -> Result<Reached, LinkError> {
        let live = &*self.live();
        let now = live.moment();
        match &permit.hop {
            Hop::Direct => {
                let outgoing = |address: SocketAddr| {
                    let addresses = [address.ip()];
                    let facts = access::facts(asked, permit, now, Some(&addresses), false);
                    Route {
                        target: address,
                        outgoing: live.outgoing(address, &facts),
                    }
                };
                straight(asked.target, permit, outgoing, live, deadline).await
            }
            hop @ Hop::Parent(parent, _) => {
                let judged = permit.candidates.first();
                let addresses = judged.map(|candidate| [candidate.address.ip()]);
                let known = addresses.as_ref().map(<[IpAddr; 1]>::as_slice);
                let facts = access::facts(asked, permit, now, known, false);
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
                    outgoing: &|address| live.outgoing(address, &facts),
                };
                let request = parent.request(target, &self.shared.via(via));
                // On the heap: most tunnels go another way, and all would carry its size.
                let tunnel = parent.tunnel(&request, &dialling, Arc::clone(room));
                let link = Box::pin(tunnel).await?;
                Ok(Reached {
                    link,
                    destination: judged.map(|candidate| candidate.address.ip()),
                    rule: judged.map_or(permit.rule, |candidate| candidate.rule),
                })
            }
        }
    }
}

/// Dials the addresses that were permitted.
async fn straight(
    target: &Authority,
    permit: &Permit,
    route: impl Fn(SocketAddr) -> Route,
    live: &Live,
    deadline: Instant,
) -> Result<Reached, LinkError> {
    let candidates = &permit.candidates;
    let routes: Vec<Route> = candidates
        .iter()
        .map(|candidate| route(candidate.address))
        .collect();
    let patience = Patience {
        deadline,
        attempt: live.attempt_timeout,
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
    let Some(candidate) = candidates.get(dialled.index) else {
        return Err(unreached(access::no_address(target), None));
    };
    Ok(Reached {
        link: Link {
            stream: dialled.stream,
            tls: None,
            address: candidate.address,
            early: Vec::new(),
            written: 0,
            consumed: 0,
        },
        destination: Some(candidate.address.ip()),
        rule: candidate.rule,
    })
}
