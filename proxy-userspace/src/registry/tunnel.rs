//! A tunnel that is open, with all that is known of it.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Instant, SystemTime},
};

use tokio_util::sync::CancellationToken;

use crate::{
    access::NO_NAME,
    access_log::{Event, Record, Tag, Timings},
    authority::Authority,
    capture::Captured,
    client_hello::Opening,
    config::Live,
    http::Version,
    parent::Hierarchy,
    policy::{Decision, Facts, ServerName, Step, User},
    relay::{Ending, Traffic},
};

/// A tunnel that is open.
#[derive(Debug)]
pub struct Tunnel {
    /// Its number.
    pub id: u64,
    /// The client.
    pub client: SocketAddr,
    /// The address of ours that it connected to.
    pub listener: SocketAddr,
    /// The listener's name.
    pub listener_name: Arc<str>,
    /// Who the client is.
    pub user: Option<Arc<str>>,
    /// The name that was found for its address, if it asked for one and a rule wanted to know.
    pub reverse_name: Option<String>,
    /// The names in its certificate.
    pub certificate: Option<Arc<[String]>>,
    /// Where it meant to go, if it does not know of us.
    pub captured: Option<Box<Captured>>,
    /// What the client began with, if a rule wanted to know.
    pub opening: Option<Opening>,
    /// What it asked for.
    pub target: Authority,
    /// Where that led.
    pub upstream: SocketAddr,
    /// The address that was judged, if one was: a parent that is given a name finds one by itself.
    pub destination: Option<IpAddr>,
    /// How the way was chosen.
    pub hierarchy: Hierarchy,
    /// The parent in it.
    pub parent: Option<Arc<str>>,
    /// The firewall's mark of its connection.
    pub mark: u32,
    /// The number that was drawn for it.
    pub dice: u64,
    /// When its request was complete.
    pub since: Instant,
    /// The bytes of the request's head.
    pub head_bytes: u64,
    /// The version of HTTP of the request.
    pub version: Option<Version>,
    /// Fields of the request that are logged.
    pub fields: Box<[(Box<str>, Box<str>)]>,
    /// The rule that allowed it.
    pub rule: Option<Box<str>>,
    /// Our address of the connection to where it led.
    pub local: Option<SocketAddr>,
    /// How long it took to get there.
    pub timings: Timings,
    /// What it has moved.
    pub traffic: Arc<Traffic>,
    /// What was asked for, if that was no tunnel: a request that is forwarded, and may become one.
    pub plain: Option<Box<Plain>>,
    /// Ends it.
    pub stop: Stop,
}

/// A request that is forwarded.
#[derive(Clone, Debug)]
pub struct Plain {
    /// The method.
    pub method: String,
    /// The URL.
    pub url: String,
}

/// How a tunnel is told to end, and why.
#[derive(Debug)]
pub struct Stop {
    token: CancellationToken,
    why: OnceLock<Ending>,
}

impl Stop {
    /// Also ends with the token.
    #[must_use]
    pub fn new(parent: &CancellationToken) -> Self {
        Self {
            token: parent.child_token(),
            why: OnceLock::new(),
        }
    }

    /// What the tunnel waits for.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Ends the tunnel; the first reason counts.
    pub fn end(&self, why: Ending) {
        let _ = self.why.set(why);
        self.token.cancel();
    }

    /// Why it was ended, if it was.
    pub fn why(&self) -> Option<&Ending> {
        self.why.get()
    }
}

impl Tunnel {
    /// Ends the tunnel if it would not be allowed any more: whether it would not.
    pub fn enforce(&self, live: &Live) -> bool {
        let objection = self.objection(live);
        let is_forbidden = objection.is_some();
        if let Some(reason) = objection {
            self.stop.end(Ending::Forbidden(reason));
        }
        is_forbidden
    }

    /// Why it would not be allowed, were it asked for now.
    fn objection(&self, live: &Live) -> Option<String> {
        let addresses = self.destination.map(|address| [address]);
        let plain = self.plain.as_deref();
        let url = plain.map_or_else(|| self.target.to_string(), |plain| plain.url.clone());
        let facts = Facts {
            client: self.client.ip(),
            listener: self.listener,
            listener_name: &self.listener_name,
            method: plain.map_or("CONNECT", |plain| &plain.method),
            scheme: plain.map(|_| "http"),
            host: self.target.host(),
            port: self.target.port().get(),
            url: &url,
            user: self.user.as_deref().map_or(User::Nobody, User::Known),
            certificate: self.certificate.as_deref(),
            process: self.captured.as_ref().map(|captured| &*captured.process),
            server_name: self
                .opening
                .as_ref()
                .map_or(ServerName::Unheard, ServerName::from),
            now: live.moment(),
            addresses: addresses.as_ref().map(<[IpAddr; 1]>::as_slice),
            // The names of addresses are not looked for again.
            reverse_name: Some(self.reverse_name.as_deref().unwrap_or(NO_NAME)),
            own_address: false,
            // How many there are is about asking for another, not about having one.
            connections: 0,
            mark: self.mark,
            dice: self.dice,
        };
        match live.policy.decide(&facts) {
            Step::Decided(decision) => {
                (!decision.is_allowed()).then(|| Decision::to_string(&decision))
            }
            Step::Needs(_) => None,
        }
    }

    /// What there is to say of it now.
    pub fn record(&self, event: Event) -> Record<'_> {
        let counts = self.traffic.counts();
        let plain = self.plain.as_deref();
        let engine = self.traffic.engine();
        let from_client = counts.to_upstream.saturating_sub(self.traffic.asked());
        Record {
            event,
            id: self.id,
            time: SystemTime::now(),
            elapsed: self.since.elapsed(),
            client: self.client,
            listener: self.listener,
            listener_name: &self.listener_name,
            user: self.user.as_deref(),
            certificate: self.certificate.as_deref(),
            captured: self.captured.as_deref(),
            tag: plain.map_or(Tag::TcpTunnel, |_| Tag::TcpMiss),
            status: match (plain, engine) {
                (None, _) => 200,
                (Some(_), Some(_)) => 101,
                // It has no answer yet, or somebody else knows which.
                (Some(_), None) => 0,
            },
            sent: counts.to_client,
            received: self.head_bytes + from_client,
            method: plain.map_or("CONNECT", |plain| &plain.method),
            url: match plain {
                Some(plain) => Cow::Borrowed(loggable(&plain.url)),
                None => Cow::Owned(self.target.to_string()),
            },
            version: self.version,
            target: Some(&self.target),
            peer: Some(self.upstream.ip()),
            peer_port: Some(self.upstream.port()),
            local: self.local,
            hierarchy: self.hierarchy,
            parent: self.parent.as_deref(),
            content_type: None,
            rule: self.rule.as_deref(),
            engine,
            declined: None,
            moved_after: None,
            ending: None,
            finished: self.traffic.finished(),
            refusal: None,
            sni: self.opening.as_ref().and_then(Opening::name),
            timings: Timings {
                first_byte: self.traffic.first_byte(),
                ..self.timings
            },
            fields: &self.fields,
        }
    }
}

/// A URL without its query, which may hold secrets, but with its question mark, as Squid has it.
pub fn loggable(url: &str) -> &str {
    url.split_inclusive('?').next().unwrap_or_default()
}
