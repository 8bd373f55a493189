//! From text to a parsed [`Statement`](statement::Statement).
//!
//! | file | job |
//! |---|---|
//! | `guard` | tokens of one statement, within limits |
//! | `parameters` | numbers the parameters in the tokens, and orders their values |
//! | `cursor`, `keywords` | reads tokens, for the database's own grammar |
//! | `dialect` | the SQL parser, with a limit on its work |
//! | `create_table`, `alter_table`, `users`, `storages`, `settings`, `show`, `subscribe` | a family each |
//! | `writes`, `clauses` | refuses clauses that are parsed but have no effect |
//! | `statement` | the result |
//! | `parse` | the way through all of these |
//!
//! Invariant: nothing here needs a snapshot or a session; equal texts give equal statements.

pub(super) mod alter_table;
mod clauses;
pub(super) mod create_table;
pub(super) mod cursor;
mod dialect;
pub(super) mod guard;
mod keywords;
pub(super) mod parameters;
pub(super) mod parse;
mod settings;
mod show;
pub(super) mod statement;
mod storages;
mod subscribe;
mod users;
mod writes;
