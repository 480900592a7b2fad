//! Turns what is written into what decides: names are looked up, lists are read, and every
//! contradiction is found here, before anything runs.

mod lists;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ConfigError,
    file::{self, Conditions, File, Located, Match},
    load::nearest,
    values::{Text, Word},
};
use crate::{
    http::Status,
    policy::{Acl, Action, Deny, Guard, Place, PortSet, Rule, Term, Test, Users},
};

/// Compiles the parts of one file.
pub(super) struct Compiler<'a> {
    file: &'a File,
    matches: HashMap<&'a str, Arc<Acl>>,
    /// Names that are being looked up, to find circles.
    pending: Vec<&'a str>,
    /// Lists that were read.
    sources: Vec<PathBuf>,
}

/// Switches of a match that change what its conditions mean.
#[derive(Clone, Copy, Default)]
struct Switches {
    reverse: bool,
    no_lookup: bool,
    ignore_case: bool,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            file,
            matches: HashMap::new(),
            pending: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// The files that were read on the way.
    pub(super) fn into_sources(self) -> Vec<PathBuf> {
        self.sources
    }

    /// What is open without a rule.
    pub(super) fn guard(&mut self, path: &Path) -> Result<Guard, ConfigError> {
        let place = Place {
            file: path.into(),
            line: 1,
        };
        let default = Guard::default();
        let file = self.file;
        let ports = |default| {
            let given = file.allow_port.as_ref();
            given.map_or(default, |ports| ports.iter().copied().collect())
        };
        Ok(Guard {
            clients: match &file.allow_client {
                Some(list) => self.networks(list, &place)?,
                None => default.clients,
            },
            destinations: match &file.allow_destination {
                Some(list) => self.networks(list, &place)?,
                None => default.destinations,
            },
            ports: ports(default.ports),
            plain_ports: ports(default.plain_ports),
        })
    }

    /// All matches, also those that nobody refers to: they may be wrong too.
    pub(super) fn all_matches(&mut self) -> Result<(), ConfigError> {
        for (name, located) in &self.file.matches {
            let place = place_of(located);
            self.look_up(name, &place)?;
        }
        Ok(())
    }

    /// The rules.
    pub(super) fn rules(&mut self) -> Result<Vec<Rule>, ConfigError> {
        let mut names = BTreeMap::new();
        let mut rules = Vec::new();
        for located in &self.file.rule {
            let place = place_of(located);
            let rule = self.rule(&located.value, &place)?;
            if located.value.name.is_some()
                && let Some(other) = names.insert(rule.name.clone(), place.clone())
            {
                let name = &rule.name;
                let message = format!("the rule '{name}' is defined in {other} already");
                return Err(ConfigError::At { place, message });
            }
            rules.push(rule);
        }
        Ok(rules)
    }

    fn rule(&mut self, rule: &'a file::Rule, place: &Place) -> Result<Rule, ConfigError> {
        let wrong = |message: &str| ConfigError::At {
            place: place.clone(),
            message: message.to_owned(),
        };
        let Some(action) = rule.action else {
            return Err(wrong(
                "the rule has no action; write action = \"allow\", \"deny\" or \"report\"",
            ));
        };
        let is_about_denial = rule.status.is_some()
            || rule.message.is_some()
            || rule.redirect.is_some()
            || rule.reset;
        let is_about_tunnels = rule.engine.is_some() || rule.limits.is_some();
        if is_about_denial && action != file::Action::Deny {
            return Err(wrong(
                "status, message, redirect and reset belong to action = \"deny\"",
            ));
        }
        if is_about_tunnels && action != file::Action::Allow {
            return Err(wrong("engine and limits belong to action = \"allow\""));
        }
        let action = match action {
            file::Action::Allow => Action::Allow,
            file::Action::Report => Action::Report,
            file::Action::Deny => Action::Deny(deny(rule).map_err(|message| wrong(&message))?),
        };
        let mut terms = self.terms(&rule.conditions(), Switches::default(), place)?;
        if let Some(not) = &rule.not {
            terms.extend(self.negated(not, place)?);
        }
        let name = match &rule.name {
            Some(name) => name.0.to_string(),
            None => format!("line-{}", place.line),
        };
        Ok(Rule::new(name, place.clone(), terms, action))
    }

    /// The terms of something that only has conditions.
    pub(super) fn entry(
        &mut self,
        conditions: &Conditions<'a>,
        place: &Place,
    ) -> Result<Vec<Term>, ConfigError> {
        let terms = self.terms(conditions, Switches::default(), place)?;
        let is_on_sni = |term: &Term| term.mentions(|test| matches!(test, Test::ServerName(_)));
        if terms.iter().any(is_on_sni) {
            return Err(ConfigError::At {
                place: place.clone(),
                message: "only rules can ask for `sni`; it is not known yet where this is decided"
                    .to_owned(),
            });
        }
        Ok(terms)
    }

    /// Names of matches that must hold.
    pub(super) fn references(
        &mut self,
        names: &[Text<Word>],
        place: &Place,
    ) -> Result<Vec<Term>, ConfigError> {
        let terms = names.iter().map(|name| self.reference(name, place));
        terms.collect()
    }

    /// A match by its name.
    fn look_up(&mut self, name: &str, place: &Place) -> Result<Arc<Acl>, ConfigError> {
        if let Some(acl) = self.matches.get(name) {
            return Ok(Arc::clone(acl));
        }
        let file = self.file;
        let Some((name, located)) = file.matches.get_key_value(name) else {
            let known = file.matches.keys().map(String::as_str);
            let hint = nearest(name, known)
                .map_or(String::new(), |name| format!("; did you mean '{name}'?"));
            return Err(ConfigError::At {
                place: place.clone(),
                message: format!("there is no match '{name}'{hint}"),
            });
        };
        if self.pending.contains(&name.as_str()) {
            return Err(ConfigError::At {
                place: place_of(located),
                message: format!("the match '{name}' refers to itself"),
            });
        }
        self.pending.push(name);
        let acl = self.compile_match(name, &located.value, &place_of(located))?;
        self.pending.pop();
        self.matches.insert(name, Arc::clone(&acl));
        Ok(acl)
    }

    fn compile_match(
        &mut self,
        name: &str,
        entry: &'a Match,
        place: &Place,
    ) -> Result<Arc<Acl>, ConfigError> {
        let named = |test| {
            Arc::new(Acl {
                name: name.to_owned(),
                test,
            })
        };
        if entry.always {
            return Ok(named(Test::Always));
        }
        if entry.never {
            return Ok(named(Test::Never));
        }
        let mut terms = self.match_terms(entry, place)?;
        if let Some(not) = &entry.not {
            terms.extend(self.negated(not, place)?);
        }
        if terms.is_empty() {
            return Err(ConfigError::At {
                place: place.clone(),
                message: format!(
                    "the match '{name}' has no condition; write always = true if it is to hold always"
                ),
            });
        }
        // A single condition is the match.
        let test = match terms.pop() {
            Some(Term {
                negated: false,
                acl,
            }) if terms.is_empty() => match Arc::try_unwrap(acl) {
                Ok(acl) => acl.test,
                Err(shared) => Test::AnyOf(vec![vec![Term {
                    negated: false,
                    acl: shared,
                }]]),
            },
            Some(term) => {
                terms.push(term);
                Test::AnyOf(vec![terms])
            }
            None => Test::Never,
        };
        Ok(named(test))
    }

    /// The terms of a match but for those under `not`.
    fn match_terms(&mut self, entry: &'a Match, place: &Place) -> Result<Vec<Term>, ConfigError> {
        let switches = Switches {
            reverse: entry.reverse_lookup,
            no_lookup: entry.no_lookup,
            ignore_case: entry.ignore_case,
        };
        let mut terms = Vec::new();
        if !entry.any.is_empty() {
            let lists = entry
                .any
                .iter()
                .map(|name| Ok(vec![self.reference(name, place)?]));
            let lists = lists.collect::<Result<Vec<_>, ConfigError>>()?;
            terms.push(term("any", Test::AnyOf(lists)));
        }
        if !entry.local_address.is_empty() {
            let networks = self.networks(&entry.local_address, place)?;
            terms.push(term("local_address", Test::ListenerAddress(networks)));
        }
        if !entry.local_port.is_empty() {
            let ports = entry.local_port.iter().copied().collect();
            terms.push(term("local_port", Test::ListenerPort(ports)));
        }
        terms.extend(self.terms(&entry.conditions(), switches, place)?);
        Ok(terms)
    }

    /// The terms under `not`: each must not hold.
    fn negated(&mut self, not: &'a Match, place: &Place) -> Result<Vec<Term>, ConfigError> {
        if not.not.is_some() {
            return Err(ConfigError::At {
                place: place.clone(),
                message: "`not` within `not`: write the conditions without either".to_owned(),
            });
        }
        let mut terms = self.match_terms(not, place)?;
        for term in &mut terms {
            term.negated = !term.negated;
        }
        Ok(terms)
    }

    /// A name in `when` or `any`.
    fn reference(&mut self, name: &Text<Word>, place: &Place) -> Result<Term, ConfigError> {
        let name = name.0.0.as_str();
        let (negated, name) = match name.strip_prefix('!') {
            Some(name) => (true, name),
            None => (false, name),
        };
        let acl = self.look_up(name, place)?;
        Ok(Term { negated, acl })
    }

    /// Terms in the order in which they are asked: what costs nothing first.
    fn terms(
        &mut self,
        conditions: &Conditions<'a>,
        switches: Switches,
        place: &Place,
    ) -> Result<Vec<Term>, ConfigError> {
        let mut terms = Vec::new();
        for name in conditions.when {
            terms.push(self.reference(name, place)?);
        }
        let mut add = |name: &str, test: Test| terms.push(term(name, test));
        if !conditions.client.is_empty() {
            add(
                "client",
                Test::Client(self.networks(conditions.client, place)?),
            );
        }
        if !conditions.listener.is_empty() {
            add("listener", self.listeners(conditions.listener, place)?);
        }
        if !conditions.method.is_empty() {
            let methods = conditions.method.iter().map(|method| method.0.to_string());
            add("method", Test::Method(methods.collect()));
        }
        if !conditions.scheme.is_empty() {
            let schemes = conditions
                .scheme
                .iter()
                .map(|scheme| scheme.0.0.to_lowercase());
            add("scheme", Test::Scheme(schemes.collect()));
        }
        if !conditions.port.is_empty() {
            add(
                "port",
                Test::Port(conditions.port.iter().copied().collect::<PortSet>()),
            );
        }
        if !conditions.time.is_empty() {
            let windows = conditions.time.iter().map(|window| window.0);
            add("time", Test::Time(windows.collect()));
        }
        if let Some(limit) = conditions.connections_above {
            add("connections_above", Test::Connections(limit));
        }
        if let Some(chance) = conditions.chance {
            add("chance", Test::Random(share(chance.0)));
        }
        if !conditions.mark.is_empty() {
            let marks = conditions.mark.iter().map(|mark| mark.0.0);
            add("mark", Test::Mark(marks.collect()));
        }
        let reverse = switches.reverse;
        if !conditions.host.is_empty() {
            let names = self.hosts(conditions.host, place)?;
            add("host", Test::Host { names, reverse });
        }
        if !conditions.host_regex.is_empty() {
            let patterns = self.patterns(conditions.host_regex, place)?;
            add("host_regex", Test::HostPattern { patterns, reverse });
        }
        if !conditions.sni.is_empty() {
            add("sni", Test::ServerName(self.hosts(conditions.sni, place)?));
        }
        if !conditions.url_regex.is_empty() {
            add(
                "url_regex",
                Test::UrlPattern(self.patterns(conditions.url_regex, place)?),
            );
        }
        if !conditions.path_regex.is_empty() {
            add(
                "path_regex",
                Test::PathPattern(self.patterns(conditions.path_regex, place)?),
            );
        }
        self.identity_terms(conditions, switches, place, &mut terms)?;
        let mut add = |name: &str, test: Test| terms.push(term(name, test));
        if !conditions.destination.is_empty() {
            let networks = self.networks(conditions.destination, place)?;
            let resolve = !switches.no_lookup;
            add("destination", Test::Destination { networks, resolve });
        }
        Ok(terms)
    }

    /// Who the client is: by certificate, or by password.
    fn identity_terms(
        &mut self,
        conditions: &Conditions<'a>,
        switches: Switches,
        place: &Place,
        terms: &mut Vec<Term>,
    ) -> Result<(), ConfigError> {
        let mut add = |name: &str, test: Test| terms.push(term(name, test));
        if !conditions.certificate.is_empty() {
            let names = self.users(conditions.certificate, false, place)?;
            add("certificate", Test::Certificate(names));
            if !self
                .file
                .listen
                .iter()
                .flatten()
                .any(file::Listen::asks_for_certificates)
            {
                return Err(ConfigError::At {
                    place: place.clone(),
                    message: "there is a condition on certificates, and no listener asks for one; add tls with client_ca"
                        .to_owned(),
                });
            }
        }
        let words = |words: &[Text<Word>]| words.iter().map(|word| word.0.0.clone()).collect();
        if !conditions.uid.is_empty() {
            add("uid", Test::Uid(conditions.uid.to_vec()));
        }
        if !conditions.cgroup.is_empty() {
            add("cgroup", Test::Cgroup(words(conditions.cgroup)));
        }
        if !conditions.process.is_empty() {
            add("process", Test::Process(words(conditions.process)));
        }
        let is_about_processes = !conditions.uid.is_empty()
            || !conditions.cgroup.is_empty()
            || !conditions.process.is_empty();
        if is_about_processes && self.file.capture.is_none() {
            return Err(ConfigError::At {
                place: place.clone(),
                message: "there is a condition on processes (uid, cgroup, process), and nothing is captured; add [capture]"
                    .to_owned(),
            });
        }
        if !conditions.user.is_empty() {
            let users = self.users(conditions.user, switches.ignore_case, place)?;
            add("user", Test::User(users));
        }
        if !conditions.user_regex.is_empty() {
            let patterns = Some(self.patterns(conditions.user_regex, place)?);
            add(
                "user_regex",
                Test::User(Users {
                    patterns,
                    ..Users::default()
                }),
            );
        }
        if self.file.auth.is_none()
            && (!conditions.user.is_empty() || !conditions.user_regex.is_empty())
        {
            return Err(ConfigError::At {
                place: place.clone(),
                message: "there is a condition on users, and nothing to know them by; add [auth] with htpasswd = \"FILE\"".to_owned(),
            });
        }
        Ok(())
    }

    /// Listeners by name; or by address, for those without one.
    fn listeners(&self, names: &[Text<Word>], place: &Place) -> Result<Test, ConfigError> {
        let known: Vec<String> = self
            .file
            .listen
            .iter()
            .flatten()
            .map(listener_name)
            .chain(
                self.file
                    .capture
                    .iter()
                    .map(|_| file::Capture::LISTENER.to_owned()),
            )
            .collect();
        let names: Vec<String> = names.iter().map(|name| name.0.to_string()).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
            return Err(ConfigError::At {
                place: place.clone(),
                message: format!(
                    "there is no listener '{unknown}'; listen has {}",
                    known.join(", ")
                ),
            });
        }
        Ok(Test::Listener(names))
    }
}

/// What rules call a listener.
pub(super) fn listener_name(listen: &file::Listen) -> String {
    match listen.name() {
        "" => listen.address().to_string(),
        name => name.to_owned(),
    }
}

fn deny(rule: &file::Rule) -> Result<Deny, String> {
    let checked = |code| Status::refusal(code).ok_or("the status of a denial is from 300 to 599");
    let status = rule.status.map(checked).transpose()?;
    if status == Some(Status::PROXY_AUTHENTICATION_REQUIRED) {
        return Err(
            "a 407 is sent where a condition on users needs it; choose another status".to_owned(),
        );
    }
    if status.is_some_and(|status| status.is_redirection() != rule.redirect.is_some()) {
        return Err("a status below 400 and `redirect` belong together".to_owned());
    }
    Ok(Deny {
        status,
        message: rule.message.clone(),
        location: rule.redirect.clone(),
        reset: rule.reset,
    })
}

fn term(name: &str, test: Test) -> Term {
    Term {
        negated: false,
        acl: Arc::new(Acl {
            name: name.to_owned(),
            test,
        }),
    }
}

/// A chance of so many in 2³².
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 0 to 2³², and beyond that it saturates"
)]
fn share(chance: f64) -> u32 {
    (chance * 4_294_967_296.0) as u32
}

/// Where an entry is written; whoever reads a file says so.
pub(super) fn place_of<T>(located: &Located<T>) -> Place {
    located.place.clone().unwrap_or_else(|| Place {
        file: Path::new("").into(),
        line: 0,
    })
}
