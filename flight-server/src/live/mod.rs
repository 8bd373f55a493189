//! The gRPC service `kalamdb.live.v1.LiveQuery`.
//!
//! This is our own tower service because the generated one copies every message into a new buffer. Here a
//! frame's rows are sent from the buffer that all subscribers of the query share, and an idle subscriber
//! holds no buffer. The core defines what the frames mean.
//!
//! Invariant: dropping a response's body, which the transport does when the client is gone, drops the
//! subscription.

mod request;
mod wire;

pub(crate) use self::wire::frame_header;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures::Stream;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use http_body::{Body as HttpBody, Frame as HttpFrame};
use kalamdb_core::live_query::{CloseReason, FrameBody, Subscription};
use kalamdb_core::{Database, Error, ErrorKind, SqlState};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder, Streaming};
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::auth::Identity;
use crate::sessions::Sessions;
use crate::status::{plain, to_status};

/// The path of the only method.
const SUBSCRIBE_PATH: &str = "/kalamdb.live.v1.LiveQuery/Subscribe";
/// The largest request; SQL and parameters have smaller limits.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// The service, for a tonic router whose auth layer puts an identity into the requests' extensions.
#[derive(Clone)]
pub struct LiveQueryService {
    database: Database,
    sessions: Arc<Sessions>,
    shutdown: CancellationToken,
}

/// Creates the service. Its streams end with a `closed` frame and UNAVAILABLE once `shutdown` is cancelled.
pub(crate) fn service(
    database: Database,
    sessions: Arc<Sessions>,
    shutdown: CancellationToken,
) -> LiveQueryService {
    LiveQueryService { database, sessions, shutdown }
}

impl NamedService for LiveQueryService {
    const NAME: &'static str = "kalamdb.live.v1.LiveQuery";
}

impl tower_service::Service<http::Request<Body>> for LiveQueryService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let started = match request.uri().path() {
                SUBSCRIBE_PATH => service.subscribe(request).await,
                path => Err(Error::unsupported(format!("method \"{path}\""))),
            };
            Ok(started.unwrap_or_else(|error| to_status(&error).into_http()))
        })
    }
}

impl LiveQueryService {
    async fn subscribe(self, request: http::Request<Body>) -> Result<http::Response<Body>, Error> {
        let (head, body) = request.into_parts();
        let identity = head.extensions.get::<Identity>().ok_or_else(crate::auth::missing)?;
        // The session of the client's statements, so that a live query sees what `USE` has set.
        let session = self.sessions.resolve(&self.database, identity)?.in_call(&identity.call());
        if head.headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
            return Err(Error::unsupported("a compressed request"));
        }
        let mut messages = Streaming::new_request(RawDecoder, body, None, Some(REQUEST_BYTES_MAX));
        let message = messages.message().await.map_err(unreadable)?;
        let request = request::decode(message.ok_or_else(|| Error::invalid("the call has no request"))?)?;
        let subscription = session.subscribe(request).await?;

        let mut response = http::Response::new(Body::new(FrameStream {
            state: State::Running(subscription),
            shutdown: Box::pin(self.shutdown.cancelled_owned()),
        }));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }
}

/// A response's body: gRPC messages, then the status as trailers.
struct FrameStream {
    state: State,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

enum State {
    /// The subscription may yield frames.
    Running(Subscription),
    /// A frame's rows must be sent next, then `Running`.
    Rows(Bytes, Subscription),
    /// The status must be sent next.
    Ending(Status),
    /// Everything was sent.
    Ended,
}

impl HttpBody for FrameStream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, Status>>> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Running(subscription) => self.poll_running(subscription, context),
            State::Rows(rows, subscription) => {
                self.state = State::Running(subscription);
                Poll::Ready(Some(Ok(HttpFrame::data(rows))))
            }
            State::Ending(status) => {
                let mut trailers = http::HeaderMap::new();
                Poll::Ready(Some(status.add_header(&mut trailers).map(|()| HttpFrame::trailers(trailers))))
            }
            State::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

impl FrameStream {
    fn poll_running(
        &mut self,
        mut subscription: Subscription,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, Status>>> {
        if self.shutdown.as_mut().poll(context).is_ready() {
            self.state = State::Ending(plain(&Error::shutting_down()));
            return Poll::Ready(Some(Ok(HttpFrame::data(wire::closed_by_shutdown()))));
        }
        match Pin::new(&mut subscription).poll_next(context) {
            Poll::Pending => {
                self.state = State::Running(subscription);
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                let wire = wire::encode(&frame);
                let end = match &frame.body {
                    FrameBody::Closed { reason, message, .. } => end_error(*reason, message),
                    _ => None,
                };
                self.state = match (end, wire.ipc) {
                    (Some(end), _) => State::Ending(plain(&end)),
                    (None, Some(rows)) => State::Rows(rows, subscription),
                    (None, None) => State::Running(subscription),
                };
                Poll::Ready(Some(Ok(HttpFrame::data(wire.head))))
            }
            Poll::Ready(Some(Err(error))) => self.end(failure_status(&error), context),
            Poll::Ready(None) => self.end(Status::new(Code::Ok, ""), context),
        }
    }

    fn end(
        &mut self,
        status: Status,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, Status>>> {
        self.state = State::Ending(status);
        Pin::new(self).poll_frame(context)
    }
}

/// Turns the transport's status for an unreadable request into an error.
fn unreadable(status: Status) -> Error {
    let error = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => Error::new(
            ErrorKind::ResourceExhausted,
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("a request is larger than {REQUEST_BYTES_MAX} bytes"),
        ),
        _ => Error::new(
            ErrorKind::InvalidArgument,
            SqlState::CONNECTION_EXCEPTION,
            "the call's request cannot be read",
        ),
    };
    error.source(status)
}

/// Returns the error after a `closed` frame, with the codes of `live.proto`. `None` after a requested end,
/// and after a failure, whose own error is the subscription's last item.
pub(crate) fn end_error(reason: CloseReason, message: &str) -> Option<Error> {
    let (kind, sqlstate) = match reason {
        CloseReason::Completed | CloseReason::Failed => return None,
        CloseReason::Killed => (ErrorKind::Cancelled, SqlState::QUERY_CANCELED),
        CloseReason::TableDropped => (ErrorKind::NotFound, SqlState::UNDEFINED_TABLE),
        CloseReason::SchemaChanged => (ErrorKind::Conflict, SqlState::SERIALIZATION_FAILURE),
        CloseReason::AccessChanged => (ErrorKind::Conflict, SqlState::INVALID_AUTHORIZATION),
        CloseReason::UserDropped => (ErrorKind::PermissionDenied, SqlState::INVALID_AUTHORIZATION),
        CloseReason::Shutdown => (ErrorKind::Unavailable, SqlState::SHUTTING_DOWN),
    };
    Some(Error::new(kind, sqlstate, message))
}

/// Returns the status of a failed live query: INTERNAL, as `live.proto` says, with the error's message.
fn failure_status(error: &Error) -> Status {
    let status = to_status(error);
    Status::with_metadata(Code::Internal, status.message(), status.metadata().clone())
}

/// Passes messages on undecoded, because the generated code would skip unknown fields that a client set.
struct RawDecoder;

impl Decoder for RawDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = source.remaining();
        Ok(Some(source.copy_to_bytes(length)))
    }
}
