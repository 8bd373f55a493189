//! The plan node of the guards: it passes rows on, and does one job for its statement meanwhile.
//!
//! DataFusion returns from a poll when a batch is ready, or after 128 batches. So a plan that reads much and
//! returns little keeps its thread for seconds. A node that pauses does so after some milliseconds.
//!
//! Invariants: the rows are those of the input, in its order. After a pause, at least one batch is returned
//! or requested from the input before the next. Above a node that pauses, no batch has more rows than its
//! task allows.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{
    ChildStats, ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr,
    PlanProperties, ReplaceChildrenOptions, StatisticsArgs,
};
use futures::{Stream, StreamExt};

use super::meter::Meter;
use super::slices::Cut;
use super::windows::WindowMemory;
use crate::error::Error;
use crate::workload::{Busy, StatementControl};

/// How long a stream may run before it pauses.
const PAUSE_AFTER: Duration = Duration::from_millis(10);

/// Passes the rows of its input on.
#[derive(Debug)]
pub(super) struct GuestExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    job: Job,
}

/// What a node does for its statement.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// Pauses, while the statement may go on.
    Pause(Arc<StatementControl>),
    /// Measures the build side of a join.
    Measure(Arc<Meter>),
    /// Cuts batches into slices.
    Cut(Arc<Cut>),
    /// Charges the rows that a window collects.
    Collect(Arc<WindowMemory>),
    /// Ends the charges of a window.
    Release(Arc<WindowMemory>),
}

impl GuestExec {
    /// Returns a node above `input`. Its properties are those of the plan in the place of which it stands, so
    /// that the nodes above keep theirs.
    pub(super) fn with_properties(
        input: Arc<dyn ExecutionPlan>,
        properties: Arc<PlanProperties>,
        job: Job,
    ) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self { input, properties, job })
    }

    /// Returns a node above `input`, in its place.
    pub(super) fn above(input: Arc<dyn ExecutionPlan>, job: Job) -> Arc<dyn ExecutionPlan> {
        let properties = Arc::clone(input.properties());
        Self::with_properties(input, properties, job)
    }

    pub(super) fn pauses(&self) -> bool {
        matches!(self.job, Job::Pause(_))
    }
}

impl DisplayAs for GuestExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ExecutionPlan for GuestExec {
    fn name(&self) -> &'static str {
        match &self.job {
            Job::Pause(_) => "GuestExec",
            Job::Measure(_) => "BuildMeterExec",
            Job::Cut(cut) => match &**cut {
                Cut::Probe(_) => "ProbeSliceExec",
                Cut::Lists(_) => "UnnestSliceExec",
            },
            Job::Collect(_) => "WindowCollectExec",
            Job::Release(_) => "WindowReleaseExec",
        }
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.into_iter().next().ok_or_else(|| Error::internal("a plan node has no input"))?;
        let properties = match options.children_properties {
            ChildrenPropertiesMode::Keep => Arc::clone(&self.properties),
            ChildrenPropertiesMode::Recompute => Arc::clone(input.properties()),
        };
        Ok(Self::with_properties(input, properties, self.job.clone()))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch_rows = context.session_config().batch_size();
        let input = self.input.execute(partition, context)?;
        let rows: SendableRecordBatchStream = match &self.job {
            Job::Pause(control) => Box::pin(PausingStream::new(input, control, batch_rows)),
            Job::Measure(meter) => meter.measured(partition, input),
            Job::Cut(cut) => cut.slices(partition, batch_rows, input),
            Job::Collect(memory) => memory.collected(partition, input),
            Job::Release(memory) => memory.computed(partition, input),
        };
        Ok(rows)
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(
        &self,
        input_stats: &[Arc<Statistics>],
        _: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        input_stats.first().map(Arc::clone).ok_or_else(|| Error::internal("a plan node has no input").into())
    }
}

struct PausingStream {
    input: SendableRecordBatchStream,
    /// `None` before the first poll after a pause.
    running_since: Option<Instant>,
    control: Arc<StatementControl>,
    /// The most rows of a batch. Sources make their own before they know it.
    batch_rows: usize,
    /// The rest of a batch that has more.
    rest: Option<RecordBatch>,
}

impl PausingStream {
    fn new(input: SendableRecordBatchStream, control: &Arc<StatementControl>, batch_rows: usize) -> Self {
        let control = Arc::clone(control);
        Self { input, running_since: None, control, batch_rows: batch_rows.max(1), rest: None }
    }

    /// Returns the rows of a batch that come next.
    fn first_rows(&mut self, batch: RecordBatch) -> RecordBatch {
        let (rows, most) = (batch.num_rows(), self.batch_rows);
        if rows <= most {
            return batch;
        }
        self.rest = Some(batch.slice(most, rows - most));
        batch.slice(0, most)
    }
}

impl Stream for PausingStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // DataFusion starts tasks of its own; each of their polls is a step too.
        let _busy = Busy::enter(&self.control);
        if let Err(error) = self.control.check() {
            return Poll::Ready(Some(Err(error.into())));
        }
        let now = Instant::now();
        if now.duration_since(*self.running_since.get_or_insert(now)) >= PAUSE_AFTER {
            self.running_since = None;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = match self.rest.take() {
            Some(rest) => Poll::Ready(Some(Ok(rest))),
            None => self.input.poll_next_unpin(cx),
        };
        if polled.is_pending() {
            self.running_since = None;
        }
        polled.map_ok(|batch| self.first_rows(batch))
    }
}

impl RecordBatchStream for PausingStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{ArrayRef, Int64Array};
    use datafusion::arrow::compute::concat_batches;
    use datafusion::error::DataFusionError;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::{FutureExt, stream};

    use super::*;
    use crate::config::Config;
    use crate::error::SqlState;
    use crate::workload::StopReason;

    /// Returns a stream that always has a batch.
    fn endless() -> (PausingStream, Arc<StatementControl>) {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let schema = batch.schema();
        let batches = stream::repeat_with(move || Ok::<_, DataFusionError>(batch.clone()));
        let control = StatementControl::new(&Config::in_memory());
        let input: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, batches));
        (PausingStream::new(input, &control, 8_192), control)
    }

    #[test]
    fn no_batch_has_more_rows_than_its_task_allows() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let batches = stream::iter([Ok(batch.slice(0, 7)), Ok(batch.slice(7, 3))]);
        let input = Box::pin(RecordBatchStreamAdapter::new(batch.schema(), batches));
        let control = StatementControl::new(&Config::in_memory());
        let stream = PausingStream::new(input, &control, 3);
        let cut: Vec<RecordBatch> = stream.map(Result::unwrap).collect().now_or_never().unwrap();
        let sizes: Vec<usize> = cut.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(sizes, [3, 3, 1, 3]);
        assert_eq!(concat_batches(&batch.schema(), &cut).unwrap(), batch);
    }

    #[test]
    fn a_stream_that_is_always_ready_pauses_and_goes_on() {
        let (mut stream, _) = endless();
        let (mut pauses, mut was_ready) = (0, false);
        let began = Instant::now();
        while pauses < 3 {
            match stream.next().now_or_never() {
                Some(batch) => {
                    batch.unwrap().unwrap();
                    was_ready = true;
                }
                None => {
                    assert!(was_ready, "a pause follows a batch, never another pause");
                    (pauses, was_ready) = (pauses + 1, false);
                }
            }
        }
        assert!(began.elapsed() >= PAUSE_AFTER * 3);
    }

    #[test]
    fn a_stopped_statement_gets_the_reason_instead_of_rows() {
        let (mut stream, control) = endless();
        assert!(stream.next().now_or_never().unwrap().unwrap().is_ok());
        control.stop(StopReason::ClientGone);
        let error = Error::from(stream.next().now_or_never().unwrap().unwrap().unwrap_err());
        assert_eq!(error.sqlstate(), SqlState::QUERY_CANCELED);
    }
}
