//! Diagnostics: what the operator reads on standard error, line by line, never in anybody's way.

use std::io::{self, IsTerminal as _, Write};

use tracing::warn;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{
    limits::LOG_FLUSH_TIMEOUT,
    lines::{Destination, Lines, Trouble},
};

/// The way to standard error.
#[derive(Debug)]
pub struct Diagnostics {
    lines: Lines,
}

impl Diagnostics {
    /// Sends events there from now on; the environment variable `RUST_LOG` sets their level.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start() -> io::Result<Self> {
        let lines = Lines::open("diagnostics", Destination::Stderr, |trouble| {
            // Any other trouble with standard error cannot be told to anybody.
            if let Trouble::Dropped(lines) = trouble {
                warn!(
                    lines,
                    "standard error is too slow; diagnostics were dropped"
                );
            }
        })?;
        let filter = EnvFilter::builder()
            .with_default_directive(tracing::Level::INFO.into())
            .from_env_lossy();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(Events(lines.clone()))
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            // It would print the trouble to standard error, and panic.
            .log_internal_errors(false)
            .init();
        Ok(Self { lines })
    }

    /// Why the program ends, in its own voice.
    pub fn fatal(&self, error: &anyhow::Error) {
        self.lines.push(format!("underpass: {error:#}"));
    }

    /// Waits a moment for the last lines to be written.
    pub fn finish(&self) {
        // A reader that does not read does not get them.
        self.lines.flush(LOG_FLUSH_TIMEOUT);
    }
}

/// Makes an [`Event`] for each event.
struct Events(Lines);

impl<'a> MakeWriter<'a> for Events {
    type Writer = Event<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Event {
            lines: &self.0,
            text: Vec::new(),
        }
    }
}

/// Collects the text of one event and queues it whole.
struct Event<'a> {
    lines: &'a Lines,
    text: Vec<u8>,
}

impl Write for Event<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        self.lines.push(text.trim_end_matches('\n').to_owned());
    }
}
