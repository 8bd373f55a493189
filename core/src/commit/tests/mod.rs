//! The commit order: validation, groups, recovery, failure, and a random model.

mod failing;
mod fixture;
mod frozen;
mod groups;
mod large;
mod model;
mod reopening;
