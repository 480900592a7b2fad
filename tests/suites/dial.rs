//! Of the addresses of a name, one that answers is found quickly, whatever the others do.

use std::{net::TcpStream, time::Instant};

use proxy_tests::{
    daemon::{Daemon, Setup},
    lab::{Family, Lab},
    origin::Origin,
    payload::Payload,
    require_root_or_skip,
};

use crate::scene::{client, origin_on};

fn daemon(lab: &Lab, more: &str) -> Daemon {
    let config = format!(
        r#"
        listen = ["10.77.1.2:3128"]
        allow_client = ["10.77.1.0/24"]
        allow_destination = ["10.77.2.0/24", "fd77:2::/64", "fd99::/16"]
        allow_port = ["1-65535"]
        {more}
        "#
    );
    Setup::bare(&lab.proxy).config(lab, &config).start()
}

/// Bytes go through, and this is the origin.
fn expect_tunnel(mut client: TcpStream, origin: &Origin) {
    let mut upstream = origin.accept();
    Payload::new(3).send(&mut client, 10_000).unwrap();
    Payload::new(3).receive(&mut upstream, 10_000).unwrap();
}

/// Whichever version the resolver puts first.
#[test]
fn a_silent_address_does_not_hold_up_one_of_the_other_version() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy
        .set_hosts(&[("fd77:2::1", "both.test"), ("10.77.2.1", "both.test")]);
    let daemon = daemon(&lab, "");
    for (silent, alive) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let (silent, _fillers) = Origin::with_full_queue(&lab.origin, silent.origin());
        let origin = origin_on(&lab, alive.origin(), silent.address().port());
        let begin = Instant::now();
        let stream = client(&lab).tunnel(&format!("both.test:{}", origin.address().port()));
        // Alone it would have half a minute.
        let waited = begin.elapsed();
        assert!(waited.as_secs() < 10, "{waited:?}");
        expect_tunnel(stream, &origin);
    }
    for record in daemon.wait_tunnel_records(2) {
        assert_eq!(record.up, 10_000);
    }
}

/// All of which are tried before the time is over.
#[test]
fn the_one_that_is_alive_is_found_among_many_dead_ones() {
    require_root_or_skip!();
    let lab = Lab::new();
    // Nobody has these addresses.
    let dead: Vec<String> = (101..109).map(|n| format!("10.77.2.{n}")).collect();
    let mut hosts: Vec<_> = dead
        .iter()
        .map(|address| (address.as_str(), "many.test"))
        .collect();
    hosts.push(("10.77.2.1", "many.test"));
    lab.proxy.set_hosts(&hosts);
    let _daemon = daemon(&lab, "timeouts.connect = \"6s\"");
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    expect_tunnel(client(&lab).tunnel("many.test:443"), &origin);
}

#[test]
fn nobody_hears_of_a_version_that_the_host_does_not_have() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy.set_hosts(&[
        ("fd99::1", "half.test"),
        ("10.77.2.1", "half.test"),
        ("fd99::2", "six.test"),
    ]);
    let daemon = daemon(&lab, "");
    let reply = client(&lab).refusal("half.test:443");
    reply.check_refusal(502, "connection_refused").unwrap();
    let body = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(body.contains("10.77.2.1:443 refused"), "{body}");
    // Unless there is nothing else.
    client(&lab)
        .refusal("six.test:443")
        .check_refusal(502, "destination_ip_unroutable")
        .unwrap();
    let line = daemon.wait_access_lines(2).remove(0);
    assert!(line.contains(" HIER_DIRECT/10.77.2.1 "), "{line}");
}
