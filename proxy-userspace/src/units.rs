//! Amounts for people: three digits and a unit. Pure.

use std::{fmt, time::Duration};

/// Bytes, such as `1.25 MB`.
#[must_use]
pub fn bytes(amount: f64) -> String {
    let mut rest = amount.max(0.0);
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        // What would be rounded to four digits is one of the next unit.
        if rest < 999.5 || unit == "TB" {
            return format!("{} {unit}", three_digits(rest, unit == "B"));
        }
        rest /= 1000.0;
    }
    String::new()
}

/// As many bytes as were counted.
#[must_use]
pub fn amount(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    bytes(count as f64)
}

/// A number, such as `12,345`.
#[must_use]
pub fn count(number: impl fmt::Display) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in a second, such as `1.25 MB/s`; nothing for none.
#[must_use]
pub fn rate(amount: f64) -> String {
    if amount < 0.5 {
        return "-".to_owned();
    }
    format!("{}/s", bytes(amount))
}

fn three_digits(amount: f64, is_whole: bool) -> String {
    let decimals = match amount {
        _ if is_whole => 0,
        small if small < 9.995 => 2,
        middle if middle < 99.95 => 1,
        _ => 0,
    };
    format!("{amount:.decimals$}")
}

/// A time in seconds, as [`duration`] has it.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

/// A time, such as `1.2s`, `4m05s`, `3h20m` or `2d04h`.
#[must_use]
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits() {
        for (amount, expected) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (1000.0, "1.00 kB"),
            (9_994.0, "9.99 kB"),
            (9_996.0, "10.0 kB"),
            (999_400.0, "999 kB"),
            (999_600.0, "1.00 MB"),
            (12_345_678.0, "12.3 MB"),
            (5e15, "5000 TB"),
        ] {
            assert_eq!(bytes(amount), expected);
        }
        for (number, expected) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(count(number), expected);
        }
        assert_eq!(rate(0.0), "-");
        assert_eq!(rate(1500.0), "1.50 kB/s");
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, expected) in [
            (0, "0.0s"),
            (59, "59s"),
            (245, "4m05s"),
            (12_000, "3h20m"),
            (187_200, "2d04h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), expected);
        }
    }
}
