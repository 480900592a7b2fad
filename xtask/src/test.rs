//! `cargo xtask test`: every check and test, cheap ones first, and a summary of what ran.
//!
//! A part that cannot run here is skipped with its reason in the summary. With `CI` set, missing
//! tools are installed first and a skip is a failure.

use std::{collections::BTreeMap, env, ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Subcommand, ValueEnum};

use crate::{
    artifact, cmd, demo, dist, ebpf, fuzz, lint,
    privilege::{self, Privilege},
    repo,
    report::Report,
    setup, tools, vm,
};

/// What the rig writes in front of a reason on standard error when a case skips itself.
const SKIP_MARK: &str = "skipped: ";

/// What makes the proxy that the suites run.
///
/// All members are named whenever something is built for tests: cargo gives a dependency the features that those
/// which are named ask for, and would build it again for each selection.
pub(crate) const PROXY: [&str; 6] = [
    "build",
    "--workspace",
    "--exclude",
    "proxy-ebpf",
    "--bin",
    "underpass",
];

/// What makes the end-to-end test binary.
pub(crate) const SUITES: [&str; 7] = [
    "test",
    "--no-run",
    "--workspace",
    "--exclude",
    "proxy-ebpf",
    "--test",
    "suites",
];

/// What has unit tests; not the fuzz targets, which would fuzz for ever.
const UNIT: [&str; 7] = [
    "--lib",
    "--bin",
    "bench",
    "--bin",
    "underpass",
    "--bin",
    "xtask",
];

/// What makes the demo.
pub(crate) const DEMO: [&str; 6] = [
    "build",
    "--workspace",
    "--exclude",
    "proxy-ebpf",
    "--bin",
    "demo",
];

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    elsewhere: Option<Elsewhere>,
    /// Run only tests whose name contains this, and no other checks
    filter: Option<String>,
    /// Leave out formatting, clippy and rustdoc
    #[arg(long)]
    skip_lint: bool,
    /// Run only this part; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// How many end-to-end tests run at a time
    #[arg(long, value_name = "N", default_value_t = 8)]
    test_threads: usize,
    /// Passed on to the end-to-end test binary, for instance --nocapture
    #[arg(last = true, value_name = "ARGS")]
    passed_on: Vec<OsString>,
}

/// Where else tests can run.
#[derive(Subcommand)]
enum Elsewhere {
    /// Run the end-to-end suites on other kernels, each in a machine that QEMU emulates
    Vm(vm::Args),
}

/// What `test` consists of, in the order it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Formatting, clippy and rustdoc
    Lint,
    /// Unit, property and doc tests, the rig's own among them
    Unit,
    /// The checked-in BPF object against its sources
    Object,
    /// The fuzz targets, for a moment
    Fuzz,
    /// The BPF program with its log, in the kernel
    ProgramLog,
    /// The suites in network namespaces, as root
    E2e,
    /// A part of them on other kernels, in emulated machines
    Kernels,
    /// The demo
    Demo,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let ci = env::var_os("CI").is_some_and(|value| !value.is_empty());
    let mut report = Report::default();
    if let Some(Elsewhere::Vm(args)) = &args.elsewhere {
        vm::run(args, &mut report);
        return report.close();
    }
    if ci {
        report.part("tools", setup::install);
    }
    for part in Part::value_variants() {
        match args.leaves_out(*part) {
            Some(reason) => report.leave_out(part.name(), reason),
            None => part.run(args, ci, &mut report),
        }
    }
    if ci {
        report.forbid_skips();
    }
    report.close()
}

impl Args {
    /// Why a part was not asked for, if so.
    fn leaves_out(&self, part: Part) -> Option<&'static str> {
        if !self.only.is_empty() {
            return (!self.only.contains(&part)).then_some("--only names other parts");
        }
        match part {
            Part::Lint if self.skip_lint => Some("--skip-lint was given"),
            Part::Unit | Part::E2e => None,
            Part::Lint
            | Part::Object
            | Part::Fuzz
            | Part::ProgramLog
            | Part::Kernels
            | Part::Demo => self.filter.is_some().then_some("a filter was given"),
        }
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Lint => lint::NAME,
            Self::Unit => "unit, property and doc tests",
            Self::Object => "BPF object",
            Self::Fuzz => "fuzz targets",
            Self::ProgramLog => "BPF program that logs",
            Self::E2e => "e2e suites",
            Self::Kernels => "other kernels",
            Self::Demo => "demo",
        }
    }

    fn run(self, args: &Args, ci: bool, report: &mut Report) {
        let filter = args.filter.as_deref();
        match self {
            Self::Lint => lint::check(report),
            Self::Unit => report.part(self.name(), || {
                cargo_test(&UNIT, filter)?;
                cargo_test(&["--doc"], filter)
            }),
            Self::Object => ebpf::verify(report),
            Self::Fuzz => fuzz::check(self.name(), report),
            Self::ProgramLog => ebpf::check_logging(report),
            Self::E2e => e2e(args, ci, report),
            Self::Kernels => vm::run_briefly(report),
            Self::Demo => demo(ci, report),
        }
    }
}

fn cargo_test(selection: &[&str], filter: Option<&str>) -> Result<()> {
    let mut test = cmd::cargo(["test", "--no-fail-fast"]);
    test.args(["--workspace", "--exclude", "proxy-ebpf"])
        .args(artifact::UNOPTIMISED)
        .args(selection);
    if let Some(filter) = filter {
        test.args(["--", filter]);
    }
    cmd::run(&mut test)
}

/// Builds proxy and suites as the user, then runs the suites as root.
fn e2e(args: &Args, ci: bool, report: &mut Report) {
    let name = Part::E2e.name();
    let privilege = Privilege::detect();
    if let Privilege::None(why) = privilege {
        return report.skip(
            name,
            format!("need root ({why}); run as root or install sudo"),
        );
    }
    if tools::find("ip").is_none() {
        return report.skip(
            name,
            format!("need `ip` for network namespaces; {}", setup::HINT),
        );
    }
    let mut skipped = Vec::new();
    report.part(name, || {
        let proxy = artifact::build_static(&PROXY)?;
        let suites = artifact::build(&SUITES, "suites")?;

        let mut vars = privilege::inherited(&[
            "RUST_BACKTRACE",
            "UNDERPASS_WATCH_SECONDS",
            "UNDERPASS_CAPTURE_ROUNDS",
        ]);
        vars.push(("PATH", tools::system_path()));
        vars.push(("UNDERPASS_DIST", dist::for_tests(&proxy)?.into()));
        vars.push(("UNDERPASS_BIN", proxy.into()));
        if ci {
            vars.push(("UNDERPASS_TESTS", "require".into()));
        } else {
            vars.extend(privilege::inherited(&["UNDERPASS_TESTS"]));
        }
        let mut command = privilege.command(&suites, &vars)?;
        command
            .args(&args.filter)
            .arg(format!("--test-threads={}", args.test_threads))
            .args(&args.passed_on)
            .current_dir(repo::root().join("tests"));
        let result;
        (skipped, result) = cmd::run_and_pick(&mut command, SKIP_MARK);
        result
    });
    for (reason, cases) in tally(skipped) {
        report.skip(&format!("{cases} of the e2e cases"), reason);
    }
}

/// The demo must show what it promises.
fn demo(ci: bool, report: &mut Report) {
    let name = Part::Demo.name();
    match Privilege::detect() {
        Privilege::None(why) => report.skip(name, format!("needs root: {why}")),
        _ => report.part(name, || cmd::run(&mut demo::command(ci)?)),
    }
}

/// How often each reason was given.
fn tally(reasons: Vec<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    /// The parts that run for a command line.
    fn parts(line: &str) -> Vec<Part> {
        let words = std::iter::once("test").chain(line.split_whitespace());
        let args = Cli::try_parse_from(words).unwrap().args;
        Part::value_variants()
            .iter()
            .copied()
            .filter(|part| args.leaves_out(*part).is_none())
            .collect()
    }

    #[test]
    fn everything_runs_unless_less_is_asked_for() {
        use Part::{Demo, E2e, Fuzz, Kernels, Lint, Object, ProgramLog, Unit};
        assert_eq!(parts(""), Part::value_variants());
        let but_lint = [Unit, Object, Fuzz, ProgramLog, E2e, Kernels, Demo];
        assert_eq!(parts("--skip-lint"), but_lint);
        assert_eq!(parts("half_close"), [Unit, E2e]);
        assert_eq!(parts("--only e2e half_close -- --nocapture"), [E2e]);
        assert_eq!(parts("--only object --only lint"), [Lint, Object]);
    }

    #[test]
    fn equal_reasons_are_counted_together() {
        let reasons = ["no squid", "no curl", "no squid"].map(str::to_owned);
        let counts = tally(reasons.to_vec());
        assert_eq!(counts.get("no squid"), Some(&2));
        assert_eq!(counts.get("no curl"), Some(&1));
    }
}
