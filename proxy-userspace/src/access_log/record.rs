//! What there is to say of a transaction. Pure.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    authority::Authority,
    capture::Captured,
    http::{Refusal, Version},
    parent::Hierarchy,
    relay::{Ending, EngineKind, Side},
};

/// How a transaction went, in Squid's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// A tunnel, or the attempt to make one.
    TcpTunnel,
    /// A request that was forwarded, or the attempt to.
    TcpMiss,
    /// The same, and the client did not wait for all of the response.
    TcpMissAborted,
    /// The policy said no.
    TcpDenied,
    /// It never became a request.
    None,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcpTunnel => "TCP_TUNNEL",
            Self::TcpMiss => "TCP_MISS",
            Self::TcpMissAborted => "TCP_MISS_ABORTED",
            Self::TcpDenied => "TCP_DENIED",
            Self::None => "NONE_NONE",
        })
    }
}

/// When in the life of a transaction a record is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// A tunnel has begun.
    Start,
    /// It goes on.
    Progress,
    /// The transaction is over.
    End,
}

/// How long the steps to a tunnel took, as far as there were any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Finding addresses.
    pub dns: Option<Duration>,
    /// Connecting, to a parent's answer if there is one.
    pub connect: Option<Duration>,
    /// From the request to the first byte behind our answer. Nobody knows it where the kernel moved that byte.
    pub first_byte: Option<Duration>,
}

/// A transaction.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// When in its life.
    pub event: Event,
    /// Its client connection's number.
    pub id: u64,
    /// Now.
    pub time: SystemTime,
    /// Since the request's head was complete.
    pub elapsed: Duration,
    /// Who asked.
    pub client: SocketAddr,
    /// The address of ours that was connected to.
    pub listener: SocketAddr,
    /// The listener's name in the configuration.
    pub listener_name: &'a str,
    /// The authenticated user.
    pub user: Option<&'a str>,
    /// The names in the client's certificate.
    pub certificate: Option<&'a [String]>,
    /// Where it meant to go and who it is, if it does not know of us.
    pub captured: Option<&'a Captured>,
    /// How it went.
    pub tag: Tag,
    /// The status sent to the client; 0 if none was.
    pub status: u16,
    /// Bytes sent to the client, reply head included.
    pub sent: u64,
    /// Bytes received from the client, request head included.
    pub received: u64,
    /// The request's method; `NONE` if none was recognised.
    pub method: &'a str,
    /// What was asked for: `host:port`, a URL without its query, or `error:` with a reason.
    pub url: Cow<'a, str>,
    /// The version of HTTP.
    pub version: Option<Version>,
    /// Where to.
    pub target: Option<&'a Authority>,
    /// The address that was connected to, or last tried.
    pub peer: Option<IpAddr>,
    /// The port there, once that was connected to.
    pub peer_port: Option<u16>,
    /// Our address of that connection.
    pub local: Option<SocketAddr>,
    /// How the way was chosen.
    pub hierarchy: Hierarchy,
    /// The parent in it.
    pub parent: Option<&'a str>,
    /// The type of the response, if there was one.
    pub content_type: Option<Cow<'a, str>>,
    /// The rule that allowed it.
    pub rule: Option<&'a str>,
    /// The engine that carries the tunnel, or did in the end.
    pub engine: Option<EngineKind>,
    /// Why a better engine does not.
    pub declined: Option<&'a str>,
    /// Bytes moved when the tunnel went on in the kernel.
    pub moved_after: Option<u64>,
    /// How a tunnel ended.
    pub ending: Option<&'a Ending>,
    /// Who finished first, of a tunnel that ended well.
    pub finished: Option<Side>,
    /// What the client was told instead of being served.
    pub refusal: Option<&'a Refusal>,
    /// The name in its ClientHello, if a rule wanted to know.
    pub sni: Option<&'a str>,
    /// How long it took.
    pub timings: Timings,
    /// Fields of the request that a format asks for, with their names in lower case.
    pub fields: &'a [(Box<str>, Box<str>)],
}

impl Record<'_> {
    /// The value of a field that a format has asked for, by its name in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| **known == *name);
        found.map(|(_, value)| &**value)
    }

    /// Who ended it.
    pub fn ended_by(&self) -> Option<&'static str> {
        let side = match self.ending? {
            Ending::Closed => self.finished?,
            Ending::Reset(side) => *side,
            _ => return Some("proxy"),
        };
        Some(match side {
            Side::Client => "client",
            Side::Upstream => "upstream",
        })
    }
}

#[cfg(test)]
pub(super) fn example() -> Record<'static> {
    Record {
        event: Event::End,
        id: 7,
        time: std::time::UNIX_EPOCH + Duration::from_millis(1_544_160_065_248),
        elapsed: Duration::from_millis(228),
        client: ([172, 30, 109, 89], 44_476).into(),
        listener: ([172, 30, 109, 95], 3128).into(),
        listener_name: "0.0.0.0:3128",
        user: None,
        certificate: None,
        captured: None,
        tag: Tag::TcpTunnel,
        status: 200,
        sent: 87_633,
        received: 702,
        method: "CONNECT",
        url: "en.wikipedia.org:443".into(),
        version: Some(Version::Http11),
        target: None,
        peer: Some([91, 198, 174, 192].into()),
        peer_port: Some(443),
        local: Some(([172, 30, 109, 95], 50_000).into()),
        hierarchy: Hierarchy::Direct,
        parent: None,
        content_type: None,
        rule: Some("pods"),
        engine: Some(EngineKind::Splice),
        declined: None,
        moved_after: None,
        ending: Some(&Ending::Closed),
        finished: Some(Side::Client),
        refusal: None,
        sni: None,
        timings: Timings {
            dns: Some(Duration::from_micros(1_500)),
            connect: Some(Duration::from_millis(20)),
            first_byte: None,
        },
        fields: &[],
    }
}
