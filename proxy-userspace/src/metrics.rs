//! Metrics for Prometheus, in the text format `OpenMetrics`. What they are called and mean is listed in
//! `deploy/monitoring/METRICS.md`; a test holds the two equal.
//!
//! Whatever a transaction tells is counted from its [`Record`], in one place, when it ends. What is a state, or counted
//! elsewhere, is looked at when somebody asks.

mod process;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    access_log::{Event, Record, Tag},
    http::{ProxyError, Status},
    relay::EngineKind,
    session::{Shared, State},
};

/// The type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of histograms of what a client waits for, in seconds.
const WAITING: [f64; 14] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Bounds of the histogram of lifetimes, in seconds: up to a day.
const LIFETIMES: [f64; 11] = [
    0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0,
];

type Count<L> = Family<L, Counter>;
type Level<L> = Family<L, Gauge>;

/// All that is counted.
pub struct Metrics {
    registry: Registry,
    requests: Count<Request>,
    refusals: Count<Refused>,
    /// The same by rule alone, for who has no use for labels.
    refused: Mutex<BTreeMap<String, u64>>,
    limits: Count<Limit>,
    tunnels: Count<Engine>,
    endings: Count<Ending>,
    fallbacks: Count<Reason>,
    setup: Histogram,
    dns: Histogram,
    connect: Histogram,
    lifetime: Histogram,
    accepted: Counter,
    /// What is looked at.
    seen: Mutex<Seen>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What is not counted here, but elsewhere, as it was when somebody asked last.
#[derive(Default)]
struct Seen {
    connections: Gauge,
    open: Level<Engine>,
    forwarding: Gauge,
    bytes: Count<Flow>,
    forwarded_bytes: Count<Direction>,
    would_deny: Count<Rule>,
    reloads: Count<Outcome>,
    lookups: Count<Lookup>,
    parents: Level<Parent>,
    log_drops: Count<Log>,
    alarms: Counter,
    entries: Level<Map>,
    capacity: Level<Map>,
    room: Gauge,
    ready: Gauge,
    process: process::Process,
}

/// Makes sets of labels.
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($field: $kind),* }
    )*};
}

labels! {
    Request { kind: &'static str, status: String }
    Refused { status: String, rule: String, error: &'static str }
    Limit { limit: &'static str }
    Engine { engine: String }
    Ending { end: String }
    Reason { reason: &'static str }
    Flow { engine: String, direction: &'static str }
    Direction { direction: &'static str }
    Rule { rule: String }
    Outcome { result: &'static str }
    Lookup { source: &'static str, result: &'static str }
    Parent { parent: String }
    Log { log: String }
    Map { map: &'static str }
}

impl Default for Metrics {
    fn default() -> Self {
        let waiting = || Histogram::new(WAITING);
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            refusals: Family::default(),
            refused: Mutex::default(),
            limits: Family::default(),
            tunnels: Family::default(),
            endings: Family::default(),
            fallbacks: Family::default(),
            setup: waiting(),
            dns: waiting(),
            connect: waiting(),
            lifetime: Histogram::new(LIFETIMES),
            accepted: Counter::default(),
            seen: Mutex::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    /// Gives everything its name.
    fn register(&mut self) {
        let seen = self.seen.get_mut().unwrap_or_else(PoisonError::into_inner);
        seen.process.register(&mut self.registry);
        let registry = self.registry.sub_registry_with_prefix("underpass");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", build);
        seen.register(registry);
        let mut add = |name: &str, help: &str, metric: &dyn Register| {
            metric.register(registry, name, help);
        };
        add(
            "connections_accepted",
            "Connections of clients",
            &self.accepted,
        );
        add(
            "requests",
            "Requests that are over, by what the client was told",
            &self.requests,
        );
        add(
            "refusals",
            "Requests that were not served, by who decided",
            &self.refusals,
        );
        add(
            "limits_hit",
            "Requests that were one too many",
            &self.limits,
        );
        add(
            "tunnels_ended",
            "Tunnels that are over, by the engine that carried them in the end",
            &self.tunnels,
        );
        add(
            "tunnel_endings",
            "Tunnels that are over, by how they ended",
            &self.endings,
        );
        add(
            "tunnel_fallbacks",
            "Tunnels that a better engine did not carry, or not all of them",
            &self.fallbacks,
        );
        let mut time = |name: &str, help: &str, metric: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
        };
        time("setup", "From a request to its open tunnel", &self.setup);
        time("dns", "Finding addresses for a request", &self.dns);
        time(
            "connect",
            "Connecting for a request, to a parent's answer if there is one",
            &self.connect,
        );
        time(
            "tunnel_lifetime",
            "From a request to its tunnel's end",
            &self.lifetime,
        );
    }

    /// A client was accepted.
    pub fn note_accepted(&self) {
        self.accepted.inc();
    }

    /// Counts what a record tells.
    pub fn note(&self, record: &Record<'_>) {
        if record.event != Event::End {
            if record.event == Event::Start {
                self.setup.observe(record.elapsed.as_secs_f64());
            }
            return;
        }
        let observe = |histogram: &Histogram, time: Option<Duration>| {
            if let Some(time) = time {
                histogram.observe(time.as_secs_f64());
            }
        };
        observe(&self.dns, record.timings.dns);
        observe(&self.connect, record.timings.connect);
        let kind = match record.tag {
            Tag::None if record.refusal.is_none() => "none",
            Tag::None => "invalid",
            _ if record.method == "CONNECT" => "tunnel",
            _ => "forward",
        };
        let status = record.status.to_string();
        self.requests
            .get_or_create(&Request {
                kind,
                status: status.clone(),
            })
            .inc();
        if let Some(refusal) = record.refusal {
            let labels = Refused {
                status: refusal.status().code().to_string(),
                rule: record.rule.unwrap_or_default().to_owned(),
                error: refusal.error().as_str(),
            };
            self.refusals.get_or_create(&labels).inc();
            let who = record.rule.unwrap_or(labels.error).to_owned();
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            *refused.entry(who).or_default() += 1;
            drop(refused);
            if refusal.error() == ProxyError::ConnectionLimitReached {
                let limit = if refusal.status() == Status::TOO_MANY_REQUESTS {
                    "quota"
                } else {
                    "room"
                };
                self.limits.get_or_create(&Limit { limit }).inc();
            }
        }
        if let Some(ending) = record.ending {
            observe(&self.lifetime, Some(record.elapsed));
            let end = ending.to_string();
            self.endings.get_or_create(&Ending { end }).inc();
            if let Some(engine) = record.engine {
                let engine = engine.to_string();
                self.tunnels.get_or_create(&Engine { engine }).inc();
            }
        }
        if let Some(declined) = record.declined {
            let reason = reason(declined);
            self.fallbacks.get_or_create(&Reason { reason }).inc();
        }
    }

    /// Requests that were not served, by the rule or option that decided, or by the error where none did.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        let known = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// The text, as everything is now.
    pub fn text(&self, shared: &Shared) -> String {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .look(shared);
        let mut text = String::new();
        // A String takes everything.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Why a better engine did not carry a tunnel, in few words: labels must not be many.
fn reason(declined: &str) -> &'static str {
    const REASONS: [(&str, &str); 10] = [
        ("bandwidth is limited", "bandwidth"),
        ("is TLS", "tls"),
        ("not loaded", "not-loaded"),
        ("half-closed", "half-closed"),
        ("MPTCP", "not-plain-tcp"),
        ("another BPF program", "other-sockmap"),
        ("is taken", "full"),
        ("is full", "full"),
        ("want of a pipe", "no-pipe"),
        ("send buffer", "slow-reader"),
    ];
    let known = REASONS.iter().find(|(part, _)| declined.contains(part));
    known.map_or("other", |(_, name)| name)
}

impl Seen {
    /// Gives everything its name.
    fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, metric: &dyn Register| {
            metric.register(registry, name, help);
        };
        add(
            "would_deny",
            "Requests that a rule with action = \"report\" would have refused",
            &self.would_deny,
        );
        add(
            "tunnel_bytes",
            "Payload moved in tunnels, by what moved it",
            &self.bytes,
        );
        add(
            "forwarded_bytes",
            "Bytes of requests for URLs and their responses",
            &self.forwarded_bytes,
        );
        add(
            "config_reloads",
            "Times that the configuration was read again",
            &self.reloads,
        );
        add(
            "dns_lookups",
            "Questions for addresses and names",
            &self.lookups,
        );
        add(
            "log_lines_dropped",
            "Lines that a log was too slow for",
            &self.log_drops,
        );
        add(
            "integrity_alarms",
            "Tunnels that were reset since an engine's counters contradicted each other",
            &self.alarms,
        );
        add(
            "connections",
            "Connections of clients that are open",
            &self.connections,
        );
        add(
            "tunnels",
            "Tunnels that are open, by the engine that carries them",
            &self.open,
        );
        add(
            "forwarding",
            "Requests for URLs that are being forwarded",
            &self.forwarding,
        );
        add("tunnels_max", "Tunnels that there is room for", &self.room);
        add("parent_up", "Whether a parent proxy answers", &self.parents);
        add("map_entries", "Entries of a BPF map in use", &self.entries);
        add(
            "map_entries_max",
            "Entries that a BPF map has room for",
            &self.capacity,
        );
        add("ready", "Whether clients are served", &self.ready);
    }

    fn look(&mut self, shared: &Shared) {
        let registry = &shared.registry;
        let raise = |counter: &Counter, to: u64| {
            counter.inc_by(to.saturating_sub(counter.get()));
        };
        let level = |gauge: &Gauge, to: usize| gauge.set(i64::try_from(to).unwrap_or(i64::MAX));
        level(&self.connections, registry.all_connections());
        let moved = registry.moved();
        for engine in EngineKind::ALL {
            let count = moved.open.get(engine as usize).copied().unwrap_or_default();
            let engine = engine.to_string();
            level(&self.open.get_or_create(&Engine { engine }), count);
        }
        level(&self.forwarding, moved.forwarding);
        for engine in EngineKind::ALL {
            let counts = moved
                .tunnels
                .get(engine as usize)
                .copied()
                .unwrap_or_default();
            for (direction, bytes) in [("down", counts.to_client), ("up", counts.to_upstream)] {
                let engine = engine.to_string();
                raise(
                    &self.bytes.get_or_create(&Flow { engine, direction }),
                    bytes,
                );
            }
        }
        let forwarded = moved.forwarded;
        for (direction, bytes) in [("down", forwarded.to_client), ("up", forwarded.to_upstream)] {
            raise(
                &self.forwarded_bytes.get_or_create(&Direction { direction }),
                bytes,
            );
        }
        for (rule, count) in registry.would_deny() {
            raise(&self.would_deny.get_or_create(&Rule { rule }), count);
        }
        let (accepted, refused) = registry.reloads();
        for (result, count) in [("accepted", accepted), ("refused", refused)] {
            raise(&self.reloads.get_or_create(&Outcome { result }), count);
        }
        for (source, result, count) in crate::dns::lookups() {
            raise(
                &self.lookups.get_or_create(&Lookup { source, result }),
                count,
            );
        }
        raise(&self.alarms, shared.relay.tally().integrity_alarms());
        let live = shared.current.get();
        // Parents and logs that are not there any more are not told of.
        self.parents.clear();
        for entry in &live.parents {
            let parent = entry.parent.name.to_string();
            let up = usize::from(!entry.parent.is_down());
            level(&self.parents.get_or_create(&Parent { parent }), up);
        }
        for lines in live.log_queues().chain([&shared.diagnostics]) {
            let log = lines.destination().to_string();
            raise(&self.log_drops.get_or_create(&Log { log }), lines.dropped());
        }
        if let Some((used, all)) = shared.relay.kernel_slots() {
            // A tunnel has two directions, two flows, and two sockets.
            for map in ["directions", "flows", "sockets"] {
                level(&self.entries.get_or_create(&Map { map }), 2 * used);
                level(&self.capacity.get_or_create(&Map { map }), 2 * all);
            }
        }
        level(&self.room, shared.room as usize);
        level(&self.ready, usize::from(shared.state() == State::Ready));
        self.process.look();
    }
}

/// What has a name of its own in a registry.
trait Register {
    fn register(&self, registry: &mut Registry, name: &str, help: &str);
}

impl<M: prometheus_client::registry::Metric + Clone> Register for M {
    fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_few() {
        for (declined, expected) in [
            ("sockmap: the bandwidth is limited", "bandwidth"),
            ("splice: a connection of it is TLS", "tls"),
            ("sockmap: every splice slot is taken", "full"),
            ("splice: 123 bytes copied for want of a pipe", "no-pipe"),
            (
                "sockmap: client: the client has half-closed already",
                "half-closed",
            ),
            ("sockmap: client socket: strange", "other"),
        ] {
            assert_eq!(reason(declined), expected);
        }
    }
}
