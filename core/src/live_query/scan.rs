//! The result of a query as of a snapshot, read batch by batch and cut into frames.
//!
//! Invariant: all scans of a query on one snapshot have the same rows in the same order, because only one
//! partition is read at a time. So a scan can go on after the rows that an earlier one has delivered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlanProperties;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::time::timeout;

use super::frame::{Frame, FrameBody, held_bytes};
use super::frame_maker::MoreFollows;
use super::group::QueryGroup;
use super::turns::Turn;
use crate::commit::Snapshot;
use crate::error::Result;
use crate::ids::Seq;
use crate::tables::{KalamTable, RowSchema};

/// What a scan takes besides its frames: readers of files, and decoded columns.
const SCAN_BYTES: usize = 256 << 10;

/// How long a scan reads before others have their turn.
const SLICE: Duration = Duration::from_millis(100);

/// A scan, and frames of the rows that it has read.
pub(super) struct Scan {
    batches: BoxStream<'static, Result<RecordBatch, DataFusionError>>,
    /// The rows of the result that an earlier scan has delivered.
    skip: usize,
    pub(super) frames: VecDeque<Arc<Frame>>,
}

/// Reads on in a scan until there is a frame or the turn ends. Without a scan it opens one, after the first
/// `rows` rows of the result. `complete` is the last commit that the client has completely. Returns also
/// whether the scan is at its end.
pub(super) async fn read_on(
    turn: Turn,
    session: Arc<SessionState>,
    group: Arc<QueryGroup>,
    snapshot: Arc<Snapshot>,
    scan: Option<Box<Scan>>,
    (rows, complete): (usize, Seq),
) -> Result<(Box<Scan>, bool)> {
    let mut scan = match scan {
        Some(scan) => scan,
        None => Box::new(Scan::open(&session, &group, &snapshot, rows).await?),
    };
    let is_at_end = match timeout(SLICE, scan.read(&group, complete)).await {
        Ok(has_frame) => !has_frame?,
        Err(_) => false,
    };
    drop(turn);
    Ok((scan, is_at_end))
}

impl Scan {
    /// Starts a group's SELECT at `snapshot`, after the first `skip` rows of the result. It includes expired
    /// rows that are not deleted yet; see `evaluator`.
    async fn open(
        session: &SessionState,
        group: &QueryGroup,
        snapshot: &Arc<Snapshot>,
        skip: usize,
    ) -> Result<Self> {
        let plan = &group.plan;
        let (snapshot, schemas) = (Arc::clone(snapshot), Arc::clone(&plan.table));
        let table = KalamTable::stored(snapshot, schemas, RowSchema::Full, plan.scope, i64::MIN);
        let columns = plan.evaluator.columns().to_vec();
        let scan = table.scan(session, Some(&columns), &plan.conjuncts, None).await?;
        let (partitions, context) = (scan.output_partitioning().partition_count(), session.task_ctx());
        let batches = futures::stream::iter(0..partitions)
            .map(move |partition| scan.execute(partition, Arc::clone(&context)))
            .try_flatten()
            .boxed();
        Ok(Self { batches, skip, frames: VecDeque::new() })
    }

    /// Reads on until there is a frame; false at the end. Nothing is lost when the future is dropped.
    async fn read(&mut self, group: &QueryGroup, complete: Seq) -> Result<bool> {
        while self.frames.is_empty() {
            let Some(batch) = self.batches.next().await else { return Ok(false) };
            let rows = group.plan.evaluator.snapshot(&batch?)?;
            let delivered = self.skip.min(rows.num_rows());
            self.skip -= delivered;
            let mut parts = Vec::new();
            group.maker.cut_rows(&rows, delivered..rows.num_rows(), &mut parts)?;
            self.frames.extend(parts.into_iter().map(|part| {
                let body = FrameBody::Snapshot(part);
                Arc::new(group.maker.incomplete(complete, MoreFollows::Yes, body))
            }));
        }
        Ok(true)
    }

    /// Returns a scan that is at its end.
    #[cfg(test)]
    pub(super) fn ended() -> Box<Self> {
        Box::new(Self { batches: futures::stream::empty().boxed(), skip: 0, frames: VecDeque::new() })
    }

    /// Returns the bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        SCAN_BYTES + self.frames.iter().map(|frame| held_bytes(frame)).sum::<usize>()
    }
}
