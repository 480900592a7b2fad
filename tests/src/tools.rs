//! Other people's programs that the suites drive: whether they are here, and what they print.

use std::process::Command;

/// Why `program` cannot be used here; `None` when it can.
pub fn missing(program: &str, probe: &[&str]) -> Option<String> {
    match Command::new(program).args(probe).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "`{program} {}` fails ({}): run `cargo xtask setup`",
            probe.join(" "),
            output.status
        )),
        Err(error) => Some(format!(
            "cannot run `{program}` ({error}): run `cargo xtask setup`"
        )),
    }
}

/// Returns from the calling test, with a line that says why, when a program is not installed or too poor.
#[macro_export]
macro_rules! require_tool_or_skip {
    ($program:expr, $($probe:expr),+) => {
        if let Some(reason) = $crate::tools::missing($program, &[$($probe),+]) {
            $crate::privilege::skip(&reason);
            return;
        }
    };
}
