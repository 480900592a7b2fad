//! `cargo xtask bench`: Underpass beside direct forwarding and other proxies.

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Result, bail};

use crate::{artifact, cmd, privilege::Privilege, tools};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Options of the benchmark; --help lists them
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS"
    )]
    passed_on: Vec<OsString>,
}

/// Builds proxy and benchmark as they are released, then becomes the benchmark: the exit code is its own.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let privilege = Privilege::detect();
    if let Privilege::None(why) = privilege {
        bail!("the benchmark makes network namespaces and needs root: {why}");
    }
    let build = ["build", "--release", "--package"];
    let proxy = artifact::build(&[&build[..], &["underpass"]].concat(), "underpass")?;
    let bench = artifact::build(
        &[&build[..], &["proxy-tests", "--bin", "bench"]].concat(),
        "bench",
    )?;
    let vars = [
        ("PATH", tools::system_path()),
        ("UNDERPASS_BIN", proxy.into()),
    ];
    let mut command = privilege.command(&bench, &vars)?;
    Err(cmd::exec(command.args(&args.passed_on)))
}
