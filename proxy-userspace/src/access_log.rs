//! The access log: a line for each transaction, in the format of each log that it is written to. Pure; which logs there
//! are is a part of the configuration ([`crate::config::LogEntry`]), and [`crate::lines`] writes them.

mod envoy;
mod format;
mod json;
mod logformat;
mod record;
mod squid;

pub use self::{
    format::Format,
    logformat::LogFormat,
    record::{Event, Record, Tag, Timings},
};
