//! Other people's clients, as they are installed: each fetches from a TLS origin through the proxy.

use std::{
    net::SocketAddr,
    process::{Command, Output},
};

use proxy_tests::{
    daemon::{Daemon, Setup, run_to_end},
    lab::{Family, Lab},
    netns::run,
    require_root_or_skip, require_tool_or_skip,
    tls::{Pages, TlsOrigin, files_below, page},
};

const PROXY: &str = "http://10.77.1.2:3128";
const PROXY_V6: &str = "http://[fd77:1::2]:3128";

/// A lab with a TLS origin named `origin.test` on port 443, and a daemon in front of it.
struct Web {
    // Fields drop in this order.
    daemon: Daemon,
    origin: TlsOrigin,
    lab: Lab,
}

impl Web {
    fn new(pages: Pages) -> Self {
        let lab = Lab::new();
        lab.proxy
            .set_hosts(&[("10.77.2.1", "origin.test"), ("fd77:2::1", "origin6.test")]);
        let addresses =
            [Family::V4, Family::V6].map(|family| SocketAddr::new(family.origin(), 443));
        let names = ["origin.test", "origin6.test", "10.77.2.1", "fd77:2::1"];
        let origin = TlsOrigin::start(&lab.origin, &addresses, &names, pages);
        let daemon = Setup::open(&lab).start();
        Self {
            daemon,
            origin,
            lab,
        }
    }

    /// An article of the size that people fetch.
    fn with_article() -> Self {
        Self::new(Pages::from([("/".to_owned(), article())]))
    }

    /// `program` in the client's namespace, without the caller's own proxies and authorities.
    fn command(&self, program: &str) -> Command {
        let mut command = self.lab.client.command(program);
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        for name in [
            "CURL_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "REQUESTS_CA_BUNDLE",
            "SSL_CERT_DIR",
            "SSL_CERT_FILE",
        ] {
            command.env_remove(name);
        }
        command.env("HOME", self.origin.scratch().path());
        command
    }

    fn authority(&self) -> &str {
        self.origin.authority().to_str().unwrap()
    }

    /// All tunnels so far took `bytes` or more down together, and the kernel carried of it, where it can.
    fn expect_carried(&self, tunnels: usize, bytes: u64) {
        let records = self.daemon.wait_tunnel_records(tunnels);
        let down = records.iter().map(|record| record.down).sum::<u64>();
        assert!(down >= bytes, "{down} bytes came down: {records:#?}");
        let spliced = records.iter().map(|record| record.spliced).sum::<u64>();
        assert!(
            self.daemon.engine().as_deref() != Some("sockmap") || spliced > 0,
            "{records:#?}"
        );
    }
}

fn article() -> Vec<u8> {
    page("Tunnels", 300_000)
}

fn succeed(command: &mut Command) -> Output {
    let output = run_to_end(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// curl with these options gets the article, by this version of HTTP.
fn curl(options: &[&str], url: &str, version: &str) {
    require_root_or_skip!();
    require_tool_or_skip!("curl", "--version");
    let web = Web::with_article();
    let mut command = web.command("curl");
    command
        .args(["-sS", "--cacert", web.authority(), "-D", "/dev/stderr"])
        .args(options)
        .arg(url);
    let output = succeed(&mut command);
    assert!(
        output.stdout == article(),
        "{} bytes instead of the article",
        output.stdout.len()
    );
    let headers = String::from_utf8_lossy(&output.stderr);
    assert!(headers.contains(&format!("\n{version} 200")), "{headers}");
    web.expect_carried(1, article().len() as u64);
}

#[test]
fn curl_fetches_over_http_1_1() {
    curl(
        &["-x", PROXY, "--http1.1"],
        "https://origin.test/",
        "HTTP/1.1",
    );
}

#[test]
fn curl_fetches_over_http_2() {
    curl(&["-x", PROXY, "--http2"], "https://origin.test/", "HTTP/2");
}

#[test]
fn curl_reaches_the_proxy_over_ipv6() {
    curl(
        &["-x", PROXY_V6, "--http1.1"],
        "https://origin.test/",
        "HTTP/1.1",
    );
}

#[test]
fn curl_reaches_an_ipv6_origin() {
    curl(&["-x", PROXY, "--http2"], "https://[fd77:2::1]/", "HTTP/2");
}

#[test]
fn curl_takes_the_proxy_from_the_environment() {
    require_root_or_skip!();
    require_tool_or_skip!("curl", "--version");
    let web = Web::with_article();
    let mut command = web.command("curl");
    command.env("https_proxy", PROXY).args([
        "-sS",
        "--cacert",
        web.authority(),
        "https://origin.test/",
    ]);
    assert!(succeed(&mut command).stdout == article());
}

#[test]
fn curl_fetches_many_at_once() {
    require_root_or_skip!();
    require_tool_or_skip!("curl", "--version");
    let web = Web::with_article();
    let mut command = web.command("curl");
    command.args([
        "-sS",
        "-x",
        PROXY,
        "--cacert",
        web.authority(),
        "--http1.1",
        "-Z",
        "--parallel-immediate",
    ]);
    command.args([
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_download}\\n",
        "https://origin.test/?[1-40]",
    ]);
    command.args(["--remove-on-error"]);
    let output = succeed(&mut command);
    let text = String::from_utf8_lossy(&output.stdout);
    // Only the first URL is sent to /dev/null; the others go to standard output, between the lines we look for.
    let wanted = format!("200 {}", article().len());
    assert_eq!(
        text.lines().filter(|line| line.ends_with(&wanted)).count(),
        40
    );
}

#[test]
fn curl_shows_the_status_of_a_refusal() {
    require_root_or_skip!();
    require_tool_or_skip!("curl", "--version");
    let web = Web::with_article();
    let mut command = web.command("curl");
    command.args([
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_connect}",
        "-x",
        PROXY,
        "https://10.77.1.1/",
    ]);
    let output = run_to_end(&mut command);
    assert_eq!(output.status.code(), Some(56), "{output:?}");
    assert_eq!(output.stdout, b"403");
}

#[test]
fn wget_fetches_the_article() {
    require_root_or_skip!();
    require_tool_or_skip!("wget", "--version");
    let web = Web::with_article();
    let mut command = web.command("wget");
    command
        .env("https_proxy", PROXY)
        .args(["-q", "-O", "-", "--ca-certificate", web.authority()]);
    assert!(succeed(command.arg("https://origin.test/")).stdout == article());
    web.expect_carried(1, article().len() as u64);
}

#[test]
fn openssl_shakes_hands_through_the_tunnel() {
    require_root_or_skip!();
    require_tool_or_skip!("openssl", "version");
    let web = Web::with_article();
    let mut command = web.command("openssl");
    command.args([
        "s_client",
        "-proxy",
        "10.77.1.2:3128",
        "-connect",
        "origin.test:443",
        "-verify_return_error",
    ]);
    command.args(["-servername", "origin.test", "-CAfile", web.authority()]);
    let output = succeed(&mut command);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
    web.expect_carried(1, 500);
}

#[test]
fn git_clones_a_repository() {
    require_root_or_skip!();
    require_tool_or_skip!("git", "--version");
    let work = proxy_tests::scratch::Scratch::new();
    let at = |name: &str| work.path().join(name).display().to_string();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args([
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@origin.test",
            "-c",
            "init.defaultBranch=main",
        ]);
        run(command.args(arguments));
    };
    git(&["init", "-q", &at("source")]);
    let content = proxy_tests::payload::Payload::new(77).bytes(400_000);
    work.write("source/large", &content);
    git(&["-C", &at("source"), "add", "large"]);
    git(&["-C", &at("source"), "commit", "-q", "-m", "A large file"]);
    git(&["clone", "-q", "--bare", &at("source"), &at("bare.git")]);
    git(&["-C", &at("bare.git"), "update-server-info"]);

    let web = Web::new(files_below(&work.path().join("bare.git"), "/bare.git"));
    let ca = format!("http.sslCAInfo={}", web.authority());
    let proxy = format!("http.proxy={PROXY}");
    let through = |arguments: &[&str]| {
        let mut command = web.command("git");
        succeed(command.args(["-c", &ca, "-c", &proxy]).args(arguments))
    };
    let refs = through(&["ls-remote", "https://origin.test/bare.git"]);
    assert!(
        String::from_utf8_lossy(&refs.stdout).contains("refs/heads/main"),
        "{refs:?}"
    );
    through(&["clone", "-q", "https://origin.test/bare.git", &at("clone")]);
    assert!(std::fs::read(work.path().join("clone/large")).unwrap() == content);
    web.expect_carried(2, 400_000);
}

#[test]
fn python_requests_fetches_the_article() {
    require_root_or_skip!();
    require_tool_or_skip!("python3", "-c", "import requests");
    let web = Web::with_article();
    let program = "import sys, requests\n\
                   session = requests.Session()\n\
                   for _ in range(3):\n\
                   \x20   reply = session.get('https://origin.test/', proxies={'https': sys.argv[1]}, verify=sys.argv[2])\n\
                   \x20   reply.raise_for_status()\n\
                   sys.stdout.buffer.write(reply.content)\n";
    let mut command = web.command("python3");
    let output = succeed(command.args(["-c", program, PROXY, web.authority()]));
    assert!(output.stdout == article());
    // One connection carried all three.
    web.expect_carried(1, 3 * article().len() as u64);
}
