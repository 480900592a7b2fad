//! What the operator of a running daemon meets: rotated logs, logs that nobody reads, the limit of open files.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use proxy_tests::{
    client::connect_head,
    daemon::{Setup, binary},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    netns::run,
    origin::Origin,
    reply::{ESTABLISHED, Reply},
    require_root_or_skip, require_tool_or_skip,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::scene::client;

/// A named pipe that is open and that nobody reads: it takes 64 KiB, then whoever writes to it waits.
struct Stalled {
    path: PathBuf,
    _pipe: File,
}

impl Stalled {
    fn new(lab: &Lab, name: &str) -> Self {
        let path = lab.scratch().path().join(name);
        run(Command::new("mkfifo").arg(&path));
        let pipe = File::options().read(true).write(true).open(&path).unwrap();
        Self { path, _pipe: pipe }
    }
}

/// Asks for nothing that is served: one line in the access log each time.
fn denied_requests(lab: &Lab, count: usize) {
    for _ in 0..count {
        client(lab)
            .refusal("10.77.1.1:443")
            .check_refusal(403, "destination_ip_prohibited")
            .unwrap();
    }
}

/// Lines that a stalled pipe certainly cannot take.
const TOO_MANY: usize = 1500;

#[test]
fn a_rotated_access_log_is_opened_again() {
    require_root_or_skip!();
    let lab = Lab::new();
    let log = lab.scratch().path().join("access.log");
    let daemon = Setup::open(&lab).option("--access-log", &log).start();
    for (number, signal) in [Signal::USR1, Signal::HUP].into_iter().enumerate() {
        denied_requests(&lab, 1);
        wait_for_lines(&log, 1);
        let old = log.with_extension(number.to_string());
        fs::rename(&log, &old).unwrap();
        denied_requests(&lab, 1);
        wait_for_lines(&old, 2);
        daemon.signal(signal);
        wait_for("a new log", PATIENCE, || log.exists().then_some(()));
        denied_requests(&lab, 1);
        wait_for_lines(&log, 1);
        wait_for_lines(&old, 2);
        fs::remove_file(&log).unwrap();
        daemon.signal(signal);
        wait_for("a new log", PATIENCE, || log.exists().then_some(()));
    }
    // What it says about its clients is not for everybody.
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&log).unwrap().permissions());
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

fn wait_for_lines(path: &Path, count: usize) {
    let mut lines = 0;
    wait_for("lines in the log", PATIENCE, || {
        lines = fs::read_to_string(path).unwrap_or_default().lines().count();
        (lines >= count).then_some(())
    });
    assert_eq!(lines, count, "{}", path.display());
}

#[test]
fn an_access_log_that_stalls_holds_nobody_up() {
    require_root_or_skip!();
    let lab = Lab::new();
    let stalled = Stalled::new(&lab, "access.fifo");
    let mut daemon = Setup::open(&lab)
        .option("--access-log", &stalled.path)
        .start();
    denied_requests(&lab, TOO_MANY);
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    drop(client(&lab).tunnel(&origin.target()));
    drop(origin.accept());
    let status = daemon.stop();
    assert_eq!(status.code(), Some(1), "{status}");
    let said = daemon.stderr_lines().join("\n");
    assert!(said.contains("access log could not be written"), "{said}");
}

/// A daemon whose standard error is this file.
fn unheard(lab: &Lab, stderr: &Path) -> Child {
    let log = lab.scratch().path().join("access.log");
    let mut command = lab.proxy.command("sh");
    command
        .args(["-c", "exec \"$@\" 2>>\"$STDERR\"", "sh"])
        .arg(binary())
        .args(["run", "--listen", "10.77.1.2:3128", "--engine", "copy"])
        .args(["--allow-client", "10.77.1.0/24"])
        .args([
            "--allow-destination",
            "10.77.2.1/32",
            "--allow-port",
            "1-65535",
        ])
        .arg("--access-log")
        .arg(log)
        .env("STDERR", stderr)
        // Every refusal is a line, too.
        .env("RUST_LOG", "debug")
        .stdin(Stdio::null());
    let daemon = command.spawn().unwrap();
    wait_for("underpass listens", PATIENCE, || {
        lab.client
            .run_in(|| TcpStream::connect(Family::V4.proxy()).ok())
    });
    daemon
}

/// Whatever standard error is, clients are served, the access log is written, and SIGTERM ends the daemon well.
fn unheard_daemon(lab: &Lab, stderr: &Path) {
    let mut daemon = unheard(lab, stderr);
    denied_requests(lab, TOO_MANY);
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    drop(client(lab).tunnel(&origin.target()));
    drop(origin.accept());
    let log = lab.scratch().path().join("access.log");
    wait_for("the tunnel's line", PATIENCE, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let denied = text.matches(" TCP_DENIED/403 ").count();
        (text.contains(" TCP_TUNNEL/200 39 ") && denied == TOO_MANY).then_some(())
    });
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    let status = wait_for("the daemon ends", PATIENCE, || daemon.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn a_standard_error_that_stalls_holds_nobody_up() {
    require_root_or_skip!();
    let lab = Lab::new();
    let stalled = Stalled::new(&lab, "stderr.fifo");
    unheard_daemon(&lab, &stalled.path);
}

#[test]
fn a_standard_error_that_is_full_holds_nobody_up() {
    require_root_or_skip!();
    unheard_daemon(&Lab::new(), Path::new("/dev/full"));
}

/// A daemon that may have so many tunnels at once.
fn small(lab: &Lab, tunnels: usize) -> Setup<'_> {
    // See `RESERVED_DESCRIPTORS`; and each of two addresses has a socket a core.
    let listeners = 2 * thread::available_parallelism().unwrap().get();
    let files = format!("--nofile={}", 192 + listeners + 2 * tunnels);
    Setup::open(lab)
        .option("--engine", "copy")
        .through(&["prlimit", &files])
}

#[test]
fn without_room_for_a_tunnel_a_client_is_told_so() {
    require_root_or_skip!();
    require_tool_or_skip!("prlimit", "--version");
    let lab = Lab::new();
    let daemon = small(&lab, 2).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let open = || {
        let client = client(&lab).tunnel(&origin.target());
        (client, origin.accept())
    };
    let (first, second) = (open(), open());
    for _ in 0..3 {
        let reply = client(&lab).refusal(&origin.target());
        reply
            .check_refusal(503, "connection_limit_reached")
            .unwrap();
    }
    let line = daemon.wait_access_line(|line| line.contains("/503 "));
    let end = format!(" CONNECT {} - HIER_NONE/- text/plain", origin.target());
    assert!(
        line.contains(" NONE_NONE/503 ") && line.ends_with(&end),
        "{line}"
    );
    let warnings = || {
        let lines = daemon.stderr_lines();
        let warnings = lines
            .iter()
            .filter(|line| line.contains("turning clients away"));
        warnings.count()
    };
    wait_for("a warning", PATIENCE, || (warnings() > 0).then_some(()));
    assert_eq!(warnings(), 1, "one warning for all of them");

    drop(first);
    daemon.wait_tunnel_records(1);
    drop(open());
    drop(second);
}

/// Listeners share the room, and one on which nobody calls takes none of it.
#[test]
fn a_silent_listener_takes_no_room_from_another() {
    require_root_or_skip!();
    require_tool_or_skip!("prlimit", "--version");
    let lab = Lab::new();
    let _daemon = small(&lab, 1).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    for family in [Family::V4, Family::V6, Family::V4] {
        let mut stream = proxy_tests::client::Client::new(&lab.client, family.proxy()).open();
        stream
            .write_all(connect_head(&origin.target()).as_bytes())
            .unwrap();
        assert_eq!(Reply::read_head(&mut stream).unwrap().head, ESTABLISHED);
        drop(origin.accept());
        // Its end frees the room, a moment later.
        stream.read_to_end(&mut Vec::new()).unwrap();
        drop(stream);
        thread::sleep(Duration::from_millis(200));
    }
}

/// Clients that may not use the proxy cannot crowd out those that may, and each leaves a line.
#[test]
fn many_denied_clients_take_no_room_from_others() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::listening(&lab)
        .option("--allow-client", "fd77:1::/64")
        .option("--allow-destination", "10.77.2.1/32")
        .option("--allow-port", "1-65535")
        .start();
    let denied = (0..100).map(|_| client(&lab).open()).collect::<Vec<_>>();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let allowed = proxy_tests::client::Client::new(&lab.client, Family::V6.proxy());
    drop(allowed.tunnel(&origin.target()));
    drop(origin.accept());
    let count = |tag: &str, count: usize| {
        wait_for("a line for each", PATIENCE, || {
            let lines = daemon.access_lines();
            let found = lines.iter().filter(|line| line.contains(tag)).count();
            (found == count).then_some(())
        });
    };
    // 64 are waited for, for a while; the others are let go at once.
    count(
        " TCP_DENIED/000 0 NONE error:transaction-end-before-headers ",
        36,
    );
    count(
        " NONE_NONE/000 0 NONE error:transaction-end-before-headers ",
        64,
    );
    drop(denied);
}
