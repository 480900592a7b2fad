//! The external HTTPS proxy of a service mesh, as Istio's documentation sets one up with Squid: its squid.conf, curl with
//! `HTTPS_PROXY`, a sidecar that takes the connection for TCP, and what both write into their logs.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    process::Command,
};

use proxy_tests::{
    daemon::{Daemon, Setup, run_to_end},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    peer::Peer,
    require_root_or_skip, require_tool_or_skip,
    tls::{Pages, TlsOrigin, page},
    tools::missing,
};
use regex_lite::Regex;

const TITLE: &str = "<title>Wikipedia, the free encyclopedia</title>";
const SIDECAR: &str = "127.0.0.1:15001";

/// A pod, the proxy outside of its mesh, and Wikipedia.
struct Mesh {
    // Fields drop in this order.
    daemon: Daemon,
    origin: TlsOrigin,
    lab: Lab,
}

impl Mesh {
    fn new() -> Self {
        let lab = Lab::new();
        lab.proxy.set_hosts(&[("10.77.2.1", "en.wikipedia.org")]);
        let pages = Pages::from([(
            "/wiki/Main_Page".to_owned(),
            page("Wikipedia, the free encyclopedia", 82_000),
        )]);
        let address = SocketAddr::new(Family::V4.origin(), 443);
        let origin = TlsOrigin::start(&lab.origin, &[address], &["en.wikipedia.org"], pages);
        let daemon = Setup::bare(&lab.proxy)
            .option("--squid-conf", "../deploy/istio/proxy.conf")
            // Else where Squid has it, which is this host's.
            .option("--access-log", "-")
            .start();
        Self {
            daemon,
            origin,
            lab,
        }
    }

    /// The page by curl, through what it takes for the proxy.
    fn fetch(&self, proxy: &str) -> String {
        let mut curl = self.lab.client.command("curl");
        curl.env("HTTPS_PROXY", proxy)
            .env_remove("no_proxy")
            .args(["-sS", "--max-time", "10", "--cacert"])
            .arg(self.origin.authority())
            .arg("https://en.wikipedia.org/wiki/Main_Page");
        let output = run_to_end(&mut curl);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The line of that tunnel, which is to be as Squid's; how many bytes it says.
    fn logged(&self, count: usize, client: &str) -> u64 {
        let line = wait_for("the tunnel's line", PATIENCE, || {
            let lines = self.daemon.access_lines();
            let mut tunnels = lines.iter().filter(|line| line.contains("TCP_TUNNEL"));
            tunnels.nth(count - 1).cloned()
        });
        let expected = format!(
            r"^\d{{10}}\.\d{{3}} +\d+ {client} TCP_TUNNEL/200 (\d+) CONNECT en\.wikipedia\.org:443 - HIER_DIRECT/10\.77\.2\.1 -$"
        );
        let found = Regex::new(&expected).unwrap().captures(&line);
        let found = found.unwrap_or_else(|| panic!("{line} is not {expected}"));
        found[1].parse().unwrap()
    }
}

/// What takes a pod's connections to the proxy for TCP, and how it tells of them.
struct Sidecar {
    /// Stays for as long as it is to run.
    _peer: Peer,
    log: SidecarLog,
}

enum SidecarLog {
    File(PathBuf),
    Datagrams(UdpSocket),
}

impl Sidecar {
    /// Envoy; where it cannot be had, HAProxy, whose log is given the same form.
    fn start(lab: &Lab) -> Self {
        match missing("envoy", &["--version"]) {
            None => Self::envoy(lab),
            Some(reason) => {
                eprintln!("HAProxy stands for Envoy: {reason}");
                Self::haproxy(lab)
            }
        }
    }

    fn envoy(lab: &Lab) -> Self {
        let log = lab.scratch().path().join("sidecar.log");
        let config = include_str!("mesh/envoy.yaml").replace("@LOG@", &log.display().to_string());
        let config = lab.scratch().write("envoy.yaml", config);
        let mut envoy = lab.client.command("envoy");
        envoy.arg("--config-path").arg(config);
        envoy.args(["--disable-hot-restart", "--concurrency", "1"]);
        envoy.args(["--file-flush-interval-msec", "100"]);
        Self::listening(lab, &mut envoy, SidecarLog::File(log))
    }

    fn haproxy(lab: &Lab) -> Self {
        let bind = || UdpSocket::bind("127.0.0.1:0");
        let socket = lab.client.run_in(bind).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let config = include_str!("mesh/haproxy.cfg").replace("@LOG@", &address);
        let config = lab.scratch().write("haproxy.cfg", config);
        let mut haproxy = lab.client.command("haproxy");
        haproxy.arg("-db").arg("-f").arg(config);
        Self::listening(lab, &mut haproxy, SidecarLog::Datagrams(socket))
    }

    fn listening(lab: &Lab, command: &mut Command, log: SidecarLog) -> Self {
        let address = SIDECAR.parse().unwrap();
        Self {
            _peer: Peer::listening(&lab.client, command, address),
            log,
        }
    }

    /// Its line about a connection with bytes.
    fn line(&self) -> String {
        wait_for("the sidecar's line", PATIENCE, || {
            let text = match &self.log {
                SidecarLog::File(path) => fs::read_to_string(path).ok()?,
                SidecarLog::Datagrams(socket) => {
                    let mut buffer = [0; 1024];
                    let count = socket.recv(&mut buffer).ok()?;
                    String::from_utf8_lossy(&buffer[..count]).into_owned()
                }
            };
            // Whoever looked whether it listens had none.
            let line = text.lines().rfind(|line| !line.contains(" 0 0 "))?;
            Some(line.to_owned())
        })
    }
}

#[test]
fn an_external_https_proxy_serves_a_mesh() {
    require_root_or_skip!();
    require_tool_or_skip!("curl", "--version");
    require_tool_or_skip!("haproxy", "-v");
    let mesh = Mesh::new();

    // A pod without a sidecar.
    assert!(mesh.fetch("10.77.1.2:3128").contains(TITLE));
    let bytes = mesh.logged(1, r"10\.77\.1\.1");
    assert!((82_000..90_000).contains(&bytes), "{bytes}");

    // And one whose sidecar takes the tunnel for a connection of TCP.
    let sidecar = Sidecar::start(&mesh.lab);
    assert!(mesh.fetch(SIDECAR).contains(TITLE));
    let sidecar = sidecar.line();
    let expected = r#"^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] "- - -" 0 - (\d+) (\d+) \d+ - "-" "-" "-" "-" "10\.77\.1\.2:3128" outbound\|3128\|\|my-company-proxy\.com 10\.77\.1\.1:\d+ 127\.0\.0\.1:15001 127\.0\.0\.1:\d+ -$"#;
    let found = Regex::new(expected).unwrap().captures(&sidecar);
    let found = found.unwrap_or_else(|| panic!("{sidecar} is not {expected}"));
    let sent = mesh.logged(2, r"10\.77\.1\.1");
    assert_eq!(found[2].parse::<u64>().unwrap(), sent, "{sidecar}");
}
