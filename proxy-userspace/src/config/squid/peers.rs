//! Parent proxies in squid.conf: which there are, and which requests go through them.

use super::{
    super::{
        file::{Balance, Located, Match, Parent, Route},
        values::{Text, Word},
    },
    ConfigError, Line,
    settings::{AccessLine, Translation, texts},
};
use crate::{
    authority::Authority,
    parent::{Names, ParentUrl},
    policy::Place,
};

/// What was said about parents so far.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// In the order of the file.
    parents: Vec<Peer>,
    always_direct: Vec<AccessLine>,
    never_direct: Vec<AccessLine>,
    prefer_direct: bool,
    hierarchical_only: bool,
}

#[derive(Debug)]
struct Peer {
    name: String,
    parent: Parent,
    place: Place,
    is_round_robin: bool,
    access: Vec<AccessLine>,
}

/// Where a list of `allow` and `deny` lines allows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Allows {
    Always,
    Never,
    /// Where this holds: a word for `when`.
    Where(String),
}

/// `cache_peer HOST parent PORT ICP-PORT [option ...]`
pub(super) fn cache_peer(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let words = texts(line);
    let [host, kind, port, _icp, options @ ..] = words.as_slice() else {
        return Err("write cache_peer HOST parent PORT 0 [option ...]".to_owned());
    };
    match *kind {
        "parent" => {}
        "sibling" | "multicast" => {
            to.notices.push(format!(
                "ignored, since there is no cache: cache_peer {host} {kind} ({})",
                line.place
            ));
            return Ok(());
        }
        _ => return Err(format!("a peer is a parent or a sibling, not {kind}")),
    }
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        (*host).to_owned()
    };
    let address = Authority::parse(format!("{host}:{port}").as_bytes())
        .map_err(|error| format!("{host}:{port} is no address of a parent: {error}"))?;
    let mut peer = Peer {
        name: words.first().copied().unwrap_or_default().to_owned(),
        parent: Parent {
            url: Text(ParentUrl {
                is_tls: false,
                address,
            }),
            login_file: None,
            login: None,
            names: Names::Parent,
            ca: None,
            certificate: None,
            key: None,
            server_name: None,
            check: None,
            when: Vec::new(),
        },
        place: line.place.clone(),
        is_round_robin: false,
        access: Vec::new(),
    };
    for option in options {
        peer.set(option)?;
    }
    if peer.name == "direct" || to.peers.parents.iter().any(|other| other.name == peer.name) {
        let name = &peer.name;
        return Err(format!(
            "there is a peer {name} already, or it cannot be called so; add name=NAME"
        ));
    }
    to.peers.parents.push(peer);
    Ok(())
}

impl Peer {
    fn set(&mut self, option: &str) -> Result<(), String> {
        let (key, value) = option
            .split_once('=')
            .map_or((option, None), |(key, value)| (key, Some(value)));
        let parent = &mut self.parent;
        match (key, value) {
            ("name", Some(name)) => name.clone_into(&mut self.name),
            ("login", Some(login)) if login.contains(':') && !login.starts_with(['*', ':']) => {
                parent.login = Some(login.to_owned());
            }
            ("login", _) => {
                return Err(format!(
                    "cache_peer {option} is not supported: a client's credentials are for this proxy; write login=user:password"
                ));
            }
            ("round-robin", None) => self.is_round_robin = true,
            ("tls" | "ssl", None) => parent.url.0.is_tls = true,
            ("tls-cafile" | "sslcafile", Some(path)) => parent.ca = Some(path.into()),
            ("tls-cert" | "sslcert", Some(path)) => parent.certificate = Some(path.into()),
            ("tls-key" | "sslkey", Some(path)) => parent.key = Some(path.into()),
            ("ssldomain", Some(name)) => parent.server_name = Some(name.to_owned()),
            // They are about caches, about ICP, or about how a parent is watched.
            (
                "no-query" | "no-digest" | "no-netdb-exchange" | "no-delay" | "proxy-only"
                | "default" | "background-ping" | "allow-miss" | "no-tproxy" | "connect-timeout"
                | "connect-fail-limit" | "digest-url" | "ttl" | "basetime" | "standby" | "htcp"
                | "closest-only" | "auth-no-keytab" | "connection-auth" | "monitorurl"
                | "monitorsize" | "monitorinterval" | "monitortimeout",
                _,
            )
            | ("weight", Some("1")) => {}
            _ => {
                return Err(format!(
                    "the option {option} of cache_peer is not supported"
                ));
            }
        }
        Ok(())
    }
}

/// `cache_peer_access NAME allow|deny acl ...`
pub(super) fn cache_peer_access(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let name = line.words.first().map_or("", |word| &word.text).to_owned();
    let words = line.words.get(1..).unwrap_or_default();
    let access = to.access_line(line, words)?;
    let Some(peer) = to.peers.parents.iter_mut().find(|peer| peer.name == name) else {
        return Err(format!("there is no cache_peer {name} before this line"));
    };
    peer.access.extend(access);
    Ok(())
}

/// `always_direct allow|deny acl ...`
pub(super) fn always_direct(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let access = to.access_line(line, &line.words)?;
    to.peers.always_direct.extend(access);
    Ok(())
}

/// `never_direct allow|deny acl ...`
pub(super) fn never_direct(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let access = to.access_line(line, &line.words)?;
    to.peers.never_direct.extend(access);
    Ok(())
}

/// `prefer_direct on|off`
pub(super) fn prefer_direct(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.peers.prefer_direct = is_on(line)?;
    Ok(())
}

/// `nonhierarchical_direct on|off`
pub(super) fn nonhierarchical_direct(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.peers.hierarchical_only = !is_on(line)?;
    Ok(())
}

pub(super) fn is_on(line: &Line) -> Result<bool, String> {
    match texts(line).as_slice() {
        ["on"] => Ok(true),
        ["off"] => Ok(false),
        _ => Err(format!("write {} on, or off", line.name)),
    }
}

impl Peers {
    /// Which way requests go, by where it is always, and never, the straight one.
    fn routes(&self, always: &Allows, never: &Allows) -> Result<Vec<Located<Route>>, ConfigError> {
        let Some(first) = self.parents.first() else {
            return Ok(Vec::new());
        };
        let turns = self.parents.iter().filter(|peer| peer.is_round_robin);
        let turns = turns.count();
        if turns != 0 && turns != self.parents.len() {
            return Err(ConfigError::At {
                place: first.place.clone(),
                message: "either all parents take turns (round-robin) or none".to_owned(),
            });
        }
        let names: Vec<&str> = self.parents.iter().map(|peer| peer.name.as_str()).collect();
        let direct_first = [&["direct"], &*names].concat();
        let parents_first = [&*names, &["direct"]].concat();
        let mut routes = Vec::new();
        let mut route = |allows: &Allows, method: Option<&str>, via: &[&str]| {
            let word = |text: &str| Text(Word(text.to_owned()));
            let when = match allows {
                Allows::Never => return,
                Allows::Always => Vec::new(),
                Allows::Where(name) => vec![word(name)],
            };
            let route = Route {
                via: via.iter().map(|name| word(name)).collect(),
                balance: (turns > 0).then_some(Balance::RoundRobin),
                when,
                method: method.map(word).into_iter().collect(),
                ..Route::default()
            };
            routes.push(Located::new(route, first.place.clone()));
        };
        route(always, None, &["direct"]);
        route(never, None, &names);
        // Of requests that no cache can answer, Squid expects parents to do no better than itself.
        if !self.hierarchical_only {
            route(&Allows::Always, Some("CONNECT"), &direct_first);
        }
        let rest = if self.prefer_direct {
            &direct_first
        } else {
            &parents_first
        };
        route(&Allows::Always, None, rest);
        Ok(routes)
    }
}

impl Translation<'_> {
    /// Parents and routes; without parents everything is direct.
    pub(super) fn cache_peers(&mut self) -> Result<(), ConfigError> {
        let peers = std::mem::take(&mut self.peers);
        let never = self.allows("never_direct", &peers.never_direct);
        if peers.parents.is_empty() {
            return match peers.never_direct.first() {
                Some(line) if never != Allows::Never => Err(ConfigError::At {
                    place: line.place.clone(),
                    message: "never_direct, and there is no cache_peer to go through".to_owned(),
                }),
                _ => Ok(()),
            };
        }
        let always = self.allows("always_direct", &peers.always_direct);
        self.file.route = peers.routes(&always, &never)?;
        for peer in peers.parents {
            let (name, parent) = self.parent(peer);
            self.file.parent.insert(name, parent);
        }
        Ok(())
    }

    /// A parent, and which requests may go through it: without a line, all of them.
    fn parent(&mut self, peer: Peer) -> (String, Located<Parent>) {
        let Peer {
            name,
            mut parent,
            place,
            access,
            ..
        } = peer;
        let list = format!("cache_peer_access-{name}");
        let word = match self.allows(&list, &access) {
            Allows::Where(word) => Some(word),
            Allows::Never if !access.is_empty() => {
                let never = Match {
                    never: true,
                    ..Match::default()
                };
                Some(self.name_match(&list, never, &place))
            }
            Allows::Never | Allows::Always => None,
        };
        parent.when.extend(word.map(Word).map(Text));
        (name, Located::new(parent, place))
    }

    /// What a list of lines allows: the first that fits decides, and where none does, the opposite of the last
    /// (`calcImplicitAnswer`). Without a line, nothing.
    fn allows(&mut self, name: &str, lines: &[AccessLine]) -> Allows {
        let Some(last) = lines.last() else {
            return Allows::Never;
        };
        let mut rest = if last.allow {
            Allows::Never
        } else {
            Allows::Always
        };
        for (index, line) in lines.iter().enumerate().rev() {
            if matches!(line.terms.as_slice(), [all] if all.0.0 == "all") {
                rest = if line.allow {
                    Allows::Always
                } else {
                    Allows::Never
                };
                continue;
            }
            let terms = match line.terms.as_slice() {
                [single] if !single.0.0.starts_with('!') => single.0.0.clone(),
                terms => {
                    let all = Match {
                        when: terms.to_vec(),
                        ..Match::default()
                    };
                    self.name_match(&format!("{name}-{}", index + 1), all, &line.place)
                }
            };
            let word = |text: &str| Text(Word(text.to_owned()));
            rest = match (line.allow, rest) {
                (true, Allows::Always) => Allows::Always,
                (true, Allows::Never) => Allows::Where(terms),
                (false, Allows::Never) => Allows::Never,
                (false, Allows::Always) => Allows::Where(format!("!{terms}")),
                (allow, Allows::Where(rest)) => {
                    let both = if allow {
                        Match {
                            any: vec![word(&terms), word(&rest)],
                            ..Match::default()
                        }
                    } else {
                        Match {
                            when: vec![word(&format!("!{terms}")), word(&rest)],
                            ..Match::default()
                        }
                    };
                    let name = format!("{name}-{}-on", index + 1);
                    Allows::Where(self.name_match(&name, both, &line.place))
                }
            };
        }
        rest
    }

    /// Adds a match; its name.
    fn name_match(&mut self, name: &str, condition: Match, place: &Place) -> String {
        let located = Located::new(condition, place.clone());
        self.file.matches.insert(name.to_owned(), located);
        name.to_owned()
    }
}
