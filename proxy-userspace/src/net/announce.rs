//! The PROXY protocol, versions 1 and 2: who the client of a connection is, said by whoever has accepted it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use bytes::{Buf as _, BytesMut};
use proxy_header::{Error, ParseConfig, Protocol, ProxiedAddress, ProxyHeader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::wire::{read_plain, write_plain};
use crate::limits::MAX_ANNOUNCEMENT_BYTES;

/// How a client is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// As text.
    V1,
    /// In binary form.
    V2,
}

/// What a connection begins with.
#[derive(Debug)]
pub struct Announcement {
    /// Who the client is; none if the other end speaks for itself.
    pub client: Option<SocketAddr>,
    /// The length of the header, in bytes.
    pub bytes: usize,
    /// What came behind it.
    pub rest: BytesMut,
}

/// Reads a header from a connection.
///
/// # Errors
/// `InvalidData` for what is no header; else the connection is broken, or at its end.
pub async fn receive(stream: &TcpStream) -> io::Result<Announcement> {
    let mut rest = BytesMut::new();
    loop {
        if let Some((client, bytes)) = parse(&rest)? {
            rest.advance(bytes);
            return Ok(Announcement {
                client,
                bytes,
                rest,
            });
        }
        if read_plain(stream, &mut rest).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The client that a header announces, and the length of the header; none while it is incomplete.
fn parse(received: &[u8]) -> io::Result<Option<(Option<SocketAddr>, usize)>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "that is no PROXY header");
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    match ProxyHeader::parse(received, config) {
        Ok((header, bytes)) => match header.proxied_address() {
            // It speaks for itself, as health checks do.
            None => Ok(Some((None, bytes))),
            Some(address) if address.protocol == Protocol::Stream => {
                let source = address.source;
                let client = SocketAddr::new(source.ip().to_canonical(), source.port());
                Ok(Some((Some(client), bytes)))
            }
            Some(_) => Err(invalid()),
        },
        Err(Error::BufferTooShort)
            if received.len() < MAX_ANNOUNCEMENT_BYTES && may_begin(received) =>
        {
            Ok(None)
        }
        Err(_) => Err(invalid()),
    }
}

/// Whether these first bytes can become a header of either version. A line that has ended has failed.
fn may_begin(received: &[u8]) -> bool {
    let agrees = |begin: &[u8]| begin.iter().zip(received).all(|(one, other)| one == other);
    agrees(b"PROXY ") && !received.contains(&b'\n') || agrees(b"\r\n\r\n\0\r\nQUIT\n")
}

/// Announces the client of a connection to its other end, before anything else is said: in so many bytes.
///
/// # Errors
/// The connection is broken.
pub(crate) async fn send(
    stream: &TcpStream,
    version: ProxyProtocol,
    client: SocketAddr,
    target: SocketAddr,
) -> io::Result<usize> {
    let header = header(version, client, target);
    write_plain(stream, &header).await?;
    Ok(header.len())
}

/// A header; addresses of different versions are both written as IPv6.
fn header(version: ProxyProtocol, client: SocketAddr, target: SocketAddr) -> Vec<u8> {
    let same = client.is_ipv4() == target.is_ipv4();
    let as_v6 = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) if !same => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        _ => address,
    };
    let address = ProxiedAddress::stream(as_v6(client), as_v6(target));
    let header = ProxyHeader::with_address(address);
    let mut bytes = Vec::new();
    let encoded = match version {
        ProxyProtocol::V1 => header.encode_v1(&mut bytes),
        ProxyProtocol::V2 => header.encode_v2(&mut bytes),
    };
    debug_assert!(encoded.is_ok(), "two TCP addresses of one version");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn both_versions_are_read_as_they_are_written() {
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            for (client, target) in [
                ("192.0.2.1:1234", "198.51.100.1:443"),
                ("[2001:db8::1]:1234", "[2001:db8::2]:443"),
                ("192.0.2.1:1234", "[2001:db8::2]:443"),
                ("[2001:db8::1]:1234", "198.51.100.1:443"),
            ] {
                let mut bytes = header(version, address(client), address(target));
                let len = bytes.len();
                for end in 0..len {
                    assert_eq!(parse(&bytes[..end]).unwrap(), None, "{version:?} {end}");
                }
                bytes.extend(b"CONNECT");
                let parsed = parse(&bytes).unwrap();
                assert_eq!(parsed, Some((Some(address(client)), len)), "{version:?}");
            }
        }
    }

    #[test]
    fn who_speaks_for_itself_announces_nobody() {
        assert_eq!(parse(b"PROXY UNKNOWN\r\n").unwrap(), Some((None, 15)));
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
        assert_eq!(parse(local).unwrap(), Some((None, 16)));
    }

    #[test]
    fn what_is_no_header_is_an_error_at_once() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let datagram =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02";
        for bytes in [
            &b"C"[..],
            b"CONNECT a:443 HTTP/1.1\r\n",
            b"PROXY-\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
            b"\x16\x03\x01",
            datagram,
            &long,
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
