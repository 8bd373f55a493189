//! Limits on the size of a plan, and the stack for deep statements.
//!
//! Text is limited before it is parsed, in `text::guard`; results of functions are limited in `functions`.

pub(super) mod complexity;
pub(super) mod stack;
