//! What is known of a request when it is judged.

use std::net::{IpAddr, SocketAddr};

use super::{Moment, Process};
use crate::{authority::Host, client_hello::Opening};

/// One request, as far as it is known. Cheap to copy: whoever learns more asks again.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who asks; IPv4 clients as IPv4.
    pub client: IpAddr,
    /// The address of ours that was connected to.
    pub listener: SocketAddr,
    /// The listener's name in the configuration.
    pub listener_name: &'a str,
    /// The method.
    pub method: &'a str,
    /// The scheme of an absolute URL; none for CONNECT.
    pub scheme: Option<&'a str>,
    /// Where to, as the client wrote it.
    pub host: &'a Host,
    /// The port there.
    pub port: u16,
    /// The whole target: `host:port` for CONNECT, else the URL.
    pub url: &'a str,
    /// Who the client says it is.
    pub user: User<'a>,
    /// The names in the client's certificate; none if it has shown none.
    pub certificate: Option<&'a [String]>,
    /// The process that connects, where its connection was captured.
    pub process: Option<&'a Process>,
    /// The server that it wants to talk to, as TLS has it.
    pub server_name: ServerName<'a>,
    /// The time.
    pub now: Moment,
    /// The addresses of the host, once they are known.
    pub addresses: Option<&'a [IpAddr]>,
    /// The name of a host that was given by address; once it is known, and `none` if there is none.
    pub reverse_name: Option<&'a str>,
    /// Whether the address is one of this host's own.
    pub own_address: bool,
    /// Connections of the client that are open, this one included.
    pub connections: u32,
    /// The firewall's mark of the client's connection.
    pub mark: u32,
    /// A number drawn for this request.
    pub dice: u64,
}

/// What is known of the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User<'a> {
    /// Nobody has looked at the credentials.
    Unchecked,
    /// There are none, or they are wrong.
    Nobody,
    /// Authenticated.
    Known(&'a str),
}

/// What is known of the name in the client's TLS ClientHello, which comes when a tunnel is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerName<'a> {
    /// Nothing was sent yet.
    Unheard,
    /// There is none, or no TLS.
    None,
    /// In lower case.
    Is(&'a str),
}

impl<'a> From<&'a Opening> for ServerName<'a> {
    fn from(opening: &'a Opening) -> Self {
        opening.name().map_or(Self::None, Self::Is)
    }
}

/// What has to be found out before a policy can decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// [`Facts::user`].
    User,
    /// [`Facts::addresses`].
    Addresses,
    /// [`Facts::reverse_name`].
    ReverseName,
    /// [`Facts::server_name`]. Everything else comes first: to hear it, the client must be told that its
    /// tunnel is open.
    ServerName,
}

impl Facts<'_> {
    /// The host's name, or its address as text.
    pub(super) fn host_text(&self) -> String {
        match self.host {
            Host::Name(name) => name.without_root().to_owned(),
            Host::Ip(address) => address.to_string(),
        }
    }
}
