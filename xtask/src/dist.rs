//! What is released: by `cargo xtask dist` a Debian package, a tarball, a bill of materials and their checksums, by
//! `cargo xtask image` the container image.

mod deb;
pub(crate) mod image;
mod sbom;
mod tarball;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{artifact, cmd, repo, tools};

/// The version of everything here.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What makes the program that is released; how it is linked follows.
const RELEASE: [&str; 7] = [
    "rustc",
    "--release",
    "--package",
    "underpass",
    "--bin",
    "underpass",
    "--",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack this program instead of building one
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Where to put what is made [default: target/dist]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// How well a package is compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// As well as can be.
    Release,
    /// For a test: quickly.
    Test,
}

/// Makes the Debian package and the image, in a directory that has nothing else, for the tests.
pub(crate) fn for_tests(program: &Path) -> Result<PathBuf> {
    let output = empty("dist")?;
    if tools::find("dpkg-deb").is_some() {
        deb::make(program, &output, Effort::Test)?;
    }
    if tools::find("podman").is_some() {
        image::make(program, &output, "localhost/underpass:test")?;
    }
    Ok(output)
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let program = program(args.program.as_deref())?;
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| repo::target_dir().join("dist"));
    fs::create_dir_all(&output)?;
    let made = [
        deb::make(&program, &output, Effort::Release)?,
        tarball::make(&program, &output)?,
    ];
    let bill = output.join("underpass.cdx.json");
    fs::write(&bill, sbom::make()?)?;
    let made = made.into_iter().chain([bill]).collect::<Vec<_>>();
    let names = made.iter().filter_map(|path| path.file_name());
    let sums = cmd::output(Command::new("sha256sum").args(names).current_dir(&output))?;
    fs::write(output.join("SHA256SUMS"), format!("{}\n", sums.trim_end()))?;
    for path in made {
        println!("{}", path.display());
    }
    println!("{}", output.join("SHA256SUMS").display());
    Ok(ExitCode::SUCCESS)
}

/// The program to pack: this one, or what is released.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(program) = given {
        return Ok(program.to_owned());
    }
    let build: Vec<_> = RELEASE.into_iter().chain(artifact::STATIC).collect();
    artifact::build(&build, "underpass")
}

/// Puts a copy of a file of the repository at its place below a directory.
fn place(root: &Path, source: &str, destination: &str, mode: u32) -> Result<()> {
    copy(&repo::root().join(source), &root.join(destination), mode)
}

fn copy(source: &Path, destination: &Path, mode: u32) -> Result<()> {
    if let Some(parent) = destination.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(source, destination).with_context(|| format!("cannot copy {}", source.display()))?;
    fs::set_permissions(destination, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Puts the program there, without what only debuggers look at.
fn install(program: &Path, destination: &Path) -> Result<()> {
    copy(program, destination, 0o755)?;
    cmd::run(Command::new("strip").arg(destination))
}

/// What the program says of itself: its manual and the completions of shells, below this directory.
fn describe(program: &Path, directory: &Path) -> Result<()> {
    cmd::run(Command::new(program).arg("manual").arg(directory))
}

/// An empty directory of this name for what is being made.
fn empty(name: &str) -> Result<PathBuf> {
    let directory = repo::target_dir().join("tmp").join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// The time of what is packed, in seconds: that of the last commit, so that the same source makes the same package.
fn source_date() -> String {
    let mut log = Command::new("git");
    log.args(["log", "-1", "--format=%ct"])
        .current_dir(repo::root());
    // Of a source without a history nothing is known.
    cmd::output(&mut log).map_or_else(|_| "0".to_owned(), |time| time.trim().to_owned())
}
