//! Runs a query on the engine, beside its reader.
//!
//! A *pump* is the task of a query: it owns the stream of the plan, encodes its batches, and puts the results
//! into a channel. The reader only takes them out.
//!
//! Invariants: a query without a reader ends at its next pause. A query holds its snapshot no longer than
//! `snapshot_age_max_s`, even when nobody reads it; a reader learns why it ended.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use datafusion::arrow::array::RecordBatch;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::limits::stack::{DeepStream, deep};
use crate::error::Result;
use crate::workload::{EngineThreads, StatementControl, StopReason, Work};

/// Results that are made ahead of the reader; beyond this the query waits.
const ITEMS_AHEAD_MAX: usize = 2;

/// The batches of a query.
pub(crate) type Batches = BoxStream<'static, Result<RecordBatch>>;

/// Starts a plan and returns its batches.
type Open = Box<dyn FnOnce() -> Result<Batches> + Send>;

/// A planned query that has not begun.
pub(crate) struct Query {
    threads: Arc<EngineThreads>,
    plan: Arc<Plan>,
    owner: Owner,
    deadline: Work<()>,
}

impl Query {
    /// Returns the query whose batches `open` returns. The age of its snapshot counts from now.
    pub(crate) fn new(
        threads: &Arc<EngineThreads>,
        control: &Arc<StatementControl>,
        open: impl FnOnce() -> Result<Batches> + Send + 'static,
    ) -> Self {
        let open: Open = Box::new(open);
        let plan = Arc::new(Plan(Mutex::new(Some(open))));
        let deadline = threads.spawn(deadline(Arc::clone(control), Arc::downgrade(&plan)));
        Self { threads: Arc::clone(threads), plan, owner: Owner(Arc::clone(control)), deadline }
    }

    /// Starts the query. The engine makes results of each batch with `encode`.
    pub(crate) fn start<T: Send + 'static>(
        self,
        encode: impl FnMut(RecordBatch) -> Result<Vec<T>> + Send + 'static,
    ) -> Reader<T> {
        let Self { threads, plan, owner, deadline } = self;
        let (sender, items) = mpsc::channel(ITEMS_AHEAD_MAX);
        let work = threads.spawn(pump(plan, Arc::clone(&owner.0), encode, sender));
        let stopped = owner.0.stopped_owned().boxed();
        Reader { items, work: Some(work), stopped, owner, _deadline: deadline }
    }
}

/// The plan of a query that has not begun. It may be deep.
struct Plan(Mutex<Option<Open>>);

impl Plan {
    fn open(&self) -> Option<Result<Batches>> {
        let open = self.0.lock().take();
        open.map(deep)
    }

    fn discard(&self) {
        let open = self.0.lock().take();
        deep(|| drop(open));
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        self.discard();
    }
}

/// The one that waits for a statement; without it the statement stops.
struct Owner(Arc<StatementControl>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop(StopReason::ClientGone);
    }
}

/// Stops a query when its snapshot is too old, begun or not.
async fn deadline(control: Arc<StatementControl>, plan: Weak<Plan>) -> Result<()> {
    tokio::time::sleep(control.snapshot_age_max()).await;
    control.stop(StopReason::SnapshotAge);
    if let Some(plan) = plan.upgrade() {
        plan.discard();
    }
    Ok(())
}

/// Runs a query to its end, or until it must stop or the reader has gone.
async fn pump<T: Send + 'static>(
    plan: Arc<Plan>,
    control: Arc<StatementControl>,
    mut encode: impl FnMut(RecordBatch) -> Result<Vec<T>> + Send + 'static,
    sender: mpsc::Sender<T>,
) -> Result<()> {
    let Some(batches) = plan.open() else { return Err(control.error()) };
    let mut batches = DeepStream::new(batches?);
    let mut items = Vec::new().into_iter();
    loop {
        let permit = tokio::select! {
            biased;
            () = control.stopped() => return Err(control.error()),
            permit = sender.reserve() => permit,
        };
        let Ok(permit) = permit else { return Ok(()) };
        // There is room before a batch is made, so that only the channel holds results.
        while items.len() == 0 {
            let batch = tokio::select! {
                biased;
                () = control.stopped() => return Err(control.error()),
                () = sender.closed() => return Ok(()),
                batch = batches.next() => batch,
            };
            let Some(batch) = batch else { return Ok(()) };
            items = encode(batch?)?.into_iter();
        }
        if let Some(item) = items.next() {
            permit.send(item);
        }
    }
}

/// Takes the results of a running query. Dropping it ends the query.
pub(crate) struct Reader<T> {
    items: mpsc::Receiver<T>,
    /// `None` once the query has ended.
    work: Option<Work<()>>,
    stopped: BoxFuture<'static, ()>,
    owner: Owner,
    _deadline: Work<()>,
}

impl<T> Stream for Reader<T> {
    type Item = Result<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        let this = self.get_mut();
        let Some(work) = &mut this.work else { return Poll::Ready(None) };
        let ended = match this.items.poll_recv(cx) {
            Poll::Ready(Some(item)) => return Poll::Ready(Some(Ok(item))),
            Poll::Ready(None) => ready!(work.poll_join(cx)),
            // The thread of the query may be busy and see only later that it must stop.
            Poll::Pending => {
                ready!(this.stopped.poll_unpin(cx));
                Err(this.owner.0.error())
            }
        };
        this.work = None;
        Poll::Ready(ended.err().map(Err))
    }
}

#[cfg(test)]
mod tests;
