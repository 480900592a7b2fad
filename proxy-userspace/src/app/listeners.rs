//! The sockets that clients connect to: our own, or those that a service manager has opened.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, anyhow, bail};
use tokio::net::TcpListener;
use tracing::info;

use crate::{
    config::{Config, Listener},
    net::{
        inherited::{Inherited, inherited},
        listen::listen,
    },
};

/// A listener of the configuration, and its sockets.
pub(super) struct Group {
    pub(super) listener: Listener,
    /// Where it listens in fact.
    pub(super) address: SocketAddr,
    /// A socket for each accept loop.
    pub(super) sockets: Vec<TcpListener>,
}

/// Opens all listeners, a socket for each accept loop; those that were passed to us are open. Where the configuration
/// does not say where to listen, what was passed is it.
pub(super) fn open(config: &Config, loops: usize) -> anyhow::Result<Vec<Group>> {
    let mut passed = inherited().context("cannot take the sockets that were passed")?;
    let wanted = if passed.is_empty() || !config.listens_by_default {
        config.listen.clone()
    } else {
        passed
            .iter()
            .map(|passed| Listener {
                address: passed.address,
                name: passed.address.to_string(),
            })
            .collect()
    };
    let mut groups = Vec::new();
    for listener in &wanted {
        let place = passed
            .iter()
            .position(|passed| passed.address == listener.address);
        let sockets = match place.map(|place| passed.remove(place)) {
            Some(Inherited { address, listener }) => {
                info!("the socket for {address} was passed by the service manager");
                vec![TcpListener::from_std(listener)?]
            }
            None => open_one(listener.address, &wanted, loops)?,
        };
        let address = sockets.first().map(TcpListener::local_addr).transpose()?;
        groups.push(Group {
            address: address.unwrap_or(listener.address),
            listener: listener.clone(),
            sockets,
        });
    }
    if let Some(rest) = passed.first() {
        bail!(
            "a socket for {} was passed by the service manager, but `listen` does not have it; add it there, or leave \
             `listen` out to serve whatever is passed",
            rest.address
        );
    }
    Ok(groups)
}

/// Opens a listener of `all`, or says what would help.
fn open_one(
    address: SocketAddr,
    all: &[Listener],
    loops: usize,
) -> anyhow::Result<Vec<TcpListener>> {
    let others = || all.iter().map(|listener| listener.address);
    let both_families = others().any(|other| {
        other.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && other.port() == address.port()
    });
    let same_port = others().filter(|other| other.port() == address.port());
    let alone = same_port.count() == 1;
    listen(address, both_families, loops).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied if address.port() < 1024 => {
                "; ports below 1024 need root or CAP_NET_BIND_SERVICE"
            }
            io::ErrorKind::AddrInUse if alone => "; another process listens there",
            io::ErrorKind::AddrInUse => "; another process listens there, or [::] includes IPv4",
            io::ErrorKind::AddrNotAvailable => "; this host does not have the address",
            _ => "",
        };
        anyhow!("cannot listen on {address}: {error}{hint}")
    })
}
