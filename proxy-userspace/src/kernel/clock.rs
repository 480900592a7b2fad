//! The kernel's clock, as the program reads it.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The moment that `bpf_ktime_get_ns` had so many nanoseconds: `CLOCK_MONOTONIC`, which nobody but the kernel sets.
/// A moment to come is now.
pub(super) fn instant(nanoseconds: u64) -> Option<Instant> {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::try_from(now).ok()?;
    let ago = now.saturating_sub(Duration::from_nanos(nanoseconds));
    Instant::now().checked_sub(ago)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_the_same_on_both_clocks() {
        let before = Instant::now();
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap();
        let after = Instant::now();
        let converted = instant(u64::try_from(now.as_nanos()).unwrap()).unwrap();
        // The two clocks are read one after the other, too.
        let slack = Duration::from_millis(100);
        assert!(before <= converted + slack && converted <= after + slack);
        assert!(instant(u64::MAX).is_some());
    }
}
