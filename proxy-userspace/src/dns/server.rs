//! A name server as it is written: `10.0.0.53`, `tls://192.0.2.1#dns.example`. Pure.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig};

/// A server to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// How.
    pub transport: Transport,
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

/// How a server is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Over UDP, and TCP where that is not enough.
    Udp,
    /// Over TCP alone.
    Tcp,
    /// Over TLS (RFC 7858), whose certificate must be for this name.
    Tls(Arc<str>),
    /// Over HTTPS (RFC 8484): the name, and the path.
    Https(Arc<str>, Arc<str>),
}

/// The path of RFC 8484's example, which everybody has.
const DEFAULT_PATH: &str = "/dns-query";

impl Transport {
    /// Whether nobody else can read it.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::Https(..))
    }

    fn default_port(&self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 53,
            Self::Tls(_) => 853,
            Self::Https(..) => 443,
        }
    }
}

impl NameServer {
    pub(super) fn config(&self) -> NameServerConfig {
        let connections = match &self.transport {
            Transport::Udp => vec![ConnectionConfig::udp(), ConnectionConfig::tcp()],
            Transport::Tcp => vec![ConnectionConfig::tcp()],
            Transport::Tls(name) => vec![ConnectionConfig::tls(Arc::clone(name))],
            Transport::Https(name, path) => {
                vec![ConnectionConfig::https(
                    Arc::clone(name),
                    Some(Arc::clone(path)),
                )]
            }
        };
        let mut config = NameServerConfig::new(self.ip, true, connections);
        for connection in &mut config.connections {
            connection.port = self.port;
        }
        config
    }
}

impl FromStr for NameServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a name server; write 10.0.0.53, [2001:db8::53]:5353, tcp://10.0.0.53, \
                 tls://192.0.2.1#dns.example or https://192.0.2.1/dns-query#dns.example"
            )
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("udp", text));
        let (rest, name) = match rest.split_once('#') {
            Some((rest, name)) if !name.is_empty() => (rest, Some(name)),
            Some(_) => return Err(wrong()),
            None => (rest, None),
        };
        let (address, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let (ip, port) = if let Ok(ip) = bare.unwrap_or(address).parse::<IpAddr>() {
            (ip, None)
        } else {
            let address: SocketAddr = address.parse().map_err(|_| wrong())?;
            (address.ip(), Some(address.port()).filter(|port| *port > 0))
        };
        // A certificate can be for an address, too.
        let name: Arc<str> = name.map_or_else(|| ip.to_string().into(), Into::into);
        let transport = match (scheme, path) {
            ("udp", "") => Transport::Udp,
            ("tcp", "") => Transport::Tcp,
            ("tls", "") => Transport::Tls(Arc::clone(&name)),
            ("https", "" | "/") => Transport::Https(Arc::clone(&name), DEFAULT_PATH.into()),
            ("https", path) => Transport::Https(Arc::clone(&name), path.into()),
            _ => return Err(wrong()),
        };
        if text.contains('#') && !transport.is_encrypted() {
            return Err(wrong());
        }
        Ok(Self {
            ip,
            port: port.unwrap_or(transport.default_port()),
            transport,
        })
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = SocketAddr::new(self.ip, self.port);
        match &self.transport {
            Transport::Udp => address.fmt(f),
            Transport::Tcp => write!(f, "tcp://{address}"),
            Transport::Tls(name) => write!(f, "tls://{address}#{name}"),
            Transport::Https(name, path) => write!(f, "https://{address}{path}#{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_they_are_written() {
        for (text, written) in [
            ("10.0.0.53", Some("10.0.0.53:53")),
            ("10.0.0.53:5353", Some("10.0.0.53:5353")),
            ("2001:db8::53", Some("[2001:db8::53]:53")),
            ("[2001:db8::53]", Some("[2001:db8::53]:53")),
            ("udp://[2001:db8::53]:54", Some("[2001:db8::53]:54")),
            ("tcp://10.0.0.53", Some("tcp://10.0.0.53:53")),
            ("tls://192.0.2.1", Some("tls://192.0.2.1:853#192.0.2.1")),
            (
                "tls://192.0.2.1:8853#dns.example",
                Some("tls://192.0.2.1:8853#dns.example"),
            ),
            (
                "https://192.0.2.1#dns.example",
                Some("https://192.0.2.1:443/dns-query#dns.example"),
            ),
            (
                "https://[::1]:8443/x?y#dns.example",
                Some("https://[::1]:8443/x?y#dns.example"),
            ),
            ("dns.example", None),
            ("tls://dns.example", None),
            ("tcp://10.0.0.53/x", None),
            ("10.0.0.53#dns.example", None),
            ("quic://10.0.0.53", None),
            ("tls://192.0.2.1#", None),
            ("", None),
        ] {
            let server = text.parse::<NameServer>();
            let again = server.as_ref().ok().map(ToString::to_string);
            assert_eq!(again.as_deref(), written, "{text}");
            if let (Ok(server), Some(written)) = (server, written) {
                assert_eq!(written.parse(), Ok(server));
            }
        }
    }
}
