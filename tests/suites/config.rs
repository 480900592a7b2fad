//! The configuration file and the command line: what is accepted, what overrides what, how mistakes are reported.

use std::{fs, path::Path, process::Output};

use proxy_tests::{
    client::Client,
    daemon::Setup,
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    require_root_or_skip, require_sockmap_or_skip,
};

use crate::scene::{client, expect_nothing_wrong, origin_on};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A complete file, for the addresses of the lab.
const COMPLETE: &str = r#"
listen = ["10.77.1.2:3128", "[fd77:1::2]:3128"]
engine = "copy"
allow_client = ["10.77.1.0/24"]
allow_destination = ["10.77.2.0/24"]
allow_port = [443, "8000-8100"]
access_log = "-"
relaxed = true

[timeouts]
head = "30s"
connect = "30s"
idle = "15m"
half_closed = "5m"
"#;

#[test]
fn a_complete_file_is_obeyed() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::bare(&lab.proxy)
        .config(&lab, COMPLETE)
        .listeners(2)
        .start();
    assert_eq!(daemon.listening(), [Family::V4.proxy(), Family::V6.proxy()]);
    assert!(
        daemon.engine().unwrap().starts_with("copy"),
        "{:?}",
        daemon.engine()
    );
    for port in [443, 8000, 8100] {
        let origin = origin_on(&lab, Family::V4.origin(), port);
        drop(client(&lab).tunnel(&origin.target()));
        drop(origin.accept());
    }
    client(&lab)
        .refusal("10.77.2.1:8101")
        .check_refusal(403, "http_request_denied")
        .unwrap();
    client(&lab)
        .refusal("10.77.1.1:443")
        .check_refusal(403, "destination_ip_prohibited")
        .unwrap();
    Client::new(&lab.client, Family::V6.proxy())
        .refusal("10.77.2.1:443")
        .check_refusal(403, "http_request_denied")
        .unwrap();
}

#[test]
fn the_command_line_overrides_the_file() {
    require_sockmap_or_skip!();
    let lab = Lab::new();
    let log = lab.scratch().path().join("access.log");
    let daemon = Setup::bare(&lab.proxy)
        .config(&lab, COMPLETE)
        .option("--listen", "10.77.1.2:3128")
        .option("--engine", "sockmap")
        .option("--allow-port", "9000")
        .option("--allow-destination", "10.77.2.1/32")
        .option("--access-log", &log)
        .start();
    assert_eq!(
        daemon.listening(),
        [Family::V4.proxy()],
        "the list replaces that of the file"
    );
    assert_eq!(daemon.engine().unwrap(), "sockmap: as configured");
    for refused in ["10.77.2.1:443", "10.77.2.1:8000"] {
        client(&lab)
            .refusal(refused)
            .check_refusal(403, "http_request_denied")
            .unwrap();
    }
    client(&lab)
        .refusal("10.77.2.9:9000")
        .check_refusal(403, "destination_ip_prohibited")
        .unwrap();
    let origin = origin_on(&lab, Family::V4.origin(), 9000);
    drop(client(&lab).tunnel(&origin.target()));
    drop(origin.accept());
    daemon.wait_tunnel_records(1);
    assert!(daemon.access_lines().is_empty());
    wait_for("the denial in the log file", PATIENCE, || {
        fs::read_to_string(&log)
            .unwrap()
            .contains("TCP_DENIED/403")
            .then_some(())
    });
}

/// Files that must not start a daemon: content, the line of the mistake, and a word that names it.
const MISTAKES: [(&str, &str, usize, &str); 13] = [
    (
        "unknown key",
        "engine = \"copy\"\n\nlisten_on = [\"127.0.0.1:1\"]\n",
        3,
        "listen_on",
    ),
    (
        "unknown time limit",
        "[timeouts]\nidle = \"1s\"\nlinger = \"1s\"\n",
        3,
        "linger",
    ),
    (
        "unknown section",
        "engine = \"copy\"\n[tls]\ncert = \"x\"\n",
        2,
        "tls",
    ),
    ("no TOML", "engine = \"copy\"\nlisten\n", 2, ""),
    (
        "listener without a port",
        "\nlisten = [\"127.0.0.1\"]\n",
        2,
        "with a port",
    ),
    (
        "listener that is no list",
        "listen = \"127.0.0.1:3128\"\n",
        1,
        "",
    ),
    (
        "unknown engine",
        "# a comment\nengine = \"warp\"\n",
        2,
        "warp",
    ),
    (
        "impossible network",
        "allow_client = [\"10.0.0.0/33\"]\n",
        1,
        "10.0.0.0/33",
    ),
    ("impossible port", "allow_port = [70000]\n", 1, "70000"),
    (
        "reversed range",
        "allow_port = [\"9000-8000\"]\n",
        1,
        "9000-8000",
    ),
    (
        "time without a unit",
        "[timeouts]\nidle = \"15\"\n",
        2,
        "15",
    ),
    ("negative time", "[timeouts]\nidle = \"-1s\"\n", 2, "-1s"),
    ("text for a switch", "relaxed = \"yes\"\n", 1, ""),
];

#[test]
fn mistakes_in_the_file_are_reported_with_their_place() {
    require_root_or_skip!();
    let lab = Lab::new();
    let mut wrong = Vec::new();
    for (name, text, line, word) in MISTAKES {
        let output = Setup::bare(&lab.proxy).config(&lab, text).run_to_end();
        let said = stderr(&output);
        let place = format!("underpass.toml:{line}:");
        let elsewhere = format!("underpass.toml:{line}\n");
        if output.status.success()
            || !(said.contains(&place) || said.contains(&elsewhere))
            || !said.contains(word)
        {
            wrong.push(format!(
                "{name} ({}, expected {place} and {word:?}):\n{said}",
                output.status
            ));
        }
        if said.contains("panicked") || said.contains("listening on") {
            wrong.push(format!("{name}: {said}"));
        }
    }
    expect_nothing_wrong(&wrong);
}

#[test]
fn mistakes_on_the_command_line_are_reported() {
    require_root_or_skip!();
    let lab = Lab::new();
    let mut wrong = Vec::new();
    for (option, value) in [
        ("--listen", "127.0.0.1"),
        ("--listen", "127.0.0.1:99999"),
        ("--engine", "warp"),
        ("--allow-client", "10.0.0.0/33"),
        ("--allow-destination", "everything"),
        ("--allow-port", "0-70000"),
        ("--allow-port", "9000-8000"),
        ("--unknown", "x"),
    ] {
        let output = Setup::bare(&lab.proxy).option(option, value).run_to_end();
        let said = stderr(&output);
        if output.status.success() || !said.contains(option) || said.contains("panicked") {
            wrong.push(format!("{option} {value} ({}):\n{said}", output.status));
        }
    }
    expect_nothing_wrong(&wrong);
}

#[test]
fn a_missing_file_is_named() {
    require_root_or_skip!();
    let lab = Lab::new();
    let output = Setup::bare(&lab.proxy)
        .option("--config", "/nonexistent/underpass.toml")
        .run_to_end();
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("/nonexistent/underpass.toml"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_address_that_is_taken_is_named() {
    require_root_or_skip!();
    let lab = Lab::new();
    let _first = Setup::bare(&lab.proxy).start();
    let output = Setup::bare(&lab.proxy).run_to_end();
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("127.0.0.1:3128"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_access_log_that_cannot_be_opened_is_named() {
    require_root_or_skip!();
    let lab = Lab::new();
    let output = Setup::bare(&lab.proxy)
        .option("--access-log", "/nonexistent/access.log")
        .run_to_end();
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("/nonexistent/access.log"),
        "{}",
        stderr(&output)
    );
}

/// The files that we hand out start a daemon as they are.
#[test]
fn deployed_configurations_work() {
    require_root_or_skip!();
    let lab = Lab::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config");
    let mut seen = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        seen += 1;
        let daemon = Setup::bare(&lab.proxy)
            .option("--config", &path)
            .option("--listen", "127.0.0.1:0")
            .option("--access-log", "-")
            .start();
        assert!(daemon.engine().is_some(), "{}", path.display());
    }
    assert!(seen >= 2, "{seen} files in {}", directory.display());
}
