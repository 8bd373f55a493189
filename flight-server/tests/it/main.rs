//! Wire tests: a real server on a free port, called by arrow-flight's client and with hand-built messages.
//!
//! Each test has its own server and in-memory database, so tests run in parallel and independently.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod ends;
mod fixture;
mod hostile;
mod ingest;
mod live;
mod memory;
mod metadata;
mod prepared;
mod queries;
mod sessions;
mod strangers;
mod updates;
