//! Under a service manager: what it is told, and the sockets that it passes.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io::{ErrorKind, Write as _},
    net::{Shutdown, TcpStream},
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    process::Command,
    time::{Duration, Instant},
};

use proxy_tests::{
    daemon::{Setup, binary, run_to_end},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    origin::Origin,
    payload::Payload,
    require_root_or_skip, require_sockmap_or_skip, require_tool_or_skip,
};
use regex_lite::Regex;
use rustix::process::Signal;

use crate::scene::client;

/// What the manager is told, one message after the other.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(lab: &Lab) -> Self {
        let socket = UnixDatagram::bind(lab.scratch().path().join("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self { socket }
    }

    /// What runs the daemon for it.
    fn wrapper(lab: &Lab) -> [String; 3] {
        let socket = lab.scratch().path().join("notify");
        [
            "env".to_owned(),
            format!("NOTIFY_SOCKET={}", socket.display()),
            "WATCHDOG_USEC=600000".to_owned(),
        ]
    }

    /// The next message with this in it.
    fn wait(&self, part: &str) -> String {
        let mut others = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let mut buffer = [0; 4096];
            match self.socket.recv(&mut buffer) {
                Ok(count) => {
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    if text.contains(part) {
                        return text;
                    }
                    others.push(text);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no {part} in {others:?}");
    }
}

#[test]
fn the_manager_is_told() {
    require_root_or_skip!();
    let lab = Lab::new();
    let manager = Manager::new(&lab);
    let wrapper = Manager::wrapper(&lab);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut daemon = Setup::open(&lab).through(&wrapper).start();
    manager.wait("READY=1");
    manager.wait("STATUS=ready; 0 client connections");
    manager.wait("WATCHDOG=1");
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let stream = client(&lab).tunnel(&origin.target());
    let server = origin.accept();
    manager.wait("STATUS=ready; 1 client connections");
    daemon.signal(Signal::HUP);
    let reloading = manager.wait("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.wait("READY=1");
    daemon.signal(Signal::TERM);
    let stopping = manager.wait("STOPPING=1");
    // Twenty seconds for clients, and some to end.
    assert!(
        stopping.contains("EXTEND_TIMEOUT_USEC=30000000"),
        "{stopping}"
    );
    manager.wait("STATUS=draining; 1 client connections");
    manager.wait("WATCHDOG=1");
    stream.shutdown(Shutdown::Write).unwrap();
    drop(server);
    drop(stream);
    assert_eq!(daemon.wait().code(), Some(0));
}

/// Opens sockets as a manager does, for whatever runs next: `LISTEN_FDS` from the descriptor 3 on.
const PASS: &str = "
import os, socket, sys
count = int(sys.argv[1])
for index, place in enumerate(sys.argv[2:2 + count]):
    host, port = place.rsplit(':', 1)
    listener = socket.create_server((host, int(port)))
    os.dup2(listener.fileno(), 3 + index)
    os.set_inheritable(3 + index, True)
    if listener.fileno() != 3 + index: listener.close()
    else: listener.detach()
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
";

#[test]
fn passed_sockets_are_served() {
    require_root_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let lab = Lab::new();
    // They are what there is, where nobody says where to listen.
    let daemon = Setup::bare(&lab.proxy)
        .through(&["python3", "-c", PASS, "1", "10.77.1.2:3128"])
        .option("--allow-client", "10.77.1.0/24")
        .option("--allow-destination", "10.77.2.1")
        .option("--allow-port", "1-65535")
        .start();
    assert_eq!(daemon.listening(), [Family::V4.proxy()]);
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).tunnel(&origin.target());
    let mut server = origin.accept();
    stream.write_all(b"x").unwrap();
    server.write_all(b"y").unwrap();
    daemon.wait_said("was passed by the service manager", 1);
    drop(daemon);

    // One of two that are wanted; the other is opened.
    let daemon = Setup::bare(&lab.proxy)
        .through(&["python3", "-c", PASS, "1", "10.77.1.2:3128"])
        .option("--listen", "10.77.1.2:3129")
        .option("--listen", "10.77.1.2:3128")
        .listeners(2)
        .start();
    for port in [3128, 3129] {
        let address = (Family::V4.proxy().ip(), port);
        let connected = lab.client.run_in(|| TcpStream::connect(address));
        assert!(connected.is_ok(), "{port}: {connected:?}");
    }
    drop(daemon);

    let output = Setup::bare(&lab.proxy)
        .through(&["python3", "-c", PASS, "1", "10.77.1.2:3130"])
        .option("--listen", "10.77.1.2:3128")
        .run_to_end();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("10.77.1.2:3130 was passed"), "{said}");
}

/// The unit that we ship.
struct Unit {
    text: String,
}

impl Unit {
    fn read() -> Self {
        let text = fs::read_to_string("../deploy/systemd/underpass.service").unwrap();
        Self { text }
    }

    /// The words of a setting.
    fn words(&self, key: &str) -> Vec<&str> {
        let mut lines = self.text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let value = value.unwrap_or_else(|| panic!("no {key}"));
        value.split_whitespace().collect()
    }
}

/// The system calls that a word of a filter allows.
fn allowed_by(word: &str) -> BTreeSet<String> {
    if word.starts_with('@') {
        system_calls(word)
    } else {
        BTreeSet::from([word.to_owned()])
    }
}

/// The system calls in a set of systemd's, those of the sets in it included.
fn system_calls(set: &str) -> BTreeSet<String> {
    let mut command = Command::new("systemd-analyze");
    let output = run_to_end(command.args(["syscall-filter", set]));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.starts_with('#') && *line != set)
        .flat_map(allowed_by)
        .collect()
}

#[test]
fn systemd_understands_the_units() {
    require_root_or_skip!();
    require_tool_or_skip!("systemd-analyze", "--version");
    let lab = Lab::new();
    let unit = Unit::read();
    let binary = binary().display().to_string();
    lab.scratch().write(
        "underpass.service",
        unit.text.replace("/usr/bin/underpass", &binary),
    );
    let socket = fs::read("../deploy/systemd/underpass.socket").unwrap();
    lab.scratch().write("underpass.socket", socket);
    for name in ["underpass.service", "underpass.socket"] {
        let mut verify = Command::new("systemd-analyze");
        verify
            .args(["verify", "--man=no"])
            .arg(lab.scratch().path().join(name));
        let output = run_to_end(&mut verify);
        let said = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("underpass"))
            .collect();
        assert!(output.status.success() && ours.is_empty(), "{said}");
    }
    // The command line is one that there is.
    let words = unit.words("ExecStart");
    assert_eq!(words[1..3], ["run", "--config"]);
}

/// With the capabilities of the unit and no others, everything works; and what it does is allowed there.
#[test]
fn the_unit_allows_what_the_proxy_does() {
    require_sockmap_or_skip!();
    require_tool_or_skip!("setpriv", "--version");
    require_tool_or_skip!("strace", "--version");
    require_tool_or_skip!("systemd-analyze", "--version");
    let unit = Unit::read();
    let capabilities = unit.words("CapabilityBoundingSet");
    assert_eq!(capabilities, unit.words("AmbientCapabilities"));
    let list: Vec<String> = capabilities
        .iter()
        .map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let list = list.join(",");
    let lab = Lab::new();
    fs::set_permissions(lab.scratch().path(), Permissions::from_mode(0o777)).unwrap();
    let executable = lab.scratch().path().join("underpass");
    fs::copy(binary(), &executable).unwrap();
    let trace = lab.scratch().path().join("trace");
    let admin = lab.scratch().path().join("admin.sock");
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let mut daemon = Setup::open(&lab)
        .executable(&executable)
        .through(&[
            "strace",
            "-f",
            // What is run stays our child, and gets our signals.
            "-D",
            "-o",
            &trace.display().to_string(),
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
            &format!("--inh-caps=-all,{list}"),
            &format!("--ambient-caps=-all,{list}"),
            &format!("--bounding-set=-all,{list}"),
        ])
        .option("--engine", "sockmap")
        .option("--listen", "10.77.1.2:443")
        .option("--admin-socket", &admin)
        .listeners(3)
        .start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let port = origin.address().port();
    for target in [origin.target(), format!("origin.test:{port}")] {
        let mut stream = client(&lab).tunnel(&target);
        let mut server = origin.accept();
        Payload::new(1).send(&mut stream, 70_000).unwrap();
        Payload::new(1).receive(&mut server, 70_000).unwrap();
        Payload::new(2).send(&mut server, 70_000).unwrap();
        Payload::new(2).receive(&mut stream, 70_000).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    }
    let records = daemon.wait_tunnel_records(2);
    assert!(
        records.iter().all(|record| record.engine == "sockmap"),
        "{records:?}"
    );
    daemon.signal(Signal::HUP);
    daemon.stop();

    let trace = wait_for("the end of the trace", PATIENCE, || {
        let text = fs::read_to_string(&trace).ok()?;
        let is_complete = text.lines().next_back()?.contains("+++ exited");
        is_complete.then_some(text)
    });
    let filter = unit.words("SystemCallFilter");
    let allowed: BTreeSet<String> = filter.into_iter().flat_map(allowed_by).collect();
    assert!(allowed.len() > 200, "{allowed:?}");
    let call = Regex::new(r"^\d+ +(?:<\.\.\. )?([a-z_0-9]+)[( ]").unwrap();
    let made: BTreeSet<&str> = trace
        .lines()
        .filter_map(|line| Some(call.captures(line)?.get(1)?.as_str()))
        .collect();
    assert!(made.contains("bpf") && made.len() > 30, "{made:?}");
    let forbidden: Vec<_> = made
        .iter()
        .filter(|call| !allowed.contains(**call))
        .collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");

    let families = unit.words("RestrictAddressFamilies");
    let socket = Regex::new(r"socket\((AF_[A-Z0-9]+)").unwrap();
    for found in socket.captures_iter(&trace) {
        assert!(families.contains(&&found[1]), "{}", &found[1]);
    }
    let writable_code = trace.lines().find(|line| {
        let is_memory = line.contains(" mmap(") || line.contains(" mprotect(");
        is_memory && line.contains("PROT_WRITE") && line.contains("PROT_EXEC")
    });
    assert_eq!(writable_code, None, "MemoryDenyWriteExecute");
}
