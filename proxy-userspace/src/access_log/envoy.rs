//! Envoy's default line, as a mesh's sidecars write it, for a tunnel that is Envoy's `CONNECT`. Pure.

use std::fmt::Display;

use super::{
    Event, Record,
    json::timestamp,
    logformat::{Quoting, quote},
};
use crate::{
    http::ProxyError,
    relay::{Ending, Side},
};

/// Header fields that are in it.
pub(super) const FIELDS: [&str; 3] = ["user-agent", "x-forwarded-for", "x-request-id"];

/// The record's line.
pub(super) fn line(record: &Record<'_>) -> String {
    let field = |name| {
        let value = record.field(name);
        value.map_or("-".into(), |value| quote(value, Quoting::Quotes))
    };
    let or_dash = |value: Option<&dyn Display>| value.map_or("-".to_owned(), ToString::to_string);
    let upstream = match (record.peer, record.peer_port) {
        (Some(ip), Some(port)) => Some(std::net::SocketAddr::new(ip, port)),
        _ => None,
    };
    let is_tunnel = record.method == "CONNECT";
    let authority = record.target.map(ToString::to_string);
    format!(
        "[{}] \"{} {} {}\" {} {} {} {} {} - \"{}\" \"{}\" \"{}\" \"{}\" \"{}\" {} {} {} {} {}",
        started(record),
        record.method,
        if is_tunnel {
            "-".into()
        } else {
            quote(&record.url, Quoting::Quotes)
        },
        record
            .version
            .map_or("-".to_owned(), |version| format!("HTTP/{version}")),
        record.status,
        flags(record),
        record.received,
        record.sent,
        record.elapsed.as_millis(),
        field("x-forwarded-for"),
        field("user-agent"),
        field("x-request-id"),
        authority.as_deref().unwrap_or("-"),
        or_dash(upstream.as_ref().map(|address| address as _)),
        record.parent.unwrap_or("-"),
        or_dash(record.local.as_ref().map(|address| address as _)),
        record.listener,
        record.client,
        record.sni.unwrap_or("-"),
    )
}

/// When the request had arrived.
fn started(record: &Record<'_>) -> String {
    timestamp(&Record {
        time: record
            .time
            .checked_sub(record.elapsed)
            .unwrap_or(record.time),
        ..record.clone()
    })
}

/// Envoy's response flags, as far as they have a meaning here.
fn flags(record: &Record<'_>) -> &'static str {
    if record.event != Event::End {
        return "-";
    }
    if let Some(ending) = record.ending {
        return match ending {
            Ending::Closed => "-",
            Ending::Reset(Side::Client) => "DC",
            Ending::Reset(Side::Upstream) => "UC",
            Ending::IdleTimeout | Ending::HalfClosedTimeout => "SI",
            Ending::Lifetime => "DT",
            Ending::Forbidden(_) => "UAEX",
            Ending::Cancelled | Ending::Killed | Ending::Integrity(_) | Ending::Failed(_) => "LR",
        };
    }
    let Some(refusal) = record.refusal else {
        return if record.status == 0 { "DC" } else { "-" };
    };
    match refusal.error() {
        ProxyError::HttpRequestError => "DPE",
        ProxyError::HttpRequestDenied | ProxyError::DestinationIpProhibited => "UAEX",
        ProxyError::ProxyLoopDetected | ProxyError::ProxyInternalError => "LR",
        ProxyError::ConnectionRefused
        | ProxyError::DestinationIpUnroutable
        | ProxyError::ConnectionTimeout
        | ProxyError::DestinationUnavailable
        | ProxyError::TlsProtocolError => "UF",
        ProxyError::DnsError | ProxyError::DnsTimeout => "DF",
        ProxyError::ConnectionTerminated => "UC",
        ProxyError::ConnectionLimitReached => "RL",
        ProxyError::ProxyConfigurationError | ProxyError::HttpProtocolError => "UPE",
        ProxyError::HttpResponseTimeout => "UT",
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record::example, *};

    #[test]
    fn a_tunnel_reads_as_a_sidecar_writes_it() {
        let fields = [("user-agent".into(), "curl/8 \"x\"\n".into())];
        let record = Record {
            fields: &fields,
            ..example()
        };
        assert_eq!(
            line(&record),
            "[2018-12-07T05:21:05.020Z] \"CONNECT - HTTP/1.1\" 200 - 702 87633 228 - \"-\" \
             \"curl/8 \\\"x\\\"\\n\" \"-\" \"-\" \"91.198.174.192:443\" - 172.30.109.95:50000 \
             172.30.109.95:3128 172.30.109.89:44476 -"
        );
    }

    #[test]
    fn a_url_stays_between_its_quotes() {
        let record = Record {
            method: "GET",
            url: "http://h/a\"b".into(),
            ..example()
        };
        assert!(line(&record).contains(r#" "GET http://h/a\"b HTTP/1.1" "#));
    }

    #[test]
    fn a_reset_has_its_flag() {
        let record = Record {
            ending: Some(&Ending::Reset(Side::Upstream)),
            ..example()
        };
        assert_eq!(flags(&record), "UC");
    }
}
