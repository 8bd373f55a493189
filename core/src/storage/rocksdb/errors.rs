//! The errors of a store, by what the caller can do about them.

use ::rocksdb::{Error as RocksError, ErrorKind as RocksErrorKind};

use crate::error::{Error, ErrorKind, SqlState};

pub(super) fn open_error(error: RocksError) -> Error {
    match error.kind() {
        RocksErrorKind::Corruption | RocksErrorKind::NotFound | RocksErrorKind::InvalidArgument => {
            Error::corruption("the store is damaged and cannot be opened")
                .hint("restore the data directory from a backup")
                .source(error)
        }
        _ => Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, "the store cannot be opened")
            .hint("see the server's log for the operating system's error")
            .source(error),
    }
}

pub(super) fn read_error(error: RocksError, what: &str) -> Error {
    match error.kind() {
        RocksErrorKind::Corruption => Error::corruption("stored data failed its checksum").source(error),
        _ => unavailable(what).source(error),
    }
}

pub(super) fn unavailable(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, what)
}

/// The error of reads and writes while their store is closed.
pub(super) fn reopening() -> Error {
    unavailable("the store is being reopened because a write to disk failed").hint("run the statement again")
}

pub(super) fn write_error(error: RocksError) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::OUTCOME_UNKNOWN, "the store could not be written")
        .source(error)
}
