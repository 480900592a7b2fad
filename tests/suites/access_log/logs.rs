//! Several logs: their formats, their requests, where they go, and when.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, UdpSocket},
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::Path,
    process::Command,
    thread::sleep,
    time::Duration,
};

use proxy_tests::{
    client::connect_head,
    daemon::Setup,
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    origin::Origin,
    payload::Payload,
    reply::Reply,
    require_root_or_skip, require_tool_or_skip,
};
use regex_lite::Regex;
use serde_json::Value;

use super::play_tunnel;
use crate::scene::client;

/// The lines of a log once there are so many.
fn lines(path: &Path, count: usize) -> Vec<String> {
    wait_for("lines in the log", PATIENCE, || {
        let text = fs::read_to_string(path).ok()?;
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        (lines.len() >= count && text.ends_with('\n')).then_some(lines)
    })
}

#[test]
fn every_log_has_its_format_and_its_requests() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let path = |name: &str| lab.scratch().path().join(name);
    let config = format!(
        r#"
        [[access_log]]
        only = "refused"
        [[access_log]]
        to = "{}"
        format = "json"
        [[access_log]]
        to = "{}"
        format = "envoy"
        [[access_log]]
        to = "{}"
        format = "%>a \"%{{User-Agent}}>h\" %>Hs"
        host = ["origin.test"]
        "#,
        path("json").display(),
        path("envoy").display(),
        path("custom").display(),
    );
    let daemon = Setup::open(&lab).config(&lab, &config).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let target = format!("origin.test:{}", origin.address().port());
    let mut stream = client(&lab).open();
    let address = stream.local_addr().unwrap();
    let head = connect_head(&target).replace("\r\n\r\n", "\r\nUser-Agent: x \"y\"\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    Reply::read_head(&mut stream).unwrap();
    let mut server = origin.accept();
    stream.write_all(&Payload::new(1).bytes(702)).unwrap();
    server.read_exact(&mut [0; 702]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    server.write_all(&Payload::new(2).bytes(87_594)).unwrap();
    drop(server);
    Payload::new(2).receive_to_end(&mut stream, 0).unwrap();
    client(&lab).refusal("10.9.9.9:443");

    let refused = daemon.wait_access_lines(1);
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert!(refused[0].contains("TCP_DENIED/403"), "{refused:#?}");
    assert_eq!(
        lines(&path("custom"), 1),
        [r#"10.77.1.1 "x \"y\"" 200"#],
        "of the other host there is nothing"
    );
    let received = head.len() + 702;
    let envoy = lines(&path("envoy"), 2);
    let expected = format!(
        r#"^\[2\d\d\d-[-\dT:.]+Z\] "CONNECT - HTTP/1.1" 200 - {received} 87633 \d+ - "-" "x \\"y\\"" "-" "{target}" "{}" - 10.77.2.2:\d+ 10.77.1.2:3128 {address} -$"#,
        origin.address()
    );
    assert!(
        Regex::new(&expected).unwrap().is_match(&envoy[0]),
        "{envoy:#?}\n{expected}"
    );
    assert!(envoy[1].contains("403 UAEX"), "{envoy:#?}");

    let json: Vec<Value> = lines(&path("json"), 2)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [tunnel, denied] = json.as_slice() else {
        panic!("two records expected: {json:#?}");
    };
    for (key, expected) in [
        ("event", "end"),
        ("method", "CONNECT"),
        ("host", "origin.test"),
        ("tag", "TCP_TUNNEL"),
        ("end", "closed"),
        ("ended_by", "client"),
        ("client", &address.to_string()),
        ("listener", "10.77.1.2:3128"),
        ("upstream", &origin.address().to_string()),
        ("hierarchy", "HIER_DIRECT"),
    ] {
        assert_eq!(tunnel[key], expected, "{key} of {tunnel:#}");
    }
    assert_eq!(tunnel["bytes_sent"], 87_633);
    assert_eq!(tunnel["bytes_received"], received);
    for step in ["dns_ms", "connect_ms", "first_byte_ms"] {
        let step = tunnel[step].as_f64().unwrap();
        assert!(
            step <= tunnel["duration_ms"].as_f64().unwrap(),
            "{tunnel:#}"
        );
    }
    assert_eq!(denied["status"], 403);
    assert_eq!(denied["rule"], "allow_destination");
    assert_eq!(denied["error"], "destination_ip_prohibited");
    assert!(denied["upstream"].is_null(), "{denied:#}");
}

/// A tunnel that is open is seen while its bytes flow, whatever carries it.
#[test]
fn open_tunnels_have_lines_of_their_own() {
    require_root_or_skip!();
    for engine in ["copy", "splice", "sockmap"] {
        let lab = Lab::new();
        let path = lab.scratch().path().join("json");
        let config = format!(
            "[[access_log]]\nto = \"{}\"\nformat = \"json\"\nstart = true\ninterval = \"1s\"\n",
            path.display()
        );
        let _daemon = Setup::open(&lab)
            .option("--engine", engine)
            .config(&lab, &config)
            .start();
        let origin = Origin::bind(&lab.origin, Family::V4.origin());
        let mut stream = client(&lab).tunnel(&origin.target());
        let mut server = origin.accept();
        Payload::new(1).send(&mut stream, 1_000_000).unwrap();
        Payload::new(1).receive(&mut server, 1_000_000).unwrap();
        let slow = Duration::from_millis(200);
        sleep(slow);
        server.write_all(&[1; 100]).unwrap();
        stream.read_exact(&mut [0; 100]).unwrap();
        let record = |line: &String| serde_json::from_str::<Value>(line).unwrap();
        let head = connect_head(&origin.target()).len();
        let seen = lines(&path, 2).iter().map(record).next_back().unwrap();
        assert_eq!(seen["event"], "progress");
        assert_eq!(
            seen["bytes_received"],
            1_000_000 + head,
            "{engine}: {seen:#}"
        );
        assert_eq!(seen["bytes_sent"], 139);
        assert_eq!(seen["engine"], engine, "{seen:#}");
        assert!(seen["end"].is_null());
        let first_byte = |record: &Value| record["first_byte_ms"].as_f64().unwrap();
        let first = first_byte(&seen);
        assert!(first >= slow.as_secs_f64() * 1e3, "{engine}: {seen:#}");
        drop(server);
        stream.read_exact(&mut [0]).unwrap_err();
        drop(stream);
        let all: Vec<_> = wait_for("the last record", PATIENCE, || {
            let all: Vec<_> = lines(&path, 3).iter().map(record).collect();
            all.iter()
                .any(|record| record["event"] == "end")
                .then_some(all)
        });
        assert_eq!(all[0]["event"], "start");
        let end = all.last().unwrap();
        assert_eq!(end["ended_by"], "upstream");
        assert_eq!(end["bytes_received"], 1_000_000 + head);
        assert!((first_byte(end) - first).abs() < 20.0, "{engine}: {end:#}");
        assert!(first < end["duration_ms"].as_f64().unwrap());
        assert!(all.iter().all(|record| record["id"] == end["id"]));
    }
}

#[test]
fn lines_go_to_log_servers() {
    require_root_or_skip!();
    let lab = Lab::new();
    let udp = lab.proxy.run_in(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let socket = lab.scratch().path().join("log");
    let syslog = UnixDatagram::bind(&socket).unwrap();
    syslog.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = format!(
        "[[access_log]]\nto = \"udp://{}\"\nformat = \"%ru\"\n\
         [[access_log]]\nto = \"syslog:local3.notice\"\nformat = \"%ru %>Hs\"\n",
        udp.local_addr().unwrap()
    );
    // A /dev of its own, in which the system's log is ours.
    let dev = format!(
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && ln -s {} /dev/log && exec \"$@\"",
        socket.display()
    );
    let daemon = Setup::open(&lab)
        .config(&lab, &config)
        .through(&["unshare", "-m", "sh", "-c", &dev, "sh"])
        .start();
    client(&lab).refusal("10.9.9.9:443");
    let mut buffer = [0; 512];
    let length = udp.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"10.9.9.9:443");
    let length = syslog.recv(&mut buffer).unwrap();
    let message = String::from_utf8_lossy(&buffer[..length]);
    let form = r"^<157>1 2\d\d\d-\d\d-\d\dT[\d:.]+Z \S+ underpass \d+ access - 10.9.9.9:443 403$";
    assert!(Regex::new(form).unwrap().is_match(&message), "{message}");

    // The log is started again.
    drop(syslog);
    fs::remove_file(&socket).unwrap();
    let syslog = UnixDatagram::bind(&socket).unwrap();
    syslog.set_read_timeout(Some(PATIENCE)).unwrap();
    client(&lab).refusal("10.9.9.8:443");
    let length = syslog.recv(&mut buffer).unwrap();
    assert!(String::from_utf8_lossy(&buffer[..length]).ends_with(" 10.9.9.8:443 403"));
    assert!(daemon.access_lines().is_empty());
}

/// A configuration whose log cannot be opened is refused; one that can be read is obeyed at once.
#[test]
fn logs_come_and_go_with_the_configuration() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = |name: &str| lab.scratch().path().join(name);
    let config = |to: &Path| {
        let text = format!("access_log = \"{}\"\n", to.display());
        lab.scratch().write("underpass.toml", text)
    };
    config(&path("first"));
    let daemon = Setup::open(&lab)
        .option("--config", path("underpass.toml"))
        .start();
    client(&lab).refusal("10.9.9.1:443");
    lines(&path("first"), 1);
    config(Path::new("/proc/nowhere/log"));
    daemon.wait_said("cannot open the access log /proc/nowhere/log", 1);
    client(&lab).refusal("10.9.9.2:443");
    lines(&path("first"), 2);
    config(&path("second"));
    daemon.wait_said("the configuration was read again", 1);
    client(&lab).refusal("10.9.9.3:443");
    assert!(lines(&path("second"), 1)[0].contains("10.9.9.3:443"));
    assert_eq!(lines(&path("first"), 2).len(), 2);
}

/// Requests that are logged meanwhile.
const ROUNDS: usize = 60;

/// Whatever is written while the log is renamed is in one of the files.
#[test]
fn logrotate_loses_no_line() {
    require_root_or_skip!();
    require_tool_or_skip!("logrotate", "--version");
    let lab = Lab::new();
    let directory = lab.scratch().path();
    let log = directory.join("access.log");
    let daemon = Setup::open(&lab).option("--access-log", &log).start();
    let pid = lab.scratch().write("pid", daemon.pid().to_string());
    let example = fs::read_to_string("../deploy/logrotate/underpass").unwrap();
    let example = example
        .replace("/var/log/underpass/*.log", &log.display().to_string())
        .replace(
            "systemctl kill --kill-whom=main --signal=USR1 underpass.service",
            &format!("kill -USR1 $(cat {})", pid.display()),
        );
    assert!(example.contains("kill -USR1 $("), "{example}");
    let rules = lab.scratch().write("rules", example);
    fs::set_permissions(&rules, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                client(&lab).refusal("10.9.9.9:443");
                sleep(Duration::from_millis(10));
            }
        });
        for _ in 0..4 {
            sleep(Duration::from_millis(100));
            let rotated = Command::new("logrotate")
                .args(["--force", "--state"])
                .arg(directory.join("state"))
                .arg(&rules)
                .output()
                .unwrap();
            assert!(rotated.status.success(), "{rotated:?}");
        }
    });
    drop(daemon);
    let mut counted = 0;
    let mut files = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("access.log")
        {
            files += 1;
            // Compressed or not.
            let text = Command::new("zcat")
                .arg("-f")
                .arg(entry.path())
                .output()
                .unwrap();
            counted += String::from_utf8(text.stdout).unwrap().lines().count();
        }
    }
    assert_eq!(counted, ROUNDS, "in {files} files");
    assert!(files > 2, "{files} files");
}

#[test]
fn squids_configuration_has_several_logs() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = |name: &str| lab.scratch().path().join(name).display().to_string();
    let conf = format!(
        "http_port 10.77.1.2:3128\nhttp_access allow all\nacl inner dst 10.77.2.0/24\n\
         logformat mine %>a %rm %ru %Ss:%Sh\naccess_log stdio:{} logformat=mine inner\naccess_log stdio:{} common\n",
        path("inner"),
        path("all"),
    );
    let conf = lab.scratch().write("squid.conf", conf);
    let _daemon = Setup::bare(&lab.proxy).option("--squid-conf", conf).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    play_tunnel(client(&lab), &origin, &origin.target(), 1, 2);
    client(&lab).refusal("10.77.1.2:1");
    let all = lines(Path::new(&path("all")), 2);
    let form = r#"^10.77.1.1 - - \[\d\d/[A-Z][a-z]{2}/2\d{3}:\d\d:\d\d:\d\d [-+]\d{4}\] "CONNECT 10.77.2.1:\d+ HTTP/1.1" 200 41 TCP_TUNNEL:HIER_DIRECT$"#;
    assert!(Regex::new(form).unwrap().is_match(&all[0]), "{all:#?}");
    let expected = format!(
        "10.77.1.1 CONNECT {} TCP_TUNNEL:HIER_DIRECT",
        origin.target()
    );
    assert_eq!(lines(Path::new(&path("inner")), 1), [expected]);
}
