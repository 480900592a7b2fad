//! The access log: Squid's native format to the byte, and the same fields as a real Squid beside us writes.

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use proxy_tests::{
    client::{Client, connect_head},
    daemon::{Daemon, Setup},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    lines::Lines,
    origin::{Listen, Origin},
    payload::Payload,
    reply::Reply,
    require_root_or_skip, require_tool_or_skip,
};
use regex_lite::Regex;
use rustix::process::{Pid, Signal, kill_process};

use crate::scene::client;

mod logs;

/// `time.ms elapsed client tag/status bytes method URL user hierarchy/peer type`, elapsed padded to six.
const LINE: &str = r"^(?P<time> *\d+\.\d{3}) (?P<elapsed> {5}\d| {4}\d\d| {3}\d{3}|  \d{4}| \d{5}|\d{6,}) (?P<client>\S+) (?P<tag>\S+) (?P<bytes>\d+) (?P<method>\S+) (?P<url>\S+) (?P<user>\S+) (?P<hier>\S+) (?P<type>\S+)$";

/// One access-log line in parts.
#[derive(Debug)]
struct Entry {
    elapsed: String,
    client: String,
    tag: String,
    bytes: u64,
    method: String,
    url: String,
    user: String,
    hier: String,
    content_type: String,
}

impl Entry {
    fn parse(line: &str) -> Self {
        let parts = Regex::new(LINE)
            .unwrap()
            .captures(line)
            .unwrap_or_else(|| panic!("not Squid's format: {line:?}"));
        let part = |name: &str| parts.name(name).unwrap().as_str().to_owned();
        Self {
            elapsed: part("elapsed"),
            client: part("client"),
            tag: part("tag"),
            bytes: part("bytes").parse().unwrap(),
            method: part("method"),
            url: part("url"),
            user: part("user"),
            hier: part("hier"),
            content_type: part("type"),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.elapsed.trim().parse().unwrap()
    }

    /// Everything but the times and the client.
    fn rest(&self) -> String {
        let Self {
            tag,
            bytes,
            method,
            url,
            user,
            hier,
            content_type,
            ..
        } = self;
        format!("{tag} {bytes} {method} {url} {user} {hier} {content_type}")
    }
}

/// A tunnel that carries `up` and `down` bytes and then ends cleanly.
fn play_tunnel(client: Client<'_>, origin: &Origin, target: &str, up: usize, down: usize) {
    let mut client = client.tunnel(target);
    let mut server = origin.accept();
    client.write_all(&Payload::new(1).bytes(up)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    Payload::new(1).receive_to_end(&mut server, 0).unwrap();
    server.write_all(&Payload::new(2).bytes(down)).unwrap();
    drop(server);
    assert_eq!(
        Payload::new(2).receive_to_end(&mut client, 0).unwrap(),
        down as u64
    );
}

/// The entry that contains `needle`.
fn entry(daemon: &Daemon, needle: &str) -> Entry {
    Entry::parse(&daemon.wait_access_line(|line| line.contains(needle)))
}

#[test]
fn a_tunnel_is_logged_when_it_ends() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let daemon = Setup::open(&lab).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let target = format!("origin.test:{}", origin.address().port());

    let stream = client(&lab).tunnel(&target);
    let server = origin.accept();
    std::thread::sleep(Duration::from_millis(1200));
    assert!(daemon.access_lines().is_empty(), "nothing before the end");
    drop((stream, server));
    let quiet = entry(&daemon, &target);
    assert_eq!(
        quiet.rest(),
        format!("TCP_TUNNEL/200 39 CONNECT {target} - HIER_DIRECT/10.77.2.1 -")
    );
    assert_eq!(quiet.client, "10.77.1.1");
    assert!((1200..3000).contains(&quiet.elapsed_ms()), "{quiet:?}");
    assert_eq!(quiet.elapsed, format!("{:>6}", quiet.elapsed_ms()));

    play_tunnel(client(&lab), &origin, &target, 702, 87_594);
    let busy = entry(&daemon, "/200 87633 ");
    assert_eq!(
        busy.rest(),
        format!("TCP_TUNNEL/200 87633 CONNECT {target} - HIER_DIRECT/10.77.2.1 -")
    );
}

#[test]
fn all_engines_log_the_same_bytes() {
    require_root_or_skip!();
    for engine in ["copy", "splice", "sockmap"] {
        let lab = Lab::new();
        let daemon = Setup::open(&lab).option("--engine", engine).start();
        let origin = Origin::bind(&lab.origin, Family::V6.origin());
        let client = Client::new(&lab.client, Family::V6.proxy());
        play_tunnel(client, &origin, &origin.target(), 1_000_000, 3_000_000);
        let entry = entry(&daemon, "TCP_TUNNEL");
        let target = origin.target();
        assert_eq!(
            entry.rest(),
            format!("TCP_TUNNEL/200 3000039 CONNECT {target} - HIER_DIRECT/fd77:2::1 -")
        );
        assert_eq!(entry.client, "fd77:1::1");
        let record = daemon.wait_tunnel_records(1).remove(0);
        assert_eq!(
            (record.engine.as_str(), record.up, record.down),
            (engine, 1_000_000, 3_000_000)
        );
        assert_eq!((record.target, record.upstream), (target.clone(), target));
    }
}

#[test]
fn refusals_are_logged_with_all_bytes_of_the_reply() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).start();
    let closed = Origin::bind(&lab.origin, Family::V4.origin()).target();
    let client = client(&lab);

    let reply = client.refusal("10.77.1.1:443");
    let expected = format!(
        "TCP_DENIED/403 {} CONNECT 10.77.1.1:443 - HIER_NONE/- text/plain",
        reply.len()
    );
    assert_eq!(entry(&daemon, "10.77.1.1:443").rest(), expected);

    let reply = client.exchange("nonsense", b"nonsense\r\n\r\n");
    let expected = format!(
        "NONE_NONE/400 {} NONE error:invalid-request - HIER_NONE/- text/plain",
        reply.len()
    );
    assert_eq!(entry(&daemon, "NONE_NONE/400").rest(), expected);

    let reply = client.refusal(&closed);
    let expected = format!(
        "TCP_TUNNEL/502 {} CONNECT {closed} - HIER_DIRECT/10.77.2.1 text/plain",
        reply.len()
    );
    assert_eq!(entry(&daemon, &closed).rest(), expected);

    let reply = client.refusal("unknown.invalid:443");
    let expected = format!(
        "TCP_TUNNEL/502 {} CONNECT unknown.invalid:443 - HIER_NONE/- text/plain",
        reply.len()
    );
    assert_eq!(entry(&daemon, "unknown.invalid").rest(), expected);

    let reply = client.exchange(
        "plain",
        b"GET https://origin.test/a?secret HTTP/1.1\r\nHost: origin.test\r\n\r\n",
    );
    let expected = format!(
        "NONE_NONE/501 {} GET https://origin.test/a? - HIER_NONE/- text/plain",
        reply.len()
    );
    assert_eq!(entry(&daemon, "/501 ").rest(), expected);

    let large = format!("CONNECT a:1 HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(1 << 16));
    let reply = client.exchange("large", large.as_bytes());
    let expected = format!(
        "NONE_NONE/431 {} CONNECT error:request-too-large - HIER_NONE/- text/plain",
        reply.len()
    );
    assert_eq!(entry(&daemon, "/431 ").rest(), expected);

    let mut gone = client.open();
    gone.write_all(b"CONN").unwrap();
    drop(gone);
    let expected = "NONE_NONE/000 0 NONE error:transaction-end-before-headers - HIER_NONE/- -";
    assert_eq!(entry(&daemon, "NONE_NONE/000").rest(), expected);

    assert_eq!(
        daemon.access_lines().len(),
        7,
        "{:#?}",
        daemon.access_lines()
    );
}

/// A target is text from outside: it must not be able to write lines or fields of its own.
#[test]
fn a_request_cannot_forge_log_lines() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).start();
    let requests: [&[u8]; 4] = [
        b"CONNECT a:443\n1700000000.000 1 1.2.3.4 TCP_TUNNEL/200 1 CONNECT evil:443 HTTP/1.1\r\n\r\n",
        b"CONNECT a\xc2\x85b:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a\x1b[31m:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for request in requests {
        client(&lab).exchange("forged", request);
    }
    let lines = daemon.wait_access_lines(requests.len());
    assert_eq!(lines.len(), requests.len(), "{lines:#?}");
    for line in &lines {
        assert!(
            Entry::parse(line).tag.starts_with("NONE_NONE/400"),
            "{line}"
        );
        assert!(
            line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{line:?}"
        );
    }
}

#[test]
fn the_log_can_be_a_file() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().write("access.log", "a line from before\n");
    let daemon = Setup::open(&lab).option("--access-log", &path).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    play_tunnel(client(&lab), &origin, &origin.target(), 10, 20);
    let text = wait_for("a line in the file", PATIENCE, || {
        fs::read_to_string(&path)
            .ok()
            .filter(|text| text.contains("TCP_TUNNEL") && text.ends_with('\n'))
    });
    let lines = text.lines().collect::<Vec<_>>();
    assert_eq!(lines.len(), 2, "appends one line: {text}");
    assert_eq!(lines[0], "a line from before");
    let expected = format!(
        "TCP_TUNNEL/200 59 CONNECT {} - HIER_DIRECT/10.77.2.1 -",
        origin.target()
    );
    assert_eq!(Entry::parse(lines[1]).rest(), expected);
    assert!(
        daemon.access_lines().is_empty(),
        "nothing on standard output"
    );
}

/// The configuration that people have today, on another port of the same namespace.
const SQUID_CONF: &str = "\
http_port 3129
acl SSL_ports port 443
acl CONNECT method CONNECT
http_access deny CONNECT !SSL_ports
http_access allow localhost manager
http_access deny manager
http_access allow all
cache deny all
shutdown_lifetime 0 seconds
";

/// The same with all its files in one place.
fn squid_conf(path: &impl Fn(&str) -> String) -> String {
    format!(
        "{SQUID_CONF}logformat codes {CODES}\naccess_log stdio:{}\naccess_log stdio:{} logformat=codes\n\
         cache_log {}\npid_filename {}\ncoredump_dir {}\n",
        path("squid.access"),
        path("squid.codes"),
        path("squid.cache"),
        path("squid.pid"),
        path("")
    )
}

/// The line of a tunnel in a log.
fn tunnel_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.contains("TCP_TUNNEL"));
    line.unwrap_or_else(|| panic!("no tunnel in {text}"))
        .to_owned()
}

/// A format of which every line is the same from both.
const CODES: &str = r#"%>a %Ss/%03>Hs %<st %>st %st %rm %ru HTTP/%rv %[un %ul %ui %Sh/%<a:%<p %mt "%{User-Agent}>h" %{User-Agent}>h %#{User-Agent}>h [%{User-Agent}>h] <%-8rm|%12rm|%08>Hs|%.3rm> %{Referer}>h %la 100%%"#;

/// The same scenario through Squid: its log lines are the definition of ours.
#[test]
fn a_real_squid_writes_the_same_fields() {
    require_root_or_skip!();
    require_tool_or_skip!("squid", "-v");
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let path = |name: &str| lab.scratch().path().join(name).display().to_string();
    let conf = squid_conf(&path);
    let conf = lab.scratch().write("squid.conf", conf);
    // Squid writes as a user of its own.
    fs::set_permissions(lab.scratch().path(), Permissions::from_mode(0o777)).unwrap();
    let service = format!("underpass{}", std::process::id());
    let mut squid = lab
        .proxy
        .command("squid")
        // Names its shared memory, which another squid on this machine may have too.
        .args(["-N", "-n", &service, "-f"])
        .arg(conf)
        .spawn()
        .unwrap();
    let daemon = Setup::listening(&lab)
        .option("--allow-client", "10.77.1.0/24")
        .option("--allow-destination", "10.77.2.0/24")
        .config(
            &lab,
            &format!(
                "[[access_log]]\n[[access_log]]\nto = \"{}\"\nformat = '{CODES}'\n",
                path("our.codes")
            ),
        )
        .start();
    let theirs = Client::new(&lab.client, SocketAddr::new(Family::V4.proxy().ip(), 3129));
    wait_for("squid listens", PATIENCE, || {
        lab.client
            .run_in(|| std::net::TcpStream::connect("10.77.1.2:3129").ok())
    });
    let origin = Origin::bind_with(
        &lab.origin,
        Family::V4.origin(),
        Listen {
            port: 443,
            ..Listen::default()
        },
    );

    for client in [theirs, client(&lab)] {
        // Squid's reply differs in nothing that a client may rely on.
        let mut stream = client.open();
        let agent = "User-Agent: a \"b\" [c] %d\\e\r\n\r\n";
        let head = connect_head("origin.test:443").replace("\r\n\r\n", "\r\n");
        stream.write_all((head + agent).as_bytes()).unwrap();
        assert_eq!(Reply::read_head(&mut stream).unwrap().len(), 39);
        let mut server = origin.accept();
        stream.write_all(&Payload::new(1).bytes(702)).unwrap();
        server.read_exact(&mut [0; 702]).unwrap();
        server.write_all(&Payload::new(2).bytes(87_594)).unwrap();
        Payload::new(2).receive(&mut stream, 87_594).unwrap();
        drop((stream, server));
        // Squid keeps the connection open after a denial unless told otherwise.
        client.exchange(
            "denied",
            b"CONNECT origin.test:22 HTTP/1.1\r\nHost: origin.test:22\r\nConnection: close\r\n\r\n",
        );
        client.exchange("nonsense", b"CONNECT origin.test:443 nonsense\r\n\r\n");
    }

    let squid_log = wait_for("squid's log", PATIENCE, || {
        let text = fs::read_to_string(path("squid.access")).ok()?;
        (text.contains("TCP_TUNNEL")
            && text.contains("TCP_DENIED")
            && text.contains("error:invalid"))
        .then_some(text)
    });
    // Not killed: it leaves its shared memory behind, and then does not start again.
    kill_process(Pid::from_child(&squid), Signal::TERM).unwrap();
    squid.wait().unwrap();
    let theirs = |needle: &str| {
        Entry::parse(
            squid_log
                .lines()
                .find(|line| line.contains(needle))
                .unwrap(),
        )
    };

    let (our, their) = (entry(&daemon, "TCP_TUNNEL"), theirs("TCP_TUNNEL"));
    assert_eq!(our.rest(), their.rest(), "every field of a tunnel");
    assert_eq!(our.bytes, 87_633);
    assert_eq!(our.client, their.client);

    let (our, their) = (entry(&daemon, "TCP_DENIED"), theirs("TCP_DENIED"));
    assert_eq!(
        (our.tag, our.method, our.url, our.user, our.hier),
        (their.tag, their.method, their.url, their.user, their.hier)
    );

    let [our, their] = ["our.codes", "squid.codes"].map(|name| tunnel_line(&path(name)));
    assert_eq!(our, their);

    // Squid 6 renamed TAG_NONE to NONE_NONE.
    let (our, their) = (entry(&daemon, "error:invalid"), theirs("error:invalid"));
    assert_eq!(
        our.tag.split_once('/').unwrap().1,
        their.tag.split_once('/').unwrap().1,
        "status"
    );
    assert_eq!(
        (our.method, our.url, our.user, our.hier),
        (their.method, their.url, their.user, their.hier)
    );
}

/// Lines of processes are whole, however they are cut on the way; this holds the collector of the rig to it.
#[test]
fn lines_are_collected_whole() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut lines = Lines::collect(reader);
    for piece in ["one\ntw", "o", "\n"] {
        writer.write_all(piece.as_bytes()).unwrap();
    }
    drop(writer);
    assert_eq!(lines.finish(), ["one", "two"]);
}
