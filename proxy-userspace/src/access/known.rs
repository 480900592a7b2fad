//! What was found out of a request so far, and which way it goes by that.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{Cause, NO_NAME, Permit, Refused};
use crate::{
    http::Refusal,
    parent::Hop,
    policy::{Decision, User},
};

/// What was found out of the user.
#[derive(Debug, Default)]
pub(super) enum Identity {
    /// Nothing yet.
    #[default]
    Unchecked,
    /// There are no right credentials.
    Nobody,
    /// Who it is.
    User(Arc<str>),
}

impl Identity {
    fn user(&self) -> Option<Arc<str>> {
        match self {
            Self::Unchecked | Self::Nobody => None,
            Self::User(user) => Some(Arc::clone(user)),
        }
    }
}

/// What was found out of a request so far.
#[derive(Debug, Default)]
pub struct Known {
    /// The user.
    pub(super) user: Identity,
    /// The addresses.
    pub(super) addresses: Option<Vec<SocketAddr>>,
    /// Why there are none, in Squid's dialect: rules are asked all the same.
    pub(super) no_address: Option<Refusal>,
    /// The name of the address.
    pub(super) reverse_name: Option<String>,
    /// The way to the target, as far as it is known by what is known.
    pub(super) way: Option<Way>,
    /// How long addresses were looked for, if they were.
    pub(super) resolving: Option<Duration>,
}

/// The ways of a route.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) route: Option<usize>,
    pub(super) hops: Vec<Hop>,
    /// How many of them have failed.
    pub(super) failed: usize,
}

impl Known {
    /// How long addresses were looked for, if they were.
    pub fn resolving(&self) -> Option<Duration> {
        self.resolving
    }

    /// The way that was judged has failed: whether there is another one.
    pub fn next_hop(&mut self) -> bool {
        self.way.as_mut().is_some_and(|way| {
            way.failed += 1;
            way.failed < way.hops.len()
        })
    }

    /// The ways that are left, the present one first.
    pub fn hops(&self) -> &[Hop] {
        let way = self.way.as_ref();
        way.and_then(|way| way.hops.get(way.failed..))
            .unwrap_or_default()
    }

    pub(super) fn ips(&self) -> Option<Vec<IpAddr>> {
        let addresses = self.addresses.as_ref()?;
        Some(addresses.iter().map(SocketAddr::ip).collect())
    }

    pub(super) fn permit(&self, decision: &Decision<'_>) -> Permit {
        Permit {
            candidates: Vec::new(),
            user: self.user.user(),
            reverse_name: self.reverse_name.clone(),
            would_deny: decision
                .would_deny
                .iter()
                .map(|rule| rule.name.clone())
                .collect(),
            reason: decision.to_string(),
            rule: decision.rule.map(|(index, _)| index),
            hop: Hop::Direct,
        }
    }

    /// A refusal of what cannot be judged.
    pub(crate) fn unclear(&self, refusal: Refusal) -> Refused {
        Refused {
            cause: Cause::Opening,
            ..self.failed(refusal)
        }
    }

    /// A refusal that is nobody's decision.
    pub(super) fn failed(&self, refusal: Refusal) -> Refused {
        Refused {
            refusal,
            cause: Cause::Failure,
            reset: false,
            user: self.user.user(),
            addresses: self.addresses.clone().unwrap_or_default().into(),
        }
    }
}

/// What is known beside the request itself.
pub(crate) trait KnownFacts {
    fn user(&self) -> User<'_>;
    fn reverse_name(&self) -> Option<&str>;
}

impl KnownFacts for Known {
    fn user(&self) -> User<'_> {
        match &self.user {
            Identity::Unchecked => User::Unchecked,
            Identity::Nobody => User::Nobody,
            Identity::User(user) => User::Known(user),
        }
    }

    fn reverse_name(&self) -> Option<&str> {
        self.reverse_name.as_deref()
    }
}

/// Once a request is permitted, nothing more is found out for it.
impl KnownFacts for Permit {
    fn user(&self) -> User<'_> {
        self.user.as_deref().map_or(User::Nobody, User::Known)
    }

    fn reverse_name(&self) -> Option<&str> {
        Some(self.reverse_name.as_deref().unwrap_or(NO_NAME))
    }
}
