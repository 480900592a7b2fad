//! The target of a request that is not CONNECT: a URL, as clients send it to a proxy (RFC 9112 §3.2.2).

use std::{borrow::Cow, fmt};

use crate::authority::Authority;

/// A URL without user information and fragment, in its usual form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsoluteTarget {
    /// The scheme, in lower case.
    pub scheme: String,
    /// Host and port; the port of the scheme if there is none.
    pub authority: Authority,
    /// What is asked for there: path and query, or nothing.
    pub path: String,
}

impl AbsoluteTarget {
    /// Reads a URL; none if it is no URL of a scheme that has hosts and ports, or has user information or a fragment.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let port = match scheme.as_str() {
            "http" | "ws" => 80,
            "https" | "wss" => 443,
            "ftp" => 21,
            _ => return None,
        };
        if rest.contains('#') {
            return None;
        }
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let has_port = host.rsplit_once(':').is_some_and(|(before, port)| {
            !port.is_empty() && (!before.starts_with('[') || before.ends_with(']'))
        });
        let authority = if has_port {
            Authority::parse(host.as_bytes())
        } else {
            let host = host.strip_suffix(':').unwrap_or(host);
            Authority::parse(format!("{host}:{port}").as_bytes())
        };
        Some(Self {
            scheme,
            authority: authority.ok()?,
            path: path.to_owned(),
        })
    }

    /// Path and query as an origin is asked for them (RFC 9112 section 3.2.1).
    #[must_use]
    pub fn origin_form(&self) -> Cow<'_, str> {
        if self.path.starts_with('/') {
            Cow::Borrowed(&self.path)
        } else {
            Cow::Owned(format!("/{}", self.path))
        }
    }

    /// The host, and the port if it is not the scheme's: as `Host` has it.
    #[must_use]
    pub fn host(&self) -> String {
        let is_usual = self.authority.port().get() == 80 && self.scheme == "http";
        if is_usual {
            self.authority.host().to_string()
        } else {
            self.authority.to_string()
        }
    }
}

impl fmt::Display for AbsoluteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.host(), self.origin_form())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_of_a_url() {
        for (url, scheme, authority) in [
            ("http://example.com", "http", "example.com:80"),
            ("HTTP://Example.com:8080/a?b", "http", "example.com:8080"),
            ("https://example.com?x", "https", "example.com:443"),
            ("http://[::1]/", "http", "[::1]:80"),
            ("http://[::1]:81/", "http", "[::1]:81"),
            ("http://192.0.2.1:/x", "http", "192.0.2.1:80"),
            ("ftp://example.com/x", "ftp", "example.com:21"),
        ] {
            let target = AbsoluteTarget::parse(url).unwrap();
            assert_eq!(
                (
                    target.scheme.as_str(),
                    target.authority.to_string().as_str()
                ),
                (scheme, authority),
                "{url}"
            );
        }
    }

    #[test]
    fn the_rest_of_a_url() {
        for (url, host, path) in [
            ("http://Example.com", "example.com", "/"),
            ("http://example.com?b", "example.com", "/?b"),
            (
                "http://example.com:80/a/../b?c=/d",
                "example.com",
                "/a/../b?c=/d",
            ),
            ("http://[::1]:8080/", "[::1]:8080", "/"),
        ] {
            let target = AbsoluteTarget::parse(url).unwrap();
            assert_eq!(
                (target.host().as_str(), &*target.origin_form()),
                (host, path)
            );
        }
    }

    #[test]
    fn what_rules_cannot_judge_is_none() {
        for url in [
            "/path",
            "*",
            "example.com:443",
            "http://",
            "http://a:0/",
            "http://user@example.com/",
            "http://example.com/#a",
            "urn://x",
            "http://a b/",
        ] {
            assert_eq!(AbsoluteTarget::parse(url), None, "{url}");
        }
    }
}
