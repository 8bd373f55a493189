//! Reads the bytes of a segment and compares them with the checksums noted when they were written.
//!
//! Reads are widened to whole blocks of [`CHECKSUM_BLOCK_BYTES`]. The checksums come from the manifest, not
//! from the object, so a changed byte anywhere in the object, even in its footer, is found before decoding.
//!
//! Invariant: every byte that reaches a decoder is the byte that was written.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use super::object_storage::ObjectStorage;
use super::segment::{CHECKSUM_BLOCK_BYTES, Segment};
use super::storages::Storages;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// Bytes of the first read at the end of a segment: mostly the whole footer.
const FOOTER_BYTES: usize = 64 << 10;

/// Reads one segment.
pub(super) struct CheckedReader {
    pub(super) storages: Arc<Storages>,
    pub(super) segment: Arc<Segment>,
}

impl CheckedReader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let start = range.start / CHECKSUM_BLOCK_BYTES * CHECKSUM_BLOCK_BYTES;
        let end = (range.end.div_ceil(CHECKSUM_BLOCK_BYTES) * CHECKSUM_BLOCK_BYTES).min(self.segment.bytes);
        if range.start > range.end || range.end > end {
            return Err(self.damaged("it is shorter than expected"));
        }
        let storage = self.storages.get(&self.segment.storage)?;
        let bytes = match storage.get_range(&self.segment.path, start..end).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(self.unreadable(&storage, error).await),
        };
        if bytes.len() as u64 != end - start {
            return Err(self.damaged("it is shorter than expected"));
        }
        let first = usize::try_from(start / CHECKSUM_BLOCK_BYTES).unwrap_or(usize::MAX);
        let block_bytes = usize::try_from(CHECKSUM_BLOCK_BYTES).unwrap_or(usize::MAX);
        for (index, block) in bytes.chunks(block_bytes).enumerate() {
            if self.segment.checksum(first + index) != Some(crc32fast::hash(block)) {
                return Err(self.damaged("a checksum differs"));
            }
        }
        let place = |offset: u64| usize::try_from(offset - start).unwrap_or(usize::MAX);
        Ok(bytes.slice(place(range.start)..place(range.end)))
    }

    /// Reads neighbouring ranges together: the ranges of one read are mostly the columns of one row group.
    async fn read_all(&self, ranges: Vec<Range<u64>>) -> Result<Vec<Bytes>> {
        /// A gap of up to this many bytes is read together with the ranges around it.
        const GAP_BYTES: u64 = 2 * CHECKSUM_BLOCK_BYTES;
        let mut order: Vec<usize> = (0..ranges.len()).collect();
        order.sort_by_key(|index| ranges.get(*index).map_or(0, |range| range.start));
        let mut merged: Vec<(Range<u64>, Vec<usize>)> = Vec::new();
        for index in order {
            let Some(range) = ranges.get(index) else { continue };
            match merged.last_mut() {
                Some((last, members)) if range.start <= last.end.saturating_add(GAP_BYTES) => {
                    last.end = last.end.max(range.end);
                    members.push(index);
                }
                _ => merged.push((range.clone(), vec![index])),
            }
        }
        let mut pieces = vec![Bytes::new(); ranges.len()];
        for (whole, members) in merged {
            let bytes = self.read(whole.clone()).await?;
            for index in members {
                let (Some(range), Some(piece)) = (ranges.get(index), pieces.get_mut(index)) else { continue };
                let place = |offset: u64| usize::try_from(offset - whole.start).unwrap_or(usize::MAX);
                *piece = bytes.slice(place(range.start)..place(range.end));
            }
        }
        Ok(pieces)
    }

    /// Returns why the segment could not be read: missing, another length, or no answer from its storage.
    async fn unreadable(&self, storage: &ObjectStorage, error: object_store::Error) -> Error {
        let segment = &self.segment.path;
        if let object_store::Error::NotFound { .. } = error {
            return Error::corruption(format!("segment \"{segment}\" is missing"))
                .hint("restore it from a backup; other tables are not affected");
        }
        match storage.head(segment).await {
            Ok(object) if object.size != self.segment.bytes => self.damaged("its length differs"),
            _ => Error::new(
                ErrorKind::Unavailable,
                SqlState::IO_ERROR,
                format!("segment \"{segment}\" cannot be read"),
            )
            .hint(format!("storage \"{}\" does not answer; try again", self.segment.storage))
            .source(error),
        }
    }

    fn damaged(&self, why: &str) -> Error {
        Error::corruption(format!("segment \"{}\" is damaged: {why}", self.segment.path))
            .hint("restore it from a backup; other tables are not affected")
    }
}

pub(super) fn outward(error: Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for CheckedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        self.read(range).map_err(outward).boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        self.read_all(ranges).map_err(outward).boxed()
    }

    /// Reads the footer; it always has the page index, whatever the options say.
    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            let bytes = self.segment.bytes;
            let footer = ParquetMetaDataReader::new()
                .with_page_index_policy(PageIndexPolicy::Required)
                .with_prefetch_hint(Some(FOOTER_BYTES));
            footer.load_and_finish(self, bytes).await.map(Arc::new)
        }
        .boxed()
    }
}
