//! What each directive does to the equivalent [`File`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use super::{
    super::{
        file::{
            Action, Auth, Compatibility, File, ForwardedFor, Http, Located, Outgoing, Rule,
            Timeouts,
        },
        values::{Dscp, Item, Network, Span, Text, Word},
    },
    Acls, ConfigError, Line, Reader,
    logs::Logs,
    names,
    peers::Peers,
    pools::Pool,
    words,
};
use crate::policy::Place;

/// What Squid's users see when they are asked for a password.
const DEFAULT_REALM: &str = "Squid proxy-caching web server";

/// A translation at work.
pub(super) struct Translation<'r> {
    pub(super) path: Place,
    reader: Reader<'r>,
    pub(super) file: File,
    pub(super) acls: Acls,
    pub(super) notices: Vec<String>,
    access: Vec<AccessLine>,
    denials: BTreeMap<String, String>,
    auth: AuthParam,
    pub(super) pools: BTreeMap<u32, Pool>,
    pub(super) pool_count: Option<u32>,
    forward_timeout: Option<Duration>,
    pub(super) peers: Peers,
    pub(super) logs: Logs,
    /// `proxy_protocol_access`, and the listeners that it is about, by index.
    pub(super) announcers: Vec<AccessLine>,
    pub(super) announced: Vec<usize>,
}

/// An `http_access` line, or one like it.
#[derive(Clone, Debug)]
pub(super) struct AccessLine {
    pub(super) allow: bool,
    pub(super) terms: Vec<Text<Word>>,
    pub(super) place: Place,
}

/// What is known of Basic authentication.
#[derive(Debug, Default)]
struct AuthParam {
    program: Option<(String, Place)>,
    realm: Option<String>,
    ttl: Option<Duration>,
}

impl<'r> Translation<'r> {
    pub(super) fn new(path: &Path, reader: Reader<'r>) -> Self {
        Self {
            reader,
            path: super::place(&path.into(), 1),
            file: File {
                compatibility: Compatibility::Squid,
                timeouts: default_timeouts(),
                dns: Some(Located::new(
                    names::defaults(),
                    super::place(&path.into(), 1),
                )),
                http: Http {
                    forwarded_for: ForwardedFor::On,
                    ..Http::default()
                },
                ..File::default()
            },
            acls: Acls::default(),
            notices: Vec::new(),
            access: Vec::new(),
            denials: BTreeMap::new(),
            auth: AuthParam::default(),
            pools: BTreeMap::new(),
            pool_count: None,
            forward_timeout: None,
            peers: Peers::default(),
            logs: Logs::default(),
            announcers: Vec::new(),
            announced: Vec::new(),
        }
    }

    /// The whole file, with what Squid does by default.
    pub(super) fn finish(mut self, errors: &mut Vec<ConfigError>) -> File {
        let at = |place: &Place, message: String| ConfigError::At {
            place: place.clone(),
            message,
        };
        let everywhere = || {
            let any = |address: IpAddr| Network::Net(ipnet::IpNet::new_assert(address, 0));
            let v4 = any(Ipv4Addr::UNSPECIFIED.into());
            let v6 = any(Ipv6Addr::UNSPECIFIED.into());
            [v4, v6].map(Item::Value).map(Text).to_vec()
        };
        self.file.allow_client = Some(everywhere());
        self.file.allow_destination = Some(everywhere());
        self.file.allow_port = "1-65535".parse().ok().map(|range| vec![range]);
        if self.file.listen.is_none() {
            errors.push(at(
                &self.path,
                "no http_port; write http_port 3128".to_owned(),
            ));
        }
        self.file.access_log = Some(std::mem::take(&mut self.logs).finish());
        self.rules();
        if let Err(error) = self.auth() {
            errors.push(error);
        }
        if let Err(error) = self.delay_pools() {
            errors.push(error);
        }
        if let Err(error) = self.cache_peers() {
            errors.push(error);
        }
        if let Err(error) = self.announcers() {
            errors.push(error);
        }
        if let Some(limit) = self.forward_timeout {
            let connect = &mut self.file.timeouts.connect.0;
            *connect = limit.min(*connect);
        }
        match std::mem::take(&mut self.acls).into_matches() {
            Ok(matches) => self.file.matches.extend(matches),
            Err((place, message)) => errors.push(at(&place, message)),
        }
        self.file
    }

    /// `http_access` as rules, and what Squid does where none fits.
    fn rules(&mut self) {
        let lines = std::mem::take(&mut self.access);
        // `calcImplicitAnswer`: the opposite of the last line; without a line, nothing is allowed.
        let (allow, place) = lines.last().map_or((false, self.path.clone()), |last| {
            (!last.allow, last.place.clone())
        });
        let terms = Vec::new();
        let implicit = AccessLine {
            allow,
            terms,
            place,
        };
        let last_term = lines.last().and_then(|last| last.terms.last().cloned());
        for (index, line) in lines.iter().chain([&implicit]).enumerate() {
            let mut rule = Rule {
                action: Some(if line.allow {
                    Action::Allow
                } else {
                    Action::Deny
                }),
                when: line.terms.clone(),
                ..Rule::default()
            };
            if index == lines.len() {
                rule.name = Some(Text(Word("no-http_access-matched".to_owned())));
            }
            let deciding = line.terms.last().or(last_term.as_ref());
            if !line.allow
                && let Some(term) = deciding
                && let Some(info) = self.denials.get(term.0.0.trim_start_matches('!'))
            {
                deny_with(&mut rule, info);
            }
            self.file.rule.push(Located::new(rule, line.place.clone()));
        }
    }

    fn auth(&mut self) -> Result<(), ConfigError> {
        let AuthParam {
            program: Some((program, place)),
            realm,
            ttl,
        } = std::mem::take(&mut self.auth)
        else {
            return Ok(());
        };
        let mut words = program.split_whitespace();
        let name = words.next().unwrap_or_default();
        let Some(path) = words.last().filter(|_| name.ends_with("_ncsa_auth")) else {
            return Err(ConfigError::At {
                place,
                message: format!(
                    "{name} is not run: passwords are checked here; write basic_ncsa_auth with the path of an htpasswd file"
                ),
            });
        };
        let auth = Auth {
            htpasswd: path.into(),
            realm: realm.unwrap_or_else(|| DEFAULT_REALM.to_owned()),
            ttl: Span(ttl.unwrap_or(Duration::from_secs(2 * 3600))),
        };
        self.file.auth = Some(Located::new(auth, place));
        Ok(())
    }

    /// The words of an access line; none if Squid would skip it.
    pub(super) fn access_line(
        &mut self,
        line: &Line,
        words: &[super::lexer::Word],
    ) -> Result<Option<AccessLine>, String> {
        let mut skip = |why: &str| {
            self.notices.push(format!(
                "skipped, {why}, as Squid does: {} ({})",
                line.name, line.place
            ));
            Ok(None)
        };
        let allow = match words.first().map(|word| word.text.as_str()) {
            Some("allow") => true,
            Some("deny") => false,
            _ => return skip("it says neither allow nor deny"),
        };
        let names = words.get(1..).unwrap_or_default();
        if names.is_empty() {
            return skip("it names no acl");
        }
        let terms = names.iter().map(|word| self.acls.refer(&word.text));
        Ok(Some(AccessLine {
            allow,
            terms: terms.collect::<Result<_, _>>()?,
            place: line.place.clone(),
        }))
    }
}

/// Squid's times.
fn default_timeouts() -> Timeouts {
    Timeouts {
        head: Span(Duration::from_secs(5 * 60)),
        connect: Span(Duration::from_secs(60)),
        connect_attempt: Span(Duration::from_secs(60)),
        idle: Span(Duration::from_secs(15 * 60)),
        lifetime: Some(Span(Duration::from_secs(24 * 3600))),
        ..Timeouts::default()
    }
}

pub(super) fn texts(line: &Line) -> Vec<&str> {
    line.words.iter().map(|word| word.text.as_str()).collect()
}

pub(super) fn acl(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.acls.define(line, to.reader, &mut to.notices)
}

pub(super) fn http_access(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    if let Some(access) = to.access_line(line, &line.words)? {
        to.access.push(access);
    }
    Ok(())
}

pub(super) fn connect_timeout(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.file.timeouts.connect = Span(words::duration(&texts(line))?);
    Ok(())
}

pub(super) fn forward_timeout(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.forward_timeout = Some(words::duration(&texts(line))?);
    Ok(())
}

pub(super) fn read_timeout(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.file.timeouts.idle = Span(words::duration(&texts(line))?);
    Ok(())
}

/// `client_idle_pconn_timeout time`
pub(super) fn client_idle_pconn_timeout(
    to: &mut Translation<'_>,
    line: &Line,
) -> Result<(), String> {
    to.file.timeouts.keep_alive = Span(words::duration(&texts(line))?);
    Ok(())
}

/// `server_idle_pconn_timeout time`
pub(super) fn server_idle_pconn_timeout(
    to: &mut Translation<'_>,
    line: &Line,
) -> Result<(), String> {
    to.file.timeouts.upstream_keep_alive = Span(words::duration(&texts(line))?);
    Ok(())
}

pub(super) fn request_timeout(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.file.timeouts.head = Span(words::duration(&texts(line))?);
    Ok(())
}

/// `shutdown_lifetime time`
pub(super) fn shutdown_lifetime(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.file.timeouts.drain = Span(words::duration(&texts(line))?);
    Ok(())
}

pub(super) fn client_lifetime(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.file.timeouts.lifetime = Some(Span(words::duration(&texts(line))?));
    Ok(())
}

pub(super) fn client_ip_max_connections(
    to: &mut Translation<'_>,
    line: &Line,
) -> Result<(), String> {
    let text = line.words.first().map_or("", |word| &word.text);
    let limit: i64 = text
        .parse()
        .map_err(|_| format!("'{text}' is not a number"))?;
    to.file.limits.tunnels_per_client = u32::try_from(limit).ok();
    Ok(())
}

/// `auth_param basic ...`
pub(super) fn auth_param(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let words = texts(line);
    let [scheme, parameter, value @ ..] = words.as_slice() else {
        return Err("write auth_param basic PARAMETER VALUE".to_owned());
    };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(format!(
            "authentication by {scheme} is not supported; Basic is"
        ));
    }
    match *parameter {
        "program" => to.auth.program = Some((value.join(" "), line.place.clone())),
        "realm" => to.auth.realm = Some(value.join(" ")),
        "credentialsttl" => to.auth.ttl = Some(words::duration(value)?),
        // Passwords are checked in this process, and names compared as they are.
        "children" | "concurrency" | "utf8" | "key_extras" | "casesensitive" => {}
        other => return Err(format!("auth_param basic has no parameter {other}")),
    }
    Ok(())
}

/// `deny_info PAGE acl ...`
pub(super) fn deny_info(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let words = texts(line);
    let [page, acls @ ..] = words.as_slice() else {
        return Err("write deny_info PAGE ACL".to_owned());
    };
    let mut probe = Rule::default();
    deny_with(&mut probe, page);
    if probe
        .status
        .is_some_and(|status| !(300..600).contains(&status))
    {
        return Err(format!("the status of {page} is not from 300 to 599"));
    }
    for acl in acls {
        to.denials.insert((*acl).to_owned(), (*page).to_owned());
    }
    Ok(())
}

/// `TCP_RESET`, `[NNN:]ERR_PAGE` or `[NNN:]URL`. Of a page only the status counts: a refusal is a line
/// of text.
fn deny_with(rule: &mut Rule, page: &str) {
    if page == "TCP_RESET" {
        rule.reset = true;
        return;
    }
    let (status, page) = match page.split_once(':') {
        Some((status, page)) if status.len() == 3 && status.parse::<u16>().is_ok() => {
            (status.parse().ok(), page)
        }
        _ => (None, page),
    };
    if page.contains("://") {
        rule.redirect = Some(page.to_owned());
        rule.status = status.filter(|status| (300..400).contains(status));
    } else {
        rule.status = status.filter(|status| *status >= 400);
    }
}

/// `tcp_outgoing_address ADDR [acl ...]`; an entry is for targets of its own IP version.
pub(super) fn tcp_outgoing_address(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    outgoing(to, line, "an address", |text| {
        let address = words::address(text).ok_or_else(|| format!("'{text}' is not an address"))?;
        Ok(Outgoing {
            address: Some(Text(address)),
            ..Outgoing::default()
        })
    })
}

/// `tcp_outgoing_mark MARK [acl ...]`
pub(super) fn tcp_outgoing_mark(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    outgoing(to, line, "a mark", |text| {
        Ok(Outgoing {
            set_mark: Some(number(text)?),
            ..Outgoing::default()
        })
    })
}

/// `tcp_outgoing_tos TOS [acl ...]`: the byte whose lowest two bits are not ours.
pub(super) fn tcp_outgoing_tos(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    outgoing(to, line, "a value", |text| {
        let byte =
            u8::try_from(number(text)?).map_err(|_| format!("{text} is more than a byte"))?;
        Ok(Outgoing {
            dscp: Some(Dscp(byte >> 2)),
            ..Outgoing::default()
        })
    })
}

/// A decimal number, or one in hexadecimal digits behind `0x`.
fn number(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("'{text}' is not a number"))
}

/// A setting for the requests that some acls fit.
fn outgoing(
    to: &mut Translation<'_>,
    line: &Line,
    what: &str,
    read: impl FnOnce(&str) -> Result<Outgoing, String>,
) -> Result<(), String> {
    let [value, acls @ ..] = line.words.as_slice() else {
        return Err(format!("{} needs {what}", line.name));
    };
    let mut outgoing = read(&value.text)?;
    outgoing.when = acls
        .iter()
        .map(|acl| to.acls.refer(&acl.text))
        .collect::<Result<_, _>>()?;
    to.file
        .outgoing
        .push(Located::new(outgoing, line.place.clone()));
    Ok(())
}
