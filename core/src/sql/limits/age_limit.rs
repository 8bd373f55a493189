//! Limits how long a query may hold its snapshot: rows overwritten since cannot be reclaimed while it does.
//!
//! Invariant: beyond that age a query holds nothing, even when nobody reads it; a reader learns why it ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result, SqlState};

/// A stream that is dropped at a maximum age and then returns an error.
pub(crate) struct AgeLimited<T> {
    held: Arc<Mutex<Held<T>>>,
    timer: JoinHandle<()>,
    age_max: Duration,
    ended: bool,
}

struct Held<T> {
    /// `None` once the stream is too old or has ended.
    stream: Option<BoxStream<'static, Result<T>>>,
    /// The task that waits for the next item.
    waker: Option<Waker>,
}

impl<T: Send + 'static> AgeLimited<T> {
    /// Limits the age of `stream`. Must be called within a tokio runtime.
    pub(crate) fn new(stream: BoxStream<'static, Result<T>>, age_max: Duration) -> Self {
        let held = Arc::new(Mutex::new(Held { stream: Some(stream), waker: None }));
        let timer = {
            let held = Arc::downgrade(&held);
            tokio::spawn(async move {
                tokio::time::sleep(age_max).await;
                let Some(held) = held.upgrade() else { return };
                let (stream, waker) = {
                    let mut held = held.lock();
                    (held.stream.take(), held.waker.take())
                };
                drop(stream);
                if let Some(waker) = waker {
                    waker.wake();
                }
            })
        };
        Self { held, timer, age_max, ended: false }
    }
}

impl<T> Stream for AgeLimited<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = {
            let mut held = self.held.lock();
            match held.stream.as_mut() {
                Some(stream) => {
                    let polled = stream.poll_next_unpin(cx);
                    if polled.is_pending() {
                        held.waker = Some(cx.waker().clone());
                    }
                    polled
                }
                None => Poll::Ready(Some(Err(too_old(self.age_max)))),
            }
        };
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.ended = true;
            self.timer.abort();
            let stream = self.held.lock().stream.take();
            drop(stream);
        }
        polled
    }
}

impl<T> Drop for AgeLimited<T> {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

fn too_old(age_max: Duration) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::LIMIT_EXCEEDED,
        format!("the query exceeded the maximum snapshot age of {} s", age_max.as_secs()),
    )
    .hint("read the rows faster or select fewer, or raise snapshot_age_max_s")
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    /// Returns a stream that stalls after one number, and a receiver that learns when the stream is dropped.
    fn stalled() -> (BoxStream<'static, Result<u32>>, oneshot::Receiver<()>) {
        let (alive, gone) = oneshot::channel();
        let stream = futures::stream::iter([Ok(1)]).chain(futures::stream::poll_fn(move |_| {
            let _ = &alive;
            Poll::Pending
        }));
        (stream.boxed(), gone)
    }

    #[tokio::test]
    async fn a_query_nobody_reads_lets_go_and_says_so_when_somebody_does() {
        let (stream, gone) = stalled();
        let mut limited = AgeLimited::new(stream, SOON);
        assert_eq!(limited.next().await.unwrap().unwrap(), 1);
        assert!(gone.await.is_err(), "the sender was dropped");
        assert_eq!(limited.next().await.unwrap().unwrap_err().sqlstate(), SqlState::LIMIT_EXCEEDED);
        assert!(limited.next().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_for_a_row_is_told() {
        let mut limited = AgeLimited::new(stalled().0, SOON);
        limited.next().await.unwrap().unwrap();
        assert_eq!(limited.next().await.unwrap().unwrap_err().sqlstate(), SqlState::LIMIT_EXCEEDED);
    }

    #[tokio::test]
    async fn a_query_that_ends_in_time_ends_as_ever() {
        let rows: Vec<Result<u32>> = vec![Ok(1), Ok(2), Err(Error::internal("broken")), Ok(3)];
        let limited = AgeLimited::new(futures::stream::iter(rows).boxed(), Duration::from_secs(600));
        let seen: Vec<_> = limited.map(|row| row.map_err(|error| error.sqlstate())).collect().await;
        assert_eq!(seen, [Ok(1), Ok(2), Err(SqlState::INTERNAL)]);
    }
}
