//! The formats of lines, by name.

use std::{fmt, str::FromStr};

use super::{Record, envoy, json, logformat::LogFormat, squid};

/// How a record becomes a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Squid's native one.
    #[default]
    Squid,
    /// An object of JSON.
    Json,
    /// Envoy's default.
    Envoy,
    /// In the language of Squid's `logformat`.
    Custom(LogFormat),
}

/// What Squid calls the formats that it has; they cannot be defined anew.
const NAMED: [(&str, &str); 4] = [
    (
        "common",
        r#"%>a %[ui %[un [%tl] "%rm %ru HTTP/%rv" %>Hs %<st %Ss:%Sh"#,
    ),
    (
        "combined",
        r#"%>a %[ui %[un [%tl] "%rm %ru HTTP/%rv" %>Hs %<st "%{Referer}>h" "%{User-Agent}>h" %Ss:%Sh"#,
    ),
    ("referrer", "%ts.%03tu %>a %{Referer}>h %ru"),
    ("useragent", r#"%>a [%tl] "%{User-Agent}>h""#),
];

impl Format {
    /// A format by one of its names.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "squid" => Some(Self::Squid),
            "json" => Some(Self::Json),
            "envoy" => Some(Self::Envoy),
            _ => {
                let (_, text) = NAMED.iter().find(|(known, _)| *known == name)?;
                text.parse().ok().map(Self::Custom)
            }
        }
    }

    /// The record's line, without the end of it.
    #[must_use]
    pub fn line(&self, record: &Record<'_>) -> String {
        match self {
            Self::Squid => squid::line(record),
            Self::Json => json::line(record),
            Self::Envoy => envoy::line(record),
            Self::Custom(format) => format.line(record),
        }
    }

    /// The fields of requests that are in it, by their names in lower case.
    pub fn fields(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Squid | Self::Json => Box::new(std::iter::empty()),
            Self::Envoy => Box::new(envoy::FIELDS.into_iter()),
            Self::Custom(format) => Box::new(format.fields()),
        }
    }
}

/// A name, or what has a `%`.
impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('%') {
            return text.parse().map(Self::Custom);
        }
        Self::named(text).ok_or_else(|| {
            format!(
                "there is no log format '{text}'; write squid, common, combined, referrer, useragent, json or envoy, or one in the language of Squid's logformat such as \"%ts %>a %ru\""
            )
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Squid => f.write_str("squid"),
            Self::Json => f.write_str("json"),
            Self::Envoy => f.write_str("envoy"),
            Self::Custom(format) => {
                let text = format.as_str();
                let named = NAMED.iter().find(|(_, known)| *known == text);
                f.write_str(named.map_or(text, |(name, _)| *name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_name_that_reads_back() {
        for name in [
            "squid",
            "common",
            "combined",
            "referrer",
            "useragent",
            "json",
            "envoy",
            "%ts x%%",
        ] {
            let format: Format = name.parse().unwrap();
            assert_eq!(format.to_string(), name);
        }
        assert!("nonsense".parse::<Format>().unwrap_err().contains("json"));
    }
}
