//! What a policy decides, and why.

use std::fmt;

use super::{
    Acl, Deny, Rule,
    acl::Last,
    facts::{Facts, Need, User},
    guard::Denial,
};
use crate::{
    http::{ProxyError, Refusal},
    percent::{encode, is_unreserved},
};

/// How far a policy came.
#[derive(Debug)]
pub enum Step<'p> {
    /// To a decision.
    Decided(Decision<'p>),
    /// To something that it has to know first.
    Needs(Need),
}

/// A decision on a request.
#[derive(Debug)]
pub struct Decision<'p> {
    /// What happens.
    pub verdict: Verdict<'p>,
    /// The rule that fitted, with its index; none if what is open by default decided.
    pub rule: Option<(usize, &'p Rule)>,
    /// The condition that was looked at last.
    pub last: Last<'p>,
    /// Rules that would have refused the request.
    pub would_deny: Vec<&'p Rule>,
}

/// What happens to a request.
#[derive(Debug)]
pub enum Verdict<'p> {
    /// It is served.
    Allow,
    /// A rule refuses it.
    Deny(&'p Deny),
    /// It is not open, and no rule opens it.
    Shut(Denial),
    /// A rule asks for a user.
    Challenge,
}

impl Decision<'_> {
    /// Whether the request is served.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self.verdict, Verdict::Allow)
    }

    /// What the client is told, if it is not served and not asked for a password.
    #[must_use]
    pub fn refusal(&self, facts: &Facts<'_>) -> Option<Refusal> {
        match &self.verdict {
            Verdict::Allow | Verdict::Challenge => None,
            Verdict::Shut(denial) => Some((*denial).into()),
            Verdict::Deny(deny) => {
                // The place of the rule is the operator's.
                let default = || format!("denied by rule {}", self.rule_name());
                let message = deny.message.clone().unwrap_or_else(default);
                let status = deny.status(facts.method);
                let refusal = Refusal::with_status(status, ProxyError::HttpRequestDenied, message);
                Some(match &deny.location {
                    Some(location) => refusal.with_location(&expand(location, facts)),
                    None => refusal,
                })
            }
        }
    }

    /// The name of the rule that decided, or of the option.
    #[must_use]
    pub fn rule_name(&self) -> &str {
        self.rule.map_or(self.option(), |(_, rule)| &rule.name)
    }

    /// The option that shuts what no rule opens.
    #[must_use]
    pub fn option(&self) -> &'static str {
        match &self.verdict {
            Verdict::Shut(Denial::Client { .. }) => "allow_client",
            Verdict::Shut(Denial::Port { .. }) => "allow_port",
            Verdict::Shut(_) => "allow_destination",
            Verdict::Allow | Verdict::Deny(_) | Verdict::Challenge => "default",
        }
    }
}

/// The reason, in words for the client and the operator.
impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.verdict, &self.rule) {
            (Verdict::Shut(denial), _) => denial.fmt(f),
            (Verdict::Allow, Some((_, rule))) => write!(f, "allowed by {rule}"),
            (Verdict::Allow, None) => f.write_str("allowed, since no rule is against it"),
            (Verdict::Deny(_), Some((_, rule))) => write!(f, "denied by {rule}"),
            (Verdict::Deny(_), None) => f.write_str("denied"),
            (Verdict::Challenge, Some((_, rule))) => write!(f, "{rule} asks for a user"),
            (Verdict::Challenge, None) => f.write_str("a rule asks for a user"),
        }
    }
}

/// A location with what Squid's `deny_info` puts in place of its tags, escaped: what a client says must
/// not become another part of the URL.
fn expand(location: &str, facts: &Facts<'_>) -> String {
    let mut expanded = String::with_capacity(location.len());
    let mut characters = location.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            expanded.push(character);
            continue;
        }
        let tag = characters.next();
        let value = match tag {
            Some('u' | 'U') => facts.url.to_owned(),
            Some('H') => facts.host_text(),
            Some('p') => facts.port.to_string(),
            Some('i') => facts.client.to_string(),
            Some('M') => facts.method.to_owned(),
            Some('a') => match facts.user {
                User::Known(user) => user.to_owned(),
                User::Unchecked | User::Nobody => "-".to_owned(),
            },
            other => {
                expanded.push('%');
                expanded.extend(other.filter(|other| *other != '%'));
                continue;
            }
        };
        expanded.push_str(&encode(&value, is_unreserved));
    }
    expanded
}

/// Whether the condition that was looked at last is one on users.
pub(super) fn is_about_users(last: Option<&Acl>) -> bool {
    last.is_some_and(|acl| matches!(acl.test, super::Test::User(_)))
}
