//! What happened, part by part: collected while a verb runs, printed as its last lines.

use std::{fmt, process::ExitCode};

use anyhow::{Error, Result};

/// The outcome of each part, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    parts: Vec<(String, Outcome)>,
}

/// How one part ended.
#[derive(Debug)]
enum Outcome {
    Passed,
    Failed(Error),
    /// Could not be done here; the reason says what would change that.
    Skipped(String),
    /// The caller asked for less than everything.
    LeftOut(&'static str),
}

impl Report {
    /// Runs a part and records how it ended. A failure does not stop the parts after it.
    pub(crate) fn part(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        self.attempt(name, || work().map(|()| None));
    }

    /// The same for a part that may turn out to be impossible here: then it says why.
    pub(crate) fn attempt(&mut self, name: &str, work: impl FnOnce() -> Result<Option<String>>) {
        eprintln!("\n== {name}");
        let outcome = match work() {
            Ok(None) => Outcome::Passed,
            Ok(Some(reason)) => Outcome::Skipped(reason),
            Err(error) => {
                eprintln!("failed: {name}: {error:#}");
                Outcome::Failed(error)
            }
        };
        self.parts.push((name.to_owned(), outcome));
    }

    /// Records a part that cannot be done here.
    pub(crate) fn skip(&mut self, name: &str, reason: impl Into<String>) {
        self.parts
            .push((name.to_owned(), Outcome::Skipped(reason.into())));
    }

    /// Records a part that the caller did not ask for.
    pub(crate) fn leave_out(&mut self, name: &str, reason: &'static str) {
        self.parts.push((name.to_owned(), Outcome::LeftOut(reason)));
    }

    /// Turns every skip into a failure: where everything is installed, nothing may be missing.
    pub(crate) fn forbid_skips(&mut self) {
        for (_, outcome) in &mut self.parts {
            if let Outcome::Skipped(reason) = outcome {
                *outcome = Outcome::Failed(Error::msg(format!("skipped: {reason}")));
            }
        }
    }

    /// Prints the summary; failure if any part failed.
    pub(crate) fn close(&self) -> ExitCode {
        println!("\n{self}");
        if self.count(|outcome| matches!(outcome, Outcome::Failed(_))) > 0 {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }

    fn count(&self, which: impl Fn(&Outcome) -> bool) -> usize {
        self.parts.iter().filter(|(_, o)| which(o)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== summary")?;
        for (name, outcome) in &self.parts {
            match outcome {
                Outcome::Passed => writeln!(f, "passed: {name}")?,
                Outcome::Failed(error) => writeln!(f, "failed: {name}: {error:#}")?,
                Outcome::Skipped(reason) => writeln!(f, "skipped: {name}: {reason}")?,
                Outcome::LeftOut(reason) => writeln!(f, "not run: {name}: {reason}")?,
            }
        }
        let passed = self.count(|outcome| matches!(outcome, Outcome::Passed));
        let failed = self.count(|outcome| matches!(outcome, Outcome::Failed(_)));
        write!(f, "parts: {passed} passed, {failed} failed")?;
        match self.parts.len() - passed - failed {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed() -> Report {
        let mut report = Report::default();
        report.part("unit tests", || Ok(()));
        report.skip("e2e suites", "need root");
        report.leave_out("lint", "--skip-lint was given");
        report
    }

    #[test]
    fn the_summary_tells_every_part_and_closes_with_the_counts() {
        let text = mixed().to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "== summary",
                "passed: unit tests",
                "skipped: e2e suites: need root",
                "not run: lint: --skip-lint was given",
                "parts: 1 passed, 0 failed, 2 skipped",
            ]
        );
    }

    #[test]
    fn a_forbidden_skip_fails_but_what_was_not_asked_for_does_not() {
        let mut report = mixed();
        assert_eq!(report.close(), ExitCode::SUCCESS);
        report.forbid_skips();
        assert_eq!(report.close(), ExitCode::FAILURE);
        let text = report.to_string();
        assert!(
            text.contains("failed: e2e suites: skipped: need root"),
            "{text}"
        );
        assert!(
            text.ends_with("parts: 1 passed, 1 failed, 1 skipped"),
            "{text}"
        );
    }

    #[test]
    fn a_failure_does_not_stop_the_next_part() {
        let mut report = Report::default();
        report.part("one", || anyhow::bail!("broken"));
        let mut ran = false;
        report.part("two", || {
            ran = true;
            Ok(())
        });
        assert!(ran);
        assert!(report.to_string().ends_with("parts: 1 passed, 1 failed"));
    }
}
