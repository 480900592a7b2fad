//! Whether an address is one of this host's, or even a listener of ours.

use std::{io, net::SocketAddr};

use crate::net::listen::is_local;

/// Whether a connection to the address would come back to one of these listeners of ours.
///
/// # Errors
/// Those of `socket(2)`.
pub(crate) fn leads_back(listeners: &[SocketAddr], address: SocketAddr) -> io::Result<bool> {
    Ok(own(listeners, address)? == Own::Listener)
}

/// Whose it is.
///
/// # Errors
/// Those of `socket(2)`.
pub(super) fn own(listeners: &[SocketAddr], address: SocketAddr) -> io::Result<Own> {
    let ip = address.ip().to_canonical();
    let ours = is_local(ip)?;
    let leads_back = listeners
        .iter()
        .filter(|listener| listener.port() == address.port())
        .any(|listener| {
            let own = listener.ip().to_canonical();
            own == ip || (own.is_unspecified() || ip.is_unspecified()) && ours
        });
    Ok(match (leads_back, ours) {
        (true, _) => Own::Listener,
        (false, true) => Own::Host,
        (false, false) => Own::Not,
    })
}

/// Whether an address is one of this host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    Not,
    Host,
    /// And we listen there.
    Listener,
}
