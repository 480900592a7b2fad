//! The container image: `cargo xtask image`.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use super::{VERSION, empty, install, place, program, sbom, source_date};
use crate::{
    cmd,
    privilege::Privilege,
    repo,
    setup::{CERTIFICATES, HINT},
    tools,
};

/// Puts the image together, as root: who else may give a file capabilities?
const BUILD: &str = "xtask/src/dist/image.sh";

/// Files of the repository, and where they go.
const FILES: [(&str, &str); 3] = [
    (
        "deploy/config/underpass.example.toml",
        "etc/underpass/underpass.toml",
    ),
    ("LICENSE-APACHE", "usr/share/doc/underpass/LICENSE-APACHE"),
    ("LICENSE-MIT", "usr/share/doc/underpass/LICENSE-MIT"),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack this program, which must need no library, instead of building one
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// What to call the image [default: localhost/underpass:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// Where to put what is made [default: target/dist]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let program = program(args.program.as_deref())?;
    let output = match &args.output {
        Some(output) => output.clone(),
        None => repo::target_dir().join("dist"),
    };
    fs::create_dir_all(&output)?;
    let name = args.name.clone();
    let name = name.unwrap_or_else(|| format!("localhost/underpass:{VERSION}"));
    println!("{}", make(&program, &output, &name)?.display());
    println!("load it with: podman load --input FILE (or docker load)");
    Ok(ExitCode::SUCCESS)
}

/// Makes it: the archive that podman and docker load.
pub(super) fn make(program: &Path, output: &Path, name: &str) -> Result<PathBuf> {
    if tools::find("podman").is_none() {
        bail!("an image needs podman; {HINT}, or install it");
    }
    refuse_libraries(program)?;
    let context = empty("image")?;
    let root = context.join("root");
    install(program, &root.join("usr/bin/underpass"))?;
    for (source, destination) in FILES {
        place(&root, source, destination, 0o644)?;
    }
    fs::write(
        root.join("usr/share/doc/underpass/underpass.cdx.json"),
        sbom::make()?,
    )?;
    let authorities = root.join(CERTIFICATES.trim_start_matches('/'));
    super::copy(Path::new(CERTIFICATES), &authorities, 0o644).context(
        "the image takes the authorities that it trusts from this machine; install ca-certificates",
    )?;
    fs::create_dir_all(context.join("run/underpass"))?;

    let archive = output.join(format!("underpass-{VERSION}-{ARCH}-image.tar"));
    let shell = tools::find("sh").context("no `sh`")?;
    let mut build = Privilege::detect().command(&shell, &[])?;
    build
        .arg(repo::root().join(BUILD))
        .arg(&context)
        .arg(repo::root().join("deploy/container/Containerfile"))
        .arg(&archive)
        .args([name, VERSION, &revision(), &source_date()]);
    cmd::run(&mut build)?;
    Ok(archive)
}

/// A program that is not whole would not start: there is nothing else in the image.
fn refuse_libraries(program: &Path) -> Result<()> {
    let headers = cmd::output(
        Command::new("readelf")
            .args(["--program-headers", "--wide"])
            .arg(program),
    )?;
    if headers.contains("INTERP") {
        bail!(
            "{} needs libraries, and the image has none; leave out --program",
            program.display()
        );
    }
    Ok(())
}

/// The commit that this is.
fn revision() -> String {
    let mut describe = Command::new("git");
    describe
        .args(["rev-parse", "HEAD"])
        .current_dir(repo::root());
    cmd::output(&mut describe).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
