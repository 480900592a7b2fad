//! Where to listen: `http_port`, `https_port`, and who announces clients there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    super::{
        file::{Listen, ListenTable, ListenTls, Located},
        values::{Text, Word},
    },
    ConfigError, Line,
    settings::{Translation, texts},
};

/// `http_port [addr:]port [options]`
pub(super) fn http_port(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    port(to, line, None)
}

/// `https_port [addr:]port tls-cert=FILE [tls-key=FILE] [clientca=FILE] [options]`
pub(super) fn https_port(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    port(to, line, Some(Tls::default()))
}

/// `proxy_protocol_access allow|deny acl ...`
pub(super) fn proxy_protocol_access(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let access = to.access_line(line, &line.words)?;
    to.announcers.extend(access);
    Ok(())
}

/// The options of `https_port` that are about TLS.
#[derive(Default)]
struct Tls {
    certificate: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
}

fn port(to: &mut Translation<'_>, line: &Line, mut tls: Option<Tls>) -> Result<(), String> {
    let words = texts(line);
    let directive = &line.name;
    let [address, options @ ..] = words.as_slice() else {
        return Err(format!("{directive} needs a port"));
    };
    let address = listen_address(address)?;
    let mut name = None;
    for option in options {
        let (key, value) = option
            .split_once('=')
            .map_or((*option, None), |(key, value)| (key, Some(value)));
        match (key, value, &mut tls) {
            ("name", Some(value), _) => name = Some(value.parse::<Word>()?),
            ("require-proxy-header", ..) => {
                let index = to.file.listen.iter().flatten().count();
                to.announced.push(index);
            }
            ("tls-cert" | "cert", Some(value), Some(tls)) => tls.certificate = Some(value.into()),
            ("tls-key" | "key", Some(value), Some(tls)) => tls.key = Some(value.into()),
            ("clientca" | "tls-cafile", Some(value), Some(tls)) => {
                tls.client_ca = Some(value.into());
            }
            (
                "connection-auth"
                | "disable-pmtu-discovery"
                | "tcpkeepalive"
                | "ignore-cc"
                | "worker-queues"
                | "no-connection-auth",
                ..,
            ) => {}
            _ => return Err(unsupported(directive, option, key)),
        }
    }
    // Rules know a listener without a name by what Squid calls it: its address as it is written.
    let name = name.unwrap_or_else(|| Word(words.first().copied().unwrap_or_default().to_owned()));
    let tls = tls.map(|tls| tls.table(line)).transpose()?;
    let listen = Listen::Table(Box::new(ListenTable {
        address: Text(address),
        name: Some(Text(name)),
        proxy_protocol: Vec::new(),
        tls,
    }));
    to.file.listen.get_or_insert_default().push(listen);
    Ok(())
}

/// Why an option is refused.
fn unsupported(directive: &str, option: &str, key: &str) -> String {
    let why = match key {
        "intercept" | "tproxy" | "transparent" => "clients have to ask for a tunnel",
        "ssl-bump" => "TLS is not looked into",
        "accel" | "vhost" | "no-vhost" | "vport" | "defaultsite" | "act-as-origin"
        | "allow-direct" | "protocol" => "this is no reverse proxy",
        _ => return format!("{directive} has no option {option} that is known"),
    };
    format!("{directive} {option} is not supported: {why}")
}

impl Tls {
    fn table(self, line: &Line) -> Result<Located<ListenTls>, String> {
        let Some(certificate) = self.certificate else {
            return Err("https_port needs a certificate; write tls-cert=FILE".to_owned());
        };
        let tls = ListenTls {
            // Both may be in one file.
            key: self.key.unwrap_or_else(|| certificate.clone()).into(),
            certificate: certificate.into(),
            client_ca: self.client_ca.map(Into::into),
            client_certificate: None,
        };
        Ok(Located::new(tls, line.place.clone()))
    }
}

impl Translation<'_> {
    /// `proxy_protocol_access` for the listeners that require a header.
    pub(super) fn announcers(&mut self) -> Result<(), ConfigError> {
        let mut networks = Vec::new();
        for line in std::mem::take(&mut self.announcers) {
            let names: Vec<&str> = line.terms.iter().map(|term| term.0.0.as_str()).collect();
            let source = match names.as_slice() {
                [name] => self.acls.source(name),
                _ => None,
            };
            match source {
                Some(source) if line.allow => networks.extend(source),
                _ if !line.allow && names == ["all"] => break,
                _ => {
                    let message =
                        "write proxy_protocol_access allow with one acl of type src, and deny all"
                            .to_owned();
                    return Err(ConfigError::At {
                        place: line.place,
                        message,
                    });
                }
            }
        }
        for index in std::mem::take(&mut self.announced) {
            let listen = self.file.listen.iter_mut().flatten().nth(index);
            if let Some(Listen::Table(table)) = listen {
                if networks.is_empty() {
                    // As in Squid, nobody may then.
                    return Err(ConfigError::At {
                        place: self.path.clone(),
                        message: "require-proxy-header needs proxy_protocol_access allow with who sends the header".to_owned(),
                    });
                }
                table.proxy_protocol.clone_from(&networks);
            }
        }
        Ok(())
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || {
        format!("'{text}' is not an address to listen on; write 3128, 127.0.0.1:3128 or [::1]:3128")
    };
    if let Ok(port) = text.parse::<u16>() {
        // On every address, of both IP versions.
        return Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    }
    if let Some(port) = text.strip_prefix("localhost:") {
        let port = port.parse().map_err(|_| wrong())?;
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    text.parse().map_err(|_| wrong())
}
