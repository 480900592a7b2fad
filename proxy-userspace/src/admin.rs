//! The admin endpoint: what runs, what is open, and how to change it, over HTTP on a Unix socket.
//!
//! Who may open the socket may do everything; its file is for its owner only. Over TCP, which any user of the host
//! reaches, one can only look, and pages of other sites cannot: a request must name the loopback address that it was
//! sent to. A third listener, for Prometheus from elsewhere, has the metrics and the state, and no names.

mod bind;
mod cli;
pub mod client;
mod filter;
mod sample;
mod serve;
mod top;
mod view;

pub use self::{
    bind::{Place, default_socket},
    cli::{Ask, Order, Where, Which, ask},
    filter::{Filter, Sort},
    serve::{Admin, Command, Rights, open},
    top::{Arguments as TopArguments, top},
    view::{Listing, Status, TunnelView},
};
