//! Finding the programs that the verbs call.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{cmd, repo};

/// The toolchain that builds the BPF object, where `core` is built from source. It moves together
/// with the object, the linker and its LLVM.
pub(crate) const PINNED_NIGHTLY: &str = "nightly-2026-05-20";

/// The nightly toolchain to use: the pinned one; failing that whatever `nightly` is, whose version
/// may be the same.
pub(crate) fn nightly() -> &'static str {
    // Asked anew each time: `setup` may have installed it a moment ago.
    if has_toolchain(PINNED_NIGHTLY) {
        PINNED_NIGHTLY
    } else {
        "nightly"
    }
}

/// A program by name, in `PATH`, cargo's bin directory, or the `sbin` directories that a user's
/// `PATH` leaves out on Debian.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
    env::split_paths(&path_with_cargo_bin())
        .chain(sbin.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

/// `PATH` with cargo's bin directory first: rustc looks there for `bpf-linker`.
pub(crate) fn path_with_cargo_bin() -> OsString {
    let bin = repo::cargo_home().join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(bin).chain(env::split_paths(&path))).unwrap_or(path)
}

/// `PATH` with the system's directories first, as sudo sets it, and last what `setup` has fetched. The suites run other people's
/// programs as root, and should find the same ones with sudo and without.
pub(crate) fn system_path() -> OsString {
    const SYSTEM: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(SYSTEM)
        .chain(env::split_paths(&path))
        .chain([fetched()]);
    env::join_paths(directories).unwrap_or(path)
}

/// Where programs are put that no package has.
pub(crate) fn fetched() -> PathBuf {
    repo::target_dir().join("tools")
}

/// Whether rustup has a toolchain of that channel.
pub(crate) fn has_toolchain(channel: &str) -> bool {
    cmd::output(Command::new("rustup").args(["toolchain", "list"]))
        .is_ok_and(|list| names_toolchain(&list, channel))
}

/// Whether a component is installed for a toolchain.
pub(crate) fn has_component(toolchain: &str, component: &str) -> bool {
    let mut list = Command::new("rustup");
    list.args(["component", "list", "--installed", "--toolchain", toolchain]);
    cmd::output(&mut list).is_ok_and(|list| names_component(&list, component))
}

/// Whether `rustup toolchain list` names exactly this channel, not a dated one of it.
fn names_toolchain(list: &str, channel: &str) -> bool {
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| name.strip_prefix(channel))
        .any(|rest| rest.is_empty() || rest.starts_with("-x86_64") || rest.starts_with("-aarch64"))
}

/// Whether `rustup component list --installed` names the component, with or without its target.
fn names_component(list: &str, component: &str) -> bool {
    list.lines()
        .filter_map(|line| line.trim().strip_prefix(component))
        .any(|rest| rest.is_empty() || rest.starts_with("-x86_64") || rest.starts_with("-aarch64"))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// The first line that a program prints for `--version`, or what went wrong.
pub(crate) fn version(program: impl AsRef<OsStr>) -> anyhow::Result<String> {
    let printed = cmd::output(Command::new(program).arg("--version"))?;
    Ok(printed.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dated_nightly_is_not_the_nightly() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\n\
                    nightly-2026-05-20-x86_64-unknown-linux-gnu\n";
        assert!(names_toolchain(list, "stable"));
        assert!(names_toolchain(list, PINNED_NIGHTLY));
        assert!(!names_toolchain(list, "nightly"));
        assert!(names_toolchain(
            "nightly-x86_64-unknown-linux-gnu",
            "nightly"
        ));
        assert!(names_toolchain("nightly", "nightly"));
    }

    #[test]
    fn a_component_is_known_with_and_without_its_target() {
        let list = "rust-src\nclippy-x86_64-unknown-linux-gnu\nrust-std-x86_64-unknown-linux-gnu\n";
        assert!(names_component(list, "rust-src"));
        assert!(names_component(list, "clippy"));
        assert!(!names_component(list, "rust"));
        assert!(!names_component(list, "rustfmt"));
    }

    #[test]
    fn sbin_is_searched_and_nonsense_is_not_found() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-of-underpass"), None);
    }
}
