//! Rules, users and limits of `underpass.toml`, and squid.conf: what each of them does to a real client.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{
    client::{Client, connect_head},
    daemon::{Setup, binary, run_to_end},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    origin::Origin,
    payload::Payload,
    reply::Reply,
    require_root_or_skip,
};

use crate::scene::{client, configured, origin_on};

fn names(lab: &Lab) {
    lab.proxy.set_hosts(&[
        ("10.77.2.1", "www.good.test"),
        ("10.77.2.1", "www.bad.test"),
        ("10.77.2.1", "tracker.good.test"),
    ]);
}

fn denied(lab: &Lab, target: &str) -> Reply {
    let reply = client(lab).refusal(target);
    reply.check_refusal(403, "http_request_denied").unwrap();
    reply
}

#[test]
fn the_first_rule_that_fits_decides() {
    require_root_or_skip!();
    let lab = Lab::new();
    names(&lab);
    lab.scratch()
        .write("bad.txt", "# ours\n.bad.test\n\nother.test # and this\n");
    let daemon = configured(
        &lab,
        r#"
        [match.office]
        client = ["10.77.1.0/24"]
        [[rule]]
        name = "no-trackers"
        action = "deny"
        host_regex = ['^tracker\.']
        status = 451
        message = "trackers are not welcome"
        [[rule]]
        name = "bad"
        action = "deny"
        host = ["@bad.txt"]
        not.port = [8443]
        [[rule]]
        name = "would-deny"
        action = "report"
        port = [443]
        [[rule]]
        name = "good"
        action = "allow"
        when = ["office"]
        host = [".good.test", ".bad.test"]
        engine = "copy"
        [[rule]]
        action = "deny"
        "#,
    );
    let origins = [443, 8443].map(|port| origin_on(&lab, Family::V4.origin(), port));
    let reply = client(&lab).refusal("tracker.good.test:443");
    reply.check_refusal(451, "http_request_denied").unwrap();
    assert_eq!(reply.body, b"trackers are not welcome\n");
    let reply = denied(&lab, "www.bad.test:443");
    assert_eq!(reply.body, b"denied by rule bad\n");
    denied(&lab, "10.77.2.1:443");
    // A name that does not exist is not even looked up.
    denied(&lab, "nowhere.other.test:443");
    let v6 = Client::new(&lab.client, Family::V6.proxy());
    v6.refusal("www.good.test:443")
        .check_refusal(403, "http_request_denied")
        .unwrap();

    drop(client(&lab).tunnel("www.bad.test:8443"));
    drop(origins[1].accept());
    drop(client(&lab).tunnel("WWW.Good.Test:443"));
    drop(origins[0].accept());
    daemon.wait_tunnel_records(2);
    let said = daemon.stderr_lines().join("\n");
    assert!(
        said.contains("would be denied") && said.contains("would-deny"),
        "{said}"
    );
    assert!(
        said.contains("rule=\"good\"") && said.contains("engine=copy"),
        "{said}"
    );
}

/// What a rule does not name stays as it is without rules.
#[test]
fn a_rule_that_allows_opens_what_it_names_and_nothing_else() {
    require_root_or_skip!();
    let lab = Lab::new();
    names(&lab);
    let _daemon = Setup::bare(&lab.proxy)
        .config(
            &lab,
            r#"
            listen = ["10.77.1.2:3128", "[fd77:1::2]:3128"]
            [[rule]]
            action = "allow"
            client = ["10.77.1.1"]
            host = [".bad.test"]
            [[rule]]
            action = "allow"
            client = ["10.77.1.1"]
            host = [".good.test"]
            destination = ["10.77.2.0/24"]
            port = [8443]
            "#,
        )
        .listeners(2)
        .start();
    let origin = origin_on(&lab, Family::V4.origin(), 8443);
    // Neither the private address nor the port is named.
    client(&lab)
        .refusal("www.bad.test:443")
        .check_refusal(403, "destination_ip_prohibited")
        .unwrap();
    denied(&lab, "www.bad.test:22");
    denied(&lab, "www.good.test:22");
    drop(client(&lab).tunnel("www.good.test:8443"));
    drop(origin.accept());
    let v6 = Client::new(&lab.client, Family::V6.proxy());
    let reply = v6.refusal("www.good.test:8443");
    reply.check_refusal(403, "http_request_denied").unwrap();
}

/// Rules on addresses are about the address that is connected to: of several, only some may be permitted.
#[test]
fn rules_on_addresses_choose_among_those_of_a_name() {
    require_root_or_skip!();
    let lab = Lab::new();
    proxy_tests::netns::run(lab.origin.command("ip").args([
        "addr",
        "add",
        "10.77.2.9/24",
        "dev",
        "cable2",
    ]));
    lab.proxy
        .set_hosts(&[("10.77.2.1", "both.test"), ("10.77.2.9", "both.test")]);
    let _daemon = configured(
        &lab,
        "[[rule]]\naction = \"deny\"\ndestination = [\"10.77.2.1\"]\nmessage = \"not there\"\n",
    );
    let shut = origin_on(&lab, Family::V4.origin(), 443);
    let open = origin_on(&lab, "10.77.2.9".parse().unwrap(), 443);
    drop(client(&lab).tunnel("both.test:443"));
    drop(open.accept());
    assert_eq!(denied(&lab, "10.77.2.1:443").body, b"not there\n");
    assert_eq!(denied(&lab, "[::ffff:10.77.2.1]:443").body, b"not there\n");
    assert!(!shut.is_called_within(Duration::from_millis(100)));
}

#[test]
fn a_rule_can_redirect_or_reset() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _daemon = configured(
        &lab,
        r#"
        [[rule]]
        action = "deny"
        port = [80]
        redirect = "https://help.test/?from=%i&to=%u"
        [[rule]]
        action = "deny"
        port = [81]
        reset = true
        "#,
    );
    let reply = client(&lab).refusal("a.test:80");
    assert_eq!(reply.status, 307);
    assert_eq!(
        reply.header("location"),
        Some("https://help.test/?from=10.77.1.1&to=a.test%3A80")
    );
    let mut stream = client(&lab).open();
    stream
        .write_all(connect_head("a.test:81").as_bytes())
        .unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn over_a_limit_a_client_is_told_when_to_try_again() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(
        &lab,
        r#"
        [limits]
        tunnels = 4
        tunnels_per_client = 3
        [[rule]]
        name = "slow-lane"
        action = "allow"
        port = [443]
        limits.tunnels_per_client = 1
        [[rule]]
        action = "deny"
        connections_above = 9
        "#,
    );
    let lane = origin_on(&lab, Family::V4.origin(), 443);
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let expect = |client: Client<'_>, target: &str, status: u16, reason: &str| {
        let reply = client.refusal(target);
        reply
            .check_refusal(status, "connection_limit_reached")
            .unwrap();
        assert_eq!(reply.header("retry-after"), Some("5"));
        let body = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(body.starts_with(reason), "{body}");
    };
    let one = (client(&lab).tunnel("10.77.2.1:443"), lane.accept());
    expect(
        client(&lab),
        "10.77.2.1:443",
        429,
        "client 10.77.1.1 under rule slow-lane has 1 tunnel open",
    );
    let open = || (client(&lab).tunnel(&origin.target()), origin.accept());
    let (two, three) = (open(), open());
    expect(
        client(&lab),
        &origin.target(),
        429,
        "client 10.77.1.1 has 3 tunnels open",
    );
    let v6 = Client::new(&lab.client, Family::V6.proxy());
    let four = (v6.tunnel(&origin.target()), origin.accept());
    expect(v6, &origin.target(), 503, "this proxy has 4 tunnels open");
    drop(one);
    daemon.wait_tunnel_records(1);
    drop((client(&lab).tunnel("10.77.2.1:443"), lane.accept()));
    // Connections count, whatever they are for, once they are accepted.
    let idle: Vec<TcpStream> = (0..9).map(|_| client(&lab).open()).collect();
    wait_for("the connections count", PATIENCE, || {
        let mut stream = client(&lab).open();
        let head = connect_head(&origin.target());
        stream.write_all(head.as_bytes()).unwrap();
        (Reply::read_head(&mut stream).unwrap().status == 403).then_some(())
    });
    drop((idle, two, three, four));
}

#[test]
fn a_tunnel_ends_after_its_lifetime() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(
        &lab,
        "[[rule]]\naction = \"allow\"\nport = [443]\nlimits.lifetime = \"1s\"\n",
    );
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let mut client = client(&lab).tunnel("10.77.2.1:443");
    let mut upstream = origin.accept();
    let begin = Instant::now();
    let error = loop {
        if let Err(error) = client
            .write_all(b"x")
            .and_then(|()| upstream.read_exact(&mut [0]))
        {
            break error;
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(begin.elapsed() > Duration::from_millis(900), "{error}");
    let record = &daemon.wait_tunnel_records(1)[0];
    assert_eq!(record.end, "lifetime");
}

/// Takes about two seconds at the limit; without it, a few milliseconds.
#[test]
fn bandwidth_is_limited_and_no_byte_is_lost() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = configured(
        &lab,
        r#"
        [bucket.all]
        rate = "1MB/s"
        size = "100kB"
        direction = "down"
        [[shape]]
        bucket = ["all"]
        port = [443]
        "#,
    );
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let payload = Payload::new(7);
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            let mut client = client(&lab).tunnel("10.77.2.1:443");
            let mut upstream = origin.accept();
            scope.spawn(move || {
                // Up it is not limited, and the end comes through.
                payload.send(&mut client, 3_000_000).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(payload.receive_to_end(&mut client, 0).unwrap(), 1_000_000);
            });
            scope.spawn(move || {
                assert_eq!(payload.receive_to_end(&mut upstream, 0).unwrap(), 3_000_000);
                payload.send(&mut upstream, 1_000_000).unwrap();
            });
        }
    });
    let seconds = begin.elapsed().as_secs_f64();
    // 2 MB, of which the bucket holds 0.1: 1.9 s; a slow machine only makes it longer.
    assert!(seconds > 1.8, "{seconds} s");
    for record in daemon.wait_tunnel_records(2) {
        assert_eq!(record.engine, "copy");
        assert_eq!(record.end, "closed");
    }
}

/// The configuration of the scenario that this project grew from, unchanged.
const SEED: &str = "http_port 3128\n\nacl SSL_ports port 443\nacl CONNECT method CONNECT\n\n\
    http_access deny CONNECT !SSL_ports\nhttp_access allow localhost manager\nhttp_access deny manager\n\
    http_access allow all\n\ncoredump_dir /var/spool/squid\n";

#[test]
fn the_squid_conf_of_the_scenario_works_unchanged() {
    require_root_or_skip!();
    let lab = Lab::new();
    names(&lab);
    let path = lab.scratch().write("squid.conf", SEED);
    let log = lab.scratch().path().join("access.log");
    let daemon = Setup::bare(&lab.proxy)
        .option("--squid-conf", path)
        .option("--access-log", &log)
        .start();
    assert_eq!(daemon.listening(), ["[::]:3128".parse().unwrap()]);
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    for proxy in [Family::V4.proxy(), Family::V6.proxy()] {
        drop(Client::new(&lab.client, proxy).tunnel("www.good.test:443"));
        drop(origin.accept());
    }
    denied(&lab, "www.good.test:22");
    let get = |url: &str| {
        let request = format!("GET {url} HTTP/1.1\r\nHost: www.good.test\r\n\r\n");
        client(&lab).exchange(url, request.as_bytes()).status
    };
    assert_eq!(
        get("http://www.good.test:22/"),
        503,
        "nobody listens, but the first rule does not refuse it"
    );
    assert_eq!(get("http://www.good.test/squid-internal-mgr/info"), 403);
    // Nobody listens: Squid says 503.
    let reply = client(&lab).refusal("[fd77:2::1]:443");
    reply.check_refusal(503, "connection_refused").unwrap();
    daemon.wait_tunnel_records(2);
    let said = daemon.stderr_lines().join("\n");
    assert!(said.contains("this is an open relay"), "{said}");
    assert!(said.contains("coredump_dir (line 11)"), "{said}");
}

/// What `check` and `explain` say is what a live request gets.
#[test]
fn a_configuration_can_be_asked_beforehand() {
    require_root_or_skip!();
    let lab = Lab::new();
    let seed = lab.scratch().write("squid.conf", SEED);
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments);
        let output = run_to_end(&mut command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let seed = seed.to_str().unwrap();
    let explain = |from: &str, method: &str, target: &str| {
        ask(&[
            "explain",
            "--squid-conf",
            seed,
            "--from",
            from,
            method,
            target,
        ])
    };
    for (from, method, target, code, line) in [
        ("10.9.9.9", "CONNECT", "10.77.2.1:22", 1, "squid.conf:6"),
        ("127.0.0.1", "CONNECT", "10.77.2.1:22", 1, "squid.conf:6"),
        ("10.9.9.9", "CONNECT", "10.77.2.1:443", 0, "squid.conf:9"),
        ("10.9.9.9", "GET", "http://10.77.2.1:22/", 0, "squid.conf:9"),
        (
            "10.9.9.9",
            "GET",
            "http://10.77.2.1/squid-internal-mgr/info",
            1,
            "squid.conf:8",
        ),
        (
            "::1",
            "GET",
            "http://10.77.2.1/squid-internal-mgr/info",
            0,
            "squid.conf:7",
        ),
    ] {
        let (found, text) = explain(from, method, target);
        assert_eq!(found, Some(code), "{from} {method} {target}\n{text}");
        assert!(text.contains(line), "{from} {method} {target}\n{text}");
    }
    let (code, text) = ask(&["check", "--squid-conf", seed]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("open relay") && text.contains("is valid: 5 rules, 1 warning"),
        "{text}"
    );

    let shadowed = lab.scratch().write(
        "shadowed.toml",
        "[[rule]]\naction = \"deny\"\nhost = [\".example.com\"]\n\n[[rule]]\naction = \"deny\"\nhost = [\"www.example.com\"]\nport = [443]\n",
    );
    let (code, text) = ask(&["check", "--config", shadowed.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("shadowed.toml:5: warning: the rule can never match"),
        "{text}"
    );
    let broken = lab
        .scratch()
        .write("broken.toml", "[[rule]]\nacton = \"deny\"\n");
    let (code, text) = ask(&["check", "--config", broken.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("broken.toml:2:1: ") && text.contains("did you mean `action`?"),
        "{text}"
    );
    // What is converted runs, and decides the same.
    let (code, toml) = ask(&["config", "convert", seed]);
    assert_eq!(code, Some(0), "{toml}");
    let converted = lab.scratch().write(
        "converted.toml",
        &toml[..toml.find("\n20").unwrap_or(toml.len())],
    );
    let converted = converted.to_str().unwrap();
    let (code, text) = ask(&[
        "explain",
        "--config",
        converted,
        "--from",
        "10.9.9.9",
        "CONNECT",
        "10.77.2.1:22",
    ]);
    assert_eq!(code, Some(1), "{text}");
}
