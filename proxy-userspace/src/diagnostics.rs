//! Diagnostics: what the operator reads on standard error, line by line, never in anybody's way.

use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use tracing::warn;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

use crate::{
    limits::LOG_FLUSH_TIMEOUT,
    lines::{Destination, Lines, Trouble},
};

/// The way to standard error.
#[derive(Debug)]
pub struct Diagnostics {
    lines: Lines,
    levels: Levels,
}

/// How diagnostics are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Which events are told, by level and module.
#[derive(Clone, Debug)]
pub struct Levels(reload::Handle<EnvFilter, Registry>);

impl Levels {
    /// What is told, as `RUST_LOG` would say it.
    #[must_use]
    pub fn get(&self) -> String {
        let levels = self.0.with_current(ToString::to_string);
        levels.unwrap_or_default()
    }

    /// From now on this is told.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn set(&self, levels: &str) -> Result<(), String> {
        let wrong = |why: &dyn std::fmt::Display| {
            format!(
                "'{levels}' is no level: {why}; write error, warn, info, debug or trace, or underpass::dns=debug,info"
            )
        };
        if levels.is_empty() {
            return Err(wrong(&"it is empty"));
        }
        let filter = EnvFilter::try_new(levels).map_err(|error| wrong(&error))?;
        self.0.reload(filter).map_err(|error| wrong(&error))
    }
}

impl Diagnostics {
    /// Sends events there from now on; the environment variable `RUST_LOG` sets their level.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(format: LogFormat) -> io::Result<Self> {
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
        let (filter, handle) = reload::Layer::new(filter);
        let layer = fmt::layer()
            .with_writer(Events(lines.clone()))
            .with_target(false)
            // It would print the trouble to standard error, and panic.
            .log_internal_errors(false);
        let layer = match format {
            LogFormat::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
            LogFormat::Json => layer.json().flatten_event(true).with_target(true).boxed(),
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(layer)
            .init();
        let levels = Levels(handle);
        Ok(Self { lines, levels })
    }

    /// The queue below.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Which events are told.
    pub fn levels(&self) -> &Levels {
        &self.levels
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
