//! DataFusion's plans as guests: they pause after some milliseconds, and stop when their statement must.
//!
//! | entry | job |
//! |---|---|
//! | `batches` | how many rows a batch has |
//! | `options` | the control of the statement, among the options of its plan |
//! | `checked` | an expression that is evaluated only while its statement may go on |
//! | `widths` | how many bytes rows take |
//! | `meter` | measures the build side of a join |
//! | `slices` | cuts batches, so that a join or an unnest makes little of each slice |
//! | `windows` | aggregates of windows that check, and the memory of windows |
//! | `exec` | the plan node that pauses, or does another of these jobs |
//! | `shown` | a plan with all this, as EXPLAIN ANALYZE shows it |
//! | `joins` | puts nodes and checks into joins |
//! | `functions` | calls of functions that check, refuse what costs too much, and work in slices |
//! | `heavy` | refuses statements that can hold a thread, while threads are given up |
//! | `plan` | puts nodes and checks into a plan |
//! | `rule` | ends the planning of a statement that must stop |

pub(super) mod batches;
mod checked;
mod exec;
pub(super) mod functions;
pub(super) mod heavy;
mod joins;
mod meter;
pub(super) mod options;
pub(super) mod plan;
pub(super) mod rule;
mod shown;
mod slices;
mod widths;
pub(super) mod windows;
