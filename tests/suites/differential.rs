//! Debian's Squid and ours, side by side: the same squid.conf, the same requests, the same verdicts.
//!
//! The configurations are drawn: some lines of `http_access` over a set of conditions, each of which some of
//! the requests fulfil. What is compared is the status of the reply and, where Squid's tag is a matter of the
//! rules, the tag in the log. A seed that failed is printed, and `UNDERPASS_SEED` draws it again.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
};

use proxy_tests::{
    client::with_deadlines,
    daemon::Setup,
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    origin::{Listen, Origin},
    payload::Random,
    peer::Peer,
    reply::Reply,
    require_root_or_skip, require_tool_or_skip,
};

use crate::scene::expect_nothing_wrong;

const OUR_PORT: u16 = 3128;
const SQUID_PORT: u16 = 3130;
/// Configurations that are drawn.
const CONFIGURATIONS: u64 = 16;
/// htpasswd -nb anna secret
const PASSWORDS: &str =
    "anna:$apr1$saltSALT$WDJf6wM5.GXmxK8jyj/4v.\nbob:$apr1$saltSALT$WDJf6wM5.GXmxK8jyj/4v.\n";

/// Conditions that some requests fulfil and others do not.
const CONDITIONS: &str = "\
acl net4 src 10.77.1.0/24
acl other src 10.99.0.0/16 192.0.2.1-192.0.2.9
acl net6 src fd77:1::/64
acl ssl port 443 563
acl high port 1024-65535
acl domain dstdomain .allowed.test
acl exact dstdomain www.blocked.test
acl literal dstdomain -n 10.77.2.1
acl pattern dstdom_regex -i ^WWW\\.
acl pattern_n dstdom_regex -n \\.test$
acl there dst 10.77.2.0/24
acl there6 dst fd77:2::/64
acl address dst -n 10.77.2.1
acl get method GET
acl target url_regex -i BLOCKED
acl web url_regex ^http://
acl path urlpath_regex ^/secret
acl anytime time SMTWHFA 00:00-23:59
acl either any-of domain ssl
acl both all-of CONNECT domain
acl both all-of get
acl in myportname main
acl here localip 10.77.1.2
acl many maxconn 100
acl sure random 0.9999999
acl scheme proto HTTP
";

/// Conditions on users; a line with one asks for a password.
const USERS: &str =
    "acl anyone proxy_auth REQUIRED\nacl anna proxy_auth anna\nacl a_user proxy_auth_regex ^a\n";

/// The names of the conditions in a text, and Squid's own.
fn names(conditions: &str) -> Vec<&str> {
    let mut names: Vec<&str> = conditions
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .chain(["all", "CONNECT", "localhost", "to_localhost", "manager"])
        .collect();
    names.dedup();
    names
}

/// Some `http_access` lines, the last of which may leave a request undecided.
fn draw(random: &mut Random, with_users: bool) -> String {
    let conditions = names(CONDITIONS);
    let users = names(USERS);
    let mut lines = String::new();
    for _ in 0..random.between(1, 6) {
        let action = ["allow", "deny"][random.between(0, 1)];
        write!(lines, "http_access {action}").unwrap();
        for _ in 0..random.between(1, 3) {
            let negation = ["", "", "!"][random.between(0, 2)];
            let is_user = with_users && random.between(0, 3) == 0;
            let names = if is_user { &users[..3] } else { &conditions };
            let name = names[random.between(0, names.len() - 1)];
            write!(lines, " {negation}{name}").unwrap();
        }
        lines.push('\n');
    }
    lines
}

/// A request: its first line's method and target, and the credentials that go with it.
type Request = (&'static str, &'static str, Option<&'static str>);

/// `anna:secret`, `bob:secret`, `anna:wrong`.
const ANNA: Option<&str> = Some("YW5uYTpzZWNyZXQ=");
const BOB: Option<&str> = Some("Ym9iOnNlY3JldA==");
const WRONG: Option<&str> = Some("YW5uYTp3cm9uZw==");

const REQUESTS: &[Request] = &[
    ("CONNECT", "www.allowed.test:443", None),
    ("CONNECT", "allowed.test:443", None),
    ("CONNECT", "www.blocked.test:443", None),
    ("CONNECT", "WWW.Blocked.Test:8443", None),
    ("CONNECT", "sub.blocked.test:22", None),
    ("CONNECT", "notallowed.test:443", None),
    ("CONNECT", "six.allowed.test:443", None),
    ("CONNECT", "10.77.2.1:443", None),
    ("CONNECT", "10.77.2.1:22", None),
    ("CONNECT", "[fd77:2::1]:443", None),
    ("CONNECT", "closed.test:444", None),
    ("CONNECT", "www.allowed.test:443", ANNA),
    ("CONNECT", "www.blocked.test:443", BOB),
    ("CONNECT", "www.allowed.test:443", WRONG),
    ("GET", "http://www.allowed.test:8443/", None),
    ("GET", "http://www.blocked.test:8443/secret", None),
    ("GET", "http://10.77.2.1:22/", None),
    ("GET", "http://www.allowed.test:8443/secret?x=1", ANNA),
];

/// Accepts whatever comes to the origin's ports, answers a GET, and closes.
fn serve(lab: &Lab) {
    for family in [Family::V4, Family::V6] {
        for port in [22, 443, 8443] {
            let listen = Listen {
                port,
                ..Listen::default()
            };
            let origin = Origin::bind_with(&lab.origin, family.origin(), listen);
            std::thread::spawn(move || {
                loop {
                    let Some(mut stream) = origin.accept_within(10 * PATIENCE) else {
                        return;
                    };
                    std::thread::spawn(move || {
                        let mut request = [0; 3];
                        if stream.read_exact(&mut request).is_ok() && &request == b"GET" {
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
                            // What it asks for is of no interest, but has to be read.
                            let _ = stream.read(&mut [0; 4096]);
                            stream.write_all(answer).unwrap();
                        }
                    });
                }
            });
        }
    }
}

/// The status of the reply to a request.
fn ask(lab: &Lab, proxy: SocketAddr, (method, target, credentials): Request) -> u16 {
    let connect = || TcpStream::connect_timeout(&proxy, PATIENCE).unwrap();
    let mut stream = with_deadlines(lab.client.run_in(connect));
    let credentials = credentials.map_or(String::new(), |credentials| {
        format!("Proxy-Authorization: Basic {credentials}\r\n")
    });
    let host = target
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\n{credentials}Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let status = Reply::read_head(&mut stream).map_or(0, |reply| reply.status);
    if method == "GET" {
        // Who leaves before the end of it is logged in another way.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    status
}

/// The tags of the lines of a log, by client, target and status.
fn tags(log: &Path) -> HashMap<(String, String), Vec<String>> {
    let mut tags = HashMap::<_, Vec<String>>::new();
    for line in fs::read_to_string(log).unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, client, tag, _, method, url, ..] = fields.as_slice() {
            let url = format!("{method} {url}");
            tags.entry(((*client).to_owned(), url))
                .or_default()
                .push((*tag).to_owned());
        }
    }
    tags
}

/// A squid.conf with these rules, for either of us.
fn configuration(rules: &str, port: u16, scratch: &Path, log: &Path) -> String {
    format!(
        "http_port {port} name=main\n{rules}\
         access_log stdio:{}\ncache_log /dev/null\npid_filename none\ncoredump_dir {}\n\
         visible_hostname squid.test\nshutdown_lifetime 1 second\nnegative_ttl 0 seconds\n\
         cache deny all\npinger_enable off\n",
        log.display(),
        scratch.display()
    )
}

#[test]
fn squid_decides_the_same() {
    require_root_or_skip!();
    require_tool_or_skip!("squid", "--version");
    let lab = Lab::new();
    // On one line, so that an address has one name.
    let names = "www.allowed.test allowed.test www.blocked.test sub.blocked.test notallowed.test closed.test";
    lab.proxy
        .set_hosts(&[("10.77.2.1", names), ("fd77:2::1", "six.allowed.test")]);
    serve(&lab);
    let passwords = lab.scratch().write("passwords", PASSWORDS);
    let seed = std::env::var("UNDERPASS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(20_261);
    let (mut compared, mut wrong) = (0, Vec::new());
    for number in seed..seed + CONFIGURATIONS {
        let mut random = Random::new(number);
        let with_users = number % 2 == 0;
        let lines = draw(&mut random, with_users);
        let mut rules = CONDITIONS.to_owned();
        if with_users {
            let program = "auth_param basic program /usr/lib/squid/basic_ncsa_auth";
            writeln!(rules, "{program} {}", passwords.display()).unwrap();
            rules.push_str("auth_param basic realm test\n");
            rules.push_str(USERS);
        }
        rules.push_str(&lines);
        let scratch = lab.scratch().path();
        let log = |who: &str| scratch.join(format!("{who}.{number}.log"));
        let config = |who: &str, port: u16| {
            let text = configuration(&rules, port, scratch, &log(who));
            lab.scratch().write(&format!("{who}.conf"), text)
        };
        let squid_config = config("squid", SQUID_PORT);
        let our_config = config("ours", OUR_PORT);
        let at = |family: Family, port| SocketAddr::new(family.proxy().ip(), port);
        let mut command = lab.proxy.command("squid");
        command.args(["-N", "-f"]).arg(&squid_config);
        let squid = Peer::listening(&lab.proxy, &mut command, at(Family::V4, SQUID_PORT));
        let daemon = Setup::bare(&lab.proxy)
            .option("--squid-conf", &our_config)
            .start();
        let mut asked = 0;
        for family in [Family::V4, Family::V6] {
            for request in REQUESTS {
                let (method, target, credentials) = *request;
                let theirs = ask(&lab, at(family, SQUID_PORT), *request);
                let ours = ask(&lab, at(family, OUR_PORT), *request);
                compared += 1;
                if ours != theirs {
                    wrong.push(format!(
                        "seed {number}: {family:?} {method} {target} {credentials:?}: squid {theirs}, we {ours}\n{lines}"
                    ));
                }
                asked += 1;
            }
        }
        // It writes a line when all else of a request is done, and we kill it.
        wait_for("squid's log", PATIENCE, || {
            let lines = fs::read_to_string(log("squid")).unwrap_or_default();
            let is_request = |line: &&str| line.contains(" CONNECT ") || line.contains(" GET ");
            (lines.lines().filter(is_request).count() >= asked).then_some(())
        });
        drop(squid);
        drop(daemon);
        let (theirs, ours) = (tags(&log("squid")), tags(&log("ours")));
        for (key, ours) in &ours {
            // Where the rules decide; what Squid calls a failed connection depends on its version.
            let of_rules = |tags: &[String]| {
                let mut tags: Vec<String> = tags
                    .iter()
                    .filter(|tag| {
                        [
                            "TCP_TUNNEL/200",
                            "TCP_MISS/200",
                            "TCP_DENIED/403",
                            "TCP_DENIED/407",
                        ]
                        .contains(&tag.as_str())
                    })
                    .cloned()
                    .collect();
                tags.sort();
                tags
            };
            let (ours, theirs) = (
                of_rules(ours),
                of_rules(theirs.get(key).map_or(&[], Vec::as_slice)),
            );
            if ours != theirs {
                wrong.push(format!(
                    "seed {number}: log of {key:?}: squid {theirs:?}, we {ours:?}\n{lines}"
                ));
            }
        }
        assert!(!ours.is_empty(), "our log has lines");
    }
    assert!(compared >= 500, "{compared} combinations");
    expect_nothing_wrong(&wrong);
}
