//! Handshake: trades Basic credentials for a bearer token.
//!
//! Drivers send credentials in the `authorization` header (JDBC, ADBC, ODBC, pyarrow's basic token) or as a
//! `BasicAuth` message (older Flight clients). The token returns in headers, in trailers and as the payload,
//! so each kind finds it. A client that sends no name of a session gets one as a cookie.
//!
//! Invariant: every Handshake returns a token that no other one has returned, even one with a valid bearer
//! token, which JDBC sends if it was given one. A session begins with the first call that sends the token.

use arrow_flight::{BasicAuth, HandshakeRequest, HandshakeResponse};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use kalamdb_core::{Error, Result};
use prost::Message;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Response, Status};

use crate::auth::{Authenticator, Credentials, SET_COOKIE, missing, new_session_name, session_name};
use crate::connection::ConnectionInfo;

/// The messages of a Handshake's answer.
pub(super) type HandshakeStream = BoxStream<'static, std::result::Result<HandshakeResponse, Status>>;

/// Checks the credentials of a Handshake and returns a bearer token.
pub(super) async fn log_in(
    authenticator: &Authenticator,
    headers: MetadataMap,
    connection: Option<&ConnectionInfo>,
    mut messages: impl Stream<Item = std::result::Result<HandshakeRequest, Status>> + Unpin + Send,
) -> Result<Response<HandshakeStream>> {
    let (credentials, protocol_version) = match headers.get("authorization") {
        Some(header) => (Credentials::parse(header.as_bytes())?, 0),
        None => {
            let first = messages.next().await.ok_or_else(missing)?.map_err(|_| missing())?;
            (credentials_of(&first)?, first.protocol_version)
        }
    };
    let has_name = session_name(headers.as_ref())?.is_some();
    let token = authenticator.handshake(&credentials, connection).await?;
    let payload = HandshakeResponse { protocol_version, payload: token.clone().into_bytes().into() };
    let header = MetadataValue::<Ascii>::try_from(format!("Bearer {token}"))
        .map_err(|error| Error::internal("a token is not a header value").source(error))?;
    let mut trailers = MetadataMap::new();
    trailers.insert("authorization", header.clone());
    // Tonic accepts extra trailers only as a success status at the end of the stream.
    let end = Status::with_metadata(Code::Ok, "", trailers);
    let mut response = Response::new(stream::iter([Ok(payload), Err(end)]).boxed());
    response.metadata_mut().insert("authorization", header);
    if !has_name {
        let cookie = authenticator.session_cookie(new_session_name())?;
        response.metadata_mut().insert(SET_COOKIE, cookie);
    }
    Ok(response)
}

fn credentials_of(message: &HandshakeRequest) -> Result<Credentials> {
    let BasicAuth { username, password } =
        BasicAuth::decode(message.payload.clone()).map_err(|_| missing())?;
    if username.is_empty() {
        return Err(missing());
    }
    Ok(Credentials::Basic { username, password })
}
