//! `cargo xtask fuzz`: the fuzz targets beside the code that they feed.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{artifact, cmd, repo, report::Report, tools};

/// How long continuous integration runs each target, in seconds.
const BRIEF: u64 = 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The targets to run, side by side; without one, they are listed
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long to run
    #[arg(long, value_name = "N", default_value_t = 60)]
    secs: u64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let known = targets()?;
    if args.targets.is_empty() {
        for target in known {
            println!("{target}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!(
            "no fuzz target `{unknown}`; there are: {}",
            known.join(", ")
        );
    }
    if let Some(reason) = missing() {
        bail!("fuzzing needs {reason}");
    }
    fuzz(&args.targets, args.secs, &[])?;
    Ok(ExitCode::SUCCESS)
}

/// Every target, for a moment.
pub(crate) fn check(name: &str, report: &mut Report) {
    match missing() {
        Some(reason) => report.skip(name, format!("needs {reason}")),
        None => report.part(name, || fuzz(&targets()?, BRIEF, &artifact::UNOPTIMISED)),
    }
}

/// What has to be installed first, if anything.
fn missing() -> Option<&'static str> {
    let has_compiler = tools::find("c++").is_some();
    (!has_compiler).then_some("a C++ compiler, for libFuzzer: install g++ or clang")
}

/// Builds the targets with these options of cargo, and runs them side by side, each from what it found before and from
/// the seeds that are checked in.
fn fuzz(targets: &[String], secs: u64, options: &[&str]) -> Result<()> {
    let programs = build(targets, options)?;
    let output = output();
    let mut running = Vec::new();
    for target in targets {
        let corpus = output.join("corpus").join(target);
        let artifacts = output.join("artifacts").join(target);
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(&artifacts)?;
        let log = output.join(format!("{target}.log"));
        let mut run = Command::new(programs.join(program(target)));
        run.arg(format!("-max_total_time={secs}"))
            .arg("-timeout=20")
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(corpus);
        let seeds = directory().join("seeds").join(target);
        if seeds.exists() {
            run.arg(seeds);
        }
        run.stderr(fs::File::create(&log)?);
        eprintln!("$ {} 2>{}", cmd::line(&run), log.display());
        let child = run
            .spawn()
            .with_context(|| format!("cannot start {target}"))?;
        running.push((target, child, log));
    }
    let mut failed = Vec::new();
    for (target, mut child, log) in running {
        let is_clean = child.wait().is_ok_and(|status| status.success());
        let text = fs::read_to_string(log).unwrap_or_default();
        let last = |count| text.lines().rev().take(count).collect::<Vec<_>>();
        if is_clean {
            let done = last(20)
                .into_iter()
                .find(|line| line.starts_with("Done "))
                .unwrap_or("no word of how much was done");
            eprintln!("{target}: {done}");
        } else {
            let end: Vec<_> = last(60).into_iter().rev().collect();
            eprintln!("{target}:\n{}", end.join("\n"));
            failed.push(target.as_str());
        }
    }
    ensure!(
        failed.is_empty(),
        "a finding of {}; the input is below {}",
        failed.join(", "),
        output.join("artifacts").display()
    );
    Ok(())
}

/// Builds targets: where the programs are. Dependencies are those of all other programs: nothing but the targets differs
/// from an ordinary build, and what compiles the project's own crates.
fn build(targets: &[String], options: &[&str]) -> Result<PathBuf> {
    let mut build = cmd::cargo(["build", "--workspace", "--exclude", "proxy-ebpf"]);
    build.args(options);
    for target in targets {
        build.args(["--bin", &program(target)]);
    }
    // Not by the environment: build scripts look at that, and all that depends on them would be built anew.
    let wrapper = directory().join("rustc-with-coverage.sh");
    let wrapper = wrapper
        .to_str()
        .context("the path of the repository is no text")?;
    build.args([
        "--config",
        &format!("build.rustc-workspace-wrapper={wrapper:?}"),
    ]);
    cmd::run(&mut build)?;
    Ok(repo::target_dir().join("debug"))
}

/// What the program of a target is called, beside all others.
fn program(target: &str) -> String {
    format!("fuzz-{}", target.replace('_', "-"))
}

/// The names of the targets, sorted.
fn targets() -> Result<Vec<String>> {
    let sources = directory().join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&sources)
        .with_context(|| format!("no fuzz targets in {}", sources.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

fn output() -> PathBuf {
    repo::target_dir().join("fuzz")
}

fn directory() -> PathBuf {
    repo::root().join("proxy-userspace/fuzz")
}
