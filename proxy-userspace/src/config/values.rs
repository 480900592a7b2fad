//! The values of the configuration file: text that is checked where it stands. Pure.
//!
//! Each knows how to read itself, so that a mistake is reported with its line and column, and how to
//! write itself, so that another format can be converted.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::duration;
use crate::{
    lines::Destination,
    policy::{DomainSet, PortRange},
};

/// A value that is written as a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text<T>(pub T);

/// What stands in for a value in the schema.
pub trait Describe {
    /// What to write, with an example.
    const DESCRIPTION: &'static str;
}

impl<'de, T: FromStr<Err: fmt::Display> + Describe> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<T: FromStr<Err: fmt::Display> + Describe> de::Visitor<'_> for Visitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::DESCRIPTION)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer
            .deserialize_str(Visitor(std::marker::PhantomData))
            .map(Self)
    }
}

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<T: Describe> JsonSchema for Text<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Text of {}", T::DESCRIPTION).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": T::DESCRIPTION })
    }
}

/// A value of a list, or a file with more of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<T> {
    /// The value.
    Value(T),
    /// `@path`: a value a line; empty lines, and what follows a `#`, do not count.
    File(PathBuf),
}

impl<T: FromStr> FromStr for Item<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text.strip_prefix('@') {
            Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => text.parse().map(Self::Value),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Item<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => value.fmt(f),
            Self::File(path) => write!(f, "@{}", path.display()),
        }
    }
}

impl<T: Describe> Describe for Item<T> {
    const DESCRIPTION: &'static str = T::DESCRIPTION;
}

/// A network, an address, or a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// `10.0.0.0/8`, or one address.
    Net(IpNet),
    /// `10.0.0.1-10.0.0.9`.
    Range(IpAddr, IpAddr),
}

impl Network {
    /// The networks that it consists of.
    pub(crate) fn networks(self) -> Vec<IpNet> {
        match self {
            Self::Net(network) => vec![network],
            Self::Range(IpAddr::V4(first), IpAddr::V4(last)) => {
                Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
            }
            Self::Range(IpAddr::V6(first), IpAddr::V6(last)) => {
                Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
            }
            // The parser does not let them through.
            Self::Range(..) => Vec::new(),
        }
    }

    /// Its first and last address.
    #[must_use]
    pub fn ends(self) -> (IpAddr, IpAddr) {
        match self {
            Self::Net(network) => (network.network(), network.broadcast()),
            Self::Range(first, last) => (first, last),
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = || {
            let (first, last) = text.split_once('-')?;
            let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
            (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self::Range(first, last))
        };
        super::parse_network(text)
            .map(Self::Net)
            .or_else(|error| range().ok_or(error))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(network) => network.fmt(f),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl Describe for Network {
    const DESCRIPTION: &'static str = "a network such as \"10.0.0.0/8\", an address, a range such as \"10.0.0.1-10.0.0.9\", or \"@file\"";
}

/// A host's name, or a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(pub String);

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if DomainSet::default().insert(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "'{text}' is not a host; write example.com, .example.com (with all names below it), \
             *.example.com (only those), or use host_regex"
        ))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Describe for HostPattern {
    const DESCRIPTION: &'static str = "a host \"example.com\", a domain with all its names \
        \".example.com\", only those below it \"*.example.com\", or \"@file\"";
}

/// A regular expression, in the syntax of the crate `regex`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(pub String);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Regex::new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => {
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default();
                let reason = reason.strip_prefix("error: ").unwrap_or(reason);
                Err(format!("'{text}' is not a regular expression: {reason}"))
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Describe for Pattern {
    const DESCRIPTION: &'static str =
        "a regular expression such as \"^cdn[0-9]+\\\\.example\\\\.com$\", or \"@file\"";
}

impl Describe for crate::policy::Window {
    const DESCRIPTION: &'static str =
        "a time such as \"mon-fri 08:00-18:00\", \"sat,sun\" or \"22:00-24:00\"";
}

/// A word: a user, a method, the name of a listener or of a match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word(pub String);

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_bad = |c: char| c.is_whitespace() || c.is_control();
        if text.is_empty() || text.contains(is_bad) {
            return Err(format!("'{text}' is not one word"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Describe for Word {
    const DESCRIPTION: &'static str = "a word, or \"@file\"";
}

/// The name of a field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldName(pub hyper::header::HeaderName);

impl FromStr for FieldName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| format!("'{text}' is not the name of a header field"))
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl Describe for FieldName {
    const DESCRIPTION: &'static str = "the name of a header field, such as \"User-Agent\"";
}

/// A firewall mark with its mask, `0x10/0xff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkText(pub crate::policy::Mark);

impl FromStr for MarkText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| match digits.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => digits.parse().ok(),
        };
        let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
        match (number(value), number(mask)) {
            (Some(value), Some(mask)) => Ok(Self(crate::policy::Mark { value, mask })),
            _ => Err(format!("'{text}' is not a mark; write 0x10 or 0x10/0xff")),
        }
    }
}

impl fmt::Display for MarkText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.0.value, self.0.mask)
    }
}

impl Describe for MarkText {
    const DESCRIPTION: &'static str = "a firewall mark, with a mask or without: \"0x10/0xff\"";
}

impl Describe for SocketAddr {
    const DESCRIPTION: &'static str = "an address with a port such as \"127.0.0.1:3128\"";
}

impl Describe for crate::dns::NameServer {
    const DESCRIPTION: &'static str = "a name server such as \"10.0.0.53\", \"tcp://10.0.0.53:5353\", \
        \"tls://192.0.2.1#dns.example\" or \"https://192.0.2.1/dns-query#dns.example\"";
}

impl Describe for crate::parent::ParentUrl {
    const DESCRIPTION: &'static str =
        "a proxy such as \"http://proxy.example:3128\" or \"https://proxy.example:3129\"";
}

impl Describe for IpAddr {
    const DESCRIPTION: &'static str = "an IP address";
}

impl Describe for Destination {
    const DESCRIPTION: &'static str =
        "a path, \"-\" for standard output, \"syslog:facility.severity\" or \"udp://host:port\"";
}

impl Describe for crate::access_log::Format {
    const DESCRIPTION: &'static str = "squid, common, combined, referrer, useragent, json, envoy, or a format in the language of \
        Squid's logformat such as \"%ts %>a %ru\"";
}

/// A number of bytes in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let per_second = text.trim().strip_suffix("/s").map(str::trim);
        let rate = per_second.and_then(|amount| match split_unit(amount) {
            (number, "bit") => scaled(number, 1, 8),
            (number, "kbit") => scaled(number, 1000, 8),
            (number, "Mbit") => scaled(number, 1_000_000, 8),
            (number, "Gbit") => scaled(number, 1_000_000_000, 8),
            _ => bytes(amount),
        });
        rate.filter(|&rate| rate > 0).map(Self).ok_or_else(|| {
            format!("'{text}' is not a rate; write \"10Mbit/s\", \"500kB/s\" or \"2MiB/s\"")
        })
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = bytes(text.trim()).filter(|&size| size > 0);
        size.map(Self)
            .ok_or_else(|| format!("'{text}' is not a size; write \"64KiB\", \"1MB\" or \"1500B\""))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B/s", self.0)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0)
    }
}

impl Describe for Rate {
    const DESCRIPTION: &'static str = "a rate such as \"10Mbit/s\", \"500kB/s\" or \"2MiB/s\"";
}

impl Describe for Size {
    const DESCRIPTION: &'static str = "a size such as \"64KiB\" or \"1MB\"";
}

/// A number and what follows it.
fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start())
}

fn scaled(number: &str, times: u64, by: u64) -> Option<u64> {
    let number: u64 = number.parse().ok()?;
    Some(number.checked_mul(times)? / by)
}

fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let times = match unit {
        "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    scaled(number, times, 1)
}

/// A duration, `30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        duration::deserialize(deserializer).map(Self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&duration::format(self.0))
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+(ms|s|m|h|d)$",
            "description": "a duration such as \"250ms\", \"30s\", \"15m\", \"1h\" or \"1d\"",
        })
    }
}

impl JsonSchema for PortRange {
    fn schema_name() -> Cow<'static, str> {
        "Port".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "integer", "minimum": 1, "maximum": 65535 },
                { "type": "string", "pattern": "^[0-9]+(-[0-9]+)?$" },
            ],
            "description": "a port such as 443, or a range such as \"8000-8100\"",
        })
    }
}

/// A number, or the text of a range.
impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to_string().parse::<u16>() {
            Ok(port) => serializer.serialize_u16(port),
            Err(_) => serializer.collect_str(self),
        }
    }
}

/// A differentiated services code point (RFC 2474), from 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dscp(pub u8);

impl<'de> Deserialize<'de> for Dscp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let point = u8::deserialize(deserializer)?;
        if point < 64 {
            return Ok(Self(point));
        }
        Err(de::Error::custom("a DSCP is a number from 0 to 63"))
    }
}

impl Serialize for Dscp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl JsonSchema for Dscp {
    fn schema_name() -> Cow<'static, str> {
        "Dscp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": 63 })
    }
}

/// A share of all requests, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chance(pub f64);

impl<'de> Deserialize<'de> for Chance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let chance = f64::deserialize(deserializer)?;
        if (0.0..=1.0).contains(&chance) {
            return Ok(Self(chance));
        }
        Err(de::Error::custom("a chance is a number from 0.0 to 1.0"))
    }
}

impl Serialize for Chance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0)
    }
}

impl JsonSchema for Chance {
    fn schema_name() -> Cow<'static, str> {
        "Chance".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0, "maximum": 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_sizes() {
        for (text, expected) in [
            ("10Mbit/s", Some(1_250_000)),
            ("10 Mbit/s", Some(1_250_000)),
            ("500kB/s", Some(500_000)),
            ("2MiB/s", Some(2 << 20)),
            ("7B/s", Some(7)),
            ("0B/s", None),
            ("1bit/s", None),
            ("10Mbit", None),
            ("10", None),
            ("99999999999999999999B/s", None),
        ] {
            assert_eq!(
                text.parse::<Rate>().ok().map(|rate| rate.0),
                expected,
                "{text}"
            );
        }
        assert_eq!("64KiB".parse(), Ok(Size(65536)));
        assert!("64".parse::<Size>().is_err());
    }

    #[test]
    fn networks_are_nets_addresses_and_ranges() {
        for (text, expected) in [
            ("10.0.0.0/8", Some(("10.0.0.0", "10.255.255.255"))),
            ("::1", Some(("::1", "::1"))),
            ("10.0.0.5-10.0.0.9", Some(("10.0.0.5", "10.0.0.9"))),
            ("10.0.0.9-10.0.0.5", None),
            ("10.0.0.1-::1", None),
            ("10.0.0/8", None),
        ] {
            let ends = text.parse::<Network>().ok().map(Network::ends);
            let expected = expected.map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()));
            assert_eq!(ends, expected, "{text}");
        }
    }

    #[test]
    fn an_item_is_a_value_or_a_file() {
        assert_eq!("@a/b".parse::<Item<Word>>(), Ok(Item::File("a/b".into())));
        assert_eq!("a".parse::<Item<Word>>(), Ok(Item::Value(Word("a".into()))));
        assert!("a b".parse::<Item<Word>>().is_err());
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for text in ["0x10/0xff", "5"] {
            let mark: MarkText = text.parse().unwrap();
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
    }
}
