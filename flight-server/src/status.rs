//! Converts core errors to gRPC statuses: the only place that maps kinds to codes and to log levels.
//!
//! Invariant: a client reads the error's `Display` (SQLSTATE, message, hint), never its source. For an error
//! that a client cannot act on (a defect, damaged bytes), the answer carries an id, and the log line with
//! that id has the whole chain.

use std::error::Error as StdError;

use http::HeaderMap;
use kalamdb_core::{Error, ErrorKind, SqlState};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tracing::{debug, error, warn};

/// The trailer that carries an error's SQLSTATE.
pub(crate) const SQLSTATE_HEADER: &str = "kalamdb-sqlstate";

/// Returns the client's status for `error`; logs what an operator should see.
pub(crate) fn to_status(error: &Error) -> Status {
    match severity(error.kind()) {
        Severity::Caller => {
            debug!(sqlstate = error.sqlstate().0, error = %error, "request failed");
            plain(error)
        }
        Severity::Operator => {
            warn!(sqlstate = error.sqlstate().0, error = %chain(error), "request failed");
            plain(error)
        }
        Severity::Defect => {
            let error_id = uuid::Uuid::new_v4().simple().to_string();
            error!(error_id, sqlstate = error.sqlstate().0, error = %chain(error), "request failed");
            let message = format!("{error} (error id {error_id}, see the server's log)");
            with_sqlstate(Status::new(code(error.kind()), message), error.sqlstate())
        }
    }
}

/// Returns the status of an end that is not a failure, such as that of a live query; nothing is logged.
pub(crate) fn plain(error: &Error) -> Status {
    with_sqlstate(Status::new(code(error.kind()), error.to_string()), error.sqlstate())
}

/// Returns the status after a passed deadline. The core has no kind for it, because deadlines belong to the
/// caller.
pub(crate) fn deadline_passed() -> Status {
    let sqlstate = SqlState::QUERY_CANCELED;
    let message = format!("[{sqlstate}] the query timed out (raise the client's timeout)");
    with_sqlstate(Status::deadline_exceeded(message), sqlstate)
}

/// Adds the SQLSTATE to a response that the transport made, for example for an unreadable message or an
/// unknown method.
pub(crate) fn add_sqlstate(headers: &mut HeaderMap) {
    let Some(status) = Status::from_header_map(headers) else { return };
    if status.code() == Code::Ok || headers.contains_key(SQLSTATE_HEADER) {
        return;
    }
    let sqlstate = sqlstate_of(status.code());
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    let status = with_sqlstate(Status::new(status.code(), format!("[{sqlstate}] {message}")), sqlstate);
    // Only an invalid header value fails; an SQLSTATE and an encoded message are valid.
    let _added = status.add_header(headers);
}

/// Maps an error code of the transport to an SQLSTATE.
fn sqlstate_of(code: Code) -> SqlState {
    match code {
        Code::Unimplemented => SqlState::FEATURE_NOT_SUPPORTED,
        Code::Unauthenticated => SqlState::INVALID_AUTHORIZATION,
        Code::PermissionDenied => SqlState::INSUFFICIENT_PRIVILEGE,
        Code::ResourceExhausted | Code::OutOfRange => SqlState::PROGRAM_LIMIT_EXCEEDED,
        Code::Cancelled | Code::DeadlineExceeded => SqlState::QUERY_CANCELED,
        Code::Unavailable => SqlState::SHUTTING_DOWN,
        // Mainly a malformed request.
        Code::Internal | Code::InvalidArgument => SqlState::CONNECTION_EXCEPTION,
        Code::Ok
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::DataLoss => SqlState::INTERNAL,
    }
}

fn with_sqlstate(mut status: Status, sqlstate: SqlState) -> Status {
    status.metadata_mut().insert(SQLSTATE_HEADER, MetadataValue::from_static(sqlstate.0));
    status
}

/// `to_status` for `map_err`.
pub(crate) fn from_core(error: Error) -> Status {
    to_status(&error)
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidSql | ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Corruption => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

/// Who must act on an error.
enum Severity {
    /// The caller: the statement, value or permission is at fault.
    Caller,
    /// The operator should know, but the caller can continue.
    Operator,
    /// A human must investigate.
    Defect,
}

fn severity(kind: ErrorKind) -> Severity {
    match kind {
        ErrorKind::InvalidSql
        | ErrorKind::InvalidArgument
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::Conflict
        | ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied
        | ErrorKind::Unsupported
        | ErrorKind::ResourceExhausted
        | ErrorKind::Cancelled => Severity::Caller,
        ErrorKind::Unavailable => Severity::Operator,
        ErrorKind::Corruption | ErrorKind::Internal => Severity::Defect,
    }
}

/// Formats the error with its chain of causes, for the log.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = StdError::source(error);
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_reads_the_message_and_never_the_source() {
        let status = to_status(&Error::table_not_found("app.notes"));
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().starts_with("[42P01] table \"app.notes\" does not exist"), "{status:?}");
        assert_eq!(status.metadata().get(SQLSTATE_HEADER).unwrap(), "42P01");

        let status = to_status(&Error::internal("the query failed").source("/secret/path"));
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().contains("error id "), "{status:?}");
        assert!(!status.message().contains("secret"), "{status:?}");
    }

    #[test]
    fn an_error_of_the_transport_has_an_sqlstate_too() {
        let headers = |status: Status| {
            let mut headers = status.into_http::<()>().headers().clone();
            add_sqlstate(&mut headers);
            headers
        };
        let foreign = Status::from_header_map(&headers(Status::unimplemented("no such method"))).unwrap();
        assert_eq!((foreign.code(), foreign.message()), (Code::Unimplemented, "[0A000] no such method"));
        assert_eq!(foreign.metadata().get(SQLSTATE_HEADER).unwrap(), "0A000");
        for status in [plain(&Error::table_not_found("t")), deadline_passed()] {
            let same = Status::from_header_map(&headers(status.clone())).unwrap();
            assert_eq!(same.message(), status.message());
            assert!(same.metadata().contains_key(SQLSTATE_HEADER));
        }
        let mut fine = HeaderMap::new();
        add_sqlstate(&mut fine);
        assert!(fine.is_empty());
    }

    #[test]
    fn a_lost_race_can_be_retried() {
        let error = Error::new(ErrorKind::Conflict, SqlState::SERIALIZATION_FAILURE, "lost");
        assert_eq!(to_status(&error).code(), Code::Aborted);
    }
}
