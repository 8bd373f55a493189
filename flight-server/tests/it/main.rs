//! Wire tests: a real server on a free port, spoken to by arrow-flight's client and by hand-built messages.
//!
//! Each test has a server and a database in memory of its own, so they run side by side and see nothing of each other.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod fixture;
mod hostile;
mod ingest;
mod live;
mod metadata;
mod prepared;
mod queries;
mod updates;
