//! What is open without a rule: some clients, some ports, public addresses and some networks beside.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use super::{NetworkSet, PortSet, SpecialBlock, embedded_ipv4};
use crate::http::{ProxyError, Refusal};

/// What is open. The default is the safe one: clients on this host, public addresses, port 443.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The networks whose hosts may use the proxy.
    pub clients: NetworkSet,
    /// The networks that are open although their addresses are special.
    pub destinations: NetworkSet,
    /// The ports that are open everywhere.
    pub ports: PortSet,
    /// The same for requests that are forwarded instead of tunnelled.
    pub plain_ports: PortSet,
}

/// What is not open, and the option that would open it.
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

impl Guard {
    /// The clients that are allowed unless others are named: those on this host.
    #[must_use]
    pub fn default_clients() -> NetworkSet {
        let v4 = IpNet::V4(ipnet::Ipv4Net::new_assert([127, 0, 0, 0].into(), 8));
        let v6 = IpNet::from(IpAddr::from(std::net::Ipv6Addr::LOCALHOST));
        [v4, v6].into_iter().collect()
    }

    /// Whether this client may use the proxy. A listener on `[::]` sees IPv4 clients as mapped
    /// addresses; they are judged as the IPv4 addresses that they are.
    pub fn client(&self, client: IpAddr) -> Result<(), Denial> {
        let client = client.to_canonical();
        if self.clients.contains(client) {
            Ok(())
        } else {
            Err(Denial::Client { client })
        }
    }

    /// Whether a tunnel may lead to this port; or a request for a URL, if it has a `scheme`.
    pub fn port(&self, port: u16, scheme: Option<&str>) -> Result<(), Denial> {
        let ports = match scheme {
            None => &self.ports,
            Some(_) => &self.plain_ports,
        };
        if ports.contains(port) {
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
        self.embedded(address)
    }

    /// The second half of that, for an address that is open by a rule.
    pub fn embedded(&self, address: IpAddr) -> Result<(), Denial> {
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
        if self.destinations.contains(address) {
            Ok(())
        } else {
            Err(Denial::Own { address })
        }
    }

    /// The special block of an address that is not allowed in spite of it.
    fn prohibition(&self, address: IpAddr) -> Option<SpecialBlock> {
        SpecialBlock::of(address).filter(|_| !self.destinations.contains(address))
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            clients: Self::default_clients(),
            destinations: NetworkSet::default(),
            ports: PortSet::default(),
            plain_ports: PortSet::http(),
        }
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
