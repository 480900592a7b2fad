//! Where lines can go.

use std::{
    fmt, fs,
    io::{self, BufWriter, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    str::FromStr,
};

use super::syslog::{Priority, Syslog};
use crate::dns;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Standard output, written `-`.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to. It is made readable for owner and group only.
    File(PathBuf),
    /// The system's log, as messages of this priority (RFC 5424, over `/dev/log`).
    Syslog(Priority),
    /// A server by host and port that gets a datagram for each line.
    Udp(String),
}

/// What takes lines.
pub(super) trait Output: Send {
    /// Takes a line, which may wait for the next [`Output::flush`].
    fn put(&mut self, line: &str) -> io::Result<()>;

    /// Sends what waits.
    fn flush(&mut self) -> io::Result<()>;
}

impl<W: Write + Send> Output for BufWriter<W> {
    fn put(&mut self, line: &str) -> io::Result<()> {
        writeln!(self, "{line}")
    }

    fn flush(&mut self) -> io::Result<()> {
        Write::flush(self)
    }
}

impl Output for UdpSocket {
    fn put(&mut self, line: &str) -> io::Result<()> {
        match self.send(line.as_bytes()) {
            // That is about a datagram before: nobody listened for it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.send(line.as_bytes()).map(drop)
            }
            sent => sent.map(drop),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Destination {
    pub(super) fn open(&self) -> io::Result<Box<dyn Output>> {
        use std::os::unix::fs::OpenOptionsExt as _;

        Ok(match self {
            Self::Stdout => Box::new(BufWriter::new(io::stdout())),
            Self::Stderr => Box::new(BufWriter::new(io::stderr())),
            Self::File(path) => Box::new(BufWriter::new(
                fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o640)
                    .open(path)?,
            )),
            Self::Syslog(priority) => Box::new(Syslog::open(*priority)?),
            Self::Udp(server) => Box::new(connect(server)?),
        })
    }
}

/// A socket whose datagrams go to the server.
fn connect(server: &str) -> io::Result<UdpSocket> {
    let mut failed = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses(server)? {
        let from: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(from)?;
        match socket.connect(address) {
            Ok(()) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The addresses of `host:port`.
fn addresses(server: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = server.parse() {
        return Ok(vec![address]);
    }
    let (host, port) = server.rsplit_once(':').unwrap_or((server, ""));
    let port = port.parse().map_err(io::Error::other)?;
    let found = dns::lookup_blocking(host)?.into_iter();
    Ok(found.map(|address| (address, port).into()).collect())
}

/// `-`, `syslog`, `syslog:facility.severity`, `udp://host:port`, or a path, which is not empty.
impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(server) = text.strip_prefix("udp://") {
            let port = server.rsplit_once(':').map(|(_, port)| port);
            if port.is_none_or(|port| port.parse::<u16>().is_err()) {
                return Err(format!("'{text}' has no port; write udp://192.0.2.1:514"));
            }
            return Ok(Self::Udp(server.to_owned()));
        }
        match text {
            "" => Err("the path is empty; write a path, or - for standard output".to_owned()),
            "-" => Ok(Self::Stdout),
            "syslog" => Ok(Self::Syslog(Priority::default())),
            _ => match text.strip_prefix("syslog:") {
                Some(priority) => priority.parse().map(Self::Syslog),
                None => Ok(Self::File(text.into())),
            },
        }
    }
}

/// As it is written in a configuration.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::Stderr => f.write_str("/dev/stderr"),
            Self::File(path) => path.display().fmt(f),
            Self::Syslog(priority) => write!(f, "syslog:{priority}"),
            Self::Udp(server) => write!(f, "udp://{server}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_destination_reads_back() {
        for text in ["-", "/var/log/x", "syslog:local4.info", "udp://[::1]:514"] {
            let destination: Destination = text.parse().unwrap();
            assert_eq!(destination.to_string(), text);
        }
        for (text, part) in [
            ("", "is empty"),
            ("udp://host", "no port"),
            ("syslog:local9.info", "no facility 'local9'"),
            ("syslog:daemon.loud", "no severity 'loud'"),
        ] {
            let error = text.parse::<Destination>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_server_is_known_by_name_as_well() {
        let found = addresses("localhost:514").unwrap();
        assert!(
            found.contains(&"127.0.0.1:514".parse().unwrap()),
            "{found:?}"
        );
        assert!(addresses("a..b:514").is_err());
        assert_eq!(
            addresses("[::1]:514").unwrap(),
            ["[::1]:514".parse().unwrap()]
        );
    }

    #[test]
    fn a_datagram_has_a_line() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let destination = Destination::Udp(server.local_addr().unwrap().to_string());
        let mut output = destination.open().unwrap();
        output.put("one").unwrap();
        output.put("two").unwrap();
        for expected in ["one", "two"] {
            let mut buffer = [0; 16];
            let length = server.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
    }
}
