//! Plans the cold rows of a scan: the plan nodes that read the positions of its description.
//!
//! DataFusion's Parquet source reads them, and skips row groups and pages by its filters. Each segment is
//! read through its layout, whatever table version wrote it.
//!
//! Invariant: the nodes read exactly the positions of the description.

use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field};
use datafusion::catalog::Session;
use datafusion::common::config::TableParquetOptions;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetAccessPlan;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use parquet::arrow::RowNumber;
use parquet::arrow::arrow_reader::RowSelection;

use super::cold_rows::{COLUMN_POSITION, COLUMN_SEGMENT, ColdRowsExec};
use super::description::{ScanDescription, key_order};
use super::rows::RowSchema;
use super::scan_handles::check_handles;
use crate::cold_storage::{
    COLUMN_ID_SEQ, CheckedReaderFactory, ReadSchema, Segment, SegmentColumns, SegmentStore,
};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::schema_registry::{ScopeKind, TableSchemas};

/// Up to this many files (or the target partitions, if more) have one partition each and keep their order.
/// More files share partitions, and the rows have no order.
const ORDERED_SEGMENTS_MAX: usize = 16;
/// The minimum number of rows per partition when a segment is split.
const PARTITION_ROWS_MIN: usize = 128 << 10;
/// From this many rows on, estimates include the bounds of the columns.
const ESTIMATED_ROWS_MIN: usize = 8 << 10;

/// A scan of cold rows: its description, and the handles to read it with.
pub(super) struct ColdScan<'a> {
    description: &'a ScanDescription,
    snapshot: &'a Snapshot,
    schemas: &'a Arc<TableSchemas>,
    /// The columns of the table in segments.
    segment: &'a Arc<ReadSchema>,
}

/// The cold rows of a scan.
pub(super) struct ColdPlan {
    /// The node that reads them; its columns are those of the hot scan.
    pub(super) rows: Arc<dyn ExecutionPlan>,
    /// Estimates for the optimizer.
    pub(super) statistics: Statistics,
    /// About how many bytes a row takes, where rows are widest.
    pub(super) row_bytes: usize,
}

/// The rows to read from one segment.
struct SegmentRead {
    segment: Arc<Segment>,
    selection: RowSelection,
}

impl<'a> ColdScan<'a> {
    /// Returns the scan of the cold rows of a description.
    ///
    /// # Errors
    /// XX000 when the handles are not those of the description.
    pub(super) fn new(
        description: &'a ScanDescription,
        snapshot: &'a Snapshot,
        schemas: &'a Arc<TableSchemas>,
    ) -> Result<Self> {
        check_handles(description, snapshot, schemas)?;
        Ok(Self { description, snapshot, schemas, segment: schemas.segment()? })
    }

    /// Returns the node that reads the rows, or `None` if the scan has no rows.
    pub(super) async fn plan(&self, state: &dyn Session) -> Result<Option<ColdPlan>> {
        let reads = self.reads()?;
        if reads.is_empty() {
            return Ok(None);
        }
        let partitions = state.config().target_partitions().max(1);
        let mut files = Vec::with_capacity(reads.len());
        for read in &reads {
            files.extend(self.files(read, partitions.div_ceil(reads.len())).await?);
        }
        let ordered = files.len() <= ORDERED_SEGMENTS_MAX.max(partitions);
        let groups: Vec<FileGroup> = if ordered {
            files.into_iter().map(|file| FileGroup::new(vec![file])).collect()
        } else {
            let mut groups = vec![Vec::new(); partitions];
            for (index, file) in files.into_iter().enumerate() {
                if let Some(group) = groups.get_mut(index % partitions) {
                    group.push(file);
                }
            }
            groups.into_iter().map(FileGroup::new).collect()
        };
        let options = TableParquetOptions {
            global: state.config_options().execution.parquet.clone(),
            ..TableParquetOptions::default()
        };
        let factory = CheckedReaderFactory::new(Arc::clone(self.snapshot.cold.store()));
        let source = ParquetSource::new(self.table_schema())
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(factory));
        let builder = FileScanConfigBuilder::new(SegmentStore::url()?, Arc::new(source))
            .with_file_groups(groups)
            .with_expr_adapter(Some(Arc::new(SegmentColumns::new(Arc::clone(self.segment)))))
            .with_limit(self.description.limit);
        let positions = self.description.positions(self.schemas);
        let row_bytes = self.row_bytes(&reads, &positions).await?;
        if self.is_write() {
            let rows = DataSourceExec::from_data_source(builder.build());
            let projection = self.description.projection.as_deref();
            let rows = Arc::new(ColdRowsExec::new(rows, self.schemas, projection)?);
            let statistics = Statistics::new_unknown(&rows.schema());
            return Ok(Some(ColdPlan { rows, statistics, row_bytes }));
        }
        let statistics = self.statistics(&reads, &positions).await?;
        let ordering = if ordered { self.ordering() } else { None };
        let config = builder
            .with_output_ordering(ordering.into_iter().collect())
            .with_statistics(statistics.clone())
            .with_projection_indices(Some(positions.clone()))?
            .build();
        let rows = DataSourceExec::from_data_source(config);
        Ok(Some(ColdPlan { rows, statistics: statistics.project(Some(&positions)), row_bytes }))
    }

    /// Returns about how many bytes a row takes, where rows are widest. A write reads whole rows.
    async fn row_bytes(&self, reads: &[SegmentRead], positions: &[usize]) -> Result<usize> {
        let all: Vec<usize> = (0..self.segment.schema().fields().len()).collect();
        let positions: &[usize] = if self.is_write() { &all } else { positions };
        let (store, mut widest) = (self.snapshot.cold.store(), 0);
        for read in reads {
            widest = widest.max(store.row_bytes(&read.segment, self.segment, positions).await?);
        }
        Ok(widest)
    }

    /// Returns estimates for the reads: the number of rows, and column statistics for `positions`. All are
    /// inexact, so the optimizer never answers a query from them. A USER table has no column statistics,
    /// because the bounds would include other users' rows.
    async fn statistics(&self, reads: &[SegmentRead], positions: &[usize]) -> Result<Statistics> {
        let segment_schema = self.segment.schema();
        let rows: usize = reads.iter().map(|read| read.selection.row_count()).sum();
        let bytes: u64 = reads.iter().map(|read| read.segment.bytes).sum();
        let all_rows: u64 = reads.iter().map(|read| u64::from(read.segment.rows)).sum();
        // Decoded rows take about three times their encoded size.
        let row_bytes = usize::try_from(3 * bytes / all_rows.max(1)).unwrap_or_default();
        let mut statistics = Statistics::new_unknown(segment_schema);
        statistics.num_rows = Precision::Inexact(rows);
        statistics.total_byte_size = Precision::Inexact(rows.saturating_mul(row_bytes));
        if rows < ESTIMATED_ROWS_MIN || self.schemas.definition.options.scope == ScopeKind::User {
            return Ok(statistics);
        }
        let columns = Arc::new(segment_schema.project(positions)?);
        let mut parts = Vec::with_capacity(reads.len());
        for read in reads {
            let known = self.snapshot.cold.store().statistics(&read.segment, self.segment).await?;
            parts.push(known.project(Some(&positions)));
        }
        let merged = Statistics::try_merge_iter(&parts, &columns)?.to_inexact();
        let seq_position = self.segment.position(COLUMN_ID_SEQ);
        let has_other_seqs = reads.iter().any(|read| read.segment.commit.is_some());
        for (position, column) in positions.iter().zip(merged.column_statistics) {
            // Segments have no bounds for floats, and without bounds no other statistics.
            let is_float = segment_schema.field(*position).data_type().is_floating();
            if let Some(place) = statistics.column_statistics.get_mut(*position) {
                let is_unknown = is_float || (Some(*position) == seq_position && has_other_seqs);
                *place = if is_unknown { ColumnStatistics::new_unknown() } else { column };
            }
        }
        Ok(statistics)
    }

    /// Returns the schema of a file; for a write, with the place of each row.
    fn table_schema(&self) -> TableSchema {
        let file = TableSchema::builder(Arc::clone(self.segment.schema()));
        if !self.is_write() {
            return file.build();
        }
        let segment = Arc::new(Field::new(COLUMN_SEGMENT, DataType::UInt32, false));
        let position = Field::new(COLUMN_POSITION, DataType::Int64, false).with_extension_type(RowNumber);
        file.with_table_partition_cols(vec![segment]).with_virtual_columns(vec![Arc::new(position)]).build()
    }

    /// Returns the sort order of a segment.
    fn ordering(&self) -> Option<LexOrdering> {
        let definition = &self.schemas.definition;
        let options = SortOptions { descending: false, nulls_first: false };
        let sorted = key_order(definition, self.description.pinned).filter_map(|position| {
            let column = definition.columns.get(position)?;
            Some(PhysicalSortExpr::new(Arc::new(Column::new(&column.name, position)), options))
        });
        LexOrdering::new(sorted)
    }

    /// Whether the rows are read for an UPDATE or a DELETE.
    fn is_write(&self) -> bool {
        self.description.columns == RowSchema::Write
    }

    /// Returns the segments of the description with live rows.
    fn reads(&self) -> Result<Vec<SegmentRead>> {
        let mut reads = Vec::with_capacity(self.description.segments.len());
        for rows in &self.description.segments {
            let segment = self.snapshot.cold.segment(self.description.table, rows.segment);
            let segment =
                segment.ok_or_else(|| Error::internal("a scan names a segment of another snapshot"))?;
            let selection = rows.selection(segment.rows);
            if selection.selects_any() {
                reads.push(SegmentRead { segment: Arc::clone(segment), selection });
            }
        }
        Ok(reads)
    }

    /// Returns statistics with the true `_seq` of a large INSERT. DataFusion takes the value of a constant
    /// column from here, not from the file, where it is 0.
    fn of_commit(&self, commit: Seq) -> Statistics {
        let mut statistics = Statistics::new_unknown(self.segment.schema());
        let seq = Precision::Exact(ScalarValue::Int64(Some(i64::try_from(commit.0).unwrap_or(i64::MAX))));
        if let Some(position) = self.segment.position(COLUMN_ID_SEQ)
            && let Some(column) = statistics.column_statistics.get_mut(position)
        {
            column.null_count = Precision::Exact(0);
            column.min_value = seq.clone();
            column.max_value = seq;
        }
        statistics
    }

    /// Returns the file of a read; a large read is split by row groups into at most `parts_max` files.
    async fn files(&self, read: &SegmentRead, parts_max: usize) -> Result<Vec<PartitionedFile>> {
        let SegmentRead { segment, selection } = read;
        let store = self.snapshot.cold.store();
        let layout = store.layout(segment, self.segment).await?;
        let row_groups = store.row_groups(segment).await?;
        let access = ParquetAccessPlan::try_new_from_overall_row_selection(
            selection.clone(),
            row_groups.row_groups(),
        )?;
        let parts = (selection.row_count() / PARTITION_ROWS_MIN).clamp(1, parts_max);
        let groups_per_part = access.len().div_ceil(parts).max(1);
        let mut files = Vec::with_capacity(parts);
        for first in (0..access.len()).step_by(groups_per_part) {
            let mut part = access.clone();
            let own = first..first + groups_per_part;
            (0..access.len()).filter(|group| !own.contains(group)).for_each(|group| part.skip(group));
            if part.row_group_index_iter().next().is_none() {
                continue;
            }
            let mut file = PartitionedFile::new(segment.path.clone(), segment.bytes)
                .with_extension(part)
                .with_extension(Arc::clone(segment));
            if let Some(commit) = segment.commit {
                file = file.with_statistics(Arc::new(self.of_commit(commit)));
            }
            // A scan with the positions of rows always needs its expressions rewritten.
            if !layout.is_identity() || !self.is_write() {
                file = file.with_arrow_schema(Arc::clone(layout.scan_schema()));
            }
            if self.is_write() {
                file = file.with_partition_values(vec![ScalarValue::UInt32(Some(segment.id.0))]);
            }
            files.push(file);
        }
        Ok(files)
    }
}
