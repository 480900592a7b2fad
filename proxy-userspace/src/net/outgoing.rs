//! How a connection of ours goes out: from where, and marked as what.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};

use super::announce::ProxyProtocol;

/// What is set on a socket that connects; what is absent is left to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// The address to connect from.
    pub source: Option<IpAddr>,
    /// The interface to leave by (`SO_BINDTODEVICE`).
    pub interface: Option<Box<str>>,
    /// The firewall's mark (`SO_MARK`); takes `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
    /// The class of service (RFC 2474), of six bits.
    pub dscp: Option<u8>,
    /// When to look whether the other end is still there.
    pub keepalive: Option<Keepalive>,
    /// How long what was sent may be unacknowledged (`TCP_USER_TIMEOUT`).
    pub user_timeout: Option<Duration>,
    /// The algorithm of congestion control (`TCP_CONGESTION`).
    pub congestion: Option<Box<str>>,
    /// How the other end is told who the client is.
    pub announce: Option<ProxyProtocol>,
}

/// Probes on a connection that is quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// After so long a silence.
    pub idle: Duration,
    /// So far apart.
    pub interval: Duration,
    /// So many without an answer end the connection.
    pub count: u32,
}

impl Default for Keepalive {
    /// A peer that vanished without a word is noticed within about two minutes.
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(15),
            count: 4,
        }
    }
}

impl Keepalive {
    pub(super) fn options(self) -> TcpKeepalive {
        TcpKeepalive::new()
            .with_time(self.idle)
            .with_interval(self.interval)
            .with_retries(self.count)
    }
}

impl Outgoing {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes what it does not say itself from another one; its address only if that can reach the target.
    pub fn add(&mut self, other: &Self, target: SocketAddr) {
        let source = other.source.filter(|ip| ip.is_ipv4() == target.is_ipv4());
        self.source = self.source.or(source);
        self.interface = self.interface.take().or_else(|| other.interface.clone());
        self.mark = self.mark.or(other.mark);
        self.dscp = self.dscp.or(other.dscp);
        self.keepalive = self.keepalive.or(other.keepalive);
        self.user_timeout = self.user_timeout.or(other.user_timeout);
        self.announce = self.announce.or(other.announce);
        self.congestion = self.congestion.take().or_else(|| other.congestion.clone());
    }

    /// Sets what has to be set before a socket connects to this target.
    ///
    /// # Errors
    /// With what could not be set, in words.
    pub(super) fn before(&self, socket: &impl AsFd, target: SocketAddr) -> Result<(), Unset> {
        let options = SockRef::from(socket);
        if let Some(interface) = &self.interface {
            options
                .bind_device(Some(interface.as_bytes()))
                .map_err(|error| Unset::new(&format!("leave by {interface}"), &error))?;
        }
        if let Some(mark) = self.mark {
            options
                .set_mark(mark)
                .map_err(|error| Unset::new(&format!("set the mark {mark:#x}"), &error))?;
        }
        if let Some(dscp) = self.dscp {
            let class = u32::from(dscp) << 2;
            let set = if target.is_ipv4() {
                options.set_tos_v4(class)
            } else {
                options.set_tclass_v6(class)
            };
            set.map_err(|error| Unset::new(&format!("set the DSCP {dscp}"), &error))?;
        }
        if let Some(algorithm) = &self.congestion {
            options
                .set_tcp_congestion(algorithm.as_bytes())
                .map_err(|error| {
                    Unset::new(&format!("use the congestion control {algorithm}"), &error)
                })?;
        }
        if let Some(source) = self.source {
            // The port is chosen when the target is known: one port serves many targets.
            super::sockopt::bind_address_no_port(socket)
                .and_then(|()| options.bind(&SocketAddr::new(source, 0).into()))
                .map_err(|error| Unset::new(&format!("connect from {source}"), &error))?;
        }
        Ok(())
    }

    /// Sets what holds for a connection that is there.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`; the peer may be gone already.
    pub(super) fn after(&self, socket: &impl AsFd) -> io::Result<()> {
        let options = SockRef::from(socket);
        if let Some(keepalive) = self.keepalive {
            options.set_tcp_keepalive(&keepalive.options())?;
        }
        if self.user_timeout.is_some() {
            options.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }
}

/// What could not be set on a socket, and why: `connect from 10.0.0.1: ...`.
#[derive(Debug)]
pub(super) struct Unset(pub(super) String);

impl Unset {
    fn new(what: &str, error: &io::Error) -> Self {
        let hint = match error.raw_os_error() {
            Some(libc::EPERM) => "; that takes CAP_NET_ADMIN",
            Some(libc::ENODEV) => "; there is no such interface",
            Some(libc::ENOENT) => "; see net.ipv4.tcp_available_congestion_control",
            Some(libc::EADDRNOTAVAIL) => {
                "; this host does not have the address, or no free port on it"
            }
            _ => "",
        };
        Self(format!("{what}: {error}{hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_first_counts_and_an_address_is_for_its_version() {
        let v4: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let mut sum = Outgoing::default();
        for (source, mark, interface) in [
            (Some("2001:db8::1"), None, None),
            (Some("192.0.2.9"), Some(1), None),
            (Some("192.0.2.8"), Some(2), Some("eth1")),
        ] {
            let entry = Outgoing {
                source: source.map(|source| source.parse().unwrap()),
                mark,
                interface: interface.map(Into::into),
                ..Outgoing::default()
            };
            sum.add(&entry, v4);
        }
        assert_eq!(sum.source, "192.0.2.9".parse().ok());
        assert_eq!(sum.mark, Some(1));
        assert_eq!(sum.interface.as_deref(), Some("eth1"));
    }
}
