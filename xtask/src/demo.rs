//! `cargo xtask demo`: a tunnel through the kernel, from end to end, in network namespaces.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::{
    artifact, cmd,
    privilege::Privilege,
    test::{DEMO, PROXY},
    tools,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail unless the kernel carried the bytes, also where it cannot
    #[arg(long)]
    require_kernel: bool,
}

/// Builds proxy and demo, then becomes the demo: the exit code is its own.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    Err(cmd::exec(&mut command(args.require_kernel)?))
}

/// Builds proxy and demo: the command that shows it.
pub(crate) fn command(require_kernel: bool) -> Result<Command> {
    let privilege = Privilege::detect();
    if let Privilege::None(why) = privilege {
        bail!("the demo makes network namespaces and needs root: {why}");
    }
    let proxy = artifact::build(&PROXY, "underpass")?;
    let demo = artifact::build(&DEMO, "demo")?;
    let vars = [
        ("PATH", tools::system_path()),
        ("UNDERPASS_BIN", proxy.into()),
    ];
    let mut command = privilege.command(&demo, &vars)?;
    command.args(require_kernel.then_some("--require-kernel"));
    Ok(command)
}
