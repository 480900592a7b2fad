//! Running commands: each is echoed before it starts, and a failure names the command line.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{repo, tools};

/// The cargo that runs xtask, in the repository root, without what it says of xtask: build scripts that look at that
/// would run again, and most dependencies be compiled again, whenever cargo is called from here or directly in turn.
pub(crate) fn cargo<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args).current_dir(repo::root());
    for (name, _) in env::vars_os() {
        let is_about_xtask = |name: &str| {
            ["CARGO_PKG_", "CARGO_MANIFEST_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        if name.to_str().is_some_and(is_about_xtask) {
            command.env_remove(name);
        }
    }
    command
}

/// A program of the nightly toolchain, in the repository root.
///
/// The environment is cleared of what an outer cargo or a developer's shell set for the stable
/// build: a stray `RUSTFLAGS` would change the object.
pub(crate) fn nightly<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("rustup");
    command
        .args(["run", tools::nightly()])
        .args(args)
        .current_dir(repo::root())
        .env("PATH", tools::path_with_cargo_bin());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(steers_a_build) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether an environment variable changes what cargo or rustc builds.
fn steers_a_build(name: &str) -> bool {
    const HARMLESS: [&str; 9] = [
        "CARGO_BUILD_JOBS",
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "RUSTUP_",
        "RUST_BACKTRACE",
    ];
    let cargo_or_rust = name.starts_with("CARGO") || name.starts_with("RUST");
    let harmless = HARMLESS.iter().any(|prefix| name.starts_with(prefix));
    name == "RUSTUP_TOOLCHAIN" || name == "LD_LIBRARY_PATH" || (cargo_or_rust && !harmless)
}

/// Runs a command to its end with our own standard streams; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", line(command));
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", words(command)))?;
    check(command, status)
}

/// Runs a command without echo and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start `{}`", words(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` failed with {}: {}",
            words(command),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a command succeeds; its output is thrown away.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command like [`run`] and returns, after it has ended, the lines of its standard error that
/// start with `prefix`. The whole of it is shown as it comes.
pub(crate) fn run_and_pick(command: &mut Command, prefix: &str) -> (Vec<String>, Result<()>) {
    eprintln!("$ {}", line(command));
    let mut picked = Vec::new();
    let result = (|| {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", words(command)))?;
        if let Some(stderr) = child.stderr.take() {
            for text in BufReader::new(stderr).split(b'\n') {
                let text = text?;
                let text = String::from_utf8_lossy(&text);
                eprintln!("{text}");
                picked.extend(text.strip_prefix(prefix).map(str::to_owned));
            }
        }
        check(command, child.wait()?)
    })();
    (picked, result)
}

/// Replaces this process by the command, so that signals and the exit code are the command's own.
/// Returns only if it could not be started.
pub(crate) fn exec(command: &mut Command) -> anyhow::Error {
    eprintln!("$ {}", line(command));
    let error = command.exec();
    anyhow::Error::new(error).context(format!("cannot start `{}`", words(command)))
}

/// An error unless the status is success.
pub(crate) fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed with {status}", words(command));
    }
    Ok(())
}

/// The command as a person would type it in the repository root, with its variables in front.
pub(crate) fn line(command: &Command) -> String {
    command
        .get_envs()
        .filter(|(name, _)| *name != "PATH")
        .filter_map(|(name, value)| Some((name, value?)))
        .map(|(name, value)| format!("{}={} ", name.display(), quoted(value)))
        .chain([words(command)])
        .collect()
}

/// The program and its arguments.
fn words(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // `cargo` reads better than the path of one toolchain's cargo.
    let program = match program.file_name() {
        Some(name) if name == "cargo" => name,
        _ => program.as_os_str(),
    };
    std::iter::once(program)
        .chain(command.get_args())
        .map(quoted)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A shell word: relative to the root where it lies below it, in quotes where needed.
fn quoted(word: &OsStr) -> String {
    let relative = Path::new(word)
        .strip_prefix(repo::root())
        .map_or_else(|_| OsString::from(word), |path| path.as_os_str().to_owned());
    let text = relative.to_string_lossy().replace('\u{1f}', " ");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_reads_as_typed_in_the_root() {
        let mut command = Command::new("/opt/toolchain/bin/cargo");
        command
            .arg("build")
            .arg(repo::root().join("target/x"))
            .arg("it's")
            .env("KEY", "a b")
            .env_remove("GONE");
        assert_eq!(line(&command), r"KEY='a b' cargo build target/x 'it'\''s'");
    }

    #[test]
    fn a_failure_names_the_command_and_its_complaint() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c"), "{text}");
        assert!(text.contains("exit status: 3: broken"), "{text}");
    }

    #[test]
    fn the_picked_lines_are_those_with_the_prefix() {
        let script =
            "echo 'skipped: no squid' >&2; echo other >&2; printf 'skipped: last' >&2; exit 1";
        let (picked, result) = run_and_pick(Command::new("sh").args(["-c", script]), "skipped: ");
        assert_eq!(picked, ["no squid", "last"]);
        assert!(result.is_err());
    }

    #[test]
    fn the_nightly_build_keeps_only_harmless_variables() {
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_PKG_NAME",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(steers_a_build(name), "{name} must be removed");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "HOME",
            "PATH",
            "RUSTUP_HOME",
        ] {
            assert!(!steers_a_build(name), "{name} must stay");
        }
    }
}
