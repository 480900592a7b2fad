//! `[capture]`: connections of processes that do not know of the proxy.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::values::{Network, Span, Text},
    lists,
};
use crate::policy::PortRange;

/// Whose connections are captured, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// Cgroups whose processes' connections are captured, with all below them, as paths such as
    /// "/system.slice/app.service"; they may come and go.
    #[serde(deserialize_with = "lists::filled")]
    pub cgroups: Vec<String>,
    /// Cgroups below them whose connections are not [default: the proxy's own].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Ports whose connections are captured [default: 80 and 443].
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lists::some_ports"
    )]
    pub ports: Option<Vec<PortRange>>,
    /// Networks that are connected to as if there were no proxy [default: none; loopback always is].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub direct: Vec<Text<Network>>,
    /// What is connected to, where a connection begins with a name [default: name].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_to: Option<ConnectTo>,
    /// How long is waited for that name; without one it is the address that counts [default: 500ms].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peek: Option<Span>,
    /// Where the file system of cgroups, version 2, is mounted [default: as /proc/self/mountinfo has it].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
}

impl Capture {
    /// What rules call the listeners of captured connections.
    pub const LISTENER: &'static str = "capture";

    /// How long is waited for a name.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.peek.map_or(Duration::from_millis(500), |span| span.0)
    }
}

/// Whom to believe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConnectTo {
    /// The name that the client says to the server: it is resolved here, and rules on hosts are about it.
    #[default]
    Name,
    /// The address that the client has chosen; rules may ask for the name by `sni`.
    Address,
}
