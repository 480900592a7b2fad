//! `underpass.toml`. Unknown keys are errors, with their place in the file.

use std::{fmt, fs, marker::PhantomData, net::SocketAddr, path::Path, time::Duration};

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};

use super::{ConfigError, duration, parse_listen, parse_network};
use crate::{
    lines::Destination,
    policy::{PortRange, PortSet},
    relay::{rules, selection::EngineChoice},
};

/// The file as written; what is absent has its default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// Where to listen.
    #[serde(deserialize_with = "addresses")]
    pub(super) listen: Option<Vec<SocketAddr>>,
    /// Which engines to use.
    pub(super) engine: Option<EngineChoice>,
    /// Other engines for some targets.
    pub(super) engine_rule: Vec<EngineRule>,
    /// Networks whose clients may use the proxy.
    #[serde(deserialize_with = "some_networks")]
    pub(super) allow_client: Option<Vec<IpNet>>,
    /// Networks that are open although they are not public.
    #[serde(deserialize_with = "destinations")]
    pub(super) allow_destination: Option<Vec<IpNet>>,
    /// Ports that are open.
    #[serde(deserialize_with = "ports")]
    pub(super) allow_port: Option<Vec<PortRange>>,
    /// A path, or `-`.
    #[serde(deserialize_with = "destination")]
    pub(super) access_log: Option<Destination>,
    /// Accept an HTTP/1.1 request without `Host`.
    pub(super) relaxed: bool,
    /// How long things may take.
    pub(super) timeouts: Timeouts,
}

/// How long things may take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Timeouts {
    /// A request head, whole. Not extended by bytes that trickle in.
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) head: Duration,
    /// Resolving and connecting, together.
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) connect: Duration,
    /// A tunnel without a byte in either direction. Squid's default.
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) idle: Duration,
    /// The same once one side has finished.
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) half_closed: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            connect: Duration::from_secs(30),
            idle: Duration::from_secs(15 * 60),
            half_closed: Duration::from_secs(5 * 60),
        }
    }
}

/// An engine for some targets, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EngineRule {
    /// Networks of the address that is connected to.
    #[serde(default, deserialize_with = "some_networks")]
    destination: Option<Vec<IpNet>>,
    /// Its ports.
    #[serde(default, deserialize_with = "ports")]
    port: Option<Vec<PortRange>>,
    engine: EngineChoice,
}

impl From<EngineRule> for rules::EngineRule {
    fn from(rule: EngineRule) -> Self {
        Self {
            destinations: rule.destination,
            ports: rule.port.map(PortSet::from_iter),
            engine: rule.engine,
        }
    }
}

impl File {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong: what, and where.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file at `path`.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let (line, column) = place(text, error.span().map_or(0, |span| span.start));
            ConfigError::Invalid {
                path: path.to_owned(),
                line,
                column,
                message: error.message().replace('\n', ", "),
            }
        })
    }
}

/// Line and column, from 1, of a byte offset.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// A list, with a helpful message where something else stands.
struct List<T> {
    /// What to write.
    expected: &'static str,
    may_be_empty: bool,
    items: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        if items.is_empty() && !self.may_be_empty {
            return Err(A::Error::invalid_length(0, &self));
        }
        Ok(items)
    }
}

fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    expected: &'static str,
    may_be_empty: bool,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(List {
        expected,
        may_be_empty,
        items: PhantomData,
    })
}

fn addresses<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<SocketAddr>>, D::Error> {
    let expected = "a list of addresses such as [\"127.0.0.1:3128\"]";
    let texts: Vec<String> = list(deserializer, expected, false)?;
    let addresses: Result<_, _> = texts.iter().map(|text| parse_listen(text)).collect();
    addresses.map(Some).map_err(D::Error::custom)
}

fn some_networks<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<IpNet>>, D::Error> {
    networks(deserializer, false)
}

fn destinations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<IpNet>>, D::Error> {
    networks(deserializer, true)
}

fn networks<'de, D: Deserializer<'de>>(
    deserializer: D,
    may_be_empty: bool,
) -> Result<Option<Vec<IpNet>>, D::Error> {
    let expected = "a list of networks such as [\"10.0.0.0/8\"]";
    let texts: Vec<String> = list(deserializer, expected, may_be_empty)?;
    let networks: Result<_, _> = texts.iter().map(|text| parse_network(text)).collect();
    networks.map(Some).map_err(D::Error::custom)
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<PortRange>>, D::Error> {
    let expected = "a list of ports such as [443, \"8000-8100\"]";
    list(deserializer, expected, false).map(Some)
}

fn destination<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Destination>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        File::parse(text, "a.toml".as_ref())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let message = error("relaxed = true\nallow_ports = [443]\n");
        assert!(message.starts_with("a.toml:2:1: "), "{message}");
        assert!(message.contains("unknown field `allow_ports`"), "{message}");
        assert!(message.contains("`allow_port`"), "{message}");
    }

    #[test]
    fn a_bad_value_is_named_with_its_place() {
        for (text, place, part) in [
            (
                "allow_client = [\"10.0.0/8\"]",
                "a.toml:1:16",
                "is not a network",
            ),
            ("listen = [\"localhost\"]", "a.toml:1:10", "with a port"),
            ("engine = \"fast\"", "a.toml:1:10", "unknown variant"),
            ("[[engine_rule]]\nport = [1]", "a.toml:1:1", "engine"),
            (
                "[[engine_rule]]\nengine = \"copy\"\nports = [1]",
                "a.toml:3:1",
                "unknown field `ports`",
            ),
            (
                "[[engine_rule]]\nengine = \"copy\"\ndestination = []",
                "a.toml:3:15",
                "a list of networks",
            ),
            ("\n[timeouts]\nidle = \"never\"", "a.toml:3:8", "such as"),
            ("[timeouts]\nidle = 5", "a.toml:2:8", "such as"),
            ("allow_port = [0]", "a.toml:1:15", "port"),
            ("access_log = \"\"", "a.toml:1:14", "is empty"),
            ("listen = []", "a.toml:1:10", "such as [\"127.0.0.1:3128\"]"),
            ("listen = \"[::]:1\"", "a.toml:1:10", "a list of addresses"),
            ("allow_client = []", "a.toml:1:16", "a list of networks"),
            ("allow_port = 443", "a.toml:1:14", "such as [443,"),
            ("allow_port = []", "a.toml:1:14", "a list of ports"),
            ("listen = ", "a.toml:1:10", ""),
        ] {
            let message = error(text);
            assert!(message.starts_with(place), "{text}: {message}");
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let file = File::parse("# nothing\n", "a.toml".as_ref()).unwrap();
        assert!(file.listen.is_none() && !file.relaxed);
        assert_eq!(file.timeouts.idle, Duration::from_secs(900));
    }
}
