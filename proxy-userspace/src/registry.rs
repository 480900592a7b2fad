//! What is open at present: connections and tunnels, counted by whom they belong to, and each tunnel
//! with what it takes to end it.

mod tunnel;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

pub use self::tunnel::{Plain, Stop, Tunnel, loggable};
use crate::{
    config::{Live, Quotas},
    http::{ProxyError, RETRY_AFTER, Refusal, Status},
    relay::{Counts, Traffic},
};

/// Everything that is open.
#[derive(Debug, Default)]
pub struct Registry {
    counts: Mutex<HashMap<Key, u32>>,
    table: Mutex<Table>,
    /// Requests that rules would have refused, by rule.
    would_deny: Mutex<BTreeMap<String, u64>>,
    /// Times that the configuration was read again, and times that it was refused.
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
    /// Why the last one was.
    config_error: Mutex<Option<String>>,
}

/// The tunnels.
#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Arc<Tunnel>>,
    /// What those have moved that were.
    ended: Moved,
}

/// What is open, and what was moved since the process began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// Tunnels that are open, by the engine that carries them, in the order of
    /// [`EngineKind::ALL`](crate::relay::EngineKind::ALL).
    pub open: [usize; 3],
    /// Requests that are being forwarded.
    pub forwarding: usize,
    /// Payload in tunnels, by what moved it.
    pub tunnels: [Counts; 3],
    /// That of requests for URLs.
    pub forwarded: Counts,
}

impl Moved {
    /// Adds what a tunnel has moved, or a request: so much.
    fn add(&mut self, traffic: &Traffic) -> Counts {
        if traffic.engine().is_none() {
            let payload = traffic.payload();
            self.forwarded += payload;
            return payload;
        }
        let mut payload = Counts::default();
        for (engine, counts) in traffic.by_engine() {
            if let Some(sum) = self.tunnels.get_mut(engine as usize) {
                *sum += counts;
            }
            payload += counts;
        }
        payload
    }

    /// All payload.
    pub fn total(&self) -> Counts {
        let mut total = self.forwarded;
        for counts in self.tunnels {
            total += counts;
        }
        total
    }
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// Connections of a client.
    Connections(IpAddr),
    /// All tunnels.
    All,
    /// Those of a client.
    Client(IpAddr),
    /// Those of a user.
    User(Arc<str>),
    /// Those that a rule allowed.
    Rule(Arc<str>),
    /// Those of them that are a client's.
    RuleClient(Arc<str>, IpAddr),
    /// Those of them that are a user's.
    RuleUser(Arc<str>, Arc<str>),
}

/// Something that is counted as long as this is held.
#[derive(Debug)]
pub struct Counted {
    registry: Arc<Registry>,
    keys: Box<[Key]>,
    /// A tunnel in the table.
    tunnel: Option<u64>,
}

/// A limit that a tunnel would exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    whose: String,
    limit: u32,
    /// Whether it is everybody's.
    is_total: bool,
}

/// Who wants a tunnel.
#[derive(Clone, Debug)]
pub struct Applicant<'a> {
    /// The client.
    pub client: IpAddr,
    /// The user.
    pub user: Option<&'a Arc<str>>,
    /// The name of the rule that allows it.
    pub rule: Option<&'a str>,
}

impl Registry {
    /// Counts a connection of a client.
    pub fn connected(self: &Arc<Self>, client: IpAddr) -> Counted {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.count(&mut counts, Box::new([Key::Connections(client)]))
    }

    /// How many connections a client has.
    pub fn connections(&self, client: IpAddr) -> u32 {
        self.counted(&Key::Connections(client))
    }

    /// Counts a tunnel, unless it exceeds one of the limits: those of all tunnels and those of the rule.
    pub fn begin(
        self: &Arc<Self>,
        who: &Applicant<'_>,
        general: Quotas,
        of_rule: Quotas,
    ) -> Result<Counted, Exceeded> {
        let Applicant { client, user, rule } = who;
        let mut wanted = vec![
            (Key::All, general.all),
            (Key::Client(*client), general.per_client),
        ];
        if let Some(user) = user {
            wanted.push((Key::User(Arc::clone(user)), general.per_user));
        }
        if let Some(rule) = rule {
            let rule: Arc<str> = (*rule).into();
            wanted.push((
                Key::RuleClient(Arc::clone(&rule), *client),
                of_rule.per_client,
            ));
            if let Some(user) = user {
                wanted.push((
                    Key::RuleUser(Arc::clone(&rule), Arc::clone(user)),
                    of_rule.per_user,
                ));
            }
            wanted.push((Key::Rule(rule), of_rule.all));
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, limit) in &wanted {
            let used = counts.get(key).copied().unwrap_or(0);
            if let Some(limit) = *limit
                && used >= limit
            {
                return Err(Exceeded {
                    whose: key.to_string(),
                    limit,
                    is_total: *key == Key::All,
                });
            }
        }
        let keys = wanted.into_iter().map(|(key, _)| key).collect();
        Ok(self.count(&mut counts, keys))
    }

    fn count(self: &Arc<Self>, counts: &mut HashMap<Key, u32>, keys: Box<[Key]>) -> Counted {
        for key in &keys {
            *counts.entry(key.clone()).or_default() += 1;
        }
        Counted {
            registry: Arc::clone(self),
            keys,
            tunnel: None,
        }
    }

    fn counted(&self, key: &Key) -> u32 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(key).copied().unwrap_or(0)
    }

    /// How many connections all clients have.
    pub fn all_connections(&self) -> usize {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_clients = counts
            .iter()
            .filter(|(key, _)| matches!(key, Key::Connections(_)));
        of_clients.map(|(_, count)| *count as usize).sum()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every tunnel that is open.
    pub fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        self.table().open.values().cloned().collect()
    }

    /// One of them.
    pub fn tunnel(&self, id: u64) -> Option<Arc<Tunnel>> {
        self.table().open.get(&id).cloned()
    }

    /// What was moved so far, and by what. Never less than before.
    pub fn moved(&self) -> Moved {
        self.look(|_, _| {})
    }

    /// The same; and each tunnel on the way, with its payload.
    pub fn look(&self, mut see: impl FnMut(&Arc<Tunnel>, Counts)) -> Moved {
        let (open, ended) = {
            let table = self.table();
            let open: Vec<_> = table.open.values().cloned().collect();
            (open, table.ended)
        };
        let mut moved = Moved {
            tunnels: ended.tunnels,
            forwarded: ended.forwarded,
            ..Moved::default()
        };
        // Not under the lock: there may be thousands.
        for tunnel in open {
            let payload = moved.add(&tunnel.traffic);
            let engine = tunnel.traffic.engine();
            match engine.and_then(|engine| moved.open.get_mut(engine as usize)) {
                Some(count) => *count += 1,
                None => moved.forwarding += 1,
            }
            see(&tunnel, payload);
        }
        moved
    }

    /// Counts that the configuration was read again, and accepted or refused: why.
    pub fn note_reload(&self, outcome: Result<(), &str>) {
        let count = match outcome {
            Ok(()) => &self.reloads,
            Err(_) => &self.failed_reloads,
        };
        count.fetch_add(1, Relaxed);
        *self.lock_error() = outcome.err().map(str::to_owned);
    }

    /// Why the configuration was refused, if it was the last time that it was read.
    pub fn config_error(&self) -> Option<String> {
        self.lock_error().clone()
    }

    fn lock_error(&self) -> MutexGuard<'_, Option<String>> {
        self.config_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the configuration was read again and accepted, and how often refused.
    pub fn reloads(&self) -> (u64, u64) {
        (
            self.reloads.load(Relaxed),
            self.failed_reloads.load(Relaxed),
        )
    }

    /// Counts a request that a rule would have refused.
    pub fn note_would_deny(&self, rule: &str) {
        let mut counts = self
            .would_deny
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *counts.entry(rule.to_owned()).or_default() += 1;
    }

    /// How many requests each rule would have refused.
    pub fn would_deny(&self) -> BTreeMap<String, u64> {
        self.would_deny
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends the tunnels that would not be allowed any more: how many.
    pub fn enforce(&self, live: &Live) -> usize {
        let tunnels = self.tunnels();
        tunnels.iter().filter(|tunnel| tunnel.enforce(live)).count()
    }
}

impl Counted {
    /// Puts the tunnel on the table, for as long as it is counted.
    pub fn enlist(&mut self, tunnel: Arc<Tunnel>) {
        self.tunnel = Some(tunnel.id);
        self.registry.table().open.insert(tunnel.id, tunnel);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(id) = self.tunnel {
            let mut table = self.registry.table();
            if let Some(tunnel) = table.open.remove(&id) {
                table.ended.add(&tunnel.traffic);
            }
        }
        let mut counts = self
            .registry
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connections(client) | Self::Client(client) => write!(f, "client {client}"),
            Self::All => f.write_str("this proxy"),
            Self::User(user) => write!(f, "user {user}"),
            Self::Rule(rule) => write!(f, "rule {rule}"),
            Self::RuleClient(rule, client) => write!(f, "client {client} under rule {rule}"),
            Self::RuleUser(rule, user) => write!(f, "user {user} under rule {rule}"),
        }
    }
}

impl From<Exceeded> for Refusal {
    fn from(exceeded: Exceeded) -> Self {
        let Exceeded {
            whose,
            limit,
            is_total,
        } = exceeded;
        let status = if is_total {
            Status::SERVICE_UNAVAILABLE
        } else {
            Status::TOO_MANY_REQUESTS
        };
        let tunnels = if limit == 1 { "tunnel" } else { "tunnels" };
        let reason =
            format!("{whose} has {limit} {tunnels} open, which is the limit; try again later");
        Self::with_status(status, ProxyError::ConnectionLimitReached, reason)
            .with_retry_after(RETRY_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn limits_count_what_is_open() {
        let registry = Arc::new(Registry::default());
        let user: Arc<str> = "anna".into();
        let who = |user| Applicant {
            client: CLIENT,
            user,
            rule: Some("r"),
        };
        let general = Quotas {
            all: Some(3),
            per_client: None,
            per_user: Some(1),
        };
        let of_rule = Quotas {
            all: None,
            per_client: Some(2),
            per_user: None,
        };
        let first = registry.begin(&who(Some(&user)), general, of_rule).unwrap();
        let exceeded = registry
            .begin(&who(Some(&user)), general, of_rule)
            .unwrap_err();
        assert_eq!(
            Refusal::from(exceeded).reason(),
            "user anna has 1 tunnel open, which is the limit; try again later"
        );
        let second = registry.begin(&who(None), general, of_rule).unwrap();
        let exceeded = registry.begin(&who(None), general, of_rule).unwrap_err();
        assert_eq!(Refusal::from(exceeded).status().code(), 429);
        let other = Applicant {
            client: [10, 0, 0, 1].into(),
            user: None,
            rule: None,
        };
        let third = registry.begin(&other, general, Quotas::default()).unwrap();
        let exceeded = registry
            .begin(&other, general, Quotas::default())
            .unwrap_err();
        assert_eq!(Refusal::from(exceeded).status().code(), 503);
        drop((first, second, third));
        assert!(
            registry.counts.lock().unwrap().is_empty(),
            "nothing is left behind"
        );
    }

    #[test]
    fn connections_are_counted_by_client() {
        let registry = Arc::new(Registry::default());
        let one = registry.connected(CLIENT);
        let other = registry.connected(CLIENT);
        assert_eq!(registry.connections(CLIENT), 2);
        drop((one, other));
        assert_eq!(registry.connections(CLIENT), 0);
    }
}
