//! Parent proxies: tunnels that are asked for at another proxy, over TCP or TLS.
//!
//! What a parent says to our CONNECT is never passed on: its `200` becomes ours, its refusals a `502` or `504` that
//! names it. What it sends behind its `200` belongs to the tunnel.

mod health;
mod link;

use std::{
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{ClientConfig, pki_types::ServerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::health::Health;
pub(crate) use self::{
    health::watch,
    link::{Dialling, Link, LinkError},
};
use crate::{
    authority::{Authority, Host},
    tls,
};

/// The pause between two looks at a parent, unless the configuration says otherwise.
pub const CHECK_PAUSE: Duration = Duration::from_secs(10);

/// A parent proxy.
pub struct Parent {
    /// What routes call it.
    pub name: Arc<str>,
    spec: Spec,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    health: Arc<Health>,
}

/// What is configured of a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Where it is.
    pub url: ParentUrl,
    /// `user:password`, for it.
    pub login: Option<Box<str>>,
    /// Who resolves the names of targets.
    pub names: Names,
    /// Its certificate, and ours; of `https` alone.
    pub tls: TlsSpec,
    /// The pause between two looks at it.
    pub check: Duration,
}

/// Whom to trust, and who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSpec {
    /// Certificate authorities, in place of the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in its certificate, if that is not its host.
    pub server_name: Option<Box<str>>,
}

/// Who resolves the names of targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Names {
    /// The parent: it gets the name, and the rules know no address unless they ask for one.
    #[default]
    Parent,
    /// This proxy: the rules judge the address, and that is what the parent gets.
    Here,
}

/// `http://proxy.example:3128`: how to talk to a parent, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentUrl {
    /// Whether TLS comes first.
    pub is_tls: bool,
    /// Its host and port.
    pub address: Authority,
}

impl FromStr for ParentUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (scheme, rest) = text.split_once("://")?;
            let is_tls = match scheme {
                "http" => false,
                "https" => true,
                _ => return None,
            };
            let rest = rest.strip_suffix('/').unwrap_or(rest);
            let address = Authority::parse(rest.as_bytes()).ok()?;
            Some(Self { is_tls, address })
        };
        parse().ok_or_else(|| {
            format!("'{text}' is not a parent proxy; write http://proxy.example:3128 or https://proxy.example:3129, and credentials as `login`")
        })
    }
}

impl fmt::Display for ParentUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.address)
    }
}

/// A way to a target.
#[derive(Clone, Debug, Default)]
pub enum Hop {
    /// Straight to it.
    #[default]
    Direct,
    /// Through a parent, which was chosen in this manner.
    Parent(Arc<Parent>, Hierarchy),
}

/// How a way was chosen, in the words of Squid's access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hierarchy {
    /// There is no parent in it.
    #[default]
    Direct,
    /// The first parent that is up.
    FirstUpParent,
    /// Parents take turns.
    RoundRobinParent,
}

impl fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "HIER_DIRECT",
            Self::FirstUpParent => "FIRSTUP_PARENT",
            Self::RoundRobinParent => "ROUNDROBIN_PARENT",
        })
    }
}

impl Hop {
    /// The parent's name.
    pub fn parent(&self) -> Option<&str> {
        match self {
            Self::Direct => None,
            Self::Parent(parent, _) => Some(&parent.name),
        }
    }

    /// For the access log.
    pub fn hierarchy(&self) -> Hierarchy {
        match self {
            Self::Direct => Hierarchy::Direct,
            Self::Parent(_, hierarchy) => *hierarchy,
        }
    }

    /// Whether the target's addresses have to be known for it.
    pub fn needs_addresses(&self, target: &Authority) -> bool {
        match self {
            Self::Direct => true,
            Self::Parent(parent, _) => {
                parent.spec.names == Names::Here || matches!(target.host(), Host::Ip(_))
            }
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Parent(parent, _) => parent.fmt(f),
        }
    }
}

/// Where some requests go.
#[derive(Debug, Default)]
pub struct Route {
    /// In this order.
    pub via: Vec<Via>,
    /// Whether parents take turns.
    pub round_robin: bool,
    /// Whose turn it is.
    turn: AtomicUsize,
}

/// An entry of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Straight to the target.
    Direct,
    /// A parent, by its index.
    Parent(usize),
}

impl Route {
    /// A route of which nobody has had a turn.
    #[must_use]
    pub fn new(via: Vec<Via>, round_robin: bool) -> Self {
        Self {
            via,
            round_robin,
            turn: AtomicUsize::new(0),
        }
    }

    /// The ways in the order in which they are tried: `parent` says which parents a request may have. Those that are
    /// down come last, for they may be up again.
    pub fn hops<'a>(&self, parent: impl Fn(usize) -> Option<&'a Arc<Parent>>) -> Vec<Hop> {
        let hierarchy = if self.round_robin {
            Hierarchy::RoundRobinParent
        } else {
            Hierarchy::FirstUpParent
        };
        let mut hops: Vec<Hop> = self
            .via
            .iter()
            .filter_map(|via| match via {
                Via::Direct => Some(Hop::Direct),
                Via::Parent(index) => {
                    parent(*index).map(|parent| Hop::Parent(Arc::clone(parent), hierarchy))
                }
            })
            .collect();
        if self.round_robin {
            let is_parent = |hop: &Hop| matches!(hop, Hop::Parent(..));
            let parents: Vec<usize> = (0..hops.len())
                .filter(|index| hops.get(*index).is_some_and(is_parent))
                .collect();
            // Direct keeps its place.
            if let (Some(first), Some(last)) = (parents.first(), parents.last())
                && let Some(turns) = hops.get_mut(*first..=*last)
                && parents.len() == turns.len()
            {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                turns.rotate_left(turn % parents.len());
            }
        }
        hops.sort_by_key(|hop| matches!(hop, Hop::Parent(parent, _) if parent.is_down()));
        hops
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parent")
            .field("name", &self.name)
            .field("url", &self.spec.url)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parent {} ({})", self.name, self.spec.url)
    }
}

impl Parent {
    /// A parent that is taken to be up.
    ///
    /// # Errors
    /// Its certificates cannot be read.
    pub fn new(name: &str, spec: Spec) -> Result<Self, String> {
        let tls = if spec.url.is_tls {
            let host = spec.url.address.host().to_string();
            let host = host.trim_matches(['[', ']']).trim_end_matches('.');
            let server = spec.tls.server_name.as_deref().unwrap_or(host);
            let server = ServerName::try_from(server.to_owned())
                .map_err(|_| format!("'{server}' is not the name of a server"))?;
            let identity = spec.tls.identity.as_ref();
            let identity =
                identity.map(|(certificate, key)| (certificate.as_path(), key.as_path()));
            let config = tls::client_config(spec.tls.ca.as_deref(), identity)?;
            Some((Arc::new(config), server))
        } else {
            None
        };
        Ok(Self {
            name: name.into(),
            spec,
            tls,
            health: Arc::default(),
        })
    }

    /// What it was made with.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Takes over what is known of the state of another one that stands for the same proxy.
    pub fn inherit(&mut self, before: &Self) {
        if self.name == before.name && self.spec.url == before.spec.url {
            self.health = Arc::clone(&before.health);
        }
    }

    /// Whether it did not answer when it was last asked.
    pub fn is_down(&self) -> bool {
        self.health.is_down()
    }

    /// Notes that it answers, or why it does not.
    pub(crate) fn note(&self, state: Result<(), &str>) {
        self.health.note(self, state);
    }

    /// Our credentials for it.
    #[must_use]
    pub fn authorization(&self) -> Option<String> {
        let login = self.spec.login.as_ref()?;
        Some(format!("Basic {}", STANDARD.encode(&**login)))
    }

    /// What asks it for a tunnel (RFC 9110 section 9.3.6); `via` says which proxies the request has passed, so that
    /// one of them notices if it comes around.
    #[must_use]
    pub fn request(&self, target: &Authority, via: Option<&str>) -> Vec<u8> {
        let via = via.map_or(String::new(), |via| format!("Via: {via}\r\n"));
        let login = self.authorization();
        let login = login.map_or(String::new(), |login| {
            format!("Proxy-Authorization: {login}\r\n")
        });
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{via}{login}\r\n").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(name: &str) -> Arc<Parent> {
        let spec = Spec {
            url: format!("http://{name}.test:3128").parse().unwrap(),
            login: Some("anna:secret".into()),
            names: Names::Parent,
            tls: TlsSpec::default(),
            check: CHECK_PAUSE,
        };
        Arc::new(Parent::new(name, spec).unwrap())
    }

    fn order(route: &Route, parents: &[Arc<Parent>]) -> Vec<String> {
        let hops = route.hops(|index| parents.get(index));
        let name = |hop: &Hop| match hop {
            Hop::Direct => "direct".to_owned(),
            Hop::Parent(parent, _) => parent.name.to_string(),
        };
        hops.iter().map(name).collect()
    }

    #[test]
    fn parents_that_are_down_come_last() {
        let parents = [parent("a"), parent("b")];
        let route = Route::new(vec![Via::Parent(0), Via::Parent(1), Via::Direct], false);
        assert_eq!(order(&route, &parents), ["a", "b", "direct"]);
        parents[0].note(Err("gone"));
        assert_eq!(order(&route, &parents), ["b", "direct", "a"]);
        parents[1].note(Err("gone"));
        parents[0].note(Ok(()));
        assert_eq!(order(&route, &parents), ["a", "direct", "b"]);
        // A parent that this request may not have is left out.
        let hops = route.hops(|index| parents.get(index).filter(|_| index == 1));
        assert_eq!(hops.len(), 2);
    }

    #[test]
    fn parents_take_turns() {
        let parents = [parent("a"), parent("b"), parent("c")];
        let via = (0..3).map(Via::Parent).chain([Via::Direct]).collect();
        let route = Route::new(via, true);
        assert_eq!(order(&route, &parents), ["a", "b", "c", "direct"]);
        assert_eq!(order(&route, &parents), ["b", "c", "a", "direct"]);
        assert_eq!(order(&route, &parents), ["c", "a", "b", "direct"]);
        assert_eq!(order(&route, &parents), ["a", "b", "c", "direct"]);
    }

    #[test]
    fn the_request_has_the_login_and_no_more() {
        let target = Authority::parse(b"origin.test:443").unwrap();
        assert_eq!(
            String::from_utf8(parent("a").request(&target, Some("1.1 us"))).unwrap(),
            "CONNECT origin.test:443 HTTP/1.1\r\nHost: origin.test:443\r\nVia: 1.1 us\r\n\
             Proxy-Authorization: Basic YW5uYTpzZWNyZXQ=\r\n\r\n"
        );
    }

    #[test]
    fn urls_of_parents() {
        for (text, written) in [
            ("http://proxy.test:3128", Some("http://proxy.test:3128")),
            ("https://[::1]:3129/", Some("https://[::1]:3129")),
            ("http://proxy.test", None),
            ("http://anna:secret@proxy.test:1", None),
            ("socks5://proxy.test:1080", None),
            ("proxy.test:3128", None),
            ("http://proxy.test:1/x", None),
        ] {
            let url = text.parse::<ParentUrl>().map(|url| url.to_string());
            assert_eq!(url.ok().as_deref(), written, "{text}");
        }
    }
}
