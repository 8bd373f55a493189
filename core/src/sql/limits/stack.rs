//! Stack space for deep trees. Planning, evaluating and even dropping an expression recurse as deep as the
//! statement nests. The guard bounds that depth; this module ensures the stack for it, in whatever runtime.
//!
//! A server whose threads have [`STACK_BYTES`] pays nothing here: only a nearly full stack is replaced.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::BoxStream;

use crate::workload::STACK_BYTES;

/// With less free stack than this, work continues on a new stack.
const RED_ZONE_BYTES: usize = 6 << 20;

/// Runs `work` with enough stack.
pub(crate) fn deep<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(RED_ZONE_BYTES, STACK_BYTES, work)
}

/// A future that is polled, and dropped, with enough stack.
pub(crate) struct Deep<'a, T>(Option<Pin<Box<dyn Future<Output = T> + Send + 'a>>>);

impl<'a, T> Deep<'a, T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'a) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<T> Future for Deep<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.0.as_mut() {
            Some(future) => deep(|| future.as_mut().poll(cx)),
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Deep<'_, T> {
    fn drop(&mut self) {
        if let Some(future) = self.0.take() {
            deep(|| drop(future));
        }
    }
}

/// A stream that is polled, and dropped, with enough stack.
pub(crate) struct DeepStream<T>(Option<BoxStream<'static, T>>);

impl<T> DeepStream<T> {
    pub(crate) fn new(stream: BoxStream<'static, T>) -> Self {
        Self(Some(stream))
    }
}

impl<T> Stream for DeepStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self.0.as_mut() {
            Some(stream) => deep(|| stream.as_mut().poll_next(cx)),
            None => Poll::Ready(None),
        }
    }
}

impl<T> Drop for DeepStream<T> {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            deep(|| drop(stream));
        }
    }
}
