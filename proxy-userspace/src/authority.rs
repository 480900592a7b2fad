//! The target of a CONNECT request, `host:port`, normalised.
//!
//! CONNECT takes the authority form and nothing else (RFC 9110 §9.3.6, RFC 9112 §3.2.3; the host's
//! syntax is RFC 3986 §3.2.2). An [`Authority`] that exists is one that every reader of it agrees
//! on: the policy, the resolver and the log can not be made to see different hosts. So the spelling is
//! strict where others are lenient: no port defaults, no user information, no escapes, no number
//! that a resolver would take for an IPv4 address, no name in an IPv6 address's brackets.
//!
//! This module does not resolve names and does not decide what may be reached.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use thiserror::Error;

#[cfg(test)]
mod tests;

/// The longest domain name in text, without the root dot (RFC 1035 §2.3.4: 255 octets on the wire).
const MAX_NAME_BYTES: usize = 253;

/// The longest label of a domain name (RFC 1035 §2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Where a tunnel is to lead: a host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    host: Host,
    port: NonZeroU16,
}

/// A host, by name or by address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name that the resolver must turn into addresses.
    Name(HostName),
    /// An address, written as such by the client.
    Ip(IpAddr),
}

/// A domain name in lower case that no resolver would take for an address.
///
/// A root dot at the end is kept, because it tells the resolver not to try its search list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(Box<str>);

/// Why a CONNECT target is not `host:port`; the text says what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthorityError {
    /// Nothing at all.
    #[error("the target is empty; write host:port")]
    Empty,
    /// NUL, a line break or another control character.
    #[error("the target contains a control character; write host:port")]
    ControlCharacter,
    /// A space.
    #[error("the target contains a space; write host:port")]
    Space,
    /// A byte above 127: a name in Unicode that the client did not encode.
    #[error("the target is not ASCII; write an international name in its xn-- form")]
    NonAscii,
    /// `https://host:443`.
    #[error("the target is a URL; write host:port without the scheme")]
    Scheme,
    /// `host:443/path`, `host:443?query`, `host:443#fragment`.
    #[error("the target has a path, query or fragment; write host:port alone")]
    Path,
    /// `user@host:443`.
    #[error("the target has user information; write host:port without the part before '@'")]
    UserInfo,
    /// `ho%73t:443`.
    #[error("the target has a percent escape; write the name itself")]
    PercentEscape,
    /// `:443`.
    #[error("the host is missing; write host:port")]
    MissingHost,
    /// `host` or `host:`.
    #[error("the port is missing; write host:port")]
    MissingPort,
    /// A port with anything but digits, a leading zero, or a value beyond 65535.
    #[error("the port is not valid; write a number from 1 to 65535 without leading zeros")]
    InvalidPort,
    /// Digits and dots that some resolvers would read as an address: `127.1`, `0x7f.1`, `1.2.3.4.`.
    #[error("the host is not a valid IPv4 address; write four decimal numbers such as 192.0.2.1")]
    InvalidIpv4,
    /// `2001:db8::1:443`.
    #[error("an IPv6 address must be in brackets; write [address]:port")]
    BareIpv6,
    /// `[::1:443`.
    #[error("the bracket before the IPv6 address is not closed; write [address]:port")]
    UnclosedBracket,
    /// `[::1]443`.
    #[error("only a port may follow the closing bracket; write [address]:port")]
    AfterBracket,
    /// `[fe80::1%25eth0]:443`.
    #[error("a zone identifier means nothing to a proxy; write the IPv6 address without it")]
    ZoneId,
    /// `[v1.x]:443`.
    #[error("this kind of address is unknown; write an IPv6 address in the brackets")]
    FutureAddress,
    /// `[192.0.2.1]:443`.
    #[error("brackets are for IPv6 addresses; write the IPv4 address without them")]
    BracketedIpv4,
    /// `[stripe.com]:443`.
    #[error("brackets are for IPv6 addresses; write a name without them")]
    BracketedName,
    /// `[1::2::3]:443`.
    #[error("the address in the brackets is not a valid IPv6 address")]
    InvalidIpv6,
    /// A printable character that is in no host name.
    #[error("'{0}' can not be in a host name; letters, digits, '-', '_' and '.' can")]
    NameCharacter(char),
    /// `a..b`, `.a`.
    #[error("the host name has an empty label; write one dot between labels")]
    EmptyLabel,
    /// A label beyond 63 bytes.
    #[error("the host name has a label of more than 63 characters")]
    LongLabel,
    /// A name beyond 253 bytes.
    #[error("the host name has more than 253 characters")]
    LongName,
}

impl Authority {
    /// Reads the target of a CONNECT request.
    pub fn parse(raw: &[u8]) -> Result<Self, AuthorityError> {
        let text = printable(raw)?;
        refuse_url_parts(text)?;
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (literal, rest) = rest
                .split_once(']')
                .ok_or(AuthorityError::UnclosedBracket)?;
            (
                Host::Ip(ipv6_literal(literal)?.into()),
                after_bracket(rest)?,
            )
        } else {
            let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::MissingPort)?;
            (Host::parse(host)?, port)
        };
        let port = parse_port(port)?;
        Ok(Self { host, port })
    }

    /// The same port of the host in this domain, if its name has no dot and the two make a name.
    #[must_use]
    pub fn in_domain(self, domain: &str) -> Self {
        match &self.host {
            Host::Name(name) if !name.as_str().contains('.') => {
                let whole = format!("{}.{domain}:{}", name.as_str(), self.port);
                Self::parse(whole.as_bytes()).unwrap_or(self)
            }
            Host::Name(_) | Host::Ip(_) => self,
        }
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> NonZeroU16 {
        self.port
    }
}

impl Host {
    /// Reads what stands before the port outside of brackets: an IPv4 address or a name.
    fn parse(text: &str) -> Result<Self, AuthorityError> {
        if text.is_empty() {
            return Err(AuthorityError::MissingHost);
        }
        if text.contains(':')
            && text
                .chars()
                .all(|c| matches!(c, ':' | '.') || c.is_ascii_hexdigit())
        {
            return Err(AuthorityError::BareIpv6);
        }
        let name = HostName::parse(text)?;
        if name.ends_in_number() {
            // Rust reads exactly four decimal numbers without leading zeros, no root dot.
            return text
                .parse::<Ipv4Addr>()
                .map(|address| Self::Ip(IpAddr::V4(address)))
                .map_err(|_not_four_numbers| AuthorityError::InvalidIpv4);
        }
        Ok(Self::Name(name))
    }
}

impl HostName {
    fn parse(text: &str) -> Result<Self, AuthorityError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if let Some(other) = text.chars().find(|c| !allowed(*c)) {
            return Err(AuthorityError::NameCharacter(other));
        }
        let name = Self(text.to_ascii_lowercase().into());
        let relative = name.without_root();
        if relative.len() > MAX_NAME_BYTES {
            return Err(AuthorityError::LongName);
        }
        for label in relative.split('.') {
            if label.is_empty() {
                return Err(AuthorityError::EmptyLabel);
            }
            if label.len() > MAX_LABEL_BYTES {
                return Err(AuthorityError::LongLabel);
            }
        }
        Ok(name)
    }

    /// The name as the client wrote it, in lower case, with its root dot if it had one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without a root dot, for comparing: `a.example.` and `a.example` are one host.
    #[must_use]
    pub fn without_root(&self) -> &str {
        self.0.strip_suffix('.').unwrap_or(&self.0)
    }

    /// Whether the last label is a number, so that `inet_aton(3)` and URL parsers would read an
    /// IPv4 address here (the "ends in a number" check of the WHATWG URL standard).
    fn ends_in_number(&self) -> bool {
        let last = self.without_root().rsplit('.').next().unwrap_or_default();
        last.bytes().all(|byte| byte.is_ascii_digit())
            || last
                .strip_prefix("0x")
                .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{}:{}", name.as_str(), self.port),
            Host::Ip(address) => SocketAddr::new(*address, self.port.get()).fmt(f),
        }
    }
}

/// The host alone; an IPv6 address stands without brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a `Host` field has the syntax `uri-host [ ":" port ]` (RFC 9110 §7.2).
///
/// Looser than [`Authority::parse`], as the RFC is: the host may be empty or hold escapes and the
/// port may be missing, empty or zero. Nothing but this syntax check reads the field: the target
/// says where the tunnel leads.
#[must_use]
pub fn is_valid_host_field(raw: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(raw) else {
        return false;
    };
    let (is_valid_host, rest) = if let Some(rest) = text.strip_prefix('[') {
        let Some((literal, rest)) = rest.split_once(']') else {
            return false;
        };
        (is_ip_literal(literal), rest)
    } else {
        let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
        (is_reg_name(name), rest)
    };
    is_valid_host && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port_or_empty))
}

/// Text that has only visible ASCII, or the reason why it has not.
fn printable(raw: &[u8]) -> Result<&str, AuthorityError> {
    if raw.is_empty() {
        return Err(AuthorityError::Empty);
    }
    for byte in raw {
        match byte {
            b' ' => return Err(AuthorityError::Space),
            0x80.. => return Err(AuthorityError::NonAscii),
            byte if byte.is_ascii_control() => return Err(AuthorityError::ControlCharacter),
            _visible => {}
        }
    }
    str::from_utf8(raw).map_err(|_impossible| AuthorityError::NonAscii)
}

/// Refuses, by their names, the parts that a URL has and an authority-form target has not.
fn refuse_url_parts(text: &str) -> Result<(), AuthorityError> {
    if text.contains("://") {
        return Err(AuthorityError::Scheme);
    }
    if text.contains(['/', '?', '#']) {
        return Err(AuthorityError::Path);
    }
    if text.contains('@') {
        return Err(AuthorityError::UserInfo);
    }
    if text.contains('%') && !text.starts_with('[') {
        return Err(AuthorityError::PercentEscape);
    }
    Ok(())
}

/// Reads what stands between brackets.
fn ipv6_literal(text: &str) -> Result<Ipv6Addr, AuthorityError> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok(address);
    }
    Err(if text.is_empty() {
        AuthorityError::MissingHost
    } else if text.contains('%') {
        AuthorityError::ZoneId
    } else if is_ipv_future(text) {
        AuthorityError::FutureAddress
    } else if text.contains(':') {
        AuthorityError::InvalidIpv6
    } else if text.parse::<Ipv4Addr>().is_ok() {
        AuthorityError::BracketedIpv4
    } else {
        AuthorityError::BracketedName
    })
}

/// The port after a closing bracket.
fn after_bracket(rest: &str) -> Result<&str, AuthorityError> {
    if rest.is_empty() {
        return Err(AuthorityError::MissingPort);
    }
    rest.strip_prefix(':').ok_or(AuthorityError::AfterBracket)
}

fn parse_port(text: &str) -> Result<NonZeroU16, AuthorityError> {
    if text.is_empty() {
        return Err(AuthorityError::MissingPort);
    }
    // `parse` takes a sign and leading zeros, which a port has not.
    if text.starts_with(['+', '-', '0']) {
        return Err(AuthorityError::InvalidPort);
    }
    text.parse()
        .map_err(|_not_a_port| AuthorityError::InvalidPort)
}

/// `reg-name = *( unreserved / pct-encoded / sub-delims )` (RFC 3986 §3.2.2).
fn is_reg_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let is_valid = if byte == b'%' {
            let mut is_hex = || bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit());
            is_hex() && is_hex()
        } else {
            is_unreserved_or_sub_delim(byte)
        };
        if !is_valid {
            return false;
        }
    }
    true
}

/// `IP-literal = "[" ( IPv6address / IPvFuture ) "]"`, without the brackets.
fn is_ip_literal(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok() || is_ipv_future(text)
}

/// `IPvFuture = "v" 1*HEXDIG "." 1*( unreserved / sub-delims / ":" )`.
fn is_ipv_future(text: &str) -> bool {
    let Some((version, address)) = text
        .strip_prefix(['v', 'V'])
        .and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    !version.is_empty()
        && version.bytes().all(|byte| byte.is_ascii_hexdigit())
        && !address.is_empty()
        && address
            .bytes()
            .all(|byte| byte == b':' || is_unreserved_or_sub_delim(byte))
}

/// `port = *DIGIT`, and a number that a port can have.
fn is_port_or_empty(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
        && (text.is_empty() || text.parse::<u16>().is_ok())
}

fn is_unreserved_or_sub_delim(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}
