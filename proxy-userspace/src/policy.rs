//! Who may use the proxy, and where a tunnel may lead.
//!
//! Safe unless told otherwise: clients on this host, public addresses, port 443. The destination
//! is judged by the *address that is connected to*, never by its name, so that a name which an
//! attacker's resolver points at a private address opens nothing. Whoever dials asks
//! [`Policy::address`] for each address before it is tried.
//!
//! Pure: it resolves nothing and knows no socket. The proxy's own listeners are not known here,
//! either; the dialler looks for the loop.

mod address_class;
mod ports;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::http::{ProxyError, Refusal};

pub use address_class::{AddressClass, SpecialBlock, embedded_ipv4};
pub use ports::{PortError, PortRange, PortSet};

#[cfg(test)]
mod tests;

/// The rules, compiled. The default is the safe one that the module describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The networks whose hosts may use the proxy.
    clients: Vec<IpNet>,
    /// The networks that are open although their addresses are special.
    destinations: Vec<IpNet>,
    /// The ports that are open everywhere.
    ports: PortSet,
}

/// What the policy does not permit, and the option that would permit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// A client outside of the allowed networks.
    #[error("client {client} may not use this proxy; --allow-client {} would permit it", IpNet::from(*client))]
    Client {
        /// The client's address.
        client: IpAddr,
    },
    /// A port that is not allowed.
    #[error("port {port} is not allowed; --allow-port {port} would permit it")]
    Port {
        /// The port of the target.
        port: u16,
    },
    /// An address that is not public.
    #[error("{address} is {}; --allow-destination {} would permit it", block.class, block.network)]
    Address {
        /// The address that would have been connected to.
        address: IpAddr,
        /// Where it belongs.
        block: SpecialBlock,
    },
    /// A public address that is the proxy's host.
    #[error(
        "{address} is an address of the proxy's own host; --allow-destination {} would permit it",
        IpNet::from(*address)
    )]
    Own {
        /// The address that would have been connected to.
        address: IpAddr,
    },
    /// An address that a translator or a tunnel turns into an IPv4 address that is not public.
    #[error(
        "{address} leads to {embedded}, which is {}; --allow-destination {} would permit it",
        block.class, block.network
    )]
    Embedded {
        /// The address that would have been connected to.
        address: IpAddr,
        /// The IPv4 address inside it.
        embedded: IpAddr,
        /// Where the IPv4 address belongs.
        block: SpecialBlock,
    },
}

impl Policy {
    /// A policy that lets these clients reach public addresses and these networks on these ports.
    #[must_use]
    pub fn new(clients: Vec<IpNet>, destinations: Vec<IpNet>, ports: PortSet) -> Self {
        Self {
            clients,
            destinations,
            ports,
        }
    }

    /// The clients that are allowed unless others are named: those on this host.
    #[must_use]
    pub fn default_clients() -> Vec<IpNet> {
        vec![
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        ]
    }

    /// Whether this client may use the proxy. A listener on `[::]` sees IPv4 clients as mapped
    /// addresses; they are judged as the IPv4 addresses that they are.
    pub fn client(&self, client: IpAddr) -> Result<(), Denial> {
        let client = client.to_canonical();
        if contains(&self.clients, client) {
            Ok(())
        } else {
            Err(Denial::Client { client })
        }
    }

    /// Whether a tunnel may lead to this port.
    pub fn port(&self, port: u16) -> Result<(), Denial> {
        if self.ports.contains(port) {
            Ok(())
        } else {
            Err(Denial::Port { port })
        }
    }

    /// Whether a tunnel may lead to this address, and to the IPv4 address inside it, if any: to
    /// allow `64:ff9b::/96` opens the way through the translator, not the private networks behind
    /// it.
    pub fn address(&self, address: IpAddr) -> Result<(), Denial> {
        if let Some(block) = self.prohibition(address) {
            return Err(Denial::Address { address, block });
        }
        let embedded = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => embedded_ipv4(address).map(IpAddr::V4),
        };
        if let Some(embedded) = embedded
            && let Some(block) = self.prohibition(embedded)
        {
            return Err(Denial::Embedded {
                address,
                embedded,
                block,
            });
        }
        Ok(())
    }

    /// Whether a tunnel may lead to this address although it is the proxy's own host: what listens
    /// there may rely on a firewall that connections from within the host do not pass.
    pub fn own_address(&self, address: IpAddr) -> Result<(), Denial> {
        if contains(&self.destinations, address) {
            Ok(())
        } else {
            Err(Denial::Own { address })
        }
    }

    /// The special block of an address that is not allowed in spite of it.
    fn prohibition(&self, address: IpAddr) -> Option<SpecialBlock> {
        SpecialBlock::of(address).filter(|_| !contains(&self.destinations, address))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Self::default_clients(), Vec::new(), PortSet::default())
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        let error = match denial {
            Denial::Client { .. } | Denial::Port { .. } => ProxyError::HttpRequestDenied,
            Denial::Address { .. } | Denial::Own { .. } | Denial::Embedded { .. } => {
                ProxyError::DestinationIpProhibited
            }
        };
        Self::new(error, denial.to_string())
    }
}

/// An IPv4 network contains IPv4 addresses only, and an IPv6 network IPv6 addresses.
fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}
