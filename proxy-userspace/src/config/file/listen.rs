//! Listeners.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::super::{
    parse_listen,
    values::{Text, Word},
};

/// A listener: its address, or a table that also names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Listen {
    /// The address.
    Address(Text<SocketAddr>),
    /// With a name.
    Named(NamedListener),
}

/// A listener with a name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedListener {
    /// Where to listen.
    pub address: Text<SocketAddr>,
    /// For the condition `listener`.
    pub name: Text<Word>,
}

/// A string or a table.
impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Listen;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address with a port such as \"127.0.0.1:3128\", or a table with `address` and `name`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Listen, E> {
                let address = parse_listen(text).map_err(E::custom)?;
                Ok(Listen::Address(Text(address)))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Listen, A::Error> {
                let table = serde::de::value::MapAccessDeserializer::new(map);
                NamedListener::deserialize(table).map(Listen::Named)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl Listen {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Address(address) => address.0,
            Self::Named(named) => named.address.0,
        }
    }

    /// Its name; by default it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Address(_) => "",
            Self::Named(named) => &named.name.0.0,
        }
    }
}
