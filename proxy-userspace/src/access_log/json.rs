//! A record as one JSON object. Its keys are always there, in this order; `null` is what is not known or not so. Pure.

use std::time::Duration;

use serde::Serialize;

use super::{Event, Record};
use crate::http::Refusal;

/// The schema; README describes it for users.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    event: Event,
    id: u64,
    client: String,
    listener: String,
    listener_name: &'a str,
    user: Option<&'a str>,
    captured: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    pid: Option<u32>,
    process: Option<&'a str>,
    cgroup: Option<&'a str>,
    method: &'a str,
    url: &'a str,
    host: Option<String>,
    port: Option<u16>,
    sni: Option<&'a str>,
    status: u16,
    tag: String,
    rule: Option<&'a str>,
    upstream: Option<String>,
    local: Option<String>,
    hierarchy: Option<String>,
    parent: Option<&'a str>,
    engine: Option<String>,
    engine_moved_after: Option<u64>,
    engine_declined: Option<&'a str>,
    bytes_sent: u64,
    bytes_received: u64,
    content_type: Option<&'a str>,
    dns_ms: Option<f64>,
    connect_ms: Option<f64>,
    first_byte_ms: Option<f64>,
    duration_ms: Option<f64>,
    end: Option<String>,
    ended_by: Option<&'static str>,
    end_detail: Option<&'a str>,
    error: Option<&'static str>,
    error_detail: Option<&'a str>,
}

/// Milliseconds, to the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The record's line.
pub(super) fn line(record: &Record<'_>) -> String {
    let peer = record.peer.map(|ip| match record.peer_port {
        Some(port) => std::net::SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
    });
    let process = record.captured.map(|captured| &captured.process);
    let line = Line {
        time: timestamp(record),
        event: record.event,
        id: record.id,
        client: record.client.to_string(),
        listener: record.listener.to_string(),
        listener_name: record.listener_name,
        user: record.user,
        captured: record
            .captured
            .map(|captured| captured.destination.to_string()),
        uid: process.map(|process| process.uid),
        gid: process.map(|process| process.gid),
        pid: process.map(|process| process.pid),
        process: process.map(|process| &*process.command),
        cgroup: process.map(|process| &*process.cgroup),
        method: record.method,
        url: &record.url,
        host: record.target.map(|target| target.host().to_string()),
        port: record.target.map(|target| target.port().get()),
        sni: record.sni,
        status: record.status,
        tag: record.tag.to_string(),
        rule: record.rule,
        hierarchy: peer.is_some().then(|| record.hierarchy.to_string()),
        upstream: peer,
        local: record.local.map(|address| address.to_string()),
        parent: record.parent,
        engine: record.engine.map(|engine| engine.to_string()),
        engine_moved_after: record.moved_after,
        engine_declined: record.declined,
        bytes_sent: record.sent,
        bytes_received: record.received,
        content_type: record.content_type.as_deref(),
        dns_ms: record.timings.dns.map(milliseconds),
        connect_ms: record.timings.connect.map(milliseconds),
        first_byte_ms: record.timings.first_byte.map(milliseconds),
        duration_ms: Some(milliseconds(record.elapsed)),
        end: record.ending.map(ToString::to_string),
        ended_by: record.ended_by(),
        end_detail: record.ending.and_then(|ending| ending.detail()),
        error: record.refusal.map(|refusal| refusal.error().as_str()),
        error_detail: record.refusal.map(Refusal::reason),
    };
    // Nothing in it can fail to be written.
    serde_json::to_string(&line).unwrap_or_default()
}

/// The record's time, in UTC (RFC 3339), to the millisecond.
pub(super) fn timestamp(record: &Record<'_>) -> String {
    jiff::Timestamp::try_from(record.time)
        .map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::{super::record::example, *};

    #[test]
    fn a_record_has_every_key_whatever_happened() {
        let record = Record {
            user: Some("an\"na\n"),
            ..example()
        };
        let line = line(&record);
        assert!(!line.contains('\n'), "{line}");
        assert!(line.starts_with(r#"{"time":"2018-12-07T05:21:05.248Z","event":"end","id":7,"#));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["user"], "an\"na\n");
        assert_eq!(value["engine"], "splice");
        assert_eq!(value["dns_ms"], 1.5);
        assert_eq!(value["ended_by"], "client");
        assert!(value["first_byte_ms"].is_null());
        assert_eq!(value.as_object().unwrap().len(), 40);
    }
}
