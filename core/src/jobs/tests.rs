//! Jobs and their rows, without a statement layer.

use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::hot_size::HotCounter;
use super::record::{JobKind, JobStatus};
use super::store::JobStore;
use super::system_rows::SystemRows;
use super::{JobManager, JobParts};
use crate::clock::{Clock, SystemClock};
use crate::commit::Committer;
use crate::config::Config;
use crate::ids::{JobId, NodeId};
use crate::schema_registry::{SchemaRegistry, SystemTable};

struct World {
    config: Config,
    committer: Arc<Committer>,
    registry: Arc<SchemaRegistry>,
    clock: Arc<dyn Clock>,
}

impl World {
    fn new() -> Self {
        let config = Config::in_memory();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let committer = Committer::open_config(&config, Arc::clone(&clock)).unwrap();
        Self { config, committer, registry: Arc::default(), clock }
    }

    fn store(&self) -> JobStore {
        JobStore::new(
            Arc::clone(&self.committer),
            Arc::clone(&self.registry),
            Arc::clone(&self.clock),
            NodeId("node-1".into()),
            CancellationToken::new(),
        )
    }

    async fn manager(&self) -> Arc<JobManager> {
        let parts = JobParts {
            committer: Arc::clone(&self.committer),
            registry: Arc::clone(&self.registry),
            clock: Arc::clone(&self.clock),
            node_id: NodeId("node-1".into()),
            config: &self.config,
        };
        JobManager::start(parts).await
    }

    /// Returns the status and the result of a job.
    async fn row(&self, id: &JobId) -> (String, Option<String>) {
        let rows = SystemRows {
            committer: Arc::clone(&self.committer),
            registry: Arc::clone(&self.registry),
            table: SystemTable::Jobs,
        };
        let batches = rows.all().await.unwrap();
        let text = |name: &str, wanted: &JobId| {
            batches.iter().find_map(|batch| {
                let ids = batch.column_by_name("job_id").unwrap().as_string::<i32>();
                let values = batch.column_by_name(name).unwrap().as_string::<i32>();
                ids.iter()
                    .zip(values)
                    .find(|(id, _)| *id == Some(&*wanted.0))
                    .map(|(_, value)| value.map(str::to_owned))
            })
        };
        (text("status", id).unwrap().unwrap(), text("result", id).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_job_is_found_among_cold_rows() {
    let world = World::new();
    let left = world.store().enqueue(JobKind::Flush, None, json!({})).await.unwrap();
    let manager = world.manager().await;
    let jobs = Arc::clone(world.committer.snapshot().catalog.table_by_id(SystemTable::Jobs.id()).unwrap());
    // The manager marked the first job at its start; this one stands for a job at work.
    let again = world.store().enqueue(JobKind::Flush, None, json!({})).await.unwrap();
    let flush = manager.flush(&jobs).await.unwrap();
    manager.wait(&flush).await;
    assert_eq!(world.row(left.id()).await.0, "failed");
    assert_eq!(world.row(again.id()).await.0, "queued");
    assert_eq!(world.committer.snapshot().cold.segments(jobs.id).len(), 1);
    // A job goes on even when its own row became cold.
    let (status, result) = world.row(&flush).await;
    assert_eq!(status, "completed");
    assert!(result.unwrap().starts_with("flushed 3 rows"));
    world.store().recover().await.unwrap();
    assert_eq!(world.row(again.id()).await.0, "failed");
    assert_eq!(world.row(&flush).await.0, "completed");
    manager.shutdown(tokio::time::Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_during_a_flush_is_still_counted_after_it() {
    let world = World::new();
    let store = world.store();
    let table = SystemTable::Jobs.id();
    let stop = CancellationToken::new();
    let counter = HotCounter::new(Arc::clone(&world.committer), Arc::clone(&world.clock), stop);
    let write = async |rows: usize| {
        for _ in 0..rows {
            store.enqueue(JobKind::Flush, None, json!({})).await.unwrap();
        }
    };
    write(2).await;
    counter.count().await.unwrap();
    write(3).await;
    let through = world.committer.seq();
    write(1).await;
    counter.count().await.unwrap();
    counter.flush_begun(table, through);
    write(2).await;
    counter.count().await.unwrap();
    assert_eq!(counter.of(table).rows, 8);
    counter.flushed(table);
    assert_eq!(counter.of(table).rows, 3);
    counter.flush_begun(table, world.committer.seq());
    counter.flush_abandoned(table);
    assert_eq!(counter.of(table).rows, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_at_work_shows_how_far_it_is() {
    let world = World::new();
    let store = world.store();
    let job = store.enqueue(JobKind::Compact, None, json!({})).await.unwrap();
    let id = job.id().clone();
    let mut commits = world.committer.commits().watch();
    let (world, store) = (&world, &store);
    let status = store
        .run(job, 0, |control| {
            let (id, mut commits) = (id.clone(), commits.clone());
            async move {
                control.begin("writing segments");
                control.add(10, 1_000);
                while world.row(&id).await.1.is_none() {
                    commits.changed().await.unwrap();
                }
                assert_eq!(
                    world.row(&id).await,
                    ("running".to_owned(), Some("writing segments: 10 rows, 1000 bytes".to_owned()))
                );
                Ok("done".to_owned())
            }
        })
        .await
        .unwrap();
    assert_eq!(status, JobStatus::Completed);
    assert_eq!(world.row(&id).await, ("completed".to_owned(), Some("done".to_owned())));
    commits.mark_unchanged();
    // A short job writes no progress.
    let short = store.enqueue(JobKind::Compact, None, json!({})).await.unwrap();
    let seq = world.committer.seq();
    store.run(short, 0, |_| async { Ok("done".to_owned()) }).await.unwrap();
    assert_eq!(world.committer.seq().0, seq.0 + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_is_given_to_whoever_asks_for_the_same() {
    let waiting = super::waiting::Waiting::default();
    let table = SystemTable::Jobs.id();
    let made = std::sync::atomic::AtomicUsize::new(0);
    let ask = async |kind: JobKind| {
        let make = async {
            let number = made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(JobId(number.to_string()))
        };
        waiting.get_or_make(kind, table, make).await.unwrap().0
    };
    let (one, two, other) = tokio::join!(ask(JobKind::Flush), ask(JobKind::Flush), ask(JobKind::Compact));
    assert_eq!(one, two);
    assert_ne!(one, other);
    waiting.cancelled(&JobId(other.clone()));
    assert_ne!(ask(JobKind::Compact).await, other);
    assert_eq!(ask(JobKind::Flush).await, one);
    waiting.begun(JobKind::Flush, table, &JobId(one.clone()));
    let next = ask(JobKind::Flush).await;
    assert_ne!(next, one);
    waiting.begun(JobKind::Flush, table, &JobId(one));
    assert_eq!(ask(JobKind::Flush).await, next);
}
