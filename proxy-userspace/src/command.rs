//! The command: parses its arguments, does what they say, and maps results to exit codes.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;

use crate::{
    admin, app, capabilities,
    config::{
        Config,
        cli::{Cli, Command, ConfigCommand},
    },
    diagnostics::Diagnostics,
    doctor, explain, manual,
};

/// Runs the command that the arguments of this process name: its exit code.
pub fn main() -> ExitCode {
    let Cli {
        log_format,
        command,
    } = Cli::parse();
    let diagnostics = match Diagnostics::start(log_format) {
        Ok(diagnostics) => diagnostics,
        Err(error) => {
            // With standard error gone there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "underpass: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = capabilities::take_up() {
        tracing::warn!("goes on without capabilities that it was given: {error}");
    }
    let code = execute(command, &diagnostics).unwrap_or_else(|error| {
        diagnostics.fatal(&error);
        ExitCode::FAILURE
    });
    diagnostics.finish();
    code
}

/// Does what the command says.
fn execute(command: Command, diagnostics: &Diagnostics) -> anyhow::Result<ExitCode> {
    let (text, good) = match command {
        Command::Run(settings) => {
            let config = Config::load(&settings)?;
            let runtime = runtime()?;
            let outcome = runtime.block_on(app::run(settings, config, diagnostics));
            // Without waiting for names that are still being resolved.
            runtime.shutdown_background();
            outcome?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Check(settings) => (explain::check(&settings)?.0, true),
        Command::Explain(arguments) => runtime()?.block_on(explain::explain(&arguments))?,
        Command::Config(ConfigCommand::Convert { file }) => {
            let (text, notices) = explain::convert(&file)?;
            for notice in notices {
                tracing::info!("{notice}");
            }
            (text, true)
        }
        Command::Config(ConfigCommand::Schema) => (explain::json_schema(), true),
        Command::Ask(what) => (runtime()?.block_on(admin::ask(&what))?, true),
        Command::Completions { shell } => (manual::completions(shell), true),
        Command::Manual { directory } => {
            manual::write(&directory)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Top(arguments) => {
            let runtime = runtime()?;
            let outcome = runtime.block_on(admin::top(&arguments));
            // A thread still waits for keys.
            runtime.shutdown_background();
            outcome?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Doctor => runtime()?.block_on(doctor::examine()),
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}
