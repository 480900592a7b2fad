//! `cargo xtask lint`: formatting, clippy and rustdoc, each without a warning.

use std::process::ExitCode;

use crate::{cmd, ebpf, report::Report};

/// The names of the parts, for who leaves them out.
pub(crate) const NAME: &str = "formatting, clippy and documentation";

pub(crate) fn run() -> ExitCode {
    let mut report = Report::default();
    check(&mut report);
    report.close()
}

/// Runs every lint, cheapest first.
pub(crate) fn check(report: &mut Report) {
    report.part("formatting", || {
        cmd::run(&mut cmd::cargo(["fmt", "--all", "--check"]))
    });
    report.part("clippy", || {
        let mut clippy = cmd::cargo(["clippy", "--workspace", "--exclude", "proxy-ebpf"]);
        // They take a C++ compiler.
        clippy.args(["--exclude", "underpass-fuzz"]);
        cmd::run(clippy.args(["--all-targets", "--", "--deny", "warnings"]))
    });
    ebpf::clippy(report);
    report.part("documentation", || {
        let mut doc = cmd::cargo(["doc", "--no-deps", "--workspace", "--exclude", "proxy-ebpf"]);
        doc.args(["--exclude", "underpass-fuzz"]);
        cmd::run(doc.env("RUSTDOCFLAGS", "--deny warnings"))
    });
}
