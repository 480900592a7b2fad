//! The access log: one line a transaction, written when it ends.

mod squid;

use std::io;

use tracing::warn;

pub use squid::{Record, Tag};

use crate::lines::{Destination, Lines, Trouble};

/// The log as sessions see it.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: Lines,
}

impl AccessLog {
    /// Opens the log.
    ///
    /// # Errors
    /// The destination cannot be opened.
    pub fn open(destination: Destination) -> io::Result<Self> {
        let lines = Lines::open("access-log", destination, |trouble| match trouble {
            Trouble::Unwritable(error) => {
                warn!(%error, "the access log cannot be written; lines are lost until it can");
            }
            Trouble::Dropped(lines) => {
                warn!(lines, "the access log is too slow; lines were dropped");
            }
            Trouble::NotReopened(error) => {
                warn!(%error, "the access log cannot be opened again; the old file is kept");
            }
        })?;
        Ok(Self { lines })
    }

    /// Queues the record's line.
    pub fn log(&self, record: &Record) {
        self.lines.push(record.to_string());
    }

    /// The queue below, to reopen or flush it.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }
}
