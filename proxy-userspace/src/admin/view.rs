//! What the endpoint tells, as it is written in JSON.

use serde::{Deserialize, Serialize};

use super::sample::Rates;
use crate::{access_log::Event, registry::Tunnel, relay::Counts};

/// A tunnel that is open, or a request that is forwarded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunnelView {
    /// Its number.
    pub id: u64,
    /// The client's address and port.
    pub client: String,
    /// The user.
    pub user: Option<String>,
    /// The listener's name.
    pub listener: String,
    /// The method.
    pub method: String,
    /// `host:port`, or a URL without its query.
    pub target: String,
    /// The name in its ClientHello, if a rule has asked for it.
    pub sni: Option<String>,
    /// The address that was connected to.
    pub upstream: String,
    /// The parent there.
    pub parent: Option<String>,
    /// The rule that allowed it.
    pub rule: Option<String>,
    /// The engine that carries it; none for a request that is forwarded.
    pub engine: Option<String>,
    /// Seconds since it was asked for.
    pub age: f64,
    /// Payload from the client, in bytes.
    pub up: u64,
    /// Payload to the client, in bytes.
    pub down: u64,
    /// The same in a second, as it was of late.
    pub up_rate: f64,
    /// As above.
    pub down_rate: f64,
}

impl TunnelView {
    /// The tunnel with its payload, and how fast that grows.
    pub(super) fn new(tunnel: &Tunnel, counts: Counts, rates: Rates) -> Self {
        let record = tunnel.record(Event::Progress);
        Self {
            id: tunnel.id,
            client: tunnel.client.to_string(),
            user: record.user.map(str::to_owned),
            listener: record.listener_name.to_owned(),
            method: record.method.to_owned(),
            target: record.url.to_string(),
            sni: record.sni.map(str::to_owned),
            upstream: tunnel.upstream.to_string(),
            parent: record.parent.map(str::to_owned),
            rule: record.rule.map(str::to_owned),
            engine: record.engine.map(|engine| engine.to_string()),
            age: (record.elapsed.as_secs_f64() * 1e3).round() / 1e3,
            up: counts.to_upstream,
            down: counts.to_client,
            up_rate: rates.up,
            down_rate: rates.down,
        }
    }
}

/// Some of the tunnels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// How many there are that fit.
    pub total: usize,
    /// What they all move in a second, in bytes.
    pub up_rate: f64,
    /// As above.
    pub down_rate: f64,
    /// The first of them, in the order that was asked for.
    pub tunnels: Vec<TunnelView>,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// `ready`, `starting`, or `draining`.
    pub state: String,
    /// Seconds since it began.
    pub uptime: f64,
    /// Where clients are served.
    pub listeners: Vec<String>,
    /// The engines that there are.
    pub engines: Vec<String>,
    /// Connections of clients.
    pub connections: usize,
    /// Tunnels that are open, by engine.
    pub tunnels: std::collections::BTreeMap<String, usize>,
    /// Requests that are being forwarded.
    pub forwarding: usize,
    /// Tunnels that there is room for.
    pub tunnels_max: u32,
    /// Payload from clients since the process began, tunnels and requests together, in bytes.
    pub up: u64,
    /// Payload to them.
    pub down: u64,
    /// The same in a second, as it was of late.
    pub up_rate: f64,
    /// As above.
    pub down_rate: f64,
    /// Requests that were not served, by the rule or option that decided, or by the error where none did.
    pub refusals: std::collections::BTreeMap<String, u64>,
    /// How often the configuration was read again.
    pub reloads: u64,
    /// How often that was refused.
    pub failed_reloads: u64,
    /// Why the last one was, if it was.
    pub config_error: Option<String>,
}
