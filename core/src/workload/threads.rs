//! The engine: the threads that plan and run statements, apart from those that accept connections, commit and
//! deliver.
//!
//! A thread that is busy with a step of a statement cannot be interrupted, so the engine has more threads
//! than the running statements need. They have a low priority, so that callers get a processor at once.
//!
//! Invariants: work whose owner has gone ends at its next pause. Work that the end of the engine cuts off is
//! never taken for complete.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinError, JoinSet};
use tracing::{Instrument, debug, error};

use super::busy::{Busy, BusyThreads};
use super::control::StatementControl;
use super::reason::StopReason;
use super::turns::RESERVED_SLOTS;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::platform::{self, STATEMENT_PRIORITY};

/// The stack that the deepest statement that passes the guard needs, with a wide margin.
pub const STACK_BYTES: usize = 16 << 20;
/// The most threads that run statements. Idle threads cost only address space.
const WORKERS_MAX: usize = 1_024;
/// The most threads that read and write files for statements; further work waits for one of them.
pub(super) const BLOCKING_THREADS_MAX: usize = 64;
/// Threads that may be given up before statements that could need to be given up too are refused.
pub(crate) const GIVEN_UP_MAX: usize = 2;
/// How long [`EngineThreads::shutdown`] waits for steps that still run.
const SHUTDOWN_WAIT: Duration = Duration::from_millis(500);

/// The threads that plan and run statements.
pub struct EngineThreads {
    /// `None` after the shutdown.
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
    busy: Arc<BusyThreads>,
    is_closed: Arc<AtomicBool>,
}

impl EngineThreads {
    /// Starts the threads: enough for all statements that may run and keep all their partitions busy, for as
    /// many more as may be given up, and for one that is always free.
    ///
    /// # Errors
    /// 58030 when the operating system refuses.
    pub(crate) fn start(config: &Config) -> Result<Arc<Self>> {
        let statements = config.statements_running_max().saturating_add(RESERVED_SLOTS + GIVEN_UP_MAX);
        let workers = statements.saturating_mul(config.query_partitions).saturating_add(2).min(WORKERS_MAX);
        let busy = Arc::new(BusyThreads::default());
        let (starting, ending) = (Arc::clone(&busy), Arc::clone(&busy));
        let runtime = Builder::new_multi_thread()
            .thread_name("kalam-engine")
            .worker_threads(workers)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_stack_size(STACK_BYTES)
            .on_thread_start(move || {
                if let Err(error) = platform::lower_thread_priority(STATEMENT_PRIORITY) {
                    debug!(%error, "a thread of the engine keeps its priority");
                }
                starting.add_current();
            })
            .on_thread_stop(move || ending.remove_current())
            .enable_all()
            .build()
            .map_err(|error| {
                Error::new(
                    ErrorKind::Unavailable,
                    SqlState::IO_ERROR,
                    "the threads for statements cannot be started",
                )
                .hint("lower statements_running_max or query_partitions, or raise the limit of threads")
                .source(error)
            })?;
        let handle = runtime.handle().clone();
        Ok(Arc::new(Self { runtime: Mutex::new(Some(runtime)), handle, busy, is_closed: Arc::default() }))
    }

    /// Starts work of a statement. It ends at its next pause when the returned value is dropped.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        control: &Arc<StatementControl>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Work<T> {
        self.spawn_task(Stepped { control: Arc::clone(control), work: Box::pin(work) })
    }

    /// Starts work that belongs to no statement. It ends at its next pause when the returned value is
    /// dropped.
    pub(crate) fn spawn_task<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Work<T> {
        let mut task = JoinSet::new();
        task.spawn_on(work.in_current_span(), &self.handle);
        Work { task, is_closed: Arc::clone(&self.is_closed) }
    }

    /// Runs work of a statement and waits for it. When the statement is told to stop, the caller gets the
    /// reason at once, even if a thread is still busy. When the caller leaves, the statement is told to stop.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        control: &Arc<StatementControl>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut work = self.spawn(control, work);
        let mut caller = Caller { control, has_answer: false };
        let result = tokio::select! {
            biased;
            result = std::future::poll_fn(|cx| work.poll_join(cx)) => result,
            () = control.stopped() => Err(control.error()),
        };
        caller.has_answer = true;
        result
    }

    /// Waits until one of the threads has taken up new work.
    ///
    /// # Errors
    /// 57P01 after the end of the engine.
    pub async fn ping(&self) -> Result<()> {
        let mut work = self.spawn_task(async { Ok(()) });
        std::future::poll_fn(|cx| work.poll_join(cx)).await
    }

    /// Returns how many steps of statements have ended: while the threads work, the number grows.
    pub fn steps(&self) -> u64 {
        self.busy.steps()
    }

    /// Returns the number of tasks that work for statements.
    pub fn tasks(&self) -> usize {
        self.handle.metrics().num_alive_tasks()
    }

    /// Returns the number of threads that are given up: their statements were told to stop and do not.
    pub fn given_up(&self) -> usize {
        self.busy.given_up()
    }

    pub(super) fn busy_threads(&self) -> &Arc<BusyThreads> {
        &self.busy
    }

    /// Ends all work, and waits a moment for steps that still run. Further work is refused. Blocks.
    pub(crate) fn shutdown(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(SHUTDOWN_WAIT);
        }
    }
}

impl Drop for EngineThreads {
    fn drop(&mut self) {
        self.is_closed.store(true, Ordering::SeqCst);
        if let Some(runtime) = self.runtime.get_mut().take() {
            // The last owner may be an asynchronous task, which must not wait.
            runtime.shutdown_background();
        }
    }
}

impl std::fmt::Debug for EngineThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineThreads").field("tasks", &self.tasks()).finish_non_exhaustive()
    }
}

/// Work that runs on the engine. Dropping it ends the work at its next pause.
#[derive(Debug)]
pub(crate) struct Work<T> {
    task: JoinSet<Result<T>>,
    is_closed: Arc<AtomicBool>,
}

impl<T: 'static> Work<T> {
    /// Waits for the result. Once there is one, it must not be called again.
    pub(crate) fn poll_join(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        self.task.poll_join_next(cx).map(|ended| self.result(ended))
    }

    fn result(&self, ended: Option<Result<Result<T>, JoinError>>) -> Result<T> {
        match ended {
            // When the engine ends, tasks that this one has started are dropped, which looks like their end.
            Some(Ok(Ok(_))) if self.is_closed.load(Ordering::SeqCst) => Err(Error::shutting_down()),
            Some(Ok(result)) => result,
            Some(Err(failure)) if failure.is_panic() => {
                error!(%failure, "a statement panicked");
                Err(Error::internal("the statement could not be completed").source(failure))
            }
            Some(Err(_)) | None => Err(Error::shutting_down()),
        }
    }
}

/// Tells a statement to stop when its caller leaves without an answer.
struct Caller<'a> {
    control: &'a StatementControl,
    has_answer: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if !self.has_answer {
            self.control.stop(StopReason::ClientGone);
        }
    }
}

/// Work, each poll of which is a step of its statement.
struct Stepped<F> {
    control: Arc<StatementControl>,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Stepped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _busy = Busy::enter(&self.control);
        self.work.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    fn started() -> (Arc<EngineThreads>, Arc<StatementControl>) {
        let config = Config { statements_running_max: 1, query_partitions: 1, ..Config::in_memory() };
        (EngineThreads::start(&config).unwrap(), StatementControl::new(&config))
    }

    #[tokio::test]
    async fn work_returns_its_result_and_a_panic_is_an_error() {
        let (threads, control) = started();
        assert_eq!(threads.run(&control, async { Ok(7) }).await.unwrap(), 7);
        let refused = threads.run(&control, async { Err::<(), _>(Error::invalid("no")) }).await;
        assert_eq!(refused.unwrap_err().sqlstate(), SqlState::INVALID_PARAMETER_VALUE);
        let failed = threads.run(&control, async { Ok(std::hint::black_box(None::<u8>).unwrap()) }).await;
        assert_eq!(failed.unwrap_err().sqlstate(), SqlState::INTERNAL);
        assert!(control.reason().is_none());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_threads_give_way_to_others() {
        let (threads, control) = started();
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let own = priority();
        let of_engine = threads.run(&control, async move { Ok(priority()) }).await.unwrap();
        assert_eq!(of_engine, own.max(STATEMENT_PRIORITY));
    }

    #[tokio::test]
    async fn work_ends_when_its_caller_leaves() {
        let (threads, control) = started();
        let (alive, gone) = oneshot::channel::<()>();
        let work = async move {
            let _alive = alive;
            pending::<Result<()>>().await
        };
        let left = tokio::time::timeout(Duration::from_millis(20), threads.run(&control, work)).await;
        assert!(left.is_err());
        assert!(gone.await.is_err(), "the work was dropped");
        assert_eq!(control.reason(), Some(StopReason::ClientGone));
    }

    #[tokio::test]
    async fn who_waits_for_a_busy_thread_gets_the_reason_and_others_run() {
        let (threads, control) = started();
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let busy = threads.run(&control, async move {
            // A step that never pauses.
            let _ended = end.recv();
            Ok(())
        });
        let told = async {
            let other = StatementControl::new(&Config::in_memory());
            assert_eq!(threads.run(&other, async { Ok(1) }).await.unwrap(), 1);
            control.stop(StopReason::SnapshotAge);
        };
        let (stopped, ()) = tokio::join!(busy, told);
        assert_eq!(stopped.unwrap_err().sqlstate(), SqlState::LIMIT_EXCEEDED);
        drop(ends);
    }

    #[tokio::test]
    async fn after_the_end_nothing_looks_complete() {
        let (threads, control) = started();
        let mut cut_off = threads.spawn(&control, pending::<Result<()>>());
        let closer = Arc::clone(&threads);
        std::thread::spawn(move || closer.shutdown()).join().unwrap();
        let ended = std::future::poll_fn(|cx| cut_off.poll_join(cx)).await;
        assert_eq!(ended.unwrap_err().sqlstate(), SqlState::SHUTTING_DOWN);
        let refused = threads.run(&control, async { Ok(()) }).await;
        assert_eq!(refused.unwrap_err().sqlstate(), SqlState::SHUTTING_DOWN);
    }

    #[tokio::test]
    async fn the_last_owner_may_be_a_task_of_the_engine() {
        let (threads, _) = started();
        let (done, ended) = oneshot::channel();
        let owner = Arc::clone(&threads);
        let handle = threads.handle.clone();
        let (release, released) = oneshot::channel::<()>();
        handle.spawn(async move {
            let _released = released.await;
            drop(owner);
            let _sent = done.send(());
        });
        drop(threads);
        release.send(()).unwrap();
        ended.await.unwrap();
    }
}
