//! KalamDB's server: Arrow Flight SQL and live queries over gRPC on one port, health and metrics over HTTP, and the command
//! line.
//!
//! # Map
//! | module | its one job |
//! |---|---|
//! | [`server`] | the gRPC router on one listener: transport limits, services, drain |
//! | `connection` | accepted sockets: a number for each, counted and bounded |
//! | `auth` | who is calling: one layer over the whole router, denying by default |
//! | `seal` | signatures of tokens and tickets |
//! | `status` | core errors as gRPC statuses, the only place that maps them |
//! | `flight_sql` | the Flight service: commands, tickets, encoding |
//! | [`live`] | the LiveQuery service |
//! | `health`, [`http`] | health over gRPC; health and metrics over HTTP |
//! | [`config`], [`cli`], [`logging`] | settings, the command line, log lines |
//!
//! Invariant: no handler decides who is calling. The principal is in the request's extensions because `auth` put it there,
//! and a request without one never reaches a handler.

mod auth;
pub mod cli;
pub mod config;
mod connection;
mod flight_sql;
mod health;
pub mod http;
pub mod live;
pub mod logging;
mod offload;
mod seal;
pub mod server;
mod status;
