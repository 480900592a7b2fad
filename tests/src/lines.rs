//! Lines that another process prints, collected by a thread, waited for with a deadline.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A growing list of lines.
#[derive(Debug)]
pub struct Lines {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// Collects the lines of `source` until it ends.
    pub fn collect(source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n') {
                let Ok(line) = line else { break };
                writer
                    .lock()
                    .push(String::from_utf8_lossy(&line).into_owned());
                writer.grown.notify_all();
            }
        });
        Self {
            shared,
            reader: Some(reader),
        }
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.shared.lock().clone()
    }

    /// The first value that `pick` finds in the lines so far or in those that come before `patience` ends.
    ///
    /// `pick` sees all lines and runs with the list locked: it must not ask for them again.
    pub fn wait<T>(
        &self,
        patience: Duration,
        mut pick: impl FnMut(&[String]) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut lines = self.shared.lock();
        loop {
            if let Some(value) = pick(&lines) {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self
                .shared
                .grown
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the source has ended and returns every line; call it when the process is known to be gone.
    pub fn finish(&mut self) -> Vec<String> {
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
        self.all()
    }
}
