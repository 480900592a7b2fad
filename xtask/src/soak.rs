//! `cargo xtask soak`: tunnels at random, engine by engine, for as long as one likes.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{artifact, cmd, privilege::Privilege, tools};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long; a round that has begun is finished
    #[arg(long, value_name = "N", default_value_t = 1)]
    minutes: u64,
    /// What the choices follow from; without it they are new ones, and the seed is printed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Only this engine: auto, sockmap, splice or copy
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
}

/// Builds proxy and test, then becomes the test: the exit code is its own.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let privilege = Privilege::detect();
    if let Privilege::None(why) = privilege {
        bail!("the soak test makes network namespaces and needs root: {why}");
    }
    let proxy = artifact::build(
        &["build", "--release", "--package", "underpass"],
        "underpass",
    )?;
    let soak = artifact::build(
        &["build", "--package", "proxy-tests", "--bin", "soak"],
        "soak",
    )?;
    let vars = [
        ("PATH", tools::system_path()),
        ("UNDERPASS_BIN", proxy.into()),
    ];
    let mut command = privilege.command(&soak, &vars)?;
    command
        .arg(args.minutes.to_string())
        .arg(args.seed.map_or("-".to_owned(), |seed| seed.to_string()))
        .arg(args.engine.as_deref().unwrap_or("-"));
    Err(cmd::exec(&mut command))
}
