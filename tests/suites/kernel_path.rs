//! That the kernel really carries the bytes, seen from outside the process; and what happens when it may not.

use std::{
    fs,
    io::Write as _,
    net::Shutdown,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use proxy_tests::{
    client::{Client, connect_head},
    daemon::{Daemon, Setup, binary, run_to_end},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    netns::run,
    origin::Origin,
    payload::{Payload, Step},
    privilege::skip,
    record::TunnelRecord,
    reply::{ESTABLISHED, Reply},
    require_root_or_skip, require_sockmap_or_skip, require_tool_or_skip,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    backpressure::send_until_held_back,
    scene::{Direction, Engine, Tunnel, client, origin_on},
};

const MIB: u64 = 1 << 20;

/// System calls that move payload through a process.
const MOVERS: &str =
    "read,write,readv,writev,sendto,recvfrom,sendmsg,recvmsg,sendmmsg,recvmmsg,splice,tee,sendfile";

/// strace(1) on a daemon, counting what passes through its system calls.
struct Trace {
    strace: Child,
    output: std::path::PathBuf,
}

/// What a daemon did itself.
#[derive(Debug, Default)]
pub(crate) struct Work {
    calls: u64,
    /// Taken from sockets; bytes that were only looked at do not count.
    pub(crate) received: u64,
    /// Given to sockets, and to pipes.
    pub(crate) sent: u64,
}

impl Work {
    /// Adds a line such as `123 recvfrom(9, ""..., 65536, MSG_PEEK, NULL, NULL) = 1448`.
    fn add(&mut self, line: &str) {
        let Some((call, result)) = line.rsplit_once(" = ") else {
            return;
        };
        self.calls += 1;
        // Errors are `-1 EAGAIN (..)`.
        let result = result.split_whitespace().next();
        let bytes = result
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0);
        if ["send", "write", "splice"]
            .iter()
            .any(|name| call.contains(name))
        {
            self.sent += bytes;
        } else if !call.contains("MSG_PEEK") {
            self.received += bytes;
        }
    }
}

impl Trace {
    fn attach(lab: &Lab, daemon: &Daemon) -> Self {
        let output = lab.scratch().path().join("strace");
        let strace = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-s",
                "0",
                "-e",
                &format!("trace={MOVERS}"),
                "-o",
            ])
            .arg(&output)
            .args(["-p", &daemon.pid().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tracer = Pid::from_child(&strace).as_raw_nonzero().to_string();
        wait_for("strace holds every thread", PATIENCE, || {
            let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
            tasks
                .map(|task| {
                    fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default()
                })
                .all(|status| {
                    status
                        .lines()
                        .any(|line| line == format!("TracerPid:\t{tracer}"))
                })
                .then_some(())
        });
        Self { strace, output }
    }

    /// Lets the daemon go and adds up the results of its calls.
    fn finish(mut self) -> Work {
        kill_process(Pid::from_child(&self.strace), Signal::INT).unwrap();
        self.strace.wait().unwrap();
        let mut work = Work::default();
        for line in fs::read_to_string(&self.output).unwrap().lines() {
            work.add(line);
        }
        work
    }
}

/// A transfer to be watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) engine: Engine,
    pub(crate) family: Family,
    pub(crate) direction: Direction,
    pub(crate) len: u64,
    /// Between two writes of 64 KiB.
    pub(crate) pause: Duration,
}

impl Transfer {
    /// Carries it through a tunnel under strace.
    pub(crate) fn trace(self) -> (Work, TunnelRecord) {
        // How often the process has to step in depends on who else wants the processor.
        let lab = Lab::alone();
        let engine = self.engine.name();
        let daemon = Setup::open(&lab).option("--engine", engine).start();
        let origin = Origin::bind(&lab.origin, self.family.origin());
        let trace = Trace::attach(&lab, &daemon);
        let client = Client::new(&lab.client, self.family.proxy()).tunnel(&origin.target());
        let tunnel = Tunnel {
            client,
            origin: origin.accept(),
        };
        self.carry(&tunnel, 0);
        drop(tunnel);
        let record = daemon.wait_tunnel_records(1).remove(0);
        let work = trace.finish();
        // Shown with --nocapture and when the test fails.
        eprintln!("{self:?}: {work:?} {record:?}");
        assert_eq!(record.engine, engine, "{record:?}");
        assert_eq!(record.up + record.down, self.len);
        (work, record)
    }

    /// Carries it through this tunnel, behind `from` bytes that went before.
    fn carry(self, tunnel: &Tunnel, from: u64) {
        let (sender, receiver) = tunnel.towards(self.direction);
        let (payload, end) = (Payload::new(8), from + self.len);
        thread::scope(|scope| {
            scope.spawn(move || {
                payload
                    .send_range(&mut &*sender, from, end, |_| {
                        Step::after(self.pause, 64 * 1024)
                    })
                    .unwrap();
            });
            payload
                .receive_range(&mut &*receiver, from, end, |_| Step::of(512 * 1024))
                .unwrap();
        });
    }
}

/// Bytes that a daemon sends and receives besides payload: heads, log lines, wake-ups of its threads.
pub(crate) const HOUSEKEEPING: u64 = 64 * 1024;

/// As long as the receiver keeps up, the process has nothing to do.
#[test]
fn the_kernel_carries_a_transfer_without_the_process() {
    require_sockmap_or_skip!();
    require_tool_or_skip!("strace", "-V");
    let len = 64 * MIB;
    for family in [Family::V4, Family::V6] {
        for direction in [Direction::Down, Direction::Up] {
            let transfer = Transfer {
                engine: Engine::Sockmap,
                family,
                direction,
                len,
                pause: Duration::from_millis(1),
            };
            // What arrives before the sockets are joined is the process's to pass on. On a busy machine the receiver may
            // fall behind for a moment and the process has to step in: so the best of three counts.
            let best = (0..3)
                .map(|_| transfer.trace())
                .find(|(work, record)| work.sent < len / 50 && record.spliced > len - len / 50);
            assert!(
                best.is_some(),
                "three times more than 2 % went through the process: {transfer:?}"
            );
        }
    }
}

/// When the sender is faster, the process moves what holds it back, and the record says how much that was.
#[test]
fn the_record_tells_how_much_the_kernel_carried() {
    require_sockmap_or_skip!();
    require_tool_or_skip!("strace", "-V");
    let transfer = Transfer {
        engine: Engine::Sockmap,
        family: Family::V4,
        direction: Direction::Down,
        len: 200 * MIB,
        pause: Duration::ZERO,
    };
    let (work, record) = transfer.trace();
    let moved = transfer.len - record.spliced;
    assert!(
        work.sent.abs_diff(moved) < HOUSEKEEPING && work.received.abs_diff(moved) < HOUSEKEEPING,
        "{work:?} {record:?}"
    );
}

/// The measurement sees what there is to see.
#[test]
fn strace_sees_every_byte_that_is_copied() {
    require_root_or_skip!();
    require_tool_or_skip!("strace", "-V");
    let transfer = Transfer {
        engine: Engine::Copy,
        family: Family::V4,
        direction: Direction::Down,
        len: 20 * MIB,
        pause: Duration::ZERO,
    };
    let (work, record) = transfer.trace();
    assert!(
        work.sent.abs_diff(transfer.len) < HOUSEKEEPING
            && work.received.abs_diff(transfer.len) < HOUSEKEEPING,
        "{work:?} {record:?}"
    );
    assert_eq!(record.spliced, 0);
}

/// After a receiver that stopped has read everything, the kernel has the direction again.
#[test]
fn the_kernel_takes_over_again_after_a_pause() {
    require_sockmap_or_skip!();
    for direction in [Direction::Down, Direction::Up] {
        let best = (0..3)
            .map(|_| paused_transfer(direction))
            .find(|record| record.pauses > 0 && record.spliced > 56 * MIB);
        assert!(
            best.is_some(),
            "three times less than 56 of 64 MiB: {direction:?}"
        );
    }
}

/// A receiver that stops until its sender is held back, then reads everything, then 64 MiB at its pace.
fn paused_transfer(direction: Direction) -> TunnelRecord {
    let lab = Lab::alone();
    let daemon = Setup::open(&lab).option("--engine", "sockmap").start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let tunnel = Tunnel {
        client: client(&lab).tunnel(&origin.target()),
        origin: origin.accept(),
    };
    let (sender, receiver) = tunnel.towards(direction);
    let held_at = send_until_held_back(Payload::new(8), sender, 0);
    Payload::new(8).receive(&mut &*receiver, held_at).unwrap();
    let rest = Transfer {
        engine: Engine::Sockmap,
        family: Family::V4,
        direction,
        len: 64 * MIB,
        pause: Duration::from_millis(1),
    };
    rest.carry(&tunnel, held_at);
    drop(tunnel);
    let record = daemon.wait_tunnel_records(1).remove(0);
    eprintln!("held back at {held_at}: {record:?}");
    record
}

/// A client that has said everything before the tunnel is up leaves nothing for the kernel to join.
#[test]
fn a_half_closed_client_is_served_by_copy_which_says_why() {
    require_sockmap_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).option("--engine", "sockmap").start();
    let (origin, fillers) = Origin::with_full_queue(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).open();
    let mut request = connect_head(&origin.target()).into_bytes();
    request.extend(Payload::new(1).bytes(40_000));
    stream.write_all(&request).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // Only now there is room for the proxy.
    for _ in &fillers {
        origin.accept();
    }
    let server = origin.accept();
    assert_eq!(
        Payload::new(1).receive_to_end(&mut &server, 0).unwrap(),
        40_000
    );
    Payload::new(2).send(&mut &server, 70_000).unwrap();
    drop(server);
    assert_eq!(Reply::read_head(&mut stream).unwrap().head, ESTABLISHED);
    assert_eq!(
        Payload::new(2).receive_to_end(&mut stream, 0).unwrap(),
        70_000
    );
    let record = daemon.wait_tunnel_records(1).remove(0);
    assert_eq!(
        (
            record.engine.as_str(),
            record.up,
            record.down,
            record.end.as_str()
        ),
        ("copy", 40_000, 70_000, "closed")
    );
    assert_eq!(
        record.declined.as_deref(),
        Some("sockmap: the client has half-closed already")
    );
}

/// The self-test decides: without loopback it cannot run, and the kernel engine is not offered.
#[test]
fn without_a_self_test_it_does_without_the_kernel_engine_and_says_why() {
    require_sockmap_or_skip!();
    let lab = Lab::new();
    run(Command::new("ip").args(["-n", lab.proxy.name(), "link", "set", "lo", "down"]));
    let daemon = Setup::open(&lab).start();
    let engine = daemon.engine().expect("an engine line");
    assert!(
        engine.starts_with("splice: the self-test could not run over loopback")
            && engine.contains("ip link set lo up"),
        "{engine}"
    );
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    drop(client(&lab).tunnel(&origin.target()));
    drop(origin.accept());
    assert_eq!(daemon.wait_tunnel_records(1)[0].engine, "copy");
}

#[test]
fn doctor_finds_every_engine_here() {
    require_sockmap_or_skip!();
    let output = run_to_end(Command::new(binary()).arg("doctor"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0), "{text}");
    for engine in ["sockmap  yes", "splice   yes", "copy     yes"] {
        assert!(text.contains(engine), "not said: {engine}\n{text}");
    }
}

/// The table of KERNELS.md, as the series and what it says of the kernel engine.
fn promised_kernels() -> Vec<(&'static str, &'static str)> {
    let rows = include_str!("../../KERNELS.md").lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let (series, sockmap) = (cells.next()?, cells.next()?);
        series
            .starts_with(char::is_numeric)
            .then_some((series, sockmap))
    });
    rows.collect()
}

#[test]
fn doctor_says_of_this_kernel_what_is_promised() {
    require_root_or_skip!();
    let promised = promised_kernels();
    assert!(promised.len() > 2, "{promised:?}");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let of_this = |series: &str| {
        let rest = release.strip_prefix(series);
        rest.is_some_and(|rest| rest.starts_with('.'))
    };
    let Some((series, sockmap)) = promised.iter().find(|(series, _)| of_this(series)) else {
        return skip(&format!(
            "KERNELS.md says nothing of Linux {}",
            release.trim()
        ));
    };
    let output = run_to_end(Command::new(binary()).arg("doctor"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains(&format!("sockmap  {sockmap}")),
        "promised for {series}: {sockmap}\n{text}"
    );
}

/// Gives up every privilege before it runs the rest.
const UNPRIVILEGED: [&str; 7] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
    "--no-new-privs",
];

/// A copy of the binary that everybody may execute, wherever the original is.
fn public_binary(lab: &Lab) -> std::path::PathBuf {
    let path = lab.scratch().path().join("underpass");
    fs::copy(binary(), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn without_privileges_it_does_without_the_kernel_engine_and_says_why() {
    require_root_or_skip!();
    require_sockmap_or_skip!();
    require_tool_or_skip!("setpriv", "--version");
    let lab = Lab::new();
    let daemon = Setup::open(&lab)
        .executable(&public_binary(&lab))
        .through(&UNPRIVILEGED)
        .start();
    let engine = daemon.engine().expect("an engine line");
    assert!(
        engine.starts_with("splice: ") && engine.contains("CAP_"),
        "{engine}"
    );
    let lines = daemon.stderr_lines();
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.contains("engine splice"))
            .count(),
        1,
        "{lines:#?}"
    );

    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let client = Client::new(&lab.client, Family::V4.proxy()).tunnel(&origin.target());
    let server = origin.accept();
    Payload::new(1).send(&mut &client, 100_000).unwrap();
    Payload::new(1).receive(&mut &server, 100_000).unwrap();
    drop((client, server));
    let record = daemon.wait_tunnel_records(1).remove(0);
    assert_eq!((record.engine.as_str(), record.up), ("splice", 100_000));
}

#[test]
fn without_privileges_doctor_says_so() {
    require_root_or_skip!();
    require_sockmap_or_skip!();
    require_tool_or_skip!("setpriv", "--version");
    let lab = Lab::new();
    let (program, options) = UNPRIVILEGED.split_first().unwrap();
    let output = run_to_end(
        lab.proxy
            .command(program)
            .args(options)
            .arg(public_binary(&lab))
            .arg("doctor"),
    );
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("sockmap  no") && text.contains("CAP_") && text.contains("copy     yes"),
        "what is missing is named:\n{text}"
    );
}

#[test]
fn without_privileges_a_demanded_kernel_engine_is_an_error() {
    require_root_or_skip!();
    require_tool_or_skip!("setpriv", "--version");
    let lab = Lab::new();
    let output = Setup::open(&lab)
        .executable(&public_binary(&lab))
        .through(&UNPRIVILEGED)
        .option("--engine", "sockmap")
        .run_to_end();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("sockmap") && !said.contains("listening on"),
        "{said}"
    );
}

/// A tunnel of `--engine auto` whose both ends the test holds, and its daemon.
fn auto(lab: &Lab) -> (Daemon, Tunnel) {
    let daemon = Setup::open(lab).option("--engine", "auto").start();
    let engine = daemon.engine().unwrap();
    assert!(engine.starts_with("auto: "), "{engine}");
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let tunnel = Tunnel {
        client: client(lab).tunnel(&origin.target()),
        origin: origin.accept(),
    };
    (daemon, tunnel)
}

#[test]
fn auto_moves_a_tunnel_that_chats_into_the_kernel() {
    require_sockmap_or_skip!();
    let lab = Lab::new();
    let (daemon, tunnel) = auto(&lab);
    tunnel.chat(500, 64);
    drop(tunnel);
    let record = daemon.wait_tunnel_records(1).remove(0);
    assert_eq!(record.engine, "sockmap", "{record:?}");
    assert_eq!((record.up, record.down), (32_000, 32_000), "{record:?}");
    let moved_after = record.moved_after.unwrap();
    assert!((1..10_000).contains(&moved_after), "{record:?}");
    assert!(record.spliced > 50_000, "{record:?}");
}

#[test]
fn auto_leaves_a_short_exchange_in_user_space() {
    require_sockmap_or_skip!();
    let lab = Lab::new();
    let (daemon, tunnel) = auto(&lab);
    tunnel.chat(5, 500);
    drop(tunnel);
    let record = daemon.wait_tunnel_records(1).remove(0);
    assert_eq!((record.engine.as_str(), record.moved_after), ("copy", None));
    assert_eq!((record.up, record.down), (2500, 2500), "{record:?}");
}

#[test]
fn auto_moves_bulk_through_pipes() {
    require_sockmap_or_skip!();
    let lab = Lab::new();
    let (daemon, tunnel) = auto(&lab);
    let len = 300 * MIB;
    thread::scope(|scope| {
        let (sender, receiver) = tunnel.towards(Direction::Down);
        scope.spawn(|| Payload::new(9).send(&mut &*sender, len).unwrap());
        Payload::new(9).receive(&mut &*receiver, len).unwrap();
    });
    drop(tunnel);
    let record = daemon.wait_tunnel_records(1).remove(0);
    assert_eq!((record.engine.as_str(), record.down), ("splice", len));
}

#[test]
fn a_rule_chooses_the_engine_of_some_targets() {
    require_sockmap_or_skip!();
    let lab = Lab::new();
    let config = "engine = \"copy\"\n\
                  [[engine_rule]]\n\
                  destination = [\"10.0.0.0/8\"]\n\
                  port = [\"7000-7099\"]\n\
                  engine = \"sockmap\"\n";
    let daemon = Setup::open(&lab).config(&lab, config).start();
    for (port, engine) in [(7001, "sockmap"), (7100, "copy")] {
        let origin = origin_on(&lab, Family::V4.origin(), port);
        let tunnel = Tunnel {
            client: client(&lab).tunnel(&origin.target()),
            origin: origin.accept(),
        };
        tunnel.chat(3, 100);
        let from = tunnel.client.local_addr().unwrap();
        drop(tunnel);
        let records = daemon.wait_tunnel_records(1 + usize::from(port == 7100));
        let record = records.iter().find(|record| record.client == from).unwrap();
        assert_eq!(record.engine, engine, "port {port}: {record:?}");
    }
}
