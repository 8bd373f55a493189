//! Authentication: one layer over the whole router that denies by default.
//!
//! Every call accepts `authorization: Basic` and `authorization: Bearer`. Handshake trades the first for the
//! second, so a client pays for the slow password hash once. Behind the layer, a request with credentials
//! carries an [`Identity`] in its extensions; handlers find the caller only there.
//!
//! Invariant: only Handshake and the paths of `OPEN_SERVICES` are reachable without credentials. A new
//! service is closed until it is named there.

mod cookie;
mod layer;
mod login;
mod token;
mod turns;

use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use kalamdb_core::access::Principal;
use kalamdb_core::{Call, Database, Error, ErrorKind, Seq, SqlState};
use tonic::metadata::{Ascii, MetadataValue};

pub(crate) use self::cookie::{SET_COOKIE, SessionName, new_session_name, session_name};
pub(crate) use self::layer::{AuthLayer, Deadline};
use self::login::Logins;
use self::token::{Token, Tokens};
use crate::config::ServerConfig;
use crate::connection::ConnectionInfo;

/// Go's client omits the padding, other clients do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Longer `authorization` headers are not ours: tokens have about 120 bytes, passwords at most 1,024.
const AUTHORIZATION_BYTES_MAX: usize = 4_096;

/// How long a call waits for a seq that is not reached yet.
const REACH_TIME_MAX: Duration = Duration::from_secs(5);

/// Which session of its user a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SessionKey {
    /// The session of an HTTP/2 connection and the bearer token sent over it; `None` for Basic credentials.
    /// So clients that were given the same token do not see each other's `USE`.
    Connection {
        /// The session's part of the token; each Handshake makes another one.
        token: Option<[u8; 16]>,
        /// The connection's number.
        connection: u64,
    },
    /// The session whose name the client sends.
    Named(SessionName),
}

impl SessionKey {
    /// Whether the client sent the name of the session.
    pub(crate) fn is_named(self) -> bool {
        matches!(self, Self::Named(_))
    }
}

/// The caller, its session and its connection.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) principal: Principal,
    pub(crate) session: SessionKey,
    pub(crate) connection: Option<ConnectionInfo>,
    /// What the client calls itself.
    pub(crate) application: Option<String>,
    /// The `statement_timeout` of the call.
    pub(crate) statement_timeout: Option<Duration>,
}

impl Identity {
    /// Returns a call of the client, with the limits that it asks for.
    pub(crate) fn call(&self) -> Call {
        self.statement_timeout.map_or_else(Call::default, Call::with_timeout)
    }

    /// Whether the client sent the name of its session.
    pub(crate) fn has_named_session(&self) -> bool {
        self.session.is_named()
    }
}

/// What a request shows of its sender besides its credentials.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) connection: Option<ConnectionInfo>,
    pub(crate) session_name: Option<SessionName>,
    pub(crate) application: Option<String>,
    pub(crate) statement_timeout: Option<Duration>,
}

impl Origin {
    fn identity(self, principal: Principal, token: Option<[u8; 16]>) -> Identity {
        let session = match self.session_name {
            Some(name) => SessionKey::Named(name),
            None => {
                let connection = self.connection.as_ref().map_or(0, ConnectionInfo::number);
                SessionKey::Connection { token, connection }
            }
        };
        let Self { connection, application, statement_timeout, .. } = self;
        Identity { principal, session, connection, application, statement_timeout }
    }
}

/// The result of a successful credentials check.
pub(crate) struct Identified {
    pub(crate) identity: Identity,
    /// A new token, when the client should soon replace the one it sent.
    pub(crate) renewed: Option<String>,
}

/// Credentials as received.
pub(crate) enum Credentials {
    /// A name and a password.
    Basic { username: String, password: String },
    /// A token from an earlier Handshake.
    Bearer(String),
}

/// Checks credentials and makes tokens.
pub(crate) struct Authenticator {
    database: Database,
    tokens: Tokens,
    logins: Logins,
    /// Whether connections are encrypted.
    has_tls: bool,
}

impl Authenticator {
    pub(crate) fn new(database: Database, config: &ServerConfig) -> Self {
        let tokens = Tokens::new(&database);
        let logins = Logins::new(database.clone(), config.logins_waiting_max);
        Self { database, tokens, logins, has_tls: config.tls.is_some() }
    }

    /// Checks the credentials of a request, and records the login on its connection.
    pub(crate) async fn identify(
        &self,
        credentials: &Credentials,
        origin: Origin,
    ) -> Result<Identified, Error> {
        let identified = match credentials {
            Credentials::Bearer(text) => self.identify_bearer(text, origin)?,
            Credentials::Basic { username, password } => {
                let principal = self.verify(username, password, origin.connection.as_ref()).await?;
                Identified { identity: origin.identity(principal, None), renewed: None }
            }
        };
        if let Some(connection) = &identified.identity.connection {
            connection.mark_logged_in(identified.identity.principal.user_id)?;
        }
        Ok(identified)
    }

    /// Returns the cookie that tells the name of a session to its client.
    pub(crate) fn session_cookie(&self, name: SessionName) -> Result<MetadataValue<Ascii>, Error> {
        cookie::cookie(name, self.has_tls)
    }

    /// Waits until commit `seq` is readable.
    pub(crate) async fn reach(&self, seq: Seq) -> Result<(), Error> {
        if seq <= self.database.seq() {
            return Ok(());
        }
        match tokio::time::timeout(REACH_TIME_MAX, self.database.wait_for(seq)).await {
            Ok(reached) => reached,
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                SqlState::OBJECT_NOT_IN_STATE,
                format!("the server has not reached seq {seq}"),
            )
            .hint("try again, or omit the kalamdb-seq header")),
        }
    }

    /// Checks the credentials of a Handshake and returns a bearer token. Each token is another one, so calls
    /// that send no name of a session begin a session with it, also on a connection that has one already.
    pub(crate) async fn handshake(
        &self,
        credentials: &Credentials,
        connection: Option<&ConnectionInfo>,
    ) -> Result<String, Error> {
        let (user, token) = match credentials {
            Credentials::Bearer(text) => {
                let token = self.open_token(text)?;
                (token.user_id, self.tokens.fork(token))
            }
            Credentials::Basic { username, password } => {
                let principal = self.verify(username, password, connection).await?;
                let generation = self.database.auth_generation(principal.user_id)?;
                (principal.user_id, self.tokens.issue(principal.user_id, generation))
            }
        };
        if let Some(connection) = connection {
            connection.mark_logged_in(user)?;
        }
        Ok(token)
    }

    async fn verify(
        &self,
        username: &str,
        password: &str,
        connection: Option<&ConnectionInfo>,
    ) -> Result<Principal, Error> {
        let Some(connection) = connection else {
            return self.logins.verify(username, password, Ipv4Addr::UNSPECIFIED.into()).await;
        };
        // The connection stays open while its login waits.
        let _login = connection.begin_login();
        let _turn = connection.login_turn().await;
        let verified = self.logins.verify(username, password, connection.site()).await;
        if verified.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unauthenticated) {
            connection.note_failed_login();
        }
        verified
    }

    fn identify_bearer(&self, text: &str, origin: Origin) -> Result<Identified, Error> {
        let token = self.open_token(text)?;
        let principal = self.database.principal(token.user_id).map_err(|_| token::refused())?;
        let identity = origin.identity(principal, Some(token.session));
        Ok(Identified { identity, renewed: self.tokens.renew(token) })
    }

    fn open_token(&self, text: &str) -> Result<Token, Error> {
        let token = self.tokens.open(text)?;
        // A changed password or role, or a dropped user, invalidates all earlier tokens.
        let current = self.database.auth_generation(token.user_id).map_err(|_| token::refused())?;
        if current == token.generation { Ok(token) } else { Err(token::refused()) }
    }
}

impl Credentials {
    /// Reads an `authorization` header.
    ///
    /// # Errors
    /// Unauthenticated when the scheme is neither Basic nor Bearer or the rest is malformed.
    pub(crate) fn parse(header: &[u8]) -> Result<Self, Error> {
        if header.len() > AUTHORIZATION_BYTES_MAX {
            return Err(malformed());
        }
        let text = std::str::from_utf8(header).map_err(|_| malformed())?;
        let (scheme, rest) = text.split_once(' ').ok_or_else(malformed)?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Self::Bearer(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(malformed());
        }
        let decoded = BASE64.decode(rest).map_err(|_| malformed())?;
        let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
        let (username, password) = decoded.split_once(':').ok_or_else(malformed)?;
        Ok(Self::Basic { username: username.to_owned(), password: password.to_owned() })
    }

    /// Reads the token that a Flight client returns unchanged: the base64 payload of its Handshake.
    ///
    /// # Errors
    /// Unauthenticated when it is not base64 of UTF-8 text.
    pub(crate) fn parse_flight_token(header: &[u8]) -> Result<Self, Error> {
        if header.len() > AUTHORIZATION_BYTES_MAX {
            return Err(malformed());
        }
        let decoded = BASE64.decode(header).map_err(|_| malformed())?;
        String::from_utf8(decoded).map(Self::Bearer).map_err(|_| malformed())
    }
}

/// Returns the error for a call without credentials.
pub(crate) fn missing() -> Error {
    unauthenticated("no credentials were sent")
        .hint("send \"authorization: Basic ...\" or, after a Handshake, \"authorization: Bearer ...\"")
}

fn malformed() -> Error {
    unauthenticated("the authorization header cannot be read").hint("use the scheme Basic or Bearer")
}

fn unauthenticated(message: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, SqlState::INVALID_AUTHORIZATION, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_is_read_with_and_without_padding_in_any_case() {
        for header in ["Basic cm9vdDpwYXNz", "basic cm9vdDpwYTpz", "BASIC YTpi", "Basic YTo=", "Basic YTo"] {
            assert!(
                matches!(Credentials::parse(header.as_bytes()), Ok(Credentials::Basic { .. })),
                "{header}"
            );
        }
        let Ok(Credentials::Basic { username, password }) = Credentials::parse(b"Basic cm9vdDpwYTpz") else {
            panic!("basic credentials");
        };
        assert_eq!((username.as_str(), password.as_str()), ("root", "pa:s"));
    }

    #[test]
    fn what_is_no_credential_is_refused() {
        let long = "Bearer ".to_owned() + &"x".repeat(5_000);
        for header in ["", "Basic", "Basic !!!", "Digest abc", "Basic cm9vdA==", long.as_str()] {
            assert!(Credentials::parse(header.as_bytes()).is_err(), "{header}");
        }
    }
}
