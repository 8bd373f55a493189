//! Statements as guests: the threads they run on, how long a thread works for one of them, and how one is
//! stopped.
//!
//! | entry | job |
//! |---|---|
//! | `busy` | how long the current thread has worked for a statement without a pause |
//! | `control` | whether a statement must stop, and why |
//! | `threads` | the engine: the threads that plan and run statements |
//! | `spill` | the folder for what statements spill |
//!
//! What a statement costs is decided by its text and by rows that a user chose, so it runs on the engine. The
//! caller's thread only waits, commits and delivers. A task of the engine must not wait for another
//! statement: a task that is woken by a busy thread waits for this thread. Admission, commits and readers are
//! therefore awaited by callers.
//!
//! Locks that the engine holds are held for microseconds, except one: a group of live queries is locked
//! while one of its members reads the change log, and only members of the same group wait.
//!
//! Invariant: no thread that accepts connections, commits or delivers runs work of unknown length.

mod busy;
mod control;
mod spill;
mod threads;

pub(crate) use busy::Busy;
pub(crate) use control::{StatementControl, StopReason};
pub(crate) use spill::{empty_spill, spill_folder};
pub(crate) use threads::Work;
pub use threads::{EngineThreads, STACK_BYTES};
