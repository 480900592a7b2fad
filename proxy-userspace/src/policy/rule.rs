//! One rule: conditions that must all hold, and what then happens.

use std::{fmt, net::IpAddr, path::Path, sync::Arc};

use super::acl::{Term, Test};
use crate::http::Status;

/// A place in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A rule.
#[derive(Debug)]
pub struct Rule {
    /// Its name, for logs and metrics; rules without one are named after their place.
    pub name: String,
    /// Where it is written.
    pub place: Place,
    /// What must hold.
    pub terms: Vec<Term>,
    /// What happens then.
    pub action: Action,
    /// What the rule speaks of by itself.
    pub(super) scope: Scope,
}

/// What a rule does with a request that it fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets it through.
    Allow,
    /// Refuses it.
    Deny(Deny),
    /// Notes that it would refuse it, and leaves it to the rules behind.
    Report,
}

/// How a request is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deny {
    /// The status, if the rule says one.
    pub status: Option<Status>,
    /// What the client is told; without one, which rule it was.
    pub message: Option<String>,
    /// Where it is sent instead; in it, `%` and a letter stands for a part of the request, as in Squid's
    /// `deny_info`.
    pub location: Option<String>,
    /// No reply but a reset.
    pub reset: bool,
}

impl Deny {
    /// The status for a request of this method. A redirection is to keep the method, unless that is one
    /// which every client repeats as it is (RFC 9110 section 15.4).
    #[must_use]
    pub fn status(&self, method: &str) -> Status {
        let default = match (&self.location, method) {
            (None, _) => Status::FORBIDDEN,
            (Some(_), "GET" | "HEAD") => Status::FOUND,
            (Some(_), _) => Status::TEMPORARY_REDIRECT,
        };
        self.status.unwrap_or(default)
    }
}

/// Whether a rule names clients, ports or addresses. A rule that allows opens what it names and
/// nothing else: of what it does not name, only that is open which is open anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) clients: bool,
    pub(super) ports: bool,
    pub(super) addresses: bool,
}

impl Rule {
    /// A rule of these parts.
    #[must_use]
    pub fn new(name: String, place: Place, terms: Vec<Term>, action: Action) -> Self {
        let names = |is_kind: fn(&Test) -> bool| terms.iter().any(|term| term.names(is_kind));
        let scope = Scope {
            clients: names(|test| matches!(test, Test::Client(_))),
            ports: names(|test| matches!(test, Test::Port(_))),
            addresses: names(|test| matches!(test, Test::Destination { .. })),
        };
        Self {
            name,
            place,
            terms,
            action,
            scope,
        }
    }
}

impl Rule {
    /// Whether none of its conditions on clients is against this one. A condition within another may be.
    pub(super) fn may_be_about(&self, client: IpAddr) -> bool {
        self.terms.iter().all(|term| match &term.acl.test {
            Test::Client(networks) => networks.contains(client) != term.negated,
            _ => true,
        })
    }
}

/// As it stands in "denied by ...".
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, place, .. } = self;
        write!(f, "rule {name} ({place})")
    }
}
