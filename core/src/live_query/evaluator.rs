//! Evaluates one live query over rows: which rows match, and what the subscriber sees of them.
//!
//! The same DataFusion expressions run over a snapshot's rows and over the old and new images of a commit, so
//! both parts of a stream agree by construction. Conditions and projections run over whole batches. As in a
//! SELECT, a projection is only computed for rows that match.
//!
//! | old image matches | new image matches | row |
//! |---|---|---|
//! | no | yes | insert, with the new values |
//! | yes | no | delete, with the old values |
//! | yes | yes | equal values: none; else update (new values), without a key delete (old) and insert (new) |
//! | no | no | none |
//!
//! Rows of STREAM tables count until the commit that deletes them. An expired row that is not deleted yet is
//! part of a live query's snapshot; otherwise its later delete would remove a row the client never had.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, UInt8Array,
    UInt32Array, make_comparator,
};
use datafusion::arrow::compute::kernels::cmp::not_distinct;
use datafusion::arrow::compute::{
    SortOptions, and, filter_record_batch, interleave, prep_null_mask_filter, take,
};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::common::config::{ConfigOptions, Extensions};
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::PhysicalExpr;

use super::frame::{OP_DELETE, OP_INSERT, OP_UPDATE};
use super::images::Images;
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::schema_registry::{COLUMN_SEQ, TableSchemas, encode_schema};

/// A selected expression over the table's full schema.
pub(crate) struct OutputColumn {
    pub(crate) expr: Expr,
    pub(crate) field: Field,
    /// Compared to detect changes, but not delivered.
    pub(crate) hidden: bool,
}

/// A live query's condition and expressions, compiled.
#[derive(Debug)]
pub(crate) struct Evaluator {
    /// The columns of the full schema that the expressions need, and `_seq`, ascending.
    columns: Vec<usize>,
    /// The position of `_seq` in `columns`.
    seq_position: usize,
    filter: Option<Arc<dyn PhysicalExpr>>,
    outputs: Vec<CompiledOutput>,
    schema: SchemaRef,
    schema_ipc: Bytes,
    key_columns: Vec<String>,
}

#[derive(Debug)]
struct CompiledOutput {
    expr: Arc<dyn PhysicalExpr>,
    field: FieldRef,
    hidden: bool,
}

impl Evaluator {
    pub(crate) fn new(
        table: &TableSchemas,
        filter: Option<Expr>,
        outputs: Vec<OutputColumn>,
        state: &SessionState,
    ) -> Result<Self> {
        let full = &table.full;
        let columns = needed_columns(full, filter.as_ref(), &outputs)?;
        let seq_column = full.index_of(COLUMN_SEQ)?;
        let seq_position = columns.iter().position(|column| *column == seq_column).unwrap_or_default();
        let input = DFSchema::try_from(full.project(&columns)?)?;
        let key_columns = key_columns(table, &outputs);
        let state = &lasting(state);
        let filter = filter.map(|filter| state.create_physical_expr(filter, &input)).transpose()?;
        let mut compiled = Vec::with_capacity(outputs.len());
        for output in outputs {
            let expr = state.create_physical_expr(output.expr, &input)?;
            compiled.push(CompiledOutput { expr, field: Arc::new(output.field), hidden: output.hidden });
        }
        let mut fields = vec![
            Arc::new(Field::new("_op", DataType::UInt8, false)),
            Arc::new(Field::new(COLUMN_SEQ, DataType::Int64, false)),
        ];
        fields
            .extend(compiled.iter().filter(|output| !output.hidden).map(|output| Arc::clone(&output.field)));
        let schema = Arc::new(Schema::new(fields));
        let schema_ipc = encode_schema(&schema);
        Ok(Self { columns, seq_position, filter, outputs: compiled, schema, schema_ipc, key_columns })
    }

    /// Returns `_op`, `_seq` and the query's columns.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns the schema as an encapsulated IPC message.
    pub(crate) fn schema_ipc(&self) -> Bytes {
        self.schema_ipc.clone()
    }

    /// Returns the delivered columns that identify a row; empty if the result is a multiset.
    pub(crate) fn key_columns(&self) -> &[String] {
        &self.key_columns
    }

    /// Returns the columns of the full schema that a scan must deliver, ascending.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Returns the matching rows of a snapshot, as inserts. `batch` has exactly [`Evaluator::columns`].
    pub(crate) fn snapshot(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let side = self.side(batch)?;
        let seqs = Arc::clone(side.batch.column(self.seq_position));
        let rows = side.batch.num_rows();
        self.delivered(vec![OP_INSERT; rows], seqs, side.values)
    }

    /// Returns what the subscriber learns from `images`, in commit order; `None` if it learns nothing.
    pub(crate) fn changes(&self, images: &Images) -> Result<Option<RecordBatch>> {
        let old = self.side(&images.old.project(&self.columns)?)?;
        let new = self.side(&images.new.project(&self.columns)?)?;
        if old.batch.num_rows() == 0 && new.batch.num_rows() == 0 {
            return Ok(None);
        }
        let mut rows = DeltaRows::default();
        let mut pairs = self.changed_pairs(images, &old, &new)?.into_iter();
        for change in &images.changes {
            match (old.position(change.old), new.position(change.new)) {
                (None, None) => {}
                (None, Some(at)) => rows.push(OP_INSERT, change.seq, (NEW, at)),
                (Some(at), None) => rows.push(OP_DELETE, change.seq, (OLD, at)),
                (Some(old_at), Some(new_at)) => {
                    let changed = pairs.next().unwrap_or(true);
                    if changed && self.key_columns.is_empty() {
                        rows.push(OP_DELETE, change.seq, (OLD, old_at));
                        rows.push(OP_INSERT, change.seq, (NEW, new_at));
                    } else if changed {
                        rows.push(OP_UPDATE, change.seq, (NEW, new_at));
                    }
                }
            }
        }
        if rows.ops.is_empty() {
            return Ok(None);
        }
        let values = old
            .values
            .iter()
            .zip(&new.values)
            .map(|(old, new)| interleave(&[old.as_ref(), new.as_ref()], &rows.places))
            .collect::<Result<Vec<_>, _>>()?;
        self.delivered(rows.ops, Arc::new(Int64Array::from(rows.seqs)), values).map(Some)
    }

    /// For each change whose old and new image both match, in order: whether the selected values differ.
    fn changed_pairs(&self, images: &Images, old: &MatchingRows, new: &MatchingRows) -> Result<Vec<bool>> {
        let pairs = images
            .changes
            .iter()
            .filter_map(|change| Some((old.position(change.old)?, new.position(change.new)?)));
        let (old_rows, new_rows): (Vec<_>, Vec<_>) =
            pairs.map(|(old, new)| (row_number(old), row_number(new))).unzip();
        let (old_rows, new_rows) = (UInt32Array::from(old_rows), UInt32Array::from(new_rows));
        let mut equal = BooleanArray::from(vec![true; old_rows.len()]);
        if old_rows.is_empty() {
            return Ok(Vec::new());
        }
        for (old, new) in old.values.iter().zip(&new.values) {
            let old = take(old, &old_rows, None)?;
            let new = take(new, &new_rows, None)?;
            equal = and(&equal, &equal_rows(&old, &new)?)?;
        }
        Ok(equal.iter().map(|equal| equal != Some(true)).collect())
    }

    /// Filters and projects the rows of one side.
    fn side(&self, batch: &RecordBatch) -> Result<MatchingRows> {
        let (batch, positions) = match &self.filter {
            None => (batch.clone(), None),
            Some(filter) => {
                let mask = filter.evaluate(batch)?.into_array(batch.num_rows())?;
                let mask = mask
                    .as_boolean_opt()
                    .ok_or_else(|| Error::internal("a live query's condition is not boolean"))?;
                let mask = match mask.null_count() {
                    0 => mask.clone(),
                    _ => prep_null_mask_filter(mask),
                };
                (filter_record_batch(batch, &mask)?, Some(positions(&mask)))
            }
        };
        let values = self
            .outputs
            .iter()
            .map(|output| Ok(output.expr.evaluate(&batch)?.into_array(batch.num_rows())?))
            .collect::<Result<Vec<_>>>()?;
        Ok(MatchingRows { batch, positions, values })
    }

    /// Assembles the delivered columns; `values` are those of all outputs.
    fn delivered(&self, ops: Vec<u8>, seqs: ArrayRef, values: Vec<ArrayRef>) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(ops.len()));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt8Array::from(ops)), seqs];
        let shown = values.into_iter().zip(&self.outputs).filter(|(_, output)| !output.hidden);
        columns.extend(shown.map(|(values, _)| values));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

/// The matching rows of one side of a change.
struct MatchingRows {
    batch: RecordBatch,
    /// For each row before filtering its position afterwards; `None` without a filter.
    positions: Option<Vec<Option<usize>>>,
    /// The values of each output.
    values: Vec<ArrayRef>,
}

impl MatchingRows {
    /// Returns the position of a row among the matching ones.
    fn position(&self, row: Option<usize>) -> Option<usize> {
        match &self.positions {
            None => row,
            Some(positions) => positions.get(row?).copied().flatten(),
        }
    }
}

/// The indexes of the two arrays that `interleave` reads.
const OLD: usize = 0;
const NEW: usize = 1;

/// The rows delivered for some changes.
#[derive(Default)]
struct DeltaRows {
    ops: Vec<u8>,
    seqs: Vec<i64>,
    places: Vec<(usize, usize)>,
}

impl DeltaRows {
    fn push(&mut self, op: u8, seq: Seq, place: (usize, usize)) {
        self.ops.push(op);
        self.seqs.push(signed(seq));
        self.places.push(place);
    }
}

/// Returns the seqs of delivered rows.
pub(crate) fn delivered_seqs(batch: &RecordBatch) -> &[i64] {
    batch.column(1).as_primitive::<Int64Type>().values()
}

/// `_seq` is a BIGINT.
fn signed(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

fn row_number(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(u32::MAX)
}

fn positions(mask: &BooleanArray) -> Vec<Option<usize>> {
    let mut next = 0;
    mask.values()
        .iter()
        .map(|matches| {
            matches.then(|| {
                next += 1;
                next - 1
            })
        })
        .collect()
}

fn equal_rows(old: &ArrayRef, new: &ArrayRef) -> Result<BooleanArray> {
    if !old.data_type().is_nested() && *old.data_type() != DataType::Null {
        return Ok(not_distinct(old, new)?);
    }
    if *old.data_type() == DataType::Null {
        return Ok(BooleanArray::from(vec![true; old.len()]));
    }
    let compare = make_comparator(old, new, SortOptions::default())?;
    Ok((0..old.len()).map(|row| Some(compare(row, row).is_eq())).collect())
}

/// Returns the state for expressions that outlive their statement: without the options that belong to the
/// statement, such as its control, which functions would ask.
fn lasting(state: &SessionState) -> SessionState {
    let mut options = ConfigOptions::clone(state.config_options());
    options.extensions = Extensions::new();
    let mut lasting = state.clone();
    lasting.execution_props_mut().config_options = Some(Arc::new(options));
    lasting
}

/// Returns the columns of the full schema that `filter` and `outputs` name, and `_seq`, ascending.
fn needed_columns(full: &Schema, filter: Option<&Expr>, outputs: &[OutputColumn]) -> Result<Vec<usize>> {
    let mut columns = vec![full.index_of(COLUMN_SEQ)?];
    for expr in filter.into_iter().chain(outputs.iter().map(|output| &output.expr)) {
        for column in expr.column_refs() {
            columns.push(full.index_of(&column.name)?);
        }
    }
    columns.sort_unstable();
    columns.dedup();
    Ok(columns)
}

/// Returns the delivered names of the primary key's columns, in key order; empty if one of them is missing.
fn key_columns(table: &TableSchemas, outputs: &[OutputColumn]) -> Vec<String> {
    let definition = &table.definition;
    let mut names = Vec::with_capacity(definition.primary_key.len());
    for id in &definition.primary_key {
        let Some(key) = definition.columns.iter().find(|column| column.id == *id) else { return Vec::new() };
        let delivered = outputs.iter().find(|output| {
            !output.hidden && matches!(&output.expr, Expr::Column(column) if column.name == *key.name)
        });
        let Some(output) = delivered else { return Vec::new() };
        let unique = outputs.iter().filter(|other| other.field.name() == output.field.name()).count() == 1;
        if !unique {
            return Vec::new();
        }
        names.push(output.field.name().clone());
    }
    names
}
