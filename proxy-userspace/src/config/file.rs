//! `underpass.toml` as it is written. Unknown keys are errors, with their place and a suggestion.

mod admin;
mod capture;
#[macro_use]
mod conditions;
mod dns;
mod http;
mod listen;
mod lists;
mod located;
mod log;
mod parent;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(in crate::config) use self::conditions::Conditions;
pub use self::{
    admin::{Admin, AdminSocket, Loopback},
    capture::{Capture, ConnectTo},
    dns::Dns,
    http::{ForwardedFor, Http},
    listen::{ClientCertificate, Listen, ListenTable, ListenTls},
    located::Located,
    log::{AccessLog, AccessLogs, Only},
    parent::{Balance, Parent},
};
use super::values::{
    Chance, Dscp, HostPattern, Item, MarkText, Network, Pattern, Rate, Size, Span, Text, Word,
};
use crate::{
    net::announce::ProxyProtocol,
    policy::{PortRange, Window},
    relay::selection::EngineChoice,
};

/// Networks, and files with more of them.
pub type Networks = Vec<Text<Item<Network>>>;

/// The configuration of Underpass. What is absent has its default.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// Further files with `match` and `rule` tables, as paths from this file's directory, `*` and `?`
    /// included. Their rules come before the ones here, in the order of the files' names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Where to listen [default: 127.0.0.1:3128].
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lists::some_listeners"
    )]
    pub listen: Option<Vec<Listen>>,
    /// What moves the bytes of a tunnel [default: auto].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineChoice>,
    /// Networks whose clients may use the proxy [default: this host].
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lists::some_networks"
    )]
    pub allow_client: Option<Networks>,
    /// Networks that tunnels may lead to although they are not public [default: none].
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lists::networks"
    )]
    pub allow_destination: Option<Networks>,
    /// Ports that tunnels and forwarded requests may lead to [default: 443 for tunnels, 80 for http URLs].
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lists::some_ports"
    )]
    pub allow_port: Option<Vec<PortRange>>,
    /// Where the access log goes: one place, in Squid's format, or tables that say more; with an empty list there is none
    /// [default: standard output].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLogs>,
    /// Accept an HTTP/1.1 request without `Host`.
    #[serde(skip_serializing_if = "is_default")]
    pub relaxed: bool,
    /// Whose semantics apply where they differ. With "squid" a condition on addresses is asked once, of all
    /// addresses of a host together; a refusal that hangs on a condition on users asks for another
    /// user; and a target that cannot be reached is a 503.
    #[serde(skip_serializing_if = "is_default")]
    pub compatibility: Compatibility,
    /// Read the configuration again when one of its files changes [default: true]. SIGHUP always does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<bool>,
    /// Close tunnels that the rules forbid after they were read again.
    #[serde(skip_serializing_if = "is_default")]
    pub enforce_on_live: bool,
    /// Reset a tunnel to a host by name whose ClientHello names another server, or none. What is no TLS is let through, once
    /// the client has said something.
    #[serde(skip_serializing_if = "is_default")]
    pub strict_sni: bool,
    /// The time zone of conditions on time, such as "Europe/Paris" [default: the system's].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<Located<String>>,
    /// How long things may take.
    #[serde(skip_serializing_if = "is_default")]
    pub timeouts: Timeouts,
    /// How many tunnels there may be.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// How users prove who they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Located<Auth>>,
    /// How names are resolved [default: as /etc/resolv.conf says, without its search domains].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Located<Dns>>,
    /// Where the proxy tells of itself.
    #[serde(skip_serializing_if = "is_default")]
    pub admin: Admin,
    /// Connections of processes that do not know of the proxy, which are led to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<Located<Capture>>,
    /// What is done to the fields of requests for `http` URLs, and of their responses.
    #[serde(skip_serializing_if = "is_default")]
    pub http: Http,
    /// Conditions with a name, for `when` in rules.
    #[serde(rename = "match", skip_serializing_if = "BTreeMap::is_empty")]
    pub matches: BTreeMap<String, Located<Match>>,
    /// Rules in order: the first that fits decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<Located<Rule>>,
    /// Other engines for some targets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engine_rule: Vec<EngineRule>,
    /// Other proxies that tunnels can go through, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parent: BTreeMap<String, Located<Parent>>,
    /// Which way requests go: the first entry that fits decides. Without one that does, straight to the target.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Located<Route>>,
    /// How to connect: from where, and marked as what.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outgoing: Vec<Located<Outgoing>>,
    /// Token buckets that `shape` refers to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bucket: BTreeMap<String, Bucket>,
    /// Bandwidth of some tunnels: the first entry that fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shape: Vec<Located<Shape>>,
}

/// What an included file may have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Included {
    pub(super) include: Vec<String>,
    #[serde(rename = "match")]
    pub(super) matches: BTreeMap<String, Located<Match>>,
    pub(super) rule: Vec<Located<Rule>>,
}

/// Whose semantics apply where they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compatibility {
    /// Ours.
    #[default]
    None,
    /// Squid's.
    Squid,
}

/// How long things may take.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// A request head, whole. Not extended by bytes that trickle in.
    pub head: Span,
    /// Resolving and connecting, together.
    pub connect: Span,
    /// Connecting to one address; then the next one is tried.
    pub connect_attempt: Span,
    /// The first bytes of a tunnel, where rules ask for `sni`.
    pub client_hello: Span,
    /// The next request of a client that is not tunnelled, over the same connection.
    pub keep_alive: Span,
    /// The same, of our connections to origins and parents.
    pub upstream_keep_alive: Span,
    /// A tunnel without a byte in either direction; or a request that is forwarded.
    pub idle: Span,
    /// The same once one side has finished.
    pub half_closed: Span,
    /// A tunnel as a whole [default: none].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Span>,
    /// After SIGTERM, those that are open; the rest is reset then.
    pub drain: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Span(Duration::from_secs(30)),
            connect: Span(Duration::from_secs(30)),
            connect_attempt: Span(Duration::from_secs(10)),
            client_hello: Span(Duration::from_secs(5)),
            keep_alive: Span(Duration::from_secs(2 * 60)),
            upstream_keep_alive: Span(Duration::from_secs(60)),
            idle: Span(Duration::from_secs(15 * 60)),
            half_closed: Span(Duration::from_secs(5 * 60)),
            lifetime: None,
            // Less than the half minute that Kubernetes gives a pod.
            drain: Span(Duration::from_secs(20)),
        }
    }
}

/// How many tunnels there may be, and how fast they may be. What is absent has no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// In all; never more than there are descriptors for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<u32>,
    /// Of one client address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels_per_client: Option<u32>,
    /// Of one user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels_per_user: Option<u32>,
    /// Of each tunnel, both directions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_per_tunnel: Option<Text<Rate>>,
}

/// The same for the tunnels that a rule allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleLimits {
    /// In all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<u32>,
    /// Of one client address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels_per_client: Option<u32>,
    /// Of one user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels_per_user: Option<u32>,
    /// Of all of them together, both directions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Text<Rate>>,
    /// Of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_per_tunnel: Option<Text<Rate>>,
    /// Without a byte in either direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
    /// As a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Span>,
}

/// Basic authentication against a file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The file, made by `htpasswd -B`: bcrypt, SHA-512, SHA-256 and MD5 (apr1) hashes.
    pub htpasswd: PathBuf,
    /// What the client shows to its user.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// How long a password that was right is not checked again.
    #[serde(default = "default_ttl")]
    pub ttl: Span,
}

fn default_realm() -> String {
    "Underpass".to_owned()
}

fn default_ttl() -> Span {
    Span(Duration::from_secs(5 * 60))
}

with_conditions! {
    /// A rule: what it does, for requests of which every condition holds; a condition holds if one of
    /// its values does.
    pub struct Rule {
        /// Its name, for logs and `underpass explain`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub name: Option<Text<Word>>,
        /// What it does.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub action: Option<Action>,
        /// With `deny`: the status [default: 403; with `redirect`, 302 for GET and HEAD, else 307].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub status: Option<u16>,
        /// With `deny`: what the client is told.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub message: Option<String>,
        /// With `deny`: where the client is sent instead (`Location`).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub redirect: Option<String>,
        /// With `deny`: no reply, but a reset.
        #[serde(skip_serializing_if = "is_default")]
        pub reset: bool,
        /// With `allow`: the engine of the tunnel.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub engine: Option<EngineChoice>,
        /// With `allow`: limits of its tunnels.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub limits: Option<RuleLimits>,
        /// Conditions of which each must not hold.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub not: Option<Box<Match>>,
    }
}

with_conditions! {
    /// Conditions that must all hold; a condition holds if one of its values does.
    pub struct Match {
        /// Names of matches of which one must hold; `!` negates.
        #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
        pub any: Vec<Text<Word>>,
        /// The address of ours that was connected to.
        #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
        pub local_address: Networks,
        /// Its port.
        #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
        pub local_port: Vec<PortRange>,
        /// `host` and `host_regex` also look for the name of a host that was given by address.
        #[serde(skip_serializing_if = "is_default")]
        pub reverse_lookup: bool,
        /// `destination` does not resolve names: only a host given by address can match.
        #[serde(skip_serializing_if = "is_default")]
        pub no_lookup: bool,
        /// `user` does not care about upper and lower case.
        #[serde(skip_serializing_if = "is_default")]
        pub ignore_case: bool,
        /// Holds for every request, whatever else is said.
        #[serde(skip_serializing_if = "is_default")]
        pub always: bool,
        /// Holds for no request.
        #[serde(skip_serializing_if = "is_default")]
        pub never: bool,
        /// Conditions of which each must not hold.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub not: Option<Box<Match>>,
    }
}

with_conditions! {
    /// A way for some requests.
    pub struct Route {
        /// Names of parents, and "direct" for none: the first one is tried first, and the others when it fails. Without
        /// "direct" nothing goes straight to its target.
        pub via: Vec<Text<Word>>,
        /// Whether parents that stand side by side take turns [default: first].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub balance: Option<Balance>,
    }
}

with_conditions! {
    /// How to connect. Each setting is taken from the first entry that fits and has it.
    pub struct Outgoing {
        /// The address to connect from; an entry with one does not fit targets of the other IP version.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub address: Option<Text<std::net::IpAddr>>,
        /// The interface to leave by.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub interface: Option<Text<Word>>,
        /// The firewall's mark; takes `CAP_NET_ADMIN`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub set_mark: Option<u32>,
        /// The class of service in the IP header, from 0 to 63.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub dscp: Option<Dscp>,
        /// Probes on a quiet connection [default: after 60s, every 15s, 4 of them].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub keepalive: Option<Keepalive>,
        /// How long the other end may leave bytes unacknowledged [default: as the kernel has it].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub user_timeout: Option<Span>,
        /// Congestion control, such as "bbr" [default: as the kernel has it].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub congestion: Option<Text<Word>>,
        /// The version of the PROXY protocol header with which the other end is told who the client is [default: none].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub proxy_protocol: Option<ProxyProtocol>,
    }
}

/// Probes on a connection that is quiet. What is absent has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keepalive {
    /// After so long a silence [default: 60s].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
    /// So far apart [default: 15s].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// So many without an answer end the connection [default: 4].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<std::num::NonZeroU8>,
}

with_conditions! {
    /// A limit of bandwidth.
    pub struct Shape {
        /// The buckets that a tunnel takes its bytes from, each its own; none is no limit.
        pub bucket: Vec<Text<Word>>,
    }
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Lets the request through.
    Allow,
    /// Refuses it.
    Deny,
    /// Notes that it would refuse it, and leaves it to the rules behind.
    Report,
}

/// A token bucket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// How many bytes flow into it.
    pub rate: Text<Rate>,
    /// How many it holds [default: those of a second].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<Text<Size>>,
    /// Who shares one.
    #[serde(default)]
    pub per: Sharing,
    /// The direction that takes from it.
    #[serde(default)]
    pub direction: Flow,
}

/// Who shares a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// All tunnels.
    #[default]
    All,
    /// Those of a client's network: /24 for IPv4, /64 for IPv6.
    Network,
    /// Those of a client address.
    Client,
    /// Those of a user.
    User,
    /// Nobody: each tunnel has its own.
    Tunnel,
}

/// Which bytes count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Flow {
    /// Towards the client.
    Down,
    /// From the client.
    Up,
    /// Both together.
    #[default]
    Both,
}

/// An engine for some targets.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineRule {
    /// Networks of the address that is connected to.
    #[serde(
        default,
        deserialize_with = "lists::some_networks",
        skip_serializing_if = "Option::is_none"
    )]
    pub destination: Option<Networks>,
    /// Its ports.
    #[serde(
        default,
        deserialize_with = "lists::some_ports",
        skip_serializing_if = "Option::is_none"
    )]
    pub port: Option<Vec<PortRange>>,
    /// The engine.
    pub engine: EngineChoice,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
