//! Runs a query on the engine, beside its reader.
//!
//! A *pump* is the task of a query: it owns the stream of the plan, encodes its batches, and puts the results
//! into a channel. The reader only takes them out.
//!
//! Invariants: a query without a reader ends at its next pause. A query holds its snapshot no longer than
//! `snapshot_age_max_s`, even when nobody reads it; a reader learns why it ended. A query whose reader takes
//! its time holds no slot meanwhile.

use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::limits::stack::{DeepStream, deep};
use crate::error::Result;
use crate::workload::{
    EngineThreads, Slot, StatementControl, StatementEnd, StatementState, StopReason, Work,
};

/// Results that are made ahead of the reader; beyond this the query waits.
const ITEMS_AHEAD_MAX: usize = 2;
/// How long a query that waits for its reader keeps its slot.
const SLOT_KEPT_MAX: Duration = Duration::from_secs(1);

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
        let plan = Arc::new(Plan { open: Mutex::new(Some(open)), slot: Mutex::new(None) });
        let deadline = threads.spawn(control, deadline(Arc::clone(control), Arc::downgrade(&plan)));
        Self { threads: Arc::clone(threads), plan, owner: Owner(Arc::clone(control)), deadline }
    }

    /// Returns the control of the statement.
    pub(crate) fn control(&self) -> &Arc<StatementControl> {
        &self.owner.0
    }

    /// Returns the query with the slot that it runs in.
    pub(crate) fn in_slot(self, slot: Slot) -> Self {
        *self.plan.slot.lock() = Some(slot);
        self
    }

    /// Starts the query. The engine makes results of each batch with `encode`.
    pub(crate) fn start<T: Send + 'static>(
        self,
        encode: impl FnMut(RecordBatch) -> Result<Vec<T>> + Send + 'static,
    ) -> Reader<T> {
        let Self { threads, plan, owner, deadline } = self;
        let (sender, items) = mpsc::channel(ITEMS_AHEAD_MAX);
        let work = threads.spawn(&owner.0, pump(plan, Arc::clone(&owner.0), encode, sender));
        let stopped = owner.0.stopped_owned().boxed();
        let running = Some(Running { work, owner, _deadline: deadline });
        Reader { items, running, stopped, _threads: threads }
    }
}

/// The plan of a query that has not begun. It may be deep.
struct Plan {
    open: Mutex<Option<Open>>,
    slot: Mutex<Option<Slot>>,
}

impl Plan {
    fn open(&self) -> Option<Result<Batches>> {
        let open = self.open.lock().take();
        open.map(deep)
    }

    fn discard(&self) {
        let open = self.open.lock().take();
        deep(|| drop(open));
        drop(self.slot.lock().take());
    }

    /// Returns whether there was a slot, which other statements can have now.
    fn give_slot_back(&self) -> bool {
        match &mut *self.slot.lock() {
            Some(slot) => {
                slot.give_back();
                true
            }
            None => false,
        }
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
    let age_max = control.snapshot_age_max();
    let slot_kept = SLOT_KEPT_MAX.min(age_max);
    tokio::time::sleep(slot_kept).await;
    if let Some(plan) = plan.upgrade()
        && plan.give_slot_back()
    {
        control.set_state(StatementState::WaitingForClient);
    }
    tokio::time::sleep(age_max.saturating_sub(slot_kept)).await;
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
    // Declared before the plan, and so passed on after the plan is dropped.
    let mut slot = plan.slot.lock().take();
    take_back(&mut slot).await?;
    control.set_state(StatementState::Running);
    let Some(batches) = plan.open() else { return Err(control.error()) };
    let mut batches = DeepStream::new(batches?);
    let mut items = Vec::new().into_iter();
    loop {
        let Some(permit) = room(&sender, &control, &mut slot).await? else { return Ok(()) };
        // There is room before a batch is made, so that only the channel holds results.
        while items.len() == 0 {
            let batch = tokio::select! {
                biased;
                () = control.stopped() => return Err(control.error()),
                () = sender.closed() => return Ok(()),
                batch = batches.next() => batch,
            };
            let Some(batch) = batch else { return Ok(()) };
            let batch = batch?;
            control.add_rows(batch.num_rows());
            items = encode(batch)?.into_iter();
        }
        if let Some(item) = items.next() {
            permit.send(item);
        }
    }
}

/// Waits for room in the channel; `None` when the reader has gone. If the reader takes its time, another
/// statement gets the slot meanwhile.
async fn room<'a, T>(
    sender: &'a mpsc::Sender<T>,
    control: &StatementControl,
    slot: &mut Option<Slot>,
) -> Result<Option<mpsc::Permit<'a, T>>> {
    let mut room = pin!(sender.reserve());
    tokio::select! {
        biased;
        () = control.stopped() => return Err(control.error()),
        permit = &mut room => return Ok(permit.ok()),
        () = tokio::time::sleep(SLOT_KEPT_MAX) => {}
    }
    control.set_state(StatementState::WaitingForClient);
    if let Some(slot) = slot {
        slot.give_back();
    }
    let permit = tokio::select! {
        biased;
        () = control.stopped() => return Err(control.error()),
        permit = room => permit,
    };
    let Ok(permit) = permit else { return Ok(None) };
    take_back(slot).await?;
    control.set_state(StatementState::Running);
    Ok(Some(permit))
}

async fn take_back(slot: &mut Option<Slot>) -> Result<()> {
    match slot {
        Some(slot) => slot.take_back().await,
        None => Ok(()),
    }
}

/// Takes the results of a running query, and keeps the threads until then. Dropping it ends the query.
pub(crate) struct Reader<T> {
    items: mpsc::Receiver<T>,
    /// `None` once the query has ended. The reader keeps it listed no longer.
    running: Option<Running>,
    stopped: BoxFuture<'static, ()>,
    _threads: Arc<EngineThreads>,
}

/// A query with a reader.
struct Running {
    work: Work<()>,
    owner: Owner,
    _deadline: Work<()>,
}

impl<T> Reader<T> {
    /// Returns the control of the statement; `None` once the query has ended.
    pub(crate) fn control(&self) -> Option<&Arc<StatementControl>> {
        self.running.as_ref().map(|running| &running.owner.0)
    }
}

impl<T> Stream for Reader<T> {
    type Item = Result<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        let this = self.get_mut();
        let Some(Running { work, owner: Owner(control), .. }) = &mut this.running else {
            return Poll::Ready(None);
        };
        let ended = match this.items.poll_recv(cx) {
            Poll::Ready(Some(item)) => return Poll::Ready(Some(Ok(item))),
            Poll::Ready(None) => {
                let ended = ready!(work.poll_join(cx));
                control.end(match ended {
                    Ok(()) => StatementEnd::Completed,
                    Err(_) => StatementEnd::Failed,
                });
                ended
            }
            // The thread of the query may be busy and see only later that it must stop.
            Poll::Pending => {
                ready!(this.stopped.poll_unpin(cx));
                Err(control.error())
            }
        };
        this.running = None;
        Poll::Ready(ended.err().map(Err))
    }
}

#[cfg(test)]
mod tests;
