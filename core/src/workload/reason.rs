//! Why a statement must stop.

use crate::error::{Error, ErrorKind, SqlState};

/// Why a statement must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StopReason {
    /// Nobody waits for its result any more.
    ClientGone = 1,
    /// It has held its snapshot for too long.
    SnapshotAge = 2,
    /// It has kept a thread busy for too long without a pause.
    StepTooLong = 3,
    /// Its client has cancelled it.
    Cancelled = 4,
    /// Its client has closed the handle of its prepared statement.
    HandleClosed = 5,
    /// Its client has closed its session.
    SessionClosed = 6,
    /// KILL QUERY.
    QueryKilled = 7,
    /// KILL SESSION.
    SessionKilled = 8,
    /// Its session was taken for idle.
    SessionIdle = 9,
    /// It has taken longer than its `statement_timeout`.
    Timeout = 10,
    /// Its user was dropped, or has another password or role.
    LoggedOut = 11,
    /// The database or the server shuts down.
    ShuttingDown = 12,
}

impl StopReason {
    pub(super) const ALL: [Self; 12] = [
        Self::ClientGone,
        Self::SnapshotAge,
        Self::StepTooLong,
        Self::Cancelled,
        Self::HandleClosed,
        Self::SessionClosed,
        Self::QueryKilled,
        Self::SessionKilled,
        Self::SessionIdle,
        Self::Timeout,
        Self::LoggedOut,
        Self::ShuttingDown,
    ];

    /// Returns the reason with that number.
    pub(super) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }

    /// Returns the reason in words, for the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientGone => "client gone",
            Self::SnapshotAge => "snapshot too old",
            Self::StepTooLong => "step too long",
            Self::Cancelled => "cancelled",
            Self::HandleClosed => "handle closed",
            Self::SessionClosed => "session closed",
            Self::QueryKilled => "query killed",
            Self::SessionKilled => "session killed",
            Self::SessionIdle => "session idle",
            Self::Timeout => "timed out",
            Self::LoggedOut => "logged out",
            Self::ShuttingDown => "shutdown",
        }
    }

    /// Returns the error of a statement that ends for this reason, without the limit that was reached.
    pub(crate) fn error(self) -> Error {
        let (kind, sqlstate, message) = match self {
            Self::ShuttingDown => return Error::shutting_down(),
            Self::LoggedOut => (
                ErrorKind::Unauthenticated,
                SqlState::INVALID_AUTHORIZATION,
                "the statement was ended because its user was dropped or got another password or role",
            ),
            Self::SessionKilled => (
                ErrorKind::Cancelled,
                SqlState::SHUTTING_DOWN,
                "the statement was ended with its session by KILL SESSION",
            ),
            Self::SessionIdle => (
                ErrorKind::Cancelled,
                SqlState::IDLE_SESSION_TIMEOUT,
                "the statement was ended with its session by idle_session_timeout",
            ),
            Self::SnapshotAge => (
                ErrorKind::ResourceExhausted,
                SqlState::LIMIT_EXCEEDED,
                "the query exceeded the maximum snapshot age",
            ),
            Self::StepTooLong => (
                ErrorKind::ResourceExhausted,
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                "a step of the statement took too much processor time",
            ),
            Self::ClientGone | Self::Cancelled => {
                (ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the statement was cancelled")
            }
            Self::HandleClosed => (
                ErrorKind::Cancelled,
                SqlState::QUERY_CANCELED,
                "the statement was cancelled because its handle was closed",
            ),
            Self::SessionClosed => (
                ErrorKind::Cancelled,
                SqlState::QUERY_CANCELED,
                "the statement was cancelled because its session was closed",
            ),
            Self::QueryKilled => {
                (ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the statement was ended by KILL QUERY")
            }
            Self::Timeout => (
                ErrorKind::Cancelled,
                SqlState::QUERY_CANCELED,
                "the statement took longer than its statement_timeout",
            ),
        };
        let error = Error::new(kind, sqlstate, message);
        if self == Self::LoggedOut { error.hint("log in again") } else { error }
    }
}
