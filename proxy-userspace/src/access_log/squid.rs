//! Squid's native log line. Pure.
//!
//! Byte for byte what Squid's `FormatSquidNative.cc` prints:
//! `time elapsed client tag/status bytes method URL user hierarchy/peer type`.

use std::{fmt::Write as _, time::UNIX_EPOCH};

use super::Record;
use crate::percent::encode;

/// The record's line.
pub(super) fn line(record: &Record<'_>) -> String {
    let time = record.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = format!(
        "{:9}.{:03} {:6} {} {}/{:03} {} {} {} {} ",
        time.as_secs(),
        time.subsec_millis(),
        record.elapsed.as_millis(),
        record.client.ip(),
        record.tag,
        record.status,
        record.sent,
        record.method,
        record.url,
        record.user.map_or("-".into(), |user| encode(user, is_safe)),
    );
    // A String takes everything.
    let _ = match record.peer {
        Some(peer) => write!(line, "{}/{peer}", record.hierarchy),
        None => write!(line, "HIER_NONE/-"),
    };
    let content_type = record.content_type.as_deref();
    let _ = write!(line, " {}", content_type.unwrap_or("-"));
    line
}

/// What Squid's `rfc1738_escape` leaves as it is: what is safe in a URL, and does not break the line.
pub(super) fn is_safe(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"<>\"#%{}|\\^~[]`'".contains(&byte)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::Tag, super::record::example, *};

    #[test]
    fn a_tunnel_reads_as_squid_writes_it() {
        assert_eq!(
            line(&example()),
            "1544160065.248    228 172.30.109.89 TCP_TUNNEL/200 87633 CONNECT \
             en.wikipedia.org:443 - HIER_DIRECT/91.198.174.192 -"
        );
    }

    #[test]
    fn a_denial_has_no_peer_and_a_type() {
        let record = Record {
            tag: Tag::TcpDenied,
            status: 403,
            sent: 300,
            elapsed: Duration::ZERO,
            peer: None,
            content_type: Some("text/plain".into()),
            ..example()
        };
        assert_eq!(
            line(&record),
            "1544160065.248      0 172.30.109.89 TCP_DENIED/403 300 CONNECT \
             en.wikipedia.org:443 - HIER_NONE/- text/plain"
        );
    }

    #[test]
    fn a_user_stands_in_its_field_encoded() {
        for (user, field) in [
            ("anna", "anna"),
            ("an na%", "an%20na%25"),
            ("\u{e4}\n", "%C3%A4%0A"),
        ] {
            let record = Record {
                user: Some(user),
                ..example()
            };
            let line = line(&record);
            assert_eq!(line.split(' ').rev().nth(2), Some(field), "{line}");
        }
    }

    #[test]
    fn what_never_became_a_request_has_status_000() {
        let record = Record {
            time: UNIX_EPOCH + Duration::from_millis(5),
            elapsed: Duration::from_millis(1_234_567),
            client: "[2001:db8::1]:1".parse().unwrap(),
            tag: Tag::None,
            status: 0,
            sent: 0,
            method: "NONE",
            url: "error:transaction-end-before-headers".into(),
            peer: None,
            ..example()
        };
        assert_eq!(
            line(&record),
            "        0.005 1234567 2001:db8::1 NONE_NONE/000 0 NONE \
             error:transaction-end-before-headers - HIER_NONE/- -"
        );
    }
}
