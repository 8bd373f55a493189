//! The fields of log entries: fixed-width numbers, and bytes that begin with their length.
//!
//! ```text
//! number   little-endian
//! bytes    length u32, bytes
//! ```
//!
//! Invariant: no bytes make the reader panic. Damaged bytes are an error of kind `Corruption`.

use crate::error::{Error, Result};

/// Reads fields from the front of `bytes`, which are what remains.
pub(super) struct FieldReader<'a> {
    pub(super) bytes: &'a [u8],
}

impl<'a> FieldReader<'a> {
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// Returns a field that begins with its length.
    pub(super) fn variable(&mut self) -> Result<&'a [u8]> {
        let length = usize::try_from(self.u32()?).map_err(|_| damaged())?;
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// Fails unless every byte was read.
    pub(super) fn end(&self) -> Result<()> {
        if self.bytes.is_empty() { Ok(()) } else { Err(damaged()) }
    }
}

/// Returns the length field of so many bytes, rows or entries.
pub(super) fn length(bytes: usize) -> Result<[u8; 4]> {
    u32::try_from(bytes)
        .map(u32::to_le_bytes)
        .map_err(|_| Error::internal("a log entry is longer than 4 GiB"))
}

/// Returns the error for an entry that cannot be decoded.
pub(super) fn damaged() -> Error {
    Error::corruption("an entry of the change log is damaged")
}
