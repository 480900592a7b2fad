//! The machine, in words.

use std::fs;

use crate::subject::Subject;

/// Where it was measured, and with which versions.
pub(crate) fn describe(subjects: &[Subject<'_>]) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| {
            rest.trim_start_matches([' ', '\t', ':'])
        });
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let congestion = read("/proc/sys/net/ipv4/tcp_congestion_control");
    let mut text = format!(
        "{model}, {cores} CPUs; Linux {}; congestion control {}. Client, proxy and origin are network \
         namespaces of this one machine, joined by veth.\n",
        kernel.trim(),
        congestion.trim()
    );
    let versions: Vec<_> = subjects.iter().filter_map(Subject::version).collect();
    if !versions.is_empty() {
        text.push_str("\nOthers: ");
        text.push_str(&versions.join("; "));
        text.push_str(".\n");
    }
    text
}
