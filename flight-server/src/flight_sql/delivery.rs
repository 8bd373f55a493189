//! Delivers the messages of a DoGet: a task passes them on to the reader.
//!
//! The messages of a query come from the threads of the database. The task evaluates live queries itself.
//!
//! Invariants: dropping the delivered stream drops the query; a slow reader does not keep a query alive after
//! its statement or its call was ended, after the caller's deadline or, if it is endless, after a shutdown.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::Instant;

use arrow_flight::FlightData;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use kalamdb_core::{Error, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument;

use super::queries::RunningGuard;
use super::wire::DataStream;
use crate::status::{deadline_passed, from_core};

/// Messages that are sent without a task if they are ready at once.
const READY_MESSAGES_MAX: usize = 4;
/// Messages that wait for the reader here; a query has made a few more. Beyond this it waits.
const MESSAGES_AHEAD_MAX: usize = 1;

/// The messages of a query before they are delivered.
pub(super) type Messages = BoxStream<'static, Result<FlightData>>;

/// What ends a stream before its last message.
pub(super) struct Until {
    /// The end of its statement or of its call.
    pub(super) ended: BoxFuture<'static, Error>,
    /// When the caller gives up.
    pub(super) deadline: Option<Instant>,
    /// For an endless stream: the server's shutdown.
    pub(super) shutdown: Option<CancellationToken>,
}

/// Delivers a stream by a task.
pub(super) fn deliver(mut messages: Messages, guard: RunningGuard, until: Until) -> DataStream {
    // Messages that are ready at once (for a point query, all of them) need no task.
    let mut ready = Vec::new();
    while ready.len() < READY_MESSAGES_MAX {
        match messages.next().now_or_never() {
            Some(Some(message)) => ready.push(message.map_err(from_core)),
            Some(None) => return stream::iter(ready).boxed(),
            None => break,
        }
    }
    let stop = stop(until);
    let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD_MAX);
    let work = async move {
        let last = pump(messages, stop, &sender).await;
        // The query is gone by now; only its status may still wait for the reader.
        drop(guard);
        if let Some(status) = last {
            let _reader_is_gone = sender.send(Err(status)).await;
        }
    };
    // The response owns the channel: dropping the response closes it and ends the task.
    tokio::spawn(work.in_current_span());
    stream::iter(ready).chain(ReceiverStream::new(receiver)).boxed()
}

/// Waits for an event that ends a stream early; returns the stream's status.
async fn stop(until: Until) -> Status {
    let Until { ended, deadline, shutdown } = until;
    let at_deadline = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    let going_down = async {
        match &shutdown {
            Some(shutdown) => shutdown.cancelled().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        error = ended => from_core(error),
        () = at_deadline => deadline_passed(),
        () = going_down => from_core(Error::shutting_down()),
    }
}

/// Sends messages to the reader until they end, the reader is gone, or the stream is stopped. Returns the
/// final status unless the stream ended normally; the query is dropped on return.
async fn pump(
    messages: Messages,
    stop: impl Future<Output = Status>,
    sender: &mpsc::Sender<std::result::Result<FlightData, Status>>,
) -> Option<Status> {
    let mut stop = pin!(stop);
    let mut messages = AssertUnwindSafe(messages).catch_unwind();
    loop {
        let permit = tokio::select! {
            biased;
            status = &mut stop => return Some(status),
            permit = sender.reserve() => permit.ok()?,
        };
        let message = tokio::select! {
            biased;
            status = &mut stop => return Some(status),
            () = sender.closed() => return None,
            message = messages.next() => message?,
        };
        match message {
            Ok(Ok(data)) => permit.send(Ok(data)),
            Ok(Err(error)) => return Some(from_core(error)),
            Err(_) => return Some(from_core(Error::internal("the query could not be completed"))),
        }
    }
}
