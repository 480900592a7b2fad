//! How to become root for the binaries that need it: we are root, sudo works, or neither.

use std::{
    ffi::OsString,
    io::{IsTerminal as _, stdin},
    path::Path,
    process::Command,
};

use anyhow::{Result, bail};

use crate::{cmd, tools};

/// The way to root on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// We are root.
    Root,
    /// Sudo works without a password.
    Sudo,
    /// Sudo asks for a password, and there is a terminal to type it.
    SudoAsks,
    /// There is no way; the text says why.
    None(&'static str),
}

impl Privilege {
    /// Finds out. Runs `sudo -n true` at most.
    pub(crate) fn detect() -> Self {
        if rustix::process::geteuid().is_root() {
            return Self::Root;
        }
        let Some(sudo) = tools::find("sudo") else {
            return Self::None("not root, and sudo is not installed");
        };
        if cmd::succeeds(Command::new(sudo).args(["-n", "true"])) {
            Self::Sudo
        } else if stdin().is_terminal() {
            Self::SudoAsks
        } else {
            Self::None("not root, and sudo wants a password but there is no terminal")
        }
    }

    /// A command that runs the program as root with these variables added to its environment.
    ///
    /// Sudo drops the caller's environment, so the variables travel as arguments of `env`.
    pub(crate) fn command(self, program: &Path, vars: &[(&str, OsString)]) -> Result<Command> {
        let mut command = match self {
            Self::Root => {
                let mut command = Command::new(program);
                command.envs(vars.iter().map(|(name, value)| (name, value)));
                return Ok(command);
            }
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.arg("-n");
                command
            }
            Self::SudoAsks => Command::new("sudo"),
            Self::None(why) => bail!("{} needs root: {why}", program.display()),
        };
        if !vars.is_empty() {
            command.arg("env").args(vars.iter().map(|(name, value)| {
                let mut word = OsString::from(name);
                word.push("=");
                word.push(value);
                word
            }));
        }
        command.arg(program);
        Ok(command)
    }
}

/// Those of the named variables that are set in our environment, for [`Privilege::command`].
pub(crate) fn inherited(names: &[&'static str]) -> Vec<(&'static str, OsString)> {
    names
        .iter()
        .filter_map(|name| Some((*name, std::env::var_os(name)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_reach_the_program_through_sudo() {
        let vars = [("A", OsString::from("1")), ("B", OsString::from("x y"))];
        let line = |privilege: Privilege| {
            let command = privilege.command(Path::new("/bin/prog"), &vars).unwrap();
            cmd::line(&command)
        };
        assert_eq!(line(Privilege::Root), "A=1 B='x y' /bin/prog");
        assert_eq!(line(Privilege::Sudo), "sudo -n env A=1 'B=x y' /bin/prog");
        assert_eq!(line(Privilege::SudoAsks), "sudo env A=1 'B=x y' /bin/prog");
    }

    #[test]
    fn without_a_way_to_root_the_reason_is_given() {
        let error = Privilege::None("no sudo here")
            .command(Path::new("/bin/prog"), &[])
            .unwrap_err();
        assert_eq!(error.to_string(), "/bin/prog needs root: no sudo here");
    }
}
