//! The end-to-end suites of Underpass: the real binary between real sockets in network namespaces.
//!
//! One test binary, one module per promise of the proxy. Every test builds its own lab, so they run in parallel;
//! `scene` has the matrix that runs a test with every engine over both IP versions. See `tests/README.md`.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

mod access_log;
mod admin;
mod auth;
mod backpressure;
mod capture;
mod config;
mod declined;
mod dial;
mod differential;
mod dns;
mod ends;
mod forward;
mod image;
mod integrity;
mod kernel_path;
mod kubernetes;
mod listeners;
mod mesh;
mod monitoring;
mod netem;
mod operation;
mod outgoing;
mod package;
mod parents;
mod peers;
mod policy;
mod protocol;
mod reload;
mod rules;
mod scene;
mod service;
mod sni;
mod splice;
mod stress;
