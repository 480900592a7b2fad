//! What Prometheus' own libraries tell of any process.

use std::{fs, sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

/// The process.
#[derive(Default)]
pub(super) struct Process {
    cpu: Counter<f64, AtomicU64>,
    memory: Gauge,
    descriptors: Gauge,
    max_descriptors: Gauge,
    start: Gauge<f64, AtomicU64>,
}

impl Process {
    /// Gives everything its name, which has no prefix.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("process_cpu_seconds", "Processor time of user space and kernel, without what the kernel does for tunnels in softirqs", self.cpu.clone());
        registry.register(
            "process_resident_memory_bytes",
            "Memory in use",
            self.memory.clone(),
        );
        registry.register(
            "process_open_fds",
            "Open descriptors",
            self.descriptors.clone(),
        );
        registry.register(
            "process_max_fds",
            "Descriptors that may be open",
            self.max_descriptors.clone(),
        );
        registry.register(
            "process_start_time_seconds",
            "When the process began, since 1970",
            self.start.clone(),
        );
    }

    /// Looks at `/proc` (proc(5)); what is not there stays as it was.
    pub(super) fn look(&self) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            // The name before it may have spaces.
            let fields: Vec<&str> = stat
                .rsplit_once(')')
                .map_or("", |(_, rest)| rest)
                .split_whitespace()
                .collect();
            // From the third field of the file on.
            let field = |index: usize| {
                fields
                    .get(index.saturating_sub(3))
                    .and_then(|field| field.parse::<u64>().ok())
            };
            let per_second = clock_ticks_per_second().max(1);
            let seconds = |ticks: u64| {
                Duration::from_millis(ticks.saturating_mul(1000) / per_second).as_secs_f64()
            };
            if let (Some(user), Some(system)) = (field(14), field(15)) {
                let used = seconds(user + system);
                self.cpu.inc_by((used - self.cpu.get()).max(0.0));
            }
            if let Some(pages) = field(24) {
                self.memory.set(number(pages * page_size() as u64));
            }
            if let (Some(begun), Some(boot)) = (field(22), boot_time()) {
                self.start.set(boot + seconds(begun));
            }
        }
        // Since Linux 6.2 the size is how many there are; before, it is 0 (proc_readfd_count).
        let count = fs::metadata("/proc/self/fd").map_or(0, |meta| meta.len());
        let counted = || fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64);
        self.descriptors
            .set(number(if count > 0 { count } else { counted() }));
        let limit = getrlimit(Resource::Nofile).current;
        self.max_descriptors.set(limit.map_or(i64::MAX, number));
    }
}

/// When the system was started, since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}
