//! `underpass top`, printed and in a terminal.

use std::{
    io::{ErrorKind, Read, Write as _},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use proxy_tests::{
    client::connect_head,
    daemon::{Setup, binary},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    lines::Lines,
    origin::Origin,
    require_root_or_skip, require_tool_or_skip,
};
use serde_json::Value;

use crate::{admin::get, scene::client};

/// All that a terminal was sent.
struct Screen {
    text: Arc<Mutex<String>>,
}

impl Screen {
    fn collect(mut source: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let writer = Arc::clone(&text);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                let part = String::from_utf8_lossy(&buffer[..count]);
                writer.lock().unwrap().push_str(&part);
            }
        });
        Self { text }
    }

    /// How often it was sent this.
    fn count(&self, part: &str) -> usize {
        self.text.lock().unwrap().matches(part).count()
    }

    /// Waits until it was sent that more often than so many times.
    fn wait(&self, part: &str, count: usize) {
        wait_for(part, PATIENCE, || (self.count(part) > count).then_some(()));
    }
}

#[test]
fn it_prints_for_people_and_programs() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let streams = [(); 3].map(|()| client(&lab).tunnel(&origin.target()));
    let mut servers = [(); 3].map(|()| origin.accept());
    servers[1].write_all(&[1; 5000]).unwrap();
    wait_for("the bytes", PATIENCE, || {
        (get(&daemon, "/status")["down"] == 5000).then_some(())
    });

    let text = daemon.tell(&["top", "--once", "--limit", "2", "--sort", "age"]);
    assert!(text.contains("state      ready"), "{text}");
    assert!(text.contains("3 open (2 shown)"), "{text}");
    assert_eq!(text.matches(&origin.target()).count(), 2, "{text}");

    let look = |args: &[&str]| -> Value {
        let text = daemon.tell(&[&["top", "--once", "--json"], args].concat());
        assert_eq!(text.matches('\n').count(), 1, "a look a line: {text}");
        serde_json::from_str(&text).unwrap()
    };
    let largest = look(&["--sort", "bytes"]);
    assert_eq!(largest["tunnels"]["tunnels"][0]["down"], 5000);
    assert_eq!(largest["status"]["down"], 5000);
    let smallest = look(&["--sort", "bytes", "--reverse", "--limit", "1"]);
    assert_eq!(smallest["tunnels"]["tunnels"][0]["down"], 0);
    assert_eq!(smallest["tunnels"]["total"], 3);
    let fitting = look(&["--client", "10.77.1.0/24", "--min-bytes", "1"]);
    assert_eq!(fitting["tunnels"]["total"], 1);

    // One after the other, until nobody reads any more.
    let mut stream = Command::new(binary())
        .args(["top", "--json", "--interval", "0.5"])
        .env("UNDERPASS_ADMIN", daemon.admin())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = Lines::collect(stream.stdout.take().unwrap());
    let two = lines.wait(PATIENCE, |lines| lines.get(..2).map(<[_]>::to_vec));
    for line in two.expect("two looks") {
        let look: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(look["tunnels"]["total"], 3);
    }
    stream.kill().unwrap();
    stream.wait().unwrap();
    drop(streams);
}

#[test]
fn what_cannot_be_is_said() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).start();
    for (args, why) in [
        (["top"].as_slice(), "this is no terminal; --once"),
        (&["top", "--once", "--client", "nobody"], "nobody"),
        (
            &["top", "--once", "--user", "anna b"],
            "'anna b' is not one word",
        ),
        (&["top", "--interval", "0.1"], "from 0.5 to 3600 seconds"),
        (
            &["top", "--once", "--admin", "/nowhere"],
            "no proxy answers at /nowhere",
        ),
    ] {
        let output = daemon.ask(args);
        assert!(!output.status.success(), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(why), "{args:?}: {said}");
    }
}

/// A tunnel is found, and ended by three keys.
#[test]
fn keys_end_a_tunnel() {
    require_root_or_skip!();
    require_tool_or_skip!("script", "--version");
    let lab = Lab::new();
    let daemon = Setup::open(&lab).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let other = client(&lab).tunnel(&origin.target());
    let _server = origin.accept();
    let mut doomed = client(&lab).open();
    // Of another name, to be found by it.
    lab.proxy.set_hosts(&[("10.77.2.1", "doomed.test")]);
    let port = origin.address().port();
    doomed
        .write_all(connect_head(&format!("doomed.test:{port}")).as_bytes())
        .unwrap();
    let _server = origin.accept();
    let mut answer = [0; 39];
    doomed.read_exact(&mut answer).unwrap();

    // A terminal, made by script(1).
    let command = format!("stty cols 100 rows 30; exec {} top", binary().display());
    let mut terminal = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--flush",
            "--command",
            &command,
            "/dev/null",
        ])
        .env("UNDERPASS_ADMIN", daemon.admin())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = terminal.stdin.take().unwrap();
    let screen = Screen::collect(terminal.stdout.take().unwrap());
    let mut press = |text: &str| {
        keys.write_all(text.as_bytes()).unwrap();
        keys.flush().unwrap();
    };
    screen.wait("doomed.test", 0);
    let seen = screen.count("doomed.test");
    press("/doomed\r");
    // All rows go until there are those that fit.
    screen.wait("doomed.test", seen);
    press("k");
    screen.wait("Kill", 0);
    press("y");
    let error = doomed.read_exact(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    press("q");
    // The terminal is as it was before.
    screen.wait("\u{1b}[?1049l", 0);
    let status = terminal.wait().unwrap();
    assert!(status.success(), "{status}");
    let left = get(&daemon, "/tunnels");
    assert_eq!(
        left["tunnels"][0]["client"],
        other.local_addr().unwrap().to_string()
    );
}
