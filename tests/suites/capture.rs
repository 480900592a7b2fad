//! Transparent capture: processes that know of no proxy, in cgroups and network namespaces of their own.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    process::{Child, Command, Output},
    thread,
};

use proxy_tests::{
    cgroup::Cgroup,
    daemon::{Daemon, Setup, run_to_end},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    netns::{Netns, run},
    origin::Origin,
    require_cgroups_or_skip, require_sockmap_or_skip, require_tool_or_skip,
    tls::{Pages, TlsOrigin, page},
};
use rustix::process::Signal;

/// An address that nobody has, for which there is no route.
const NOWHERE: &str = "203.0.113.9";

/// An application's cgroup, and a network namespace with nothing but `lo`.
struct Scene {
    // Fields drop in this order.
    daemon: Daemon,
    _keeper: Keeper,
    cgroup: Cgroup,
    app: Netns,
    lab: Lab,
}

/// Where a network namespace has its own `/sys`, cgroups are mounted in it anew.
const WITH_CGROUPS: [&str; 4] = [
    "sh",
    "-c",
    "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"",
    "sh",
];

impl Scene {
    /// With this added to the configuration, where `CGROUP` is the application's.
    fn new(config: &str) -> Self {
        Self::with_engine("auto", config)
    }

    fn with_engine(engine: &str, config: &str) -> Self {
        let lab = Lab::new();
        lab.proxy.set_hosts(&[
            ("10.77.2.1", "origin.test"),
            ("10.77.2.1", "forbidden.test"),
        ]);
        let cgroup = Cgroup::new();
        let app = Netns::create("app");
        run(Command::new("ip").args(["-n", app.name(), "link", "set", "lo", "up"]));
        let keeper = Keeper::start(&cgroup, &app);
        let config = config.replace("CGROUP", &cgroup.path());
        let config = format!(
            "allow_destination = [\"10.77.2.1\", \"fd77:2::1\"]\nallow_port = [\"1-65535\"]\n{config}"
        );
        let config = format!("engine = \"{engine}\"\n{config}");
        Self {
            daemon: capturing(&lab, &config),
            _keeper: keeper,
            cgroup,
            app,
            lab,
        }
    }

    /// Runs a command as the application.
    fn run(&self, command: &Command) -> Output {
        run_to_end(&mut self.cgroup.run(command))
    }

    /// Connects somewhere, from the application's network namespace, and says what came of it.
    fn ask(&self, arguments: &[&str]) -> String {
        ask(&self.app, &self.cgroup, arguments)
    }
}

/// A process that keeps a network namespace in a cgroup.
struct Keeper(Child);

impl Keeper {
    fn start(cgroup: &Cgroup, netns: &Netns) -> Self {
        let mut sleep = netns.command("sleep");
        Self(cgroup.run(sleep.arg("600")).spawn().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The proxy with this configuration, once it captures.
fn capturing(lab: &Lab, config: &str) -> Daemon {
    let daemon = Setup::bare(&lab.proxy)
        .config(lab, config)
        .through(&WITH_CGROUPS)
        .start();
    daemon.wait_said("capturing what ", 1);
    daemon
}

fn ask(netns: &Netns, cgroup: &Cgroup, arguments: &[&str]) -> String {
    let mut python = netns.command("python3");
    python.arg("suites/capture/ask.py").args(arguments);
    let output = run_to_end(&mut cgroup.run(&python));
    let said = String::from_utf8_lossy(&output.stderr);
    format!("{}{said}", String::from_utf8_lossy(&output.stdout))
}

/// An origin that answers each connection with what it has heard, to its end.
fn echo(lab: &Lab) -> (SocketAddr, thread::JoinHandle<()>) {
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let address = origin.address();
    let echo = thread::spawn(move || {
        while let Some(mut connection) = origin.accept_within(PATIENCE) {
            let mut heard = Vec::new();
            drop(connection.read_to_end(&mut heard));
            drop(connection.write_all(&heard));
        }
    });
    (address, echo)
}

const CAPTURE: &str = "[capture]\ncgroups = [\"CGROUP\"]\n";

#[test]
fn an_application_with_nothing_but_loopback_reaches_an_origin_on_every_engine() {
    require_cgroups_or_skip!();
    require_sockmap_or_skip!();
    require_tool_or_skip!("curl", "--version");
    for engine in ["auto", "copy", "splice", "sockmap"] {
        let config = format!("[[access_log]]\nto = \"-\"\nformat = \"json\"\n{CAPTURE}");
        let scene = Scene::with_engine(engine, &config);
        let body = page("Captured", 3_000_000);
        let pages = Pages::from([("/".to_owned(), body.clone())]);
        let address = SocketAddr::new(Family::V4.origin(), 443);
        let origin = TlsOrigin::start(&scene.lab.origin, &[address], &["origin.test"], pages);
        let mut curl = scene.app.command("curl");
        curl.args(["-sS", "--max-time", "20", "--noproxy", "*", "--cacert"])
            .arg(origin.authority())
            .args(["--resolve", &format!("origin.test:443:{NOWHERE}")])
            .arg("https://origin.test/");
        let output = scene.run(&curl);
        assert!(output.status.success(), "{engine}: {output:?}");
        assert!(output.stdout == body, "{engine}: another page");

        let line = scene
            .daemon
            .wait_access_line(|line| line.contains("\"end\""));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["url"], "origin.test:443", "{line}");
        assert_eq!(value["tag"], "TCP_TUNNEL", "{line}");
        assert_eq!(value["upstream"], "10.77.2.1:443", "{line}");
        assert_eq!(value["captured"], format!("{NOWHERE}:443"), "{line}");
        assert_eq!(value["cgroup"], scene.cgroup.path(), "{line}");
        assert_eq!(value["process"], "curl", "{line}");
        assert_eq!(value["uid"], 0, "{line}");
        assert_eq!(value["listener_name"], "capture", "{line}");
        if engine != "auto" {
            assert_eq!(value["engine"], engine, "{line}");
        }
    }
}

#[test]
fn an_application_hears_where_it_meant_to_go() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let scene = Scene::new(&format!(
        "{CAPTURE}connect_to = \"address\"\nports = [\"1-65535\"]\n"
    ));
    let (address, _echo) = echo(&scene.lab);
    let port = address.port().to_string();
    let said = scene.ask(&["10.77.2.1", &port, "say", "hello"]);
    let expected = format!("peer 10.77.2.1 {port}\noriginal 10.77.2.1 {port}\nheard hello\nend\n");
    assert_eq!(said, expected);
    // As an application of IPv6 has it.
    let said = scene.ask(&["::ffff:10.77.2.1", &port, "say", "hello"]);
    let mapped = "::ffff:10.77.2.1";
    let expected = format!("peer {mapped} {port}\noriginal {mapped} {port}\nheard hello\nend\n");
    assert_eq!(said, expected);
    let six = Origin::bind(&scene.lab.origin, Family::V6.origin());
    let port = six.address().port().to_string();
    let greet = thread::spawn(move || six.accept().write_all(b"greetings"));
    let said = scene.ask(&["fd77:2::1", &port, "hear"]);
    greet.join().unwrap().unwrap();
    // That side has spoken first: silence is no name.
    let expected =
        format!("peer fd77:2::1 {port}\noriginal fd77:2::1 {port}\nheard greetings\nend\n");
    assert_eq!(said, expected);
}

#[test]
fn the_host_of_a_request_is_a_name_too_and_rules_are_about_it() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let scene = Scene::new(&format!(
        "{CAPTURE}ports = [\"1-65535\"]\n\
         [[rule]]\nname = \"no\"\naction = \"deny\"\nhost = [\"forbidden.test\"]\n"
    ));
    let (address, _echo) = echo(&scene.lab);
    let port = address.port().to_string();
    for (host, expected) in [
        ("origin.test", "heard GET / HTTP/1.1"),
        ("forbidden.test", "reset"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let said = scene.ask(&[NOWHERE, &port, "say", &request]);
        assert!(said.contains(expected), "{host}: {said}");
    }
    let line = scene
        .daemon
        .wait_access_line(|line| line.contains("forbidden"));
    assert!(
        line.contains(&format!("TCP_DENIED/200 0 CONNECT forbidden.test:{port}")),
        "{line}"
    );
}

#[test]
fn who_asks_decides() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("python3", "--version");
    require_tool_or_skip!("setpriv", "--version");
    let scene = Scene::new(&format!(
        "{CAPTURE}ports = [\"1-65535\"]\nconnect_to = \"address\"\n\
         [[rule]]\nname = \"not-them\"\naction = \"deny\"\ncgroup = [\"CGROUP/low\"]\n\
         [[rule]]\nname = \"not-him\"\naction = \"deny\"\nlistener = [\"capture\"]\nuid = [65534]\n"
    ));
    let (address, _echo) = echo(&scene.lab);
    let port = address.port().to_string();
    let arguments = ["10.77.2.1", port.as_str(), "say", "hello"];
    let high = scene.cgroup.child("high");
    let low = scene.cgroup.child("low");
    assert!(ask(&scene.app, &high, &arguments).contains("heard hello"));
    let said = ask(&scene.app, &low, &arguments);
    assert!(said.contains("reset"), "{said}");
    let mut other = scene.app.command("setpriv");
    other
        .args([
            "--reuid=65534",
            "--clear-groups",
            "python3",
            "suites/capture/ask.py",
        ])
        .args(arguments);
    let output = run_to_end(&mut high.run(&other));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("reset"), "{output:?}");
    for rule in ["not-them", "not-him"] {
        wait_for("the tunnels' records", PATIENCE, || {
            let said = scene.daemon.stderr_lines();
            said.iter().any(|line| line.contains(rule)).then_some(())
        });
    }
}

#[test]
fn what_is_not_meant_is_not_captured() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let cgroup = Cgroup::new();
    let outside = Cgroup::new();
    let lab = Lab::new();
    let excluded = cgroup.child("excluded");
    let low = excluded.child("low");
    // Of the proxy's own namespace, from where the origin can be reached.
    let _keeper = Keeper::start(&cgroup, &lab.proxy);
    let config = format!(
        "allow_destination = [\"10.77.2.1\"]\nallow_port = [\"1-65535\"]\n\
         [capture]\ncgroups = [\"{0}\"]\nexclude = [\"{0}/excluded\"]\nports = [\"1000-65535\"]\n\
         direct = [\"10.77.2.1/32\"]\nconnect_to = \"address\"\n",
        cgroup.path()
    );
    let _daemon = capturing(&lab, &config);
    let (address, _echo) = echo(&lab);
    let port = address.port().to_string();
    let said = ask(&lab.proxy, &cgroup, &["10.77.2.1", &port, "say", "hello"]);
    assert!(said.contains("original none\nheard hello"), "{said}");
    // Nobody listens there: who is not captured is refused before there is anything to ask about.
    let is_captured = |cgroup: &Cgroup, address: &str, port: &str| {
        let said = ask(&lab.proxy, cgroup, &[address, port, "say", "hello"]);
        let is_refused = said.contains("ConnectionRefusedError");
        let is_led = said.contains(&format!("original {address} {port}"));
        assert!(is_refused != is_led, "{said}");
        is_led
    };
    assert!(
        !is_captured(&outside, "10.77.1.1", "2000"),
        "another cgroup"
    );
    assert!(!is_captured(&low, "10.77.1.1", "2000"), "an excluded one");
    assert!(!is_captured(&cgroup, "10.77.1.1", "999"), "another port");
    assert!(!is_captured(&cgroup, "127.0.0.1", "2000"), "loopback");
    assert!(is_captured(&cgroup, "10.77.1.1", "2000"), "what is meant");
}

/// A listener of captured connections is no proxy for others.
#[test]
fn nobody_else_is_served_by_the_listener() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let scene = Scene::new(CAPTURE);
    let listening = run_to_end(scene.app.command("ss").args(["-Hltn"]));
    let listening = String::from_utf8_lossy(&listening.stdout).into_owned();
    let address = listening
        .split_whitespace()
        .find_map(|word| word.strip_prefix("127.0.0.1:"))
        .unwrap_or_else(|| panic!("no listener: {listening}"));
    let outside = Cgroup::new();
    let said = ask(
        &scene.app,
        &outside,
        &[
            "127.0.0.1",
            address,
            "say",
            "GET / HTTP/1.1\r\nHost: origin.test\r\n\r\n",
        ],
    );
    assert!(said.contains("original none\nreset"), "{said}");
}

#[test]
fn it_goes_on_through_a_parent() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("curl", "--version");
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "parent.test")]);
    lab.origin.set_hosts(&[("10.77.2.1", "origin.test")]);
    let pages = Pages::from([("/".to_owned(), page("Through a parent", 2_000))]);
    let address = SocketAddr::new(Family::V4.origin(), 443);
    let origin = TlsOrigin::start(&lab.origin, &[address], &["origin.test"], pages);
    let parent = Setup::bare(&lab.origin)
        .option("--listen", "10.77.2.1:3128")
        .option("--allow-client", "10.77.2.0/24")
        .option("--allow-destination", "10.77.2.1/32")
        .start();
    let cgroup = Cgroup::new();
    let app = Netns::create("app");
    run(Command::new("ip").args(["-n", app.name(), "link", "set", "lo", "up"]));
    let _keeper = Keeper::start(&cgroup, &app);
    let config = format!(
        "[capture]\ncgroups = [\"{}\"]\n\
         [parent.company]\nurl = \"http://parent.test:3128\"\n\
         [[route]]\nvia = [\"company\"]\n",
        cgroup.path()
    );
    let _daemon = capturing(&lab, &config);
    let fetch = |name: &str| {
        let mut curl = app.command("curl");
        curl.args(["-sS", "--max-time", "10", "--noproxy", "*", "--cacert"])
            .arg(origin.authority())
            .args(["--resolve", &format!("{name}:443:{NOWHERE}")])
            .arg(format!("https://{name}/"));
        run_to_end(&mut cgroup.run(&curl))
    };
    let output = fetch("origin.test");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("<title>Through a parent</title>"),
        "{output:?}"
    );
    parent.wait_access_line(|line| line.contains("CONNECT origin.test:443"));
    // What the parent refuses is a reset, at once.
    let output = fetch("unknown.test");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("reset") || said.contains("errno 104"),
        "{output:?}"
    );
}

#[test]
fn when_the_proxy_dies_connections_are_direct() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let cgroup = Cgroup::new();
    let lab = Lab::new();
    let _keeper = Keeper::start(&cgroup, &lab.proxy);
    let config = format!(
        "allow_destination = [\"10.77.2.1\"]\nallow_port = [\"1-65535\"]\n\
         [capture]\ncgroups = [\"{}\"]\nports = [\"1-65535\"]\n",
        cgroup.path()
    );
    let (address, _echo) = echo(&lab);
    let port = address.port().to_string();
    let asked = || ask(&lab.proxy, &cgroup, &["10.77.2.1", &port, "say", "hello"]);
    for signal in [Signal::KILL, Signal::TERM] {
        let mut daemon = capturing(&lab, &config);
        let captured = asked();
        assert!(captured.contains("original 10.77.2.1"), "{captured}");
        assert!(captured.contains("heard hello"), "{captured}");
        daemon.stop_with(signal);
        let direct = asked();
        assert!(direct.contains("original none"), "{direct}");
        assert!(direct.contains("heard hello"), "{direct}");
    }
}

/// With nothing but what emulated machines have.
#[test]
fn busybox_is_captured() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("busybox", "true");
    let scene = Scene::new(&format!(
        "{CAPTURE}connect_to = \"address\"\nports = [\"1-65535\"]\n"
    ));
    let (address, _echo) = echo(&scene.lab);
    let script = format!("echo hello | busybox nc 10.77.2.1 {}", address.port());
    let output = scene.run(scene.app.command("sh").args(["-c", &script]));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "hello\n",
        "{output:?}"
    );
}

/// What `bpftool` lists of a cgroup: the numbers of programs.
fn attached(cgroup: &Cgroup) -> Vec<String> {
    let mut bpftool = Command::new("bpftool");
    bpftool
        .args(["--json", "cgroup", "show"])
        .arg(cgroup.directory());
    let output = run_to_end(&mut bpftool);
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let listed = listed.as_array().cloned().unwrap_or_default();
    listed
        .iter()
        .map(|program| program["id"].to_string())
        .collect()
}

#[test]
fn nothing_is_left_in_the_kernel() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("bpftool", "version");
    let cgroup = Cgroup::new();
    let lab = Lab::new();
    let config = format!("[capture]\ncgroups = [\"{}\"]\n", cgroup.path());
    let rounds = std::env::var("UNDERPASS_CAPTURE_ROUNDS").ok();
    let rounds: u32 = rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(4);
    for round in 0..rounds {
        let mut daemon = capturing(&lab, &config);
        let programs = attached(&cgroup);
        assert_eq!(programs.len(), 6, "{programs:?}");
        let signal = if round % 2 == 0 {
            Signal::KILL
        } else {
            Signal::INT
        };
        daemon.stop_with(signal);
        assert_eq!(attached(&cgroup), [""; 0]);
        // A program is freed a moment after the last that held it.
        wait_for("the programs to be gone", PATIENCE, || {
            let is_there = |id: &String| {
                let mut show = Command::new("bpftool");
                show.args(["prog", "show", "id", id]);
                run_to_end(&mut show).status.success()
            };
            (!programs.iter().any(is_there)).then_some(())
        });
    }
}

/// A pod that comes later, and one that has gone.
#[test]
fn network_namespaces_are_followed_as_they_come_and_go() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let scene = Scene::new(&format!(
        "{CAPTURE}connect_to = \"address\"\nports = [\"1-65535\"]\n"
    ));
    let (address, _echo) = echo(&scene.lab);
    let port = address.port().to_string();
    let pod = Netns::create("pod");
    run(Command::new("ip").args(["-n", pod.name(), "link", "set", "lo", "up"]));
    let low = scene.cgroup.child("pod");
    let keeper = Keeper::start(&low, &pod);
    scene
        .daemon
        .wait_said("listening in the network namespace of process", 2);
    let said = ask(&pod, &low, &["10.77.2.1", &port, "say", "hello"]);
    assert!(said.contains("heard hello"), "{said}");
    drop(keeper);
    scene
        .daemon
        .wait_said("no process is left in network namespace", 1);
    assert!(
        scene
            .ask(&["10.77.2.1", &port, "say", "hello"])
            .contains("heard hello")
    );
}

/// Whoever is captured has this address.
#[test]
fn the_loopback_of_a_captured_namespace_stays_its_own() {
    require_cgroups_or_skip!();
    require_tool_or_skip!("python3", "--version");
    let scene = Scene::new(&format!("{CAPTURE}ports = [\"1-65535\"]\n"));
    let own = Origin::bind(&scene.app, IpAddr::from([127, 0, 0, 1]));
    let port = own.address().port().to_string();
    let greet = thread::spawn(move || own.accept().write_all(b"from here"));
    let said = scene.ask(&["127.0.0.1", &port, "hear"]);
    greet.join().unwrap().unwrap();
    assert!(
        said.contains("original none\nheard from here\nend"),
        "{said}"
    );
}
