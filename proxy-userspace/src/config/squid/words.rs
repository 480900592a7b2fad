//! Values as squid.conf writes them.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::super::values::Network;
use crate::policy::{ALL_DAYS, Window};

/// `30 seconds`, `1 minute`, `2 hours`: a number, and its unit, which may be left out for seconds.
pub(super) fn duration(words: &[&str]) -> Result<Duration, String> {
    let (number, unit) = match words {
        [number] => (*number, "seconds"),
        [number, unit, ..] => (*number, *unit),
        [] => return Err("a time is missing, such as 30 seconds".to_owned()),
    };
    let wrong = || {
        format!(
            "'{}' is not a time; write 30 seconds, 1 minute, 2 hours",
            words.join(" ")
        )
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit.strip_suffix('s').unwrap_or(unit) {
        "millisecond" => 0.001,
        "second" | "sec" => 1.0,
        "minute" | "min" => 60.0,
        "hour" => 3600.0,
        "day" => 86_400.0,
        "week" => 604_800.0,
        "fortnight" => 1_209_600.0,
        "month" => 2_592_000.0,
        "year" => 31_557_600.0,
        "decade" => 315_576_000.0,
        _ => return Err(wrong()),
    };
    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
    if duration < Duration::from_millis(1) || duration > Duration::from_secs(100 * 366 * 86_400) {
        return Err(wrong());
    }
    Ok(duration)
}

/// `addr`, `addr/bits`, `addr/mask`, `addr1-addr2`, `addr1-addr2/mask` (`acl_ip_data::FactoryParse`).
pub(super) fn networks(text: &str) -> Result<Vec<Network>, String> {
    let wrong = || {
        format!(
            "'{text}' is not an address or a network; write 10.0.0.0/8, 10.0.0.1-10.0.0.9 or an address"
        )
    };
    let net = |text: &str| text.parse::<IpNet>().map(Network::Net).map_err(|_| wrong());
    match text {
        "ipv4" => return Ok(vec![net("0.0.0.0/0")?]),
        "ipv6" => return Ok(vec![net("::/0")?]),
        _ => {}
    }
    let (addresses, mask) = match text.split_once('/') {
        Some((addresses, mask)) => (addresses, Some(mask)),
        None => (text, None),
    };
    let (first, last) = match addresses.split_once('-') {
        Some((first, last)) => (first, Some(last)),
        None => (addresses, None),
    };
    let first = address(first).ok_or_else(wrong)?;
    let bits = match mask {
        None => {
            if first.is_ipv4() {
                32
            } else {
                128
            }
        }
        Some(mask) => prefix_length(mask, first).ok_or_else(wrong)?,
    };
    let first = IpNet::new(first, bits).map_err(|_| wrong())?;
    let Some(last) = last else {
        return Ok(vec![Network::Net(first.trunc())]);
    };
    let last = IpNet::new(address(last).ok_or_else(wrong)?, bits).map_err(|_| wrong())?;
    let (from, to) = (first.network(), last.broadcast());
    if from.is_ipv4() != to.is_ipv4() || from > to {
        return Err(wrong());
    }
    Ok(vec![Network::Range(from, to)])
}

/// An address; IPv6 may be in brackets.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    inner.unwrap_or(text).parse().ok()
}

fn prefix_length(mask: &str, address: IpAddr) -> Option<u8> {
    if let Ok(bits) = mask.parse::<u8>() {
        return Some(bits);
    }
    let mask: IpAddr = mask.parse().ok()?;
    (mask.is_ipv4() == address.is_ipv4()).then_some(())?;
    ipnet::ip_mask_to_prefix(mask).ok()
}

/// A regular expression of POSIX, as the one of ours that means the same.
pub(super) fn pattern(text: &str, ignore_case: bool) -> String {
    let word_ends = text.replace("\\<", "\\b").replace("\\>", "\\b");
    if ignore_case {
        format!("(?i){word_ends}")
    } else {
        word_ends
    }
}

/// `MTWHF 9:00-17:00`, several of them in a row (`ACLTimeData::parse`).
pub(super) fn windows(words: &[&str]) -> Result<Vec<Window>, String> {
    let mut windows = Vec::new();
    let mut days = None;
    for word in words {
        if word.starts_with(|first: char| first.is_ascii_digit()) {
            windows.push(hours(word, days.take().unwrap_or(ALL_DAYS))?);
        } else {
            if let Some(days) = days.take() {
                windows.push(Window::whole(days));
            }
            days = Some(weekdays(word)?);
        }
    }
    windows.extend(days.map(Window::whole));
    Ok(windows)
}

fn weekdays(word: &str) -> Result<u8, String> {
    let mut days = 0;
    for letter in word.chars() {
        days |= match letter {
            'S' => 1,
            'M' => 1 << 1,
            'T' => 1 << 2,
            'W' => 1 << 3,
            'H' => 1 << 4,
            'F' => 1 << 5,
            'A' => 1 << 6,
            'D' => 0b011_1110,
            '-' => 0,
            other => {
                return Err(format!(
                    "'{other}' is no day; the days are S M T W H F A, and D for M to F"
                ));
            }
        };
    }
    Ok(days)
}

fn hours(word: &str, days: u8) -> Result<Window, String> {
    let wrong = || format!("'{word}' is not a time; write 9:00-17:00, the earlier first");
    let minute = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        let is_time = hour < 24 && minute < 60 || (hour, minute) == (24, 0);
        is_time.then(|| hour * 60 + minute)
    };
    let (first, last) = word.split_once('-').ok_or_else(wrong)?;
    let (first, last) = (
        minute(first).ok_or_else(wrong)?,
        minute(last).ok_or_else(wrong)?,
    );
    if first > last {
        return Err(wrong());
    }
    Ok(Window {
        days,
        first,
        last: last.min(24 * 60 - 1),
    })
}

/// `0.333`, `1/3`, or `3:5`, matches to others (`ACLRandom::parse`).
pub(super) fn chance(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| *number >= 0.0);
    let chance = if let Some((part, whole)) = text.split_once('/') {
        number(part)
            .zip(number(whole))
            .map(|(part, whole)| part / whole)
    } else if let Some((matches, others)) = text.split_once(':') {
        let both = number(matches).zip(number(others));
        both.map(|(matches, others)| matches / (matches + others))
    } else {
        number(text)
    };
    chance
        .filter(|chance| (0.0..=1.0).contains(chance))
        .ok_or_else(|| format!("'{text}' is not a probability; write 0.333, 1/3 or 1:2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (words, seconds) in [
            (&["60"][..], 60),
            (&["1", "minute"], 60),
            (&["15", "minutes"], 900),
            (&["2", "hours"], 7200),
            (&["1", "day"], 86_400),
            (&["0.5", "minutes"], 30),
        ] {
            assert_eq!(
                duration(words),
                Ok(Duration::from_secs(seconds)),
                "{words:?}"
            );
        }
        for words in [
            &["x"][..],
            &["1", "parsec"],
            &[],
            &["0"],
            &["-1", "day"],
            &["1e300", "years"],
        ] {
            assert!(duration(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn addresses_and_networks() {
        for (text, first, last) in [
            ("10.1.2.3", "10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/8", "10.0.0.0", "10.255.255.255"),
            ("10.1.2.3/255.255.0.0", "10.1.0.0", "10.1.255.255"),
            ("10.0.0.5-10.0.0.9", "10.0.0.5", "10.0.0.9"),
            ("10.0.1.5-10.0.3.9/24", "10.0.1.0", "10.0.3.255"),
            (
                "fc00::/7",
                "fc00::",
                "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ),
            ("[::1]", "::1", "::1"),
            ("ipv4", "0.0.0.0", "255.255.255.255"),
        ] {
            let ends: Vec<_> = networks(text)
                .unwrap()
                .into_iter()
                .map(Network::ends)
                .collect();
            assert_eq!(
                ends,
                [(first.parse().unwrap(), last.parse().unwrap())],
                "{text}"
            );
        }
        for text in [
            "",
            "example.com",
            "10.0.0.0/33",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-::1",
            "10.0.0.0/255.0.255.0",
        ] {
            assert!(networks(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times() {
        let window = |text: &str| text.parse::<Window>().unwrap();
        assert_eq!(
            windows(&["MTWHF", "9:00-17:00"]),
            Ok(vec![window("mon-fri 09:00-17:00")])
        );
        assert_eq!(windows(&["D"]), Ok(vec![window("mon-fri")]));
        assert_eq!(
            windows(&["A", "10:00-12:00", "S"]),
            Ok(vec![window("sat 10:00-12:00"), window("sun")])
        );
        assert_eq!(windows(&["9:00-24:00"]), Ok(vec![window("09:00-24:00")]));
        for words in [&["X"][..], &["17:00-9:00"], &["9-17"], &["0:0-3002:59"]] {
            assert!(windows(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn chances() {
        for (text, expected) in [
            ("0.5", 0.5),
            ("1/4", 0.25),
            ("3:5", 0.375),
            ("0", 0.0),
            ("1", 1.0),
        ] {
            assert!((chance(text).unwrap() - expected).abs() < 1e-9, "{text}");
        }
        for text in ["2", "-1", "1/0", "0/0", "x", "3/2"] {
            assert!(chance(text).is_err(), "{text}");
        }
    }
}
