//! `cargo xtask run`: the proxy from source, with the configuration for developers.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    artifact, cmd, ebpf,
    privilege::{self, Privilege},
    repo,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build with optimisation
    #[arg(long)]
    release: bool,
    /// Show what the BPF program does with each direction of a tunnel (needs what `setup` installs)
    #[arg(long)]
    program_log: bool,
    /// Passed on to `underpass run`
    #[arg(last = true, value_name = "ARGS")]
    passed_on: Vec<OsString>,
}

/// Builds, then becomes the proxy: Ctrl-C and the exit code are the proxy's own.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut build = vec!["build", "--package", "underpass"];
    if args.release {
        build.push("--release");
    }
    let binary = if args.program_log {
        // Beside the plain build each would throw away the other's work.
        logging(&build, &repo::target_dir().join("program-log"))?
    } else {
        ebpf::refresh()?;
        artifact::build(&build, "underpass")?
    };

    let privilege = Privilege::detect();
    let mut proxy = if let Privilege::None(why) = privilege {
        eprintln!("no kernel engine: {why}; tunnels will be served by the copy engine");
        Command::new(&binary)
    } else {
        privilege.command(&binary, &privilege::inherited(&["RUST_LOG"]))?
    };
    proxy.arg("run");
    if !gives(&args.passed_on, "--config") {
        proxy
            .arg("--config")
            .arg(repo::root().join("deploy/config/dev.toml"));
    }
    proxy.args(&args.passed_on);
    if !gives(&args.passed_on, "--listen") && !gives(&args.passed_on, "--config") {
        println!("try: curl -v --proxy http://127.0.0.1:3128 https://example.com/");
    }
    Err(cmd::exec(&mut proxy))
}

/// Builds the proxy with the object that logs, below `target`.
pub(crate) fn logging(build: &[&str], target: &Path) -> Result<PathBuf> {
    let object = ebpf::build_logging()?;
    let features = ["--features", "program-log"];
    artifact::build_with(
        &[build, features.as_slice()].concat(),
        "underpass",
        &[
            ("UNDERPASS_BPF_OBJECT", &object),
            ("CARGO_TARGET_DIR", target),
        ],
    )
}

/// Whether the arguments hold an option, as `--option value` or `--option=value`.
fn gives(args: &[OsString], option: &str) -> bool {
    args.iter()
        .filter_map(|arg| OsStr::to_str(arg)?.strip_prefix(option))
        .any(|rest| rest.is_empty() || rest.starts_with('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_seen_in_both_spellings() {
        let args = ["--listen=[::1]:1", "--config", "x.toml"].map(OsString::from);
        assert!(gives(&args, "--listen"));
        assert!(gives(&args, "--config"));
        assert!(!gives(&args, "--list"));
        assert!(!gives(&args, "--engine"));
    }
}
