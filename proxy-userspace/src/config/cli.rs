//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use super::{parse_listen, parse_network};
use crate::{lines::Destination, policy::PortRange, relay::selection::EngineChoice};

/// A tunnel proxy for Linux whose tunnels are spliced in the kernel.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy
    Run(Run),
    /// Say what this kernel and these privileges allow, and what would change it
    Doctor,
}

/// `underpass run`
#[derive(Debug, Args)]
#[command(after_help = "\
Without options the proxy serves clients on loopback at 127.0.0.1:3128, and
leads to public addresses, port 443. Timeouts and leniency are set in the file.
Where an option and the file differ the option decides; a list replaces the
file's list.

The access log has one line a transaction in Squid's native format. SIGHUP and
SIGUSR1 open it again after it was renamed. Diagnostics go to standard error;
the environment variable RUST_LOG sets their level (error, warn, info, debug).
SIGTERM, SIGINT and SIGQUIT reset what is open and end the proxy.

Examples:
  underpass run
  underpass run --listen 0.0.0.0:3128 --allow-client 10.0.0.0/8 \\
    --allow-port 443 --allow-port 8000-8100
  underpass run --config /etc/underpass/underpass.toml")]
pub struct Run {
    /// Listen here; repeat for more [default: 127.0.0.1:3128]
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_listen)]
    pub listen: Vec<SocketAddr>,

    /// What moves the bytes of a tunnel [default: auto]
    #[arg(long, value_enum, value_name = "auto|sockmap|splice|copy")]
    pub engine: Option<EngineChoice>,

    /// Clients that may use the proxy; repeat for more [default: those on loopback]
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    pub allow_client: Vec<IpNet>,

    /// Networks that tunnels may lead to although they are private, loopback, link-local, otherwise
    /// not public, or this host's own; repeat for more [default: none]
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    pub allow_destination: Vec<IpNet>,

    /// Ports that tunnels may lead to; repeat for more [default: 443]
    #[arg(long, value_name = "PORT|LO-HI")]
    pub allow_port: Vec<PortRange>,

    /// Append the access log to this file, or print it with '-' [default: -]
    #[arg(long, value_name = "PATH|-")]
    pub access_log: Option<Destination>,

    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}
