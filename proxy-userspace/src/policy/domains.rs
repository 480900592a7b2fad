//! A set of domain names and of whole domains, asked in the time that the name's own labels take.

use std::collections::HashMap;

/// How a name in the set is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// The name itself is in the set.
    exact: bool,
    /// The names below it are.
    below: bool,
}

/// The union of some names: `example.com` is that name, `.example.com` also all names below it,
/// `*.example.com` only those. Names are compared without regard to case or a root dot at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainSet {
    entries: HashMap<Box<str>, Entry>,
    /// `.` alone: every name.
    everything: bool,
}

impl DomainSet {
    /// Whether the name is in the set.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entry_of(name).is_some()
    }

    /// Adds a name; false if it is none.
    pub fn insert(&mut self, pattern: &str) -> bool {
        let pattern = pattern.to_ascii_lowercase();
        if pattern == "." || pattern == "*" {
            self.everything = true;
            return true;
        }
        let (name, entry) = if let Some(name) = pattern.strip_prefix("*.") {
            (
                name,
                Entry {
                    exact: false,
                    below: true,
                },
            )
        } else if let Some(name) = pattern.strip_prefix('.') {
            (
                name,
                Entry {
                    exact: true,
                    below: true,
                },
            )
        } else {
            (
                pattern.as_str(),
                Entry {
                    exact: true,
                    below: false,
                },
            )
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if !is_name(name) {
            return false;
        }
        let known = self.entries.entry(name.into()).or_default();
        known.exact |= entry.exact;
        known.below |= entry.below;
        true
    }

    /// Whether every name of `other` is in this set.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if self.everything {
            return true;
        }
        let covers_entry = |(name, entry): (&str, &Entry)| {
            let own = self.entry_of(name);
            let exact = !entry.exact || own.is_some();
            let below = !entry.below || self.holds_below(name);
            exact && below
        };
        let mut entries = other.entries.iter().map(|(name, entry)| (&**name, entry));
        !other.everything && entries.all(covers_entry)
    }

    /// The text of the entry that a name is in the set for.
    fn entry_of(&self, name: &str) -> Option<&str> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if self.everything {
            return Some(".");
        }
        if let Some((known, entry)) = self.entries.get_key_value(name.as_str())
            && entry.exact
        {
            return Some(known);
        }
        parents(&name).find_map(|parent| {
            let (known, entry) = self.entries.get_key_value(parent)?;
            entry.below.then_some(&**known)
        })
    }

    fn holds_below(&self, name: &str) -> bool {
        let is_below = |name: &str| self.entries.get(name).is_some_and(|entry| entry.below);
        is_below(name) || parents(name).any(is_below)
    }
}

/// The domains that a name is in, from the nearest to the top.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.split_once('.'), |(_, parent)| parent.split_once('.'))
        .map(|(_, parent)| parent)
}

/// Letters, digits, hyphens, underscores; or an address, which `dstdomain` may name too.
fn is_name(text: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte);
    !text.is_empty() && !text.contains("..") && text.bytes().all(is_character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(patterns: &[&str]) -> DomainSet {
        let mut set = DomainSet::default();
        for pattern in patterns {
            assert!(set.insert(pattern), "{pattern}");
        }
        set
    }

    #[test]
    fn a_name_a_domain_and_what_is_below() {
        for (pattern, name, expected) in [
            ("example.com", "example.com", true),
            ("example.com", "EXAMPLE.com.", true),
            ("example.com", "www.example.com", false),
            (".example.com", "example.com", true),
            (".example.com", "a.b.example.com", true),
            (".example.com", "badexample.com", false),
            (".example.com", "com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", "www.example.com", true),
            ("Example.COM.", "example.com", true),
            (".com", "example.com", true),
            (".", "anything", true),
            ("*", "any.thing", true),
            ("192.0.2.1", "192.0.2.1", true),
        ] {
            assert_eq!(set(&[pattern]).contains(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for pattern in [
            "",
            "..",
            "a..b",
            "a b",
            "a/b",
            "https://a",
            "\u{e4}.de",
            "a*b.com",
        ] {
            assert!(!DomainSet::default().insert(pattern), "{pattern}");
        }
    }

    #[test]
    fn a_set_covers_what_is_within_its_domains() {
        let wide = set(&[".example.com", "other.org"]);
        for (patterns, expected) in [
            (&["www.example.com", "other.org"][..], true),
            (&[".a.example.com"], true),
            (&["*.example.com"], true),
            (&[".other.org"], false),
            (&["third.net"], false),
            (&["."], false),
        ] {
            assert_eq!(wide.covers(&set(patterns)), expected, "{patterns:?}");
        }
    }
}
