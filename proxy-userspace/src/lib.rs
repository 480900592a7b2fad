//! Underpass: a tunnel proxy for Linux whose tunnels are spliced in the kernel.

#![deny(unsafe_code)]

pub mod authority;
pub mod http;
pub mod kernel;
pub mod limits;
pub mod net;
pub mod policy;
pub mod relay;
