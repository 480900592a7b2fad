//! Underpass: a tunnel proxy for Linux whose tunnels are spliced in the kernel.
//!
//! Where to start reading, in the order in which a connection meets them:
//!
//! 1. [`command`] is what `main` calls; [`app`] builds everything from a [`config`]; [`server`] accepts clients.
//! 2. [`session`] drives one client: [`http`] reads its head, [`authority`] its target, [`policy`]
//!    says whether it may, [`dns`] finds its addresses, [`net::dial`] connects. A request for a URL is forwarded
//!    over a connection from the pool.
//! 3. [`relay`] joins the two sockets. Its documentation is the contract between the engines; the
//!    one that matters is [`relay::sockmap`], over the program in [`kernel::object`].
//! 4. [`access_log`] and [`diagnostics`] say what happened.
//!
//! [`http`], [`authority`], [`client_hello`], [`policy`] and the arithmetic of the splice are pure: no sockets, clocks
//! or logs. Everybody may read [`limits`].

#![deny(unsafe_code)]

pub mod access;
pub mod access_log;
pub mod admin;
pub mod app;
pub mod auth;
pub mod authority;
mod capabilities;
pub mod capture;
pub mod client_hello;
pub mod command;
pub mod config;
pub mod diagnostics;
pub mod dns;
pub mod doctor;
pub mod explain;
pub mod http;
pub mod kernel;
pub mod limits;
pub mod lines;
mod look;
pub mod manual;
pub mod metrics;
pub mod net;
pub mod parent;
pub mod percent;
pub mod policy;
mod pool;
pub mod progress;
pub mod registry;
pub mod relay;
pub mod reload;
pub mod server;
pub mod service;
pub mod session;
pub mod shaping;
mod tls;
pub mod units;
