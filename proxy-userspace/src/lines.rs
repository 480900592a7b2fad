//! Lines for a file, a standard stream or a log server, written by a thread of its own behind a bounded queue: a
//! slow disk or a pipe that nobody reads must not slow a tunnel, nor keep the proxy from stopping.
//!
//! What does not fit the queue is dropped and counted. All logs are written this way.

mod destination;
mod syslog;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use self::destination::Output;
pub use self::{destination::Destination, syslog::Priority};
use crate::limits::{LOG_PAUSE, LOG_QUEUE_LINES};

/// What can be wrong with a destination that was opened.
#[derive(Debug)]
pub enum Trouble {
    /// It cannot be written; lines are lost until it can. Told once.
    Unwritable(io::Error),
    /// It is too slow; this many lines were dropped since the last report.
    Dropped(u64),
    /// It could not be opened again; the old file is kept.
    NotReopened(io::Error),
}

enum Message {
    Line(String),
    Flush(SyncSender<()>),
    /// Nothing, but the writer looks up.
    Wake,
}

/// The queue's end for whoever writes. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Lines {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    destination: Destination,
    /// Lines that found no room.
    dropped: AtomicU64,
    /// Whether the destination is to be opened again.
    reopen: AtomicBool,
}

impl Lines {
    /// Opens the destination and starts its thread. `report` is called there.
    ///
    /// # Errors
    /// The destination cannot be opened.
    pub fn open(
        name: &str,
        destination: Destination,
        report: impl Fn(Trouble) + Send + 'static,
    ) -> io::Result<Self> {
        let output = destination.open()?;
        let (queue, messages) = sync_channel(LOG_QUEUE_LINES);
        let shared = Arc::new(Shared {
            destination,
            dropped: AtomicU64::new(0),
            reopen: AtomicBool::new(false),
        });
        let writer = Writer {
            output,
            shared: Arc::clone(&shared),
            reported: 0,
            healthy: true,
            report,
        };
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || writer.run(&messages))?;
        Ok(Self { queue, shared })
    }

    /// Queues a line, given without its newline. Never waits.
    pub fn push(&self, line: String) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.shared.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Where the lines go.
    pub fn destination(&self) -> &Destination {
        &self.shared.destination
    }

    /// How many lines found no room.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Has the destination opened again, after somebody renamed the file.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Relaxed);
        // With a full queue the writer is not asleep.
        let _ = self.queue.try_send(Message::Wake);
    }

    /// Waits until everything queued so far is written; false if that takes longer than `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let (done, wait) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(error) = self.queue.try_send(message) {
            let TrySendError::Full(unsent) = error else {
                return false;
            };
            if Instant::now() >= deadline {
                return false;
            }
            message = unsent;
            thread::sleep(Duration::from_millis(5));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        wait.recv_timeout(left).is_ok()
    }
}

/// The thread's half.
struct Writer<R> {
    output: Box<dyn Output>,
    shared: Arc<Shared>,
    /// How many dropped lines were reported.
    reported: u64,
    /// Whether the last write went well.
    healthy: bool,
    report: R,
}

impl<R: Fn(Trouble)> Writer<R> {
    /// Writes until every [`Lines`] is gone.
    fn run(mut self, messages: &Receiver<Message>) {
        let mut waiting = Vec::new();
        while let Ok(message) = messages.recv() {
            if self.shared.reopen.swap(false, Relaxed) {
                self.reopen();
            }
            self.take(message, &mut waiting);
            // Whatever waits goes out in the same write.
            while let Ok(message) = messages.try_recv() {
                self.take(message, &mut waiting);
            }
            self.flush();
            for done in waiting.drain(..) {
                // Whoever waited may have lost patience.
                let _ = done.try_send(());
            }
            // Where lines come fast, most of them then find us awake.
            thread::sleep(LOG_PAUSE);
        }
    }

    fn take(&mut self, message: Message, waiting: &mut Vec<SyncSender<()>>) {
        match message {
            Message::Line(line) => self.write(&line),
            Message::Flush(done) => waiting.push(done),
            Message::Wake => {}
        }
    }

    fn write(&mut self, line: &str) {
        // Success means no more than room in the buffer: only a flush tells that all is well.
        if let Err(error) = self.output.put(line) {
            self.note_failure(error);
        }
    }

    fn flush(&mut self) {
        match self.output.flush() {
            Ok(()) => self.healthy = true,
            Err(error) => self.note_failure(error),
        }
        let dropped = self.shared.dropped.load(Relaxed);
        if dropped != self.reported {
            (self.report)(Trouble::Dropped(dropped - self.reported));
            self.reported = dropped;
        }
    }

    fn reopen(&mut self) {
        self.flush();
        match self.shared.destination.open() {
            Ok(output) => self.output = output,
            Err(error) => (self.report)(Trouble::NotReopened(error)),
        }
    }

    /// Says so once, not with every line.
    fn note_failure(&mut self, error: io::Error) {
        if self.healthy {
            (self.report)(Trouble::Unwritable(error));
        }
        self.healthy = false;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufWriter, Write},
        sync::Mutex,
    };

    use super::*;

    /// A full disk.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_reported_once() {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let mut writer = Writer {
            output: Box::new(BufWriter::new(Full)),
            shared: Arc::new(Shared {
                destination: Destination::Stdout,
                dropped: AtomicU64::new(0),
                reopen: AtomicBool::new(false),
            }),
            reported: 0,
            healthy: true,
            report: |trouble| reports.lock().unwrap().push(trouble),
        };
        writer.write("a line");
        assert!(writer.healthy, "nothing was written yet");
        writer.flush();
        assert!(!writer.healthy);
        writer.write("another");
        writer.flush();
        assert!(!writer.healthy, "a line in the buffer proves nothing");
        assert_eq!(reports.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_destination_that_does_not_move_holds_nobody_up() {
        use std::io::Read as _;

        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", {
            use std::os::fd::AsRawFd as _;
            writer.as_raw_fd()
        });
        let lines = Lines::open("stuck", Destination::File(path.into()), |_| {}).unwrap();
        for _ in 0..2 * LOG_QUEUE_LINES {
            lines.push("x".repeat(100));
        }
        assert!(lines.shared.dropped.load(Relaxed) > 0);
        assert!(!lines.flush(Duration::from_millis(20)));
        // Not lost, although there is no room to say it in.
        lines.reopen();
        assert!(lines.shared.reopen.load(Relaxed));
        drop(writer);
        let drain = thread::spawn(move || {
            let mut everything = Vec::new();
            let _ = reader.read_to_end(&mut everything);
        });
        assert!(lines.flush(Duration::from_secs(20)));
        lines.push("another".to_owned());
        assert!(lines.flush(Duration::from_secs(20)));
        assert!(!lines.shared.reopen.load(Relaxed), "it was opened again");
        drop(lines);
        drain.join().unwrap();
    }
}
