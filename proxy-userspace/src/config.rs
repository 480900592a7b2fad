//! The configuration: typed, complete, and valid by construction.
//!
//! It comes from a file ([`file`]) and the command line ([`cli`]); the command line wins, setting by
//! setting. Everything has a safe default, so both may be absent.

pub mod cli;
mod duration;
mod file;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use thiserror::Error;

pub use self::file::File;
use crate::{
    http::Strictness,
    lines::Destination,
    policy::{Policy, PortSet},
    relay::{Limits, rules::EngineRules},
};

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
}

/// What `underpass run` runs with.
#[derive(Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// Which engine a tunnel is for.
    pub engines: EngineRules,
    /// Who may go where.
    pub policy: Policy,
    /// Whether only clients of this host may use the proxy.
    pub local_clients_only: bool,
    /// How strictly to read requests.
    pub strictness: Strictness,
    /// Where the access log goes.
    pub access_log: Destination,
    /// For a request head, from its first byte or the connection's acceptance.
    pub head_timeout: Duration,
    /// For resolving and connecting to a target.
    pub connect_timeout: Duration,
    /// For a tunnel.
    pub limits: Limits,
}

/// Where `underpass` listens unless told otherwise: on this host only, on Squid's port.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);

impl Config {
    /// Joins the command line and the file it names.
    ///
    /// # Errors
    /// The file cannot be read or is invalid.
    pub fn load(run: cli::Run) -> Result<Self, ConfigError> {
        let file = match &run.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        Ok(Self::join(run, file))
    }

    fn join(run: cli::Run, file: File) -> Self {
        let clients = given(run.allow_client)
            .or(file.allow_client)
            .unwrap_or_else(Policy::default_clients);
        let destinations = given(run.allow_destination).or(file.allow_destination);
        let ports = given(run.allow_port).or(file.allow_port);
        Self {
            listen: given(run.listen)
                .or(file.listen)
                .unwrap_or_else(|| vec![DEFAULT_LISTEN]),
            engines: EngineRules {
                // Who says on the command line which engine to use means every tunnel.
                rules: if run.engine.is_some() {
                    Vec::new()
                } else {
                    file.engine_rule.into_iter().map(Into::into).collect()
                },
                default: run.engine.or(file.engine).unwrap_or_default(),
            },
            local_clients_only: clients.iter().all(|net| net.network().is_loopback()),
            policy: Policy::new(
                clients,
                destinations.unwrap_or_default(),
                ports.map(PortSet::from_iter).unwrap_or_default(),
            ),
            strictness: if file.relaxed {
                Strictness::Relaxed
            } else {
                Strictness::Strict
            },
            access_log: run
                .access_log
                .or(file.access_log)
                .unwrap_or(Destination::Stdout),
            head_timeout: file.timeouts.head,
            connect_timeout: file.timeouts.connect,
            limits: Limits {
                idle: file.timeouts.idle,
                half_closed: file.timeouts.half_closed,
            },
        }
    }
}

/// A list from the command line; absent if it was not given.
fn given<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// A socket address.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("'{text}' is not an address with a port; write 127.0.0.1:3128 or [::]:3128")
    })
}

/// A network in CIDR notation, or a single address.
fn parse_network(text: &str) -> Result<IpNet, String> {
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
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> cli::Run {
        use clap::Parser as _;

        let arguments = [&["underpass", "run"], arguments].concat();
        match cli::Cli::parse_from(arguments).command {
            cli::Command::Run(run) => run,
            cli::Command::Doctor => unreachable!(),
        }
    }

    fn file(text: &str) -> File {
        File::parse(text, "test.toml".as_ref()).unwrap()
    }

    #[test]
    fn the_defaults_are_safe() {
        let config = Config::join(parse(&[]), File::default());
        assert_eq!(config.listen, [DEFAULT_LISTEN]);
        assert!(config.listen[0].ip().is_loopback());
        assert_eq!(config.policy, Policy::default());
        assert!(config.local_clients_only);
        assert_eq!(config.strictness, Strictness::Strict);
        assert_eq!(config.engines, EngineRules::default());
        assert_eq!(config.access_log, Destination::Stdout);
    }

    #[test]
    fn the_command_line_wins_setting_by_setting() {
        let file = file(
            r#"
            listen = ["[::]:8080"]
            engine = "copy"
            engine_rule = [{ port = [22], engine = "splice" }]
            allow_client = ["10.0.0.0/8"]
            allow_port = [443, "8000-8100"]
            access_log = "/var/log/underpass.log"
            relaxed = true
            [timeouts]
            idle = "1h"
            "#,
        );
        let config = Config::join(parse(&["--allow-port", "22", "--engine", "auto"]), file);
        assert_eq!(config.listen, ["[::]:8080".parse().unwrap()]);
        assert_eq!(config.engines, EngineRules::default());
        assert!(!config.local_clients_only);
        assert!(config.policy.port(22).is_ok());
        assert!(
            config.policy.port(443).is_err(),
            "lists are replaced, not joined"
        );
        assert_eq!(config.strictness, Strictness::Relaxed);
        assert_eq!(config.limits.idle, Duration::from_secs(3600));
        assert_eq!(
            config.access_log,
            Destination::File("/var/log/underpass.log".into())
        );
    }

    #[test]
    fn a_single_address_is_a_network_of_one() {
        assert_eq!(
            parse_network("10.1.2.3"),
            Ok("10.1.2.3/32".parse().unwrap())
        );
        assert_eq!(parse_network("::1"), Ok("::1/128".parse().unwrap()));
        assert!(parse_network("10.0.0.0/33").is_err());
        assert!(
            parse_network("example.com")
                .unwrap_err()
                .contains("10.0.0.0/8")
        );
    }
}
