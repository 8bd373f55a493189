//! Runs calls on their own runtime, apart from the connections they arrived on.
//!
//! A call parses, reads by key, writes a few rows and delivers; what its statement costs beyond that runs on
//! the engine of the core. Many calls at once are work all the same. Invariant: they occupy only the threads
//! of that runtime, so connections, keep-alives and signals are served under any load.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use kalamdb_core::Error;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;
use tracing::Instrument;

use crate::status::to_status;

/// A service whose calls run on `runtime`.
#[derive(Clone, Debug)]
pub(crate) struct Offloaded<S> {
    inner: S,
    runtime: Handle,
}

impl<S> Offloaded<S> {
    /// Runs the calls of `inner` on `runtime`; the caller's runtime reads their responses.
    pub(crate) fn new(inner: S, runtime: Handle) -> Self {
        Self { inner, runtime }
    }
}

impl<S: NamedService> NamedService for Offloaded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Offloaded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = self.inner.call(request).in_current_span();
        // A caller that disconnects drops the future and with it the set, which aborts the call.
        let mut task = JoinSet::new();
        task.spawn_on(call, &self.runtime);
        async move {
            match task.join_next().await {
                Some(Ok(response)) => response,
                ended => {
                    tracing::error!(?ended, "a call panicked or was aborted");
                    Ok(to_status(&Error::internal("the call could not be completed")).into_http())
                }
            }
        }
        .boxed()
    }
}
