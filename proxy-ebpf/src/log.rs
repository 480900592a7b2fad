//! `log!`: what a build for debugging says about each direction (`cargo xtask run --program-log`).
//!
//! It is for rare events, and nothing without the feature `log`: aya-log doubles the program's size
//! and needs a map of its own, and the object that is checked in should have neither.

#[cfg(feature = "log")]
pub(crate) use aya_log_ebpf::info as log;

/// Nothing, in the object that is checked in.
#[cfg(not(feature = "log"))]
macro_rules! log {
    ($($ignored:tt)*) => {};
}
#[cfg(not(feature = "log"))]
pub(crate) use log;
