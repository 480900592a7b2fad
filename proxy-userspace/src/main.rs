//! The `underpass` command: parses its arguments, and maps results to exit codes.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use underpass::{
    app,
    config::{
        Config,
        cli::{Cli, Command},
    },
    diagnostics::Diagnostics,
    doctor,
};

fn main() -> ExitCode {
    let config = match Cli::parse().command {
        Command::Run(run) => Config::load(run).map(Some),
        Command::Doctor => Ok(None),
    };
    let diagnostics = match Diagnostics::start() {
        Ok(diagnostics) => diagnostics,
        Err(error) => {
            // With standard error gone there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "underpass: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = config.map_err(Into::into).and_then(run);
    let code = outcome.unwrap_or_else(|error| {
        diagnostics.fatal(&error);
        ExitCode::FAILURE
    });
    diagnostics.finish();
    code
}

/// Runs the proxy, or without a configuration the examination.
fn run(config: Option<Config>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if let Some(config) = config {
        let outcome = runtime.block_on(app::run(config));
        // Without waiting for names that are still being resolved.
        runtime.shutdown_background();
        outcome?;
        return Ok(ExitCode::SUCCESS);
    }
    let (report, sound) = runtime.block_on(doctor::examine());
    writeln!(std::io::stdout(), "{report}")?;
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
