//! How clients begin at each listener: with TLS, with a PROXY header, or with neither.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::ServerConfig;

use super::{ConfigError, Live};
use crate::{
    config::{
        compile::{Compiler, place_of},
        file::{ClientCertificate, File, Listen, ListenTls, Located},
    },
    policy::{NetworkSet, Place},
    tls,
};

/// How clients begin at a listener.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    /// The listener's address.
    address: SocketAddr,
    /// Who announces clients by a PROXY header.
    announcers: Option<NetworkSet>,
    /// What TLS is answered with.
    pub(crate) tls: Option<Arc<ServerConfig>>,
}

impl Front {
    /// Whether connections from this address begin with a PROXY header.
    pub(crate) fn is_announced_by(&self, peer: IpAddr) -> bool {
        let announcers = self.announcers.as_ref();
        announcers.is_some_and(|networks| networks.contains(peer.to_canonical()))
    }
}

impl Live {
    /// How clients begin at the listener with this address; none if nothing is special about it.
    pub(crate) fn front(&self, listener: SocketAddr) -> Option<&Front> {
        self.fronts.iter().find(|front| front.address == listener)
    }

    /// Keeps what another configuration says of listeners that this one does not have: they are closed when the process
    /// ends, and must not be less than they were until then.
    pub(super) fn inherit_fronts(&mut self, before: &Self) {
        for front in &before.fronts {
            if !self.listeners.contains(&front.address) {
                self.fronts.push(front.clone());
                self.listeners.push(front.address);
            }
        }
    }
}

/// The listeners of a file about which something is special.
pub(super) fn fronts<'a>(
    file: &'a File,
    compiler: &mut Compiler<'a>,
    path: &Path,
    sources: &mut Vec<PathBuf>,
) -> Result<Vec<Front>, ConfigError> {
    let place = Place {
        file: path.into(),
        line: 1,
    };
    let mut fronts = Vec::new();
    for listen in file.listen.iter().flatten() {
        let Listen::Table(table) = listen else {
            continue;
        };
        let announcers = match table.proxy_protocol.as_slice() {
            [] => None,
            networks => Some(compiler.networks(networks, &place)?),
        };
        let tls = match &table.tls {
            None => None,
            Some(located) => Some(server(located, sources)?),
        };
        if announcers.is_some() || tls.is_some() {
            fronts.push(Front {
                address: table.address.0,
                announcers,
                tls,
            });
        }
    }
    Ok(fronts)
}

fn server(
    located: &Located<ListenTls>,
    sources: &mut Vec<PathBuf>,
) -> Result<Arc<ServerConfig>, ConfigError> {
    let place = place_of(located);
    let directory = place.file.parent().unwrap_or(Path::new(""));
    let ListenTls {
        certificate,
        key,
        client_ca,
        client_certificate,
    } = &located.value;
    let at = |message| ConfigError::At {
        place: place.clone(),
        message,
    };
    let [certificate, key] = [certificate, key].map(|path| directory.join(path));
    let client_ca = client_ca.as_ref().map(|path| directory.join(path));
    if client_ca.is_none() && client_certificate.is_some() {
        let message =
            "client_certificate needs client_ca, the authorities of clients' certificates";
        return Err(at(message.to_owned()));
    }
    let is_optional = *client_certificate == Some(ClientCertificate::Optional);
    let clients = client_ca.as_deref().map(|ca| (ca, is_optional));
    let config = tls::server_config(&certificate, &key, clients).map_err(at)?;
    sources.extend([certificate, key]);
    sources.extend(client_ca);
    Ok(Arc::new(config))
}
