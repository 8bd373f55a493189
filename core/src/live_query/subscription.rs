//! One subscriber's stream of frames, as the embedding program and the server see it.
//!
//! Invariant: dropping the stream ends the live query.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use datafusion::arrow::datatypes::SchemaRef;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use super::SubscribeRequest;
use super::driver::Driver;
use super::frame::Frame;
use super::registry::{LiveState, Membership, Registered};
use super::start::Start;
use crate::commit::Snapshot;
use crate::error::Result;
use crate::ids::SubscriptionId;

/// A running live query: a stream of frames. Dropping it ends the live query.
///
/// The stream ends after a [`Closed`](super::FrameBody::Closed) frame. After a failure, the error follows as
/// the last item.
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
        let driver = Driver::new(state, registered, membership, start, snapshot, request);
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
