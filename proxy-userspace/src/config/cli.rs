//! The command line.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::{
    file::AdminSocket,
    parse_listen,
    values::{Item, Network, Text},
};
use crate::{
    admin::{Ask, TopArguments},
    diagnostics::LogFormat,
    lines::Destination,
    policy::{PortRange, Process},
    relay::selection::EngineChoice,
};

/// A tunnel proxy for Linux whose tunnels are spliced in the kernel.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// How diagnostics are written
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "text|json",
        default_value = "text",
        env = "UNDERPASS_LOG_FORMAT",
        hide_env_values = true
    )]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy
    #[command(after_help = "\
Without options the proxy serves clients on loopback at 127.0.0.1:3128, and
leads to public addresses, port 443. Rules, users, timeouts and limits are set in
the file. Where an option and the file differ the option decides; a list
replaces the file's list.

The access log has one line a transaction, in Squid's native format unless the
file has logs in other formats. SIGHUP reads
the configuration again and opens the log again; SIGUSR1 only opens the log.
Diagnostics go to standard error; the environment variable RUST_LOG sets their
level (error, warn, info, debug), by module if wanted (underpass::dns=debug,info).
SIGTERM serves no more clients, gives what is open 20 seconds to end (timeouts.drain),
and resets the rest; SIGINT, SIGQUIT or a second SIGTERM do that at once. `underpass
top`, `status`, `tunnels`, `kill`, `reload`, `drain` and `log-level` talk to it over
its admin socket.

Exit codes: 0 for an end that was asked for, 1 for an error, 2 for a wrong command line.

Examples:
  underpass run
  underpass run --listen 0.0.0.0:3128 --allow-client 10.0.0.0/8 \\
    --allow-port 443 --allow-port 8000-8100
  underpass run --config /etc/underpass/underpass.toml
  underpass run --squid-conf /etc/squid/squid.conf")]
    Run(Settings),
    /// Check a configuration without running it: mistakes, rules that never match, open doors
    Check(Settings),
    /// Say what would become of a request, and which rule decides
    Explain(Explain),
    /// Convert a configuration, or describe its format
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Say what this kernel and these privileges allow, what about this host costs performance or safety, and what would
    /// change it
    Doctor,
    /// Print what completes this command line in a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual's pages and all completions into a directory, for packages
    #[command(hide = true)]
    Manual {
        /// The directory.
        directory: PathBuf,
    },
    /// Watch the tunnels of a running proxy live, and end them: for a terminal
    Top(Box<TopArguments>),
    /// What a running proxy can be asked for.
    #[command(flatten)]
    Ask(Ask),
}

/// What to run with.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// Listen here; repeat for more [default: 127.0.0.1:3128]
    #[arg(
        long,
        value_name = "ADDR:PORT",
        value_parser = parse_listen,
        env = "UNDERPASS_LISTEN",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub listen: Vec<SocketAddr>,

    /// What moves the bytes of a tunnel [default: auto]
    #[arg(long, value_enum, value_name = "auto|sockmap|splice|copy")]
    pub engine: Option<EngineChoice>,

    /// Clients that may use the proxy; repeat for more [default: those on loopback]
    #[arg(long, value_name = "CIDR", value_parser = parse_network_item, conflicts_with = "squid_conf")]
    pub allow_client: Vec<Text<Item<Network>>>,

    /// Networks that tunnels may lead to although they are private, loopback, link-local, otherwise
    /// not public, or this host's own; repeat for more [default: none]
    #[arg(long, value_name = "CIDR", value_parser = parse_network_item, conflicts_with = "squid_conf")]
    pub allow_destination: Vec<Text<Item<Network>>>,

    /// Ports that tunnels and requests may lead to; repeat for more [default: 443, and 80 for http URLs]
    #[arg(long, value_name = "PORT|LO-HI", conflicts_with = "squid_conf")]
    pub allow_port: Vec<PortRange>,

    /// Where the access log goes, in Squid's format: a path, '-' for standard output,
    /// syslog:FACILITY.SEVERITY or udp://HOST:PORT [default: -, or what the file says]
    #[arg(
        long,
        value_name = "TARGET",
        env = "UNDERPASS_ACCESS_LOG",
        hide_env_values = true
    )]
    pub access_log: Option<Destination>,

    /// The Unix socket of the admin endpoint, or 'none' [default: /run/underpass/admin.sock for
    /// root, else below `$XDG_RUNTIME_DIR`]
    #[arg(
        long,
        value_name = "PATH",
        env = "UNDERPASS_ADMIN_SOCKET",
        hide_env_values = true
    )]
    pub admin_socket: Option<AdminSocket>,

    /// Serve /metrics, /healthz and /readyz here [default: what the file says, else nowhere]
    #[arg(
        long,
        value_name = "ADDR:PORT",
        value_parser = parse_listen,
        env = "UNDERPASS_METRICS_LISTEN",
        hide_env_values = true
    )]
    pub metrics_listen: Option<SocketAddr>,

    /// Read settings from this TOML file
    #[arg(
        long,
        value_name = "FILE",
        env = "UNDERPASS_CONFIG",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,

    /// Read settings from this squid.conf instead
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "config",
        env = "UNDERPASS_SQUID_CONF",
        hide_env_values = true
    )]
    pub squid_conf: Option<PathBuf>,
}

/// `underpass explain`
#[derive(Debug, Args)]
#[command(after_help = "\
Names are resolved as for a live request, and nothing is connected to. The exit
code is 0 if the request would be served, 1 if it would be refused.

Examples:
  underpass explain --config underpass.toml --from 10.1.2.3 CONNECT example.com:443
  underpass explain --squid-conf squid.conf --from ::1 GET http://example.com:22/")]
pub struct Explain {
    /// The client's address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1")]
    pub from: IpAddr,

    /// The user, as if authenticated
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// A name in the client's certificate; repeat for more
    #[arg(long, value_name = "NAME")]
    pub certificate: Vec<String>,
    /// The number of the user whose process connects, as if that were captured
    #[arg(long, value_name = "NUMBER")]
    pub uid: Option<u32>,
    /// The path of that process's cgroup
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// The name of that process
    #[arg(long, value_name = "NAME")]
    pub process: Option<String>,

    /// The name in the client's TLS ClientHello [default: the host of the target]
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,

    /// The method
    #[arg(value_name = "METHOD")]
    pub method: String,

    /// host:port for CONNECT, else a URL
    #[arg(value_name = "TARGET")]
    pub target: String,

    /// What it would run with.
    #[command(flatten)]
    pub settings: Settings,
}

impl Explain {
    /// The process that connects, if something was said of it.
    pub(crate) fn process(&self) -> Option<Process> {
        let is_known = self.uid.is_some() || self.cgroup.is_some() || self.process.is_some();
        is_known.then(|| Process {
            uid: self.uid.unwrap_or_default(),
            cgroup: self.cgroup.clone().unwrap_or_default().into(),
            command: self.process.clone().unwrap_or_default().into(),
            ..Process::default()
        })
    }
}

/// `underpass config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the TOML that is equivalent to a squid.conf
    Convert {
        /// The squid.conf
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the JSON Schema of underpass.toml, for editors
    Schema,
}

fn parse_network_item(text: &str) -> Result<Text<Item<Network>>, String> {
    text.parse().map(|network| Text(Item::Value(network)))
}
