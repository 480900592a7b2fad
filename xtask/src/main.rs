//! Developer verbs for Underpass: `cargo xtask --help` lists them.
//!
//! One file per verb. What verbs share lives in `cmd` (running commands), `privilege` (root or
//! sudo), `tools` (finding programs), `repo` (paths), `artifact` (built binaries) and `report` (the
//! summary at the end).
//!
//! Cargo always runs as the user who called; only the finished binaries that need root get it, so
//! nothing in the target directory ends up owned by root.

#![expect(clippy::print_stdout, reason = "a command-line tool talks on stdout")]

mod artifact;
mod bench;
mod cmd;
mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod lint;
mod privilege;
mod repo;
mod report;
mod run;
mod setup;
mod soak;
mod test;
mod tools;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, run, test and check Underpass.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build and start the proxy on 127.0.0.1:3128
    Run(run::Args),
    /// Run every check and test, then say what passed and what was skipped
    Test(test::Args),
    /// Install what the tests and the BPF build need, or print the commands
    Setup,
    /// Check formatting, clippy and rustdoc
    Lint,
    /// Build or verify the checked-in BPF object
    #[command(subcommand)]
    Ebpf(ebpf::Verb),
    /// Show a tunnel through the kernel from end to end
    Demo(demo::Args),
    /// Measure beside direct forwarding and other proxies; `bench --help` lists its options
    Bench(bench::Args),
    /// Let tunnels live and die at random, and check every byte
    Soak(soak::Args),
    /// Run fuzz targets, or list them
    Fuzz(fuzz::Args),
    /// Make what is released: a Debian package, a tarball, a bill of materials
    Dist(dist::Args),
    /// Make the container image
    Image(dist::image::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Run(args) => run::run(&args),
        Verb::Test(args) => Ok(test::run(&args)),
        Verb::Setup => setup::run(),
        Verb::Lint => Ok(lint::run()),
        Verb::Ebpf(verb) => ebpf::run(&verb),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Dist(args) => dist::run(&args),
        Verb::Image(args) => dist::image::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
