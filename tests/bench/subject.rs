//! What is compared: direct forwarding, our engines, and other proxies as Debian has them.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use proxy_tests::{
    daemon::{Daemon, Setup},
    lab::Lab,
    tools,
};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_setaffinity},
};

use crate::{ends::ORIGIN, usage::processor_ticks};

/// Its name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Kind {
    /// Packets forwarded by the kernel; nobody proxies
    Direct,
    /// Underpass --engine auto
    Auto,
    /// Underpass --engine sockmap
    Sockmap,
    /// Underpass --engine splice
    Splice,
    /// Underpass --engine copy
    Copy,
    /// Squid
    Squid,
    /// HAProxy, in TCP mode, splicing
    Haproxy,
    /// nginx, its stream module
    Nginx,
    /// Tinyproxy
    Tinyproxy,
    /// Apache httpd, `mod_proxy_connect`
    Apache,
    /// Apache Traffic Server
    Trafficserver,
}

/// How a client says where it wants to go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// It does not.
    Fixed,
    /// By CONNECT.
    Connect,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Auto => "auto",
            Self::Sockmap => "sockmap",
            Self::Splice => "splice",
            Self::Copy => "copy",
            Self::Squid => "squid",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx stream",
            Self::Tinyproxy => "tinyproxy",
            Self::Apache => "apache",
            Self::Trafficserver => "trafficserver",
        }
    }

    pub(crate) fn is_peer(self) -> bool {
        self.program().is_some()
    }

    /// The program, its Debian package, and what prints its version.
    fn program(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Direct | Self::Auto | Self::Sockmap | Self::Splice | Self::Copy => None,
            Self::Squid => Some(("squid", "squid", "--version")),
            Self::Haproxy => Some(("haproxy", "haproxy", "-v")),
            Self::Nginx => Some(("nginx", "nginx libnginx-mod-stream", "-v")),
            Self::Tinyproxy => Some(("tinyproxy", "tinyproxy", "-v")),
            Self::Apache => Some(("apache2", "apache2", "-v")),
            Self::Trafficserver => Some(("traffic_server", "trafficserver", "--version")),
        }
    }

    fn port(self) -> u16 {
        4000 + self as u16
    }

    fn way(self) -> Way {
        match self {
            Self::Direct | Self::Haproxy | Self::Nginx => Way::Fixed,
            _ => Way::Connect,
        }
    }
}

/// A subject that runs.
pub(crate) struct Subject<'lab> {
    pub(crate) kind: Kind,
    lab: &'lab Lab,
    process: Process,
}

enum Process {
    None,
    Ours(Daemon),
    Peer(Child),
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::Peer(child) = self {
            // With those of its children that no longer listen to it.
            for pid in family(child.id()).into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = child.wait();
        }
    }
}

/// A process and its descendants.
fn family(pid: u32) -> Vec<i32> {
    let mut family: Vec<_> = i32::try_from(pid).into_iter().collect();
    let mut place = 0;
    while let Some(pid) = family.get(place).copied() {
        let children = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        family.extend(
            children
                .split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
        place += 1;
    }
    family
}

impl<'lab> Subject<'lab> {
    /// Starts it in the middle.
    pub(crate) fn start(kind: Kind, lab: &'lab Lab) -> Result<Self, String> {
        let process = match kind.program() {
            None if kind == Kind::Direct => Process::None,
            None => {
                let setup = Setup::bare(&lab.proxy)
                    .option("--listen", format!("10.77.1.2:{}", kind.port()))
                    .option("--allow-client", "10.77.1.0/24")
                    .option("--allow-destination", "10.77.2.0/24")
                    .option("--allow-port", "9443")
                    .option("--access-log", "/dev/null")
                    .option("--engine", kind.name());
                Process::Ours(setup.start())
            }
            Some((program, package, version)) => {
                if tools::missing(program, &[version]).is_some() {
                    return Err(format!("not installed: `apt-get install {package}`"));
                }
                Process::Peer(peer(kind, lab)?)
            }
        };
        let subject = Self { kind, lab, process };
        subject.await_port()?;
        Ok(subject)
    }

    /// Waits until somebody listens.
    fn await_port(&self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let tried = self
                .lab
                .client
                .run_in(|| std::net::TcpStream::connect(self.address()).map(drop));
            match tried {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("it does not listen: {error}"));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Where clients connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        if matches!(self.process, Process::None) {
            return ORIGIN.parse().unwrap();
        }
        SocketAddr::from(([10, 77, 1, 2], self.kind.port()))
    }

    pub(crate) fn way(&self) -> Way {
        self.kind.way()
    }

    /// The first line of what it says about its version.
    pub(crate) fn version(&self) -> Option<String> {
        let (program, _, option) = self.kind.program()?;
        let output = Command::new(program).arg(option).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Some(said.lines().next()?.trim().to_owned())
    }

    /// Its process and the children of that.
    pub(crate) fn processes(&self) -> Vec<i32> {
        match &self.process {
            Process::None => Vec::new(),
            Process::Ours(daemon) => family(daemon.pid()),
            Process::Peer(child) => family(child.id()),
        }
    }

    /// Waits until it has ended what the last measurement cut off. Who is busy with that for seconds, as
    /// Apache can be, is replaced, so that it does not disturb what comes next.
    pub(crate) fn calm_down(&mut self) -> Result<(), String> {
        for _ in 0..10 {
            let before = processor_ticks(&self.processes());
            thread::sleep(Duration::from_millis(50));
            if processor_ticks(&self.processes()) <= before + 1 {
                return Ok(());
            }
        }
        // The old one first, for the port.
        self.process = Process::None;
        *self = Self::start(self.kind, self.lab)?;
        Ok(())
    }

    /// Keeps all its threads on these processors.
    pub(crate) fn pin(&self, cpus: &CpuSet) {
        for pid in self.processes() {
            let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for thread in threads.flatten() {
                let tid = thread.file_name().to_string_lossy().parse().ok();
                // It may have ended.
                let _ = sched_setaffinity(tid.and_then(Pid::from_raw), cpus);
            }
        }
    }
}

/// Starts another proxy from a configuration of ours, in the foreground.
fn peer(kind: Kind, lab: &Lab) -> Result<Child, String> {
    let port = kind.port();
    let scratch = lab.scratch().path().to_owned();
    let place = scratch.display();
    let write = |name: &str, text: &str| lab.scratch().write(name, text);
    let mut command = match kind {
        Kind::Squid => {
            let config = write(
                "squid.conf",
                &format!(
                    "http_port 10.77.1.2:{port}\nhttp_access allow all\ncache deny all\n\
                     access_log none\ncache_log /dev/null\npid_filename none\ncoredump_dir none\n\
                     max_filedescriptors 19000\nshutdown_lifetime 0 seconds\nnetdb_filename none\n"
                ),
            );
            let mut command = lab.proxy.command("squid");
            command.arg("-N").arg("-f").arg(config);
            command
        }
        Kind::Haproxy => {
            let config = write(
                "haproxy.cfg",
                &format!(
                    "global\n maxconn 7000\ndefaults\n mode tcp\n timeout connect 20s\n\
                     \x20timeout client 600s\n timeout server 600s\n option splice-request\n\
                     \x20option splice-response\nlisten all\n bind 10.77.1.2:{port}\n\
                     \x20server origin {ORIGIN}\n"
                ),
            );
            let mut command = lab.proxy.command("haproxy");
            command.arg("-db").arg("-f").arg(config);
            command
        }
        Kind::Nginx => {
            let config = write(
                "nginx.conf",
                &format!(
                    "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes auto;\n\
                     worker_rlimit_nofile 19000;\ndaemon off;\nerror_log /dev/null;\n\
                     pid {place}/nginx.pid;\nevents {{ worker_connections 19000; }}\n\
                     stream {{ server {{ listen 10.77.1.2:{port}; proxy_pass {ORIGIN}; }} }}\n"
                ),
            );
            let mut command = lab.proxy.command("nginx");
            command.arg("-c").arg(config);
            command
        }
        Kind::Tinyproxy => {
            let config = write(
                "tinyproxy.conf",
                &format!(
                    "Port {port}\nListen 10.77.1.2\nTimeout 600\nMaxClients 9000\nAllow 10.77.1.0/24\n\
                     ConnectPort 9443\nLogFile \"/dev/null\"\n"
                ),
            );
            let mut command = lab.proxy.command("tinyproxy");
            command.arg("-d").arg("-c").arg(config);
            command
        }
        Kind::Apache => {
            let modules = ["mpm_event", "authz_core", "proxy", "proxy_connect"].map(|module| {
                format!("LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so\n")
            });
            let config = write(
                "apache.conf",
                &format!(
                    "{}ServerRoot {place}\nServerName bench\nPidFile {place}/apache.pid\n\
                     DefaultRuntimeDir {place}\nListen 10.77.1.2:{port}\nErrorLog /dev/null\n\
                     ServerLimit 64\nThreadsPerChild 64\nMaxRequestWorkers 4096\n\
                     ProxyRequests On\nAllowCONNECT 9443\n<Proxy *>\nRequire all granted\n</Proxy>\n",
                    modules.concat()
                ),
            );
            let mut command = lab.proxy.command("apache2");
            command.arg("-DFOREGROUND").arg("-f").arg(config);
            command
        }
        Kind::Trafficserver => traffic_server(lab, port, &scratch)?,
        _ => return Err("no other proxy".to_owned()),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())
}

/// It wants a tree of its own, which it makes itself.
fn traffic_server(lab: &Lab, port: u16, scratch: &Path) -> Result<Command, String> {
    let root = scratch.join("trafficserver");
    // From a run before, with its locks and caches.
    let _ = std::fs::remove_dir_all(&root);
    let made = Command::new("traffic_layout")
        .arg("init")
        .arg("--copy-style=soft")
        .arg("--path")
        .arg(&root)
        .output()
        .map_err(|error| error.to_string())?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        return Err(format!("traffic_layout: {}", said.trim()));
    }
    let mut command = lab.proxy.command("traffic_server");
    command
        .arg(format!("--run-root={}", root.display()))
        .args(["-k", "--httpport", &format!("{port}:ip-in=10.77.1.2")])
        .env("PROXY_CONFIG_HTTP_CONNECT_PORTS", "9443")
        .env("PROXY_CONFIG_URL_REMAP_REMAP_REQUIRED", "0")
        .env("PROXY_CONFIG_REVERSE_PROXY_ENABLED", "0")
        .env("PROXY_CONFIG_ADMIN_USER_ID", "#-1");
    Ok(command)
}
