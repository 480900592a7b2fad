//! `[admin]`: where the proxy tells of itself.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::values::{Describe, Text};

/// Where the proxy tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// The Unix socket, for its owner only, over which everything can be seen and done; "none" for none [default:
    /// /run/underpass/admin.sock for root, else the same below `$XDG_RUNTIME_DIR`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<Text<AdminSocket>>,
    /// A port on loopback over which the same can be seen and nothing can be done, by every user of this host
    /// [default: none].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Text<Loopback>>,
    /// A port for /metrics, /healthz and /readyz alone [default: none].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<Text<SocketAddr>>,
}

/// The path of a socket, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSocket(pub Option<PathBuf>);

impl FromStr for AdminSocket {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("write the path of a socket, or none"),
            "none" => Ok(Self(None)),
            path => Ok(Self(Some(path.into()))),
        }
    }
}

impl fmt::Display for AdminSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("none"),
            Some(path) => path.display().fmt(f),
        }
    }
}

impl Describe for AdminSocket {
    const DESCRIPTION: &'static str = "the path of a socket, or \"none\"";
}

/// An address on loopback, with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loopback(pub SocketAddr);

impl FromStr for Loopback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = super::super::parse_listen(text)?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{address} is not on loopback; metrics_listen is for other addresses, and has the metrics alone"
            ));
        }
        Ok(Self(address))
    }
}

impl fmt::Display for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Describe for Loopback {
    const DESCRIPTION: &'static str = "a loopback address with a port such as \"127.0.0.1:9128\"";
}
