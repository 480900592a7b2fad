//! Waiting on a condition instead of sleeping and hoping.

use std::{
    io::{self, ErrorKind},
    thread,
    time::{Duration, Instant},
};

/// Longest time a socket operation or a condition may take before a test calls it a hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Time between two looks at a condition.
const LOOK: Duration = Duration::from_millis(4);

/// Repeats an operation that a signal interrupted.
///
/// A socket with a timeout is not restarted by the kernel when the machine or the process was stopped for a moment
/// (signal(7)), and not all of the standard library's calls do it either.
pub fn uninterrupted<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Looks at `condition` until it holds.
///
/// # Panics
///
/// When `patience` is over and it still does not hold; `what` names it in the message.
pub fn wait_for<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            start.elapsed() < patience,
            "waited {patience:?} in vain: {what}"
        );
        thread::sleep(LOOK);
    }
}
