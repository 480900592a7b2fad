//! What a configuration says of requests and tunnels: all that can change while the process runs.

mod fronts;
mod logs;
mod routes;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};

use self::fronts::Front;
pub use self::{logs::LogEntry, routes::ParentEntry};
use super::{
    ConfigError,
    compile::{Compiler, place_of},
    file::{self, Bucket, Compatibility, EngineRule, File, Flow, Listen, Located, Sharing},
};
use crate::{
    auth::Authenticator,
    authority::Authority,
    dns::Resolver,
    http::Strictness,
    limits::MAX_TUNNELS,
    net::outgoing::{Keepalive, Outgoing},
    parent::Route,
    policy::{self, Dialect, Facts, Moment, Policy, PortSet, Term, Test},
    relay::{self, rules, rules::EngineRules, selection::EngineChoice},
    shaping::{BucketSpec, Direction},
};

/// What requests are judged and tunnels run by.
#[derive(Debug)]
pub struct Live {
    /// Who may go where.
    pub policy: Policy,
    /// What each rule gives to its tunnels, in the order of the policy's rules.
    pub grants: Vec<Grant>,
    /// How strictly to read requests.
    pub strictness: Strictness,
    /// For a request head, from its first byte or the connection's acceptance.
    pub head_timeout: Duration,
    /// For resolving and connecting to a target.
    pub connect_timeout: Duration,
    /// For what is open when the process is to end.
    pub drain_timeout: Duration,
    /// For one address of it.
    pub attempt_timeout: Duration,
    /// For the first bytes of a tunnel, where a rule asks for them.
    pub hello_timeout: Duration,
    /// For the next request of a client.
    pub keep_alive: Duration,
    /// For the next request to an origin.
    pub upstream_keep_alive: Duration,
    /// For a tunnel.
    pub limits: relay::Limits,
    /// For a tunnel as a whole; none is no limit.
    pub lifetime: Option<Duration>,
    /// How many tunnels there may be.
    pub quotas: Quotas,
    /// The bandwidth of each tunnel.
    pub bandwidth_per_tunnel: Option<Arc<BucketSpec>>,
    /// Who knows the users.
    pub auth: Option<Arc<Authenticator>>,
    /// What a client shows to its user.
    pub realm: String,
    /// Which engine a tunnel is for.
    pub engines: EngineRules,
    /// Who knows the addresses of names.
    pub resolver: Arc<Resolver>,
    /// A domain for names without a dot.
    pub append_domain: Option<Box<str>>,
    /// Other proxies, in the order of their names.
    pub parents: Vec<ParentEntry>,
    /// What is done to the fields of messages.
    pub http: file::Http,
    /// Whose connections are captured.
    pub capture: Option<Arc<file::Capture>>,
    /// How clients begin at some listeners.
    fronts: Vec<Front>,
    /// The listeners that it has.
    listeners: Vec<SocketAddr>,
    /// Where transactions are written down.
    pub logs: Vec<LogEntry>,
    /// Which way requests go.
    pub routes: Conditional<Route>,
    /// How to connect.
    pub outgoing: Conditional<Outgoing>,
    /// The bandwidth of some tunnels: the first that fits.
    pub shapes: Conditional<Vec<Arc<BucketSpec>>>,
    /// Whether tunnels that the rules forbid are closed when the rules change.
    pub enforce_on_live: bool,
    /// Whether a ClientHello must name the host that was asked for.
    pub strict_sni: bool,
    time_zone: TimeZone,
    needs: Needs,
}

/// What is only found out where a condition asks for it.
#[derive(Clone, Copy, Debug)]
struct Needs {
    time: bool,
    mark: bool,
}

impl fmt::Display for Live {
    /// How much there is of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = self.policy.rules().len();
        write!(f, "{rules} {}", if rules == 1 { "rule" } else { "rules" })
    }
}

fn realm(file: &File) -> String {
    let auth = file.auth.as_ref();
    auth.map_or_else(String::new, |auth| auth.value.realm.clone())
}

fn capture(file: &File) -> Result<Option<Arc<file::Capture>>, ConfigError> {
    let Some(located) = &file.capture else {
        return Ok(None);
    };
    let settings = &located.value;
    let at = |message| ConfigError::At {
        place: place_of(located),
        message,
    };
    if settings.cgroups.is_empty() {
        let message = "[capture] needs cgroups: whose connections are to be captured";
        return Err(at(message.to_owned()));
    }
    let mut paths = settings.cgroups.iter().chain(&settings.exclude);
    if let Some(path) = paths.find(|path| !path.starts_with('/')) {
        return Err(at(format!(
            "'{path}' is no path of a cgroup; write it from the root, such as \"/system.slice/app.service\""
        )));
    }
    Ok(Some(Arc::new(settings.clone())))
}

/// Values with what must hold for them, in order.
pub type Conditional<T> = Vec<(Vec<Term>, T)>;

/// What a rule gives to the tunnels that it allows.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// Their engine.
    pub engine: Option<EngineChoice>,
    /// How many there may be.
    pub quotas: Quotas,
    /// What they share, and what each has.
    pub buckets: Vec<Arc<BucketSpec>>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
    /// As a whole.
    pub lifetime: Option<Duration>,
}

/// How many tunnels there may be; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// In all.
    pub all: Option<u32>,
    /// Of one client address.
    pub per_client: Option<u32>,
    /// Of one user.
    pub per_user: Option<u32>,
}

impl Live {
    /// Compiles what a file says; `path` is where it is, and the lists that it names are added to
    /// `sources`.
    pub(super) fn compile(
        file: &File,
        path: &Path,
        sources: &mut Vec<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let mut compiler = Compiler::new(file);
        compiler.all_matches()?;
        let guard = compiler.guard(path)?;
        let rules = compiler.rules()?;
        let dialect = dialect(file);
        let place = policy::Place {
            file: path.into(),
            line: 1,
        };
        let engine_rules = file
            .engine_rule
            .iter()
            .map(|rule| engine_rule(rule, &mut compiler, &place))
            .collect::<Result<_, _>>()?;
        let buckets = buckets(&file.bucket);
        let parents = routes::parents(file, &mut compiler, sources)?;
        let routes = routes::routes(file, &mut compiler)?;
        let fronts = fronts::fronts(file, &mut compiler, path, sources)?;
        let outgoing = outgoing(file, &mut compiler)?;
        let shapes = shapes(file, &mut compiler, &buckets)?;
        let logs = logs::logs(file, &mut compiler)?;
        let names = rules.iter().map(|rule| rule.name.as_str());
        let grants = file
            .rule
            .iter()
            .zip(names)
            .map(|(rule, name)| grant(&rule.value, name))
            .collect();
        let auth = match &file.auth {
            None => None,
            Some(located) => Some(authenticator(located, sources)?),
        };
        let policy = Policy::new(rules, guard, dialect);
        let resolver = resolver(file, sources)?;
        let extra = || {
            outgoing
                .iter()
                .map(|(terms, _)| terms)
                .map(Vec::as_slice)
                .chain(shapes.iter().map(|(terms, _)| terms.as_slice()))
                .chain(routes.iter().map(|(terms, _)| terms.as_slice()))
                .chain(parents.iter().map(|entry| entry.terms.as_slice()))
                .chain(logs.iter().map(LogEntry::terms))
        };
        let mentions = |is_kind: fn(&Test) -> bool| {
            policy.mentions(is_kind) || extra().flatten().any(|term| term.mentions(is_kind))
        };
        let needs = Needs {
            time: mentions(|test| matches!(test, Test::Time(_))),
            mark: mentions(|test| matches!(test, Test::Mark(_))),
        };
        let time_zone = time_zone(file)?;
        sources.extend(compiler.into_sources());
        sources.sort();
        sources.dedup();
        Ok(Self {
            policy,
            grants,
            strictness: strictness(file),
            head_timeout: file.timeouts.head.0,
            connect_timeout: file.timeouts.connect.0,
            drain_timeout: file.timeouts.drain.0,
            attempt_timeout: file.timeouts.connect_attempt.0,
            hello_timeout: file.timeouts.client_hello.0,
            keep_alive: file.timeouts.keep_alive.0,
            upstream_keep_alive: file.timeouts.upstream_keep_alive.0,
            limits: relay::Limits {
                idle: file.timeouts.idle.0,
                half_closed: file.timeouts.half_closed.0,
            },
            lifetime: file.timeouts.lifetime.map(|span| span.0),
            quotas: quotas(&file.limits),
            bandwidth_per_tunnel: bandwidth(&file.limits),
            auth,
            realm: realm(file),
            engines: EngineRules {
                rules: engine_rules,
                default: file.engine.unwrap_or_default(),
            },
            resolver: Arc::new(resolver),
            append_domain: file
                .dns
                .as_ref()
                .and_then(|dns| dns.value.append_domain.as_ref())
                .map(|domain| domain.0.0.trim_start_matches('.').into()),
            parents,
            http: file.http.clone(),
            capture: capture(file)?,
            fronts,
            listeners: file.listen.iter().flatten().map(Listen::address).collect(),
            logs,
            routes,
            outgoing,
            shapes,
            enforce_on_live: file.enforce_on_live,
            strict_sni: file.strict_sni,
            time_zone,
            needs,
        })
    }

    /// Takes over what another configuration has learnt and this one can use: names, and which parents are down.
    pub fn inherit(&mut self, before: &Self) {
        if self.resolver.is_like(&before.resolver) {
            self.resolver = Arc::clone(&before.resolver);
        }
        self.inherit_fronts(before);
        for entry in &mut self.parents {
            if let Some(parent) = Arc::get_mut(&mut entry.parent) {
                for other in &before.parents {
                    parent.inherit(&other.parent);
                }
            }
        }
    }

    /// The target that a client means, whose name may be within a domain of ours.
    #[must_use]
    pub fn meant(&self, target: Authority) -> Authority {
        match &self.append_domain {
            Some(domain) => target.in_domain(domain),
            None => target,
        }
    }

    /// Every engine that a tunnel can be for.
    pub fn engine_choices(&self) -> impl Iterator<Item = EngineChoice> + '_ {
        let of_grants = self.grants.iter().filter_map(|grant| grant.engine);
        self.engines.choices().chain(of_grants)
    }

    /// The engine of a tunnel to this address that a rule allowed.
    #[must_use]
    pub fn engine(&self, rule: Option<usize>, target: SocketAddr) -> EngineChoice {
        self.grant(rule)
            .and_then(|grant| grant.engine)
            .unwrap_or_else(|| self.engines.choose(target))
    }

    /// How to connect to an address.
    #[must_use]
    pub fn outgoing(&self, target: SocketAddr, facts: &Facts<'_>) -> Outgoing {
        let mut sum = Outgoing::default();
        for (terms, outgoing) in &self.outgoing {
            if policy::hold(terms, facts) {
                sum.add(outgoing, target);
            }
        }
        sum
    }

    /// How long a tunnel that a rule allowed may be quiet.
    #[must_use]
    pub fn limits(&self, rule: Option<usize>) -> relay::Limits {
        let idle = self.grant(rule).and_then(|grant| grant.idle);
        relay::Limits {
            idle: idle.unwrap_or(self.limits.idle),
            ..self.limits
        }
    }

    /// How long it may be open.
    #[must_use]
    pub fn lifetime(&self, rule: Option<usize>) -> Option<Duration> {
        let lifetime = self.grant(rule).and_then(|grant| grant.lifetime);
        lifetime.or(self.lifetime)
    }

    /// The name of a rule.
    #[must_use]
    pub fn rule_name(&self, rule: Option<usize>) -> Option<&str> {
        let rule = self.policy.rules().get(rule?)?;
        Some(&rule.name)
    }

    /// What a rule gives.
    #[must_use]
    pub fn grant(&self, rule: Option<usize>) -> Option<&Grant> {
        self.grants.get(rule?)
    }

    /// The local time, if a condition asks for it.
    #[must_use]
    pub fn moment(&self) -> Moment {
        if !self.needs.time {
            return Moment::default();
        }
        let now = self.time_zone.to_datetime(Timestamp::now());
        let hours = u16::try_from(now.hour()).unwrap_or_default();
        let minutes = u16::try_from(now.minute()).unwrap_or_default();
        Moment {
            weekday: u8::try_from(now.weekday().to_sunday_zero_offset()).unwrap_or_default(),
            minute: hours * 60 + minutes,
        }
    }

    /// Whether a condition asks for the firewall's mark.
    #[must_use]
    pub fn needs_mark(&self) -> bool {
        self.needs.mark
    }

    /// Whether targets that cannot be reached are a 503, as Squid has it.
    #[must_use]
    pub fn is_squid(&self) -> bool {
        self.policy.dialect() == Dialect::Squid
    }
}

fn bandwidth(limits: &file::Limits) -> Option<Arc<BucketSpec>> {
    let rate = limits.bandwidth_per_tunnel.as_ref()?;
    let spec = BucketSpec::simple("limits", rate.0.0, Sharing::Tunnel);
    Some(Arc::new(spec))
}

fn quotas(limits: &file::Limits) -> Quotas {
    Quotas {
        all: limits.tunnels.map(|limit| limit.min(MAX_TUNNELS)),
        per_client: limits.tunnels_per_client,
        per_user: limits.tunnels_per_user,
    }
}

fn strictness(file: &File) -> Strictness {
    if file.relaxed {
        Strictness::Relaxed
    } else {
        Strictness::Strict
    }
}

fn dialect(file: &File) -> Dialect {
    match file.compatibility {
        Compatibility::None => Dialect::Underpass,
        Compatibility::Squid => Dialect::Squid,
    }
}

/// Who knows the users of a file.
fn authenticator(
    located: &Located<file::Auth>,
    sources: &mut Vec<PathBuf>,
) -> Result<Arc<Authenticator>, ConfigError> {
    let auth = &located.value;
    let place = place_of(located);
    let directory = place.file.parent().unwrap_or(Path::new(""));
    let path = directory.join(&auth.htpasswd);
    let at = |message| ConfigError::At {
        place: place.clone(),
        message,
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| at(format!("cannot read {}: {error}", path.display())))?;
    let authenticator = Authenticator::parse(&text, auth.ttl.0)
        .map_err(|error| at(format!("{}:{error}", path.display())))?;
    sources.push(path);
    Ok(Arc::new(authenticator))
}

fn resolver(file: &File, sources: &mut Vec<PathBuf>) -> Result<Resolver, ConfigError> {
    let default = Located::default();
    let located = file.dns.as_ref().unwrap_or(&default);
    let place = place_of(located);
    let directory = place.file.parent().unwrap_or(Path::new(""));
    let settings = located.value.settings(directory);
    sources.extend(settings.ca.clone());
    Resolver::new(settings).map_err(|message| ConfigError::At { place, message })
}

fn time_zone(file: &File) -> Result<TimeZone, ConfigError> {
    let Some(name) = &file.time_zone else {
        return Ok(TimeZone::system());
    };
    TimeZone::get(&name.value).map_err(|error| ConfigError::At {
        place: place_of(name),
        message: format!("no time zone '{}': {error}", name.value),
    })
}

fn engine_rule<'a>(
    rule: &'a EngineRule,
    compiler: &mut Compiler<'a>,
    place: &policy::Place,
) -> Result<rules::EngineRule, ConfigError> {
    Ok(rules::EngineRule {
        destinations: match &rule.destination {
            Some(list) => Some(compiler.networks(list, place)?),
            None => None,
        },
        ports: rule
            .port
            .as_ref()
            .map(|ports| ports.iter().copied().collect::<PortSet>()),
        engine: rule.engine,
    })
}

fn buckets(buckets: &BTreeMap<String, Bucket>) -> BTreeMap<&str, Arc<BucketSpec>> {
    buckets
        .iter()
        .map(|(name, bucket)| {
            let rate = bucket.rate.0.0;
            let spec = BucketSpec {
                name: name.clone(),
                rate,
                size: bucket.size.as_ref().map_or(rate, |size| size.0.0),
                per: bucket.per,
                direction: match bucket.direction {
                    Flow::Down => Direction::Down,
                    Flow::Up => Direction::Up,
                    Flow::Both => Direction::Both,
                },
            };
            (name.as_str(), Arc::new(spec))
        })
        .collect()
}

fn outgoing<'a>(
    file: &'a File,
    compiler: &mut Compiler<'a>,
) -> Result<Conditional<Outgoing>, ConfigError> {
    let compile = |located: &'a Located<file::Outgoing>| {
        let place = place_of(located);
        let entry = &located.value;
        let default = Keepalive::default();
        let text = |word: &super::values::Text<super::values::Word>| word.0.0.as_str().into();
        let span = |span: Option<super::values::Span>, default| span.map_or(default, |span| span.0);
        let outgoing = Outgoing {
            source: entry.address.as_ref().map(|address| address.0),
            interface: entry.interface.as_ref().map(text),
            mark: entry.set_mark,
            dscp: entry.dscp.map(|dscp| dscp.0),
            keepalive: entry.keepalive.as_ref().map(|keepalive| Keepalive {
                idle: span(keepalive.idle, default.idle),
                interval: span(keepalive.interval, default.interval),
                count: keepalive
                    .count
                    .map_or(default.count, |count| count.get().into()),
            }),
            user_timeout: entry.user_timeout.map(|span| span.0),
            congestion: entry.congestion.as_ref().map(text),
            announce: entry.proxy_protocol,
        };
        if outgoing.is_empty() {
            return Err(ConfigError::At {
                place,
                message:
                    "the entry sets nothing; write address, interface, set_mark, dscp, keepalive, \
                          user_timeout, congestion or proxy_protocol"
                        .to_owned(),
            });
        }
        let terms = compiler.entry(&entry.conditions(), &place)?;
        Ok((terms, outgoing))
    };
    file.outgoing.iter().map(compile).collect()
}

fn shapes<'a>(
    file: &'a File,
    compiler: &mut Compiler<'a>,
    buckets: &BTreeMap<&str, Arc<BucketSpec>>,
) -> Result<Conditional<Vec<Arc<BucketSpec>>>, ConfigError> {
    let compile = |located: &'a Located<file::Shape>| {
        let place = place_of(located);
        let find = |name: &super::values::Text<super::values::Word>| {
            let name = name.0.0.as_str();
            buckets.get(name).cloned().ok_or_else(|| ConfigError::At {
                place: place.clone(),
                message: format!("there is no bucket '{name}'"),
            })
        };
        let found = located
            .value
            .bucket
            .iter()
            .map(find)
            .collect::<Result<_, _>>()?;
        let terms = compiler.entry(&located.value.conditions(), &place)?;
        Ok((terms, found))
    };
    file.shape.iter().map(compile).collect()
}

fn grant(rule: &file::Rule, name: &str) -> Grant {
    let limits = rule.limits.clone().unwrap_or_default();
    let mut buckets = Vec::new();
    let mut add = |rate: u64, per| {
        buckets.push(Arc::new(BucketSpec::simple(
            &format!("rule {name}"),
            rate,
            per,
        )));
    };
    if let Some(rate) = &limits.bandwidth {
        add(rate.0.0, Sharing::All);
    }
    if let Some(rate) = &limits.bandwidth_per_tunnel {
        add(rate.0.0, Sharing::Tunnel);
    }
    Grant {
        engine: rule.engine,
        quotas: Quotas {
            all: limits.tunnels,
            per_client: limits.tunnels_per_client,
            per_user: limits.tunnels_per_user,
        },
        buckets,
        idle: limits.idle.map(|span| span.0),
        lifetime: limits.lifetime.map(|span| span.0),
    }
}
