//! The ports that a tunnel may lead to.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use thiserror::Error;

#[cfg(test)]
mod tests;

/// One port or a range of ports: `443`, `8000-8100`. Never empty, never with port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// The union of some ranges; the default is 443, the port of HTTPS. Ranges may overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet(Vec<PortRange>);

/// Why a text is not a port or a range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PortError {
    /// Not a number from 1 to 65535.
    #[error("'{0}' is not a port; write a number from 1 to 65535, or a range such as 8000-8100")]
    NotAPort(String),
    /// Several in one text.
    #[error("'{0}' is more than one port or range; give one at a time")]
    Several(String),
    /// The first port is above the last.
    #[error("the range {first}-{last} is empty; write the lower port first")]
    Reversed {
        /// The port before the dash.
        first: u16,
        /// The port after the dash.
        last: u16,
    },
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }
}

impl PortRange {
    /// The ports.
    pub(crate) fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Whether the port is in the range.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        self.ports().contains(&port)
    }
}

impl PortSet {
    /// Port 80, that of HTTP.
    #[must_use]
    pub fn http() -> Self {
        Self(vec![PortRange {
            first: 80,
            last: 80,
        }])
    }

    /// Whether the port is in one of the ranges.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }

    /// Whether every port of `other` is in this set.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut ports = other.0.iter().flat_map(|range| range.first..=range.last);
        ports.all(|port| self.contains(port))
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self(vec![PortRange {
            first: 443,
            last: 443,
        }])
    }
}

impl FromIterator<PortRange> for PortSet {
    fn from_iter<T: IntoIterator<Item = PortRange>>(ranges: T) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl FromStr for PortRange {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        if text.contains(',') {
            return Err(PortError::Several(text.to_owned()));
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (parse_port(first)?, parse_port(last)?);
        if first > last {
            return Err(PortError::Reversed { first, last });
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// The ranges with commas between them.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

/// An integer or a string.
impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortRangeVisitor)
    }
}

/// A list of ranges.
impl<'de> Deserialize<'de> for PortSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self)
    }
}

struct PortRangeVisitor;

impl Visitor<'_> for PortRangeVisitor {
    type Value = PortRange;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port from 1 to 65535 such as 443, or a range such as \"8000-8100\"")
    }

    fn visit_i64<E: serde::de::Error>(self, port: i64) -> Result<PortRange, E> {
        match u16::try_from(port) {
            Ok(port) if port != 0 => Ok(PortRange {
                first: port,
                last: port,
            }),
            _out_of_range => Err(E::invalid_value(Unexpected::Signed(port), &self)),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, port: u64) -> Result<PortRange, E> {
        match i64::try_from(port) {
            Ok(port) => self.visit_i64(port),
            Err(_too_large) => Err(E::invalid_value(Unexpected::Unsigned(port), &self)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PortRange, E> {
        text.parse().map_err(E::custom)
    }
}

fn parse_port(text: &str) -> Result<u16, PortError> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let port = if is_plain { text.parse().ok() } else { None };
    port.ok_or_else(|| PortError::NotAPort(text.to_owned()))
}
