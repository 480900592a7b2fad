//! The record of a tunnel: the daemon's `tunnel ended` line as values.

use std::{collections::BTreeMap, net::SocketAddr};

/// What the daemon says about a tunnel that has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TunnelRecord {
    /// The client's address.
    pub client: SocketAddr,
    /// What the client asked for.
    pub target: String,
    /// Where the proxy connected to.
    pub upstream: String,
    /// The engine that carried the bytes.
    pub engine: String,
    /// Bytes that user space had moved when the tunnel went on in the kernel, if it did so later.
    pub moved_after: Option<u64>,
    /// Engines that refused the pair, each with its reason.
    pub declined: Option<String>,
    /// Payload bytes from client to upstream.
    pub up: u64,
    /// Payload bytes from upstream to client.
    pub down: u64,
    /// Of both, the bytes that never left the kernel.
    pub spliced: u64,
    /// How often user space had to step in because a reader was too slow.
    pub pauses: u64,
    /// Segments that overlapped bytes already passed on, and were trimmed.
    pub trimmed: u64,
    /// How often a sender was held back by losses, since too much waited behind the other direction.
    pub floods: u64,
    /// How the tunnel ended.
    pub end: String,
}

impl TunnelRecord {
    /// Reads a line; `None` when it is no record of a tunnel or a field is missing.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, fields) = line.split_once("tunnel ended ")?;
        let mut fields = parse_fields(fields);
        Some(Self {
            client: fields.remove("client")?.parse().ok()?,
            target: fields.remove("target")?,
            upstream: fields.remove("upstream")?,
            engine: fields.remove("engine")?,
            moved_after: match fields.remove("moved_after") {
                Some(bytes) => Some(bytes.parse().ok()?),
                None => None,
            },
            declined: fields.remove("declined"),
            up: fields.remove("up")?.parse().ok()?,
            down: fields.remove("down")?.parse().ok()?,
            spliced: fields.remove("spliced")?.parse().ok()?,
            pauses: fields.remove("pauses")?.parse().ok()?,
            trimmed: fields.remove("trimmed")?.parse().ok()?,
            floods: fields.remove("floods")?.parse().ok()?,
            end: fields.remove("end")?,
        })
    }
}

/// `key=value key="value with spaces"` as a map.
fn parse_fields(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        fields.insert(key.trim().to_owned(), value.to_owned());
        rest = after;
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_record_with_a_quoted_field() {
        let line = "2026-01-01T00:00:00Z  INFO tunnel ended id=7 client=10.77.1.1:4567 target=origin.test:443 \
                    upstream=10.77.2.1:443 engine=copy declined=\"sockmap: peer has sent FIN\" up=702 down=87594 \
                    spliced=0 pauses=0 trimmed=0 floods=0 ms=92 end=closed";
        let record = TunnelRecord::parse(line).unwrap();
        assert_eq!(record.client, "10.77.1.1:4567".parse().unwrap());
        assert_eq!(
            record.declined.as_deref(),
            Some("sockmap: peer has sent FIN")
        );
        assert_eq!((record.up, record.down), (702, 87594));
        assert_eq!((record.spliced, record.pauses), (0, 0));
        assert_eq!(record.end, "closed");
    }

    #[test]
    fn other_lines_are_no_records() {
        assert_eq!(
            TunnelRecord::parse("INFO listening on 127.0.0.1:3128"),
            None
        );
        assert_eq!(TunnelRecord::parse("INFO tunnel ended id=7 up=1"), None);
    }
}
