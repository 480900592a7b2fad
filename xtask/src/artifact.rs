//! Building a binary and learning from cargo where it is.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{cmd, repo};

/// Compiles the proxy for where it need not be fast: the optimiser takes two thirds of the time.
pub(crate) const UNOPTIMISED: [&str; 2] = ["--config", "profile.dev.package.underpass.opt-level=0"];

/// What makes rustc link everything into a program, the C library too.
pub(crate) const STATIC: [&str; 2] = ["-C", "target-feature=+crt-static"];

/// What to do where that fails.
const STATIC_HINT: &str = "the program cannot be linked with all that it needs; does this machine have the C library \
     to link with (libc.a, in libc6-dev on Debian, glibc-static on Fedora)?";

/// Runs `cargo ARGS --message-format=json-render-diagnostics` and returns the executable that it
/// made for the target of this name. Diagnostics go to our standard error as usual.
pub(crate) fn build(args: &[&str], target: &str) -> Result<PathBuf> {
    build_with(args, target, &[])
}

/// The same, with these variables in the environment.
pub(crate) fn build_with(args: &[&str], target: &str, vars: &[(&str, &Path)]) -> Result<PathBuf> {
    let mut executable = None;
    let command = each_message(args, vars, |message| {
        if let Some(path) = executable_of(message, target) {
            executable = Some(path);
        }
    })?;
    executable.with_context(|| format!("`{}` made no `{target}`", cmd::line(&command)))
}

/// Runs `cargo ARGS`, which builds the program of the package `underpass`, and links that program once more, with all
/// that it needs: where the one is that needs no library of the system.
///
/// To cargo the flag for this is one for all crates, which it would compile again; it only matters to the linker.
pub(crate) fn build_static(args: &[&str]) -> Result<PathBuf> {
    let mut library = None;
    let command = each_message(args, &[], |message| {
        if let Some(path) = library_of(message, "underpass") {
            library = Some(path);
        }
    })?;
    let library = library
        .with_context(|| format!("`{}` made no library `underpass`", cmd::line(&command)))?;
    let directory = library.parent().context("a library in no directory")?;
    let program = repo::target_dir().join("static/underpass");
    fs::create_dir_all(repo::target_dir().join("static"))?;
    let joined = |prefix: &str, path: &Path| {
        let mut argument = OsString::from(prefix);
        argument.push(path);
        argument
    };
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--edition=2024", "--crate-name=underpass"])
        .args(STATIC)
        .arg(joined("--extern=underpass=", &library))
        .arg(joined("-Ldependency=", directory))
        .arg("-o")
        .arg(&program)
        .arg(repo::root().join("proxy-userspace/src/main.rs"));
    cmd::run(&mut rustc).context(STATIC_HINT)?;
    Ok(program)
}

/// Runs `cargo ARGS` and shows each of its messages: what was run. Diagnostics go to our standard error as usual.
fn each_message(
    args: &[&str],
    vars: &[(&str, &Path)],
    mut look: impl FnMut(&Value),
) -> Result<Command> {
    let (verb, rest) = args.split_first().context("cargo without a command")?;
    let mut command = cmd::cargo([verb]);
    command
        .arg("--message-format=json-render-diagnostics")
        .args(rest)
        .envs(vars.iter().copied());
    eprintln!("$ {}", cmd::line(&command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", cmd::line(&command)))?;
    if let Some(messages) = child.stdout.take() {
        for line in BufReader::new(messages).lines() {
            if let Ok(message) = serde_json::from_str(&line?) {
                look(&message);
            }
        }
    }
    cmd::check(&command, child.wait()?)?;
    Ok(command)
}

/// The executable that one message of cargo reports for the target, if it is such a message.
fn executable_of(message: &Value, target: &str) -> Option<PathBuf> {
    if !is_about(message, target) {
        return None;
    }
    message.get("executable")?.as_str().map(PathBuf::from)
}

/// The library that one message of cargo reports for the target, if it is such a message.
fn library_of(message: &Value, target: &str) -> Option<PathBuf> {
    if !is_about(message, target) {
        return None;
    }
    let files = message.get("filenames")?.as_array()?;
    let mut paths = files.iter().filter_map(Value::as_str).map(PathBuf::from);
    paths.find(|path| {
        path.extension()
            .is_some_and(|extension| extension == "rlib")
    })
}

fn is_about(message: &Value, target: &str) -> bool {
    let is = |pointer, value| message.pointer(pointer).and_then(Value::as_str) == Some(value);
    is("/reason", "compiler-artifact") && is("/target/name", target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_files_of_the_named_target_only() {
        let message = |name: &str, executable: &str, file: &str| {
            let text = format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},
                    "executable":{executable},"filenames":["{file}"]}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let program = message("suites", r#""/t/suites-1""#, "/t/suites-1");
        assert_eq!(
            executable_of(&program, "suites"),
            Some(PathBuf::from("/t/suites-1"))
        );
        assert_eq!(library_of(&program, "suites"), None);
        let library = message("suites", "null", "/t/libsuites-2.rlib");
        assert_eq!(executable_of(&library, "suites"), None);
        assert_eq!(
            library_of(&library, "suites"),
            Some(PathBuf::from("/t/libsuites-2.rlib"))
        );
        let other = message("other", r#""/t/o""#, "/t/o.rlib");
        assert_eq!(executable_of(&other, "suites"), None);
        assert_eq!(library_of(&other, "suites"), None);
        let end = serde_json::from_str(r#"{"reason":"build-finished","success":true}"#).unwrap();
        assert_eq!(executable_of(&end, "suites"), None);
    }
}
