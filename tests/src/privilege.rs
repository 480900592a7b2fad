//! Whether this process may make network namespaces, and what a test does when something it needs is missing.
//!
//! A missing privilege or tool skips the test with a line on standard error; with `UNDERPASS_TESTS=require` in the
//! environment (as in continuous integration) it fails instead, so that a skip cannot pass for a success there.

use std::{
    io::{self, Write as _},
    process::Command,
    sync::OnceLock,
};

use crate::{
    daemon::{binary, run_to_end},
    netns::unique_name,
};

/// Why network namespaces cannot be made here, with what would change it; `None` when they can.
pub fn namespaces_missing() -> Option<String> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    ANSWER.get_or_init(probe).clone()
}

fn probe() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root to make network namespaces: run it with sudo".to_owned());
    }
    let name = unique_name("probe");
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    match made {
        Err(error) => Some(format!("cannot run `ip` ({error}): install iproute2")),
        Ok(output) if !output.status.success() => Some(format!(
            "`ip netns add` failed ({}): needs CAP_SYS_ADMIN and CAP_NET_ADMIN",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Ok(_) => match Command::new("ip").args(["netns", "del", &name]).output() {
            Ok(_) => None,
            Err(error) => Some(format!("cannot remove namespace {name}: {error}")),
        },
    }
}

/// Reports that the calling test is skipped.
///
/// # Panics
///
/// When `UNDERPASS_TESTS=require` forbids skips.
pub fn skip(reason: &str) {
    let required = std::env::var_os("UNDERPASS_TESTS").is_some_and(|value| value == "require");
    assert!(
        !required,
        "UNDERPASS_TESTS=require forbids to skip: {reason}"
    );
    // Not `eprintln!`: the test harness would capture it and a skip would look like a pass.
    drop(writeln!(io::stderr(), "skipped: {reason}"));
}

/// Why the kernel engine cannot be had on this machine, in the words of `underpass doctor`; `None` when it can.
pub fn sockmap_missing() -> Option<String> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let output = run_to_end(Command::new(binary()).arg("doctor"));
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        // What else it says is about the host.
        let engines = report.split("\n\n").next().unwrap_or_default();
        (!engines.contains("sockmap  yes")).then(|| format!("no kernel engine here: {engines}"))
    };
    ANSWER.get_or_init(ask).clone()
}

/// Returns from the calling test, with a line that says why, when this machine has no kernel engine.
#[macro_export]
macro_rules! require_sockmap_or_skip {
    () => {
        $crate::require_root_or_skip!();
        if let Some(reason) = $crate::privilege::sockmap_missing() {
            $crate::privilege::skip(&reason.replace('\n', " "));
            return;
        }
    };
}

/// Returns from the calling test, with a line that says why, when it may not make network namespaces.
#[macro_export]
macro_rules! require_root_or_skip {
    () => {
        if let Some(reason) = $crate::privilege::namespaces_missing() {
            $crate::privilege::skip(&reason);
            return;
        }
    };
}

/// Returns from the calling test, with a line that says why, when there are no TUN devices.
#[macro_export]
macro_rules! require_tun_or_skip {
    () => {
        $crate::require_root_or_skip!();
        if let Some(reason) = $crate::tun::missing() {
            $crate::privilege::skip(&reason);
            return;
        }
    };
}

/// Whether this is one of many runs, for which a part of what is drawn or repeated is enough.
pub fn is_continuous_integration() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}
