//! A TLS origin for real clients: serves files over HTTP/1.1 and HTTP/2, with a certificate of its own authority.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::{netns::Netns, scratch::Scratch};

/// What the origin serves, by path.
pub type Pages = BTreeMap<String, Vec<u8>>;

/// A page of at least `bytes` bytes with a `<title>`, shaped like an article.
pub fn page(title: &str, bytes: usize) -> Vec<u8> {
    let mut page =
        format!("<!DOCTYPE html>\n<html><head>\n<title>{title}</title>\n</head><body>\n");
    let mut number = 0;
    while page.len() < bytes {
        number += 1;
        writeln!(
            page,
            "<p>Paragraph {number} of a page about tunnels below the street.</p>"
        )
        .unwrap();
    }
    page.push_str("</body></html>\n");
    page.into_bytes()
}

/// All files below `directory` as pages, for instance a bare git repository.
///
/// # Panics
///
/// When they cannot be read.
pub fn files_below(directory: &Path, prefix: &str) -> Pages {
    let mut pages = Pages::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            pages.append(&mut files_below(&entry.path(), &name));
        } else {
            pages.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    pages
}

/// A running TLS origin; it stops on drop.
#[derive(Debug)]
pub struct TlsOrigin {
    authority: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
    scratch: Scratch,
}

impl TlsOrigin {
    /// Serves `pages` on `addresses` in `netns`, certified for `names`.
    ///
    /// # Panics
    ///
    /// When it cannot listen there.
    pub fn start(netns: &Netns, addresses: &[SocketAddr], names: &[&str], pages: Pages) -> Self {
        let scratch = Scratch::new();
        let certified = certify(names);
        let config = server_config(&certified);
        let authority = scratch.write("authority.pem", certified.authority);
        let listeners = netns.run_in(|| {
            addresses
                .iter()
                .map(|address| std::net::TcpListener::bind(address).unwrap())
                .collect::<Vec<_>>()
        });
        let (stop, stopped) = oneshot::channel();
        let server = std::thread::spawn(move || serve(listeners, config, pages, stopped));
        Self {
            authority,
            stop: Some(stop),
            server: Some(server),
            scratch,
        }
    }

    /// The authority's certificate in a file, as clients take it.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// A directory that lives as long as the origin.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }
}

impl Drop for TlsOrigin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            drop(server.join());
        }
    }
}

/// A certificate with its key, and the authority that they are from, as PEM.
#[derive(Debug)]
pub struct Certified {
    /// The authority's certificate.
    pub authority: String,
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// A certificate for these names from a new authority.
///
/// # Panics
///
/// When a name cannot be certified.
pub fn certify(names: &[&str]) -> Certified {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Underpass test authority");
    params.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::CrlSign,
    ];
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);

    let names = names
        .iter()
        .map(|&name| name.to_owned())
        .collect::<Vec<_>>();
    let mut params = CertificateParams::new(names).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Underpass test origin");
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();

    Certified {
        authority,
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

/// A server that shows the certificate.
fn server_config(certified: &Certified) -> ServerConfig {
    let certificate = CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn serve(
    listeners: Vec<std::net::TcpListener>,
    config: ServerConfig,
    pages: Pages,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let pages = Arc::new(pages);
    runtime.block_on(async {
        for listener in listeners {
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            tokio::spawn(accept(listener, acceptor.clone(), Arc::clone(&pages)));
        }
        // Ends when the sender is dropped; the runtime takes all connections with it.
        drop(stopped.await);
    });
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, pages: Arc<Pages>) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            // A client that gives up is its own affair.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| {
                let response = answer(&request, &pages);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = auto::Builder::new(TokioExecutor::new());
            drop(
                connection
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let found = pages.get(request.uri().path());
    let mut response = Response::new(Full::new(Bytes::from(found.cloned().unwrap_or_default())));
    if found.is_none() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}
