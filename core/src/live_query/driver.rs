//! One subscriber's stream: a snapshot, then a cursor. The cursor takes frames from the group's ring, or from
//! the change log if the ring lacks its position. If the log lacks it too, the stream restarts with a RESET.
//!
//! It works only when polled, and makes the next frames only when the last ones are delivered, so an idle
//! reader costs a cursor. It holds a snapshot of the store while it delivers one to the client, and during
//! each piece that it reads from the log. Frames that are not delivered yet are in its outbox, from where
//! they can be taken away at any time.
//!
//! Invariant: everything before the cursor is delivered, and nothing after it, so the frames that follow can
//! be made again at any time. The cursor never goes back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::catch_up::{LogRead, Piece, read_log};
use super::cursor::Cursor;
use super::frame::{CloseReason, Frame, FrameBody, ResetReason};
use super::frame_maker::MoreFollows;
use super::group::{QueryGroup, RingRead};
use super::held::{HeldFrame, Outbox, Place};
use super::registry::{LiveState, Membership, Registered, in_task};
use super::scan::{Scan, read_on};
use super::start::Start;
use super::stop::{Stop, check_current, repeated};
use super::{SnapshotMode, SubscribeRequest};
use crate::change_log::LogPosition;
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::Seq;

enum Phase {
    /// Delivers rows of a snapshot.
    Snapshot {
        snapshot: Arc<Snapshot>,
        /// The rows that were delivered.
        rows: usize,
    },
    /// Delivers changes.
    Live,
    /// The last frame is ready or delivered.
    Ended,
}

/// The last frame of a piece of the log that ends within a commit. It announces more rows of this commit, so
/// it is delivered only once it is known whether there are any.
struct Withheld {
    frame: Arc<Frame>,
    /// Where the log goes on.
    next: LogPosition,
}

/// The state of a stream between two frames.
pub(super) struct Driver {
    state: Arc<LiveState>,
    registered: Arc<Registered>,
    group: Arc<QueryGroup>,
    woken: watch::Receiver<()>,
    frontier: watch::Receiver<Seq>,
    stop: watch::Receiver<Option<Stop>>,
    /// What was delivered.
    cursor: Cursor,
    /// The group follows all commits after this one; earlier ones must be read from the log.
    log_until: Seq,
    /// The last delivered `complete_through`.
    delivered: Seq,
    /// Whether the last delivered frame announced more.
    more: bool,
    up_to: Option<Seq>,
    only: bool,
    heartbeat: Duration,
    heartbeat_at: Instant,
    /// Small frames that come next.
    ready: VecDeque<Arc<Frame>>,
    /// Frames of the log or of the snapshot, after the cursor.
    outbox: Outbox,
    withheld: Option<Withheld>,
    phase: Phase,
    /// The error that follows the last frame.
    failure: Option<Arc<Error>>,
    _membership: Membership,
}

impl Driver {
    pub(super) fn new(
        state: Arc<LiveState>,
        registered: Arc<Registered>,
        membership: Membership,
        start: Start,
        snapshot: Arc<Snapshot>,
        request: &SubscribeRequest,
    ) -> Self {
        let mut driver = Self {
            group: Arc::clone(&registered.group),
            woken: registered.group.woken(),
            frontier: state.frontier.subscribe(),
            stop: registered.stop.subscribe(),
            cursor: Cursor::after(Seq::ZERO),
            log_until: snapshot.seq,
            delivered: Seq::ZERO,
            more: false,
            up_to: request.up_to_seq,
            only: request.snapshot == SnapshotMode::Only,
            heartbeat: request.heartbeat,
            heartbeat_at: Instant::now() + request.heartbeat,
            ready: VecDeque::new(),
            outbox: Outbox::new(&state.held, registered.id, registered.subscriber.principal.user_id),
            withheld: None,
            phase: Phase::Live,
            failure: None,
            state,
            registered,
            _membership: membership,
        };
        driver.start(start, snapshot);
        driver
    }

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
                self.phase = Phase::Snapshot { snapshot, rows: 0 };
            }
            Start::After { seq, .. } => {
                self.cursor = Cursor::after(seq);
                self.push(self.group.maker.complete(seq, body));
            }
        }
    }

    fn push(&mut self, frame: Frame) {
        self.ready.push_back(Arc::new(frame));
    }

    /// Returns the stream's next item.
    pub(super) async fn next(&mut self) -> Option<Result<Arc<Frame>>> {
        loop {
            let stop = self.stop.borrow().clone();
            if let Some(stop) = stop
                && !stop.drains()
                && !matches!(self.phase, Phase::Ended)
            {
                self.ready.clear();
                self.close(&stop);
            }
            if let Some(frame) = self.ready.pop_front() {
                self.count(&frame);
                return Some(Ok(frame));
            }
            let step = match &self.phase {
                Phase::Ended => return self.failure.take().map(|error| Err(repeated(&error))),
                Phase::Snapshot { .. } => self.snapshot_step().await,
                Phase::Live => self.live_step().await,
            };
            match step {
                Ok(Some(frame)) => {
                    self.count(&frame);
                    return Some(Ok(frame));
                }
                Ok(None) => {}
                Err(error) => {
                    debug!(subscription = self.registered.id.0, %error, "live query failed");
                    self.close(&Stop::failed(&Arc::new(error)));
                }
            }
        }
    }

    /// Updates the statistics and the heartbeat for a frame that is delivered now.
    fn count(&mut self, frame: &Frame) {
        let registered = &self.registered;
        self.delivered = self.delivered.max(frame.complete_through);
        self.more = frame.more;
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
        self.outbox.clear();
        self.withheld = None;
        // Ready frames precede this one, so it may say what they complete.
        let (complete, more) = match self.ready.back() {
            Some(last) => (last.complete_through.max(self.delivered), last.more),
            None => (self.delivered, self.more),
        };
        let body = FrameBody::Closed {
            reason: stop.reason,
            message: stop.message.clone(),
            retryable: stop.reason.retryable(),
        };
        let maker = &self.group.maker;
        let frame = match (complete, more) {
            // The client has rows of an incomplete snapshot or commit.
            (_, true) => maker.incomplete(complete, MoreFollows::Yes, body),
            (Seq::ZERO, false) => maker.incomplete(complete, MoreFollows::No, body),
            (_, false) => maker.complete(complete, body),
        };
        self.push(frame);
        self.failure.clone_from(&stop.failure);
        self.phase = Phase::Ended;
    }

    /// Returns the next rows of the snapshot; `None` at its end, or when there may be some now.
    async fn snapshot_step(&mut self) -> Result<Option<Arc<Frame>>> {
        let Phase::Snapshot { snapshot, rows } = &mut self.phase else { return Ok(None) };
        let mut scan = self.outbox.take_scan();
        if let Some(mut held) = scan.take_if(|scan| !scan.frames.is_empty()) {
            let frame = held.frames.pop_front();
            *rows += frame.as_ref().map_or(0, |frame| rows_of(frame));
            self.outbox.put_scan(held, *rows);
            return Ok(frame);
        }
        let Registered { subscriber, .. } = &*self.registered;
        if let Err(stop) = check_current(&self.group.plan, subscriber, &snapshot.catalog) {
            self.close(&stop);
            return Ok(None);
        }
        let seq = snapshot.seq;
        let work = read_snapshot(
            Arc::clone(&self.state),
            Arc::clone(&self.registered),
            self.outbox.place(),
            Arc::clone(snapshot),
            scan,
            (*rows, self.delivered),
        );
        let is_at_end = tokio::select! {
            is_at_end = in_task(work) => is_at_end?,
            // `next` checks the reason and continues here if it does not apply.
            _ = self.stop.changed() => return Ok(None),
        };
        if is_at_end {
            self.phase = Phase::Live;
            self.cursor = Cursor::after(seq);
            self.push(self.group.maker.complete(seq, FrameBody::SnapshotEnd));
            if self.only {
                self.close(&Stop::new(CloseReason::Completed, "the snapshot is complete"));
            }
        }
        Ok(None)
    }

    /// Returns the next frame of changes, or waits until there may be one.
    async fn live_step(&mut self) -> Result<Option<Arc<Frame>>> {
        if let Some(Withheld { next, .. }) = &self.withheld {
            let next = Cursor::at(*next);
            let stop = self.stop.borrow_and_update().clone();
            return self.log_step(next, stop).await;
        }
        if let Some(held) = self.outbox.take_frame() {
            return Ok(self.deliver(held));
        }
        if let Some(up_to) = self.up_to
            && self.cursor.complete() >= up_to
        {
            self.complete_up_to(up_to);
            return Ok(None);
        }
        // Marked as seen before reading, so that anything later wakes this task.
        self.woken.borrow_and_update();
        let frontier = *self.frontier.borrow_and_update();
        let stop = self.stop.borrow_and_update().clone();
        if self.cursor.complete() < self.log_until {
            return self.log_step(self.cursor, stop).await;
        }
        match self.group.read(self.cursor, self.up_to) {
            RingRead::Frame(frame) => {
                self.outbox.clear();
                self.cursor = self.cursor.past(&frame);
                return Ok(Some(frame));
            }
            RingRead::Behind(cursor) => {
                self.cursor = cursor;
                return self.log_step(cursor, stop).await;
            }
            RingRead::UpToDate => {}
        }
        if let Some(stop) = stop {
            self.close(&stop);
            return Ok(None);
        }
        // Up to the frontier, which was read before the ring, nothing follows.
        let reached = self.up_to.map_or(frontier, |up_to| up_to.min(frontier)).max(self.cursor.complete());
        self.cursor = Cursor::after(reached);
        if self.up_to == Some(reached) || self.progress_is_due(reached) {
            return Ok(Some(self.group.progress(reached)));
        }
        self.wait().await;
        Ok(None)
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
        let reached = self.cursor.complete();
        if self.delivered < reached {
            let frame = self.group.progress(reached);
            self.ready.push_back(frame);
        }
        self.close(&Stop::new(CloseReason::Completed, format!("everything up to seq {up_to} is delivered")));
    }

    /// Reads the next piece of the change log, from `from` on.
    async fn log_step(&mut self, from: Cursor, stop: Option<Stop>) -> Result<Option<Arc<Frame>>> {
        if let Some(stop) = stop {
            let snapshot = self.state.committer.snapshot();
            let outdated =
                check_current(&self.group.plan, &self.registered.subscriber, &snapshot.catalog).err();
            self.close(&outdated.unwrap_or(stop));
            return Ok(None);
        }
        self.state.counters.log_reads.fetch_add(1, Ordering::Relaxed);
        let read = read_log(&self.state, &self.registered, self.outbox.place(), from, self.up_to);
        let read = tokio::select! {
            read = read => read?,
            // `next` checks the reason and continues here if it does not apply.
            _ = self.stop.changed() => return Ok(None),
        };
        match read {
            LogRead::Piece(piece) => {
                assert!(piece.next > from.position, "the change log is read forwards");
                match self.withheld.take() {
                    Some(withheld) => Ok(self.follow(withheld, piece)),
                    None => self.begin(piece),
                }
            }
            LogRead::Gone => {
                self.reset();
                Ok(None)
            }
            LogRead::Outdated(stop) => {
                self.close(&stop);
                Ok(None)
            }
        }
    }

    /// Begins to deliver a piece that follows the cursor.
    fn begin(&mut self, piece: Piece) -> Result<Option<Arc<Frame>>> {
        if piece.first.is_some() {
            let held = self.outbox.take_frame();
            return Ok(held.and_then(|held| self.deliver(held)));
        }
        if piece.rows_beyond > 0 && piece.next.seq > self.cursor.position.seq {
            return Err(Error::internal("a commit has fewer rows than were delivered of it"));
        }
        self.cursor = Cursor { position: piece.next, rows: piece.rows_beyond };
        Ok(self.heartbeat())
    }

    /// Moves the cursor past a frame of the outbox and returns it, unless it must be withheld.
    fn deliver(&mut self, HeldFrame { frame, end }: HeldFrame) -> Option<Arc<Frame>> {
        match end {
            Some(next) if frame.more => {
                self.withheld = Some(Withheld { frame, next });
                return None;
            }
            Some(next) => self.cursor = Cursor::at(next),
            None => self.cursor = self.cursor.past(&frame),
        }
        Some(frame)
    }

    /// Returns a withheld frame if `piece`, which follows it, shows how its commit goes on.
    fn follow(&mut self, withheld: Withheld, piece: Piece) -> Option<Arc<Frame>> {
        let Withheld { frame, next } = withheld;
        let commit = next.seq;
        let through = match piece.first {
            // More of its rows follow, as it says.
            Some(first) if first == commit => {
                self.cursor = Cursor::at(next);
                return Some(frame);
            }
            None if piece.next.seq == commit => {
                self.withheld = Some(Withheld { frame, next: piece.next });
                return self.heartbeat();
            }
            Some(_) => commit,
            None => piece.next.complete(),
        };
        self.cursor = if piece.first.is_some() { Cursor::after(commit) } else { Cursor::at(piece.next) };
        Some(Arc::new(self.group.maker.completed(&frame, through)))
    }

    /// Returns a sign of life if one is due, so that a long read without matching changes does not look like
    /// a dead stream.
    fn heartbeat(&self) -> Option<Arc<Frame>> {
        let reached = self.cursor.complete().max(self.delivered);
        if !self.progress_is_due(reached) {
            return None;
        }
        Some(match self.more {
            true => {
                Arc::new(self.group.maker.incomplete(self.delivered, MoreFollows::Yes, FrameBody::Progress))
            }
            false => self.group.progress(reached),
        })
    }

    /// Starts over, because the log no longer has the commits after the cursor.
    fn reset(&mut self) {
        let snapshot = self.state.committer.snapshot();
        self.outbox.clear();
        self.withheld = None;
        self.announce_reset(ResetReason::Lag, snapshot.seq);
        self.log_until = snapshot.seq;
        self.phase = Phase::Snapshot { snapshot, rows: 0 };
    }

    fn announce_reset(&mut self, reason: ResetReason, snapshot_seq: Seq) {
        self.state.counters.resets.fetch_add(1, Ordering::Relaxed);
        let body = FrameBody::Reset { reason, snapshot_seq };
        let frame = self.group.maker.incomplete(self.delivered, MoreFollows::Yes, body);
        self.push(frame);
    }
}

/// Reads on in a scan until there are frames, and puts it where its subscriber finds it. Without a scan it
/// opens one, after the first `rows` rows of the result. Returns whether the scan is at its end.
async fn read_snapshot(
    state: Arc<LiveState>,
    registered: Arc<Registered>,
    place: Place,
    snapshot: Arc<Snapshot>,
    mut scan: Option<Box<Scan>>,
    (rows, complete): (usize, Seq),
) -> Result<bool> {
    loop {
        let turn = state.scan_turns.take(registered.subscriber.principal.user_id).await?;
        let (session, group) = (Arc::clone(&state.session), Arc::clone(&registered.group));
        let work = read_on(turn, session, group, Arc::clone(&snapshot), scan, (rows, complete));
        let (read, is_at_end) = state.on_engine(work).await?;
        if is_at_end {
            return Ok(true);
        }
        if !read.frames.is_empty() {
            place.put_scan(read, rows);
            return Ok(false);
        }
        scan = Some(read);
    }
}

fn rows_of(frame: &Frame) -> usize {
    match &frame.body {
        FrameBody::Snapshot(rows) => rows.rows,
        _ => 0,
    }
}
