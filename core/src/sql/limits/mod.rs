//! Limits on the size of a plan, on the stack for deep statements, and on the age of a query's snapshot.
//!
//! Text is limited before it is parsed, in `text::guard`; results of functions are limited in `functions`.

pub(super) mod age_limit;
pub(super) mod complexity;
pub(super) mod stack;
