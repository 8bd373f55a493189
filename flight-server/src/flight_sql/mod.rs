//! Arrow Flight SQL: the protocol between drivers (JDBC, ADBC, ODBC, pyarrow) and the database.
//!
//! | file | its one job |
//! |---|---|
//! | `service` | the Flight RPCs; passes each on to the file that answers it |
//! | `statement`, `delivery` | queries: FlightInfo and tickets; the streams of DoGet |
//! | `update` | statements that write, on every path: each runs exactly once |
//! | `prepared`, `parameters` | prepared statements; their bound parameters |
//! | `ingest`, `inbound` | bulk loading; the messages of a DoPut |
//! | `live` | `SUBSCRIBE TO` as an endless DoGet |
//! | `metadata`, `sql_info`, `type_info` | catalogs, tables, keys, server capabilities, types |
//! | `actions`, `session_options`, `handshake` | DoAction, the options of a session, logging in |
//! | `state` | what all calls share, and the caller of one call |
//! | `handles`, `queries`, `budget` | prepared statements, running queries, all bounded |
//! | `ticket`, `encode`, `messages` | bytes |
//! | `wire` | reading requests, and the refusals that several calls share |
//!
//! Handlers are functions that take the parts of the state they need.
//!
//! The dispatcher is our own, because arrow-flight's `FlightSqlService` fixes GetSchema, PollFlightInfo and
//! sessions as unimplemented; protobufs, encoders and metadata builders are arrow-flight's.
//!
//! Invariant: everything that a client names (ticket, handle, query) is looked up with the caller's user id.
//! Another user's entry gives the same error as one that never existed.

mod actions;
mod budget;
mod delivery;
mod encode;
mod handles;
mod handshake;
mod inbound;
mod ingest;
mod live;
mod messages;
mod metadata;
mod parameters;
mod prepared;
mod queries;
mod service;
mod session_options;
mod sql_info;
mod state;
mod statement;
mod ticket;
mod type_info;
mod update;
mod wire;

pub(crate) use self::service::FlightSqlService;
pub(crate) use self::state::FlightState;
