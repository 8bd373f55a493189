//! SQL functions: the database's own, and limits for DataFusion's.
//!
//! | file | job |
//! |---|---|
//! | `generators` | identifiers, one per row |
//! | `session_functions` | constants of a statement, such as the user |
//! | `capped` | puts a limit on functions whose results can be large |
//! | `concatenation` | the operator `\|\|` as a function with a limit |
//! | `growth`, `value_size` | estimates the size of a result from the arguments |

pub(super) mod capped;
mod concatenation;
pub(super) mod generators;
mod growth;
pub(super) mod session_functions;
mod value_size;
