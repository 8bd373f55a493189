//! What the server promises about guests, and which of these promises it keeps.
//!
//! Invariant: a limit fails a test exactly when its promise is in [`KEPT`]. A change that keeps another
//! promise adds it there; no promise leaves the list.

/// A promise about what guests cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// The process lives, answers without internal errors, logs no error, and ends within 10 s of SIGTERM.
    Alive,
    /// A scan, a group, a regular expression or a recursion ends within a second of its client.
    ScansEnd,
    /// A range costs as much as its own rows, however many others of its segment are deleted.
    RangesPayForThemselves,
    /// While a few statements of one user are planned or run, others are answered within a second.
    RunsApart,
    /// Sorts, windows and other operators that collect their input end within a second of their client.
    OperatorsEnd,
    /// Joins and unnested lists end within a second of their client.
    JoinsEnd,
    /// A function whose work passes a limit is refused; others end within 5 s of their client.
    FunctionsEnd,
    /// A user holds no more memory than a user may, and the memory comes back.
    MemoryPerUser,
    /// Users take turns: 200 statements of one user slow others down by a small factor.
    Turns,
    /// Closing the handle of a prepared statement ends its query.
    HandlesEndQueries,
    /// Connections without a login hold little memory and keep nobody out.
    Strangers,
    /// Many users who log in at once all get in, within bounded memory.
    Logins,
    /// A large change does not hold up other writers.
    LargeChanges,
    /// A large change ends beside a drip of small ones.
    LargeChangesEnd,
    /// A live reader that stops reading holds little memory.
    Readers,
    /// A row of a thousand columns is planned quickly.
    WideRows,
}

const KEPT: &[Promise] = &[
    Promise::Alive,
    Promise::ScansEnd,
    Promise::RangesPayForThemselves,
    Promise::RunsApart,
    Promise::HandlesEndQueries,
    Promise::Strangers,
    Promise::Logins,
];

impl Promise {
    /// Returns whether the server keeps the promise.
    pub(crate) fn is_kept(self) -> bool {
        KEPT.contains(&self) || std::env::var("GUESTS_PROMISES").is_ok_and(|wanted| wanted == "all")
    }
}
