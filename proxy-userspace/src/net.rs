//! Sockets: options the standard library lacks, listening, and dialling.

pub mod announce;
pub mod dial;
pub mod inherited;
pub mod listen;
pub mod outgoing;
pub mod sockopt;
pub mod wire;
