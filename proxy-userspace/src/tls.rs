//! TLS: whom to trust, and who we are.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// A client that trusts the authorities in a PEM file, or else those that the system trusts; with a certificate and a
/// key of its own, if it is asked who it is.
///
/// # Errors
/// The file cannot be read, or has no certificate of an authority; or the system has none.
pub(crate) fn client_config(
    ca: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = builder.with_root_certificates(authorities(ca)?);
    let Some((certificate, key)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    builder
        .with_client_auth_cert(certificates(certificate)?, private)
        .map_err(|error| format!("{}: {error}", certificate.display()))
}

/// A server with this certificate and key, for HTTP/1.1. With authorities, clients are asked for certificates of theirs;
/// those that have none are served, if that is optional.
///
/// # Errors
/// A file cannot be read or has something else in it, with its name.
pub(crate) fn server_config(
    certificate: &Path,
    key: &Path,
    clients: Option<(&Path, bool)>,
) -> Result<ServerConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((ca, is_optional)) => {
            let roots = Arc::new(authorities(Some(ca))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = if is_optional {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            let verifier = verifier
                .build()
                .map_err(|error| format!("{}: {error}", ca.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    let mut config = builder
        .with_single_cert(certificates(certificate)?, private)
        .map_err(|error| format!("{}: {error}", certificate.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The names in a certificate: DNS names, URIs and e-mail addresses (RFC 5280 section 4.2.1.6), and the common name.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let general = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        });
    let common = certificate.subject().iter_common_name();
    general
        .chain(common.filter_map(|name| name.as_str().ok().map(str::to_owned)))
        .collect()
}

fn authorities(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let Some(path) = ca else {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = store.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err(
                "this system has no certificate authorities; install ca-certificates, or name a file with `ca`"
                    .to_owned(),
            );
        }
        return Ok(store);
    };
    let certificates = certificates(path)?;
    for certificate in certificates {
        store
            .add(certificate)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(store)
}

/// The certificates of a PEM file; there is at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read(path).map_err(|error| wrong(&error))?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(&error))?;
    if certificates.is_empty() {
        return Err(wrong(&"there is no certificate in it"));
    }
    Ok(certificates)
}

/// A socket as what it is to `rustls`: something that may block.
pub(crate) struct Socket<'a>(pub(crate) &'a TcpStream);

impl io::Read for Socket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
