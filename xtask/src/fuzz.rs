//! `cargo xtask fuzz`: the fuzz targets beside the code that they feed.

use std::{fs, path::PathBuf, process::ExitCode};

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
    if tools::find("cargo-fuzz").is_none() || !tools::has_toolchain(tools::nightly()) {
        bail!("fuzzing needs a nightly toolchain and cargo-fuzz: run `cargo install cargo-fuzz`");
    }
    let mut fuzz = cmd::nightly(["cargo", "fuzz", "run", "--fuzz-dir"]);
    fuzz.arg(directory())
        .args([target, "--"])
        .arg(format!("-max_total_time={}", args.secs));
    cmd::run(&mut fuzz)?;
    Ok(ExitCode::SUCCESS)
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
