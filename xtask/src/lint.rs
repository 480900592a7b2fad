//! `cargo xtask lint`: formatting, clippy and rustdoc, each without a warning.

use std::process::{Command, ExitCode};

use crate::{cmd, ebpf, report::Report, tools};

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
        leave_out_fuzzing(&mut clippy);
        cmd::run(clippy.args(["--all-targets", "--", "--deny", "warnings"]))
    });
    ebpf::clippy(report);
    report.part("documentation", || {
        let mut doc = cmd::cargo(["doc", "--no-deps", "--workspace", "--exclude", "proxy-ebpf"]);
        leave_out_fuzzing(&mut doc);
        cmd::run(doc.env("RUSTDOCFLAGS", "--deny warnings"))
    });
}

/// The fuzz targets take a C++ compiler; with one they are not left out, or what everything else is built from would
/// be built for a choice of members of its own.
fn leave_out_fuzzing(command: &mut Command) {
    if tools::find("c++").is_none() {
        command.args(["--exclude", "underpass-fuzz"]);
    }
}
