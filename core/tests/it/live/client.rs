//! A client of a live query that holds the rows it was told, and checks each frame strictly.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{Array, RecordBatch, UInt8Array};
use datafusion::common::ScalarValue;
use kalamdb_core::ids::Seq;
use kalamdb_core::live_query::{
    CloseReason, EncodedBatch, Frame, FrameBody, OP_DELETE, OP_INSERT, OP_UPDATE, ResetReason,
};

/// A row, as text without its system columns.
pub(crate) type Row = Vec<String>;

/// What a client holds: a map by key, or a multiset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Folded {
    /// The positions of the key columns in the row; `None` for a multiset.
    key: Option<Vec<usize>>,
    rows: BTreeMap<Row, (Row, usize)>,
}

impl Folded {
    fn identity(&self, row: &Row) -> Row {
        match &self.key {
            Some(key) => key.iter().map(|position| row[*position].clone()).collect(),
            None => row.clone(),
        }
    }

    /// Applies one row strictly: an insert must be new, an update must change its row, a delete must find it.
    fn apply(&mut self, op: u8, row: Row) -> Result<(), String> {
        let identity = self.identity(&row);
        let held = self.rows.get_mut(&identity);
        match (op, held, self.key.is_some()) {
            (OP_INSERT, None, _) => {
                self.rows.insert(identity, (row, 1));
            }
            (OP_INSERT, Some((_, count)), false) => *count += 1,
            (OP_UPDATE, Some((held, _)), true) if *held != row => *held = row,
            (OP_DELETE, Some((held, count)), _) if *held == row => {
                *count -= 1;
                if *count == 0 {
                    self.rows.remove(&identity);
                }
            }
            (op, held, _) => return Err(format!("operation {op} of {row:?} does not fit {held:?}")),
        }
        Ok(())
    }

    fn multiset(&self) -> BTreeMap<Row, usize> {
        self.rows.values().cloned().collect()
    }
}

/// A subscriber with the rows it was told and the token to resume from.
#[derive(Debug, Default)]
pub(crate) struct Client {
    complete: Folded,
    pub(crate) complete_through: Seq,
    pub(crate) token: Option<Bytes>,
    /// The rows of an incomplete snapshot or commit.
    partial: Vec<(u8, Row)>,
    in_snapshot: bool,
    /// The rows it held at each frontier.
    pub(crate) checkpoints: Vec<(Seq, BTreeMap<Row, usize>)>,
    resets: Vec<ResetReason>,
    closed: Option<CloseReason>,
}

impl Client {
    pub(crate) fn take(&mut self, frame: &Frame) -> Result<(), String> {
        // A stream that does not resume starts from nothing.
        if matches!(frame.body, FrameBody::Started { resumed: false, .. }) {
            (self.complete_through, self.token) = (Seq(0), None);
        }
        if frame.complete_through < self.complete_through {
            return Err(format!("went back from {} to {}", self.complete_through, frame.complete_through));
        }
        if !frame.more && frame.complete_through > self.complete_through && frame.resume_token.is_none() {
            return Err("moved without a token".to_owned());
        }
        match &frame.body {
            FrameBody::Started { schema, key_columns, resumed, .. } => {
                let names: Vec<_> =
                    schema.fields().iter().skip(2).map(|field| field.name().as_str()).collect();
                let position =
                    |key: &String| names.iter().position(|name| name == key).expect("the key is selected");
                let key = (!key_columns.is_empty()).then(|| key_columns.iter().map(position).collect());
                if *resumed && self.complete.key != key {
                    return Err("resumed with another key".to_owned());
                }
                if !*resumed {
                    self.complete = Folded { key, ..Folded::default() };
                    self.in_snapshot = true;
                }
                self.partial.clear();
                if *resumed || frame.complete_through > Seq(0) {
                    self.in_snapshot = false;
                }
            }
            FrameBody::Reset { reason, .. } => {
                self.resets.push(*reason);
                self.complete.rows.clear();
                self.partial.clear();
                self.in_snapshot = true;
            }
            FrameBody::Snapshot(rows) => self.partial.extend(rows_of(rows)),
            FrameBody::SnapshotEnd => {
                self.in_snapshot = false;
                self.apply_partial()?;
            }
            FrameBody::Delta(rows) => {
                if self.in_snapshot {
                    return Err("delta within a snapshot".to_owned());
                }
                check_seqs(rows, self.complete_through, frame)?;
                self.partial.extend(rows_of(rows));
                if !frame.more {
                    self.apply_partial()?;
                }
            }
            FrameBody::Progress | FrameBody::Notice(_) => {}
            FrameBody::Closed { reason, .. } => self.closed = Some(*reason),
        }
        if !frame.more && !self.in_snapshot && frame.complete_through > Seq(0) {
            self.complete_through = frame.complete_through;
            self.token.clone_from(&frame.resume_token);
            self.checkpoints.push((frame.complete_through, self.complete.multiset()));
        }
        Ok(())
    }

    fn apply_partial(&mut self) -> Result<(), String> {
        self.partial.drain(..).try_for_each(|(op, row)| self.complete.apply(op, row))
    }
}

/// Checks that delta rows belong to commits after the last frontier, and to none after the frame's.
fn check_seqs(rows: &EncodedBatch, after: Seq, frame: &Frame) -> Result<(), String> {
    let batch = rows.batch().expect("rows");
    let limit = if frame.more { Seq(frame.complete_through.0 + 1) } else { frame.complete_through };
    for row in 0..batch.num_rows() {
        let ScalarValue::Int64(Some(seq)) =
            ScalarValue::try_from_array(batch.column(1), row).expect("a value")
        else {
            return Err("_seq is not a BIGINT".to_owned());
        };
        let seq = Seq(u64::try_from(seq).expect("a seq"));
        if seq <= after || seq > limit {
            return Err(format!("a row of commit {seq} in a frame from {after} to {limit}"));
        }
    }
    Ok(())
}

pub(crate) fn rows_of(rows: &EncodedBatch) -> Vec<(u8, Row)> {
    let batch = rows.batch().expect("rows");
    let ops = batch.column(0).as_any().downcast_ref::<UInt8Array>().expect("_op is UInt8");
    let shown = batch.project(&(2..batch.num_columns()).collect::<Vec<_>>()).expect("columns");
    (0..batch.num_rows()).map(|row| (ops.value(row), text_row(&shown, row))).collect()
}

pub(crate) fn text_row(batch: &RecordBatch, row: usize) -> Row {
    let value =
        |column: &Arc<dyn Array>| format!("{:?}", ScalarValue::try_from_array(column, row).expect("a value"));
    batch.columns().iter().map(value).collect()
}
