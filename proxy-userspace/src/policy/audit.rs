//! What is suspicious about a policy: rules that can never decide, and doors that stand open.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::{Action, Facts, Moment, Place, Policy, Rule, ServerName, Step, Term, Test, User};
use crate::authority::Authority;

/// A remark on a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where, if a rule is meant.
    pub place: Option<Place>,
    /// What, and what to do about it.
    pub text: String,
}

impl Warning {
    /// The place, if there is one, the label, and the text.
    #[must_use]
    pub fn in_words(&self, label: &str) -> String {
        let place = self
            .place
            .as_ref()
            .map_or(String::new(), |place| format!("{place}: "));
        format!("{place}{label}{}", self.text)
    }
}

/// Remarks on a policy that serves these listeners.
#[must_use]
pub fn audit(policy: &Policy, listeners: &[SocketAddr]) -> Vec<Warning> {
    let mut warnings = unreachable(policy.rules());
    if listeners.iter().any(|address| !address.ip().is_loopback()) {
        warnings.extend(open_doors(policy));
    }
    warnings
}

/// Rules behind others that take all that they could get, and rules that contradict themselves.
fn unreachable(rules: &[Rule]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        // What is to become of the rest may be said where nothing is left.
        if rule.terms.is_empty() && index + 1 == rules.len() {
            continue;
        }
        let mut warn = |text| {
            warnings.push(Warning {
                place: Some(rule.place.clone()),
                text,
            });
        };
        let contradicts = |term: &Term| {
            let opposite =
                |other: &Term| Arc::ptr_eq(&other.acl, &term.acl) && other.negated != term.negated;
            rule.terms.iter().any(opposite) || term.negated && matches!(term.acl.test, Test::Always)
        };
        if let Some(term) = rule.terms.iter().find(|term| contradicts(term)) {
            let condition = &term.acl.name;
            warn(format!(
                "the rule can never match: it contradicts itself on {condition}"
            ));
            continue;
        }
        let earlier = rules.iter().take(index);
        let taken = earlier
            .filter(|earlier| earlier.action != Action::Report)
            // What it does not name may be shut, and then later rules have their turn.
            .filter(|earlier| earlier.action != Action::Allow || is_as_wide(earlier, rule))
            .find(|earlier| {
                earlier
                    .terms
                    .iter()
                    .all(|term| is_implied(term, &rule.terms))
            });
        if let Some(earlier) = taken {
            warn(format!(
                "the rule can never match: {earlier} takes all that it could match"
            ));
        }
    }
    warnings
}

/// Whether `earlier` opens no less than `rule` names.
fn is_as_wide(earlier: &Rule, rule: &Rule) -> bool {
    (earlier.scope.clients || !rule.scope.clients) && (earlier.scope.ports || !rule.scope.ports)
}

/// Whether the term holds whenever all of the others do.
fn is_implied(term: &Term, others: &[Term]) -> bool {
    let by = |other: &Term| {
        if other.negated != term.negated {
            return false;
        }
        let (wide, narrow) = if term.negated {
            (&other.acl, &term.acl)
        } else {
            (&term.acl, &other.acl)
        };
        Arc::ptr_eq(wide, narrow) || covers(&wide.test, &narrow.test)
    };
    !term.negated && matches!(term.acl.test, Test::Always) || others.iter().any(by)
}

/// Whether whatever matches `narrow` matches `wide`.
fn covers(wide: &Test, narrow: &Test) -> bool {
    match (wide, narrow) {
        (Test::Always, _) => true,
        (Test::Client(wide), Test::Client(narrow))
        | (
            Test::Destination {
                networks: wide,
                resolve: true,
            },
            Test::Destination {
                networks: narrow, ..
            },
        ) => wide.covers(narrow),
        (
            Test::Host {
                names: wide,
                reverse: false,
            },
            Test::Host {
                names: narrow,
                reverse: false,
            },
        )
        | (Test::ServerName(wide), Test::ServerName(narrow)) => wide.covers(narrow),
        (Test::Port(wide), Test::Port(narrow)) => wide.covers(narrow),
        (Test::Method(wide), Test::Method(narrow)) => {
            narrow.iter().all(|method| wide.contains(method))
        }
        _ => false,
    }
}

/// Requests that no stranger should be able to make.
fn open_doors(policy: &Policy) -> Vec<Warning> {
    let strangers: [(&str, IpAddr); 2] = [
        ("IPv4", Ipv4Addr::new(203, 0, 113, 7).into()),
        (
            "IPv6",
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
        ),
    ];
    let doors = [
        (
            "example.com:443",
            "this is an open relay: clients on the Internet may use it for any host",
        ),
        (
            "example.com:25",
            "clients on the Internet may send mail through it (port 25)",
        ),
        (
            "169.254.169.254:80",
            "clients on the Internet reach a cloud's metadata service through it",
        ),
    ];
    let mut warnings = Vec::new();
    for (target, text) in doors {
        let open: Vec<&str> = strangers
            .iter()
            .filter(|(_, client)| is_served(policy, *client, target))
            .map(|&(version, _)| version)
            .collect();
        let Some(&first) = open.first() else { continue };
        let versions = if open.len() == 1 {
            format!(" ({first})")
        } else {
            String::new()
        };
        warnings.push(Warning {
            place: None,
            text: format!("{text}{versions}; name who may use it: {}", remedy(policy)),
        });
    }
    warnings
}

fn remedy(policy: &Policy) -> &'static str {
    match policy.dialect() {
        super::Dialect::Underpass => "allow_client, or `client` in the rules that allow",
        super::Dialect::Squid => "http_access allow with an acl of type src",
    }
}

fn is_served(policy: &Policy, client: IpAddr, target: &str) -> bool {
    let Ok(authority) = Authority::parse(target.as_bytes()) else {
        return false;
    };
    // An address that stands for the public ones.
    let address = match authority.host() {
        crate::authority::Host::Ip(address) => *address,
        crate::authority::Host::Name(_) => IpAddr::from([93, 184, 215, 14]),
    };
    let facts = Facts {
        client,
        listener: SocketAddr::from(([203, 0, 113, 1], 3128)),
        listener_name: "",
        method: "CONNECT",
        scheme: None,
        host: authority.host(),
        port: authority.port().get(),
        url: target,
        user: User::Nobody,
        certificate: None,
        process: None,
        server_name: ServerName::None,
        now: Moment::default(),
        addresses: Some(&[address]),
        reverse_name: Some("none"),
        own_address: false,
        connections: 1,
        mark: 0,
        dice: 0,
    };
    matches!(policy.decide(&facts), Step::Decided(decision) if decision.is_allowed())
}
