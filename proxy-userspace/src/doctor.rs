//! `underpass doctor`: what this kernel and these privileges allow, engine by engine, and what about this host costs
//! performance or safety.

mod host;

use std::{fmt::Write as _, fs};

use crate::{
    kernel::capture,
    relay::selection::{Unavailable, sockmap, splice},
};

/// The report, and whether every engine can be had.
pub async fn examine() -> (String, bool) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(
        |_| "unknown".to_owned(),
        |release| release.trim().to_owned(),
    );
    let sockmap = sockmap(1).await;
    let splice = splice(1);
    let auto = match (&sockmap, &splice) {
        (Ok(_), Ok(_)) => "copy, splice or sockmap, by how a tunnel behaves,",
        (Ok(_), Err(_)) => "copy or sockmap, by how a tunnel behaves,",
        (Err(_), Ok(_)) => "copy or splice, by how a tunnel behaves,",
        (Err(_), Err(_)) => "copy",
    };
    let sound = sockmap.is_ok() && splice.is_ok();
    let report = format!(
        "kernel   {kernel}\n\
         sockmap  {}\n\
         splice   {}\n\
         copy     yes  always\n\
         capture  {}\n\
         --engine auto uses {auto} here",
        answer(
            sockmap,
            "loaded, attached, and its self-test over loopback passed"
        ),
        answer(splice, "splice(2) moves bytes through pipes"),
        answer(capture(), "what cgroups connect can be led here"),
    );
    let findings = host::Host::this().findings();
    let mut report = report;
    if findings.is_empty() {
        report.push_str(
            "\n\nNothing about this host costs performance or safety, as far as is known.",
        );
    } else {
        report.push_str("\n\nWhat about this host costs performance or safety:");
    }
    for finding in findings {
        // Writing to a string does not fail.
        let _ = write!(report, "\n{finding}");
    }
    (report, sound)
}

/// Whether connections can be captured.
fn capture() -> Result<capture::Object, Unavailable> {
    capture::Object::load().map_err(|error| Unavailable {
        reason: error.to_string(),
        remedy: capture::remedy(&error),
    })
}

/// "yes", or "no" with the reason and what would change it.
fn answer<T>(engine: Result<T, Unavailable>, why: &str) -> String {
    match engine {
        Ok(_) => format!("yes  {why}"),
        Err(Unavailable { reason, remedy }) => {
            format!("no   {reason}\n              to change it: {remedy}")
        }
    }
}
