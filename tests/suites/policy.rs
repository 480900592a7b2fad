//! Who may go where: what is shut by default, what each option opens, and that nothing else opens with it.

use std::{fs, net::IpAddr, time::Duration};

use proxy_tests::{
    client::Client,
    daemon::Setup,
    dns::NameServer,
    lab::{Family, Lab, PROXY_PORT},
    netns::run,
    origin::{Listen, Origin},
    require_root_or_skip,
};

use crate::scene::{client, expect_nothing_wrong, origin_on};

const DENIED: &str = "http_request_denied";
const PROHIBITED: &str = "destination_ip_prohibited";
const LOOP: &str = "proxy_loop_detected";

/// A daemon with all defaults, except that the lab's client may use it.
fn cautious(lab: &Lab) -> Setup<'_> {
    Setup::listening(lab)
        .option("--allow-client", "10.77.1.1/32")
        .option("--allow-client", "fd77:1::1/128")
}

/// Every target is refused with this error, and the origin is not called.
fn expect_refused(client: Client<'_>, error: &str, targets: &[&str]) {
    let mut wrong = Vec::new();
    for target in targets {
        if let Err(problem) = client.refusal(target).check_refusal(403, error) {
            wrong.push(format!("{target}: {problem}"));
        }
    }
    expect_nothing_wrong(&wrong);
}

#[test]
fn a_client_that_is_not_local_is_denied_by_default() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = Setup::listening(&lab)
        .option("--allow-destination", "10.77.2.0/24")
        .start();
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    for family in [Family::V4, Family::V6] {
        let client = Client::new(&lab.client, family.proxy());
        expect_refused(client, DENIED, &["10.77.2.1:443", "example.org:443"]);
    }
    assert!(!origin.is_called_within(Duration::from_millis(100)));
}

#[test]
fn a_local_client_is_allowed_by_default() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::bare(&lab.proxy)
        .option("--listen", "127.0.0.1:0")
        .option("--listen", "[::1]:0")
        .option("--allow-destination", "10.77.2.1/32")
        .listeners(2)
        .start();
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    assert_eq!(daemon.listening().len(), 2);
    for address in daemon.listening() {
        assert_ne!(address.port(), 0, "the real port is shown");
        drop(Client::new(&lab.proxy, *address).tunnel("10.77.2.1:443"));
        drop(origin.accept());
    }
}

#[test]
fn listens_on_loopback_only_by_default() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::bare(&lab.proxy).start();
    assert_eq!(daemon.listening(), ["127.0.0.1:3128".parse().unwrap()]);
    lab.client.run_in(|| {
        let refused =
            std::net::TcpStream::connect_timeout(&Family::V4.proxy(), Duration::from_secs(5));
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    });
}

#[test]
fn only_port_443_is_open_by_default() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = cautious(&lab)
        .option("--allow-destination", "10.77.2.1/32")
        .start();
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let targets = [
        "10.77.2.1:22",
        "10.77.2.1:80",
        "10.77.2.1:444",
        "10.77.2.1:8443",
        "example.org:25",
    ];
    expect_refused(client(&lab), DENIED, &targets);
    drop(client(&lab).tunnel("10.77.2.1:443"));
    drop(origin.accept());
    // Requests that are forwarded have a port of their own: nobody listens there.
    let get = b"GET http://10.77.2.1/ HTTP/1.1\r\nHost: 10.77.2.1\r\n\r\n";
    assert_eq!(client(&lab).exchange("GET", get).status, 502);
    let get = b"GET http://10.77.2.1:443/ HTTP/1.1\r\nHost: 10.77.2.1\r\n\r\n";
    assert_eq!(client(&lab).exchange("GET", get).status, 403);
}

#[test]
fn addresses_that_are_not_public_are_shut_by_default() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = cautious(&lab).start();
    let origins = [Family::V4, Family::V6].map(|family| origin_on(&lab, family.origin(), 443));
    expect_refused(
        client(&lab),
        PROHIBITED,
        &[
            // The origin, in every form that names it.
            "10.77.2.1:443",
            "[fd77:2::1]:443",
            "[::ffff:10.77.2.1]:443",
            "[::ffff:a4d:201]:443",
            "[::10.77.2.1]:443",
            "[64:ff9b::10.77.2.1]:443",
            "[64:ff9b:1::10.77.2.1]:443",
            "[2002:0a4d:0201::1]:443",
            // Cloud metadata.
            "169.254.169.254:443",
            "[::ffff:169.254.169.254]:443",
            "[fd00:ec2::254]:443",
            // This host.
            "127.0.0.1:443",
            "127.255.255.254:443",
            "[::1]:443",
            "[::ffff:127.0.0.1]:443",
            "0.0.0.0:443",
            "0.1.2.3:443",
            "[::]:443",
            // Private, shared, link-local, documentation, multicast, reserved.
            "10.0.0.1:443",
            "172.16.0.1:443",
            "172.31.255.255:443",
            "192.168.0.1:443",
            "100.64.0.1:443",
            "169.254.1.1:443",
            "192.0.2.1:443",
            "198.18.0.1:443",
            "198.51.100.1:443",
            "203.0.113.1:443",
            "224.0.0.1:443",
            "240.0.0.1:443",
            "255.255.255.255:443",
            "[fe80::1]:443",
            "[fc00::1]:443",
            "[ff02::1]:443",
            "[2001:db8::1]:443",
            "[100::1]:443",
        ],
    );
    for origin in &origins {
        assert!(!origin.is_called_within(Duration::from_millis(50)));
    }
}

/// There is no route to it, so nothing is sent: the policy let it pass and connecting failed.
#[test]
fn public_addresses_are_open_by_default() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = cautious(&lab).start();
    for target in ["9.9.9.9:443", "172.32.0.1:443", "[2620:fe::fe]:443"] {
        let reply = client(&lab).refusal(target);
        reply
            .check_refusal(502, "destination_ip_unroutable")
            .unwrap();
    }
}

#[test]
fn a_name_is_judged_by_the_address_it_leads_to() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy.set_hosts(&[
        ("10.77.2.1", "internal.test"),
        ("fd77:2::1", "internal6.test"),
        ("169.254.169.254", "metadata.test"),
        ("127.0.0.1", "loop.test"),
    ]);
    let _daemon = cautious(&lab).start();
    let origins = [Family::V4, Family::V6].map(|family| origin_on(&lab, family.origin(), 443));
    let targets = [
        "internal.test:443",
        "INTERNAL.test:443",
        "internal6.test:443",
        "metadata.test:443",
        "loop.test:443",
        "localhost:443",
    ];
    expect_refused(client(&lab), PROHIBITED, &targets);
    for origin in &origins {
        assert!(!origin.is_called_within(Duration::from_millis(50)));
    }
}

/// The address that was judged is the one that is connected to: the resolver is not asked again.
#[test]
fn a_name_that_changes_its_address_opens_nothing() {
    require_root_or_skip!();
    let lab = Lab::new();
    for address in ["10.77.2.8/24", "10.77.2.9/24"] {
        let add = ["addr", "add", address, "dev", "cable2"];
        run(lab.origin.command("ip").args(add));
    }
    let [shut, opened] = ["10.77.2.8", "10.77.2.9"].map(|address| address.parse().unwrap());
    let names = NameServer::start(&lab.proxy, vec![opened, shut]);
    let _daemon = cautious(&lab)
        .option("--allow-destination", "10.77.2.9/32")
        .start();
    let [shut, opened] = [shut, opened].map(|address| origin_on(&lab, address.into(), 443));
    drop(client(&lab).tunnel("rebinding.test:443"));
    drop(opened.accept());
    assert_eq!(names.asked(), 1);
    // It is remembered for a second, although it says that it lasts for none.
    std::thread::sleep(Duration::from_millis(1500));
    // By now it says the other one, and that is judged in its turn.
    expect_refused(client(&lab), PROHIBITED, &["rebinding.test:443"]);
    assert_eq!(names.asked(), 2);
    assert!(!shut.is_called_within(Duration::from_millis(100)));
}

/// Of the addresses of a name, those that are not allowed are not tried, not even when the others fail.
#[test]
fn of_the_addresses_of_a_name_only_allowed_ones_are_tried() {
    require_root_or_skip!();
    let lab = Lab::new();
    let add = ["addr", "add", "10.77.2.9/24", "dev", "cable2"];
    run(lab.origin.command("ip").args(add));
    lab.proxy
        .set_hosts(&[("10.77.2.1", "both.test"), ("10.77.2.9", "both.test")]);
    let _daemon = cautious(&lab)
        .option("--allow-destination", "10.77.2.9/32")
        .start();
    let shut = origin_on(&lab, Family::V4.origin(), 443);
    client(&lab)
        .refusal("both.test:443")
        .check_refusal(502, "connection_refused")
        .unwrap();
    assert!(!shut.is_called_within(Duration::from_millis(100)));
}

/// What listens on the proxy's host may rely on a firewall that connections from within do not pass.
#[test]
fn public_addresses_of_the_host_itself_are_shut_by_default() {
    require_root_or_skip!();
    let lab = Lab::new();
    // It never leaves the namespace.
    let add = ["addr", "add", "8.8.4.4/32", "dev", "lo"];
    run(lab.proxy.command("ip").args(add));
    let own = Origin::bind_with(
        &lab.proxy,
        "8.8.4.4".parse().unwrap(),
        Listen {
            port: 443,
            ..Listen::default()
        },
    );
    let daemon = cautious(&lab).start();
    expect_refused(
        client(&lab),
        PROHIBITED,
        &["8.8.4.4:443", "[::ffff:8.8.4.4]:443"],
    );
    assert!(!own.is_called_within(Duration::from_millis(100)));
    drop(daemon);
    // Bound or not: where any address can be bound, all others are not the host's.
    lab.proxy
        .run_in(|| fs::write("/proc/sys/net/ipv4/ip_nonlocal_bind", "1"))
        .unwrap();
    let daemon = cautious(&lab).start();
    expect_refused(client(&lab), PROHIBITED, &["8.8.4.4:443"]);
    client(&lab)
        .refusal("9.9.9.9:443")
        .check_refusal(502, "destination_ip_unroutable")
        .unwrap();
    drop(daemon);
    let _daemon = cautious(&lab)
        .option("--allow-destination", "8.8.4.4/32")
        .start();
    drop(client(&lab).tunnel("8.8.4.4:443"));
    drop(own.accept());
}

/// `inet_aton` reads these as loopback; whatever a resolver makes of them, they open nothing.
#[test]
fn unusual_spellings_of_loopback_open_nothing() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = cautious(&lab).start();
    let origin = Origin::bind_with(
        &lab.proxy,
        IpAddr::from([127, 0, 0, 1]),
        Listen {
            port: 443,
            ..Listen::default()
        },
    );
    for target in [
        "127.1:443",
        "2130706433:443",
        "0x7f000001:443",
        "0177.0.0.1:443",
        "127.0.0.1.:443",
        "0:443",
    ] {
        let reply = client(&lab).refusal(target);
        assert!(
            [400, 403, 502].contains(&reply.status),
            "{target}: {reply:?}"
        );
    }
    assert!(!origin.is_called_within(Duration::from_millis(50)));
}

#[test]
fn allow_destination_opens_exactly_that_network() {
    require_root_or_skip!();
    let lab = Lab::new();
    run(lab
        .origin
        .command("ip")
        .args(["addr", "add", "10.77.2.9/24", "dev", "cable2"]));
    let _daemon = cautious(&lab)
        .option("--allow-destination", "10.77.2.9/32")
        .start();
    let near = origin_on(&lab, "10.77.2.1".parse().unwrap(), 443);
    let opened = origin_on(&lab, "10.77.2.9".parse().unwrap(), 443);
    expect_refused(
        client(&lab),
        PROHIBITED,
        &[
            "10.77.2.1:443",
            "10.77.2.8:443",
            "10.77.2.10:443",
            "[fd77:2::1]:443",
        ],
    );
    drop(client(&lab).tunnel("10.77.2.9:443"));
    drop(opened.accept());
    assert!(!near.is_called_within(Duration::from_millis(50)));
}

#[test]
fn allow_port_opens_exactly_those_ports() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = cautious(&lab)
        .option("--allow-destination", "10.77.2.1/32")
        .option("--allow-port", "8000-8002")
        .option("--allow-port", "9000")
        .start();
    expect_refused(
        client(&lab),
        DENIED,
        &[
            "10.77.2.1:7999",
            "10.77.2.1:8003",
            "10.77.2.1:8999",
            "10.77.2.1:9001",
        ],
    );
    for port in [8000, 8001, 8002, 9000] {
        let origin = origin_on(&lab, Family::V4.origin(), port);
        drop(client(&lab).tunnel(&origin.target()));
        drop(origin.accept());
    }
}

#[test]
fn allow_client_opens_exactly_that_network() {
    require_root_or_skip!();
    let lab = Lab::new();
    run(lab
        .client
        .command("ip")
        .args(["addr", "add", "10.77.1.9/32", "dev", "cable1"]));
    let _daemon = Setup::listening(&lab)
        .option("--allow-client", "10.77.1.9/32")
        .option("--allow-destination", "10.77.2.1/32")
        .start();
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    expect_refused(client(&lab), DENIED, &["10.77.2.1:443"]);
    expect_refused(
        Client::new(&lab.client, Family::V6.proxy()),
        DENIED,
        &["10.77.2.1:443"],
    );
    // Prefer the other source address.
    run(lab.client.command("ip").args([
        "route",
        "change",
        "10.77.1.0/24",
        "dev",
        "cable1",
        "src",
        "10.77.1.9",
    ]));
    drop(client(&lab).tunnel("10.77.2.1:443"));
    drop(origin.accept());
}

/// Every address that leads back to a listener, for a daemon that listens on `listen` and may go anywhere.
fn self_connection(listen: &str, targets: &[&str]) {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy
        .set_hosts(&[("10.77.2.2", "myself.test"), ("fd77:1::2", "myself.test")]);
    let daemon = Setup::bare(&lab.proxy)
        .option("--listen", listen)
        .option("--allow-client", "0.0.0.0/0")
        .option("--allow-client", "::/0")
        .option("--allow-destination", "0.0.0.0/0")
        .option("--allow-destination", "::/0")
        .option("--allow-port", "1-65535")
        .start();
    let proxy = match daemon.listening() {
        [address] if address.ip().is_unspecified() => Family::V4.proxy(),
        [address] => *address,
        other => panic!("{other:?}"),
    };
    // From inside, so that a listener on loopback can be reached as well.
    expect_refused(Client::new(&lab.proxy, proxy), LOOP, targets);
    // The same addresses with another port are not the proxy.
    let reply = Client::new(&lab.proxy, proxy).refusal("10.77.1.2:3129");
    reply.check_refusal(502, "connection_refused").unwrap();
    assert_eq!(daemon.listening()[0].port(), PROXY_PORT);
}

#[test]
fn a_tunnel_to_the_proxys_own_address_is_refused() {
    self_connection(
        "10.77.1.2:3128",
        &["10.77.1.2:3128", "[::ffff:10.77.1.2]:3128"],
    );
}

#[test]
fn a_tunnel_to_the_proxys_own_loopback_is_refused() {
    self_connection(
        "127.0.0.1:3128",
        &["127.0.0.1:3128", "localhost:3128", "0.0.0.0:3128"],
    );
}

#[test]
fn a_tunnel_to_any_address_of_a_wildcard_listener_is_refused() {
    let targets = [
        "127.0.0.1:3128",
        "127.8.9.1:3128",
        "10.77.1.2:3128",
        "10.77.2.2:3128",
        "0.0.0.0:3128",
        "[::ffff:10.77.1.2]:3128",
        "myself.test:3128",
    ];
    self_connection("0.0.0.0:3128", &targets);
}

#[test]
fn a_tunnel_to_any_address_of_an_ipv6_wildcard_listener_is_refused() {
    let targets = [
        "[::1]:3128",
        "[fd77:1::2]:3128",
        "[fd77:2::2]:3128",
        "[::]:3128",
        "myself.test:3128",
    ];
    self_connection("[::]:3128", &targets);
}
