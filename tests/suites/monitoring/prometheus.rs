//! The dashboard and the alert rules, by a Prometheus that scrapes the proxy.

use std::{
    fs,
    net::TcpStream,
    process::{Child, Stdio},
};

use proxy_tests::{
    deadline::{PATIENCE, wait_for},
    lab::Lab,
    require_root_or_skip, require_tool_or_skip,
};
use serde_json::Value;

use crate::admin::{eventful, exchange, let_everything_happen};

/// A Prometheus that ends with its test.
struct Prometheus<'lab> {
    lab: &'lab Lab,
    child: Child,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'lab> Prometheus<'lab> {
    fn start(lab: &'lab Lab) -> Self {
        let rules = fs::canonicalize("../deploy/monitoring/alerts.yaml").unwrap();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 500ms}}\n\
             rule_files: [{:?}]\n\
             scrape_configs:\n- job_name: underpass\n  static_configs:\n  - targets: [\"127.0.0.1:9129\"]\n",
            rules.to_str().unwrap()
        );
        let config = lab.scratch().write("prometheus.yaml", config);
        let child = lab
            .proxy
            .command("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                lab.scratch().path().join("tsdb").display()
            ))
            .args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { lab, child }
    }

    /// What its API has to say, once it answers.
    fn ask(&self, path: &str) -> Option<Value> {
        let stream = self
            .lab
            .proxy
            .run_in(|| TcpStream::connect("127.0.0.1:9090"))
            .ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let (_, body) = exchange(stream, &request);
        serde_json::from_str(&body).ok()
    }

    /// The samples that an expression has now.
    fn query(&self, expression: &str) -> Option<Vec<Value>> {
        let escaped: Vec<String> = expression
            .bytes()
            .map(|byte| format!("%{byte:02x}"))
            .collect();
        let path = format!("/api/v1/query?query={}", escaped.concat());
        let answer = self.ask(&path)?;
        assert_eq!(answer["status"], "success", "{expression}: {answer:#}");
        answer["data"]["result"].as_array().cloned()
    }

    /// The alerts that are up, and that every rule can be judged.
    fn alerts(&self) -> Option<Vec<String>> {
        let answer = self.ask("/api/v1/rules")?;
        let groups = answer["data"]["groups"].as_array()?;
        let rules: Vec<&Value> = groups
            .iter()
            .filter_map(|group| group["rules"].as_array())
            .flatten()
            .collect();
        assert!(rules.len() > 5, "{answer:#}");
        let mut up = Vec::new();
        for rule in rules {
            let health = rule["health"].as_str()?;
            assert_ne!(health, "err", "{rule:#}");
            if health != "ok" {
                return None;
            }
            if rule["state"] == "firing" {
                up.push(rule["name"].as_str()?.to_owned());
            }
        }
        Some(up)
    }
}

/// Every panel has something to draw where everything has happened once, and the alert for what has happened is up.
#[test]
fn dashboard_and_rules_hold_with_prometheus() {
    require_root_or_skip!();
    require_tool_or_skip!("prometheus", "--version");
    let lab = Lab::new();
    let daemon = eventful(&lab, "[admin]\nmetrics_listen = \"127.0.0.1:9129\"\n");
    let prometheus = Prometheus::start(&lab);
    wait_for("a scrape", PATIENCE, || {
        let ready = prometheus.query("underpass_ready")?;
        (ready.first()?["value"][1] == "1").then_some(())
    });

    let_everything_happen(&lab, &daemon);
    // And a configuration is refused.
    lab.scratch().write("underpass.toml", "listen = 7\n");
    assert!(!daemon.ask(&["reload"]).status.success());

    let text = fs::read_to_string("../deploy/monitoring/dashboard.json").unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut drawn = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression
                .replace("$instance", ".*")
                .replace("$__rate_interval", "30s");
            let what = format!("something in {}: {expression}", panel["title"]);
            wait_for(&what, PATIENCE, || {
                let samples = prometheus.query(&expression)?;
                (!samples.is_empty()).then_some(())
            });
            drawn += 1;
        }
    }
    assert!(drawn > 20, "{drawn}");
    let refused = wait_for("alerts", PATIENCE, || {
        prometheus.alerts().filter(|alerts| !alerts.is_empty())
    });
    assert_eq!(refused, ["UnderpassConfigurationRefused"]);
}
