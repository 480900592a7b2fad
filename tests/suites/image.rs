//! The container image: run by podman with exactly what the manifests give it, with less, and as root.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use proxy_tests::{
    lab::{Family, Lab},
    privilege::skip,
    require_root_or_skip, require_sockmap_or_skip, require_tool_or_skip,
    tls::{Pages, TlsOrigin, page},
    transcript::Transcript,
};
use serde_json::Value;

use crate::kubernetes;

const IMAGE: &str = "localhost/underpass:test";

/// The image that was made for the tests.
fn archive() -> Option<PathBuf> {
    let directory = std::env::var_os("UNDERPASS_DIST")?;
    let mut files = fs::read_dir(directory).ok()?.flatten();
    let image = files.find(|file| file.file_name().to_string_lossy().ends_with("-image.tar"));
    Some(image?.path())
}

/// What the manifests give the container: user, capabilities, arguments.
fn given(overlay: &str) -> (String, String, Vec<String>) {
    let objects = kubernetes::overlay(overlay);
    let container = kubernetes::container(&objects);
    let words = |value: &Value| -> Vec<String> {
        let words = value.as_array().unwrap().iter();
        words
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    };
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(words(&security["capabilities"]["drop"]), ["ALL"]);
    let mounts = container["volumeMounts"].as_array().unwrap().iter();
    let mounts: Vec<_> = mounts
        .map(|mount| mount["mountPath"].as_str().unwrap())
        .collect();
    assert_eq!(mounts, ["/etc/underpass", "/run/underpass"]);
    (
        format!("{}:{}", security["runAsUser"], security["runAsGroup"]),
        words(&security["capabilities"]["add"]).join(","),
        words(&container["args"]),
    )
}

#[test]
fn it_runs_with_what_the_manifests_give_it_and_with_less() {
    require_root_or_skip!();
    require_sockmap_or_skip!();
    require_tool_or_skip!("podman", "--version");
    require_tool_or_skip!("crun", "--version");
    require_tool_or_skip!("kubectl", "version", "--client");
    require_tool_or_skip!("kubernetes-python", "-c", "import kubernetes_validate");
    require_tool_or_skip!("curl", "--version");
    let Some(archive) = archive() else {
        return skip(
            "UNDERPASS_DIST names no directory with an image; `cargo xtask test` makes one",
        );
    };
    let (user, capabilities, arguments) = given("least-privilege");
    let lab = Lab::new();
    let scratch = lab.scratch();
    let names = "10.77.2.1 origin.test\n127.0.0.1 localhost\n";
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let pages = Pages::from([("/".to_owned(), page("Through the image", 2_000))]);
    let address = SocketAddr::new(Family::V4.origin(), 443);
    let origin = TlsOrigin::start(&lab.origin, &[address], &["origin.test"], pages);
    let config = "access_log = \"-\"\nengine = \"auto\"\nallow_destination = [\"10.77.2.0/24\"]\n";
    let config = scratch.write("config/underpass.toml", config);
    let hosts = scratch.write("hosts", names);
    let store = scratch.path().join("store");
    fs::create_dir(&store).unwrap();

    let mut run = lab.proxy.command("unshare");
    run.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
    ])
    .arg("suites/image/run.sh")
    .args([
        &store,
        &archive,
        Path::new(IMAGE),
        config.parent().unwrap(),
        &hosts,
    ])
    .arg("https://origin.test/")
    .arg(origin.authority())
    .args([user, capabilities])
    .args(arguments);
    let transcript = Transcript::of(&mut run);
    let used = [
        "<title>Through the image</title>",
        "TCP_TUNNEL/200",
        "ended with 0",
    ];
    for (name, expected) in [
        (
            "image",
            &[
                r#""User":"65532:65532""#,
                r#""org.opencontainers.image.title":"Underpass""#,
                r#""CMD","/usr/bin/underpass","status""#,
            ][..],
        ),
        (
            "files",
            &[
                "usr/bin/underpass",
                "etc/ssl/certs/ca-certificates.crt",
                "etc/underpass/underpass.toml",
                "LICENSE-MIT",
            ],
        ),
        ("bill", &["CycloneDX", "pkg:cargo/aya@"]),
        ("least", &["sockmap  yes"]),
        ("none", &["run as root, or with the capabilities CAP_BPF"]),
        ("seccomp", &["a seccomp filter forbids bpf(2)"]),
        ("no-new-privileges", &[]),
        ("root", &[]),
        ("default", &["is valid"]),
    ] {
        let running = ["least", "none", "seccomp", "no-new-privileges", "root"].contains(&name);
        for expected in expected.iter().chain(used.iter().filter(|_| running)) {
            transcript.expect(name, expected);
        }
    }
    // The program alone runs in it: there is nothing to be had from it but that.
    let programs = transcript
        .part("files")
        .lines()
        .filter(|line| line.starts_with("-rwx"));
    assert_eq!(programs.count(), 1);
}
