//! Underpass: a tunnel proxy for Linux whose tunnels are spliced in the kernel.

#![deny(unsafe_code)]

pub mod access_log;
pub mod authority;
pub mod diagnostics;
pub mod http;
pub mod kernel;
pub mod limits;
pub mod lines;
pub mod net;
pub mod policy;
pub mod relay;
