//! The status page in a browser.

use std::io::Write as _;

use proxy_tests::{
    daemon::{Setup, run_to_end},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    origin::Origin,
    require_root_or_skip, require_tool_or_skip,
};
use regex_lite::Regex;

use crate::{admin::get, scene::client};

const BROWSER: &str = "chromium-headless-shell";

/// The text in the element with this name, without the elements in it.
fn text_of(page: &str, id: &str) -> String {
    let element = Regex::new(&format!(r#"(?s)<(\w+)[^>]* id="{id}"[^>]*>(.*?)</"#)).unwrap();
    let found = element
        .captures(page)
        .unwrap_or_else(|| panic!("no {id} in {page}"));
    let tags = Regex::new("<[^>]*>").unwrap();
    tags.replace_all(&found[2], " ").trim().to_owned()
}

/// With what there is, and what was refused; nothing is asked of anybody else, and nothing goes wrong.
#[test]
fn a_browser_shows_what_is_open() {
    require_root_or_skip!();
    require_tool_or_skip!(BROWSER, "--version");
    let lab = Lab::new();
    let config = "[admin]\nlisten = \"127.0.0.1:9128\"\n[[rule]]\nname = \"no-ads\"\naction = \"deny\"\n\
                  host = [\"ads.test\"]\n";
    let daemon = Setup::open(&lab).config(&lab, config).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let stream = client(&lab).tunnel(&origin.target());
    let mut server = origin.accept();
    server.write_all(&[7; 1234]).unwrap();
    client(&lab).refusal("ads.test:443");
    client(&lab).refusal("ads.test:443");
    wait_for("the bytes", PATIENCE, || {
        (get(&daemon, "/status")["down"] == 1234).then_some(())
    });

    let profile = lab.scratch().path().join("browser");
    let mut browser = lab.proxy.command(BROWSER);
    // As root there is no sandbox; it sees nothing but our own page.
    browser
        .args(["--no-sandbox", "--disable-gpu", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(["--virtual-time-budget=4000", "--dump-dom"])
        .arg("http://127.0.0.1:9128/");
    let output = run_to_end(&mut browser);
    let page = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("CONSOLE"), "{said}");
    assert!(page.contains("data-looked=\"yes\""), "{page}\n{said}");

    assert_eq!(text_of(&page, "state"), "ready");
    assert_eq!(text_of(&page, "tunnels"), "1");
    assert_eq!(text_of(&page, "down-total"), "1.23 kB in all");
    assert_eq!(text_of(&page, "refused"), "2");
    assert_eq!(text_of(&page, "shown"), "1 open");
    assert!(page.contains("role=\"alert\" hidden"), "{page}");
    assert_eq!(text_of(&page, "refusals"), "no-ads");
    let rows = page.split("id=\"rows\">").nth(1).unwrap();
    let rows = rows.split("</tbody>").next().unwrap();
    assert_eq!(rows.matches("<tr>").count(), 1, "{rows}");
    for cell in [&origin.target(), "1.23 kB", "copy"] {
        assert!(rows.contains(&format!(">{cell}</td>")), "{cell} in {rows}");
    }
    let chart = page.split("id=\"chart\"").nth(1).unwrap();
    assert!(chart.matches("<polyline").count() == 2, "{page}");
    drop(stream);
}
