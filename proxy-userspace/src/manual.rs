//! The manual's pages and the completions of shells, made from what the command line is made of.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::{Shell, generate, generate_to};

use crate::config::cli::Cli;

const NAME: &str = "underpass";

/// Shells that packages have a place for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// A script that completes our command line in a shell.
#[must_use]
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), NAME, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a page for each command, and the completions, into a directory.
///
/// # Errors
/// It cannot be written to.
pub fn write(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let write = || {
        clap_mangen::generate_to(Cli::command(), directory)?;
        for shell in SHELLS {
            generate_to(shell, &mut Cli::command(), NAME, directory)?;
        }
        Ok::<(), std::io::Error>(())
    };
    write().with_context(|| format!("cannot write to {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_knows_the_commands() {
        for shell in SHELLS {
            let script = completions(shell);
            for word in ["tunnels", "allow-client", "top"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
