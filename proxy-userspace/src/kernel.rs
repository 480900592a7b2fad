//! The kernel side as user space sees it: structure offsets of the running kernel, and the loaded
//! objects with their maps.

pub mod btf;
pub mod capture;
mod clock;
mod mapped;
pub mod object;
#[cfg(feature = "program-log")]
mod program_log;
pub mod version;
