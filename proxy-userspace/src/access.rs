//! May this request be served, and by which addresses? Asks the policy, and finds out what it needs to
//! know: the user, the addresses of a name, the name of an address.
//!
//! A live request and `underpass explain` go the same way through here.

mod known;
mod own;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

pub use self::known::Known;
pub(crate) use self::{known::KnownFacts, own::leads_back};
use self::{
    known::{Identity, Way},
    own::{Own, own},
};
use crate::{
    auth::{Authenticator, Credentials},
    authority::{Authority, Host, HostName},
    config::Live,
    dns::LookupError,
    http::{ProxyError, RETRY_AFTER, Refusal},
    parent::Hop,
    policy::{Decision, Facts, Moment, Need, Place, Process, ServerName, Step, Verdict},
};

/// What Squid calls an address without a name.
pub(crate) const NO_NAME: &str = "none";

/// What somebody asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who.
    pub client: IpAddr,
    /// The address of ours that was connected to.
    pub listener: SocketAddr,
    /// The listener's name.
    pub listener_name: &'a str,
    /// The method.
    pub method: &'a str,
    /// The scheme of a URL.
    pub scheme: Option<&'a str>,
    /// Where to.
    pub target: &'a Authority,
    /// The same as text: `host:port`, or the URL.
    pub url: &'a str,
    /// Who they say they are.
    pub claim: &'a Claim,
    /// The names in their certificate.
    pub certificate: Option<&'a [String]>,
    /// The process, where the connection was captured.
    pub process: Option<&'a Process>,
    /// The name in their ClientHello.
    pub server_name: ServerName<'a>,
    /// Connections of the client, this one included.
    pub connections: u32,
    /// The firewall's mark.
    pub mark: u32,
    /// A number drawn for the request.
    pub dice: u64,
}

/// Who a client says it is.
#[derive(Clone, Debug, Default)]
pub enum Claim {
    /// It says nothing, or nothing that makes sense.
    #[default]
    Nothing,
    /// It has credentials.
    Credentials(Credentials),
    /// Somebody has looked at them already.
    Verified(String),
}

/// How far a decision came.
#[derive(Debug)]
pub enum Outcome {
    /// The request is served.
    Permit(Permit),
    /// It depends on [`Request::server_name`]: ask again when that is known.
    NeedsServerName,
}

/// Where a request may lead.
#[derive(Debug, Default)]
pub struct Permit {
    /// Addresses to try, in this order.
    pub candidates: Vec<Candidate>,
    /// Who the client is, if anybody asked.
    pub user: Option<Arc<str>>,
    /// The name that was found for the address.
    pub reverse_name: Option<String>,
    /// Rules that would have refused it, by name.
    pub would_deny: Vec<String>,
    /// What the first decision was, in words.
    pub reason: String,
    /// The index of the rule of that decision.
    pub rule: Option<usize>,
    /// The way that was judged.
    pub hop: Hop,
}

/// An address that a request may lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The address.
    pub address: SocketAddr,
    /// The index of the rule that allows it.
    pub rule: Option<usize>,
}

/// Why a request is not served.
#[derive(Debug)]
pub struct Refused {
    /// What the client is told.
    pub refusal: Refusal,
    /// Who decided.
    pub cause: Cause,
    /// Whether a reset is all that the client gets.
    pub reset: bool,
    /// The user, if anybody asked.
    pub user: Option<Arc<str>>,
    /// The addresses that there were.
    pub addresses: Box<[SocketAddr]>,
}

/// Who decides that a request is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A rule.
    Rule(Box<DecidingRule>),
    /// The option that would have to open what is shut by default.
    Option(&'static str),
    /// The rules, which ask for a name in what the client began with, and that does not tell.
    Opening,
    /// Nobody: it could not be found out, or the target is this proxy itself.
    Failure,
}

/// A rule that decides that a request is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidingRule {
    /// Its name.
    pub name: String,
    /// Where it is written.
    pub place: Place,
}

impl fmt::Display for DecidingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.place)
    }
}

impl Cause {
    /// The name of the rule, or of the option.
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Rule(rule) => Some(&rule.name),
            Self::Option(name) => Some(name),
            Self::Opening | Self::Failure => None,
        }
    }
}

/// What access is decided by.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// The rules.
    pub live: &'a Live,
    /// Our own listeners, which a tunnel must not lead back to.
    pub listeners: &'a [SocketAddr],
    /// For everything that has to be found out.
    pub deadline: Instant,
    /// How many passwords are checked at a time.
    pub checks: &'a Arc<Semaphore>,
    /// Held until the resolver has answered, also if nobody waits for it any more: a name that is
    /// being resolved takes a descriptor or two.
    pub room: &'a Arc<OwnedSemaphorePermit>,
}

impl Access<'_> {
    /// Decides; with addresses to connect to, if it `leads` anywhere.
    pub async fn decide(
        &self,
        request: &Request<'_>,
        known: &mut Known,
        leads: bool,
    ) -> Result<Outcome, Refused> {
        let now = self.live.moment();
        loop {
            let need = match self.ask(request, known, now, leads)? {
                Answer::Permit(permit) => return Ok(Outcome::Permit(permit)),
                Answer::Needs(need) => need,
            };
            match need {
                Need::ServerName => return Ok(Outcome::NeedsServerName),
                Need::User => {
                    let user = self.authenticate(request.claim).await;
                    let user = user.map_err(|refusal| known.failed(refusal))?;
                    known.user = user.map_or(Identity::Nobody, Identity::User);
                }
                Need::ReverseName => known.reverse_name = Some(self.name_of(request.target).await),
                Need::Addresses => match self.resolve(request.target, known).await {
                    Ok(addresses) => known.addresses = Some(addresses),
                    Err(refusal) if self.live.is_squid() => {
                        known.addresses = Some(Vec::new());
                        known.no_address = Some(refusal);
                    }
                    Err(refusal) => return Err(known.failed(refusal)),
                },
            }
        }
    }

    /// Which way the request goes, by what is known.
    fn hop(
        &self,
        request: &Request<'_>,
        known: &mut Known,
        now: Moment,
    ) -> Result<Result<Hop, Need>, Refused> {
        if self.live.routes.is_empty() {
            return Ok(Ok(Hop::Direct));
        }
        let ips = known.ips();
        let facts = facts(request, known, now, ips.as_deref(), false);
        let route = match self.live.route(&facts) {
            Ok(route) => route,
            Err(need) => return Ok(Err(need)),
        };
        if known.way.as_ref().is_none_or(|way| way.route != route) {
            let hops = self.live.hops(route, &facts);
            known.way = Some(Way {
                route,
                hops,
                failed: 0,
            });
        }
        known.hops().first().cloned().map(Ok).ok_or_else(|| {
            let reason = "none of the parent proxies is for this request";
            known.failed(Refusal::new(ProxyError::DestinationUnavailable, reason))
        })
    }

    /// Asks the policy by what is known.
    fn ask(
        &self,
        request: &Request<'_>,
        known: &mut Known,
        now: Moment,
        leads: bool,
    ) -> Result<Answer, Refused> {
        let hop = match self.hop(request, known, now)? {
            Ok(hop) => hop,
            Err(need) => return Ok(Answer::Needs(need)),
        };
        // A parent that is given the name finds the address by itself.
        let leads = leads && hop.needs_addresses(request.target);
        let answer = self.ask_about(request, known, now, leads)?;
        Ok(match answer {
            Answer::Permit(permit) => Answer::Permit(Permit { hop, ..permit }),
            Answer::Needs(need) => Answer::Needs(need),
        })
    }

    fn ask_about(
        &self,
        request: &Request<'_>,
        known: &mut Known,
        now: Moment,
        leads: bool,
    ) -> Result<Answer, Refused> {
        let addresses = known.addresses.clone();
        let ips = known.ips();
        let together = self.live.is_squid() || ips.is_none();
        if together {
            let facts = facts(request, known, now, ips.as_deref(), false);
            return match self.live.policy.decide(&facts) {
                // Whoever has no address is told so while there is no tunnel.
                Step::Needs(Need::ServerName) if leads && addresses.is_none() => {
                    Ok(Answer::Needs(Need::Addresses))
                }
                Step::Needs(need) => Ok(Answer::Needs(need)),
                Step::Decided(decision) if !decision.is_allowed() => {
                    Err(self.refused(&decision, &facts, known))
                }
                Step::Decided(_) if leads && addresses.is_none() => {
                    Ok(Answer::Needs(Need::Addresses))
                }
                Step::Decided(decision) => {
                    if leads && let Some(refusal) = known.no_address.take() {
                        return Err(known.failed(refusal));
                    }
                    let mut permit = known.permit(&decision);
                    let rule = decision.rule.map(|(index, _)| index);
                    let mut looped = None;
                    for address in addresses.into_iter().flatten() {
                        match self
                            .is_ours(address)
                            .map_err(|refusal| known.failed(refusal))?
                        {
                            Own::Listener => looped = Some(loop_refusal(address)),
                            Own::Host | Own::Not => {
                                permit.candidates.push(Candidate { address, rule });
                            }
                        }
                    }
                    match looped {
                        Some(refusal) if permit.candidates.is_empty() => Err(known.failed(refusal)),
                        _ => Ok(Answer::Permit(permit)),
                    }
                }
            };
        }
        self.ask_for_each(request, known, now, &addresses.unwrap_or_default())
    }

    /// The same, for each address alone: what was judged is what is connected to.
    fn ask_for_each(
        &self,
        request: &Request<'_>,
        known: &Known,
        now: Moment,
        addresses: &[SocketAddr],
    ) -> Result<Answer, Refused> {
        let mut permit: Option<Permit> = None;
        let mut refused = None;
        for &address in addresses {
            let own = self
                .is_ours(address)
                .map_err(|refusal| known.failed(refusal))?;
            let ips = [address.ip()];
            let facts = facts(request, known, now, Some(&ips), own != Own::Not);
            match self.live.policy.decide(&facts) {
                Step::Needs(need) => return Ok(Answer::Needs(need)),
                Step::Decided(decision) if !decision.is_allowed() => {
                    refused.get_or_insert_with(|| self.refused(&decision, &facts, known));
                }
                Step::Decided(_) if own == Own::Listener => {
                    refused.get_or_insert_with(|| known.failed(loop_refusal(address)));
                }
                Step::Decided(decision) => {
                    let rule = decision.rule.map(|(index, _)| index);
                    permit
                        .get_or_insert_with(|| known.permit(&decision))
                        .candidates
                        .push(Candidate { address, rule });
                }
            }
        }
        match (permit, refused) {
            (Some(permit), _) => Ok(Answer::Permit(permit)),
            (None, Some(refused)) => Err(refused),
            (None, None) => Err(known.failed(no_address(request.target))),
        }
    }

    fn refused(&self, decision: &Decision<'_>, facts: &Facts<'_>, known: &Known) -> Refused {
        let refusal = decision.refusal(facts).unwrap_or_else(|| {
            Refusal::challenge(
                &self.live.realm,
                "this proxy asks for a user and a password (Proxy-Authorization: Basic)",
            )
        });
        let reset = matches!(&decision.verdict, Verdict::Deny(deny) if deny.reset);
        Refused {
            cause: match &decision.rule {
                Some((_, rule)) => Cause::Rule(Box::new(DecidingRule {
                    name: rule.name.clone(),
                    place: rule.place.clone(),
                })),
                None => Cause::Option(decision.option()),
            },
            reset,
            ..known.failed(refusal)
        }
    }

    /// Who the client is.
    async fn authenticate(&self, claim: &Claim) -> Result<Option<Arc<str>>, Refusal> {
        let credentials = match claim {
            Claim::Nothing => return Ok(None),
            Claim::Verified(user) => return Ok(Some(user.as_str().into())),
            Claim::Credentials(credentials) => credentials,
        };
        let Some(authenticator) = &self.live.auth else {
            return Ok(None);
        };
        let is_right = authenticator.remembers(credentials, std::time::Instant::now())
            || self.verify(authenticator, credentials).await?;
        Ok(is_right.then(|| credentials.user().into()))
    }

    /// Takes long by design, so not many at a time, and not where tunnels are served.
    async fn verify(
        &self,
        authenticator: &Arc<Authenticator>,
        credentials: &Credentials,
    ) -> Result<bool, Refusal> {
        let checks = Arc::clone(self.checks).acquire_owned();
        let Ok(Ok(turn)) = timeout_at(self.deadline, checks).await else {
            // Not a 407: the password may be right, and whoever typed it is not to be asked again.
            let reason = "too many passwords wait to be checked; try again later".to_owned();
            return Err(Refusal::new(ProxyError::ConnectionLimitReached, reason)
                .with_retry_after(RETRY_AFTER));
        };
        let (authenticator, credentials) = (Arc::clone(authenticator), credentials.clone());
        let check = spawn_blocking(move || {
            let is_right = authenticator.verify(&credentials, std::time::Instant::now());
            drop(turn);
            is_right
        });
        Ok(check.await.unwrap_or(false))
    }

    /// The addresses of a host.
    async fn resolve(
        &self,
        target: &Authority,
        known: &mut Known,
    ) -> Result<Vec<SocketAddr>, Refusal> {
        let port = target.port().get();
        let name = match target.host() {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            Host::Name(name) => name,
        };
        let lookup = self
            .live
            .resolver
            .addresses(name.as_str(), Arc::clone(self.room));
        let begun = Instant::now();
        let found = timeout_at(self.deadline, lookup).await;
        known.resolving = Some(known.resolving.unwrap_or_default() + begun.elapsed());
        match found {
            Ok(Ok(addresses)) => Ok(addresses
                .into_iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect()),
            Ok(Err(error)) => Err(dns_error(name, &error)),
            Err(_elapsed) => Err(dns_error(name, &LookupError::Timeout)),
        }
    }

    /// The name of a host that was given by address.
    async fn name_of(&self, target: &Authority) -> String {
        let Host::Ip(address) = *target.host() else {
            return NO_NAME.to_owned();
        };
        let lookup = self.live.resolver.name(address, Arc::clone(self.room));
        match timeout_at(self.deadline, lookup).await {
            Ok(Ok(name)) => name,
            Ok(Err(_)) | Err(_) => NO_NAME.to_owned(),
        }
    }

    /// Whether a connection to the address would stay on this host, or even come back to us.
    fn is_ours(&self, address: SocketAddr) -> Result<Own, Refusal> {
        own(self.listeners, address).map_err(|error| {
            let reason = format!("the proxy is out of resources: {error}");
            Refusal::new(ProxyError::ProxyInternalError, reason)
        })
    }
}

enum Answer {
    Permit(Permit),
    Needs(Need),
}

/// The request as a policy sees it.
pub(crate) fn facts<'a>(
    request: &Request<'a>,
    known: &'a impl KnownFacts,
    now: Moment,
    addresses: Option<&'a [IpAddr]>,
    own_address: bool,
) -> Facts<'a> {
    let Request {
        client,
        listener,
        listener_name,
        method,
        scheme,
        target,
        url,
        claim: _,
        certificate,
        process,
        server_name,
        connections,
        mark,
        dice,
    } = *request;
    Facts {
        client,
        listener,
        listener_name,
        method,
        scheme,
        host: target.host(),
        port: target.port().get(),
        url,
        user: known.user(),
        certificate,
        process,
        server_name,
        now,
        addresses,
        reverse_name: known.reverse_name(),
        own_address,
        connections,
        mark,
        dice,
    }
}

fn dns_error(name: &HostName, error: &LookupError) -> Refusal {
    let kind = match error {
        LookupError::Timeout => ProxyError::DnsTimeout,
        _ => ProxyError::DnsError,
    };
    let reason = format!("cannot resolve {}: {error}", name.as_str());
    let refusal = Refusal::new(kind, reason);
    match error.rcode() {
        Some(code) => refusal.with_rcode(code),
        None => refusal,
    }
}

/// The host's name was resolved to nothing.
pub(crate) fn no_address(target: &Authority) -> Refusal {
    let reason = format!("{} has no address", target.host());
    Refusal::new(ProxyError::DnsError, reason)
}

fn loop_refusal(address: SocketAddr) -> Refusal {
    Refusal::new(
        ProxyError::ProxyLoopDetected,
        format!("{address} is this proxy itself"),
    )
}

/// How long a request may wait for its turn to have its password checked, and for a name.
pub fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout
}
