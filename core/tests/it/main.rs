//! The integration tests of the core, in one program.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod anomalies;
mod append;
mod backup;
mod bit_flips;
mod check;
mod cold;
mod columns;
mod disk_full;
mod ends;
mod formats;
mod guests;
mod hot;
mod jobs;
mod large_insert;
mod live;
mod live_large;
mod live_streams;
mod many_users;
mod memory;
mod random_query;
mod same_rows;
mod session;
mod sql;
mod tidy;
mod turns;
mod watched;
mod workarounds;
