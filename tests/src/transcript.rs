//! What a script of a suite has printed, in parts that begin with `== NAME`.

use std::process::Command;

use crate::daemon::run_to_end;

/// The output of a script that has run to its end.
#[derive(Debug)]
pub struct Transcript {
    text: String,
    said: String,
}

impl Transcript {
    /// Runs the script.
    ///
    /// # Panics
    ///
    /// When it fails, with what it printed.
    pub fn of(script: &mut Command) -> Self {
        let output = run_to_end(script);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}\n{said}");
        Self { text, said }
    }

    /// The part of this name.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn part(&self, name: &str) -> &str {
        let Self { text, said } = self;
        let rest = text.split_once(&format!("== {name}\n"));
        let (_, rest) = rest.unwrap_or_else(|| panic!("no {name} in {text}\n{said}"));
        rest.split("\n== ").next().unwrap_or_default()
    }

    /// Insists on this being in the part of this name.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub fn expect(&self, name: &str, expected: &str) {
        let Self { text, said } = self;
        let found = self.part(name);
        assert!(
            found.contains(expected),
            "no {expected} in {name}: {text}\n{said}"
        );
    }
}
