//! What is for Kubernetes: every overlay and the chart, rendered, held against Kubernetes' schemas, and against each other.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use proxy_tests::{daemon::binary, require_tool_or_skip, scratch::Scratch};
use regex_lite::Regex;
use serde_json::{Value, json};

/// The oldest version that has all that is used, and newer ones.
const VERSIONS: [&str; 3] = ["1.26", "1.32", "1.37"];

const OVERLAYS: [&str; 2] = ["least-privilege", "privileged"];

const CHART: &str = "../deploy/helm/underpass";

/// Returns from the calling test where what renders and checks is not here.
macro_rules! require_kubernetes_or_skip {
    () => {
        require_tool_or_skip!("kubectl", "version", "--client");
        require_tool_or_skip!("helm", "version");
        require_tool_or_skip!("kubernetes-python", "-c", "import kubernetes_validate");
    };
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("the tools are here");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The manifests as objects, after each was held against its schema.
fn objects(manifests: &str) -> Vec<Value> {
    let mut check = Command::new("kubernetes-python")
        .arg("suites/kubernetes/objects.py")
        .args(VERSIONS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(manifests.as_bytes())
        .unwrap();
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{manifests}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn kustomize(directory: &Path) -> Vec<Value> {
    let mut kustomize = Command::new("kubectl");
    objects(&output(kustomize.arg("kustomize").arg(directory)))
}

/// An overlay that is shipped.
pub(crate) fn overlay(name: &str) -> Vec<Value> {
    kustomize(&Path::new("../deploy/kubernetes/overlays").join(name))
}

fn helm(arguments: &[&str]) -> Output {
    Command::new("helm")
        .args(["template", "underpass", CHART, "--namespace", "underpass"])
        .args(arguments)
        .output()
        .unwrap()
}

fn chart(arguments: &[&str]) -> Vec<Value> {
    let output = helm(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    objects(&String::from_utf8(output.stdout).unwrap())
}

/// The only object of this kind, by its name where there are several.
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let one = found.next();
    assert!(found.next().is_none(), "several of {kind} {name}");
    one.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The container of the proxy.
pub(crate) fn container(objects: &[Value]) -> &Value {
    &one(objects, "DaemonSet", "underpass")["spec"]["template"]["spec"]["containers"][0]
}

/// In an order that does not depend on who rendered them.
fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.retain(|object| object["kind"] != "Namespace");
    objects.sort_by_key(|object| (object["kind"].to_string(), object["metadata"].to_string()));
    objects
}

#[test]
fn each_overlay_is_what_the_chart_makes() {
    require_kubernetes_or_skip!();
    for name in OVERLAYS {
        let security = format!("security={name}");
        let made = sorted(chart(&["--set", &security]));
        let written = sorted(overlay(name));
        assert_eq!(made.len(), written.len(), "{name}");
        for (made, written) in made.iter().zip(&written) {
            assert_eq!(made, written, "{name}");
        }
    }
}

#[test]
fn monitoring_can_be_added_to_an_overlay_and_in_the_chart() {
    require_kubernetes_or_skip!();
    // As somebody would who keeps a copy.
    let here = Scratch::new();
    output(
        Command::new("cp")
            .args(["-r", "../deploy/kubernetes/."])
            .arg(here.path()),
    );
    here.write(
        "mine/kustomization.yaml",
        "resources: [../overlays/least-privilege]\ncomponents: [../components/monitoring]\n",
    );
    let written = sorted(kustomize(&here.path().join("mine")));
    assert_eq!(
        sorted(chart(&["--set", "serviceMonitor.enabled=true"])),
        written
    );
    let monitor = one(&written, "ServiceMonitor", "underpass");
    let service = one(&written, "Service", "underpass-metrics");
    for (label, value) in monitor["spec"]["selector"]["matchLabels"]
        .as_object()
        .unwrap()
    {
        assert_eq!(&service["metadata"]["labels"][label], value);
    }
    let endpoint = &monitor["spec"]["endpoints"][0]["port"];
    assert_eq!(endpoint, &service["spec"]["ports"][0]["name"]);
}

#[test]
fn every_value_of_the_chart_is_heard() {
    require_kubernetes_or_skip!();
    let here = Scratch::new();
    let seed = fs::read_to_string("../deploy/istio/proxy.conf").unwrap();
    let text = json!({
        "image": { "repository": "registry.test/proxy", "tag": "9.9", "pullPolicy": "Always" },
        "imagePullSecrets": [{ "name": "pull" }],
        "squidConf": seed,
        "htpasswdSecret": "people",
        "port": 8080,
        "metricsPort": 9999,
        "metricsAddress": "[::]",
        "extraArgs": ["--engine=splice"],
        "env": [{ "name": "RUST_LOG", "value": "debug" }],
        "service": { "enabled": false },
        "egressOnly": { "namespaces": ["shop", "bank"], "nodes": "10.1.0.0/16" },
        "resources": { "requests": { "cpu": "1" } },
        "priorityClassName": "",
        "tolerations": [],
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "affinity": { "nodeAffinity": {} },
        "podAnnotations": { "a": "b" },
        "terminationGracePeriodSeconds": 90,
        "maxUnavailable": "10%",
    });
    let values = here.write("values.yaml", text.to_string());
    let made = chart(&["--values", values.to_str().unwrap()]);
    assert!(!made.iter().any(|object| object["kind"] == "Service"));
    let config = one(&made, "ConfigMap", "underpass");
    assert_eq!(config["data"], json!({ "squid.conf": seed }));
    let daemon = one(&made, "DaemonSet", "underpass");
    assert_eq!(
        daemon["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
        "10%"
    );
    let template = &daemon["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"], json!({ "a": "b" }));
    let pod = &template["spec"];
    assert_eq!(pod["imagePullSecrets"], json!([{ "name": "pull" }]));
    assert_eq!(pod["terminationGracePeriodSeconds"], 90);
    assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux");
    assert_eq!(pod["affinity"], json!({ "nodeAffinity": {} }));
    assert!(pod.get("priorityClassName").is_none());
    assert!(pod.get("tolerations").is_none());
    assert_eq!(
        pod["volumes"][0]["projected"]["sources"][1]["secret"]["name"],
        "people"
    );
    let container = container(&made);
    assert_eq!(container["image"], "registry.test/proxy:9.9");
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(
        container["args"],
        json!([
            "run",
            "--squid-conf=/etc/underpass/squid.conf",
            "--access-log=-",
            "--metrics-listen=[::]:9999",
            "--engine=splice"
        ])
    );
    assert_eq!(container["ports"][0]["containerPort"], 8080);
    assert_eq!(container["ports"][1]["containerPort"], 9999);
    assert_eq!(container["env"][0]["name"], "RUST_LOG");
    assert_eq!(container["resources"]["requests"]["cpu"], "1");
    for namespace in ["shop", "bank"] {
        let policy = made
            .iter()
            .find(|object| object["metadata"]["namespace"] == namespace)
            .unwrap();
        let proxy = &policy["spec"]["egress"][0];
        assert_eq!(proxy["to"][0]["ipBlock"]["cidr"], "10.1.0.0/16");
        assert_eq!(proxy["ports"][0]["port"], 8080);
    }
    let lint = Command::new("helm")
        .args(["lint", "--strict", CHART])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&lint.stdout);
    assert!(lint.status.success(), "{said}");
}

#[test]
fn values_that_make_no_sense_are_refused() {
    require_kubernetes_or_skip!();
    for (arguments, part) in [
        (["--set", "security=some"], "security"),
        (["--set", "squidconf=x"], "squidconf"),
        (["--set", "port=http"], "port"),
        (
            ["--set", "egressOnly.namespaces={shop}"],
            "egressOnly.nodes is needed",
        ),
    ] {
        let output = helm(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

#[test]
fn the_policy_by_itself_is_the_chart_s() {
    require_kubernetes_or_skip!();
    let text = fs::read_to_string("../deploy/kubernetes/egress-only/networkpolicy.yaml").unwrap();
    let written = objects(&text);
    let made = chart(&[
        "--set",
        "egressOnly.namespaces={shop}",
        "--set",
        "egressOnly.nodes=10.0.0.0/16",
    ]);
    let made = one(&made, "NetworkPolicy", "egress-by-underpass-only");
    assert_eq!(made["spec"], written[0]["spec"]);
}

#[test]
fn the_configuration_is_accepted() {
    require_kubernetes_or_skip!();
    for name in ["least-privilege", "capture"] {
        let objects = overlay(name);
        let config = &one(&objects, "ConfigMap", "underpass")["data"];
        accept(config);
    }
}

fn accept(config: &Value) {
    let here = Scratch::new();
    let file = here.write("underpass.toml", config["underpass.toml"].as_str().unwrap());
    let mut check = Command::new(binary());
    let said = output(check.arg("check").arg("--config").arg(&file));
    assert!(said.contains("is valid: 0 rules, no warnings"), "{said}");
}

/// Who is to capture what pods connect sees the node's processes and cgroups.
#[test]
fn the_overlay_that_captures_sees_the_node() {
    require_kubernetes_or_skip!();
    let objects = overlay("capture");
    let pod = &one(&objects, "DaemonSet", "underpass")["spec"]["template"]["spec"];
    assert_eq!(pod["hostPID"], true);
    let container = container(&objects);
    assert_eq!(container["securityContext"]["privileged"], true);
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mount = mounts
        .iter()
        .find(|mount| mount["name"] == "cgroups")
        .unwrap();
    let config = one(&objects, "ConfigMap", "underpass")["data"]["underpass.toml"]
        .as_str()
        .unwrap();
    let root = format!("root = {}", mount["mountPath"]);
    assert!(config.contains(&root), "no {root} in {config}");
}

/// The chart, the manifests and what is written about them name the version that is built here.
#[test]
fn the_version_is_this_one() {
    let version = env!("CARGO_PKG_VERSION");
    let named = Regex::new(r"underpass[:-](\d+\.\d+\.\d+)").unwrap();
    for (file, count) in [
        ("../README.md", 2),
        ("../deploy/kubernetes/README.md", 1),
        ("../deploy/kubernetes/base/daemonset.yaml", 1),
        ("../deploy/istio/README.md", 1),
        ("../deploy/istio/underpass.yaml", 1),
    ] {
        let text = fs::read_to_string(file).unwrap();
        let versions: Vec<_> = named
            .captures_iter(&text)
            .map(|found| found[1].to_owned())
            .collect();
        assert_eq!(versions, vec![version; count], "{file}");
    }
    let chart = fs::read_to_string(Path::new(CHART).join("Chart.yaml")).unwrap();
    for name in ["version", "appVersion"] {
        let line = format!("\n{name}: {version}\n");
        assert!(chart.contains(&line), "{name} in {chart}");
    }
}

/// The manifests that lead a mesh's pods through the proxy, by hand as the page that they follow has it.
#[test]
fn the_mesh_s_manifests_fit_the_page() {
    require_kubernetes_or_skip!();
    let read = |name: &str| fs::read_to_string(Path::new("../deploy/istio").join(name)).unwrap();
    let proxy = objects(&read("underpass.yaml"));
    let spec = &proxy[0]["spec"]["template"]["spec"];
    // As `kubectl create configmap --from-file=squid.conf=./proxy.conf` puts it there; suite `mesh` runs it with that.
    assert_eq!(spec["volumes"][0]["configMap"]["name"], "proxy-configmap");
    let pod = &spec["containers"][0];
    assert_eq!(pod["volumeMounts"][0]["mountPath"], "/etc/squid");
    let arguments = pod["args"].as_array().unwrap();
    let expected = json!([
        "run",
        "--squid-conf=/etc/squid/squid.conf",
        "--access-log=-"
    ]);
    assert!(
        arguments.starts_with(expected.as_array().unwrap()),
        "{arguments:?}"
    );

    // What is added for the kernel engine is what the overlay gives.
    let patch = Scratch::new();
    patch.write("underpass.yaml", read("underpass.yaml"));
    patch.write("kernel-engine.yaml", read("kernel-engine.yaml"));
    patch.write(
        "kustomization.yaml",
        "resources: [underpass.yaml]\n\
         patches: [{ path: kernel-engine.yaml }]\n",
    );
    let patched = kustomize(patch.path());
    let deployment = one(&patched, "Deployment", "underpass");
    let given = &deployment["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    let overlay = overlay("least-privilege");
    let wanted = &container(&overlay)["securityContext"];
    assert_eq!(given["capabilities"], wanted["capabilities"]);
    assert_eq!(
        given["allowPrivilegeEscalation"],
        wanted["allowPrivilegeEscalation"]
    );

    objects(&read("sleep.yaml"));
    let entry = read("serviceentry.yaml");
    let entry = objects(
        &entry
            .replace("$PROXY_IP", "10.0.0.7")
            .replace("$PROXY_PORT", "3128"),
    );
    assert_eq!(entry[0]["kind"], "ServiceEntry");
    assert_eq!(entry[0]["spec"]["addresses"], json!(["10.0.0.7/32"]));
    assert_eq!(entry[0]["spec"]["ports"][0]["number"], 3128);
    assert_eq!(entry[0]["spec"]["ports"][0]["protocol"], "TCP");
}
