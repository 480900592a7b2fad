//! `acl` lines: values of one type under a name, any of which may match (`src/acl/Acl.cc`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    str::FromStr,
};

use super::{
    super::{
        file::{Located, Match},
        load::nearest,
        values::{Chance, Item, Network, Text, Word},
    },
    Line, Reader, lexer, words,
};
use crate::policy::Place;

/// All conditions of a file.
#[derive(Debug, Default)]
pub(super) struct Acls {
    defined: BTreeMap<String, Acl>,
    used: BTreeSet<String>,
}

/// A condition.
#[derive(Debug)]
struct Acl {
    kind: String,
    place: Place,
    condition: Match,
    /// Of `all-of`: the lists of the lines, of which one must hold as a whole.
    lists: Vec<Vec<Text<Word>>>,
}

/// Every type that is known, with why it is not supported, if it is not.
const TYPES: &[(&str, Option<&str>)] = &[
    ("src", None),
    ("dst", None),
    ("localip", None),
    ("dstdomain", None),
    ("dstdom_regex", None),
    ("url_regex", None),
    ("urlpath_regex", None),
    ("port", None),
    ("localport", None),
    ("myportname", None),
    ("proto", None),
    ("method", None),
    ("time", None),
    ("maxconn", None),
    ("random", None),
    ("proxy_auth", None),
    ("proxy_auth_regex", None),
    ("client_connection_mark", None),
    ("clientside_mark", None),
    ("note", None),
    ("has", None),
    ("any-of", None),
    ("all-of", None),
    (
        "srcdomain",
        Some("the names of clients are not looked up; use src"),
    ),
    (
        "srcdom_regex",
        Some("the names of clients are not looked up; use src"),
    ),
    ("external", Some("there are no external helpers")),
    ("ident", Some("there is no ident lookup")),
    ("ident_regex", Some("there is no ident lookup")),
    ("arp", Some("hardware addresses are not looked up; use src")),
    (
        "eui64",
        Some("hardware addresses are not looked up; use src"),
    ),
    ("src_as", Some("AS numbers are not looked up; use src")),
    ("dst_as", Some("AS numbers are not looked up; use dst")),
    ("peername", Some("there are no cache peers")),
    ("peername_regex", Some("there are no cache peers")),
    ("browser", Some("header fields are not conditions")),
    ("referer_regex", Some("header fields are not conditions")),
    ("req_header", Some("header fields are not conditions")),
    ("req_mime_type", Some("header fields are not conditions")),
    ("rep_header", Some("replies are not looked at")),
    ("rep_mime_type", Some("replies are not looked at")),
    ("http_status", Some("replies are not looked at")),
    ("hier_code", Some("replies are not looked at")),
    ("urllogin", Some("URLs with a login are refused")),
    ("user_cert", Some("clients do not use TLS here")),
    ("ca_cert", Some("clients do not use TLS here")),
    ("ext_user", Some("there are no external helpers")),
    ("ext_user_regex", Some("there are no external helpers")),
    ("tag", Some("there are no external helpers")),
    (
        "max_user_ip",
        Some("use client_ip_max_connections or maxconn"),
    ),
    ("annotate_transaction", Some("requests are not annotated")),
    ("annotate_client", Some("requests are not annotated")),
    ("adaptation_service", Some("there is no content adaptation")),
    ("transaction_initiator", Some("every request is a client's")),
    ("snmp_community", Some("there is no SNMP")),
    ("ssl_error", Some("TLS is not looked into")),
    ("server_cert_fingerprint", Some("TLS is not looked into")),
    ("at_step", Some("TLS is not looked into")),
    (
        "ssl::server_name",
        Some("TLS is not looked into; use dstdomain"),
    ),
    (
        "ssl::server_name_regex",
        Some("TLS is not looked into; use dstdom_regex"),
    ),
    ("connections_encrypted", Some("TLS is not looked into")),
];

impl Acls {
    /// Takes an `acl` line.
    pub(super) fn define(
        &mut self,
        line: &Line,
        reader: Reader<'_>,
        notices: &mut Vec<String>,
    ) -> Result<(), String> {
        let [name, kind, values @ ..] = line.words.as_slice() else {
            return Err("write acl NAME TYPE VALUE ...".to_owned());
        };
        let (name, kind) = (name.text.as_str(), kind.text.as_str());
        if name.contains(['!', '"']) {
            return Err(format!("'{name}' cannot be the name of an acl"));
        }
        if name == "manager" && kind == "proto" {
            // As configurations before Squid 3.2 had it.
            notices.push(format!(
                "ignored, manager is known without it: acl (line {})",
                line.place.line
            ));
            return Ok(());
        }
        match TYPES.iter().find(|(known, _)| *known == kind) {
            Some((_, None)) => {}
            Some((_, Some(why))) => return Err(format!("acl type {kind} is not supported: {why}")),
            None => {
                let known = TYPES.iter().map(|(known, _)| *known);
                let hint = nearest(kind, known)
                    .map_or(String::new(), |kind| format!("; did you mean {kind}?"));
                return Err(format!("unknown acl type {kind}{hint}"));
            }
        }
        self.predefine(name);
        let acl = self.defined.entry(name.to_owned()).or_insert_with(|| Acl {
            kind: kind.to_owned(),
            place: line.place.clone(),
            condition: Match::default(),
            lists: Vec::new(),
        });
        if acl.kind != kind {
            let (other, place) = (&acl.kind, &acl.place);
            return Err(format!("acl '{name}' is of type {other} already ({place})"));
        }
        acl.extend(&values_of(values, line, reader)?)
    }

    /// A name in a rule, with its `!`; the condition is one that is needed.
    pub(super) fn refer(&mut self, word: &str) -> Result<Text<Word>, String> {
        let name = word.strip_prefix('!').unwrap_or(word);
        self.predefine(name);
        if !self.defined.contains_key(name) {
            let known = self.defined.keys().map(String::as_str);
            let hint = nearest(name, known)
                .map_or(String::new(), |name| format!("; did you mean {name}?"));
            return Err(format!("there is no acl '{name}'{hint}"));
        }
        self.used.insert(name.to_owned());
        Ok(Text(Word(word.to_owned())))
    }

    /// The networks of a condition on the client's address alone.
    pub(super) fn source(&mut self, name: &str) -> Option<Vec<Text<Item<Network>>>> {
        self.predefine(name);
        let acl = self.defined.get(name).filter(|acl| acl.kind == "src")?;
        Some(acl.condition.client.clone()).filter(|networks| !networks.is_empty())
    }

    /// Whether the condition is one on users.
    pub(super) fn is_about_users(&self, word: &str) -> bool {
        let name = word.strip_prefix('!').unwrap_or(word);
        self.defined
            .get(name)
            .is_some_and(|acl| acl.kind.starts_with("proxy_auth"))
    }

    /// What Squid defines before it reads anything.
    fn predefine(&mut self, name: &str) {
        if self.defined.contains_key(name) {
            return;
        }
        let predefined: (&str, &[&str]) = match name {
            "all" => ("src", &["all"]),
            "localhost" => ("src", &["127.0.0.1/32", "::1"]),
            "to_localhost" => ("dst", &["127.0.0.0/8", "0.0.0.0/32", "::1/128", "::/128"]),
            "to_linklocal" => ("dst", &["169.254.0.0/16", "fe80::/10"]),
            "CONNECT" => ("method", &["CONNECT"]),
            "manager" => ("url_regex", &["+i", "^[^:]+://[^/]+/squid-internal-mgr/"]),
            _ => return,
        };
        let (kind, values) = predefined;
        let mut acl = Acl {
            kind: kind.to_owned(),
            place: Place {
                file: std::path::Path::new("predefined").into(),
                line: 0,
            },
            condition: Match::default(),
            lists: Vec::new(),
        };
        let values: Vec<Value> = values.iter().map(|text| Value::inline(text)).collect();
        // They are known to be right.
        if acl.extend(&values).is_ok() {
            self.defined.insert(name.to_owned(), acl);
        }
    }

    /// The conditions as matches, by name: those that somebody uses.
    pub(super) fn into_matches(
        mut self,
    ) -> Result<BTreeMap<String, Located<Match>>, (Place, String)> {
        let mut matches = BTreeMap::new();
        let mut wanted: Vec<String> = self.used.iter().cloned().collect();
        while let Some(name) = wanted.pop() {
            if matches.contains_key(&name) {
                continue;
            }
            let Some(mut acl) = self.defined.remove(&name) else {
                continue;
            };
            let place = acl.place.clone();
            let members: Vec<String> = acl
                .condition
                .any
                .iter()
                .chain(acl.lists.iter().flatten())
                .map(|word| word.0.0.clone())
                .collect();
            for member in members {
                let member = member.trim_start_matches('!').to_owned();
                let is_known = matches.contains_key(&member) || self.refer(&member).is_ok();
                if !is_known {
                    return Err((place, format!("there is no acl '{member}'")));
                }
                wanted.push(member);
            }
            if let [list] = acl.lists.as_slice() {
                acl.condition.when.clone_from(list);
            } else {
                for (index, list) in acl.lists.into_iter().enumerate() {
                    let part = format!("{name}#{}", index + 1);
                    let condition = Match {
                        when: list,
                        ..Match::default()
                    };
                    acl.condition.any.push(Text(Word(part.clone())));
                    matches.insert(part, Located::new(condition, place.clone()));
                }
            }
            matches.insert(name, Located::new(acl.condition, place));
        }
        Ok(matches)
    }
}

/// A value, or a file with values that need no translation.
#[derive(Clone, Debug)]
struct Value {
    text: String,
    /// The file that it is from.
    file: Option<String>,
}

impl Value {
    fn inline(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            file: None,
        }
    }
}

/// The values of a line, and of the files that it quotes.
fn values_of(words: &[lexer::Word], line: &Line, reader: Reader<'_>) -> Result<Vec<Value>, String> {
    let mut values = Vec::new();
    for word in words {
        if !word.quoted {
            values.push(Value::inline(&word.text));
            continue;
        }
        let directory = line.place.file.parent().unwrap_or(std::path::Path::new(""));
        let text = reader(&directory.join(&word.text)).map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            format!("{error}{}", source.unwrap_or_default())
        })?;
        for item in text.lines() {
            let item = item.split(" #").next().unwrap_or_default().trim();
            if item.is_empty() || item.starts_with('#') {
                continue;
            }
            // One item a line; spaces may separate several.
            for part in item.split_whitespace() {
                values.push(Value {
                    text: part.to_owned(),
                    file: Some(word.text.clone()),
                });
            }
        }
    }
    Ok(values)
}

impl Acl {
    /// Adds the values of a line.
    fn extend(&mut self, values: &[Value]) -> Result<(), String> {
        let condition = &mut self.condition;
        let (options, values) = take_options(&self.kind, values);
        let texts = || values.iter().map(|value| value.text.as_str());
        let needs_values = !matches!(self.kind.as_str(), "note");
        if values.is_empty() && needs_values {
            return Err(format!("an acl of type {} needs a value", self.kind));
        }
        match self.kind.as_str() {
            "src" => extend_networks(
                &mut condition.client,
                (&mut condition.always, &mut condition.never),
                values,
            )?,
            "dst" => {
                condition.no_lookup |= options.no_lookup;
                extend_networks(
                    &mut condition.destination,
                    (&mut condition.always, &mut condition.never),
                    values,
                )?;
            }
            "localip" => extend(&mut condition.local_address, values, words::networks)?,
            "dstdomain" => {
                condition.reverse_lookup = !options.no_lookup;
                extend(&mut condition.host, values, |text| {
                    text.parse().map(|host| vec![host])
                })?;
            }
            "dstdom_regex" => {
                condition.reverse_lookup = !options.no_lookup;
                extend_patterns(&mut condition.host_regex, values)?;
            }
            "url_regex" => extend_patterns(&mut condition.url_regex, values)?,
            "urlpath_regex" => extend_patterns(&mut condition.path_regex, values)?,
            "port" => extend_ports(&mut condition.port, values)?,
            "localport" => extend_ports(&mut condition.local_port, values)?,
            "myportname" => extend_words(&mut condition.listener, values)?,
            "proto" => extend_words(&mut condition.scheme, values)?,
            "method" => extend_words(&mut condition.method, values)?,
            "time" => {
                let words: Vec<&str> = texts().collect();
                condition
                    .time
                    .extend(words::windows(&words)?.into_iter().map(Text));
            }
            "maxconn" => condition.connections_above = Some(number(texts().next())?),
            "random" => {
                let text = texts().next().unwrap_or_default();
                condition.chance = Some(Chance(words::chance(text)?));
            }
            "proxy_auth" => {
                condition.ignore_case |= options.ignore_case;
                for text in texts() {
                    let text = if text == "REQUIRED" { "*" } else { text };
                    condition
                        .user
                        .push(Text(Item::Value(Word(text.to_owned()))));
                }
            }
            "proxy_auth_regex" => extend_patterns(&mut condition.user_regex, values)?,
            "client_connection_mark" | "clientside_mark" => {
                for text in texts() {
                    condition.mark.push(Text(text.parse()?));
                }
            }
            // Nothing annotates a request before it is judged.
            "note" => condition.never = true,
            "has" => match texts().next() {
                Some("request" | "ALE") => {
                    condition.always = true;
                    condition.never = false;
                }
                Some("response") => condition.never = !condition.always,
                other => {
                    let other = other.unwrap_or_default();
                    return Err(format!(
                        "'{other}' is no part of a transaction; they are request, response, ALE"
                    ));
                }
            },
            "any-of" => extend_words(&mut condition.any, values)?,
            "all-of" => {
                let mut list = Vec::new();
                extend_words(&mut list, values)?;
                self.lists.push(list);
            }
            other => return Err(format!("unknown acl type {other}")),
        }
        Ok(())
    }
}

/// Options before the values.
#[derive(Default)]
struct Options {
    no_lookup: bool,
    ignore_case: bool,
}

fn take_options<'a>(kind: &str, mut values: &'a [Value]) -> (Options, &'a [Value]) {
    let mut options = Options::default();
    // Those of patterns may stand between them.
    let has_case = kind == "proxy_auth";
    while let [first, rest @ ..] = values {
        match first.text.as_str() {
            "-n" => options.no_lookup = true,
            "-i" if has_case => options.ignore_case = true,
            "+i" if has_case => options.ignore_case = false,
            "-m" if kind == "note" => {}
            "--" => return (options, rest),
            _ => break,
        }
        values = rest;
    }
    (options, values)
}

/// Adds values: a file whose values are all written as ours are stays a file.
fn extend<T: FromStr<Err: Display> + Display>(
    list: &mut Vec<Text<Item<T>>>,
    values: &[Value],
    translate: impl Fn(&str) -> Result<Vec<T>, String>,
) -> Result<(), String> {
    for part in values.chunk_by(|one, other| one.file.is_some() && one.file == other.file) {
        let file = part.first().and_then(|value| value.file.as_ref());
        if let Some(file) = file
            && part.iter().all(|value| value.text.parse::<T>().is_ok())
        {
            list.push(Text(Item::File(file.into())));
            continue;
        }
        for value in part {
            list.extend(
                translate(&value.text)?
                    .into_iter()
                    .map(Item::Value)
                    .map(Text),
            );
        }
    }
    Ok(())
}

/// The same for networks, of which `all` and `none` are two.
fn extend_networks(
    list: &mut Vec<Text<Item<Network>>>,
    (always, never): (&mut bool, &mut bool),
    values: &[Value],
) -> Result<(), String> {
    *always |= values.iter().any(|value| value.text == "all");
    let is_network = |value: &&Value| value.text != "all" && value.text != "none";
    let values: Vec<Value> = values.iter().filter(is_network).cloned().collect();
    extend(list, &values, words::networks)?;
    *never = !*always && list.is_empty();
    Ok(())
}

fn extend_patterns(
    list: &mut Vec<Text<Item<super::super::values::Pattern>>>,
    values: &[Value],
) -> Result<(), String> {
    let mut ignore_case = false;
    for value in values {
        match value.text.as_str() {
            "-i" => ignore_case = true,
            "+i" => ignore_case = false,
            "-n" | "--" => {}
            text => list.push(Text(Item::Value(
                words::pattern(text, ignore_case).parse()?,
            ))),
        }
    }
    Ok(())
}

fn extend_ports(list: &mut Vec<crate::policy::PortRange>, values: &[Value]) -> Result<(), String> {
    for Value { text, .. } in values {
        // Port 0 is in ranges by habit, and in no request.
        let text = text
            .strip_prefix("0-")
            .map_or(text.clone(), |last| format!("1-{last}"));
        list.push(text.parse().map_err(|error| format!("{error}"))?);
    }
    Ok(())
}

fn extend_words(list: &mut Vec<Text<Word>>, values: &[Value]) -> Result<(), String> {
    for value in values {
        let word = Text(value.text.parse()?);
        if !list.contains(&word) {
            list.push(word);
        }
    }
    Ok(())
}

fn number(text: Option<&str>) -> Result<u32, String> {
    let text = text.unwrap_or_default();
    text.parse()
        .map_err(|_| format!("'{text}' is not a number"))
}
