//! Statements as guests: the threads they run on, how long a thread works for one of them, and how one is
//! stopped.
//!
//! | entry | job |
//! |---|---|
//! | `step` | how long the current thread has worked for a statement without a pause |
//! | `reason` | why a statement must stop |
//! | `sessions` | whose the sessions are, what they have set, how they end |
//! | `control` | what a statement is and does, and whether it must stop |
//! | `calls` | what limits the statements of a client's call, and ends them together |
//! | `statements` | the running statements |
//! | `busy` | which statement each thread of the engine works for, and which threads are given up |
//! | `turns` | which of the waiting statements may run next |
//! | `threads` | the engine: the threads that plan and run statements |
//! | `admission` | the wait for a slot |
//! | `watchdog` | ends statements that do not let go of their threads |
//! | `memory` | who holds how many bytes, and how many each may hold |
//! | `pool` | the memory of a statement, as DataFusion's operators ask for it |
//! | `spill` | what statements spill to disk |
//!
//! What a statement costs is decided by its text and by rows that a user chose, so it runs on the engine. The
//! caller's thread only waits, commits and delivers. A task of the engine must not wait for another
//! statement: a task that is woken by a busy thread waits for this thread. Admission, commits and readers are
//! therefore awaited by callers. Two exceptions: a query that has given its slot back waits for another on
//! the engine, and a large write waits there for its turn, because a thread of the engine that passes such a
//! slot on ends its step right afterwards.
//!
//! Locks that the engine holds are held for microseconds.
//!
//! Invariant: no thread that accepts connections, commits or delivers runs work of unknown length.

mod admission;
mod busy;
mod calls;
mod control;
mod memory;
mod pool;
mod reason;
mod sessions;
mod spill;
mod statements;
mod step;
mod threads;
mod turns;
mod watchdog;

pub(crate) use admission::Slot;
pub use admission::{Admission, AdmissionCounters};
pub(crate) use busy::Busy;
pub use calls::Call;
pub(crate) use control::{StatementControl, StatementEnd, StatementParts, StatementState};
pub use memory::{Account, Charge, Level, Limit, Memory, UserAccounts};
pub(crate) use pool::StatementPool;
pub use reason::StopReason;
pub(crate) use sessions::{SessionEnd, SessionHold, SessionInfo, Sessions, Settings, millis};
pub use sessions::{SessionKind, SessionOrigin};
pub use spill::Spill;
pub(crate) use spill::remove_spilled;
pub(crate) use statements::{Statements, shown_text};
pub use threads::{EngineThreads, STACK_BYTES};
pub(crate) use threads::{GIVEN_UP_MAX, Work};
pub(crate) use watchdog::Watchdog;
