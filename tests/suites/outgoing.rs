//! How connections go out: from where, by which interface, marked as what, and watched how closely.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpStream},
    time::{Duration, Instant},
};

use proxy_tests::{
    deadline::PATIENCE,
    lab::{Family, Lab},
    netns::run,
    origin::Origin,
    require_root_or_skip,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::scene::{client, configured, origin_on};

/// Offset of the class of service in an IPv4 header.
const CLASS: usize = 1;

fn tunnel(lab: &Lab, origin: &Origin) -> (TcpStream, TcpStream) {
    let client = client(lab).tunnel(&origin.target());
    (client, origin.accept())
}

/// What `ss` in the proxy's namespace says of the connections to this port.
fn sockets(lab: &Lab, port: u16) -> String {
    let output = lab
        .proxy
        .command("ss")
        .args(["-tinoH", "dst", &format!(":{port}")])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_first_entry_that_has_a_setting_decides_it() {
    require_root_or_skip!();
    let lab = Lab::new();
    run(lab
        .proxy
        .command("ip")
        .args(["addr", "add", "10.77.2.50/24", "dev", "cable2"]));
    let daemon = configured(
        &lab,
        r#"
        [[outgoing]]
        port = [7001]
        address = "10.77.2.50"
        [[outgoing]]
        address = "fd77:2::2"
        congestion = "reno"
        [[outgoing]]
        congestion = "cubic"
        keepalive = { idle = "7s" }
        "#,
    );
    let first = origin_on(&lab, Family::V4.origin(), 7001);
    let other = origin_on(&lab, Family::V4.origin(), 7002);
    let (_client, upstream) = tunnel(&lab, &first);
    let from = upstream.peer_addr().unwrap().ip();
    assert_eq!(from, "10.77.2.50".parse::<IpAddr>().unwrap());
    let (_other_client, other_upstream) = tunnel(&lab, &other);
    assert_eq!(
        other_upstream.peer_addr().unwrap().ip(),
        Family::V4.proxy_outside()
    );
    for port in [7001, 7002] {
        let said = sockets(&lab, port);
        assert!(
            said.contains(" reno ") && !said.contains(" cubic "),
            "{said}"
        );
        assert!(said.contains("timer:(keepalive,6"), "{said}");
    }
    drop(daemon);
}

/// The kernel's routing sees the mark, and the wire the class of service.
#[test]
fn connections_are_marked() {
    require_root_or_skip!();
    let lab = Lab::new();
    run(lab
        .proxy
        .command("ip")
        .args(["rule", "add", "fwmark", "0x17", "prohibit"]));
    let _daemon = configured(
        &lab,
        "[[outgoing]]\nport = [7001]\nset_mark = 0x17\n[[outgoing]]\ndscp = 46\n",
    );
    let (marked, open) = (
        origin_on(&lab, Family::V4.origin(), 7001),
        origin_on(&lab, Family::V4.origin(), 7002),
    );
    let wire = lab
        .origin
        .run_in(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap());
    wire.set_read_timeout(Some(PATIENCE)).unwrap();
    client(&lab)
        .refusal(&marked.target())
        .check_refusal(502, "destination_ip_unroutable")
        .unwrap();
    let _tunnel = tunnel(&lab, &open);
    let mut packet = [0; 200];
    let len = (&wire).read(&mut packet).unwrap();
    assert!(len > CLASS);
    assert_eq!(packet[CLASS] >> 2, 46);
}

#[test]
fn an_interface_and_what_does_not_exist() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(
        &lab,
        r#"
        [[outgoing]]
        port = [7001]
        interface = "cable2"
        [[outgoing]]
        port = [7002]
        interface = "cable1"
        [[outgoing]]
        port = [7003]
        interface = "missing0"
        [[outgoing]]
        port = [7004]
        congestion = "missing"
        [[outgoing]]
        port = [7005]
        address = "10.77.2.77"
        "#,
    );
    let origin = origin_on(&lab, Family::V4.origin(), 7001);
    drop(tunnel(&lab, &origin));
    // There is a way to the network, but not by this cable.
    let begin = Instant::now();
    let reply = client(&lab).refusal("10.77.2.1:7002");
    assert!([502, 504].contains(&reply.status), "{}", reply.status);
    assert!(begin.elapsed() < Duration::from_secs(20));
    for (port, part) in [
        (7003, "no such interface"),
        (7004, "tcp_available_congestion_control"),
        (7005, "connect from 10.77.2.77"),
    ] {
        let reply = client(&lab).refusal(&format!("10.77.2.1:{port}"));
        reply.check_refusal(500, "proxy_internal_error").unwrap();
        let body = String::from_utf8_lossy(&reply.body);
        assert!(body.contains(part), "{body}");
    }
}

/// An origin that vanishes while it is owed bytes is given up when the setting says, not when the kernel would.
#[test]
fn unacknowledged_bytes_end_a_tunnel_in_time() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(&lab, "[[outgoing]]\nuser_timeout = \"2s\"\n");
    let origin = origin_on(&lab, Family::V4.origin(), 7001);
    let (mut client, _upstream) = tunnel(&lab, &origin);
    let loss = lab.proxy.lose_packets_to(Family::V4.origin(), "cable2");
    client.write_all(b"anybody there?").unwrap();
    let begin = Instant::now();
    let ended = client.read_exact(&mut [0]).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    let waited = begin.elapsed();
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    drop(loss);
    assert_eq!(daemon.wait_tunnel_records(1)[0].up, 14);
}
