//! What the machine and processes use: processor time of everybody, resident memory, kernel memory.

use std::fs;

/// Processor seconds of the whole machine so far, interrupts and kernel threads included: `/proc/stat` counts in
/// hundredths (`USER_HZ`).
pub(crate) fn cpu_seconds() -> f64 {
    busy(&fs::read_to_string("/proc/stat").unwrap())
}

fn busy(stat: &str) -> f64 {
    let line = stat.lines().next().unwrap_or_default();
    let numbers = line.split_whitespace().skip(1);
    // user, nice, system, idle, iowait, irq, softirq
    let busy: f64 = numbers
        .take(7)
        .enumerate()
        .filter(|(place, _)| !matches!(place, 3 | 4))
        .filter_map(|(_, number)| number.parse::<f64>().ok())
        .sum();
    busy / 100.0
}

/// Processor time of these processes so far, in hundredths of a second.
pub(crate) fn processor_ticks(pids: &[i32]) -> u64 {
    let of_one = |pid| ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default());
    pids.iter().map(of_one).sum()
}

fn ticks(stat: &str) -> u64 {
    // Behind the name, which may have anything in it.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    // From the third on; utime and stime are the 14th and 15th.
    let used = fields.split_whitespace().skip(11).take(2);
    used.filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Bytes of the kernel's own that are in use: slabs, and pages of sockets' queues are not counted.
pub(crate) fn slab_bytes() -> f64 {
    field(&fs::read_to_string("/proc/meminfo").unwrap(), "Slab:")
}

/// Bytes of memory that belong to the processes.
pub(crate) fn resident_bytes(pids: &[i32]) -> f64 {
    let of_one = |pid| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        field(&rollup, "Pss:")
    };
    pids.iter().map(of_one).sum()
}

/// A field in kB, as bytes.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    number.unwrap_or_default() * 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_used() {
        let stat = "cpu  100 20 300 4000 500 60 70 8 0 0\ncpu0 1 2 3\n";
        assert!((busy(stat) - 5.5).abs() < 1e-9);
    }

    #[test]
    fn time_is_found_behind_a_name_with_spaces() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 30 12 5 6 20 0 1 0 99";
        assert_eq!(ticks(stat), 42);
    }

    #[test]
    fn fields_are_found_by_name() {
        let text = "MemTotal:  10 kB\nSlab:   3 kB\nSReclaimable: 1 kB\n";
        assert!((field(text, "Slab:") - 3072.0).abs() < 1e-9);
        assert!(field(text, "None:").abs() < 1e-9);
    }
}
