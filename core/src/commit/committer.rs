//! The handle for all commits and all reads.
//!
//! Invariant: every snapshot taken after a commit's receipt was returned contains that commit.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::hot_limit::HotLimit;
use super::moves::{ChangedKeys, Move};
use super::recovery::{OpenStore, Recovered, recover};
use super::reopening::Backoff;
use super::sequencer::Sequencer;
use super::state::{CommitState, Pending, PreparedSet, QueueItem, Turn, outcome_unknown, sequencer_ended};
use super::unique_key::{check_not_cold, inserted_keys};
use super::validation::LastChanges;
use super::{CommitFeed, EpochHistory, LargeInsert, Receipt, Snapshot, WriteSet};
use crate::change_log;
use crate::clock::Clock;
use crate::cold_storage::SegmentStore;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::hot_tier::HotOptions;
use crate::ids::{DatabaseId, SegmentId, Seq, TableId};
use crate::storage::{
    self, DataDirectory, DiskSpace, Features, KeyRange, Partition, RocksStorage, StorageBackend,
    StorageMetrics, StorageOptions,
};

/// The queue's bytes are counted in this unit, because a semaphore counts in 32 bits.
const PERMIT_BYTES: usize = 1_024;

/// Limits of a committer.
#[derive(Clone, Copy, Debug)]
pub struct CommitterOptions {
    /// Most write sets in the queue; further writers wait.
    pub queue_len_max: usize,
    /// Most bytes of all queued write sets; further writers wait.
    pub queue_bytes_max: usize,
    /// Most bytes of one write set; a larger set is refused.
    pub set_bytes_max: usize,
    /// Bytes of recent commits kept for followers.
    pub ring_bytes_max: usize,
    /// Bytes of segment footers and key filters kept in memory.
    pub segment_cache_bytes: usize,
    /// Sizes of the hot tier.
    pub hot: HotOptions,
    /// Most bytes of hot rows; 0 means no limit.
    pub hot_bytes_max: u64,
    /// Bytes that must stay free on the disk of the data directory.
    pub disk_free_min_bytes: u64,
}

impl Default for CommitterOptions {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

impl From<&Config> for CommitterOptions {
    fn from(config: &Config) -> Self {
        Self {
            queue_len_max: config.commit_queue_len_max.max(1),
            queue_bytes_max: 256 << 20,
            set_bytes_max: config.statement_bytes_max,
            ring_bytes_max: config.commit_ring_bytes,
            segment_cache_bytes: config.segment_cache_bytes,
            hot: HotOptions::of_bytes(config.hot_cache_bytes),
            hot_bytes_max: config.hot_bytes_max,
            disk_free_min_bytes: config.disk_free_min_bytes,
        }
    }
}

/// A set that a writer has handed over.
enum Queued {
    /// There was nothing to commit.
    Done(Receipt),
    /// It waits for its turn, and its writer for the answer.
    Waits(Arc<Turn>, oneshot::Receiver<Result<Receipt>>),
}

/// Commits write sets and hands out snapshots.
pub struct Committer {
    storage: Arc<dyn StorageBackend>,
    /// `None` for a database in memory.
    directory: Option<Arc<DataDirectory>>,
    state: Arc<CommitState>,
    options: CommitterOptions,
    hot_limit: HotLimit,
    queue_permits: Arc<Semaphore>,
    queue: Mutex<Option<mpsc::Sender<QueueItem>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Opens the database of `config`: takes its directory, recovers the store, begins a new epoch. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when the directory is in use, read-only or of a newer format; `Corruption` when damaged.
    pub fn open_config(config: &Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let options = StorageOptions::from(config);
        let directory = match &config.data_dir {
            Some(path) => Some(Arc::new(DataDirectory::open(path)?)),
            None => None,
        };
        let storage = match &directory {
            Some(directory) => RocksStorage::open(Arc::clone(directory), options)?,
            None => RocksStorage::in_memory(options)?,
        };
        Self::open(Arc::new(storage), directory, clock, CommitterOptions::from(config))
    }

    /// Recovers the database in `storage`, begins a new epoch and starts the sequencer. Without a directory
    /// the synced seq is not recorded. Blocks.
    ///
    /// # Errors
    /// As [`Committer::open_config`].
    pub fn open(
        storage: Arc<dyn StorageBackend>,
        directory: Option<Arc<DataDirectory>>,
        clock: Arc<dyn Clock>,
        options: CommitterOptions,
    ) -> Result<Arc<Self>> {
        let segments = match &directory {
            Some(directory) => SegmentStore::in_directory(
                &directory.segments_path(),
                &directory.spool_path(),
                options.segment_cache_bytes,
            )?,
            None => SegmentStore::in_memory(options.segment_cache_bytes),
        };
        let store = OpenStore {
            storage: Arc::clone(&storage),
            directory: directory.as_ref().map(Arc::clone),
            clock,
            hot: options.hot,
        };
        let Recovered { database, epochs, snapshot } = recover(&store, segments, None)?;
        let (seq, next_segment) = (snapshot.seq, snapshot.cold.next());
        tracing::info!(database = %database, epoch = snapshot.epoch.0, seq = seq.0, "recovered the store");
        let state = Arc::new(CommitState {
            database,
            snapshot: ArcSwap::from_pointee(snapshot),
            epochs: ArcSwap::from_pointee(epochs),
            poisoned: AtomicBool::new(false),
            reopenings: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            disk: directory
                .as_ref()
                .map(|directory| DiskSpace::new(directory.path(), options.disk_free_min_bytes)),
            next_segment: AtomicU32::new(next_segment.0),
            feed: CommitFeed::starting_after(seq, options.ring_bytes_max),
            moves: Arc::default(),
        });
        let sequencer = Sequencer {
            store,
            state: Arc::clone(&state),
            last_changes: LastChanges::unknown_before(seq),
            backoff: Backoff::default(),
        };
        let (queue, pendings) = mpsc::channel(options.queue_len_max);
        let thread = std::thread::Builder::new()
            .name("kalam-sequencer".to_owned())
            .spawn(move || sequencer.run(pendings))
            .map_err(|error| Error::internal("the sequencer could not be started").source(error))?;
        Ok(Arc::new(Self {
            storage,
            directory,
            state,
            options,
            hot_limit: HotLimit::new(options.hot_bytes_max),
            queue_permits: Arc::new(Semaphore::new(permits(options.queue_bytes_max) as usize)),
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Returns the database as of the last commit.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.state.snapshot.load_full()
    }

    /// Returns the seq of the last commit.
    pub fn seq(&self) -> Seq {
        self.state.snapshot.load().seq
    }

    /// Commits `set`. Returns once the commit is installed and as durable as the set asks. If the caller
    /// stops waiting, the set may still be committed. Waits while the queue is full.
    ///
    /// # Errors
    /// 40001 when another commit came first, 23505 for a taken key, 54000 for too large a set, 08007 when the
    /// write failed and its outcome is unknown, 58030 from then on until the store is reopened and after the
    /// end of the sequencer, 53100 when the disk is full or hot rows exceed `hot_bytes_max`, 57P01 while
    /// closing, or catalog errors.
    pub async fn commit(&self, set: WriteSet) -> Result<Receipt> {
        self.commit_unless(set, std::future::pending()).await
    }

    /// As [`Committer::commit`], but gives the set up when `stopped` completes before its turn, and then
    /// returns the error of `stopped`. A set whose turn has come is committed or refused, and the caller
    /// learns which.
    pub(crate) async fn commit_unless(
        &self,
        set: WriteSet,
        stopped: impl Future<Output = Error>,
    ) -> Result<Receipt> {
        let mut stopped = pin!(stopped);
        let queued = tokio::select! {
            biased;
            queued = self.enqueue(set) => queued?,
            error = &mut stopped => return Err(error),
        };
        let (turn, mut answered) = match queued {
            Queued::Done(receipt) => return Ok(receipt),
            Queued::Waits(turn, answered) => (turn, answered),
        };
        let answer = tokio::select! {
            biased;
            answer = &mut answered => answer,
            error = &mut stopped => {
                if turn.decide() {
                    return Err(error);
                }
                answered.await
            }
        };
        // The sequencer answers every set it takes, unless it panics.
        answer.unwrap_or_else(|_| Err(outcome_unknown()))
    }

    /// Prepares a set and puts it into the queue.
    async fn enqueue(&self, set: WriteSet) -> Result<Queued> {
        if set.is_empty() {
            return Ok(Queued::Done(self.last_receipt()));
        }
        if self.is_poisoned() {
            return Err(self.state.refusal());
        }
        let bytes = set.bytes();
        if bytes > self.options.set_bytes_max {
            return Err(too_large(bytes, self.options.set_bytes_max));
        }
        self.hot_limit.admit(&set).await?;
        let trim = match set.trim_log_to {
            Some(up_to) => {
                let snapshot = self.snapshot();
                storage::blocking(move || change_log::trim(&*snapshot.storage, up_to.min(snapshot.seq)))
                    .await?
            }
            None => None,
        };
        let only_trims = set.tables.is_empty() && set.catalog.is_empty() && set.cold.is_none();
        if trim.is_none() && set.trim_log_to.is_some() && only_trims {
            return Ok(Queued::Done(self.last_receipt()));
        }
        let cold_checked = self.check_cold_keys(&set).await?;
        let held = bytes + set.large_insert().map_or(0, LargeInsert::key_bytes);
        let wanted = permits(held.min(self.options.queue_bytes_max));
        let permit = Arc::clone(&self.queue_permits)
            .acquire_many_owned(wanted)
            .await
            .map_err(|_| Error::shutting_down())?;
        let queue = self.queue.lock().clone().ok_or_else(Error::shutting_down)?;
        let (answer, answered) = oneshot::channel();
        let (prepared, turn) = (PreparedSet { set, trim, cold_checked }, Arc::<Turn>::default());
        let pending = Box::new(Pending { prepared, bytes, turn: Arc::clone(&turn), answer, _permit: permit });
        queue.send(QueueItem::Set(pending)).await.map_err(|_| self.takes_no_more())?;
        drop(queue);
        if self.is_poisoned() {
            self.wake();
        }
        Ok(Queued::Waits(turn, answered))
    }

    fn last_receipt(&self) -> Receipt {
        let snapshot = self.state.snapshot.load();
        Receipt { seq: snapshot.seq, commit_ts: snapshot.commit_ts }
    }

    /// Waits until the sequencer has done what was queued before.
    ///
    /// # Errors
    /// 58030 when the sequencer has ended, 57P01 while closing.
    pub async fn ping(&self) -> Result<()> {
        let queue = self.queue.lock().clone().ok_or_else(Error::shutting_down)?;
        let (answer, answered) = oneshot::channel();
        queue.send(QueueItem::Ping(answer)).await.map_err(|_| self.takes_no_more())?;
        drop(queue);
        if self.is_poisoned() {
            self.wake();
        }
        answered.await.map_err(|_| self.takes_no_more())
    }

    /// Returns the error for work that finds nobody at the other end of the queue.
    fn takes_no_more(&self) -> Error {
        if self.queue.lock().is_some() { sequencer_ended() } else { Error::shutting_down() }
    }

    /// Whether the sequencer's thread has ended although the database is open.
    pub fn sequencer_has_ended(&self) -> bool {
        self.queue.lock().is_some() && self.thread.lock().as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Begins a flush of the hot rows of a table. Rows that change meanwhile are recorded.
    ///
    /// # Errors
    /// 55006 when a flush or compaction of the table is already running.
    pub fn begin_flush(&self, table: TableId) -> Result<Move> {
        Move::begin(table, Some(ChangedKeys::default()), &self.state.moves, &self.state.snapshot)
    }

    /// Begins a compaction of a table's segments. Rows that change meanwhile are marked in the old segments.
    ///
    /// # Errors
    /// As [`Committer::begin_flush`].
    pub fn begin_compaction(&self, table: TableId) -> Result<Move> {
        Move::begin(table, None, &self.state.moves, &self.state.snapshot)
    }

    /// Compacts the tombstones in a range of row keys, so that scans do not step over them. Blocks.
    ///
    /// # Errors
    /// Any error of the store.
    pub fn compact_rows(&self, range: &KeyRange) -> Result<()> {
        self.storage.compact(Partition::Rows, range)
    }

    /// Returns an unused number for a new segment.
    pub fn new_segment_id(&self) -> SegmentId {
        SegmentId(self.state.next_segment.fetch_add(1, Ordering::Relaxed))
    }

    /// Checks that the keys of inserts are free among cold rows, and those of a large INSERT among all rows.
    /// Returns the seq of this check. The sequencer reads no files; it checks that no rows became cold since.
    ///
    /// # Errors
    /// 23505 for a taken key, and any error of reading segments.
    async fn check_cold_keys(&self, set: &WriteSet) -> Result<Seq> {
        let snapshot = self.snapshot();
        for write in &set.tables {
            if snapshot.cold.segments(write.table.id).is_empty() || !write.table.has_key() {
                continue;
            }
            check_not_cold(&snapshot, &write.table, &inserted_keys(write)).await?;
        }
        if let Some(insert) = set.large_insert() {
            insert.check_free(&snapshot).await?;
        }
        Ok(snapshot.seq)
    }

    /// Returns the limit on the bytes of hot rows.
    pub fn hot_limit(&self) -> &HotLimit {
        &self.hot_limit
    }

    /// Returns the feed of the latest commits.
    pub fn commits(&self) -> CommitFeed {
        self.state.feed.clone()
    }

    /// Returns the id of the database.
    pub fn database_id(&self) -> DatabaseId {
        self.state.database
    }

    /// Returns the features that the data directory uses: those of the newest snapshot, and maybe more.
    pub fn features(&self) -> Features {
        self.directory.as_ref().map(|directory| directory.features()).unwrap_or_default()
    }

    /// Returns which seqs of which epochs are part of the history.
    pub fn epochs(&self) -> Arc<EpochHistory> {
        self.state.epochs.load_full()
    }

    /// Whether a write failed and the store is not reopened yet. Until then all writes are refused.
    pub fn is_poisoned(&self) -> bool {
        self.state.is_poisoned()
    }

    /// Whether rows can be written: no failed write awaits a reopening, the sequencer runs, and the disk has
    /// room.
    pub fn accepts_writes(&self) -> bool {
        !self.is_poisoned() && !self.sequencer_has_ended() && self.check_disk_space().is_ok()
    }

    /// Refuses work that needs room on the disk of the data directory when there is too little.
    ///
    /// # Errors
    /// 53100 when there is too little.
    pub fn check_disk_space(&self) -> Result<()> {
        self.state.disk.as_ref().map_or(Ok(()), DiskSpace::check)
    }

    /// Refuses work that writes `bytes` to the disk of the data directory when there is no room for them.
    ///
    /// # Errors
    /// 53100 when there is no room.
    pub fn check_room_for(&self, bytes: u64) -> Result<()> {
        self.state.disk.as_ref().map_or(Ok(()), |disk| disk.check_room_for(bytes))
    }

    /// Records bytes written to the disk of the data directory outside the store.
    pub fn note_written(&self, bytes: u64) {
        if let Some(disk) = &self.state.disk {
            disk.note_written(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
    }

    /// Returns the free bytes on the disk of the data directory; `None` for a database in memory.
    pub fn disk_free_bytes(&self) -> Option<u64> {
        self.state.disk.as_ref().map(DiskSpace::free_bytes)
    }

    /// Returns how often the store was reopened after a failed write.
    pub fn reopenings(&self) -> u64 {
        self.state.reopenings.load(Ordering::Relaxed)
    }

    /// Returns how many steps the sequencer has done: while it works, the number grows.
    pub fn steps(&self) -> u64 {
        self.state.steps.load(Ordering::Relaxed)
    }

    /// Returns how many write sets wait for the sequencer.
    pub fn queue_len(&self) -> usize {
        self.queue.lock().as_ref().map_or(0, |queue| queue.max_capacity() - queue.capacity())
    }

    /// Returns sizes and running work of the store.
    pub fn storage_metrics(&self) -> StorageMetrics {
        self.storage.metrics()
    }

    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock() {
            thread.thread().unpark();
        }
    }

    /// Takes no more sets, commits those in the queue, syncs the store and ends the sequencer. Snapshots stay
    /// readable; the data directory is released when the last of them is dropped.
    ///
    /// # Errors
    /// `Internal` when the sequencer had panicked.
    pub async fn shutdown(&self) -> Result<()> {
        drop(self.queue.lock().take());
        self.wake();
        let thread = self.thread.lock().take();
        match thread {
            Some(thread) => storage::blocking(move || join(thread)).await,
            None => Ok(()),
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        drop(self.queue.lock().take());
        self.wake();
        if let Some(thread) = self.thread.lock().take()
            && let Err(error) = join(thread)
        {
            tracing::error!(%error, "the committer could not be closed cleanly");
        }
    }
}

fn join(thread: JoinHandle<()>) -> Result<()> {
    thread.join().map_err(|_| Error::internal("the sequencer panicked"))
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX).max(1)
}

fn too_large(bytes: usize, bytes_max: usize) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("a change of {bytes} bytes is larger than the limit of {bytes_max} bytes per commit"),
    )
    .hint("split it into several statements")
}
