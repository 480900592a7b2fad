//! Squid's native log line. Pure.
//!
//! Byte for byte what Squid's `FormatSquidNative.cc` prints:
//! `time elapsed client tag/status bytes method URL user hierarchy/peer type`.

use std::{
    borrow::Cow,
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{parent::Hierarchy, percent::encode};

/// How a transaction went, in Squid's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// A tunnel, or the attempt to make one.
    TcpTunnel,
    /// A request that was forwarded, or the attempt to.
    TcpMiss,
    /// The same, and the client did not wait for all of the response.
    TcpMissAborted,
    /// The policy said no.
    TcpDenied,
    /// It never became a request.
    None,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcpTunnel => "TCP_TUNNEL",
            Self::TcpMiss => "TCP_MISS",
            Self::TcpMissAborted => "TCP_MISS_ABORTED",
            Self::TcpDenied => "TCP_DENIED",
            Self::None => "NONE_NONE",
        })
    }
}

/// What a line says.
#[derive(Clone, Debug)]
pub struct Record {
    /// When the transaction ended.
    pub ended: SystemTime,
    /// From the complete request head to the end.
    pub elapsed: Duration,
    /// Who asked.
    pub client: IpAddr,
    /// The authenticated user.
    pub user: Option<String>,
    /// How it went.
    pub tag: Tag,
    /// The status sent to the client; 0 if none was.
    pub status: u16,
    /// Bytes sent to the client, reply head included.
    pub bytes: u64,
    /// The request's method; `NONE` if none was recognised.
    pub method: String,
    /// What was asked for: `host:port`, a URL, or `error:` with a reason.
    pub url: String,
    /// The address that was connected to, or last tried.
    pub peer: Option<IpAddr>,
    /// How that was chosen.
    pub hierarchy: Hierarchy,
    /// The type of the response, if there was one.
    pub content_type: Option<Cow<'static, str>>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.ended.duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(
            f,
            "{:9}.{:03} {:6} {} {}/{:03} {} {} {} {} ",
            time.as_secs(),
            time.subsec_millis(),
            self.elapsed.as_millis(),
            self.client,
            self.tag,
            self.status,
            self.bytes,
            self.method,
            self.url,
            self.user
                .as_deref()
                .map_or("-".into(), |user| encode(user, is_safe)),
        )?;
        match self.peer {
            Some(peer) => write!(f, "{}/{peer}", self.hierarchy)?,
            None => f.write_str("HIER_NONE/-")?,
        }
        write!(f, " {}", self.content_type.as_deref().unwrap_or("-"))
    }
}

/// What Squid's `rfc1738_escape` leaves as it is: what is safe in a URL, and does not break the line.
fn is_safe(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"<>\"#%{}|\\^~[]`'".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            ended: UNIX_EPOCH + Duration::from_millis(1_544_160_065_248),
            elapsed: Duration::from_millis(228),
            client: [172, 30, 109, 89].into(),
            user: None,
            tag: Tag::TcpTunnel,
            status: 200,
            bytes: 87_633,
            method: "CONNECT".to_owned(),
            url: "en.wikipedia.org:443".to_owned(),
            peer: Some([91, 198, 174, 192].into()),
            hierarchy: Hierarchy::Direct,
            content_type: None,
        }
    }

    #[test]
    fn a_tunnel_reads_as_squid_writes_it() {
        assert_eq!(
            record().to_string(),
            "1544160065.248    228 172.30.109.89 TCP_TUNNEL/200 87633 CONNECT \
             en.wikipedia.org:443 - HIER_DIRECT/91.198.174.192 -"
        );
    }

    #[test]
    fn a_denial_has_no_peer_and_a_type() {
        let record = Record {
            tag: Tag::TcpDenied,
            status: 403,
            bytes: 300,
            elapsed: Duration::ZERO,
            peer: None,
            hierarchy: Hierarchy::Direct,
            content_type: Some("text/plain".into()),
            ..record()
        };
        assert_eq!(
            record.to_string(),
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
                user: Some(user.to_owned()),
                ..record()
            };
            let line = record.to_string();
            assert_eq!(line.split(' ').rev().nth(2), Some(field), "{line}");
        }
    }

    #[test]
    fn what_never_became_a_request_has_status_000() {
        let record = Record {
            ended: UNIX_EPOCH + Duration::from_millis(5),
            elapsed: Duration::from_millis(1_234_567),
            client: "2001:db8::1".parse().unwrap(),
            user: None,
            tag: Tag::None,
            status: 0,
            bytes: 0,
            method: "NONE".to_owned(),
            url: "error:transaction-end-before-headers".to_owned(),
            peer: None,
            hierarchy: Hierarchy::Direct,
            content_type: None,
        };
        assert_eq!(
            record.to_string(),
            "        0.005 1234567 2001:db8::1 NONE_NONE/000 0 NONE \
             error:transaction-end-before-headers - HIER_NONE/- -"
        );
    }
}
