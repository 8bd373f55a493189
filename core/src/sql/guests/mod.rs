//! DataFusion's plans as guests: they pause after some milliseconds, and stop when their statement must.
//!
//! | entry | job |
//! |---|---|
//! | `options` | the control of the statement, among the options of its plan |
//! | `checked` | an expression that is evaluated only while its statement may go on |
//! | `exec` | the plan node that pauses and stops |
//! | `plan` | puts nodes and checks into a plan |
//! | `rule` | ends the planning of a statement that must stop |

mod checked;
mod exec;
pub(super) mod options;
pub(super) mod plan;
pub(super) mod rule;
