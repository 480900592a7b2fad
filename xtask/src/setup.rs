//! `cargo xtask setup`: what the tests and the BPF build need beyond a stable Rust toolchain.
//!
//! Only what is missing is installed, so that a second call does nothing. Debian packages need root
//! or sudo; without them the commands are printed instead.

use std::{
    fmt, fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cmd, ebpf,
    privilege::Privilege,
    tools::{self, PINNED_NIGHTLY},
};

/// What to tell a person for whom something is missing.
pub(crate) const HINT: &str = "run `cargo xtask setup`";

/// The linker's version, and the LLVM that it is built with: of the same major version as the one
/// in the nightly rustc, and not older.
const LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER_PACKAGES: [&str; 5] = [
    "libpolly-22-dev",
    "libxml2-dev",
    "libzstd-dev",
    "llvm-22-dev",
    "zlib1g-dev",
];
const LINKER_INSTALL: [&str; 8] = [
    "install",
    "bpf-linker",
    "--version",
    LINKER_VERSION,
    "--locked",
    "--no-default-features",
    "--features",
    "llvm-22",
];

/// The script that installs packages without starting services.
const INSTALL: &str = include_str!("setup/install.sh");

/// What is in no distribution and is fetched beside what is built.
struct Fetched {
    /// What is there afterwards.
    names: &'static [&'static str],
    /// Given the directory, and the versions.
    script: &'static str,
    versions: &'static [&'static str],
    /// What the tests do without it.
    without: &'static str,
}

const FETCHED: [Fetched; 2] = [
    Fetched {
        names: &["envoy"],
        script: include_str!("setup/envoy.sh"),
        versions: &["1.40.0"],
        without: "in the tests HAProxy stands for Envoy",
    },
    Fetched {
        names: &["helm", "kubectl", "kubernetes-python"],
        script: include_str!("setup/kubernetes.sh"),
        versions: &["2.2.2", "1.37.0"],
        without: "what is for Kubernetes is not tested",
    },
];

/// Programs that the end-to-end suites run, as a command that succeeds when they are here, and the
/// Debian package of each.
const PROGRAMS: [(&str, &[&str], &str); 27] = [
    ("bpftool", &["version"], "bpftool"),
    ("busybox", &["true"], "busybox-static"),
    (
        "chromium-headless-shell",
        &["--version"],
        "chromium-headless-shell",
    ),
    ("cpio", &["--version"], "cpio"),
    ("crun", &["--version"], "crun"),
    ("curl", &["--version"], "curl"),
    ("dnsmasq", &["--version"], "dnsmasq-base"),
    ("git", &["--version"], "git"),
    ("haproxy", &["-v"], "haproxy"),
    ("ip", &["-Version"], "iproute2"),
    ("logrotate", &["--version"], "logrotate"),
    ("nginx", &["-v"], "nginx-light"),
    ("openssl", &["version"], "openssl"),
    ("podman", &["--version"], "podman"),
    ("prometheus", &["--version"], "prometheus"),
    ("python3", &["--version"], "python3"),
    ("python3", &["-c", "import requests"], "python3-requests"),
    ("qemu-system-x86_64", &["--version"], "qemu-system-x86"),
    ("script", &["--version"], "bsdutils"),
    ("setcap", &["-h"], "libcap2-bin"),
    ("setpriv", &["--version"], "util-linux"),
    ("squid", &["-v"], "squid"),
    ("strace", &["--version"], "strace"),
    ("systemd-analyze", &["--version"], "systemd"),
    ("unbound", &["-V"], "unbound"),
    ("wget", &["--version"], "wget"),
    ("xz", &["--version"], "xz-utils"),
];
pub(crate) const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What is missing, as what installs it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    packages: Vec<&'static str>,
    /// Arguments of `rustup`.
    rustup: Vec<Vec<&'static str>>,
    linker: bool,
}

/// Installs what is missing, or prints how.
pub(crate) fn run() -> Result<ExitCode> {
    install()?;
    println!("everything that the tests and the BPF build need is installed");
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing; an error if something still is afterwards.
pub(crate) fn install() -> Result<()> {
    install_what_is_needed()?;
    for tool in &FETCHED {
        if let Err(error) = tool.fetch() {
            let names = tool.names.join(", ");
            eprintln!("cannot fetch {names} ({error:#}); {}", tool.without);
        }
    }
    Ok(())
}

fn install_what_is_needed() -> Result<()> {
    let plan = Plan::make();
    if plan.is_empty() {
        return Ok(());
    }
    if !plan.packages.is_empty() {
        let privilege = Privilege::detect();
        if matches!(privilege, Privilege::None(_)) || tools::find("apt-get").is_none() {
            bail!("run these commands, then `cargo xtask setup` again:\n{plan}");
        }
        install_packages(privilege, &plan.packages)?;
    }
    for arguments in &plan.rustup {
        cmd::run(Command::new("rustup").args(arguments))?;
    }
    if plan.linker {
        cmd::run(cmd::cargo(LINKER_INSTALL).env("LLVM_PREFIX", LLVM_PREFIX))?;
    }
    let rest = Plan::make();
    if !rest.is_empty() {
        bail!("still missing after the installation:\n{rest}");
    }
    Ok(())
}

impl Fetched {
    fn fetch(&self) -> Result<()> {
        let directory = tools::fetched();
        if self.names.iter().all(|name| directory.join(name).exists()) {
            return Ok(());
        }
        fs::create_dir_all(&directory)?;
        let mut fetch = Command::new("sh");
        fetch.args(["-c", self.script, "fetch"]).arg(directory);
        cmd::run(fetch.args(self.versions))
    }
}

impl Plan {
    /// Looks at this machine.
    fn make() -> Self {
        let mut plan = Self::default();
        for (program, arguments, package) in PROGRAMS {
            let mut probe = Command::new(program);
            probe.args(arguments).env("PATH", tools::system_path());
            if !cmd::succeeds(&mut probe) {
                plan.packages.push(package);
            }
        }
        if !Path::new(CERTIFICATES).exists() {
            plan.packages.push("ca-certificates");
        }
        if !linker_is_here() {
            plan.packages.extend(LINKER_PACKAGES);
            plan.linker = true;
        }
        for (verb, component) in [("clippy", "clippy"), ("fmt", "rustfmt")] {
            if !cmd::succeeds(&mut cmd::cargo([verb, "--version"])) {
                plan.rustup.push(vec!["component", "add", component]);
            }
        }
        if nightly_is_here() {
            for component in ["clippy", "rust-src"] {
                if !tools::has_component(tools::nightly(), component) {
                    let add = [
                        "component",
                        "add",
                        "--toolchain",
                        tools::nightly(),
                        component,
                    ];
                    plan.rustup.push(add.to_vec());
                }
            }
        } else {
            let components = ["--component", "rust-src", "--component", "clippy"];
            let mut install = vec![
                "toolchain",
                "install",
                PINNED_NIGHTLY,
                "--profile",
                "minimal",
            ];
            install.extend(components);
            plan.rustup.push(install);
        }
        plan
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The commands, as a person would type them.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        if !self.packages.is_empty() {
            lines.push("  sudo apt-get update".to_owned());
            let packages = self.packages.join(" ");
            lines.push(format!(
                "  sudo apt-get install --no-install-recommends {packages}"
            ));
        }
        for arguments in &self.rustup {
            lines.push(format!("  rustup {}", arguments.join(" ")));
        }
        if self.linker {
            let arguments = LINKER_INSTALL.join(" ");
            lines.push(format!("  LLVM_PREFIX={LLVM_PREFIX} cargo {arguments}"));
        }
        f.write_str(&lines.join("\n"))
    }
}

/// Whether there is a nightly toolchain that makes the checked-in object.
fn nightly_is_here() -> bool {
    if tools::has_toolchain(PINNED_NIGHTLY) {
        return true;
    }
    let version = cmd::output(&mut cmd::nightly(["rustc", "--version"]));
    matches!((version, ebpf::recorded_rustc()), (Ok(here), Ok(recorded)) if here.trim() == recorded)
}

fn linker_is_here() -> bool {
    tools::find("bpf-linker")
        .and_then(|linker| tools::version(linker).ok())
        .is_some_and(|version| version == format!("bpf-linker {LINKER_VERSION}"))
}

fn install_packages(privilege: Privilege, packages: &[&str]) -> Result<()> {
    let program = |name| tools::find(name).with_context(|| format!("no `{name}`"));
    cmd::run(privilege.command(&program("apt-get")?, &[])?.arg("update"))?;
    let unknown: Vec<_> = packages
        .iter()
        .copied()
        .filter(|package| !cmd::succeeds(Command::new("apt-cache").args(["show", package])))
        .collect();
    if !unknown.is_empty() {
        bail!(
            "not in the apt sources of this machine: {}; add a source that has them \
             (LLVM 22 is in Debian's security archive for bookworm and in later releases)",
            unknown.join(" ")
        );
    }
    eprintln!("$ apt-get install {}", packages.join(" "));
    let mut install = privilege.command(&program("sh")?, &[])?;
    install.args(["-c", INSTALL, "install"]).args(packages);
    let status = install.status().context("cannot start `sh`")?;
    if !status.success() {
        bail!("`apt-get install` failed with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_commands_are_complete() {
        let plan = Plan {
            packages: vec!["squid", "llvm-22-dev"],
            rustup: vec![vec!["component", "add", "clippy"]],
            linker: true,
        };
        assert_eq!(
            plan.to_string(),
            "  sudo apt-get update\n  \
               sudo apt-get install --no-install-recommends squid llvm-22-dev\n  \
               rustup component add clippy\n  \
               LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked \
             --no-default-features --features llvm-22"
        );
    }
}
