//! Names and addresses: a stub resolver with a cache, by the system's configuration or one of its own.
//!
//! Both IP versions are asked for at once, and the slower one is waited for a moment only (RFC 8305 section 3).
//! What several clients ask for at the same time is asked once, and goes on when they have left: the answer is
//! cached for the next one. `/etc/hosts` comes first. Search domains do not apply: a client of a proxy means the
//! name that it says.

mod server;
mod settings;
mod tally;

use std::{
    collections::HashMap,
    fmt,
    future::{Future as _, poll_fn},
    io,
    net::IpAddr,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use tokio::{runtime, select, sync::OnceCell, task::JoinHandle, time::timeout};

use self::tally::{Source, note};
pub use self::{
    server::{NameServer, Transport},
    settings::{Family, Settings},
    tally::lookups,
};
use crate::look::{Look, look};

/// How long the other IP version is waited for once one has been found (RFC 8305 section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// How often the system's files are looked at, at most.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// What says which servers there are, unless the settings do.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Queries that may be under way to one server over one connection.
const MAX_ACTIVE_REQUESTS: usize = 4096;

/// Why a name has no address, or an address no name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// There is no such name (NXDOMAIN).
    NoSuchName,
    /// There is, but nothing of what was asked for.
    NoRecords,
    /// The name servers say that they cannot tell: their answer's code.
    Failed(String),
    /// No name server has answered in time.
    Timeout,
    /// No name server can be asked.
    Unreachable(String),
}

impl LookupError {
    /// The `rcode` of `dns_error` (RFC 9209 section 2.3.2), where a server has said one.
    #[must_use]
    pub fn rcode(&self) -> Option<&str> {
        match self {
            Self::NoSuchName => Some("NXDOMAIN"),
            Self::Failed(code) => Some(code),
            Self::NoRecords | Self::Timeout | Self::Unreachable(_) => None,
        }
    }

    /// Of the outcomes for two types of record, the one that counts: what is unknown could have been an address.
    fn or(self, other: Self) -> Self {
        let weight = |error: &Self| match error {
            Self::NoRecords => 0,
            Self::NoSuchName => 1,
            Self::Unreachable(_) => 2,
            Self::Failed(_) => 3,
            Self::Timeout => 4,
        };
        if weight(&self) < weight(&other) {
            other
        } else {
            self
        }
    }
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchName => f.write_str("there is no such name (NXDOMAIN)"),
            Self::NoRecords => f.write_str("it has no address"),
            Self::Failed(code) => write!(f, "the name server answers {code}"),
            Self::Timeout => f.write_str("no name server answers"),
            Self::Unreachable(why) => write!(f, "no name server can be asked: {why}"),
        }
    }
}

impl From<NetError> for LookupError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain => Self::NoSuchName,
                ResponseCode::NoError => Self::NoRecords,
                code => Self::Failed(rcode(code)),
            },
            NetError::Dns(DnsError::ResponseCode(code)) => Self::Failed(rcode(code)),
            NetError::Timeout => Self::Timeout,
            error => Self::Unreachable(error.to_string()),
        }
    }
}

/// A code by its usual name.
fn rcode(code: ResponseCode) -> String {
    match code {
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        code => format!("RCODE{}", u16::from(code)),
    }
}

/// Resolves names.
pub struct Resolver {
    settings: Settings,
    tls: Option<rustls::ClientConfig>,
    current: Mutex<Option<Current>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        f.debug_struct("Resolver")
            .field("settings", settings)
            .finish_non_exhaustive()
    }
}

/// What asks at present, made from files as they were.
struct Current {
    stub: Arc<Stub>,
    files: Vec<Look>,
    looked: Instant,
}

struct Stub {
    hosts: Hosts,
    /// The first name of each address in them.
    names: HashMap<IpAddr, Box<str>>,
    resolver: Result<TokioResolver, LookupError>,
    /// What is being asked for, and by how many.
    asking: Mutex<HashMap<Question, Arc<OnceCell<Answer>>>>,
}

type Question = (Name, RecordType);
type Answer = Result<Arc<[Record]>, LookupError>;

/// What a search for addresses is held up by, or holds up.
type Search = JoinHandle<Result<Vec<IpAddr>, LookupError>>;

impl Resolver {
    /// A resolver that has not asked anybody yet.
    ///
    /// # Errors
    /// The certificate authorities for servers that are asked over TLS cannot be read.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let is_encrypted = |server: &NameServer| server.transport.is_encrypted();
        let tls = if settings.servers.iter().any(is_encrypted) {
            Some(crate::tls::client_config(settings.ca.as_deref(), None)?)
        } else {
            None
        };
        Ok(Self {
            settings,
            tls,
            current: Mutex::new(None),
        })
    }

    /// Whether another one would do the same: then what this one has learnt stays of use. A file of authorities
    /// may have changed.
    pub fn is_like(&self, other: &Self) -> bool {
        self.settings == other.settings && self.settings.ca.is_none()
    }

    /// The addresses of a name, those of the preferred IP version first. `hold` is kept until nothing is asked any
    /// more, also when nobody waits for it.
    pub async fn addresses(
        &self,
        name: &str,
        hold: impl Clone + Send + 'static,
    ) -> Result<Vec<IpAddr>, LookupError> {
        let stub = self.stub();
        let Ok(mut name) = Name::from_ascii(name) else {
            return Err(LookupError::NoSuchName);
        };
        name.set_fqdn(true);
        let known = self.settings.family.types().flat_map(|kind| {
            let found = stub
                .hosts
                .lookup_static_host(&Query::query(name.clone(), kind));
            found.map_or_else(Vec::new, |found| addresses(found.answers()))
        });
        let known: Vec<IpAddr> = known.collect();
        if !known.is_empty() {
            note(Source::Hosts, Ok(()));
            return Ok(unique(known));
        }
        let search = |kind| -> Search {
            let (stub, name, hold) = (Arc::clone(&stub), name.clone(), hold.clone());
            tokio::spawn(async move {
                let found = stub.lookup(name, kind).await;
                drop(hold);
                found.map(|found| addresses(&found))
            })
        };
        let mut types = self.settings.family.types();
        match (types.next(), types.next()) {
            (Some(first), Some(second)) => both(search(first), search(second)).await,
            (Some(only), None) => ended(search(only).await),
            (None, _) => Err(LookupError::NoRecords),
        }
    }

    /// The name of an address, without the root's dot.
    pub async fn name(
        &self,
        address: IpAddr,
        hold: impl Send + 'static,
    ) -> Result<String, LookupError> {
        let stub = self.stub();
        if let Some(name) = stub.names.get(&address) {
            note(Source::Hosts, Ok(()));
            return Ok(name.to_string());
        }
        let name = Name::from(address);
        let lookup = tokio::spawn(async move {
            let found = stub.lookup(name, RecordType::PTR).await;
            drop(hold);
            found
        });
        first_name(&ended(lookup.await)?)
    }

    /// What asks, made again when the system's files have changed.
    fn stub(&self) -> Arc<Stub> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(current) = &mut *current {
            if now.duration_since(current.looked) < LOOK_PAUSE {
                return Arc::clone(&current.stub);
            }
            current.looked = now;
            if self.look() == current.files {
                return Arc::clone(&current.stub);
            }
        }
        let files = self.look();
        let stub = Arc::new(self.make_stub());
        *current = Some(Current {
            stub: Arc::clone(&stub),
            files,
            looked: now,
        });
        stub
    }

    fn look(&self) -> Vec<Look> {
        let system = Path::new(RESOLV_CONF);
        let servers = self.settings.servers.is_empty().then_some(system);
        let hosts = self.settings.hosts.as_deref();
        servers.into_iter().chain(hosts).map(look).collect()
    }

    fn make_stub(&self) -> Stub {
        // A host without the file has no names in it.
        let text = self.settings.hosts.as_ref().map(std::fs::read);
        let text = text.and_then(Result::ok).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut hosts = Hosts::default();
        if let Err(error) = hosts.read_hosts_conf(text.as_bytes()) {
            tracing::warn!("hosts file: {error}");
        }
        Stub {
            hosts,
            names: first_names(&text),
            resolver: self.make_resolver(),
            asking: Mutex::default(),
        }
    }

    fn make_resolver(&self) -> Result<TokioResolver, LookupError> {
        let settings = &self.settings;
        let (config, mut options) = if settings.servers.is_empty() {
            system_config()?
        } else {
            let servers = settings.servers.iter().map(NameServer::config).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            (config, ResolverOpts::default())
        };
        options.use_hosts_file = ResolveHosts::Never;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        options.max_active_requests = MAX_ACTIVE_REQUESTS;
        options.cache_size = settings.cache_size;
        options.positive_min_ttl = Some(settings.min_ttl);
        options.positive_max_ttl = Some(settings.max_ttl);
        options.negative_max_ttl = Some(settings.negative_ttl);
        if let Some(timeout) = settings.timeout {
            options.timeout = timeout;
        }
        let provider = TokioRuntimeProvider::default();
        let mut builder =
            TokioResolver::builder_with_config(config, provider).with_options(options);
        if let Some(tls) = &self.tls {
            builder = builder.with_tls_config(tls.clone());
        }
        builder.build().map_err(Into::into)
    }
}

impl Stub {
    /// Asks, or waits for the answer that somebody else waits for already.
    async fn lookup(&self, name: Name, kind: RecordType) -> Answer {
        let asking = || self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let question = (name, kind);
        let cell = Arc::clone(asking().entry(question.clone()).or_default());
        let ask = async {
            let resolver = self.resolver.as_ref().map_err(Clone::clone)?;
            let mut asked = pin!(resolver.lookup(question.0.clone(), kind));
            // What is in the cache is there at once.
            let at_once = poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx))).await;
            let (source, found) = match at_once {
                Poll::Ready(found) => (Source::Cache, found),
                Poll::Pending => (Source::Server, asked.await),
            };
            let answer: Answer = found
                .map_err(Into::into)
                .map(|found| found.answers().into());
            note(source, answer.as_ref().map(drop));
            answer
        };
        let answer = cell.get_or_init(|| ask).await.clone();
        // From now on the cache knows.
        let mut asking = asking();
        if asking
            .get(&question)
            .is_some_and(|present| Arc::ptr_eq(present, &cell))
        {
            asking.remove(&question);
        }
        answer
    }
}

/// What `/etc/resolv.conf` says, without its search domains; without the file, this host is asked.
fn system_config() -> Result<(ResolverConfig, ResolverOpts), LookupError> {
    let text = std::fs::read(RESOLV_CONF).unwrap_or_default();
    let (config, options) = parse_resolv_conf(&text)
        .or_else(|_| parse_resolv_conf([b"nameserver 127.0.0.1\n", &*text].concat()))?;
    let servers = config.name_servers().to_vec();
    Ok((
        ResolverConfig::from_parts(None, Vec::new(), servers),
        options,
    ))
}

/// The addresses of a name that this host itself means: search domains apply. Waits, on a thread of its own.
///
/// It is not the C library's resolver that is asked: that one loads modules of the system, which a program must not meet
/// that was linked with another version of that library.
pub(crate) fn lookup_blocking(name: &str) -> io::Result<Vec<IpAddr>> {
    let lookup = || {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let resolver = TokioResolver::builder_tokio()?.build()?;
            let found = resolver.lookup_ip(name).await?;
            Ok::<_, NetError>(found.iter().collect())
        })
    };
    let found = thread::scope(|scope| scope.spawn(lookup).join());
    let found = found.map_err(|_panic| io::Error::other("the search for it was cut off"))?;
    found.map_err(|error| io::Error::other(LookupError::from(error).to_string()))
}

/// The addresses that two searches find, those of the first in front; when one has found some, the other has a
/// moment left, and its answer is for whoever asks next.
async fn both(mut first: Search, mut second: Search) -> Result<Vec<IpAddr>, LookupError> {
    let (one, other) = select! {
        one = &mut first => {
            let one = ended(one);
            let other = ended_soon(&one, &mut second).await;
            (one, other)
        }
        other = &mut second => {
            let other = ended(other);
            let one = ended_soon(&other, &mut first).await;
            (one, other)
        }
    };
    match (one, other) {
        (Ok(mut one), Ok(other)) => {
            one.extend(other);
            Ok(unique(one))
        }
        (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(unique(found)),
        (Err(one), Err(other)) => Err(one.or(other)),
    }
}

/// Whatever a search finds within its moment, if the other one has found something.
async fn ended_soon(
    found: &Result<Vec<IpAddr>, LookupError>,
    search: &mut Search,
) -> Result<Vec<IpAddr>, LookupError> {
    if found.is_err() {
        return ended(search.await);
    }
    let soon = timeout(RESOLUTION_DELAY, search).await;
    soon.map_or(Err(LookupError::Timeout), ended)
}

fn ended<T>(
    result: Result<Result<T, LookupError>, tokio::task::JoinError>,
) -> Result<T, LookupError> {
    result.unwrap_or_else(|error| Err(LookupError::Unreachable(error.to_string())))
}

/// The addresses among the records.
fn addresses(records: &[Record]) -> Vec<IpAddr> {
    let address = |record: &Record| record.data.ip_addr();
    records.iter().filter_map(address).collect()
}

/// The first name of each address in a hosts file, as `gethostbyaddr(3)` has it.
fn first_names(hosts: &str) -> HashMap<IpAddr, Box<str>> {
    let mut names = HashMap::new();
    for line in hosts.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        if let (Some(Ok(address)), Some(name)) = (words.next().map(str::parse), words.next()) {
            let name = name.to_ascii_lowercase().into();
            names.entry(address).or_insert(name);
        }
    }
    names
}

fn first_name(records: &[Record]) -> Result<String, LookupError> {
    let name = records.iter().find_map(|record| match &record.data {
        RData::PTR(name) => Some(name.0.to_ascii()),
        _ => None,
    });
    let name = name.ok_or(LookupError::NoRecords)?;
    Ok(name.trim_end_matches('.').to_ascii_lowercase())
}

/// Each address once, in order.
fn unique(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut unique = Vec::with_capacity(addresses.len());
    for address in addresses {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(address: &str, after: u64) -> Search {
        let address = address.parse().unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            Ok(vec![address])
        })
    }

    fn failed(error: LookupError) -> Search {
        tokio::spawn(async { Err(error) })
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn the_slower_version_is_not_waited_for_long() {
        let (v6, v4) = ("2001:db8::1", "192.0.2.1");
        let quick = both(found(v6, 5), found(v4, 0)).await.unwrap();
        assert_eq!(quick, ips(&[v6, v4]), "order");
        let slow = both(found(v6, 60_000), found(v4, 0)).await.unwrap();
        assert_eq!(slow, ips(&[v4]));
        // What one version does not have, the other may, however long that takes.
        let late = both(failed(LookupError::NoRecords), found(v4, 100)).await;
        assert_eq!(late.unwrap(), ips(&[v4]));
    }

    #[tokio::test]
    async fn what_is_unknown_counts_more_than_what_is_not_there() {
        use LookupError::{Failed, NoRecords, NoSuchName, Timeout};
        for (one, other, expected) in [
            (NoRecords, NoRecords, NoRecords),
            (NoRecords, NoSuchName, NoSuchName),
            (NoRecords, Timeout, Timeout),
            (
                Failed("SERVFAIL".to_owned()),
                NoRecords,
                Failed("SERVFAIL".to_owned()),
            ),
        ] {
            assert_eq!(both(failed(one), failed(other)).await, Err(expected));
        }
    }

    #[tokio::test]
    async fn hosts_and_loopback_need_no_server() {
        let directory = std::env::temp_dir().join(format!("underpass-dns-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let hosts = directory.join("hosts");
        std::fs::write(&hosts, "192.0.2.7 one.test ONE # 192.0.2.8\n").unwrap();
        let settings = Settings {
            servers: vec!["192.0.2.53".parse().unwrap()],
            hosts: Some(hosts.clone()),
            ..Settings::default()
        };
        let resolver = Resolver::new(settings).unwrap();
        for name in ["one.test", "one.test.", "one"] {
            let found = resolver.addresses(name, ()).await;
            assert_eq!(found, Ok(ips(&["192.0.2.7"])), "{name}");
        }
        let name = resolver.name("192.0.2.7".parse().unwrap(), ()).await;
        assert_eq!(name.as_deref(), Ok("one.test"));
        let found = resolver.addresses("localhost", ()).await;
        assert_eq!(found, Ok(ips(&["::1", "127.0.0.1"])));
        // A change is seen.
        std::fs::write(&hosts, "192.0.2.9 one.test\n").unwrap();
        tokio::time::sleep(LOOK_PAUSE).await;
        let found = resolver.addresses("one.test", ()).await;
        assert_eq!(found, Ok(ips(&["192.0.2.9"])));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
