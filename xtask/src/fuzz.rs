//! `cargo xtask fuzz`: the fuzz targets beside the code that they feed.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{cmd, repo, tools};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The target to run; without one, the targets are listed
    target: Option<String>,
    /// How long to run
    #[arg(long, value_name = "N", default_value_t = 60)]
    secs: u64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let targets = targets()?;
    let Some(target) = &args.target else {
        for target in targets {
            println!("{target}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    if !targets.contains(target) {
        bail!(
            "no fuzz target `{target}`; there are: {}",
            targets.join(", ")
        );
    }
    if !tools::has_toolchain(tools::nightly()) {
        bail!("fuzzing needs a nightly toolchain: run `rustup toolchain install nightly`");
    }
    if tools::find("c++").is_none() {
        bail!("fuzzing needs a C++ compiler, for libFuzzer: install g++ or clang");
    }
    let corpus = repo::root().join("target/fuzz/corpus").join(target);
    fs::create_dir_all(&corpus)?;
    let mut run = Command::new(build(target)?);
    run.arg(format!("-max_total_time={}", args.secs))
        .arg("-timeout=10")
        .arg(corpus);
    cmd::run(&mut run)?;
    Ok(ExitCode::SUCCESS)
}

/// What makes a program feel its way: coverage in the form that libFuzzer reads, and checks of memory and
/// arithmetic.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Zsanitizer=address -Cdebug-assertions";

/// Builds a target, which takes some minutes the first time.
fn build(target: &str) -> Result<PathBuf> {
    // With a target, flags are not for build scripts and macros.
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = repo::root().join("target/fuzz");
    let mut build = cmd::nightly(["cargo", "build", "--release", "--bin", target]);
    build
        .args(["--target", &host, "--target-dir"])
        .arg(&output)
        .arg("--manifest-path")
        .arg(directory().join("Cargo.toml"))
        .env("RUSTFLAGS", FLAGS);
    cmd::run(&mut build)?;
    Ok(output.join(host).join("release").join(target))
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

fn directory() -> PathBuf {
    repo::root().join("proxy-userspace/fuzz")
}
