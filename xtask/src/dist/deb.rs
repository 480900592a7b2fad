//! The Debian package: staged here, put together by dpkg-deb.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::{Effort, VERSION, copy, describe, empty, install, place, source_date};
use crate::{cmd, repo, tools};

/// Files of the repository, and where they go.
const FILES: [(&str, &str); 13] = [
    (
        "deploy/config/underpass.example.toml",
        "etc/underpass/underpass.toml",
    ),
    ("deploy/logrotate/underpass", "etc/logrotate.d/underpass"),
    (
        "deploy/systemd/underpass.service",
        "lib/systemd/system/underpass.service",
    ),
    (
        "deploy/systemd/underpass.sysusers",
        "usr/lib/sysusers.d/underpass.conf",
    ),
    (
        "deploy/systemd/underpass.socket",
        "usr/share/doc/underpass/underpass.socket",
    ),
    (
        "deploy/systemd/capture.conf",
        "usr/share/doc/underpass/capture.conf",
    ),
    (
        "deploy/debian/copyright",
        "usr/share/doc/underpass/copyright",
    ),
    ("deploy/TUNING.md", "usr/share/doc/underpass/TUNING.md"),
    (
        "deploy/sysctl/underpass.conf",
        "usr/share/doc/underpass/sysctl.conf",
    ),
    (
        "deploy/monitoring/METRICS.md",
        "usr/share/doc/underpass/monitoring/METRICS.md",
    ),
    (
        "deploy/monitoring/alerts.yaml",
        "usr/share/doc/underpass/monitoring/alerts.yaml",
    ),
    (
        "deploy/monitoring/dashboard.json",
        "usr/share/doc/underpass/monitoring/dashboard.json",
    ),
    ("README.md", "usr/share/doc/underpass/README.md"),
];

/// What the administrator may change.
const CONFFILES: [&str; 2] = [
    "/etc/underpass/underpass.toml",
    "/etc/logrotate.d/underpass",
];

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// What `underpass manual` writes, and where that goes.
const COMPLETIONS: [(&str, &str); 3] = [
    (
        "underpass.bash",
        "usr/share/bash-completion/completions/underpass",
    ),
    ("_underpass", "usr/share/zsh/vendor-completions/_underpass"),
    (
        "underpass.fish",
        "usr/share/fish/vendor_completions.d/underpass.fish",
    ),
];

/// Makes it: where it is.
pub(super) fn make(program: &Path, output: &Path, effort: Effort) -> Result<PathBuf> {
    if tools::find("dpkg-deb").is_none() {
        bail!("a Debian package needs dpkg-deb: install dpkg");
    }
    let architecture = cmd::output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let root = empty("deb")?;
    install(program, &root.join("usr/bin/underpass"))?;
    for (source, destination) in FILES {
        place(&root, source, destination, 0o644)?;
    }
    add_manual(program, &root)?;
    compress(
        &repo::root().join("CHANGELOG.md"),
        &root.join("usr/share/doc/underpass/changelog.gz"),
    )?;

    let sums = checksums(&root)?;
    let control = root.join("DEBIAN");
    fs::create_dir(&control)?;
    fs::set_permissions(&control, fs::Permissions::from_mode(0o755))?;
    for script in SCRIPTS {
        let source = repo::root().join("deploy/debian").join(script);
        copy(&source, &control.join(script), 0o755)?;
    }
    fs::write(control.join("conffiles"), CONFFILES.join("\n") + "\n")?;
    fs::write(control.join("md5sums"), sums)?;
    let size = cmd::output(
        Command::new("du")
            .args(["-sk", "--apparent-size"])
            .arg(&root),
    )?;
    let size = size.split_whitespace().next().unwrap_or("0");
    let text = fs::read_to_string(repo::root().join("deploy/debian/control"))?
        .replace("@VERSION@", VERSION)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@SIZE@", size);
    fs::write(control.join("control"), text)?;

    let package = output.join(format!("underpass_{VERSION}_{architecture}.deb"));
    let (compression, level) = match effort {
        Effort::Release => ("-Zxz", "-z6"),
        Effort::Test => ("-Zgzip", "-z1"),
    };
    let mut build = Command::new("dpkg-deb");
    build
        .args(["--root-owner-group", compression, level, "--build"])
        .arg(&root)
        .arg(&package)
        .env("SOURCE_DATE_EPOCH", source_date());
    cmd::run(&mut build)?;
    Ok(package)
}

/// The manual's pages, compressed, and the completions of shells.
fn add_manual(program: &Path, root: &Path) -> Result<()> {
    let manual = empty("manual")?;
    describe(program, &manual)?;
    for (name, destination) in COMPLETIONS {
        copy(&manual.join(name), &root.join(destination), 0o644)?;
    }
    for entry in fs::read_dir(&manual)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "1") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let page = root.join(format!("usr/share/man/man1/{name}.gz"));
            compress(&path, &page)?;
        }
    }
    Ok(())
}

fn compress(source: &Path, destination: &Path) -> Result<()> {
    if let Some(parent) = destination.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut gzip = Command::new("gzip");
    let output = gzip.args(["-9", "-n", "-c"]).arg(source).output()?;
    cmd::check(&gzip, output.status)?;
    fs::write(destination, output.stdout)?;
    fs::set_permissions(destination, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// The sums of all files below a directory, as dpkg wants them.
fn checksums(root: &Path) -> Result<String> {
    let mut find = Command::new("find");
    find.args([".", "-type", "f", "-printf", "%P\\n"])
        .current_dir(root);
    let files = cmd::output(&mut find)?;
    let mut files: Vec<&str> = files.lines().collect();
    files.sort_unstable();
    let mut sums = String::new();
    for file in files {
        let sum = cmd::output(Command::new("md5sum").arg(file).current_dir(root))?;
        let sum = sum.split_whitespace().next().unwrap_or_default();
        writeln!(sums, "{sum}  {file}")?;
    }
    Ok(sums)
}
