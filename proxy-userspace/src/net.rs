//! Sockets: options the standard library lacks, listening, and dialling.

pub mod dial;
pub mod listen;
pub mod sockopt;

use std::time::Duration;

use socket2::TcpKeepalive;

/// Keep-alive for both sides of a tunnel: probes after a minute of silence, a dead peer is found
/// out after two.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4)
}
