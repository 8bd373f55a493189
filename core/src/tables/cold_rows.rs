//! Cold rows for UPDATE and DELETE: adds their place, and the key and value they would have if hot.
//!
//! Invariant: `_value` has the current table version and the seq of the commit that wrote the row.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array,
};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef, UInt32Type};
use bytes::Bytes;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    SendableRecordBatchStream,
};
use futures::StreamExt;

use super::rows::project_schema;
use crate::cold_storage::{Place, ReadSchema, SegmentKeys};
use crate::error::{Error, Result};
use crate::ids::{SegmentId, Seq};
use crate::schema_registry::{COLUMN_KEY, COLUMN_PLACE, COLUMN_VALUE, TableSchemas};
use crate::storage::rows::{RowEncoder, set_row_seq};

/// The id of the segment of a row: UInt32, never NULL.
pub(super) const COLUMN_SEGMENT: &str = "_segment";
/// The row's position in the segment: Int64, never NULL.
pub(super) const COLUMN_POSITION: &str = "_position";

/// Adds the system columns of the write schema to segment rows.
#[derive(Debug)]
pub(super) struct ColdRowsExec {
    input: Arc<dyn ExecutionPlan>,
    rows: Arc<ColdRows>,
    properties: Arc<PlanProperties>,
}

#[derive(Debug)]
struct ColdRows {
    schemas: Arc<TableSchemas>,
    /// The projected write schema.
    schema: SchemaRef,
    /// The columns of the rows.
    segment: Arc<ReadSchema>,
    keys: SegmentKeys,
    encoder: RowEncoder,
}

impl ColdRowsExec {
    /// Completes the rows of `input` (the columns of segments, then [`COLUMN_SEGMENT`] and
    /// [`COLUMN_POSITION`]) to the columns of the write schema in `projection`.
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        schemas: &Arc<TableSchemas>,
        projection: Option<&[usize]>,
    ) -> Result<Self> {
        Ok(Self::of(input, Arc::new(ColdRows::new(schemas, projection)?)))
    }

    fn of(input: Arc<dyn ExecutionPlan>, rows: Arc<ColdRows>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&rows.schema)),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { input, rows, properties: Arc::new(properties) }
    }
}

impl DisplayAs for ColdRowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ColdRowsExec: table={}", self.rows.schemas.definition.qualified_name())
    }
}

impl ExecutionPlan for ColdRowsExec {
    fn name(&self) -> &'static str {
        "ColdRowsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self::of(input, Arc::clone(&self.rows)))),
            Err(_) => Err(Error::internal("cold rows have one input").into()),
        }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let rows = Arc::clone(&self.rows);
        let batches = input.map(move |batch| Ok(rows.complete(&batch?)?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.rows.schema), batches)))
    }
}

/// Completes one row of a segment to the write schema.
pub(super) fn cold_row(schemas: &Arc<TableSchemas>, row: &RecordBatch, place: Place) -> Result<RecordBatch> {
    let mut fields: Vec<FieldRef> = row.schema().fields().iter().map(Arc::clone).collect();
    fields.push(Arc::new(Field::new(COLUMN_SEGMENT, DataType::UInt32, false)));
    fields.push(Arc::new(Field::new(COLUMN_POSITION, DataType::Int64, false)));
    let mut columns = row.columns().to_vec();
    columns.push(Arc::new(UInt32Array::from(vec![place.segment.0])));
    columns.push(Arc::new(Int64Array::from(vec![i64::from(place.position)])));
    let row = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
    ColdRows::new(schemas, None)?.complete(&row)
}

impl ColdRows {
    fn new(schemas: &Arc<TableSchemas>, projection: Option<&[usize]>) -> Result<Self> {
        let definition = &schemas.definition;
        let types = definition.columns.iter().map(|column| column.ty).collect();
        Ok(Self {
            schemas: Arc::clone(schemas),
            schema: project_schema(schemas.write(), projection)?,
            segment: Arc::clone(schemas.segment()?),
            keys: definition.segment_keys()?,
            encoder: RowEncoder::new(definition.version, types),
        })
    }

    fn complete(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self
            .schema
            .fields()
            .iter()
            .map(|field| match field.name().as_str() {
                COLUMN_KEY => binary(&self.keys.of_rows(batch, &self.segment)?),
                COLUMN_VALUE => self.values(batch),
                COLUMN_PLACE => places(batch),
                name => column(batch, name).map(Arc::clone),
            })
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    fn values(&self, batch: &RecordBatch) -> Result<ArrayRef> {
        let width = self.schemas.definition.columns.len();
        let visible = batch.columns().get(..width).ok_or_else(incomplete)?;
        let seqs = batch.columns().get(width).ok_or_else(incomplete)?;
        let seqs = seqs.as_primitive_opt::<Int64Type>().ok_or_else(incomplete)?;
        let mut rows = self.encoder.encode(visible, batch.num_rows(), None)?;
        for (row, seq) in rows.iter_mut().zip(seqs.values()) {
            set_row_seq(row, Seq(u64::try_from(*seq).unwrap_or_default()))?;
        }
        Ok(Arc::new(BinaryArray::from_iter_values(rows)))
    }
}

fn places(batch: &RecordBatch) -> Result<ArrayRef> {
    let segments = column(batch, COLUMN_SEGMENT)?;
    let segments = segments.as_primitive_opt::<UInt32Type>().ok_or_else(incomplete)?;
    let positions = column(batch, COLUMN_POSITION)?;
    let positions = positions.as_primitive_opt::<Int64Type>().ok_or_else(incomplete)?;
    let places = segments.values().iter().zip(positions.values()).map(|(segment, position)| {
        let position = u32::try_from(*position).unwrap_or_default();
        // The bit cast keeps both halves.
        Place { segment: SegmentId(*segment), position }.to_u64().cast_signed()
    });
    Ok(Arc::new(Int64Array::from_iter_values(places)))
}

fn binary(values: &[Bytes]) -> Result<ArrayRef> {
    Ok(Arc::new(BinaryArray::from_iter_values(values)))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(incomplete)
}

fn incomplete() -> Error {
    Error::internal("cold rows lack a column")
}
