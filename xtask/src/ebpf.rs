//! `cargo xtask ebpf`: the BPF objects that the proxy embeds.
//!
//! They are checked in, so that building the proxy needs neither a nightly toolchain nor an
//! LLVM. `build` makes them and records in `MANIFEST.toml` what they were made from and with; `verify`
//! proves that the checked-in bytes are what the sources say.

mod build;
mod manifest;
mod sections;
mod sources;
mod toolchain;
mod verify;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;

use self::build::Variant;
use crate::{
    artifact, cmd, privilege::Privilege, repo, report::Report, run, setup::HINT as SETUP,
    test::PROXY, tools,
};

pub(crate) use verify::verify;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Build the objects and write them, with their manifest, to proxy-ebpf/object
    Build,
    /// Rebuild the objects and compare them with the checked-in ones
    Verify,
}

pub(crate) fn run(verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::Build => build::build(&toolchain::Toolchain::detect()?)?,
        Verb::Verify => {
            let mut report = Report::default();
            verify(&mut report);
            report.forbid_skips();
            return Ok(report.close());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs clippy on the BPF program, which only the nightly toolchain can compile.
pub(crate) fn clippy(report: &mut Report) {
    let name = "clippy (BPF)";
    let lacking = ["clippy", "rust-src"]
        .into_iter()
        .find(|component| !tools::has_component(tools::nightly(), component));
    match lacking {
        Some(component) => {
            report.skip(
                name,
                format!("no nightly toolchain with {component}; {SETUP}"),
            );
        }
        None => report.part(name, || {
            cmd::run(&mut build::clippy(Variant::Release))?;
            cmd::run(&mut build::clippy(Variant::Log))
        }),
    }
}

/// Rebuilds the object if the sources are no longer those it was made from. Without the tools for
/// that, says so in one line and leaves the object as it is.
pub(crate) fn refresh() -> Result<()> {
    let stale = manifest::Manifest::read()
        .and_then(|manifest| Ok(manifest.sources_sha256 != sources::hash(&directory())?));
    if matches!(stale, Ok(false)) {
        return Ok(());
    }
    match toolchain::Toolchain::detect() {
        Ok(toolchain) => build::build(&toolchain),
        Err(missing) if Object::ALL.iter().all(|object| object.path().exists()) => {
            eprintln!("warning: the BPF sources changed, using the checked-in objects: {missing}");
            Ok(())
        }
        Err(missing) => Err(missing.into()),
    }
}

/// Builds the object that logs what it does, and says where it is.
pub(crate) fn build_logging() -> Result<PathBuf> {
    build::build_logging(&toolchain::Toolchain::detect()?)
}

/// Builds the proxy that shows what the program logs, and lets the kernel load it: its self-test must
/// be seen to hand a tunnel over.
pub(crate) fn check_logging(report: &mut Report) {
    let name = "BPF program that logs";
    let privilege = Privilege::detect();
    if let Privilege::None(why) = privilege {
        return report.skip(name, format!("need root to load it: {why}"));
    }
    if let Err(missing) = toolchain::Toolchain::detect() {
        return report.skip(name, missing.to_string());
    }
    report.attempt(name, || {
        // Where its dependencies are built already; who builds on will have to link again.
        let build = [PROXY.as_slice(), &artifact::UNOPTIMISED].concat();
        let proxy = run::logging(&build, &repo::target_dir())?;
        let mut doctor = privilege.command(&proxy, &[("RUST_LOG", "info".into())])?;
        let output = doctor.arg("doctor").output().context("cannot ask doctor")?;
        let [report, log] = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        eprintln!("{log}{report}");
        if let Some(reason) = report
            .lines()
            .find_map(|line| line.strip_prefix("sockmap  no "))
        {
            return Ok(Some(reason.trim().to_owned()));
        }
        ensure!(log.contains("taken over at"), "the program said nothing");
        Ok(None)
    });
}

/// The line of `rustc --version` that the checked-in object was made with.
pub(crate) fn recorded_rustc() -> Result<String> {
    Ok(manifest::Manifest::read()?.versions.rustc)
}

/// The directory of the BPF package.
fn directory() -> PathBuf {
    repo::root().join("proxy-ebpf")
}

/// An object that is checked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    /// What splices tunnels.
    Splice,
    /// What captures connections.
    Capture,
}

impl Object {
    const ALL: [Self; 2] = [Self::Splice, Self::Capture];

    /// The program of the package that it is made of.
    fn binary(self) -> &'static str {
        match self {
            Self::Splice => "underpass-bpf",
            Self::Capture => "underpass-capture-bpf",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Splice => "underpass.bpf.o",
            Self::Capture => "capture.bpf.o",
        }
    }

    fn path(self) -> PathBuf {
        directory().join("object").join(self.file())
    }

    /// The bytes that are checked in.
    fn checked_in(self) -> Result<Vec<u8>> {
        let path = self.path();
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}
