//! From a parsed statement to a plan, over the snapshot of its execution.
//!
//! | file | job |
//! |---|---|
//! | `catalog`, `names` | the tables and functions that a statement can name |
//! | `scope` | resolves column names as PostgreSQL does |
//! | `parameter_types` | types and uses of parameters, and values that fit them |
//! | `description` | what is known of a statement before it runs |
//! | `planner` | plans and runs queries |
//! | `typing` | types parameters that are a column's whole value |
//!
//! Invariant: a plan reads the execution's snapshot and no other, and nothing here writes.

pub(super) mod catalog;
pub(super) mod description;
mod names;
pub(super) mod parameter_types;
pub(super) mod planner;
mod scope;
pub(super) mod typing;
