//! The integration tests of the core, in one program.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod append;
mod cold;
mod hot;
mod live;
mod session;
mod sql;
mod tidy;
