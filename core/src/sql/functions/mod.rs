//! SQL functions: the database's own, and what is known about the cost of all of them.
//!
//! | file | job |
//! |---|---|
//! | `growth`, `value_size` | estimates the size of a result from the arguments |
//! | `work` | estimates the work of a call from the arguments |
//! | `concatenation`, `like` | the operators `\|\|`, LIKE and ILIKE as functions |
//! | `generators` | identifiers, one per row |
//! | `session_functions` | constants of a statement, such as the user |

pub(super) mod concatenation;
pub(super) mod generators;
pub(super) mod growth;
pub(super) mod like;
pub(super) mod session_functions;
mod value_size;
pub(super) mod work;
