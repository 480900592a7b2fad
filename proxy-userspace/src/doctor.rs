//! `underpass doctor`: what this kernel and these privileges allow, engine by engine.

use std::fs;

use crate::relay::selection::sockmap;

/// The report, and whether every engine can be had.
pub async fn examine() -> (String, bool) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(
        |_| "unknown".to_owned(),
        |release| release.trim().to_owned(),
    );
    let (sockmap, auto, sound) = match sockmap(1).await {
        Ok(_engine) => (
            "yes  loaded, attached, and its self-test over loopback passed".to_owned(),
            "sockmap",
            true,
        ),
        Err(missing) => (
            format!(
                "no   {}\n              to change it: {}",
                missing.reason, missing.remedy
            ),
            "copy",
            false,
        ),
    };
    let report = format!(
        "kernel   {kernel}\n\
         sockmap  {sockmap}\n\
         copy     yes  always\n\
         --engine auto uses {auto} here"
    );
    (report, sound)
}
