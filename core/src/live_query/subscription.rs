//! One subscriber's stream: a snapshot, then a cursor. The cursor takes frames from the group's ring, or from
//! the change log if the ring lacks its position. If the log lacks it too, the stream restarts with a RESET.
//!
//! It works only when polled, so an idle reader costs a cursor. It holds a snapshot of the store while it
//! delivers one to the client, and during each chunk that it reads from the log.
//!
//! Invariant: everything up to commit `cursor` is in the outbox or delivered. The cursor never goes back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::execute_stream;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::catch_up::{LogRead, read_log};
use super::frame::{CloseReason, Frame, FrameBody, ResetReason};
use super::frame_maker::MoreFollows;
use super::group::{LogChunk, QueryGroup, RingRead};
use super::registry::{LiveState, Membership, Registered};
use super::start::Start;
use super::stop::{Stop, check_current};
use super::{SnapshotMode, SubscribeRequest};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::{Seq, SubscriptionId};
use crate::tables::{KalamTable, RowSchema};

/// A running live query: a stream of frames. Dropping it ends the live query.
///
/// The stream ends after a [`FrameBody::Closed`]. After a failure, the error follows as the last item.
pub struct Subscription {
    id: SubscriptionId,
    schema: SchemaRef,
    schema_ipc: Bytes,
    frames: BoxStream<'static, Result<Arc<Frame>>>,
}

impl Subscription {
    pub(super) fn new(
        state: Arc<LiveState>,
        registered: Arc<Registered>,
        membership: Membership,
        start: Start,
        snapshot: Arc<Snapshot>,
        request: &SubscribeRequest,
    ) -> Self {
        let evaluator = &registered.group.plan.evaluator;
        let (id, schema, schema_ipc) =
            (registered.id, Arc::clone(evaluator.schema()), evaluator.schema_ipc());
        let mut driver = Driver {
            group: Arc::clone(&registered.group),
            woken: registered.group.woken(),
            frontier: state.frontier.subscribe(),
            stop: registered.stop.subscribe(),
            cursor: Seq::ZERO,
            log_until: snapshot.seq,
            delivered: Seq::ZERO,
            up_to: request.up_to_seq,
            only: request.snapshot == SnapshotMode::Only,
            heartbeat: request.heartbeat,
            heartbeat_at: Instant::now() + request.heartbeat,
            outbox: VecDeque::new(),
            chunk: None,
            phase: Phase::Live,
            failure: None,
            state,
            registered,
            _membership: membership,
        };
        driver.start(start, snapshot);
        let frames = futures::stream::unfold(driver, |mut driver| async move {
            let item = driver.next().await?;
            Some((item, driver))
        })
        .boxed();
        Self { id, schema, schema_ipc, frames }
    }

    /// Returns the number `KILL LIVE QUERY` takes.
    pub fn id(&self) -> SubscriptionId {
        self.id
    }

    /// Returns the columns of `Snapshot` and `Delta` batches: `_op`, `_seq` and the query's.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns [`Subscription::schema`] as an encapsulated IPC message.
    pub fn schema_ipc(&self) -> Bytes {
        self.schema_ipc.clone()
    }
}

impl Stream for Subscription {
    type Item = Result<Arc<Frame>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.frames.poll_next_unpin(cx)
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

enum Phase {
    /// Delivers rows of a snapshot.
    Snapshot(SnapshotScan),
    /// Delivers changes.
    Live,
    /// The last frame is in the outbox or delivered.
    Ended,
}

struct SnapshotScan {
    snapshot: Arc<Snapshot>,
    /// Opened when the first rows are requested.
    rows: Option<SendableRecordBatchStream>,
}

struct Driver {
    state: Arc<LiveState>,
    registered: Arc<Registered>,
    group: Arc<QueryGroup>,
    woken: watch::Receiver<()>,
    frontier: watch::Receiver<Seq>,
    stop: watch::Receiver<Option<Stop>>,
    /// Everything up to here is in the outbox or delivered.
    cursor: Seq,
    /// The group follows all commits after this one; earlier ones must be read from the log.
    log_until: Seq,
    /// The last delivered `complete_through`.
    delivered: Seq,
    up_to: Option<Seq>,
    only: bool,
    heartbeat: Duration,
    heartbeat_at: Instant,
    outbox: VecDeque<Arc<Frame>>,
    /// The chunk of the frames in the outbox, kept so that other members can take it.
    chunk: Option<Arc<LogChunk>>,
    phase: Phase,
    /// The error that follows the last frame.
    failure: Option<Arc<Error>>,
    _membership: Membership,
}

impl Driver {
    fn start(&mut self, start: Start, snapshot: Arc<Snapshot>) {
        let evaluator = &self.group.plan.evaluator;
        let (snapshot_seq, resumed) = match &start {
            Start::Snapshot { .. } => (snapshot.seq, false),
            Start::After { seq, resumed } => (*seq, *resumed),
        };
        let body = FrameBody::Started {
            subscription: self.registered.id,
            schema: Arc::clone(evaluator.schema()),
            schema_ipc: evaluator.schema_ipc(),
            key_columns: evaluator.key_columns().to_vec(),
            snapshot_seq,
            resumed,
        };
        match start {
            Start::Snapshot { reset } => {
                self.push(self.group.maker.incomplete(Seq::ZERO, MoreFollows::No, body));
                if let Some(reason) = reset {
                    self.announce_reset(reason, snapshot.seq);
                }
                self.phase = Phase::Snapshot(SnapshotScan { snapshot, rows: None });
            }
            Start::After { seq, .. } => {
                self.cursor = seq;
                self.push(self.group.maker.complete(seq, body));
            }
        }
    }

    fn push(&mut self, frame: Frame) {
        self.outbox.push_back(Arc::new(frame));
    }

    /// Returns the stream's next item.
    async fn next(&mut self) -> Option<Result<Arc<Frame>>> {
        loop {
            let stop = self.stop.borrow().clone();
            if let Some(stop) = stop
                && !stop.drains()
                && !matches!(self.phase, Phase::Ended)
            {
                self.outbox.clear();
                self.close(&stop);
            }
            if let Some(frame) = self.outbox.pop_front() {
                self.count(&frame);
                return Some(Ok(frame));
            }
            let step = match &self.phase {
                Phase::Ended => return self.failure.take().map(|error| Err(repeated(&error))),
                Phase::Snapshot(_) => self.snapshot_step().await,
                Phase::Live => self.live_step().await,
            };
            if let Err(error) = step {
                debug!(subscription = self.registered.id.0, %error, "live query failed");
                self.close(&Stop::failed(&Arc::new(error)));
            }
        }
    }

    /// Updates the statistics and the heartbeat for a frame that is delivered now.
    fn count(&mut self, frame: &Frame) {
        let registered = &self.registered;
        self.delivered = self.delivered.max(frame.complete_through);
        self.heartbeat_at = Instant::now() + self.heartbeat;
        registered.complete_through.store(self.delivered.0, Ordering::Relaxed);
        registered.frames.fetch_add(1, Ordering::Relaxed);
        let now = u64::try_from(self.state.clock.now_us()).unwrap_or_default();
        registered.updated_at.store(now, Ordering::Relaxed);
        if let FrameBody::Delta(rows) = &frame.body {
            registered.changes.fetch_add(rows.rows as u64, Ordering::Relaxed);
        }
        self.state.counters.frames.fetch_add(1, Ordering::Relaxed);
    }

    fn close(&mut self, stop: &Stop) {
        // Frames in the outbox precede this one, so it may say what they complete.
        let complete = match (&self.phase, self.outbox.is_empty()) {
            (Phase::Live, true) => self.delivered,
            _ => {
                self.outbox.back().map_or(self.delivered, |frame| frame.complete_through.max(self.delivered))
            }
        };
        let body = FrameBody::Closed {
            reason: stop.reason,
            message: stop.message.clone(),
            retryable: stop.reason.retryable(),
        };
        let maker = &self.group.maker;
        let frame = match complete {
            Seq::ZERO => maker.incomplete(complete, MoreFollows::No, body),
            _ => maker.complete(complete, body),
        };
        self.push(frame);
        self.failure.clone_from(&stop.failure);
        self.phase = Phase::Ended;
    }

    /// Delivers the next rows of the snapshot, or its end.
    async fn snapshot_step(&mut self) -> Result<()> {
        let Phase::Snapshot(scan) = &mut self.phase else { return Ok(()) };
        if let Err(stop) =
            check_current(&self.group.plan, &self.registered.subscriber, &scan.snapshot.catalog)
        {
            self.close(&stop);
            return Ok(());
        }
        let rows = match &mut scan.rows {
            Some(rows) => rows,
            None => scan.rows.insert(open_scan(&self.state, &self.group, &scan.snapshot).await?),
        };
        let batch = tokio::select! {
            batch = rows.next() => batch,
            // `next` checks the reason and continues here if it does not apply.
            _ = self.stop.changed() => return Ok(()),
        };
        let Some(batch) = batch else {
            let seq = scan.snapshot.seq;
            self.phase = Phase::Live;
            self.cursor = seq;
            self.push(self.group.maker.complete(seq, FrameBody::SnapshotEnd));
            if self.only {
                self.close(&Stop::new(CloseReason::Completed, "the snapshot is complete"));
            }
            return Ok(());
        };
        let batch = self.group.plan.evaluator.snapshot(&batch?)?;
        let mut parts = Vec::new();
        self.group.maker.cut_rows(&batch, 0..batch.num_rows(), &mut parts)?;
        for part in parts {
            let frame =
                self.group.maker.incomplete(self.delivered, MoreFollows::Yes, FrameBody::Snapshot(part));
            self.push(frame);
        }
        Ok(())
    }

    /// Puts the next frames into the outbox, or waits until there may be some.
    async fn live_step(&mut self) -> Result<()> {
        self.chunk = None;
        if let Some(up_to) = self.up_to
            && self.cursor >= up_to
        {
            self.complete_up_to(up_to);
            return Ok(());
        }
        // Marked as seen before reading, so that anything later wakes this task.
        self.woken.borrow_and_update();
        let frontier = *self.frontier.borrow_and_update();
        let stop = self.stop.borrow_and_update().clone();
        if self.cursor < self.log_until {
            return self.read_log(stop).await;
        }
        match self.group.read(self.cursor, self.up_to) {
            RingRead::Frames(frames, through) => {
                self.outbox.extend(frames);
                self.cursor = through;
                return Ok(());
            }
            RingRead::Behind => return self.read_log(stop).await,
            RingRead::UpToDate => {}
        }
        if let Some(stop) = stop {
            self.close(&stop);
            return Ok(());
        }
        let reached = self.up_to.map_or(frontier, |up_to| up_to.min(frontier)).max(self.cursor);
        if self.up_to == Some(reached) || self.progress_is_due(reached) {
            self.cursor = reached;
            let frame = self.group.progress(reached);
            self.outbox.push_back(frame);
            return Ok(());
        }
        self.wait().await;
        Ok(())
    }

    /// Whether the client must learn that nothing changed up to `reached`. Delivered frames count, since the
    /// cursor may have moved there without a frame.
    fn progress_is_due(&self, reached: Seq) -> bool {
        match self.heartbeat.is_zero() {
            true => reached > self.delivered,
            false => Instant::now() >= self.heartbeat_at,
        }
    }

    async fn wait(&mut self) {
        let follows_frontier = self.heartbeat.is_zero() || self.up_to.is_some();
        let beats = !self.heartbeat.is_zero();
        let heartbeat_at = self.heartbeat_at;
        // The senders live as long as this driver, so no branch ends early.
        tokio::select! {
            _ = self.woken.changed() => {}
            _ = self.stop.changed() => {}
            _ = self.frontier.changed(), if follows_frontier => {}
            () = sleep_until(heartbeat_at), if beats => {}
        }
    }

    /// Ends the stream: everything requested is delivered.
    fn complete_up_to(&mut self, up_to: Seq) {
        if self.delivered < self.cursor {
            let frame = self.group.progress(self.cursor);
            self.outbox.push_back(frame);
        }
        self.close(&Stop::new(CloseReason::Completed, format!("everything up to seq {up_to} is delivered")));
    }

    /// Reads the next chunk of the change log after the cursor.
    async fn read_log(&mut self, stop: Option<Stop>) -> Result<()> {
        if let Some(stop) = stop {
            let snapshot = self.state.committer.snapshot();
            let outdated =
                check_current(&self.group.plan, &self.registered.subscriber, &snapshot.catalog).err();
            self.close(&outdated.unwrap_or(stop));
            return Ok(());
        }
        let after = self.cursor;
        self.state.counters.log_reads.fetch_add(1, Ordering::Relaxed);
        let read = read_log(&self.state, &self.group, &self.registered.subscriber, after, self.up_to);
        let read = tokio::select! {
            read = read => read?,
            // `next` checks the reason and continues here if it does not apply.
            _ = self.stop.changed() => return Ok(()),
        };
        let chunk = match read {
            LogRead::Chunk(chunk) => chunk,
            LogRead::Gone(snapshot) => {
                self.reset(snapshot);
                return Ok(());
            }
            LogRead::Outdated(stop) => {
                self.close(&stop);
                return Ok(());
            }
        };
        let through = chunk.through;
        assert!(through >= after, "the change log is read forwards");
        self.outbox.extend(chunk.frames.iter().map(Arc::clone));
        self.chunk = Some(chunk);
        self.cursor = through;
        // Here too, so that a long read without matching changes does not look like a dead stream.
        if self.outbox.is_empty() && self.progress_is_due(through) {
            let frame = self.group.progress(through);
            self.outbox.push_back(frame);
        }
        Ok(())
    }

    /// Starts over, because the log no longer has the commits after the cursor.
    fn reset(&mut self, snapshot: Arc<Snapshot>) {
        self.announce_reset(ResetReason::Lag, snapshot.seq);
        self.log_until = snapshot.seq;
        self.phase = Phase::Snapshot(SnapshotScan { snapshot, rows: None });
    }

    fn announce_reset(&mut self, reason: ResetReason, snapshot_seq: Seq) {
        self.state.counters.resets.fetch_add(1, Ordering::Relaxed);
        let body = FrameBody::Reset { reason, snapshot_seq };
        let frame = self.group.maker.incomplete(self.delivered, MoreFollows::No, body);
        self.push(frame);
    }
}

/// Returns one stream's copy of an error that ends several streams.
fn repeated(error: &Arc<Error>) -> Error {
    let own = Error::new(error.kind(), error.sqlstate(), error.message()).source(Arc::clone(error));
    match error.hint_text() {
        Some(hint) => own.hint(hint),
        None => own,
    }
}

/// Starts a group's SELECT at `snapshot`. It includes expired rows that are not deleted yet; see `evaluator`.
async fn open_scan(
    state: &LiveState,
    group: &QueryGroup,
    snapshot: &Arc<Snapshot>,
) -> Result<SendableRecordBatchStream> {
    let plan = &group.plan;
    let (snapshot, schemas) = (Arc::clone(snapshot), Arc::clone(&plan.table));
    let table = KalamTable::stored(snapshot, schemas, RowSchema::Full, plan.scope, i64::MIN);
    let columns = plan.evaluator.columns().to_vec();
    let scan = table.scan(&state.session, Some(&columns), &plan.conjuncts, None).await?;
    Ok(execute_stream(scan, state.session.task_ctx())?)
}
