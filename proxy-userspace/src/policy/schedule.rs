//! Times of the week.

use std::{fmt, str::FromStr};

/// A moment as a schedule sees it: local weekday and minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// From Sunday, 0, to Saturday, 6.
    pub weekday: u8,
    /// Of the day, from 0 to 1439.
    pub minute: u16,
}

/// Some days, and the same hours on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// A bit a day, Sunday's the lowest.
    pub days: u8,
    /// The first minute of the day.
    pub first: u16,
    /// The last minute, which belongs to it, as in Squid.
    pub last: u16,
}

/// The days in the order of their bits.
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// Every day of the week.
pub const ALL_DAYS: u8 = 0x7f;
const LAST_MINUTE: u16 = 24 * 60 - 1;

impl Window {
    /// These days, from midnight to midnight.
    #[must_use]
    pub fn whole(days: u8) -> Self {
        Self {
            days,
            first: 0,
            last: LAST_MINUTE,
        }
    }

    /// Whether the moment is in it.
    #[must_use]
    pub fn contains(self, moment: Moment) -> bool {
        self.days >> moment.weekday & 1 == 1 && (self.first..=self.last).contains(&moment.minute)
    }
}

/// `mon-fri 08:00-18:00`, `sat,sun`, `22:00-24:00`.
impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a time; write \"mon-fri 08:00-18:00\", \"sat,sun\" or \"08:00-18:00\""
            )
        };
        let mut window = Self::whole(ALL_DAYS);
        let mut parts = text.split_whitespace();
        let mut next = parts.next().ok_or_else(wrong)?;
        if next.starts_with(|first: char| first.is_ascii_alphabetic()) {
            window.days = days(next).ok_or_else(wrong)?;
            match parts.next() {
                Some(hours) => next = hours,
                None => return Ok(window),
            }
        }
        let (first, last) = next.split_once('-').ok_or_else(wrong)?;
        window.first = minute(first).ok_or_else(wrong)?;
        window.last = minute(last).ok_or_else(wrong)?.min(LAST_MINUTE);
        if window.first > window.last {
            return Err(format!(
                "the time '{text}' ends before it begins; write two, up to 24:00 and from 00:00"
            ));
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(window)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if self.days != ALL_DAYS {
            for (bit, day) in DAYS.iter().enumerate() {
                if self.days >> bit & 1 == 1 {
                    write!(f, "{separator}{day}")?;
                    separator = ",";
                }
            }
            separator = " ";
        }
        if self.days == ALL_DAYS || (self.first, self.last) != (0, LAST_MINUTE) {
            let (first, last) = (self.first, self.last);
            let (hour, minute) = if last == LAST_MINUTE {
                (24, 0)
            } else {
                (last / 60, last % 60)
            };
            write!(
                f,
                "{separator}{:02}:{:02}-{hour:02}:{minute:02}",
                first / 60,
                first % 60
            )?;
        }
        Ok(())
    }
}

/// Hours and minutes; `24:00` is the end of the day.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str| {
        let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    let is_valid = minute < 60 && hour < 24 || (hour, minute) == (24, 0);
    is_valid.then_some(hour * 60 + minute)
}

/// `mon-fri`, `sat,sun`; a range may go over the end of the week.
fn days(text: &str) -> Option<u8> {
    let day = |name: &str| {
        let name = name.to_ascii_lowercase();
        DAYS.iter().position(|day| *day == name)
    };
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        days |= 1 << at;
        while at != last {
            at = (at + 1) % 7;
            days |= 1 << at;
        }
    }
    Some(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_and_written() {
        for (text, days, first, last, written) in [
            (
                "mon-fri 08:00-18:00",
                0b011_1110,
                480,
                1080,
                "mon,tue,wed,thu,fri 08:00-18:00",
            ),
            ("sat,sun", 0b100_0001, 0, 1439, "sun,sat"),
            ("fri-mon", 0b110_0011, 0, 1439, "sun,mon,fri,sat"),
            ("8:30-24:00", ALL_DAYS, 510, 1439, "08:30-24:00"),
            ("00:00-24:00", ALL_DAYS, 0, 1439, "00:00-24:00"),
        ] {
            let window: Window = text.parse().unwrap();
            assert_eq!(window, Window { days, first, last }, "{text}");
            assert_eq!(window.to_string(), written);
            assert_eq!(written.parse(), Ok(window));
        }
    }

    #[test]
    fn both_ends_belong_to_it() {
        let window: Window = "mon 08:00-18:00".parse().unwrap();
        for (weekday, minute, expected) in [
            (1, 479, false),
            (1, 480, true),
            (1, 1080, true),
            (1, 1081, false),
            (2, 600, false),
        ] {
            assert_eq!(window.contains(Moment { weekday, minute }), expected);
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "noday",
            "mon 8-18",
            "mon 18:00-08:00",
            "25:00-26:00",
            "08:60-09:00",
            "mon 08:00-09:00 x",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }
}
