//! A condition on a request: a list of values of one kind, any of which may match.

use std::sync::Arc;

use regex::RegexSet;

use super::{
    DomainSet, NetworkSet, PortSet, Window,
    facts::{Facts, Need, ServerName, User},
    process,
};
use crate::authority::Host;

/// A condition that rules refer to.
#[derive(Debug)]
pub struct Acl {
    /// Its name in the configuration; a rule's own conditions have the name of their key.
    pub name: String,
    /// What it asks.
    pub test: Test,
}

/// What a condition asks of a request.
#[derive(Debug)]
pub enum Test {
    /// Nothing.
    Always,
    /// The client's address.
    Client(NetworkSet),
    /// An address of the host.
    Destination {
        /// The networks.
        networks: NetworkSet,
        /// Resolve a name; else only a host that was given by address can match.
        resolve: bool,
    },
    /// The host's name.
    Host {
        /// The names.
        names: DomainSet,
        /// Look for the name of a host that was given by address, if the address does not match.
        reverse: bool,
    },
    /// The same, by pattern.
    HostPattern {
        /// The patterns.
        patterns: RegexSet,
        /// As above.
        reverse: bool,
    },
    /// The name in the client's TLS ClientHello.
    ServerName(DomainSet),
    /// The whole target.
    UrlPattern(RegexSet),
    /// The target behind the host; of CONNECT there is none.
    PathPattern(RegexSet),
    /// The port that is asked for.
    Port(PortSet),
    /// The method.
    Method(Vec<String>),
    /// The scheme of the URL, in lower case.
    Scheme(Vec<String>),
    /// The authenticated user.
    User(Users),
    /// A name in the client's certificate.
    Certificate(Users),
    /// The user of the process that connects, by number.
    Uid(Vec<u32>),
    /// Its cgroup, or one above it.
    Cgroup(Vec<String>),
    /// Its name.
    Process(Vec<String>),
    /// The time.
    Time(Vec<Window>),
    /// The address of ours that was connected to.
    ListenerAddress(NetworkSet),
    /// Its port.
    ListenerPort(PortSet),
    /// Its name.
    Listener(Vec<String>),
    /// More connections than this by the client.
    Connections(u32),
    /// By chance, so often in 2³².
    Random(u32),
    /// The firewall's mark, under a mask.
    Mark(Vec<Mark>),
    /// One of these lists of terms.
    AnyOf(Vec<Vec<Term>>),
    /// Nothing that a request has before it is served.
    Never,
}

/// Which users match.
#[derive(Debug, Default)]
pub struct Users {
    /// Anybody who is authenticated.
    pub anybody: bool,
    /// These, in lower case if case is ignored.
    pub names: std::collections::HashSet<String>,
    /// Whether case is ignored.
    pub ignore_case: bool,
    /// And those that match one of these.
    pub patterns: Option<RegexSet>,
}

/// A mark and the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The value.
    pub value: u32,
    /// The bits.
    pub mask: u32,
}

/// A condition, or its negation.
#[derive(Clone, Debug)]
pub struct Term {
    /// Holds if the condition does not.
    pub negated: bool,
    /// The condition.
    pub acl: Arc<Acl>,
}

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Yes,
    No,
    /// It depends on what is not known yet.
    Unknown(Need),
    /// It depends on the user, and there is none.
    NoUser,
}

impl Match {
    fn of(matches: bool) -> Self {
        if matches { Self::Yes } else { Self::No }
    }

    fn negated(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            other => other,
        }
    }
}

/// The condition that was looked at last, for whoever wants to know why.
pub(super) type Last<'p> = Option<&'p Acl>;

/// Whether all terms hold: in their order, up to the first that does not, as Squid does. What only
/// the resolver can tell is left for the end, in case that something else settles it; and what only a
/// ClientHello can, behind that.
pub(super) fn all<'p>(terms: &'p [Term], facts: &Facts<'_>, last: &mut Last<'p>) -> Match {
    let mut pending = None;
    let mut unheard = false;
    for term in terms {
        match term.holds(facts, last) {
            Match::Yes => {}
            Match::No => return Match::No,
            Match::Unknown(need @ (Need::Addresses | Need::ReverseName)) => {
                pending.get_or_insert(need);
            }
            Match::Unknown(Need::ServerName) => unheard = true,
            // Rather find out the address than ask for a password that may not be needed.
            Match::Unknown(Need::User) | Match::NoUser if pending.is_some() => break,
            other => return other,
        }
    }
    match pending {
        Some(need) => Match::Unknown(need),
        None if unheard => Match::Unknown(Need::ServerName),
        None => Match::Yes,
    }
}

/// Whether one of the lists holds.
fn any<'p>(lists: &'p [Vec<Term>], facts: &Facts<'_>, last: &mut Last<'p>) -> Match {
    let mut unheard = false;
    for list in lists {
        match all(list, facts, last) {
            Match::No => {}
            Match::Unknown(Need::ServerName) => unheard = true,
            other => return other,
        }
    }
    if unheard {
        Match::Unknown(Need::ServerName)
    } else {
        Match::No
    }
}

impl Term {
    fn holds<'p>(&'p self, facts: &Facts<'_>, last: &mut Last<'p>) -> Match {
        *last = Some(&*self.acl);
        let result = self.acl.test.matches(facts, last);
        if self.negated {
            result.negated()
        } else {
            result
        }
    }

    /// Whether the term can only hold for what it names itself, by conditions of this kind.
    pub(super) fn names(&self, is_kind: fn(&Test) -> bool) -> bool {
        !self.negated && self.acl.test.names(is_kind)
    }

    /// Whether the condition, or one below it, is of this kind.
    pub fn mentions(&self, is_kind: fn(&Test) -> bool) -> bool {
        self.acl.test.mentions(is_kind)
    }
}

impl Test {
    fn matches<'p>(&'p self, facts: &Facts<'_>, last: &mut Last<'p>) -> Match {
        match self {
            Self::Always => Match::Yes,
            Self::Never => Match::No,
            Self::Client(networks) => Match::of(networks.contains(facts.client)),
            Self::Destination { networks, resolve } => destination(networks, *resolve, facts),
            Self::Host { names, reverse } => host(|name| names.contains(name), *reverse, facts),
            Self::HostPattern { patterns, reverse } => {
                host(|name| patterns.is_match(name), *reverse, facts)
            }
            Self::ServerName(names) => match facts.server_name {
                ServerName::Unheard => Match::Unknown(Need::ServerName),
                ServerName::None => Match::No,
                ServerName::Is(name) => Match::of(names.contains(name)),
            },
            Self::UrlPattern(patterns) => Match::of(patterns.is_match(facts.url)),
            Self::PathPattern(patterns) => {
                Match::of(path(facts).is_some_and(|path| patterns.is_match(path)))
            }
            Self::Port(ports) => Match::of(ports.contains(facts.port)),
            Self::Method(methods) => Match::of(methods.iter().any(|known| known == facts.method)),
            Self::Scheme(schemes) => Match::of(
                facts
                    .scheme
                    .is_some_and(|scheme| schemes.iter().any(|known| known == scheme)),
            ),
            Self::User(users) => match facts.user {
                User::Unchecked => Match::Unknown(Need::User),
                User::Nobody => Match::NoUser,
                User::Known(user) => Match::of(users.contain(user)),
            },
            Self::Certificate(names) => Match::of(facts.certificate.is_some_and(|certificate| {
                names.anybody || certificate.iter().any(|name| names.contain(name))
            })),
            Self::Uid(users) => Match::of(
                facts
                    .process
                    .is_some_and(|process| users.contains(&process.uid)),
            ),
            Self::Cgroup(paths) => Match::of(facts.process.is_some_and(|process| {
                paths
                    .iter()
                    .any(|path| process::is_within(&process.cgroup, path))
            })),
            Self::Process(names) => Match::of(
                facts
                    .process
                    .is_some_and(|process| names.iter().any(|name| **name == *process.command)),
            ),
            Self::Time(windows) => {
                Match::of(windows.iter().any(|window| window.contains(facts.now)))
            }
            Self::ListenerAddress(networks) => {
                Match::of(networks.contains(facts.listener.ip().to_canonical()))
            }
            Self::ListenerPort(ports) => Match::of(ports.contains(facts.listener.port())),
            Self::Listener(names) => {
                Match::of(names.iter().any(|name| name == facts.listener_name))
            }
            Self::Connections(limit) => Match::of(facts.connections > *limit),
            Self::Random(chance) => Match::of(self.draw(facts.dice) < *chance),
            Self::Mark(marks) => Match::of(
                marks
                    .iter()
                    .any(|mark| facts.mark & mark.mask == mark.value),
            ),
            Self::AnyOf(lists) => any(lists, facts, last),
        }
    }

    /// A number for this request and this condition.
    fn draw(&self, dice: u64) -> u32 {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};

        let mut hasher = DefaultHasher::new();
        (dice, std::ptr::from_ref(self) as usize).hash(&mut hasher);
        (hasher.finish() >> 32) as u32
    }

    fn names(&self, is_kind: fn(&Self) -> bool) -> bool {
        match self {
            Self::AnyOf(lists) => {
                let named = |list: &Vec<Term>| list.iter().any(|term| term.names(is_kind));
                !lists.is_empty() && lists.iter().all(named)
            }
            other => is_kind(other),
        }
    }

    fn mentions(&self, is_kind: fn(&Self) -> bool) -> bool {
        match self {
            Self::AnyOf(lists) => lists.iter().flatten().any(|term| term.mentions(is_kind)),
            other => is_kind(other),
        }
    }
}

impl Users {
    fn contain(&self, user: &str) -> bool {
        let is_named = || {
            if self.ignore_case {
                self.names.contains(&user.to_lowercase())
            } else {
                self.names.contains(user)
            }
        };
        let fits = || self.patterns.as_ref().is_some_and(|set| set.is_match(user));
        self.anybody || is_named() || fits()
    }
}

fn destination(networks: &NetworkSet, resolve: bool, facts: &Facts<'_>) -> Match {
    let is_within = |address: &std::net::IpAddr| networks.contains(address.to_canonical());
    match (facts.host, facts.addresses) {
        // An IPv4-mapped address leads to the IPv4 address.
        (Host::Ip(address), None) => Match::of(is_within(address)),
        (Host::Name(_), _) if !resolve => Match::No,
        (_, Some(addresses)) => Match::of(addresses.iter().any(is_within)),
        (Host::Name(_), None) => Match::Unknown(Need::Addresses),
    }
}

fn host(is_match: impl Fn(&str) -> bool, reverse: bool, facts: &Facts<'_>) -> Match {
    match facts.host {
        Host::Name(name) => Match::of(is_match(name.without_root())),
        Host::Ip(_) if is_match(&facts.host_text()) => Match::Yes,
        Host::Ip(_) if !reverse => Match::No,
        Host::Ip(_) => facts
            .reverse_name
            .map_or(Match::Unknown(Need::ReverseName), |name| {
                Match::of(is_match(name))
            }),
    }
}

/// What stands behind the host in a URL.
fn path<'a>(facts: &Facts<'a>) -> Option<&'a str> {
    let (_, rest) = facts.url.split_once("://")?;
    rest.find('/').and_then(|at| rest.get(at..))
}
