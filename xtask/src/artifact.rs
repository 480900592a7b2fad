//! Building a binary and learning from cargo where it is.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cmd;

/// Compiles the proxy for where it need not be fast: the optimiser takes two thirds of the time.
pub(crate) const UNOPTIMISED: [&str; 2] = ["--config", "profile.dev.package.underpass.opt-level=0"];

/// Runs `cargo ARGS --message-format=json-render-diagnostics` and returns the executable that it
/// made for the target of this name. Diagnostics go to our standard error as usual.
pub(crate) fn build(args: &[&str], target: &str) -> Result<PathBuf> {
    build_with(args, target, &[])
}

/// The same, with these variables in the environment.
pub(crate) fn build_with(args: &[&str], target: &str, vars: &[(&str, &Path)]) -> Result<PathBuf> {
    let mut command = cmd::cargo(args);
    command
        .arg("--message-format=json-render-diagnostics")
        .envs(vars.iter().copied());
    eprintln!("$ {}", cmd::line(&command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", cmd::line(&command)))?;
    let mut executable = None;
    if let Some(messages) = child.stdout.take() {
        for message in BufReader::new(messages).lines() {
            if let Some(path) = executable_of(&message?, target) {
                executable = Some(path);
            }
        }
    }
    cmd::check(&command, child.wait()?)?;
    executable.with_context(|| format!("`{}` made no `{target}`", cmd::line(&command)))
}

/// The executable that one message of cargo reports for the target, if it is such a message.
fn executable_of(message: &str, target: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message.get("reason")? != "compiler-artifact"
        || message.get("target")?.get("name")? != target
    {
        return None;
    }
    message
        .get("executable")?
        .as_str()
        .map(|path| PathBuf::from(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_executable_of_the_named_target_only() {
        let message = |name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"executable":{executable}}}"#
            )
        };
        let path = Some(PathBuf::from("/t/suites-1"));
        assert_eq!(
            executable_of(&message("suites", r#""/t/suites-1""#), "suites"),
            path
        );
        assert_eq!(executable_of(&message("suites", "null"), "suites"), None);
        assert_eq!(
            executable_of(&message("other", r#""/t/o""#), "suites"),
            None
        );
        assert_eq!(
            executable_of(r#"{"reason":"build-finished","success":true}"#, "suites"),
            None
        );
        assert_eq!(executable_of("not json", "suites"), None);
    }
}
