//! The tarball, for hosts without dpkg.

use std::{
    env::consts::ARCH,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{VERSION, describe, empty, install, place, source_date};
use crate::cmd;

/// Files of the repository, and where they go.
const FILES: [(&str, &str); 16] = [
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("KERNELS.md", "KERNELS.md"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    (
        "deploy/config/underpass.example.toml",
        "config/underpass.example.toml",
    ),
    ("deploy/logrotate/underpass", "logrotate/underpass"),
    (
        "deploy/systemd/underpass.service",
        "systemd/underpass.service",
    ),
    (
        "deploy/systemd/underpass.socket",
        "systemd/underpass.socket",
    ),
    ("deploy/systemd/capture.conf", "systemd/capture.conf"),
    (
        "deploy/systemd/underpass.sysusers",
        "systemd/underpass.sysusers",
    ),
    ("deploy/TUNING.md", "TUNING.md"),
    ("deploy/sysctl/underpass.conf", "sysctl/underpass.conf"),
    ("deploy/monitoring/METRICS.md", "monitoring/METRICS.md"),
    ("deploy/monitoring/alerts.yaml", "monitoring/alerts.yaml"),
    (
        "deploy/monitoring/dashboard.json",
        "monitoring/dashboard.json",
    ),
];

/// Makes it: where it is.
pub(super) fn make(program: &Path, output: &Path) -> Result<PathBuf> {
    let name = format!("underpass-{VERSION}-{ARCH}-linux");
    let parent = empty("tarball")?;
    let root = parent.join(&name);
    install(program, &root.join("underpass"))?;
    for (source, destination) in FILES {
        place(&root, source, destination, 0o644)?;
    }
    describe(program, &root.join("manual"))?;
    let tarball = output.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{}", source_date()))
        .args(["--use-compress-program", "gzip -9 -n"])
        .arg("-cf")
        .arg(&tarball)
        .arg("-C")
        .arg(&parent)
        .arg(&name);
    cmd::run(&mut tar)?;
    Ok(tarball)
}
