//! Listeners.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    super::{
        parse_listen,
        values::{Text, Word},
    },
    Located, Networks,
};

/// A listener: its address, or a table that says more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Listen {
    /// The address.
    Address(Text<SocketAddr>),
    /// With a name, TLS, or proxies in front.
    Table(Box<ListenTable>),
}

/// What is said of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenTable {
    /// Where to listen.
    pub address: Text<SocketAddr>,
    /// For the condition `listener` [default: the address].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Text<Word>>,
    /// Networks of load balancers and proxies whose connections begin with a PROXY protocol header, version 1 or 2, and
    /// are then the client's that it announces. From elsewhere no such header is accepted.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::lists::filled"
    )]
    pub proxy_protocol: Networks,
    /// TLS: the proxy is an https:// one for its clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Located<ListenTls>>,
}

/// TLS of a listener. Certificates are read again when their files change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenTls {
    /// The certificate and those between it and its authority, a PEM file.
    pub certificate: PathBuf,
    /// Its key, a PEM file.
    pub key: PathBuf,
    /// Authorities of clients' certificates, a PEM file: clients are asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Whether clients may do without one [default: required].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificate>,
}

/// Whether a client needs a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificate {
    /// Without one there is no connection.
    Required,
    /// Rules may ask for it.
    Optional,
}

/// A string or a table.
impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Listen;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address with a port such as \"127.0.0.1:3128\", or a table with `address`, `name`, `tls` and `proxy_protocol`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Listen, E> {
                let address = parse_listen(text).map_err(E::custom)?;
                Ok(Listen::Address(Text(address)))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Listen, A::Error> {
                let table = serde::de::value::MapAccessDeserializer::new(map);
                ListenTable::deserialize(table).map(|table| Listen::Table(Box::new(table)))
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
            Self::Table(table) => table.address.0,
        }
    }

    /// Whether it asks its clients for certificates.
    #[must_use]
    pub fn asks_for_certificates(&self) -> bool {
        match self {
            Self::Address(_) => false,
            Self::Table(table) => {
                let tls = table.tls.as_ref();
                tls.is_some_and(|tls| tls.value.client_ca.is_some())
            }
        }
    }

    /// Its name; by default it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Address(_) => "",
            Self::Table(table) => table.name.as_ref().map_or("", |name| &name.0.0),
        }
    }
}
