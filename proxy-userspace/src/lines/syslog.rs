//! The system's log: RFC 5424 over its local socket.

use std::{fmt, fs, io, os::unix::net::UnixDatagram, process, str::FromStr};

use jiff::Timestamp;

use super::destination::Output;

/// Where the system's log listens.
const SOCKET: &str = "/dev/log";

/// The facilities by their codes (RFC 5424 section 6.2.1); those between have no usual name.
const FACILITIES: [(&str, u8); 20] = [
    ("kern", 0),
    ("user", 1),
    ("mail", 2),
    ("daemon", 3),
    ("auth", 4),
    ("syslog", 5),
    ("lpr", 6),
    ("news", 7),
    ("uucp", 8),
    ("cron", 9),
    ("authpriv", 10),
    ("ftp", 11),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

/// The severities, from 0 on.
const SEVERITIES: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug",
];

/// A facility and a severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Priority(u8);

/// `local4.info`, Squid's default for the same.
impl Default for Priority {
    fn default() -> Self {
        Self(20 * 8 + 6)
    }
}

/// `facility.severity`, `facility|severity` as Squid has it too, or a facility.
impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (facility, severity) = text.split_once(['.', '|']).unwrap_or((text, "info"));
        let known = FACILITIES.iter().find(|(name, _)| *name == facility);
        let (_, facility) = known.ok_or_else(|| {
            format!("there is no facility '{facility}'; write daemon, user or local0 to local7")
        })?;
        let same = |name: &&str| *name == severity || name.strip_suffix("ing") == Some(severity);
        let severity = SEVERITIES.iter().position(same);
        let severity = severity.and_then(|index| u8::try_from(index).ok());
        severity
            .map(|severity| Self(facility * 8 + severity))
            .ok_or_else(|| {
                let wrong = text.split_once(['.', '|']).map_or("", |(_, wrong)| wrong);
                format!(
                    "there is no severity '{wrong}'; write {}",
                    SEVERITIES.join(", ")
                )
            })
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facility = FACILITIES.iter().find(|(_, code)| *code == self.0 / 8);
        let severity = SEVERITIES.get(usize::from(self.0 % 8));
        write!(
            f,
            "{}.{}",
            facility.map_or("daemon", |(name, _)| *name),
            severity.unwrap_or(&"info")
        )
    }
}

/// A connection to the system's log.
pub(super) struct Syslog {
    socket: UnixDatagram,
    priority: Priority,
    host: String,
}

impl Syslog {
    pub(super) fn open(priority: Priority) -> io::Result<Self> {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(Self {
            socket: connect()?,
            priority,
            host: host.trim().to_owned(),
        })
    }

    /// A message (RFC 5424 section 6).
    fn message(&self, line: &str, time: Timestamp) -> String {
        let Self { priority, host, .. } = self;
        let host = if host.is_empty() { "-" } else { host };
        format!(
            "<{}>1 {time:.3} {host} underpass {} access - {line}",
            priority.0,
            process::id()
        )
    }
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SOCKET).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("nobody takes messages at {SOCKET}: {error}"),
        )
    })?;
    Ok(socket)
}

impl Output for Syslog {
    fn put(&mut self, line: &str) -> io::Result<()> {
        let message = self.message(line, Timestamp::now());
        if self.socket.send(message.as_bytes()).is_ok() {
            return Ok(());
        }
        // The log may have been started again, with a new socket.
        self.socket = connect()?;
        self.socket.send(message.as_bytes()).map(drop)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_of_rfc_5424() {
        let (socket, _) = UnixDatagram::pair().unwrap();
        let syslog = Syslog {
            socket,
            priority: "daemon.warn".parse().unwrap(),
            host: "node1".to_owned(),
        };
        let time = Timestamp::from_millisecond(1_544_160_065_248).unwrap();
        assert_eq!(
            syslog.message("a line", time),
            format!(
                "<28>1 2018-12-07T05:21:05.248Z node1 underpass {} access - a line",
                process::id()
            )
        );
    }
}
