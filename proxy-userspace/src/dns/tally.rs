//! How many questions were asked, and who had the answers. Of the process: resolvers come and go with configurations.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::LookupError;

/// Who had an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The hosts file.
    Hosts,
    /// A question before.
    Cache,
    /// A server.
    Server,
}

/// The names of sources, and of results.
const SOURCES: [&str; 3] = ["hosts", "cache", "server"];
const RESULTS: [&str; 5] = ["found", "no-such-name", "no-records", "failed", "timeout"];

static COUNTS: [[AtomicU64; RESULTS.len()]; SOURCES.len()] =
    [const { [const { AtomicU64::new(0) }; RESULTS.len()] }; SOURCES.len()];

/// Counts an answer.
pub(super) fn note(source: Source, result: Result<(), &LookupError>) {
    let result = match result {
        Ok(()) => 0,
        Err(LookupError::NoSuchName) => 1,
        Err(LookupError::NoRecords) => 2,
        Err(LookupError::Failed(_) | LookupError::Unreachable(_)) => 3,
        Err(LookupError::Timeout) => 4,
    };
    let counts = COUNTS.get(source as usize);
    if let Some(count) = counts.and_then(|counts| counts.get(result)) {
        count.fetch_add(1, Relaxed);
    }
}

/// Answers so far, by who had them and what they said.
pub fn lookups() -> impl Iterator<Item = (&'static str, &'static str, u64)> {
    let rows = SOURCES.into_iter().zip(&COUNTS);
    rows.flat_map(|(source, counts)| {
        let row = RESULTS.into_iter().zip(counts);
        row.map(move |(result, count)| (source, result, count.load(Relaxed)))
    })
}
