//! Authentication: one layer over the whole router that denies by default.
//!
//! Every call accepts `authorization: Basic` and `authorization: Bearer`. Handshake trades the first for the
//! second, so a client pays for the slow password hash once. Behind the layer, a request with credentials
//! carries an [`Identity`] and a [`Principal`] in its extensions; handlers read them only there.
//!
//! Invariant: only Handshake and the paths of `OPEN_SERVICES` are reachable without credentials. A new
//! service is closed until it is named there.

mod layer;
mod login;
mod token;

use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use kalamdb_core::access::Principal;
use kalamdb_core::{Database, Error, ErrorKind, Seq, SqlState};

pub(crate) use self::layer::{AuthLayer, Deadline};
use self::login::Logins;
use self::token::{Token, Tokens};

/// Go's client omits the padding, other clients do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Longer `authorization` headers are not ours: tokens have about 120 bytes, passwords at most 1,024.
const AUTHORIZATION_BYTES_MAX: usize = 4_096;

/// How long a call waits for a seq that is not reached yet.
const REACH_TIME_MAX: Duration = Duration::from_secs(5);

/// Which session a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SessionKey {
    /// The session of a bearer token; each Handshake creates one.
    Token([u8; 16]),
    /// The session of an HTTP/2 connection, for clients that send Basic on every call.
    Connection(u64),
}

/// The caller, its session and its connection.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) principal: Principal,
    pub(crate) session: SessionKey,
    /// The connection's number.
    pub(crate) connection: u64,
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
}

impl Authenticator {
    pub(crate) fn new(database: Database) -> Self {
        let tokens = Tokens::new(&database);
        let logins = Logins::new(database.clone());
        Self { database, tokens, logins }
    }

    /// Checks the credentials of a request on connection `connection`, then waits until the commit `min_seq`
    /// is readable.
    pub(crate) async fn identify(
        &self,
        credentials: &Credentials,
        connection: u64,
        min_seq: Option<Seq>,
    ) -> Result<Identified, Error> {
        let identified = match credentials {
            Credentials::Bearer(text) => self.identify_bearer(text, connection)?,
            Credentials::Basic { username, password } => {
                let principal = self.logins.verify(username, password).await?;
                let session = SessionKey::Connection(connection);
                let identity = Identity { principal, session, connection };
                Identified { identity, renewed: None }
            }
        };
        match min_seq {
            Some(seq) if seq > self.database.seq() => self.reach(seq).await?,
            _ => {}
        }
        Ok(identified)
    }

    async fn reach(&self, seq: Seq) -> Result<(), Error> {
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

    /// Checks the credentials of a Handshake and returns a bearer token. The token always names a new
    /// session, so that connections that share a token do not close each other's statements.
    pub(crate) async fn handshake(&self, credentials: &Credentials) -> Result<String, Error> {
        match credentials {
            Credentials::Bearer(text) => Ok(self.tokens.fork(self.open_token(text)?)),
            Credentials::Basic { username, password } => {
                let principal = self.logins.verify(username, password).await?;
                let generation = self.database.auth_generation(principal.user_id)?;
                Ok(self.tokens.issue(principal.user_id, generation))
            }
        }
    }

    fn identify_bearer(&self, text: &str, connection: u64) -> Result<Identified, Error> {
        let token = self.open_token(text)?;
        let principal = self.database.principal(token.user_id).map_err(|_| token::refused())?;
        let identity = Identity { principal, session: SessionKey::Token(token.session), connection };
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
