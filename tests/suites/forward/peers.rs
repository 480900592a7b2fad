//! Other people's clients and servers, as Debian has them.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Output},
};

use proxy_tests::{
    daemon::{Daemon, run_to_end},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    netns::run,
    payload::Payload,
    peer::{Nginx, Peer},
    require_root_or_skip, require_tool_or_skip,
};

use crate::scene::configured;

const PROXY: &str = "http://10.77.1.2:3128";

/// An nginx that serves a directory of the lab and takes files into it, with a daemon in front.
struct Web {
    // Fields drop in this order.
    daemon: Daemon,
    _nginx: Nginx,
    lab: Lab,
}

impl Web {
    fn new(config: &str) -> Self {
        let lab = Lab::new();
        lab.proxy
            .set_hosts(&[("10.77.2.1", "origin.test"), ("fd77:2::1", "origin6.test")]);
        let addresses = [Family::V4, Family::V6].map(|family| SocketAddr::new(family.origin(), 80));
        let nginx = Nginx::start(&lab.origin, lab.scratch().path(), addresses);
        Self {
            daemon: configured(&lab, config),
            _nginx: nginx,
            lab,
        }
    }

    /// A file that it serves, with known content.
    fn serve(&self, name: &str, seed: u64, len: usize) -> Vec<u8> {
        let bytes = Payload::new(seed).bytes(len);
        self.lab.scratch().write(&format!("www/{name}"), &bytes);
        bytes
    }

    fn curl(&self, options: &[&str], url: &str) -> Output {
        let mut command = self.lab.client.command("curl");
        command.args(["-sS", "--max-time", "20"]).args(options);
        run_to_end(command.arg(url))
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = run_to_end(command);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    output
}

/// curl in all the ways in which it uses a proxy, for http URLs.
#[test]
fn curl_in_every_manner() {
    require_root_or_skip!();
    require_tool_or_skip!("nginx", "-v");
    let web = Web::new("");
    let file = web.serve("file", 1, 2_000_000);
    let upload = web.lab.scratch().write("upload", &file);
    let upload = upload.display().to_string();
    for (options, url) in [
        (&["-x", PROXY][..], "http://origin.test/file"),
        (&["-x", PROXY, "-0"], "http://origin.test/file"),
        (&["-x", PROXY, "-4"], "http://10.77.2.1/file"),
        (
            &["-x", "http://[fd77:1::2]:3128", "-6"],
            "http://[fd77:2::1]/file",
        ),
        (&["-x", PROXY, "--proxytunnel"], "http://origin.test/file"),
        (
            &["-x", PROXY, "--compressed"],
            "http://origin6.test:80/file",
        ),
        (
            &["-x", PROXY, "-H", "Connection: close"],
            "http://origin.test/file",
        ),
    ] {
        let output = web.curl(options, url);
        assert!(output.stdout == file, "{options:?} {url}: {output:?}");
    }
    let output = web.curl(&["-x", PROXY, "-r", "1000-1999"], "http://origin.test/file");
    assert!(output.stdout == file[1000..2000]);
    let output = web.curl(&["-x", PROXY, "-I"], "http://origin.test/file");
    let head = String::from_utf8(output.stdout).unwrap();
    assert!(head.contains("Content-Length: 2000000\r\n"), "{head}");
    // With a length, and without; asked beforehand, and not.
    for (number, options) in [
        &["-T", &*upload][..],
        &["-T", &*upload, "-H", "Expect:"],
        &["-T", &*upload, "-H", "Transfer-Encoding: chunked"],
        &["-T", &*upload, "-H", "Expect: 100-continue"],
    ]
    .into_iter()
    .enumerate()
    {
        let url = format!("http://origin.test/up/{number}");
        let output = web.curl(
            &[options, &["-x", PROXY, "-w", "%{http_code}"]].concat(),
            &url,
        );
        assert_eq!(output.stdout, b"201", "{options:?}: {output:?}");
        let path = web.lab.scratch().path().join(format!("www/up/{number}"));
        assert!(fs::read(path).unwrap() == file, "{options:?}");
    }
    let absent = web.curl(
        &["-x", PROXY, "-w", "%{http_code}", "-o", "/dev/null"],
        "http://origin.test/no",
    );
    assert_eq!(absent.stdout, b"404");
    web.daemon.wait_access_line(|line| {
        line.contains("TCP_MISS/404")
            && line.ends_with("GET http://origin.test/no - HIER_DIRECT/10.77.2.1 text/html")
    });
}

/// Many at once, over connections that are kept.
#[test]
fn many_at_once() {
    require_root_or_skip!();
    require_tool_or_skip!("nginx", "-v");
    let web = Web::new("");
    let file = web.serve("file", 2, 100_000);
    let options = [
        "-x",
        PROXY,
        "-Z",
        "--parallel-immediate",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_download}\\n",
    ];
    let output = web.curl(&options, "http://origin.test/file?[1-200]");
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = format!("200 {}", file.len());
    let good = text.lines().filter(|line| line.ends_with(&wanted)).count();
    assert_eq!(good, 200, "{text}");
}

#[test]
fn a_user_is_asked_for() {
    require_root_or_skip!();
    require_tool_or_skip!("nginx", "-v");
    // htpasswd -nb anna secret
    let passwords = "anna:$apr1$saltSALT$WDJf6wM5.GXmxK8jyj/4v.\n";
    let directory = proxy_tests::scratch::Scratch::new();
    let path = directory.write("passwords", passwords);
    let config = format!(
        "[auth]\nhtpasswd = {:?}\n[[rule]]\naction = \"allow\"\nuser = [\"*\"]\nhost = [\"origin.test\"]\n",
        path.display().to_string()
    );
    let web = Web::new(&config);
    let file = web.serve("file", 3, 1000);
    let status = |options: &[&str]| {
        let all = [
            options,
            &["-x", PROXY, "-w", "%{http_code}", "-o", "/dev/null"],
        ]
        .concat();
        web.curl(&all, "http://origin.test/file").stdout
    };
    assert_eq!(status(&[]), b"407");
    assert_eq!(status(&["--proxy-user", "anna:wrong"]), b"407");
    for options in [
        &["--proxy-user", "anna:secret"][..],
        &["--proxy-user", "anna:secret", "--proxy-anyauth"],
        &["--proxy-user", "anna:secret", "--proxytunnel"],
    ] {
        let output = web.curl(
            &[options, &["-x", PROXY]].concat(),
            "http://origin.test/file",
        );
        assert!(output.stdout == file, "{options:?}: {output:?}");
    }
    web.daemon
        .wait_access_line(|line| line.contains("TCP_MISS/200") && line.contains(" anna "));
}

#[test]
fn git_clones_over_http() {
    require_root_or_skip!();
    require_tool_or_skip!("nginx", "-v");
    require_tool_or_skip!("git", "--version");
    let web = Web::new("");
    let at = |name: &str| web.lab.scratch().path().join(name).display().to_string();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let who = [
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@origin.test",
            "-c",
            "init.defaultBranch=main",
        ];
        run(command.args(who).args(arguments));
    };
    git(&["init", "-q", &at("source")]);
    let content = Payload::new(78).bytes(300_000);
    web.lab.scratch().write("source/large", &content);
    git(&["-C", &at("source"), "add", "large"]);
    git(&["-C", &at("source"), "commit", "-q", "-m", "A large file"]);
    git(&["clone", "-q", "--bare", &at("source"), &at("www/bare.git")]);
    git(&["-C", &at("www/bare.git"), "update-server-info"]);
    let mut command = web.lab.client.command("git");
    command
        .env("http_proxy", PROXY)
        .env("HOME", web.lab.scratch().path());
    succeed(command.args(["clone", "-q", "http://origin.test/bare.git", &at("clone")]));
    assert!(fs::read(at("clone/large")).unwrap() == content);
}

/// A repository of one package, which is asked for as on any machine behind a proxy.
#[test]
fn apt_get_fetches_a_package() {
    require_root_or_skip!();
    require_tool_or_skip!("nginx", "-v");
    require_tool_or_skip!("apt-get", "--version");
    let web = Web::new("");
    let scratch = web.lab.scratch();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let control = "Package: parcel\nVersion: 1.0\nArchitecture: all\nMaintainer: Test <test@origin.test>\n\
                   Description: a parcel\n";
    scratch.write("tree/DEBIAN/control", control);
    scratch.write(
        "tree/usr/share/parcel/content",
        Payload::new(79).bytes(200_000),
    );
    fs::create_dir_all(at("www/repo")).unwrap();
    run(Command::new("dpkg-deb").args([
        "-Znone",
        "--build",
        &at("tree"),
        &at("www/repo/parcel.deb"),
    ]));
    let package = fs::read(at("www/repo/parcel.deb")).unwrap();
    let sum = succeed(Command::new("sha256sum").arg(at("www/repo/parcel.deb"))).stdout;
    let sum = String::from_utf8(sum).unwrap();
    let sum = sum.split(' ').next().unwrap();
    let index = format!(
        "{control}Filename: ./parcel.deb\nSize: {}\nSHA256: {sum}\n",
        package.len()
    );
    scratch.write("www/repo/Packages", index);
    scratch.write(
        "apt/sources.list",
        "deb [trusted=yes] http://origin.test/repo ./\n",
    );
    for directory in [
        "apt/lists/partial",
        "apt/cache/archives/partial",
        "apt/empty",
        "fetched",
    ] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    scratch.write("apt/status", "");
    let apt = |arguments: &[&str]| {
        let mut command = web.lab.client.command("apt-get");
        command.current_dir(at("fetched")).env("http_proxy", PROXY);
        for (option, value) in [
            ("Dir::Etc::sourcelist", at("apt/sources.list")),
            ("Dir::Etc::sourceparts", at("apt/empty")),
            ("Dir::State::lists", at("apt/lists")),
            ("Dir::State::status", at("apt/status")),
            ("Dir::Cache", at("apt/cache")),
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Retries", "0".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        succeed(command.args(arguments))
    };
    apt(&["update"]);
    apt(&["download", "parcel"]);
    let fetched = fs::read_dir(at("fetched"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert!(fs::read(fetched.path()).unwrap() == package);
    web.daemon
        .wait_access_line(|line| line.contains("GET http://origin.test/repo/./parcel.deb"));
}

/// A Squid as the parent is given URLs; where names are resolved here, tunnels.
#[test]
fn requests_go_through_a_parent() {
    require_root_or_skip!();
    require_tool_or_skip!("nginx", "-v");
    require_tool_or_skip!("squid", "--version");
    let lab = Lab::new();
    lab.origin.set_hosts(&[("10.77.2.1", "origin.test")]);
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let at = |port| SocketAddr::new(Family::V4.origin(), port);
    let _nginx = Nginx::start(&lab.origin, lab.scratch().path(), [at(80)]);
    let passwords = lab
        .scratch()
        .write("passwords", "anna:$apr1$saltSALT$WDJf6wM5.GXmxK8jyj/4v.\n");
    let log = lab.scratch().path().join("squid.log");
    let config = format!(
        "http_port 10.77.2.1:3128\nauth_param basic program /usr/lib/squid/basic_ncsa_auth {}\n\
         acl users proxy_auth REQUIRED\nhttp_access allow users\ncache deny all\naccess_log stdio:{}\n\
         pid_filename none\ncoredump_dir /\ncache_log /dev/null\npinger_enable off\n\
         visible_hostname squid.test\nshutdown_lifetime 1 second\n",
        passwords.display(),
        log.display()
    );
    let config = lab.scratch().write("squid.conf", config);
    let mut command = lab.origin.command("squid");
    command.args(["-N", "-f"]).arg(config);
    let _squid = Peer::listening(&lab.origin, &mut command, at(3128));
    let file = Payload::new(9).bytes(500_000);
    lab.scratch().write("www/file", &file);
    let daemon = configured(
        &lab,
        r#"
[parent.there]
url = "http://10.77.2.1:3128"
login = "anna:secret"
check = "1h"
[parent.here]
url = "http://10.77.2.1:3128"
login = "anna:secret"
check = "1h"
names = "here"
[parent.stranger]
url = "http://10.77.2.1:3128"
check = "1h"
[[route]]
via = ["here"]
path_regex = ["here"]
[[route]]
via = ["stranger"]
path_regex = ["stranger"]
[[route]]
via = ["there"]
"#,
    );
    let curl = |options: &[&str], url: &str| {
        let mut command = lab.client.command("curl");
        command.args(["-sS", "--max-time", "20", "-x", PROXY]);
        run_to_end(command.args(options).arg(url)).stdout
    };
    assert!(curl(&[], "http://origin.test/file") == file);
    assert!(curl(&[], "http://origin.test/file?here") == file);
    let upload = lab.scratch().write("upload", &file).display().to_string();
    let status = ["-w", "%{http_code}", "-o", "/dev/null"];
    let put = [&status[..], &["-T", &upload]].concat();
    assert_eq!(curl(&put, "http://origin.test/up/1"), b"201");
    assert!(fs::read(lab.scratch().path().join("www/up/1")).unwrap() == file);
    // It asks us for a login: that is not the client's business.
    assert_eq!(curl(&status, "http://origin.test/file?stranger"), b"502");
    daemon.wait_access_line(|line| {
        line.contains("TCP_MISS/200") && line.ends_with("FIRSTUP_PARENT/10.77.2.1 text/plain")
    });
    // It logs a tunnel when that ends.
    drop(daemon);
    let lines = wait_for("the end of the tunnel", PATIENCE, || {
        let lines = fs::read_to_string(&log).unwrap();
        lines.contains(" CONNECT ").then_some(lines)
    });
    assert!(lines.contains(" CONNECT 10.77.2.1:80 anna "), "{lines}");
    assert!(
        lines.contains(" GET http://origin.test/file anna "),
        "{lines}"
    );
}
