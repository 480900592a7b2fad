//! Names are resolved by Debian's name servers, or not at all, and nobody waits longer than was configured.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use proxy_tests::{
    daemon::{Daemon, Setup},
    dns::NameServer,
    lab::{Family, Lab},
    origin::Origin,
    payload::Payload,
    peer::{Dnsmasq, Peer},
    require_root_or_skip, require_tool_or_skip,
    tls::certify,
};

use crate::scene::{client, configured, origin_on};

fn dns_at(port: u16) -> SocketAddr {
    SocketAddr::new(Family::V4.origin(), port)
}

/// A dnsmasq beside the origin, which the proxy's host is told to ask.
fn dnsmasq(lab: &Lab, hosts: &str, options: &[&str]) -> Dnsmasq {
    lab.proxy.set_name_server(Family::V4.origin());
    Dnsmasq::start(
        &lab.origin,
        dns_at(53),
        hosts,
        options,
        lab.scratch().path(),
    )
}

/// Bytes go through to this origin.
fn expect_tunnel(lab: &Lab, target: &str, origin: &Origin) {
    let mut client = client(lab).tunnel(target);
    let mut upstream = origin.accept();
    Payload::new(5).send(&mut client, 10_000).unwrap();
    Payload::new(5).receive(&mut upstream, 10_000).unwrap();
}

/// What this does takes no longer.
fn expect_within(seconds: u64, action: impl FnOnce()) {
    let begin = Instant::now();
    action();
    let waited = begin.elapsed();
    assert!(waited < Duration::from_secs(seconds), "{waited:?}");
}

/// The status, the error of `Proxy-Status`, and what else it says.
fn expect_refusal(lab: &Lab, target: &str, status: u16, error: &str, part: &str) {
    let reply = client(lab).refusal(target);
    reply.check_refusal(status, error).unwrap();
    let field = reply.header("proxy-status").unwrap();
    assert!(field.contains(part), "{field}");
}

#[test]
fn a_name_server_is_asked_once_for_many_clients() {
    require_root_or_skip!();
    require_tool_or_skip!("dnsmasq", "--version");
    let lab = Lab::new();
    let server = dnsmasq(&lab, "10.77.2.1 origin.test\n", &["--local-ttl=60"]);
    let _daemon = configured(&lab, "");
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| drop(client(&lab).tunnel("origin.test:443")));
        }
    });
    expect_tunnel_after(&lab, &origin, 20);
    assert_eq!(server.asked("A", "origin.test"), 1);
    // That there is no such record is not remembered, since no SOA says for how long (RFC 2308 section 5).
    assert!(server.asked("AAAA", "origin.test") >= 1);
}

/// The tunnel behind so many others.
fn expect_tunnel_after(lab: &Lab, origin: &Origin, others: usize) {
    for _ in 0..others {
        drop(origin.accept());
    }
    expect_tunnel(lab, "origin.test:443", origin);
}

/// dnsmasq gives the names of hosts files no time to live.
#[test]
fn the_time_to_live_has_a_floor_and_a_ceiling() {
    require_root_or_skip!();
    require_tool_or_skip!("dnsmasq", "--version");
    for (ttl, config, lasts) in [
        ("0", "dns = { min_ttl = \"1h\" }", true),
        ("3600", "dns = { max_ttl = \"1s\" }", false),
    ] {
        let lab = Lab::new();
        let local = format!("--local-ttl={ttl}");
        let server = dnsmasq(&lab, "10.77.2.1 origin.test\n", &[&local]);
        let _daemon = configured(&lab, config);
        let origin = origin_on(&lab, Family::V4.origin(), 443);
        expect_tunnel(&lab, "origin.test:443", &origin);
        std::thread::sleep(Duration::from_millis(2100));
        expect_tunnel(&lab, "origin.test:443", &origin);
        let expected = if lasts { 1 } else { 2 };
        assert_eq!(
            server.asked("A", "origin.test"),
            expected,
            "{ttl}: {config}"
        );
    }
}

#[test]
fn what_there_is_no_address_for_is_told_and_remembered() {
    require_root_or_skip!();
    require_tool_or_skip!("dnsmasq", "--version");
    let lab = Lab::new();
    let server = dnsmasq(
        &lab,
        "10.77.2.1 origin.test\n",
        &["--txt-record=text.test,none"],
    );
    let daemon = configured(&lab, "");
    expect_refusal(
        &lab,
        "missing.test:443",
        502,
        "dns_error",
        "rcode=\"NXDOMAIN\"",
    );
    expect_refusal(&lab, "text.test:443", 502, "dns_error", "has no address");
    // Not its own: it refuses.
    expect_refusal(
        &lab,
        "elsewhere.example:443",
        502,
        "dns_error",
        "rcode=\"REFUSED\"",
    );
    // Search domains are for people.
    assert_eq!(server.asked("A", "missing.test.test"), 0);
    let line = daemon.wait_access_lines(1).remove(0);
    assert!(line.contains(" TCP_TUNNEL/502 "), "{line}");
    assert!(line.contains(" HIER_NONE/- "), "{line}");
}

/// Too many addresses for a packet: the rest comes over TCP.
#[test]
fn a_long_answer_is_fetched_over_tcp() {
    require_root_or_skip!();
    require_tool_or_skip!("dnsmasq", "--version");
    let lab = Lab::new();
    let mut hosts = "10.77.2.1 many.test\n".to_owned();
    for n in 0..200 {
        writeln!(hosts, "10.88.0.{n} many.test").unwrap();
    }
    let _server = dnsmasq(&lab, &hosts, &[]);
    // Of all these addresses one is permitted.
    let _daemon = configured(&lab, "");
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    expect_tunnel(&lab, "many.test:443", &origin);
}

#[test]
fn a_dead_version_and_a_silent_server_cost_little() {
    require_root_or_skip!();
    require_tool_or_skip!("dnsmasq", "--version");
    let lab = Lab::new();
    // Nobody has the first two.
    let hosts = "fd77:2::99 both.test\n10.77.2.99 both.test\n10.77.2.1 both.test\n";
    let _server = dnsmasq(&lab, hosts, &[]);
    let _daemon = configured(
        &lab,
        "dns = { servers = [\"10.77.2.98\", \"10.77.2.1\"], timeout = \"2s\" }",
    );
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    expect_within(9, || expect_tunnel(&lab, "both.test:443", &origin));
}

/// It answers for IPv4, and never for IPv6.
#[test]
fn half_an_answer_is_enough() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _server = NameServer::deaf_to_ipv6(&lab.proxy, vec![Ipv4Addr::new(10, 77, 2, 1)]);
    let _daemon = configured(&lab, "dns = { timeout = \"10s\" }");
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    expect_within(5, || expect_tunnel(&lab, "half.test:443", &origin));
}

#[test]
fn silence_ends_in_time() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(
        &lab,
        "dns = { servers = [\"10.77.2.98\"] }\ntimeouts.connect = \"1s\"",
    );
    expect_within(5, || {
        expect_refusal(
            &lab,
            "origin.test:443",
            504,
            "dns_timeout",
            "no name server",
        );
    });
}

#[test]
fn a_new_resolv_conf_counts_without_a_restart() {
    require_root_or_skip!();
    require_tool_or_skip!("dnsmasq", "--version");
    let lab = Lab::new();
    let _daemon = configured(&lab, "");
    expect_refusal(
        &lab,
        "origin.test:443",
        504,
        "dns_timeout",
        "no name server",
    );
    let _server = dnsmasq(&lab, "10.77.2.1 origin.test\n", &[]);
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    std::thread::sleep(Duration::from_millis(1100));
    expect_tunnel(&lab, "origin.test:443", &origin);
}

#[test]
fn names_within_a_domain_and_versions_by_choice() {
    require_root_or_skip!();
    require_tool_or_skip!("dnsmasq", "--version");
    let lab = Lab::new();
    let hosts = "10.77.2.1 intra.corp.test\nfd77:2::1 intra.corp.test\n";
    let server = dnsmasq(&lab, hosts, &[]);
    let daemon = configured(
        &lab,
        "[dns]\nfamily = \"ipv4-only\"\nappend_domain = \".corp.test\"\n[[rule]]\naction = \"deny\"\nhost = [\"intra\"]",
    );
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    expect_tunnel(&lab, "intra:443", &origin);
    assert_eq!(server.asked("AAAA", "intra.corp.test"), 0);
    let line = daemon.wait_access_lines(1).remove(0);
    assert!(line.contains(" CONNECT intra.corp.test:443 "), "{line}");
}

/// Debian's Unbound, over TLS and over HTTPS.
#[test]
fn servers_are_asked_in_private() {
    require_root_or_skip!();
    require_tool_or_skip!("unbound", "-V");
    let lab = Lab::new();
    let certified = certify(&["dns.test"]);
    let scratch = lab.scratch();
    let authority = scratch.write("authority.pem", &certified.authority);
    let key = scratch.write("key.pem", &certified.key);
    let certificate = scratch.write("certificate.pem", &certified.certificate);
    let log = scratch.path().join("unbound.log");
    let config = format!(
        "server:\n interface: 10.77.2.1@853\n interface: 10.77.2.1@8443\n tls-port: 853\n https-port: 8443\n\
         tls-service-key: \"{}\"\n tls-service-pem: \"{}\"\n access-control: 10.77.2.0/24 allow\n username: \"\"\n\
         chroot: \"\"\n directory: \"{}\"\n pidfile: \"\"\n use-syslog: no\n do-daemonize: no\n\
         local-zone: \"test.\" static\n local-data: \"origin.test. A 10.77.2.1\"\n\
         local-data: \"test. SOA ns.test. root.test. 1 3600 600 86400 300\"\n log-queries: yes\n\
         logfile: \"{}\"\nremote-control:\n control-enable: no\n",
        key.display(),
        certificate.display(),
        scratch.path().display(),
        log.display(),
    );
    let config = scratch.write("unbound.conf", config);
    let mut unbound = lab.origin.command("unbound");
    unbound.arg("-d").arg("-c").arg(config);
    let _peer = Peer::listening(&lab.origin, &mut unbound, dns_at(8443));
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let daemon = |server: &str, ca: &str| {
        Setup::bare(&lab.proxy)
            .config(
                &lab,
                &format!(
                    "{}\ntimeouts.connect = \"5s\"\n[dns]\nservers = [\"{server}\"]\n{ca}",
                    crate::scene::OPEN
                ),
            )
            .listeners(2)
            .start()
    };
    let ca = format!("ca = \"{}\"", authority.display());
    for server in [
        "tls://10.77.2.1#dns.test",
        "https://10.77.2.1:8443#dns.test",
    ] {
        let _daemon: Daemon = daemon(server, &ca);
        expect_tunnel(&lab, "origin.test:443", &origin);
        // It says how long that will be so.
        for _ in 0..3 {
            expect_refusal(&lab, "missing.test:443", 502, "dns_error", "NXDOMAIN");
        }
    }
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches(" missing.test. A IN").count(), 2, "{log}");
    // Somebody else's certificate.
    let _daemon = daemon("tls://10.77.2.1#other.test", &ca);
    let reply = client(&lab).refusal("origin.test:443");
    assert!([502, 504].contains(&reply.status), "{}", reply.status);
    assert!(!origin.is_called_within(Duration::from_millis(50)));
}
