//! The arithmetic that decides when redirected bytes have landed. Pure.
//!
//! In a spliced direction two movers write to the target: the kernel, through a backlog that nobody
//! can see into, and user space while the kernel has paused. All that can be observed is how many
//! bytes the program redirected, and how many bytes the target's TCP was ever given. The ledger
//! knows what user space did, and answers the two questions that order and completeness hang on:
//! may user space write now, and may the target be shut down.

use std::cmp::Ordering;

/// Whether all bytes handed to the target are in its send queue, or beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landed {
    /// Some are in the backlog still.
    NotYet,
    /// All are; nothing can be overtaken.
    All,
    /// The target was given this many bytes more than it should have: somebody duplicated some.
    Excess(u64),
}

/// User space's book of one direction. All counts are bytes since the sockets were opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ledger {
    /// Read from the source before the splice.
    consumed_before: u64,
    /// Written to the target before the splice.
    written_before: u64,
    /// Read from the source by user space since.
    read: u64,
    /// Written to the target by user space since.
    written: u64,
}

impl Ledger {
    /// Opens the book at the moment of the splice.
    pub(super) fn new(consumed_before: u64, written_before: u64) -> Self {
        Self {
            consumed_before,
            written_before,
            read: 0,
            written: 0,
        }
    }

    /// User space read bytes from the source.
    pub(super) fn note_read(&mut self, bytes: usize) {
        self.read += bytes as u64;
    }

    /// User space wrote bytes to the target.
    pub(super) fn note_written(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// Bytes that the program `passed` to user space and that wait to be read.
    pub(super) fn unread(&self, passed: u64) -> u64 {
        passed.saturating_sub(self.read)
    }

    /// Compares what was redirected or read with what the source received, `received`, without the
    /// FIN. More was taken than received only if there was no FIN to subtract.
    pub(super) fn taken(&self, redirected: u64, received: u64) -> Ordering {
        (self.consumed_before + redirected + self.read).cmp(&received)
    }

    /// Compares what the target's TCP was given with what it should have been given.
    pub(super) fn landed(&self, redirected: u64, target_written: u64) -> Landed {
        let due = self.due(redirected);
        match target_written.cmp(&due) {
            Ordering::Less => Landed::NotYet,
            Ordering::Equal => Landed::All,
            Ordering::Greater => Landed::Excess(target_written - due),
        }
    }

    /// Bytes that the target is to be given, in all.
    pub(super) fn due(&self, redirected: u64) -> u64 {
        self.written_before + redirected + self.written
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What can happen to a direction, as seen from the bytes.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Arrive(u16),
        Redirect,
        Pass,
        Backlog(u16),
        Read(u16),
        Write(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<u16>().prop_map(Step::Arrive),
            Just(Step::Redirect),
            Just(Step::Pass),
            any::<u16>().prop_map(Step::Backlog),
            any::<u16>().prop_map(Step::Read),
            any::<u16>().prop_map(Step::Write),
        ]
    }

    proptest! {
        /// A model of one direction with a queue for every place that a byte can be in. The ledger
        /// must say "landed" exactly when backlog is empty, and "taken" exactly when nothing waits.
        #[test]
        fn agrees_with_a_model_of_every_queue(
            consumed in 0u64..1000,
            written in 0u64..1000,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut ledger = Ledger::new(consumed, written);
            let (mut received, mut redirected, mut passed, mut target) = (consumed, 0, 0, written);
            let (mut queue, mut backlog, mut unread, mut held) = (0u64, 0u64, 0u64, 0u64);
            for step in steps {
                match step {
                    Step::Arrive(n) => { received += u64::from(n); queue += u64::from(n); }
                    Step::Redirect => { redirected += queue; backlog += queue; queue = 0; }
                    Step::Pass => { passed += queue; unread += queue; queue = 0; }
                    Step::Backlog(n) => {
                        let n = u64::from(n).min(backlog);
                        backlog -= n;
                        target += n;
                    }
                    Step::Read(n) => {
                        let n = u64::from(n).min(unread);
                        unread -= n;
                        held += n;
                        ledger.note_read(usize::try_from(n).unwrap());
                    }
                    Step::Write(n) => {
                        let n = u64::from(n).min(held);
                        held -= n;
                        target += n;
                        ledger.note_written(usize::try_from(n).unwrap());
                    }
                }
                let expected = if backlog == 0 { Landed::All } else { Landed::NotYet };
                prop_assert_eq!(ledger.landed(redirected, target), expected);
                let expected = if queue == 0 && unread == 0 { Ordering::Equal } else { Ordering::Less };
                prop_assert_eq!(ledger.taken(redirected, received), expected);
                prop_assert_eq!(ledger.unread(passed), unread);
                let complete = ledger.taken(redirected, received) == Ordering::Equal
                    && ledger.landed(redirected, target) == Landed::All
                    && held == 0;
                if complete {
                    prop_assert_eq!(target - written, received - consumed, "a shutdown here is lossless");
                }
            }
        }

        #[test]
        fn notices_every_duplicated_byte(redirected in 0u64..1 << 40, extra in 1u64..1 << 20) {
            let ledger = Ledger::new(0, 39);
            prop_assert_eq!(ledger.landed(redirected, 39 + redirected + extra), Landed::Excess(extra));
        }
    }
}
