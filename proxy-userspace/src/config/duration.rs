//! Durations as people write them: `250ms`, `30s`, `15m`, `1h`, `1d`. Pure.

use std::{fmt, time::Duration};

use serde::{
    Deserializer,
    de::{Unexpected, Visitor},
};

const EXPECTED: &str =
    "a duration above zero such as \"250ms\", \"30s\", \"15m\", \"1h\" or \"1d\"";

/// Reads a whole number with its unit; nothing shorter than a millisecond, and not zero: a timeout
/// of zero would end everything at once.
fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok().filter(|&number| number > 0)?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    // More than a century is a typing error, and would overflow clocks.
    let total = number.checked_mul(seconds)?;
    (total <= 100 * 366 * 86_400).then(|| Duration::from_secs(total))
}

/// Writes it in its largest whole unit.
pub(super) fn format(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_millis() > 0 || seconds == 0 {
        return format!("{}ms", duration.as_millis());
    }
    let units = [(86_400, 'd'), (3600, 'h'), (60, 'm')];
    let unit = units
        .iter()
        .find(|(length, _)| seconds.is_multiple_of(*length));
    let &(length, unit) = unit.unwrap_or(&(1, 's'));
    format!("{}{unit}", seconds / length)
}

/// Reads the text of a value.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    struct Text;

    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(EXPECTED)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_with_units() {
        for (text, expected) in [
            ("250ms", Duration::from_millis(250)),
            ("30s", Duration::from_secs(30)),
            ("15m", Duration::from_secs(900)),
            ("1h", Duration::from_secs(3600)),
            ("2d", Duration::from_secs(172_800)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
            assert_eq!(format(expected), text);
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "s",
            "30",
            "0s",
            "-1s",
            "1.5s",
            "30 s",
            "1w",
            "1S",
            "99999999999999999999s",
            "18446744073709551615h",
            "200000d",
            "3\u{661}s",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
