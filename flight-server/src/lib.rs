//! KalamDB's server: Arrow Flight SQL and live queries over gRPC on one port, health and metrics over HTTP,
//! and the command line.
//!
//! # Map
//! | module | its one job |
//! |---|---|
//! | [`server`] | the gRPC router on one listener: transport limits, services, drain |
//! | `connection` | accepted sockets: numbered, counted, limited and hardly read before a login |
//! | `auth` | authentication: one layer over the whole router that denies by default |
//! | `sessions`, `idle_map` | the sessions of all clients, bounded and dropped when idle |
//! | `seal` | signatures of tokens and tickets |
//! | `status` | core errors as gRPC statuses, the only place that maps them |
//! | `ipc_decoder` | Arrow IPC from clients: checked, then decoded |
//! | `flight_sql` | the Flight service: commands, tickets, encoding |
//! | [`live`] | the LiveQuery service |
//! | [`probe`] | whether the server can serve, tried out again and again |
//! | `health`, [`http`] | health over gRPC; health and metrics over HTTP |
//! | [`config`], [`cli`], [`logging`] | settings, the command line, log lines |
//!
//! Invariant: no handler decides who the caller is. `auth` puts the caller's identity into the request's
//! extensions, and a request without one never reaches a handler.

mod auth;
pub mod cli;
pub mod config;
mod connection;
mod flight_sql;
mod health;
pub mod http;
mod idle_map;
mod ipc_decoder;
pub mod live;
pub mod logging;
mod offload;
pub mod probe;
mod seal;
pub mod server;
mod sessions;
mod status;
