//! The rig of the end-to-end suites: three network namespaces, a running `underpass`, and both ends of a tunnel.
//!
//! A test builds a [`lab::Lab`] (client, proxy and origin namespaces), starts a [`daemon::Daemon`] in the middle
//! and then holds both ends of every tunnel itself: [`client::Client`] speaks CONNECT, [`origin::Origin`] accepts.
//! Everything is blocking, every socket has a timeout, and everything that was made is removed on `Drop`, so that
//! tests run in parallel, cannot hang and leave nothing behind.
//!
//! Reading order: [`privilege`], [`netns`], [`lab`], [`daemon`], [`client`], [`origin`], [`payload`], [`tls`].

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test rig fails by panicking"
)]
#![expect(
    clippy::must_use_candidate,
    reason = "a forgotten value fails the test that needs it"
)]

pub mod cable;
pub mod cgroup;
pub mod client;
pub mod daemon;
pub mod deadline;
pub mod dns;
pub mod lab;
pub mod lines;
pub mod netns;
pub mod ordeal;
pub mod origin;
pub mod payload;
pub mod peer;
pub mod privilege;
pub mod record;
pub mod reply;
pub mod scratch;
pub mod segment;
pub mod tls;
pub mod tools;
pub mod transcript;
pub mod tun;
