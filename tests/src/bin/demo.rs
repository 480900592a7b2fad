//! The shortest proof that it works: curl fetches a page through Underpass, in three network namespaces.
//!
//! Makes client, proxy and origin, runs the same command that everybody uses behind an HTTPS proxy, shows the
//! page's title, the proxy's access-log line and the engine that carried the bytes, and removes everything again.
//! Exits with 1 when anything is not as it should be.
#![expect(clippy::print_stdout, reason = "a demonstration talks to a person")]

use std::{net::SocketAddr, process::ExitCode};

use proxy_tests::{
    daemon::{Setup, run_to_end},
    lab::{Family, Lab},
    privilege::{namespaces_missing, sockmap_missing},
    tls::{Pages, TlsOrigin, page},
    tools,
};

/// About the size of the encyclopedia page that such demonstrations fetch.
const PAGE_BYTES: usize = 87_000;

const TITLE: &str = "Underpass demo";

fn main() -> ExitCode {
    if let Some(reason) = namespaces_missing() {
        eprintln!("the demo {reason}");
        return ExitCode::FAILURE;
    }
    if tools::missing("curl", &["--version"]).is_some() {
        eprintln!(
            "the demo needs curl: install it with your package manager, for instance `apt-get install curl`"
        );
        return ExitCode::FAILURE;
    }
    let require_kernel = std::env::args().any(|argument| argument == "--require-kernel");
    match demonstrate(require_kernel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("the demo failed: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(require_kernel: bool) -> Result<(), String> {
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let page = page(TITLE, PAGE_BYTES);
    let address = SocketAddr::new(Family::V4.origin(), 443);
    let pages = Pages::from([("/".to_owned(), page.clone())]);
    let origin = TlsOrigin::start(&lab.origin, &[address], &["origin.test"], pages);
    // A page is too short for `auto` to move it into the kernel, which is what there is to see.
    let missing = sockmap_missing();
    let engine = if missing.is_none() { "sockmap" } else { "auto" };
    let daemon = Setup::open(&lab).option("--engine", engine).start();
    println!(
        "Three network namespaces: client 10.77.1.1, proxy 10.77.1.2 and 10.77.2.2, origin 10.77.2.1."
    );
    for line in daemon.stderr_lines() {
        println!("underpass: {line}");
    }

    let proxy = format!("http://{}", Family::V4.proxy());
    let authority = origin.authority().display().to_string();
    println!(
        "\n$ https_proxy={proxy} curl --cacert {authority} https://origin.test/ | grep -o '<title>.*</title>'"
    );
    let mut curl = lab.client.command("curl");
    curl.env("https_proxy", &proxy)
        .env_remove("no_proxy")
        .env_remove("NO_PROXY");
    let output = run_to_end(curl.args(["-sS", "--cacert", &authority, "https://origin.test/"]));
    if !output.status.success() {
        return Err(format!(
            "curl: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    if output.stdout != page {
        return Err(format!(
            "{} bytes came instead of the page's {}",
            output.stdout.len(),
            page.len()
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let title = text
        .lines()
        .find(|line| line.starts_with("<title>"))
        .ok_or("the page has no title")?;
    println!("{title}");

    println!("\nThe proxy's access log:");
    let line = daemon.wait_access_line(|line| line.contains("origin.test:443"));
    println!("{line}");
    let record = daemon.wait_tunnel_records(1).remove(0);
    println!(
        "\nThe engine `{}` carried {} bytes to the origin and {} bytes back; {} of them never left the kernel.",
        record.engine, record.up, record.down, record.spliced
    );
    if require_kernel && let Some(missing) = missing {
        return Err(missing);
    }
    if engine == "sockmap" && (record.engine != "sockmap" || record.spliced == 0) {
        return Err("the kernel should have carried them".to_owned());
    }
    let logged = format!(
        " TCP_TUNNEL/200 {} CONNECT origin.test:443 - HIER_DIRECT/10.77.2.1 -",
        record.down + 39
    );
    if !line.ends_with(&logged) {
        return Err(format!("the access-log line should end in {logged:?}"));
    }
    if record.down < page.len() as u64 {
        return Err(format!("the page alone has {} bytes", page.len()));
    }
    Ok(())
}
