//! The readers of DataFusion's scans: verified bytes of segments, with cached footers.
//!
//! Invariant: a scan reads no byte of a segment that was not compared with its checksum.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::Result as DataFusionResult;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::ParquetFileMetrics;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::file::metadata::ParquetMetaData;

use super::checked_reader::{CheckedReader, outward};
use super::segment::Segment;
use super::store::SegmentStore;
use crate::error::Error;

/// Creates the readers for DataFusion's scans. Each file of a scan has its `Arc<Segment>` as extension.
#[derive(Debug)]
pub struct CheckedReaderFactory {
    store: Arc<SegmentStore>,
}

impl CheckedReaderFactory {
    /// Returns a factory for the segments of `store`.
    pub fn new(store: Arc<SegmentStore>) -> Self {
        Self { store }
    }
}

impl ParquetFileReaderFactory for CheckedReaderFactory {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        _: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> DataFusionResult<Box<dyn AsyncFileReader + Send>> {
        let segment = file
            .extension::<Arc<Segment>>()
            .ok_or_else(|| Error::internal("a file of a cold scan is not a segment"))?;
        let reader = ScanReader {
            reader: self.store.reader(segment),
            store: Arc::clone(&self.store),
            metrics: ParquetFileMetrics::new(partition, &segment.path, metrics),
        };
        Ok(Box::new(reader))
    }
}

/// The reader of a scan, which counts the requested bytes.
struct ScanReader {
    reader: CheckedReader,
    store: Arc<SegmentStore>,
    metrics: ParquetFileMetrics,
}

impl ScanReader {
    fn count(&self, ranges: &[Range<u64>]) {
        let bytes: u64 = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        self.metrics.bytes_scanned.add(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
}

impl AsyncFileReader for ScanReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        self.count(std::slice::from_ref(&range));
        self.reader.get_bytes(range)
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        self.count(&ranges);
        self.reader.get_byte_ranges(ranges)
    }

    /// Returns the cached footer; it always has the page index, whatever the options say.
    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            let open = self.store.open(&self.reader.segment).await.map_err(outward)?;
            Ok(Arc::clone(open.metadata.metadata()))
        }
        .boxed()
    }
}
