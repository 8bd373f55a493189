//! The tower layer in front of every service of the router.
//!
//! Invariant: the layer passes a request on only if its path is open or its extensions carry an identity.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use kalamdb_core::{Error, Seq, parse_time};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument;

use super::{Authenticator, Credentials, Identified, Origin, missing, session_name};
use crate::connection::{CallGuard, ConnectionInfo};
use crate::status::{add_sqlstate, to_status};

const HANDSHAKE: &str = "/arrow.flight.protocol.FlightService/Handshake";

/// The header in which Flight's clients (C++, pyarrow's `authenticate`) return their Handshake payload.
const FLIGHT_TOKEN: &str = "auth-token-bin";

/// The header in which a caller passes on the seq of a result or a commit.
const SEQ_HEADER: &str = "kalamdb-seq";

/// The header with the `statement_timeout` of a call.
const TIMEOUT_HEADER: &str = "kalamdb-statement-timeout";

/// The most characters of a client's name.
const APPLICATION_CHARS_MAX: usize = 128;

/// Services that need no credentials. The router has reflection only if the settings enable it.
const OPEN_SERVICES: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

/// The time when the caller gives up, from the `grpc-timeout` header. Tonic ends the call itself at that
/// time; a stream that outlives the call must check the deadline itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub(crate) Instant);

/// Puts [`AuthService`] before a service.
#[derive(Clone)]
pub(crate) struct AuthLayer {
    authenticator: Arc<Authenticator>,
}

impl AuthLayer {
    pub(crate) fn new(authenticator: Arc<Authenticator>) -> Self {
        Self { authenticator }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;

    fn layer(&self, inner: S) -> AuthService<S> {
        AuthService { authenticator: Arc::clone(&self.authenticator), inner }
    }
}

/// Identifies the caller, then calls the inner service.
#[derive(Clone)]
pub(crate) struct AuthService<S> {
    authenticator: Arc<Authenticator>,
    inner: S,
}

impl<S> Service<Request<Body>> for AuthService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Call the service that was polled ready; its clone takes the next request.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let authenticator = Arc::clone(&self.authenticator);
        let method = request.uri().path().to_owned();
        let request_id = uuid::Uuid::new_v4().simple().to_string();
        let peer =
            request.extensions().get::<ConnectionInfo>().map(|info| tracing::field::display(info.peer()));
        let span = tracing::info_span!("request", request_id, method, peer, user = tracing::field::Empty);
        let recorder = span.clone();
        let work = async move {
            let timeout = grpc_timeout(request.headers());
            if let Some(deadline) = timeout.and_then(|timeout| Instant::now().checked_add(timeout)) {
                request.extensions_mut().insert(Deadline(deadline));
            }
            if is_open(&method) {
                let call = begin_call(request.extensions().get());
                return match call {
                    Ok(call) => {
                        let mut response = inner.call(request).await?;
                        add_sqlstate(response.headers_mut());
                        Ok(response.map(|body| held(body, call)))
                    }
                    Err(error) => Ok(to_status(&error).into_http()),
                };
            }
            // A body is not `Sync`, so the future borrows nothing of the request across an await.
            let asked = Asked::read(&request);
            match identify(&authenticator, asked).await {
                Ok(Identified { identity, renewed }) => {
                    recorder.record("user", &*identity.principal.username);
                    request.extensions_mut().insert(identity);
                    let mut response = inner.call(request).await?;
                    add_sqlstate(response.headers_mut());
                    if let Some(header) = renewed.and_then(|token| format!("Bearer {token}").parse().ok()) {
                        response.headers_mut().insert(AUTHORIZATION, header);
                    }
                    Ok(response)
                }
                Err(error) => {
                    if let Some(connection) = request.extensions().get::<ConnectionInfo>().cloned() {
                        connection.discard(request.into_body());
                    }
                    Ok(to_status(&error).into_http())
                }
            }
        };
        Box::pin(work.instrument(span))
    }
}

/// What the layer reads of a request.
struct Asked {
    credentials: Credentials,
    origin: Origin,
    /// The lowest seq that the call must see: one that the caller has seen elsewhere.
    min_seq: Option<Seq>,
}

impl Asked {
    fn read(request: &Request<Body>) -> Result<Self, Error> {
        let headers = request.headers();
        let connection = request.extensions().get::<ConnectionInfo>().cloned();
        Ok(Self {
            credentials: credentials(headers)?,
            origin: Origin {
                connection,
                session_name: session_name(headers)?,
                application: application(headers),
                statement_timeout: statement_timeout(headers)?,
            },
            min_seq: min_seq(headers),
        })
    }
}

/// Checks the credentials of a request, then waits until it can see what it must see.
async fn identify(authenticator: &Authenticator, asked: Result<Asked, Error>) -> Result<Identified, Error> {
    let Asked { credentials, origin, min_seq } = asked?;
    let waiting = origin.connection.as_ref().map_or(Ok(None), ConnectionInfo::begin_waiting)?;
    let identified = authenticator.identify(&credentials, origin).await?;
    drop(waiting);
    if let Some(seq) = min_seq {
        authenticator.reach(seq).await?;
    }
    Ok(identified)
}

fn begin_call(connection: Option<&ConnectionInfo>) -> Result<Option<CallGuard>, Error> {
    connection.map_or(Ok(None), ConnectionInfo::begin_call)
}

/// Keeps a call counted until its answer is sent.
fn held(body: Body, call: Option<CallGuard>) -> Body {
    match call {
        Some(call) => Body::new(HeldBody { body, _call: call }),
        None => body,
    }
}

/// The answer of a call that is counted as in flight.
struct HeldBody {
    body: Body,
    _call: CallGuard,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn is_open(path: &str) -> bool {
    path == HANDSHAKE || OPEN_SERVICES.iter().any(|service| path.starts_with(service))
}

fn credentials(headers: &HeaderMap) -> Result<Credentials, Error> {
    if let Some(header) = headers.get(AUTHORIZATION) {
        return Credentials::parse(header.as_bytes());
    }
    match headers.get(FLIGHT_TOKEN) {
        Some(header) => Credentials::parse_flight_token(header.as_bytes()),
        None => Err(missing()),
    }
}

/// Returns what the client calls itself.
fn application(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(USER_AGENT)?.to_str().ok()?;
    Some(text.chars().take(APPLICATION_CHARS_MAX).collect())
}

/// Reads the `statement_timeout` of a call, in the units of SET.
fn statement_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(header) = headers.get(TIMEOUT_HEADER) else { return Ok(None) };
    let ms = parse_time(TIMEOUT_HEADER, header.to_str().unwrap_or_default())?;
    Ok(Some(Duration::from_millis(ms)))
}

fn min_seq(headers: &HeaderMap) -> Option<Seq> {
    headers.get(SEQ_HEADER)?.to_str().ok()?.parse().ok().map(Seq)
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3_600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_paths_are_open() {
        assert!(is_open(HANDSHAKE));
        assert!(is_open("/grpc.health.v1.Health/Check"));
        for path in [
            "",
            "/",
            "/arrow.flight.protocol.FlightService/DoGet",
            "/kalamdb.live.v1.LiveQuery/Subscribe",
            "/new",
        ] {
            assert!(!is_open(path), "{path}");
        }
    }

    #[test]
    fn a_call_may_say_how_long_its_statements_may_take() {
        let check = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT_HEADER, text.parse().unwrap());
            statement_timeout(&headers)
        };
        assert_eq!(statement_timeout(&HeaderMap::new()).unwrap(), None);
        for (text, ms) in [("0", 0), ("250", 250), ("5s", 5_000), ("2min", 120_000)] {
            assert_eq!(check(text).unwrap(), Some(Duration::from_millis(ms)));
        }
        for bad in ["", "soon", "-1", "5 hours"] {
            assert_eq!(check(bad).unwrap_err().sqlstate().0, "22023", "{bad}");
        }
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let check = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&headers)
        };
        assert_eq!(check("100m"), Some(Duration::from_millis(100)));
        assert_eq!(check("2S"), Some(Duration::from_secs(2)));
        assert_eq!(check("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for bad in ["", "S", "5", "5x", "999999999S", "-1S"] {
            assert_eq!(check(bad), None, "{bad}");
        }
    }
}
