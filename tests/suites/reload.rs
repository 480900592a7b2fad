//! The configuration, read again while tunnels are open: on SIGHUP, and when a file changes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use proxy_tests::{
    daemon::{Daemon, Setup},
    lab::{Family, Lab},
    origin::Origin,
    payload::{Payload, Step},
    reply::Reply,
    require_root_or_skip,
};
use rustix::process::Signal;

use crate::scene::{client, origin_on};

const OPEN: &str = r#"
listen = ["10.77.1.2:3128"]
allow_client = ["10.77.1.0/24"]
allow_destination = ["10.77.2.0/24"]
allow_port = ["1-65535"]
"#;

fn start(lab: &Lab, path: &Path) -> Daemon {
    Setup::bare(&lab.proxy).option("--config", path).start()
}

fn write(path: &Path, text: &str) {
    fs::write(path, format!("{OPEN}\n{text}")).unwrap();
}

/// Waits until so many lines of the diagnostics have this in them.
const READ: &str = "the configuration was read again";
const REFUSED: &str = "the configuration is refused";

#[test]
fn sighup_reads_the_configuration_and_a_broken_one_changes_nothing() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().path().join("underpass.toml");
    write(&path, "watch = false\n");
    let mut daemon = start(&lab, &path);
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    drop(client(&lab).tunnel("10.77.2.1:443"));
    drop(origin.accept());

    write(
        &path,
        "watch = false\n[[rule]]\naction = \"deny\"\nport = [443]\n",
    );
    daemon.signal(Signal::HUP);
    daemon.wait_said(READ, 1);
    client(&lab)
        .refusal("10.77.2.1:443")
        .check_refusal(403, "http_request_denied")
        .unwrap();

    write(&path, "[[rule]]\naction = \"denny\"\n");
    daemon.signal(Signal::HUP);
    daemon.wait_said(REFUSED, 1);
    daemon.wait_said("underpass.toml:8:10: ", 1);
    client(&lab)
        .refusal("10.77.2.1:443")
        .check_refusal(403, "http_request_denied")
        .unwrap();
    daemon.stop();
    daemon.wait_said("accepted=1 refused=1", 1);
}

/// As the kubelet changes a `ConfigMap`: the files are links through a link that is swapped.
#[test]
fn a_changed_file_and_a_swapped_link_are_noticed() {
    require_root_or_skip!();
    let lab = Lab::new();
    let mount = lab.scratch().path().join("config");
    let version = |name: &str, rules: &str, hosts: &str| {
        let directory = mount.join(name);
        fs::create_dir_all(&directory).unwrap();
        write(&directory.join("underpass.toml"), rules);
        fs::write(directory.join("hosts.txt"), hosts).unwrap();
        symlink(name, mount.join("..new")).unwrap();
        fs::rename(mount.join("..new"), mount.join("..data")).unwrap();
    };
    let rules = "[[rule]]\naction = \"deny\"\nhost = [\"@hosts.txt\"]\n";
    version("..1", rules, "one.invalid\n");
    for file in ["underpass.toml", "hosts.txt"] {
        symlink(format!("..data/{file}"), mount.join(file)).unwrap();
    }
    let daemon = start(&lab, &mount.join("underpass.toml"));
    let expect = |target: &str, status: u16| {
        assert_eq!(client(&lab).refusal(target).status, status, "{target}");
    };
    expect("one.invalid:443", 403);
    expect("two.invalid:443", 502);
    version("..2", rules, "two.invalid\n");
    daemon.wait_said(READ, 1);
    expect("one.invalid:443", 502);
    expect("two.invalid:443", 403);
    // A list alone.
    fs::write(mount.join("..2/hosts.txt"), "three.invalid\n").unwrap();
    daemon.wait_said(READ, 2);
    expect("three.invalid:443", 403);
    fs::write(mount.join("..2/hosts.txt"), "no host\n").unwrap();
    daemon.wait_said("hosts.txt:1: 'no host' is not a host", 1);
    expect("three.invalid:443", 403);
}

/// Of the files that an `include` means, a new one is noticed, and so is one that was mended.
#[test]
fn a_new_file_in_an_included_directory_is_noticed() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().path().join("underpass.toml");
    let rules = lab.scratch().path().join("rules.d");
    fs::create_dir(&rules).unwrap();
    fs::write(&path, format!("include = [\"rules.d/*.toml\"]\n{OPEN}")).unwrap();
    let daemon = start(&lab, &path);
    assert_eq!(client(&lab).refusal("one.invalid:443").status, 502);
    fs::write(rules.join("1.toml"), "[[rule]]\naction = \"den\"\n").unwrap();
    daemon.wait_said("rules.d/1.toml:2:10: ", 1);
    fs::write(rules.join("1.toml"), "[[rule]]\naction = \"deny\"\n").unwrap();
    daemon.wait_said(READ, 1);
    assert_eq!(client(&lab).refusal("one.invalid:443").status, 403);
}

/// Browsers connect in advance; what counts is when they ask.
#[test]
fn a_connection_that_was_open_before_is_judged_by_the_new_rules() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().path().join("underpass.toml");
    write(&path, "watch = false\n");
    let daemon = start(&lab, &path);
    let mut early = client(&lab).open();
    early
        .write_all(b"CONNECT 10.77.2.1:443 HTTP/1.1\r\n")
        .unwrap();
    write(
        &path,
        "watch = false\n[[rule]]\naction = \"deny\"\nport = [443]\n",
    );
    daemon.signal(Signal::HUP);
    daemon.wait_said(READ, 1);
    early.write_all(b"Host: 10.77.2.1\r\n\r\n").unwrap();
    let reply = Reply::read_to_end(&mut early).unwrap();
    reply.check_refusal(403, "http_request_denied").unwrap();
}

#[test]
fn tunnels_that_are_forbidden_now_end_if_that_is_asked_for() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().path().join("underpass.toml");
    write(&path, "watch = false\n");
    let daemon = start(&lab, &path);
    let origins = [443, 8443].map(|port| origin_on(&lab, Family::V4.origin(), port));
    let open = |origin: &Origin| (client(&lab).tunnel(&origin.target()), origin.accept());
    let (mut forbidden, mut permitted) = (open(&origins[0]), open(&origins[1]));
    let deny = "[[rule]]\nname = \"closed\"\naction = \"deny\"\nport = [443]\n";
    write(&path, &format!("watch = false\n{deny}"));
    daemon.signal(Signal::HUP);
    daemon.wait_said(READ, 1);
    talk(&mut forbidden);

    write(
        &path,
        &format!("watch = false\nenforce_on_live = true\n{deny}"),
    );
    daemon.signal(Signal::HUP);
    let record = &daemon.wait_tunnel_records(1)[0];
    assert_eq!(record.end, "forbidden");
    let error = forbidden.0.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    talk(&mut permitted);
    assert!(
        daemon
            .stderr_lines()
            .join("\n")
            .contains("denied by rule closed (")
    );
}

fn talk((client, upstream): &mut (TcpStream, TcpStream)) {
    client.write_all(b"ping").unwrap();
    let mut buffer = [0; 4];
    upstream.read_exact(&mut buffer).unwrap();
    upstream.write_all(b"pong").unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

#[test]
fn a_hundred_tunnels_survive_twenty_reloads() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().path().join("underpass.toml");
    write(&path, "watch = false\n");
    let daemon = start(&lab, &path);
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..100 {
            let mut tunnel = client(&lab).tunnel(&origin.target());
            let mut upstream = origin.accept();
            let stop = &stop;
            scope.spawn(move || {
                let (up, down) = (Payload::new(number), Payload::new(1000 + number));
                let mut at = 0;
                while !stop.load(Relaxed) {
                    let len = 1 + (at * 7 + number) % 9000;
                    up.send_range(&mut tunnel, at, at + len, |_| Step::fast())
                        .unwrap();
                    up.receive_range(&mut upstream, at, at + len, |_| Step::fast())
                        .unwrap();
                    down.send_range(&mut upstream, at, at + len, |_| Step::fast())
                        .unwrap();
                    down.receive_range(&mut tunnel, at, at + len, |_| Step::fast())
                        .unwrap();
                    at += len;
                    thread::sleep(Duration::from_millis(5));
                }
                tunnel.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(upstream.read(&mut [0]).unwrap(), 0);
                upstream.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(tunnel.read(&mut [0]).unwrap(), 0);
            });
        }
        for round in 1..=20 {
            let rules = format!(
                "watch = false\nenforce_on_live = true\n[[rule]]\naction = \"deny\"\nport = [{}]\n[timeouts]\nidle = \"{round}m\"\n",
                20 + round
            );
            write(&path, &rules);
            daemon.signal(Signal::HUP);
            daemon.wait_said(READ, round);
            let reply = client(&lab).refusal(&format!("10.77.2.1:{}", 20 + round));
            assert_eq!(reply.status, 403, "round {round}");
        }
        stop.store(true, Relaxed);
    });
    for record in daemon.wait_tunnel_records(100) {
        assert_eq!(record.end, "closed");
    }
}
