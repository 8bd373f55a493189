//! The types of values: which of them meet, to which they are cast, and what operators on them give.
//!
//! | file | its one job |
//! |---|---|
//! | `kinds` | the kinds of types, operators and functions that the others ask for |
//! | `casts` | CAST with PostgreSQL's semantics |
//! | `days` | date arithmetic |
//! | `operands` | the string literal beside an operator |
//! | `sets` | columns of VALUES, UNION, INTERSECT and EXCEPT |
//! | `unification` | parts of an expression that are compared or combined |
//! | `comparisons` | refuses comparisons without an operator |
//! | `recursion` | columns of WITH RECURSIVE |
//! | `arithmetic` | operators on numbers that fail or are rounded |
//! | `floats` | one zero and one NaN |

pub(super) mod arithmetic;
pub(super) mod casts;
pub(super) mod comparisons;
pub(super) mod days;
pub(super) mod floats;
pub(super) mod kinds;
mod operands;
pub(super) mod recursion;
pub(super) mod sets;
pub(super) mod unification;
