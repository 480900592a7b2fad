//! Access logs.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    super::values::{Chance, HostPattern, Item, MarkText, Pattern, Span, Text, Word},
    Located, Networks,
    conditions::Conditions,
    is_default, lists,
};
use crate::{
    access_log::Format,
    lines::Destination,
    policy::{PortRange, Window},
};

/// Where the access log goes: one place, or tables that say more.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum AccessLogs {
    /// Everything, in Squid's format.
    One(Text<Destination>),
    /// Logs of their own, each with its format and its requests.
    Several(Vec<Located<AccessLog>>),
}

with_conditions! {
    /// An access log, of the requests that fit.
    pub struct AccessLog {
        /// Where it goes: a path, "-" for standard output, "syslog:facility.severity", or "udp://host:port"
        /// [default: standard output].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub to: Option<Text<Destination>>,
        /// What its lines look like: "squid", "common", "combined", "referrer", "useragent", "json", "envoy", or a
        /// format in the language of Squid's `logformat` [default: squid].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub format: Option<Text<Format>>,
        /// Only requests that ended so [default: all].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub only: Option<Only>,
        /// A line when a tunnel begins, too.
        #[serde(skip_serializing_if = "is_default")]
        pub start: bool,
        /// A line for each tunnel that is open, so often [default: none].
        #[serde(skip_serializing_if = "Option::is_none")]
        pub interval: Option<Span>,
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Only {
    /// It got its tunnel, or a response.
    Served,
    /// It did not.
    Refused,
}

/// A string or tables.
impl<'de> Deserialize<'de> for AccessLogs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = AccessLogs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, \"-\" for standard output, or tables [[access_log]]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AccessLogs, E> {
                let destination = text.parse().map_err(E::custom)?;
                Ok(AccessLogs::One(Text(destination)))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, sequence: A) -> Result<AccessLogs, A::Error> {
                let tables = de::value::SeqAccessDeserializer::new(sequence);
                Vec::deserialize(tables).map(AccessLogs::Several)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
