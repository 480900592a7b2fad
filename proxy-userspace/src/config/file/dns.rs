//! How names are resolved, as it is written.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lists;
use crate::{
    config::values::{HostPattern, Span, Text},
    dns::{self, Family, NameServer},
};

/// How names are resolved. What is absent has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Servers to ask, the first ones first [default: those of /etc/resolv.conf].
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "lists::filled"
    )]
    pub servers: Vec<Text<NameServer>>,
    /// Which IP versions to ask for, and which to try first [default: ipv6-first].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// A file with names that are known without asking; "" is none [default: /etc/hosts].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<PathBuf>,
    /// A domain to append to names without a dot, before they are judged [default: none].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append_domain: Option<Text<HostPattern>>,
    /// How long one server is waited for [default: as /etc/resolv.conf says, 5s].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// How long an address is remembered at least [default: 1s].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ttl: Option<Span>,
    /// How long it is remembered at most [default: 1h].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Span>,
    /// How long it is remembered at most that a name has no address [default: 1m].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<Span>,
    /// How many answers are remembered [default: 8192].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_size: Option<u32>,
    /// Certificate authorities of servers that are asked over TLS or HTTPS, a PEM file [default: the system's].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl Dns {
    /// The same for the resolver; `directory` is where relative paths begin.
    pub(in crate::config) fn settings(&self, directory: &std::path::Path) -> dns::Settings {
        let default = dns::Settings::default();
        let span = |span: Option<Span>, default| span.map_or(default, |span| span.0);
        dns::Settings {
            servers: self.servers.iter().map(|server| server.0.clone()).collect(),
            family: self.family.unwrap_or_default(),
            hosts: match &self.hosts {
                None => default.hosts,
                Some(path) if path.as_os_str().is_empty() => None,
                Some(path) => Some(directory.join(path)),
            },
            timeout: self.timeout.map(|span| span.0),
            min_ttl: span(self.min_ttl, default.min_ttl),
            max_ttl: span(self.max_ttl, default.max_ttl),
            negative_ttl: span(self.negative_ttl, default.negative_ttl),
            cache_size: self.cache_size.map_or(default.cache_size, u64::from),
            ca: self.ca.as_ref().map(|path| directory.join(path)),
        }
    }
}
