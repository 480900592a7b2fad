//! Who may use the proxy, and where a tunnel may lead.
//!
//! Rules in order; the first that fits decides. What no rule decides is decided by the [`Guard`], which
//! is safe unless told otherwise: clients on this host, public addresses, port 443. A rule that allows
//! opens what it names: a client, a port, an address. What it does not name stays as the guard has it,
//! so that `allow host` opens neither the mail port nor the private address that a resolver may give
//! for that host.
//!
//! The destination is judged by the *address that is connected to*, not by its name alone: whoever dials
//! asks for each address before it is tried. Rules on names decide before anything is resolved; rules on
//! the name in a ClientHello last, and before anything is dialled.
//!
//! Pure: it resolves nothing and knows neither socket nor clock. What it needs to know ([`Need`]) it
//! asks for; the caller finds out, and asks again.

mod acl;
mod address_class;
pub mod audit;
mod decision;
mod domains;
mod facts;
mod guard;
mod networks;
mod ports;
mod process;
mod rule;
mod schedule;

use std::net::IpAddr;

use self::{acl::Match, decision::is_about_users};
pub use self::{
    acl::{Acl, Mark, Term, Test, Users},
    address_class::{AddressClass, SpecialBlock, embedded_ipv4},
    decision::{Decision, Step, Verdict},
    domains::DomainSet,
    facts::{Facts, Need, ServerName, User},
    guard::{Denial, Guard},
    networks::NetworkSet,
    ports::{PortError, PortRange, PortSet},
    process::Process,
    rule::{Action, Deny, Place, Rule},
    schedule::{ALL_DAYS, Moment, Window},
};

#[cfg(test)]
mod tests;

/// The rules, compiled.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    guard: Guard,
    dialect: Dialect,
}

/// Whose semantics apply where they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Ours.
    #[default]
    Underpass,
    /// Squid's: a condition on addresses is asked once, of all addresses of a host together, and a
    /// refusal that hangs on a condition on users asks for another user.
    Squid,
}

impl Policy {
    /// A policy of these rules.
    #[must_use]
    pub fn new(rules: Vec<Rule>, guard: Guard, dialect: Dialect) -> Self {
        Self {
            rules,
            guard,
            dialect,
        }
    }

    /// The rules in their order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What is open without a rule.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Whose semantics apply.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Whether a client can be served at all: if not, whatever it asks for is refused.
    pub fn client(&self, client: IpAddr) -> Result<(), Denial> {
        let client = client.to_canonical();
        let opened = |rule: &Rule| {
            rule.action == Action::Allow && rule.scope.clients && rule.may_be_about(client)
        };
        if self.rules.iter().any(opened) {
            Ok(())
        } else {
            self.guard.client(client)
        }
    }

    /// Whether nobody but clients on this host's loopback can be served.
    #[must_use]
    pub fn is_for_loopback_only(&self) -> bool {
        let opens_to_others = |rule: &Rule| rule.action == Action::Allow && rule.scope.clients;
        self.guard.clients.is_loopback_only() && !self.rules.iter().any(opens_to_others)
    }

    /// Whether a rule has a condition of this kind.
    pub fn mentions(&self, is_kind: fn(&Test) -> bool) -> bool {
        self.rules
            .iter()
            .flat_map(|rule| &rule.terms)
            .any(|term| term.mentions(is_kind))
    }

    /// Judges a request by what is known of it. In our own dialect, once there are addresses, it is to
    /// be called for each of them alone.
    #[must_use]
    pub fn decide(&self, facts: &Facts<'_>) -> Step<'_> {
        let mut last = None;
        let mut would_deny = Vec::new();
        // Of the rules that a ClientHello will decide on: whether one of them allows.
        let mut unheard = None;
        for (index, rule) in self.rules.iter().enumerate() {
            match acl::all(&rule.terms, facts, &mut last) {
                Match::No => continue,
                // The rules behind may refuse anyway, or need what can be told only before there is a tunnel.
                Match::Unknown(Need::ServerName) => {
                    unheard = Some(unheard == Some(true) || rule.action == Action::Allow);
                    continue;
                }
                Match::Unknown(need) => return Step::Needs(need),
                // Nobody is asked for a password for the sake of a remark.
                Match::NoUser if rule.action == Action::Report => continue,
                Match::NoUser => {
                    return Step::Decided(Decision {
                        verdict: Verdict::Challenge,
                        rule: Some((index, rule)),
                        last,
                        would_deny,
                    });
                }
                Match::Yes => {}
            }
            let verdict = match &rule.action {
                Action::Report => {
                    would_deny.push(rule);
                    continue;
                }
                Action::Deny(_) if self.dialect == Dialect::Squid && is_about_users(last) => {
                    Verdict::Challenge
                }
                Action::Deny(deny) => Verdict::Deny(deny),
                Action::Allow if !self.is_open(rule, facts) => continue,
                Action::Allow => self
                    .shut(Some(rule), facts)
                    .map_or(Verdict::Allow, Verdict::Shut),
            };
            return conclude(
                unheard,
                Decision {
                    verdict,
                    rule: Some((index, rule)),
                    last,
                    would_deny,
                },
            );
        }
        let shut = self
            .guard
            .client(facts.client)
            .and(self.guard.port(facts.port, facts.scheme))
            .err();
        let verdict = shut
            .or_else(|| self.shut(None, facts))
            .map_or(Verdict::Allow, Verdict::Shut);
        conclude(
            unheard,
            Decision {
                verdict,
                rule: None,
                last,
                would_deny,
            },
        )
    }

    /// Whether a rule that allows is about this client and port.
    fn is_open(&self, rule: &Rule, facts: &Facts<'_>) -> bool {
        (rule.scope.clients || self.guard.client(facts.client).is_ok())
            && (rule.scope.ports || self.guard.port(facts.port, facts.scheme).is_ok())
    }

    /// What is against the addresses, if a rule allows the request, or none does.
    fn shut(&self, rule: Option<&Rule>, facts: &Facts<'_>) -> Option<Denial> {
        let named = rule.filter(|rule| rule.scope.addresses);
        let judge = |&address: &IpAddr| match named {
            None => self.guard.address(address).and_then(|()| {
                if facts.own_address {
                    self.guard.own_address(address.to_canonical())
                } else {
                    Ok(())
                }
            }),
            Some(rule) => self.guard.embedded(address).or_else(|denial| {
                let fits = embedded(address).is_some_and(|inner| fits(rule, facts, inner));
                if fits { Ok(()) } else { Err(denial) }
            }),
        };
        facts
            .addresses
            .into_iter()
            .flatten()
            .find_map(|address| judge(address).err())
    }
}

/// A decision, unless rules before it that wait for a ClientHello could lead to another one: `unheard` says
/// whether there are any, and whether one of them allows.
fn conclude(unheard: Option<bool>, decision: Decision<'_>) -> Step<'_> {
    match unheard {
        Some(may_allow) if may_allow || decision.is_allowed() => Step::Needs(Need::ServerName),
        _ => Step::Decided(decision),
    }
}

/// Whether all terms hold by what is known.
#[must_use]
pub fn hold(terms: &[Term], facts: &Facts<'_>) -> bool {
    acl::all(terms, facts, &mut None) == Match::Yes
}

/// The same, unless that hangs on what the resolver can tell. Without a user that was asked for, a condition on users
/// does not hold.
pub fn may_hold(terms: &[Term], facts: &Facts<'_>) -> Result<bool, Need> {
    match acl::all(terms, facts, &mut None) {
        Match::Yes => Ok(true),
        Match::Unknown(need @ (Need::Addresses | Need::ReverseName)) => Err(need),
        Match::No | Match::NoUser | Match::Unknown(Need::User | Need::ServerName) => Ok(false),
    }
}

/// Whether the rule would hold for this address, too.
fn fits(rule: &Rule, facts: &Facts<'_>, address: IpAddr) -> bool {
    let addresses = [address];
    let facts = Facts {
        addresses: Some(&addresses),
        ..*facts
    };
    hold(&rule.terms, &facts)
}

fn embedded(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => embedded_ipv4(address).map(IpAddr::V4),
    }
}
