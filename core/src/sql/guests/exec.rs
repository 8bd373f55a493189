//! A plan node that lets others run, and ends its statement when it must stop.
//!
//! DataFusion returns from a poll when a batch is ready, or after 128 batches. So a plan that reads much and
//! returns little keeps its thread for seconds. The node pauses after some milliseconds instead.
//!
//! Invariants: the rows are those of the input, in its order. After a pause, at least one batch is requested
//! from the input before the next.

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

use crate::error::Error;
use crate::workload::{Busy, StatementControl};

/// How long a stream may run before it pauses.
const PAUSE_AFTER: Duration = Duration::from_millis(10);

/// Passes the rows of its input on, with pauses, while its statement may go on.
#[derive(Debug)]
pub(super) struct GuestExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    control: Arc<StatementControl>,
}

impl GuestExec {
    /// Returns a node above `input`. Its properties are those of the plan in the place of which it stands, so
    /// that the nodes above keep theirs.
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        properties: Arc<PlanProperties>,
        control: &Arc<StatementControl>,
    ) -> Self {
        Self { input, properties, control: Arc::clone(control) }
    }
}

impl DisplayAs for GuestExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestExec")
    }
}

impl ExecutionPlan for GuestExec {
    fn name(&self) -> &'static str {
        "GuestExec"
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
        Ok(Arc::new(Self::new(input, properties, &self.control)))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        Ok(Box::pin(GuestStream { input, running_since: None, control: Arc::clone(&self.control) }))
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

struct GuestStream {
    input: SendableRecordBatchStream,
    /// `None` before the first poll after a pause.
    running_since: Option<Instant>,
    control: Arc<StatementControl>,
}

impl Stream for GuestStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // DataFusion starts tasks of its own; each of their polls is a step too.
        let _busy = Busy::enter();
        if let Err(error) = self.control.check() {
            return Poll::Ready(Some(Err(error.into())));
        }
        let now = Instant::now();
        if now.duration_since(*self.running_since.get_or_insert(now)) >= PAUSE_AFTER {
            self.running_since = None;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = self.input.poll_next_unpin(cx);
        if polled.is_pending() {
            self.running_since = None;
        }
        polled
    }
}

impl RecordBatchStream for GuestStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{ArrayRef, Int64Array};
    use datafusion::error::DataFusionError;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::{FutureExt, stream};

    use super::*;
    use crate::config::Config;
    use crate::error::SqlState;
    use crate::workload::StopReason;

    /// Returns a stream that always has a batch.
    fn endless() -> (GuestStream, Arc<StatementControl>) {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let schema = batch.schema();
        let batches = stream::repeat_with(move || Ok::<_, DataFusionError>(batch.clone()));
        let control = StatementControl::new(&Config::in_memory());
        let input: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, batches));
        (GuestStream { input, running_since: None, control: Arc::clone(&control) }, control)
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
