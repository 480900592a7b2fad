//! A running `underpass`: started in a namespace, watched through what it prints, stopped on drop.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    lines::Lines,
    netns::{Netns, unique_name},
    record::TunnelRecord,
};

/// Time in which the daemon has to end after a signal.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The binary under test: `$UNDERPASS_BIN`, else `underpass` in the build directory of the running executable.
///
/// # Panics
///
/// When there is none.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("UNDERPASS_BIN").map_or_else(
        || {
            let own = std::env::current_exe().expect("/proc is mounted");
            // target/<profile>/demo or target/<profile>/deps/suites-<hash>
            own.ancestors()
                .skip(1)
                .take(2)
                .map(|directory| directory.join("underpass"))
                .find(|candidate| candidate.is_file())
                .unwrap_or_else(|| own.with_file_name("underpass"))
        },
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --package underpass` with the same profile, or set UNDERPASS_BIN",
        path.display()
    );
    path
}

/// How a daemon is to be started.
#[derive(Debug)]
pub struct Setup<'lab> {
    netns: &'lab Netns,
    wrapper: Vec<String>,
    binary: PathBuf,
    args: Vec<OsString>,
    listeners: usize,
    admin: PathBuf,
}

impl<'lab> Setup<'lab> {
    /// `underpass run` in `netns` with no option at all.
    pub fn bare(netns: &'lab Netns) -> Self {
        Self {
            netns,
            wrapper: Vec::new(),
            binary: binary(),
            args: vec!["run".into()],
            listeners: 1,
            admin: std::env::temp_dir().join(unique_name("admin")),
        }
    }

    /// Listens for the lab's client on both IP versions; everything else is as by default.
    pub fn listening(lab: &'lab Lab) -> Self {
        let mut setup = Self::bare(&lab.proxy);
        for family in [Family::V4, Family::V6] {
            setup = setup.option("--listen", family.proxy().to_string());
        }
        setup.listeners = 2;
        setup
    }

    /// Listens for the lab's client and lets it reach every port of the lab's origin.
    pub fn open(lab: &'lab Lab) -> Self {
        Self::listening(lab)
            .option("--allow-client", "10.77.1.0/24")
            .option("--allow-client", "fd77:1::/64")
            .option("--allow-destination", "10.77.2.1/32")
            .option("--allow-destination", "fd77:2::1/128")
            .option("--allow-port", "1-65535")
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds an option with its value.
    #[must_use]
    pub fn option(self, name: &str, value: impl Into<OsString>) -> Self {
        self.arg(name).arg(value)
    }

    /// Adds `--config` with this text as the file.
    #[must_use]
    pub fn config(self, lab: &Lab, text: &str) -> Self {
        let path = lab.scratch().write("underpass.toml", text);
        self.option("--config", path)
    }

    /// Starts it through another program, for instance one that gives up privileges.
    #[must_use]
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Runs this executable instead of [`binary`].
    #[must_use]
    pub fn executable(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.binary);
        self
    }

    /// Number of `listening on` lines that mean it is ready.
    #[must_use]
    pub fn listeners(mut self, count: usize) -> Self {
        self.listeners = count;
        self
    }

    fn command(&self) -> Command {
        let mut words = self.wrapper.iter();
        let program = words.next().map_or("env", String::as_str);
        let mut command = self.netns.command(program);
        command.args(words).arg(&self.binary);
        command
            .args(&self.args)
            .env("RUST_LOG", "info")
            // The usual one would be taken by another test's.
            .env("UNDERPASS_ADMIN_SOCKET", &self.admin)
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it accepts.
    ///
    /// # Panics
    ///
    /// When it does not, with what it printed.
    pub fn start(self) -> Daemon {
        let mut child = self
            .command()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip(8) is installed");
        let stdout = Lines::collect(child.stdout.take().unwrap());
        let stderr = Lines::collect(child.stderr.take().unwrap());
        let mut daemon = Daemon {
            child,
            stdout,
            stderr,
            listening: Vec::new(),
            admin: self.admin.clone(),
        };
        let wanted = self.listeners;
        wait_for("underpass listens", PATIENCE, || {
            let addresses = daemon
                .stderr
                .all()
                .iter()
                .filter_map(|line| listening(line))
                .collect::<Vec<_>>();
            let ready = addresses.len() >= wanted;
            if !ready && let Ok(Some(status)) = daemon.child.try_wait() {
                panic!("underpass ended with {status}");
            }
            ready.then(|| daemon.listening = addresses)
        });
        daemon
    }

    /// Runs it to its end and returns what it printed, for starts that have to fail.
    ///
    /// # Panics
    ///
    /// When it goes on running.
    pub fn run_to_end(self) -> Output {
        run_to_end(&mut self.command())
    }
}

/// Runs a command that has to end by itself, and kills it when it does not.
///
/// # Panics
///
/// When it cannot be started.
pub fn run_to_end(command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let pid = Pid::from_child(&child);
    let (ended, end) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if end.recv_timeout(3 * PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            kill_process(pid, Signal::KILL).ok();
        }
    });
    let output = child.wait_with_output().expect("it is our child");
    drop(ended);
    watchdog.join().expect("the watchdog does not panic");
    output
}

/// The address in a `listening on` line.
fn listening(line: &str) -> Option<SocketAddr> {
    let (_, address) = line.split_once("listening on ")?;
    address.split_whitespace().next()?.parse().ok()
}

/// A daemon that accepts connections.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    listening: Vec<SocketAddr>,
    admin: PathBuf,
}

impl Daemon {
    /// Addresses on which it says it listens.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Its admin socket.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// What `underpass` says to this command, which is for this daemon.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub fn ask(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        run_to_end(command.args(args).env("UNDERPASS_ADMIN", &self.admin))
    }

    /// What `underpass` prints on standard output at this command, which has to succeed.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn tell(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("it prints text")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What its `engine` line says: the engine, and why it is that one.
    pub fn engine(&self) -> Option<String> {
        self.stderr.all().iter().find_map(|line| {
            let (_, engine) = line.split_once("engine ")?;
            ["auto", "sockmap", "splice", "copy"]
                .iter()
                .any(|name| engine.starts_with(name))
                .then(|| engine.trim().to_owned())
        })
    }

    /// Diagnostics so far.
    pub fn stderr_lines(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Access-log lines so far (standard output).
    pub fn access_lines(&self) -> Vec<String> {
        self.stdout.all()
    }

    /// The first access-log line that `wanted` accepts.
    ///
    /// # Panics
    ///
    /// When there is none in time.
    pub fn wait_access_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.stdout
            .wait(PATIENCE, |lines| {
                lines.iter().find(|line| wanted(line)).cloned()
            })
            .unwrap_or_else(|| panic!("no such access-log line in {:#?}", self.access_lines()))
    }

    /// Waits until the access log has `count` lines and returns all of them.
    ///
    /// # Panics
    ///
    /// When they are not written in time.
    pub fn wait_access_lines(&self, count: usize) -> Vec<String> {
        self.stdout
            .wait(PATIENCE, |lines| {
                (lines.len() >= count).then(|| lines.to_vec())
            })
            .unwrap_or_else(|| {
                panic!(
                    "{count} access-log lines expected in {:#?}",
                    self.access_lines()
                )
            })
    }

    /// Waits until so many lines of the diagnostics have this part.
    ///
    /// # Panics
    ///
    /// When they are not written in time.
    pub fn wait_said(&self, part: &str, count: usize) {
        self.stderr
            .wait(2 * PATIENCE, |lines| {
                let said = lines.iter().filter(|line| line.contains(part)).count();
                (said >= count).then_some(())
            })
            .unwrap_or_else(|| panic!("{part:?} is not in {:#?}", self.stderr_lines()));
    }

    /// Records of the tunnels that have ended so far.
    pub fn tunnel_records(&self) -> Vec<TunnelRecord> {
        records(&self.stderr.all())
    }

    /// Waits until `count` tunnels have ended and returns all records.
    ///
    /// # Panics
    ///
    /// When they do not end in time.
    pub fn wait_tunnel_records(&self, count: usize) -> Vec<TunnelRecord> {
        self.stderr
            .wait(PATIENCE, |lines| {
                Some(records(lines)).filter(|records| records.len() >= count)
            })
            .unwrap_or_else(|| {
                panic!(
                    "{count} records expected, there are {:#?}",
                    self.tunnel_records()
                )
            })
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the daemon runs");
    }

    /// Sends SIGINT, which waits for no client, waits for the end, and returns the status; what it printed can still be read afterwards.
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    pub fn stop(&mut self) -> ExitStatus {
        self.stop_with(Signal::INT)
    }

    /// The same with another signal.
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    pub fn stop_with(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// Waits for the end that it was told of, and returns the status.
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let status = wait_for("underpass ends after a signal", STOP_PATIENCE, || {
            child.try_wait().expect("it is our child")
        });
        self.stdout.finish();
        self.stderr.finish();
        status
    }

    /// True while the process has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

fn records(lines: &[String]) -> Vec<TunnelRecord> {
    lines
        .iter()
        .filter_map(|line| TunnelRecord::parse(line))
        .collect()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::INT);
            for _ in 0..200 {
                if !self.is_running() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
            drop(self.child.kill());
            drop(self.child.wait());
        }
        // It is still there when the process was killed.
        drop(std::fs::remove_file(&self.admin));
        if thread::panicking() {
            eprintln!(
                "--- standard error of underpass:\n{}",
                self.stderr.finish().join("\n")
            );
            eprintln!("--- its access log:\n{}", self.stdout.finish().join("\n"));
        }
    }
}
