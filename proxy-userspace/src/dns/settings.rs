//! What a resolver is told. Pure.

use std::{path::PathBuf, time::Duration};

use hickory_resolver::proto::rr::RecordType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NameServer;

/// How names are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The servers; those of the system if there are none.
    pub servers: Vec<NameServer>,
    /// The IP versions.
    pub family: Family,
    /// Names that are known without asking.
    pub hosts: Option<PathBuf>,
    /// How long one server is waited for; what the system says if it is not set.
    pub timeout: Option<Duration>,
    /// How long an address is remembered at least, whatever its time to live.
    pub min_ttl: Duration,
    /// And at most.
    pub max_ttl: Duration,
    /// How long it is remembered at most that there is none.
    pub negative_ttl: Duration,
    /// How many answers are remembered.
    pub cache_size: u64,
    /// Certificate authorities for servers that are asked over TLS, in place of the system's.
    pub ca: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            family: Family::default(),
            hosts: Some("/etc/hosts".into()),
            timeout: None,
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(3600),
            negative_ttl: Duration::from_secs(60),
            cache_size: 8192,
            ca: None,
        }
    }
}

/// Which IP versions are asked for, and which of them is tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Both, IPv6 first.
    #[default]
    Ipv6First,
    /// Both, IPv4 first.
    Ipv4First,
    /// IPv6 alone.
    Ipv6Only,
    /// IPv4 alone.
    Ipv4Only,
}

impl Family {
    /// The types of record to ask for, in the order of preference.
    pub(super) fn types(self) -> impl Iterator<Item = RecordType> {
        let (first, second) = match self {
            Self::Ipv6First => (RecordType::AAAA, Some(RecordType::A)),
            Self::Ipv4First => (RecordType::A, Some(RecordType::AAAA)),
            Self::Ipv6Only => (RecordType::AAAA, None),
            Self::Ipv4Only => (RecordType::A, None),
        };
        [first].into_iter().chain(second)
    }
}
