//! The integration tests of the core, in one program.

mod live;
mod sql;
mod tidy;
