//! The command line of what talks to a running proxy, and what it prints.

use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum as _};
use serde_json::Value;

use super::{
    Listing, Place, Status,
    client::Client,
    filter::{Filter, Sort},
};
use crate::{
    percent::{encode, is_unreserved},
    units,
};

/// Where the proxy is.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// The proxy's admin socket, or its address [default: as `underpass run` has it for the same user]
    #[arg(
        long = "admin",
        value_name = "PATH|ADDR:PORT",
        env = "UNDERPASS_ADMIN",
        hide_env_values = true
    )]
    pub(super) place: Option<Place>,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Which tunnels are meant: those that fit all of this.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// The client's address, or its network
    #[arg(long, value_name = "CIDR")]
    client: Option<String>,

    /// The user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// A part of host:port, or of the URL
    #[arg(long, value_name = "TEXT")]
    target: Option<String>,

    /// A part of the address that was connected to
    #[arg(long, value_name = "TEXT")]
    upstream: Option<String>,

    /// The parent proxy
    #[arg(long, value_name = "NAME")]
    parent: Option<String>,

    /// The rule that allowed it
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,

    /// The listener
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,

    /// The engine
    #[arg(long, value_name = "sockmap|splice|copy")]
    engine: Option<String>,

    /// Open for this many seconds at least
    #[arg(long, value_name = "SECONDS")]
    min_age: Option<f64>,

    /// With this many bytes moved at least
    #[arg(long, value_name = "N")]
    min_bytes: Option<u64>,
}

impl Which {
    /// What was said, by the names that it has in a URL.
    fn given(&self) -> impl Iterator<Item = (&'static str, String)> {
        let given = [
            ("client", self.client.clone()),
            ("user", self.user.clone()),
            ("target", self.target.clone()),
            ("upstream", self.upstream.clone()),
            ("parent", self.parent.clone()),
            ("rule", self.rule.clone()),
            ("listener", self.listener.clone()),
            ("engine", self.engine.clone()),
            ("min_age", self.min_age.map(|age| age.to_string())),
            ("min_bytes", self.min_bytes.map(|bytes| bytes.to_string())),
        ];
        given
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
    }

    /// The same in words, as [`query_of_words`] reads them.
    ///
    /// # Errors
    /// Something is more than a word.
    pub(super) fn words(&self) -> Result<String, String> {
        let words: Result<Vec<_>, String> = self
            .given()
            .map(|(key, value)| {
                if value.is_empty() || value.contains(char::is_whitespace) {
                    return Err(format!(
                        "'{value}' is not one word, which a filter here takes"
                    ));
                }
                Ok(format!("{key}={value}"))
            })
            .collect();
        Ok(words?.join(" "))
    }

    /// The query of a URL that says the same, with what else there is to say.
    fn query(&self, more: &[(&'static str, String)]) -> Result<String, String> {
        let query = query_of(self.given().chain(more.iter().cloned()));
        // What makes no sense is told here, in the words of there.
        Filter::from_query(&query).map(|_| query)
    }
}

/// The query of a URL that says this.
pub(super) fn query_of<K: AsRef<str>, V: AsRef<str>>(
    pairs: impl IntoIterator<Item = (K, V)>,
) -> String {
    let pairs: Vec<_> = pairs
        .into_iter()
        .map(|(key, value)| {
            let value = encode(value.as_ref(), is_unreserved);
            format!("{}={value}", encode(key.as_ref(), is_unreserved))
        })
        .collect();
    pairs.join("&")
}

/// The query for words: each is `key=value`, or a part of a target.
///
/// # Errors
/// They make no sense.
pub(super) fn query_of_words(words: &str) -> Result<String, String> {
    let words = words.split_whitespace();
    let query = query_of(words.map(|word| word.split_once('=').unwrap_or(("target", word))));
    Filter::from_query(&query).map(|_| query)
}

/// In which order.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Order {
    /// The order: the fastest, largest or oldest first, or by name
    #[arg(long, value_enum, default_value = "rate")]
    pub(super) sort: Sort,

    /// The other way round: the slowest, smallest or youngest first
    #[arg(long)]
    pub(super) reverse: bool,
}

impl Order {
    /// What was said, by the names that it has in a URL.
    pub(super) fn given(self) -> impl Iterator<Item = (&'static str, String)> {
        let sort = self.sort.to_possible_value();
        let sort = sort.map(|value| ("sort", value.get_name().to_owned()));
        let reverse = self.reverse.then(|| ("reverse", "true".to_owned()));
        sort.into_iter().chain(reverse)
    }
}

/// What a running proxy can be asked for.
#[derive(Debug, Subcommand)]
pub enum Ask {
    /// Say what a running proxy does: totals, engines, refusals
    Status(Where),
    /// List what is open: tunnels, and requests that are being forwarded
    Tunnels {
        /// Where the proxy is.
        #[command(flatten)]
        of: Where,
        /// Which tunnels.
        #[command(flatten)]
        which: Which,
        /// In which order.
        #[command(flatten)]
        order: Order,
        /// Print this many at most
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// End tunnels with a reset, by number or by what they are
    #[command(after_help = "\
Examples:
  underpass kill 4711
  underpass kill --user anna --target example.com
  underpass kill --all")]
    Kill {
        /// Where the proxy is.
        #[command(flatten)]
        of: Where,
        /// The tunnel's number, as `underpass tunnels` has it; repeat for more
        #[arg(value_name = "ID", conflicts_with = "Which")]
        ids: Vec<u64>,
        /// Which tunnels.
        #[command(flatten)]
        which: Which,
        /// All of them
        #[arg(long, conflicts_with_all = ["ids", "Which"])]
        all: bool,
    },
    /// Have a running proxy read its configuration again, and say what it makes of it
    Reload(Where),
    /// Have a running proxy serve no more clients, and end with the last of them
    Drain(Where),
    /// Say or set what the diagnostics of a running proxy tell, as `RUST_LOG` does
    LogLevel {
        /// Where the proxy is.
        #[command(flatten)]
        of: Where,
        /// error, warn, info, debug or trace; by module: `underpass::dns=debug,info`
        #[arg(value_name = "LEVEL")]
        level: Option<String>,
    },
}

/// Asks, and returns what there is to print.
///
/// # Errors
/// There is no answer, or an error.
pub async fn ask(what: &Ask) -> anyhow::Result<String> {
    let wrong = |why: String| anyhow::anyhow!(why);
    match what {
        Ask::Status(of) => {
            let client = Client::new(of.place.clone())?;
            if of.json {
                return pretty(&client.get::<Value>("/status").await?);
            }
            Ok(status_text(&client.get("/status").await?))
        }
        Ask::Tunnels {
            of,
            which,
            order,
            limit,
        } => {
            let client = Client::new(of.place.clone())?;
            let mut more: Vec<_> = order.given().collect();
            more.extend(limit.map(|limit| ("limit", limit.to_string())));
            let path = format!("/tunnels?{}", which.query(&more).map_err(wrong)?);
            if of.json {
                return pretty(&client.get::<Value>(&path).await?);
            }
            Ok(tunnels_text(&client.get(&path).await?))
        }
        Ask::Kill {
            of,
            ids,
            which,
            all,
        } => {
            let client = Client::new(of.place.clone())?;
            let answers = if ids.is_empty() {
                let more = all.then(|| ("all", "true".to_owned()));
                let query = which.query(more.as_slice()).map_err(wrong)?;
                vec![client.post(&format!("/tunnels/kill?{query}")).await?]
            } else {
                let mut answers = Vec::new();
                for id in ids {
                    answers.push(client.post(&format!("/tunnels/{id}/kill")).await?);
                }
                answers
            };
            let killed: Vec<Value> = answers
                .iter()
                .filter_map(|answer| answer.get("killed")?.as_array())
                .flatten()
                .cloned()
                .collect();
            if of.json {
                return pretty(&serde_json::json!({ "killed": killed }));
            }
            Ok(match killed.len() {
                1 => "1 tunnel was killed".to_owned(),
                count => format!("{count} tunnels were killed"),
            })
        }
        Ask::Reload(of) => {
            let answer = Client::new(of.place.clone())?.post("/reload").await?;
            said(
                of,
                &answer,
                "configuration",
                "the configuration was read again: ",
            )
        }
        Ask::Drain(of) => {
            let answer = Client::new(of.place.clone())?.post("/drain").await?;
            said(of, &answer, "state", "")
        }
        Ask::LogLevel { of, level } => {
            let client = Client::new(of.place.clone())?;
            let answer = match level {
                None => client.get("/log-level").await?,
                Some(level) => {
                    let level = encode(level, is_unreserved);
                    client.post(&format!("/log-level?level={level}")).await?
                }
            };
            said(of, &answer, "level", "")
        }
    }
}

fn said(of: &Where, answer: &Value, key: &str, before: &str) -> anyhow::Result<String> {
    if of.json {
        return pretty(answer);
    }
    let said = answer.get(key).and_then(Value::as_str).unwrap_or_default();
    Ok(format!("{before}{said}"))
}

fn pretty(value: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}

/// Bytes and how fast they come.
fn flow(bytes: u64, rate: f64) -> String {
    format!("{}, {}", units::amount(bytes), units::rate(rate))
}

/// What runs, for people.
pub(super) fn status_text(status: &Status) -> String {
    let open: Vec<String> = status
        .tunnels
        .iter()
        .map(|(engine, count)| format!("{engine} {count}"))
        .collect();
    let count: usize = status.tunnels.values().sum();
    let mut lines = vec![
        (
            "proxy",
            format!("underpass {}, process {}", status.version, status.pid),
        ),
        (
            "state",
            format!("{}, up {}", status.state, units::seconds(status.uptime)),
        ),
        ("listening", status.listeners.join(", ")),
        ("engines", status.engines.join(", ")),
        ("clients", format!("{} connections", status.connections)),
        (
            "tunnels",
            format!("{count} of {}: {}", status.tunnels_max, open.join(", ")),
        ),
        ("forwarding", format!("{} requests", status.forwarding)),
        ("up", flow(status.up, status.up_rate)),
        ("down", flow(status.down, status.down_rate)),
        (
            "reloads",
            format!(
                "{} accepted, {} refused",
                status.reloads, status.failed_reloads
            ),
        ),
    ];
    for (rule, count) in &status.refusals {
        lines.push(("refused", format!("{count} by {rule}")));
    }
    if let Some(error) = &status.config_error {
        lines.push(("config", format!("refused: {error}")));
    }
    let mut text = String::new();
    for (name, value) in lines {
        // A String takes everything.
        let _ = writeln!(text, "{name:<11}{value}");
    }
    text
}

/// What is open, for people.
pub(super) fn tunnels_text(listing: &Listing) -> String {
    let header = [
        "ID", "AGE", "CLIENT", "USER", "TARGET", "ENGINE", "UP", "DOWN", "RATE",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(listing.tunnels.iter().map(|view| {
        let engine = view.engine.as_deref().unwrap_or("forward");
        [
            view.id.to_string(),
            units::seconds(view.age),
            view.client.clone(),
            view.user.clone().unwrap_or_else(|| "-".to_owned()),
            view.target.clone(),
            engine.to_owned(),
            units::amount(view.up),
            units::amount(view.down),
            units::rate(view.up_rate + view.down_rate),
        ]
    }));
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(index, (cell, width))| {
                // Numbers stand to the right.
                if matches!(index, 0 | 1 | 6..) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let shown = listing.tunnels.len();
    let more = if shown < listing.total {
        format!(" ({shown} shown)")
    } else {
        String::new()
    };
    let (up, down) = (units::rate(listing.up_rate), units::rate(listing.down_rate));
    // A String takes everything.
    let _ = writeln!(text, "{} open{more}; up {up}, down {down}", listing.total);
    text
}
