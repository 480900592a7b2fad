//! The configuration: typed, complete, and valid by construction.
//!
//! It comes from `underpass.toml` ([`mod@file`], read by `load`) or from a squid.conf ([`squid`], which makes
//! a [`file::File`] of it), and the command line ([`cli`]) wins over either, setting by setting. Then it is
//! compiled (`compile`) into what cannot change while the process runs ([`Config`]) and what can
//! ([`Live`]). Everything has a safe default, so all sources may be absent.

pub mod cli;
mod compile;
mod duration;
pub mod file;
mod live;
mod load;
pub mod squid;
pub mod values;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use thiserror::Error;

pub use self::file::File;
use self::{
    cli::Settings,
    compile::listener_name,
    file::{AccessLogs, Listen},
    load::Loaded,
    values::Text,
};
pub use self::{
    live::{Conditional, Grant, Live, LogEntry, ParentEntry, Quotas},
    squid::DEFAULT_ACCESS_LOG as DEFAULT_SQUID_LOG,
};
use crate::policy::Place;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a valid configuration.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Something in it cannot be, or not together with the rest.
    #[error("{place}: {message}")]
    At {
        /// Where.
        place: Place,
        /// What is wrong.
        message: String,
    },
    /// Several things are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<ConfigError>),
}

impl ConfigError {
    /// The files that are to blame.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Read { path, .. } | Self::Invalid { path, .. } => vec![path.clone()],
            Self::At { place, .. } => vec![place.file.to_path_buf()],
            Self::Several(errors) => errors.iter().flat_map(Self::files).collect(),
        }
    }
}

/// What `underpass run` runs with.
#[derive(Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<Listener>,
    /// Whether nobody has said where.
    pub listens_by_default: bool,
    /// Where to tell of ourselves.
    pub admin: file::Admin,
    /// What can change while the process runs.
    pub live: Live,
    /// Whether to read the configuration again when a file changes.
    pub watch: bool,
    /// The files that it comes from, and the directories in which files were looked for.
    pub sources: Vec<PathBuf>,
    /// What was left out, for the operator to know.
    pub notices: Vec<String>,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address.
    pub address: SocketAddr,
    /// What rules call it.
    pub name: String,
}

/// Where `underpass` listens unless told otherwise: on this host only, on Squid's port.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);

impl Config {
    /// Joins the command line and the file it names.
    ///
    /// # Errors
    /// A file cannot be read or is invalid.
    pub fn load(settings: &Settings) -> Result<Self, ConfigError> {
        let (loaded, notices) = match (&settings.config, &settings.squid_conf) {
            (Some(path), _) => (load::load(path)?, Vec::new()),
            (None, Some(path)) => {
                let translated = squid::translate(path)?;
                let loaded = Loaded {
                    file: translated.file,
                    sources: translated.sources,
                };
                (loaded, translated.notices)
            }
            (None, None) => {
                let file = File::default();
                (
                    Loaded {
                        file,
                        sources: Vec::new(),
                    },
                    Vec::new(),
                )
            }
        };
        let path = settings
            .config
            .as_deref()
            .or(settings.squid_conf.as_deref());
        let mut config = Self::join(settings, loaded, path.unwrap_or(Path::new("")))?;
        config.notices = notices;
        Ok(config)
    }

    /// Compiles the text of an `underpass.toml`, as if it stood at this path.
    ///
    /// # Errors
    /// It is invalid.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::join(&Settings::default(), load::parse(text, path)?, path)
    }

    /// Compiles what a squid.conf was translated to.
    ///
    /// # Errors
    /// It is contradictory, or a list that it names cannot be read.
    pub fn from_file(file: File, path: &Path) -> Result<Self, ConfigError> {
        let sources = Vec::new();
        Self::join(&Settings::default(), Loaded { file, sources }, path)
    }

    fn join(settings: &Settings, loaded: Loaded, path: &Path) -> Result<Self, ConfigError> {
        let Loaded {
            mut file,
            mut sources,
        } = loaded;
        override_with(settings, &mut file);
        let mut listen: Vec<Listener> = file.listen.iter().flatten().map(Listener::new).collect();
        let listens_by_default = listen.is_empty();
        if listens_by_default {
            listen.push(Listener::new(&Listen::Address(Text(DEFAULT_LISTEN))));
        }
        let live = Live::compile(&file, path, &mut sources)?;
        Ok(Self {
            listen,
            listens_by_default,
            admin: file.admin,
            live,
            watch: file.watch.unwrap_or(true),
            sources,
            notices: Vec::new(),
        })
    }
}

impl Listener {
    fn new(listen: &Listen) -> Self {
        Self {
            address: listen.address(),
            name: listener_name(listen),
        }
    }
}

/// The command line wins over the file.
fn override_with(settings: &Settings, file: &mut File) {
    let Settings {
        listen,
        engine,
        allow_client,
        allow_destination,
        allow_port,
        access_log,
        admin_socket,
        metrics_listen,
        config: _,
        squid_conf: _,
    } = settings;
    if !listen.is_empty() {
        let named = |address: &SocketAddr| {
            // A listener of the file keeps its name.
            let known = file
                .listen
                .iter()
                .flatten()
                .find(|known| known.address() == *address);
            known.cloned().unwrap_or(Listen::Address(Text(*address)))
        };
        file.listen = Some(listen.iter().map(named).collect());
    }
    if let Some(engine) = engine {
        file.engine = Some(*engine);
        // Who says on the command line which engine to use means every tunnel.
        file.engine_rule.clear();
        for rule in &mut file.rule {
            rule.value.engine = None;
        }
    }
    let list = |given: &Vec<_>, setting: &mut Option<Vec<_>>| {
        if !given.is_empty() {
            *setting = Some(given.clone());
        }
    };
    list(allow_client, &mut file.allow_client);
    list(allow_destination, &mut file.allow_destination);
    if !allow_port.is_empty() {
        file.allow_port = Some(allow_port.clone());
    }
    if let Some(socket) = admin_socket {
        file.admin.socket = Some(Text(socket.clone()));
    }
    if let Some(address) = metrics_listen {
        file.admin.metrics_listen = Some(Text(*address));
    }
    if let Some(destination) = access_log {
        file.access_log = Some(AccessLogs::One(Text(destination.clone())));
    }
}

/// The JSON Schema of `underpass.toml`.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(File);
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}

/// A socket address.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("'{text}' is not an address with a port; write 127.0.0.1:3128 or [::]:3128")
    })
}

/// A network in CIDR notation, or a single address.
pub(crate) fn parse_network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| {
            let list = if text.contains(',') {
                ", one at a time"
            } else {
                ""
            };
            format!(
                "'{text}' is not a network; write 10.0.0.0/8, 2001:db8::/32 or an address{list}"
            )
        })
}

#[cfg(test)]
mod tests;
