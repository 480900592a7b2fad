//! Access logs: which there are, and which of them a transaction is written to.

use std::{
    fs, io,
    net::IpAddr,
    sync::LazyLock,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{ConfigError, Live};
use crate::{
    access::NO_NAME,
    access_log::{Event, Format, Record},
    authority::Authority,
    config::{
        DEFAULT_SQUID_LOG,
        compile::{Compiler, place_of},
        file::{AccessLogs, File, Only},
    },
    http::Head,
    lines::{Destination, Lines, Trouble},
    policy::{self, Facts, ServerName, Term, Test, User},
};

/// An access log.
#[derive(Debug)]
pub struct LogEntry {
    /// Where it goes.
    pub destination: Destination,
    /// What its lines look like.
    pub format: Format,
    /// Whether a tunnel that begins has a line.
    start: bool,
    /// How often one that is open has another.
    interval: Option<Duration>,
    only: Option<Only>,
    terms: Vec<Term>,
    /// Where its lines are written, once it is open.
    lines: Option<Lines>,
}

/// What stands for the host of what was no request.
static NO_HOST: LazyLock<Option<Authority>> = LazyLock::new(|| Authority::parse(b"invalid:1").ok());

impl LogEntry {
    fn new(destination: Destination) -> Self {
        Self {
            destination,
            format: Format::default(),
            start: false,
            interval: None,
            only: None,
            terms: Vec::new(),
            lines: None,
        }
    }

    /// The conditions on what is written to it.
    pub(super) fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether open tunnels have lines in it.
    pub fn has_interval(&self) -> bool {
        self.interval.is_some()
    }

    /// Whether an open tunnel of this age is due for a line that was not at the age before.
    pub fn is_due(&self, before: Duration, age: Duration) -> bool {
        self.interval.is_some_and(|interval| {
            let rounds = |age: Duration| age.as_nanos() / interval.as_nanos().max(1);
            rounds(before) < rounds(age)
        })
    }

    /// Writes the record, if it is meant for this log.
    pub fn write(&self, record: &Record<'_>, live: &Live) {
        let Some(lines) = &self.lines else { return };
        let is_served = record.refusal.is_none() && record.status != 0;
        let is_wanted = match self.only {
            None => true,
            Some(Only::Served) => is_served,
            Some(Only::Refused) => !is_served,
        };
        let is_wanted = is_wanted && (record.event != Event::Start || self.start);
        if is_wanted && (self.terms.is_empty() || holds(&self.terms, record, live)) {
            lines.push(self.format.line(record));
        }
    }
}

/// Whether the conditions hold for what was done.
fn holds(terms: &[Term], record: &Record<'_>, live: &Live) -> bool {
    let Some(target) = record.target.or(NO_HOST.as_ref()) else {
        return false;
    };
    let addresses = record.peer.map(|peer| [peer]);
    let facts = Facts {
        client: record.client.ip(),
        listener: record.listener,
        listener_name: record.listener_name,
        method: record.method,
        scheme: record.url.split_once("://").map(|(scheme, _)| scheme),
        host: target.host(),
        port: record.target.map_or(0, |target| target.port().get()),
        url: &record.url,
        user: record.user.map_or(User::Nobody, User::Known),
        certificate: record.certificate,
        process: record.captured.map(|captured| &*captured.process),
        server_name: record.sni.map_or(ServerName::None, ServerName::Is),
        now: live.moment(),
        addresses: Some(addresses.as_ref().map_or(&[], <[IpAddr; 1]>::as_slice)),
        reverse_name: Some(NO_NAME),
        own_address: false,
        connections: 0,
        mark: 0,
        dice: crate::session::dice(record.id),
    };
    policy::hold(terms, &facts)
}

impl Live {
    /// Opens its logs, but for those that another configuration has open already.
    ///
    /// # Errors
    /// One cannot be opened: why, in words for the operator.
    pub fn open_logs(&mut self, before: Option<&Self>) -> Result<(), String> {
        let mut open: Vec<Lines> = before.map_or_else(Vec::new, |before| {
            before
                .logs
                .iter()
                .filter_map(|log| log.lines.clone())
                .collect()
        });
        for log in &mut self.logs {
            let destination = &log.destination;
            let known = open.iter().find(|lines| lines.destination() == destination);
            let lines = match known {
                Some(lines) => lines.clone(),
                None => open_log(destination).map_err(|error| {
                    format!("cannot open the access log {destination}: {error}")
                })?,
            };
            open.push(lines.clone());
            log.lines = Some(lines);
        }
        Ok(())
    }

    /// Writes the record to the logs that it is meant for.
    pub fn log(&self, record: &Record<'_>) {
        for log in &self.logs {
            log.write(record, self);
        }
    }

    /// The queues of its logs; one that several logs share is there once.
    pub fn log_queues(&self) -> impl Iterator<Item = &Lines> {
        let is_first = |(index, log): &(usize, &LogEntry)| {
            let mut before = self.logs.iter().take(*index);
            before.all(|other| other.destination != log.destination)
        };
        let first = self.logs.iter().enumerate().filter(is_first);
        first.filter_map(|(_, log)| log.lines.as_ref())
    }

    /// Has all logs opened again.
    pub fn reopen_logs(&self) {
        self.log_queues().for_each(Lines::reopen);
    }

    /// Waits until all lines are written, in all for `patience`; the log that takes longer, if one does.
    pub fn flush_logs(&self, patience: Duration) -> Result<(), &Destination> {
        let deadline = Instant::now() + patience;
        for lines in self.log_queues() {
            if !lines.flush(deadline.saturating_duration_since(Instant::now())) {
                return Err(lines.destination());
            }
        }
        Ok(())
    }

    /// The fields of a request that a log has, with their names in lower case; several of one name are one.
    pub fn logged_fields(&self, head: &Head) -> Box<[(Box<str>, Box<str>)]> {
        let mut fields: Vec<(Box<str>, Box<str>)> = Vec::new();
        for name in self.logs.iter().flat_map(|log| log.format.fields()) {
            let values: Vec<_> = head.values(name).map(String::from_utf8_lossy).collect();
            let is_known = fields.iter().any(|(known, _)| **known == *name);
            if !values.is_empty() && !is_known {
                fields.push((name.into(), values.join(", ").into()));
            }
        }
        fields.into()
    }
}

/// Opens a log; where Squid's own place for it does not exist, makes it.
fn open_log(destination: &Destination) -> io::Result<Lines> {
    if let Destination::File(path) = destination
        && path.as_os_str() == DEFAULT_SQUID_LOG
        && let Some(directory) = path.parent()
    {
        // If it fails, opening the log says why.
        let _ = fs::create_dir_all(directory);
    }
    let log = destination.to_string();
    Lines::open(
        "access-log",
        destination.clone(),
        move |trouble| match trouble {
            Trouble::Unwritable(error) => {
                warn!(log, %error, "the access log cannot be written; lines are lost until it can");
            }
            Trouble::Dropped(lines) => {
                warn!(log, lines, "the access log is too slow; lines were dropped");
            }
            Trouble::NotReopened(error) => {
                warn!(log, %error, "the access log cannot be opened again; the old file is kept");
            }
        },
    )
}

/// The logs of a file.
pub(super) fn logs<'a>(
    file: &'a File,
    compiler: &mut Compiler<'a>,
) -> Result<Vec<LogEntry>, ConfigError> {
    let entries = match &file.access_log {
        None => return Ok(vec![LogEntry::new(Destination::Stdout)]),
        Some(AccessLogs::One(destination)) => {
            return Ok(vec![LogEntry::new(destination.0.clone())]);
        }
        Some(AccessLogs::Several(entries)) => entries,
    };
    let compile = |located: &'a crate::config::file::Located<_>| {
        let entry: &'a crate::config::file::AccessLog = &located.value;
        let place = place_of(located);
        let destination = entry.to.as_ref();
        let at = |message: &str| ConfigError::At {
            place: place.clone(),
            message: message.to_owned(),
        };
        if entry
            .interval
            .is_some_and(|interval| interval.0 < Duration::from_secs(1))
        {
            return Err(at("an interval is one second at least"));
        }
        let terms = compiler.entry(&entry.conditions(), &place)?;
        // They are about the moment of the request.
        let is_past = |test: &Test| matches!(test, Test::Mark(_) | Test::Connections(_));
        if terms.iter().any(|term| term.mentions(is_past)) {
            return Err(at(
                "a log cannot ask for `mark` or `connections_above`: they are not known any more when it is written",
            ));
        }
        Ok(LogEntry {
            format: entry
                .format
                .as_ref()
                .map(|format| format.0.clone())
                .unwrap_or_default(),
            start: entry.start,
            interval: entry.interval.map(|interval| interval.0),
            only: entry.only,
            terms,
            ..LogEntry::new(destination.map_or(Destination::Stdout, |to| to.0.clone()))
        })
    };
    entries.iter().map(compile).collect()
}
