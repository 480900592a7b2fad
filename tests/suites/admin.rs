//! The admin endpoint: tunnels seen and ended while they live, metrics, and who may do what.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    time::Duration,
};

use proxy_tests::{
    client::connect_head,
    daemon::{Daemon, Setup},
    deadline::{PATIENCE, uninterrupted, wait_for},
    lab::{Family, Lab},
    lines::Lines,
    origin::Origin,
    payload::Payload,
    require_root_or_skip,
};
use regex_lite::Regex;
use serde_json::Value;

use crate::scene::client;

/// A response's status and body.
pub(crate) fn exchange(
    mut stream: impl std::io::Read + std::io::Write,
    request: &str,
) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// What the socket says to a request.
pub(crate) fn say(daemon: &Daemon, method: &str, path: &str) -> (u16, String) {
    let stream = UnixStream::connect(daemon.admin()).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    exchange(stream, &request)
}

/// What is at a path, as JSON.
pub(crate) fn get(daemon: &Daemon, path: &str) -> Value {
    let (status, body) = say(daemon, "GET", path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

pub(crate) fn metrics(daemon: &Daemon) -> String {
    let (status, body) = say(daemon, "GET", "/metrics");
    assert_eq!(status, 200);
    body
}

/// The value of a metric, by its name with its labels.
pub(crate) fn metric(text: &str, name: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

/// The tunnel that is open, once it has moved so many bytes; within two seconds.
fn seen(daemon: &Daemon, up: u64, down: u64) -> Value {
    wait_for("the tunnel's bytes", Duration::from_secs(2), || {
        let listing = get(daemon, "/tunnels");
        let [tunnel] = listing["tunnels"].as_array().unwrap().as_slice() else {
            return None;
        };
        (tunnel["up"] == up && tunnel["down"] == down).then(|| tunnel.clone())
    })
}

#[test]
fn an_open_tunnel_shows_its_bytes_everywhere() {
    require_root_or_skip!();
    for engine in ["copy", "splice", "sockmap", "auto"] {
        let lab = Lab::new();
        let daemon = Setup::open(&lab).option("--engine", engine).start();
        let origin = Origin::bind(&lab.origin, Family::V4.origin());
        let mut stream = client(&lab).tunnel(&origin.target());
        let mut server = origin.accept();
        let mut sum = (0, 0);
        for (up, down) in [(702, 87_594), (1_000_000, 10), (5, 3_000_000)] {
            Payload::new(1).send(&mut stream, up).unwrap();
            Payload::new(1).receive(&mut server, up).unwrap();
            let answer = std::thread::scope(|scope| {
                let server = &mut server;
                let sender = scope.spawn(move || Payload::new(2).send(server, down));
                Payload::new(2).receive(&mut stream, down).unwrap();
                sender.join().unwrap()
            });
            answer.unwrap();
            sum = (sum.0 + up, sum.1 + down);
            let tunnel = seen(&daemon, sum.0, sum.1);
            assert_eq!(tunnel["client"], stream.local_addr().unwrap().to_string());
            assert_eq!(tunnel["target"], origin.target());
            if engine != "auto" {
                assert_eq!(tunnel["engine"], engine);
            }
            let text = metrics(&daemon);
            for (direction, bytes) in [("up", sum.0), ("down", sum.1)] {
                let of = |engine| {
                    let labels = format!("{{engine=\"{engine}\",direction=\"{direction}\"}}");
                    metric(&text, &format!("underpass_tunnel_bytes_total{labels}"))
                };
                let all: f64 = ["copy", "splice", "sockmap"].into_iter().map(of).sum();
                assert_eq!(all.to_string(), bytes.to_string(), "{engine} {direction}");
            }
        }
        let printed = daemon.tell(&["tunnels", "--client", "10.77.1.0/24"]);
        assert!(printed.contains(&origin.target()), "{printed}");
        assert!(printed.contains("1 open"), "{printed}");
        let status = get(&daemon, "/status");
        assert_eq!(
            (status["up"].as_u64(), status["down"].as_u64()),
            (Some(sum.0), Some(sum.1))
        );

        drop((stream, server));
        let record = daemon.wait_tunnel_records(1).remove(0);
        assert_eq!((record.up, record.down), sum);
        let text = metrics(&daemon);
        let ended = format!(
            "underpass_tunnels_ended_total{{engine=\"{}\"}}",
            record.engine
        );
        assert_eq!(metric(&text, &ended).to_string(), "1");
        assert_eq!(
            metric(&text, "underpass_tunnel_lifetime_seconds_count").to_string(),
            "1"
        );
        let status = get(&daemon, "/status");
        assert_eq!(status["up"].as_u64(), Some(sum.0), "what has ended counts");
        assert!(
            get(&daemon, "/tunnels")["tunnels"]
                .as_array()
                .unwrap()
                .is_empty()
        );
    }
}

#[test]
fn tunnels_are_killed_one_by_one_or_by_what_they_are() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).start();
    let origins = [1, 2].map(|_| Origin::bind(&lab.origin, Family::V4.origin()));
    let mut tunnels = Vec::new();
    for origin in [&origins[0], &origins[0], &origins[1]] {
        tunnels.push((client(&lab).tunnel(&origin.target()), origin.accept()));
    }
    let is_reset = |stream: &mut TcpStream| {
        uninterrupted(|| stream.read(&mut [0])).unwrap_err().kind()
            == std::io::ErrorKind::ConnectionReset
    };
    let listing = get(&daemon, "/tunnels?sort=age");
    let first = listing["tunnels"][0]["id"].as_u64().unwrap();
    assert_eq!(
        daemon.tell(&["kill", &first.to_string()]),
        "1 tunnel was killed\n"
    );
    let (mut stream, mut server) = tunnels.remove(0);
    assert!(is_reset(&mut stream) && is_reset(&mut server));
    let gone = daemon.ask(&["kill", &first.to_string()]);
    assert!(!gone.status.success(), "{gone:?}");

    let target = origins[1].target();
    assert_eq!(
        daemon.tell(&["kill", "--target", &target]),
        "1 tunnel was killed\n"
    );
    assert!(is_reset(&mut tunnels.remove(1).0));
    let records = daemon.wait_tunnel_records(2);
    assert!(
        records.iter().all(|record| record.end == "killed"),
        "{records:?}"
    );

    // Nothing is killed by mistake.
    let nothing = daemon.ask(&["kill"]);
    assert!(!nothing.status.success());
    let said = String::from_utf8_lossy(&nothing.stderr);
    assert!(said.contains("say which tunnels, or all"), "{said}");
    let typo = daemon.ask(&["kill", "--client", "10.77.1"]);
    assert!(
        String::from_utf8_lossy(&typo.stderr).contains("is not a network"),
        "{typo:?}"
    );
    let (mut stream, mut server) = tunnels.remove(0);
    stream.write_all(b"alive").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(daemon.tell(&["kill", "--all"]), "1 tunnel was killed\n");
    assert!(is_reset(&mut stream));
}

#[test]
fn the_configuration_and_the_diagnostics_are_changed_from_here() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().write("underpass.toml", "watch = false\n");
    let daemon = Setup::open(&lab).option("--config", &path).start();
    fs::write(
        &path,
        "watch = false\n[[rule]]\naction = \"deny\"\nhost = [\"a.test\"]\n",
    )
    .unwrap();
    let said = daemon.tell(&["reload"]);
    assert_eq!(said, "the configuration was read again: 1 rule\n");
    fs::write(&path, "nonsense = 1\n").unwrap();
    let refused = daemon.ask(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("underpass.toml:1:1"),
        "{said}"
    );
    let status = daemon.tell(&["status"]);
    assert!(status.contains("1 accepted, 1 refused"), "{status}");
    assert!(status.contains("underpass.toml:1:1"), "{status}");
    client(&lab).refusal("a.test:443");
    let refusals = &get(&daemon, "/status")["refusals"];
    assert_eq!(refusals["line-2"], 1, "the old rules stay: {refusals}");

    assert_eq!(daemon.tell(&["log-level"]), "info\n");
    client(&lab).refusal("a.test:443");
    assert_eq!(
        daemon
            .tell(&["log-level", "underpass::session=debug,info"])
            .lines()
            .count(),
        1
    );
    client(&lab).refusal("a.test:443");
    daemon.wait_said("not permitted", 1);
    let wrong = daemon.ask(&["log-level", "loud=quiet"]);
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("is no level"),
        "{wrong:?}"
    );
}

#[test]
fn a_proxy_that_drains_ends_with_its_last_client() {
    require_root_or_skip!();
    let lab = Lab::new();
    let mut daemon = Setup::open(&lab).start();
    assert_eq!(say(&daemon, "GET", "/readyz"), (200, "ready\n".to_owned()));
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).tunnel(&origin.target());
    let mut server = origin.accept();
    assert_eq!(daemon.tell(&["drain"]), "draining\n");
    wait_for("no more clients", PATIENCE, || {
        let refused = lab.client.run_in(|| TcpStream::connect(Family::V4.proxy()));
        refused.is_err().then_some(())
    });
    assert_eq!(
        say(&daemon, "GET", "/readyz"),
        (503, "draining\n".to_owned())
    );
    assert_eq!(say(&daemon, "GET", "/healthz").0, 200);
    stream.write_all(b"alive").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    assert!(daemon.is_running());
    drop(stream);
    assert_eq!(uninterrupted(|| server.read(&mut [0])).unwrap(), 0);
    drop(server);
    wait_for("the end", PATIENCE, || (!daemon.is_running()).then_some(()));
    assert!(!daemon.admin().exists(), "the socket's file is gone");
}

#[test]
fn who_may_do_what() {
    require_root_or_skip!();
    let lab = Lab::new();
    let config = "[admin]\nlisten = \"127.0.0.1:9128\"\nmetrics_listen = \"10.77.1.2:9129\"\n";
    let daemon = Setup::open(&lab).config(&lab, config).start();
    let mode = fs::metadata(daemon.admin()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let ask = |address: &str, method: &str, path: &str, fields: &str| {
        let address: SocketAddr = address.parse().unwrap();
        let stream = lab.proxy.run_in(|| TcpStream::connect(address)).unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
        exchange(stream, &request).0
    };
    let tcp = "127.0.0.1:9128";
    for (method, path, fields, expected) in [
        ("GET", "/", "Host: localhost:9128\r\n", 200),
        ("GET", "/tunnels", "Host: 127.0.0.1:9128\r\n", 200),
        ("GET", "/status", "Host: [::1]:9128\r\n", 200),
        ("GET", "/metrics", "Host: localhost\r\n", 200),
        ("POST", "/tunnels/kill?all=true", "Host: localhost\r\n", 403),
        ("PUT", "/log-level?level=debug", "Host: localhost\r\n", 403),
        ("POST", "/drain", "Host: localhost\r\n", 403),
        ("GET", "/tunnels", "Host: evil.test\r\n", 421),
        ("GET", "/tunnels", "Host: evil.test:9128\r\n", 421),
        (
            "GET",
            "/tunnels",
            "Host: localhost\r\nHost: localhost\r\n",
            421,
        ),
        (
            "GET",
            "/tunnels",
            "Host: localhost\r\nOrigin: http://evil.test\r\n",
            421,
        ),
        ("GET", "/tunnels", "", 421),
    ] {
        assert_eq!(
            ask(tcp, method, path, fields),
            expected,
            "{method} {path} {fields}"
        );
    }
    let metrics = "10.77.1.2:9129";
    for (method, path, expected) in [
        ("GET", "/metrics", 200),
        ("HEAD", "/readyz", 200),
        ("GET", "/healthz", 200),
        ("GET", "/tunnels", 404),
        ("GET", "/", 404),
        ("POST", "/metrics", 405),
        ("POST", "/drain", 404),
    ] {
        assert_eq!(
            ask(metrics, method, path, "Host: node1\r\n"),
            expected,
            "{method} {path}"
        );
    }
    for (method, path, expected) in [
        ("GET", "/tunnels?colour=red", 400),
        ("GET", "/tunnels/1234", 404),
        ("POST", "/tunnels", 405),
        ("POST", "/tunnels/1234/kill", 404),
        ("POST", "/tunnels/kill?user=nobody", 200),
        ("GET", "/nonsense", 404),
        ("GET", "/reload", 405),
    ] {
        assert_eq!(say(&daemon, method, path).0, expected, "{method} {path}");
    }

    // A second one at the same socket is a mistake.
    let taken = Setup::bare(&lab.origin)
        .option("--admin-socket", daemon.admin())
        .run_to_end();
    let said = String::from_utf8_lossy(&taken.stderr);
    assert!(said.contains("cannot open the admin socket"), "{said}");
    let outside = Setup::bare(&lab.origin)
        .config(&lab, "[admin]\nlisten = \"10.77.2.1:1\"\n")
        .run_to_end();
    let said = String::from_utf8_lossy(&outside.stderr);
    assert!(
        said.contains("underpass.toml:2:10: 10.77.2.1:1 is not on loopback"),
        "{said}"
    );
}

/// The names and kinds of a list of metrics.
fn documented(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`');
        Some((name, cells.next()?))
    })
}

/// What is drawn and what is warned of is there.
#[test]
fn dashboard_and_alerts_are_about_metrics_that_there_are() {
    let read = |name: &str| fs::read_to_string(format!("../deploy/monitoring/{name}")).unwrap();
    let list = read("METRICS.md");
    let series: Vec<String> = documented(&list)
        .flat_map(|(name, kind)| {
            let suffixes: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                _ => &[""],
            };
            suffixes.iter().map(move |suffix| format!("{name}{suffix}"))
        })
        .collect();
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let drawn = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let drawn = drawn.map(|target| target["expr"].as_str().unwrap().to_owned());
    let alerts = read("alerts.yaml");
    let expressions: Vec<String> = drawn.chain([alerts]).collect();
    let name = Regex::new(r"\b(underpass|process)_[a-z_]+\b").unwrap();
    let mut used = 0;
    for expression in &expressions {
        for found in name.find_iter(expression) {
            used += 1;
            assert!(
                series.iter().any(|series| series == found.as_str()),
                "there is no {}",
                found.as_str()
            );
        }
    }
    assert!(used > 30, "{used} uses");
}

/// A proxy at which everything can happen that metrics tell of; its configuration begins with this.
pub(crate) fn eventful(lab: &Lab, begin: &str) -> Daemon {
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let config = format!(
        "{begin}[parent.p]\nurl = \"http://10.77.2.1:1\"\n[[route]]\nvia = [\"p\"]\nport = [1]\n\
         [[rule]]\nname = \"would\"\naction = \"report\"\nhost = [\"origin.test\"]\n\
         [limits]\ntunnels = 1\n"
    );
    Setup::open(lab)
        .config(lab, &config)
        .option("--engine", "sockmap")
        .start()
}

/// A tunnel that falls back, as its client has finished already; one for which there is no room, and one that the
/// policy refuses.
pub(crate) fn let_everything_happen(lab: &Lab, daemon: &Daemon) {
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let mut stream = client(lab).open();
    let target = format!("origin.test:{}", origin.address().port());
    stream.write_all(connect_head(&target).as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let server = origin.accept();
    client(lab).refusal(&origin.target());
    client(lab).refusal("10.9.9.9:443");
    drop(server);
    daemon.wait_tunnel_records(1);
}

/// The list for users, and what is told, are the same.
#[test]
fn every_metric_is_documented() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = eventful(&lab, "");
    let_everything_happen(&lab, &daemon);
    let text = metrics(&daemon);
    assert!(text.ends_with("# EOF\n"));
    let mut told: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(str::to_owned)
        .collect();
    told.sort();
    let list = fs::read_to_string("../deploy/monitoring/METRICS.md").unwrap();
    let mut documented: Vec<String> = documented(&list)
        .map(|(name, kind)| format!("{name} {kind}"))
        .collect();
    documented.sort();
    let only = |these: &[String], others: &[String]| -> Vec<String> {
        let these = these.iter().filter(|name| !others.contains(name));
        these.cloned().collect()
    };
    assert_eq!(only(&told, &documented), [""; 0], "not documented");
    assert_eq!(only(&documented, &told), [""; 0], "not told");
    // Each has a sample, and no labels but those of the list.
    for line in list.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = line.split(" | ").collect();
        let name = cells[0].trim_end_matches('`');
        let labels: Vec<&str> = cells[2]
            .split(", ")
            .map(|label| label.trim_matches('`'))
            .filter(|label| *label != "-")
            .collect();
        let is_sample = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ', '_']))
        };
        let sample = text
            .lines()
            .find(is_sample)
            .unwrap_or_else(|| panic!("no {name} in {text}"));
        for label in &labels {
            assert!(
                sample.contains(&format!("{label}=\"")),
                "{label} of {sample}"
            );
        }
        let count = sample.matches("=\"").count() - usize::from(sample.contains("{le=\""));
        assert_eq!(count, labels.len(), "{sample}");
    }
}

#[test]
fn diagnostics_are_json_if_wanted() {
    require_root_or_skip!();
    let lab = Lab::new();
    // It waits for the lines of a text.
    let mut daemon = lab
        .proxy
        .command("env")
        .arg(proxy_tests::daemon::binary())
        .args(["run", "--log-format", "json", "--admin-socket", "none"])
        .env("RUST_LOG", "debug")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = Lines::collect(daemon.stderr.take().unwrap());
    let connect = || {
        lab.proxy
            .run_in(|| TcpStream::connect("127.0.0.1:3128").ok())
    };
    let mut stream = wait_for("underpass listens", PATIENCE, connect);
    stream
        .write_all(b"CONNECT 10.9.9.9:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let refused = lines.wait(PATIENCE, |lines| {
        lines
            .iter()
            .find(|line| line.contains("not permitted"))
            .cloned()
    });
    let refused: Value = serde_json::from_str(&refused.expect("it is told")).unwrap();
    assert_eq!(refused["level"], "DEBUG");
    assert_eq!(refused["target"], "underpass::session::reply");
    assert_eq!(refused["span"]["id"], 1, "{refused}");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    for line in lines.finish() {
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

/// Browsers get a page that takes nothing from elsewhere; others get a list.
#[test]
fn the_page_is_one_file() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab)
        .config(&lab, "[admin]\nlisten = \"127.0.0.1:9128\"\n")
        .start();
    let ask = |accept: &str| {
        let stream = lab
            .proxy
            .run_in(|| TcpStream::connect("127.0.0.1:9128"))
            .unwrap();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost:9128\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        );
        exchange(stream, &request)
    };
    let (status, page) = ask("text/html,application/xhtml+xml,*/*;q=0.8");
    assert_eq!(status, 200);
    assert!(page.starts_with("<!doctype html>"), "{page}");
    assert!(!page.contains("src="), "nothing is fetched");
    let links: Vec<&str> = page.split("href=\"").skip(1).collect();
    assert!(
        links.iter().all(|link| link.starts_with("data:")),
        "{links:?}"
    );
    assert!(
        !page
            .replace("http://www.w3.org/2000/svg", "")
            .contains("http")
    );
    let (status, list) = ask("*/*");
    assert_eq!(status, 200);
    assert!(list.contains("GET  /tunnels"), "{list}");
    drop(daemon);
}

/// Nobody is there.
#[test]
fn a_proxy_that_does_not_run_is_said_not_to() {
    let output = proxy_tests::daemon::run_to_end(
        std::process::Command::new(proxy_tests::daemon::binary()).args([
            "status",
            "--admin",
            "/nonexistent/underpass.sock",
        ]),
    );
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("no proxy answers at /nonexistent/underpass.sock"),
        "{said}"
    );
}
