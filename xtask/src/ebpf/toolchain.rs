//! The tools that make the object, and their versions.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::manifest::Versions;
use crate::{cmd, setup::HINT, tools};

/// Everything that `ebpf build` needs, found and asked for its version.
#[derive(Debug)]
pub(super) struct Toolchain {
    /// The directory of the nightly toolchain.
    pub(super) sysroot: PathBuf,
    /// The triple of this machine.
    pub(super) host: String,
    pub(super) versions: Versions,
}

/// Why the object cannot be built here.
#[derive(Debug)]
pub(super) struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {HINT}", self.0)
    }
}

impl std::error::Error for Missing {}

impl Toolchain {
    /// Finds the tools; the error names the first that is missing.
    pub(super) fn detect() -> Result<Self, Missing> {
        if !tools::has_toolchain(tools::nightly()) {
            return Err(Missing("no nightly Rust toolchain".into()));
        }
        if !tools::has_component(tools::nightly(), "rust-src") {
            return Err(Missing("the nightly toolchain lacks rust-src".into()));
        }
        let linker =
            tools::find("bpf-linker").ok_or_else(|| Missing("no bpf-linker".to_owned()))?;
        // A linker whose LLVM library is gone is found but does not start.
        let bpf_linker = tools::version(linker)
            .map_err(|error| Missing(format!("bpf-linker does not run: {error:#}")))?;
        Self::ask(bpf_linker).map_err(|error| Missing(format!("{error:#}")))
    }

    fn ask(bpf_linker: String) -> Result<Self> {
        let said = cmd::output(&mut cmd::nightly(["rustc", "--version", "--verbose"]))
            .context("the nightly rustc does not run")?;
        let field = |name| field(&said, name).with_context(|| format!("rustc names no {name}"));
        let rustc_llvm = field("LLVM version")?;
        Ok(Self {
            sysroot: cmd::output(&mut cmd::nightly(["rustc", "--print=sysroot"]))?
                .trim()
                .into(),
            host: field("host")?,
            versions: Versions {
                rustc: said.lines().next().unwrap_or_default().to_owned(),
                linker_llvm: linker_llvm(&rustc_llvm),
                rustc_llvm,
                bpf_linker,
            },
        })
    }

    /// The `objcopy` that comes with rustc for its own `-C strip`, and the library path it needs.
    pub(super) fn objcopy(&self) -> Command {
        let bin = self
            .sysroot
            .join("lib/rustlib")
            .join(&self.host)
            .join("bin");
        let mut command = Command::new(bin.join("rust-objcopy"));
        command.env("LD_LIBRARY_PATH", self.sysroot.join("lib"));
        command
    }
}

/// The version of the LLVM that bpf-linker was built with: of the same major version as rustc's.
fn linker_llvm(rustc_llvm: &str) -> String {
    let major = rustc_llvm.split('.').next().unwrap_or_default();
    let prefix = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let debian = Path::new("/usr/lib").join(format!("llvm-{major}"));
    prefix
        .into_iter()
        .chain([debian])
        .map(|directory| directory.join("bin/llvm-config"))
        .chain(tools::find(&format!("llvm-config-{major}")))
        .chain(tools::find("llvm-config"))
        .find_map(|program| tools::version(program).ok())
        .filter(|version| version.split('.').next() == Some(major))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// A `name: value` line of `rustc --version --verbose`.
fn field(said: &str, name: &str) -> Option<String> {
    said.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields_of_rustc() {
        let said = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nhost: x86_64-unknown-linux-gnu\n\
                    LLVM version: 22.1.4\n";
        assert_eq!(field(said, "LLVM version").as_deref(), Some("22.1.4"));
        assert_eq!(
            field(said, "host").as_deref(),
            Some("x86_64-unknown-linux-gnu")
        );
        assert_eq!(field(said, "version"), None);
    }

    #[test]
    fn what_is_missing_comes_with_the_way_to_get_it() {
        let missing = Missing("no bpf-linker".into());
        assert_eq!(
            missing.to_string(),
            "no bpf-linker; run `cargo xtask setup`"
        );
    }
}
