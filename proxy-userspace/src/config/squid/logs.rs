//! `access_log` and `logformat`.

use std::collections::BTreeMap;

use super::{
    super::{
        file::{AccessLog, AccessLogs, Located},
        values::{Text, Word},
    },
    Line,
    lexer::split_name,
    settings::Translation,
};
use crate::{access_log::Format, lines::Destination};

/// Where Squid logs unless told otherwise.
pub const DEFAULT_ACCESS_LOG: &str = "/var/log/squid/access.log";

/// What is said of logs.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// `None` if nothing is said.
    said: Option<Vec<Located<AccessLog>>>,
    /// `logformat`, by name.
    formats: BTreeMap<String, String>,
    /// What is not logged by the logs to come: the conditions of `access_log none`.
    unlogged: Vec<Text<Word>>,
    /// Whether nothing is logged by the logs to come.
    is_over: bool,
}

impl Logs {
    /// The same as in our own format.
    pub(super) fn finish(self) -> AccessLogs {
        let Some(mut logs) = self.said else {
            return AccessLogs::One(Text(Destination::File(DEFAULT_ACCESS_LOG.into())));
        };
        if let [only] = logs.as_mut_slice() {
            let AccessLog {
                to, format, when, ..
            } = &mut only.value;
            if format.is_none()
                && when.is_empty()
                && let Some(to) = to.take()
            {
                return AccessLogs::One(to);
            }
        }
        AccessLogs::Several(logs)
    }

    /// A format that was defined, or that Squid has.
    fn format(&self, name: &str) -> Option<Result<Format, String>> {
        if let Some(text) = self.formats.get(name) {
            let named = |error| format!("the log format {name} is not supported: {error}");
            if !text.contains('%') {
                return Some(Err(named("it has no code".to_owned())));
            }
            return Some(text.parse().map_err(named).map(Format::Custom));
        }
        let is_squids = !["json", "envoy"].contains(&name);
        Format::named(name).filter(|_| is_squids).map(Ok)
    }
}

/// `access_log module:place [option=value ...] [acl ...]`, and as it was before options: `place [logformat [acl ...]]`.
pub(super) fn access_log(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let [target, rest @ ..] = line.words.as_slice() else {
        return Err("access_log needs a target".to_owned());
    };
    let mut format = None;
    let mut acls = Vec::new();
    for word in rest {
        let word = word.text.as_str();
        match word.split_once('=') {
            Some(("logformat", name)) => {
                let found = to.logs.format(name);
                format = Some(found.ok_or_else(|| format!("there is no log format {name}"))??);
            }
            Some(("buffer-size" | "on-error" | "rotate", _)) => {}
            Some((option, _)) => return Err(format!("access_log has no option {option}")),
            None => match to.logs.format(word) {
                Some(found) if acls.is_empty() && format.is_none() => format = Some(found?),
                _ => acls.push(to.acls.refer(word)?),
            },
        }
    }
    let is_all = |word: &Text<Word>| word.0.0 == "all";
    acls.retain(|word| !is_all(word));
    let logs = &mut to.logs;
    let list = logs.said.get_or_insert_default();
    if target.text == "none" {
        match acls.as_slice() {
            [] => logs.is_over = true,
            [only] => logs.unlogged.push(negated(only)),
            _ => {
                return Err(
                    "access_log none with several acls is not supported; put them into one of type all-of"
                        .to_owned(),
                );
            }
        }
        return Ok(());
    }
    let destination = destination(&target.text)?;
    if logs.is_over {
        return Ok(());
    }
    let log = AccessLog {
        to: Some(Text(destination)),
        format: format.filter(|format| *format != Format::Squid).map(Text),
        when: logs.unlogged.iter().cloned().chain(acls).collect(),
        ..AccessLog::default()
    };
    list.push(Located::new(log, line.place.clone()));
    Ok(())
}

fn negated(word: &Text<Word>) -> Text<Word> {
    let word = &word.0.0;
    let other = word
        .strip_prefix('!')
        .map_or_else(|| format!("!{word}"), str::to_owned);
    Text(Word(other))
}

fn destination(target: &str) -> Result<Destination, String> {
    match target.split_once(':') {
        Some(("stdio" | "daemon", "/dev/stdout")) => Ok(Destination::Stdout),
        Some(("stdio" | "daemon", "/dev/stderr")) => Ok(Destination::Stderr),
        Some(("stdio" | "daemon", path)) if !path.is_empty() => Ok(Destination::File(path.into())),
        Some(("syslog" | "udp", _)) => target.parse(),
        _ if target == "syslog" => target.parse(),
        _ if target.starts_with('/') => Ok(Destination::File(target.into())),
        _ => Err(format!(
            "access_log {target} is not supported; write stdio:/path, syslog:facility.severity, udp://host:port, or none"
        )),
    }
}

/// `logformat name specification`, quoted or to the end of the line. One that nobody uses does no harm.
pub(super) fn logformat(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let Some((name, text)) = split_name(&line.rest) else {
        return Err("logformat needs a name".to_owned());
    };
    if matches!(to.logs.format(name), Some(Ok(_))) && !to.logs.formats.contains_key(name) {
        return Err(format!("the format {name} cannot be redefined"));
    }
    let text = text.trim();
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    let text = inner.filter(|inner| !inner.contains('"')).unwrap_or(text);
    if text.is_empty() {
        return Err(format!("the format {name} is empty"));
    }
    to.logs.formats.insert(name.to_owned(), text.to_owned());
    Ok(())
}
