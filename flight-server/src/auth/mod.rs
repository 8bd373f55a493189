//! Who is calling: one layer over the whole router, denying by default.
//!
//! `authorization: Basic` and `authorization: Bearer` are accepted on every call; Handshake trades the first for the second,
//! so that the slow password hash is paid once. What gets past the layer carries an [`Identity`] and a
//! [`Principal`] in its extensions; handlers take them from there and from nowhere else.
//!
//! Invariant: only the paths of `OPEN_SERVICES` and Handshake are reached without credentials. A new service is closed until
//! it is named there.

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

/// Go's client leaves the padding out, others do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An `authorization` header beyond this is not ours: tokens have some 120 bytes, passwords at most 1,024.
const AUTHORIZATION_BYTES_MAX: usize = 4_096;

/// How long a call waits for a seq that is not there yet.
const REACH_TIME_MAX: Duration = Duration::from_secs(5);

/// Which session a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SessionKey {
    /// The one of a bearer token: each Handshake makes its own.
    Token([u8; 16]),
    /// The one of an HTTP/2 connection, for clients that send Basic on every call.
    Connection(u64),
}

/// Who is calling, in which session, by which connection.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) principal: Principal,
    pub(crate) session: SessionKey,
    /// Its number.
    pub(crate) connection: u64,
}

/// What credentials are good for.
pub(crate) struct Identified {
    pub(crate) identity: Identity,
    /// The token to go on with, when the one that was sent should not be used much longer.
    pub(crate) renewed: Option<String>,
}

/// Credentials as they came.
pub(crate) enum Credentials {
    /// A name and a password.
    Basic { username: String, password: String },
    /// A token of an earlier Handshake.
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

    /// Checks credentials sent with a request on connection `connection`, and waits until what the caller has seen can be
    /// read here.
    pub(crate) async fn identify(
        &self,
        credentials: &Credentials,
        connection: u64,
        at_least: Option<Seq>,
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
        match at_least {
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
            .hint("try again, or leave the kalamdb-seq header out")),
        }
    }

    /// Checks the credentials of a Handshake; answers the bearer token to go on with. It always names a new session, so that
    /// connections that were given one token do not close each other's statements.
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
        // A password or role that changed, or a user that is gone, ends every token made before.
        let current = self.database.auth_generation(token.user_id).map_err(|_| token::refused())?;
        if current == token.generation { Ok(token) } else { Err(token::refused()) }
    }
}

impl Credentials {
    /// Reads an `authorization` header.
    ///
    /// # Errors
    /// Unauthenticated when the scheme is neither Basic nor Bearer or the rest cannot be read.
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

    /// Reads the token a Flight client sends back as it came: the payload of its Handshake, in base64.
    ///
    /// # Errors
    /// Unauthenticated when it is no text.
    pub(crate) fn parse_flight_token(header: &[u8]) -> Result<Self, Error> {
        if header.len() > AUTHORIZATION_BYTES_MAX {
            return Err(malformed());
        }
        let decoded = BASE64.decode(header).map_err(|_| malformed())?;
        String::from_utf8(decoded).map(Self::Bearer).map_err(|_| malformed())
    }
}

/// The answer to a call without credentials.
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
