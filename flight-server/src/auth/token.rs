//! Bearer tokens: Handshake issues them, later calls send them. They are not stored and survive a restart.
//!
//! ```text
//! text = "kalam1." | base64url without padding of
//! version u8 (1) | user u64 | generation u32 | issued_at i64 | expires_at i64 (micros UTC)
//!     | session [16] | seal [32]
//! ```
//! All numbers are little endian. The generation is the user's at the time of issue; every change of password
//! or role increases it and so invalidates all earlier tokens. After half of a token's lifetime the server
//! returns a new token of the same session with each call, so an active client stays logged in.
//!
//! Invariant: forged, expired and outdated tokens are refused with the same message.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Buf;
use kalamdb_core::clock::{Clock, SystemClock};
use kalamdb_core::ids::UserId;
use kalamdb_core::{Database, Error, ErrorKind, SqlState};

use crate::seal::SealKey;

const PREFIX: &str = "kalam1.";
const VERSION: u8 = 1;
const BODY_BYTES: usize = 1 + 8 + 4 + 8 + 8 + 16;
const LIFETIME_US: i64 = 24 * 3_600 * 1_000_000;

/// An opened token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) user_id: UserId,
    pub(super) generation: u32,
    issued_at: i64,
    expires_at: i64,
    pub(super) session: [u8; 16],
}

/// Makes and opens tokens.
pub(super) struct Tokens {
    key: SealKey,
    clock: Arc<dyn Clock>,
}

impl Tokens {
    pub(super) fn new(database: &Database) -> Self {
        Self { key: SealKey::derive(database.secret(), "bearer token"), clock: Arc::new(SystemClock) }
    }

    /// Issues a token with a new session.
    pub(super) fn issue(&self, user_id: UserId, generation: u32) -> String {
        let issued_at = self.clock.now_us();
        let expires_at = issued_at.saturating_add(LIFETIME_US);
        self.write(Token { user_id, generation, issued_at, expires_at, session: new_session() })
    }

    /// Issues a token with another session and the expiry of `token`: logging in with a token does not extend
    /// its lifetime.
    pub(super) fn fork(&self, token: Token) -> String {
        self.write(Token { session: new_session(), ..token })
    }

    /// Issues a token with the same session and a full lifetime, once half of `token`'s lifetime is over.
    pub(super) fn renew(&self, token: Token) -> Option<String> {
        let issued_at = self.clock.now_us();
        let half = token.expires_at.saturating_sub(token.issued_at) / 2;
        let expires_at = issued_at.saturating_add(LIFETIME_US);
        (issued_at >= token.issued_at.saturating_add(half))
            .then(|| self.write(Token { issued_at, expires_at, ..token }))
    }

    fn write(&self, token: Token) -> String {
        let mut body = Vec::with_capacity(BODY_BYTES + crate::seal::MAC_BYTES);
        body.push(VERSION);
        body.extend_from_slice(&token.user_id.0.to_le_bytes());
        body.extend_from_slice(&token.generation.to_le_bytes());
        body.extend_from_slice(&token.issued_at.to_le_bytes());
        body.extend_from_slice(&token.expires_at.to_le_bytes());
        body.extend_from_slice(&token.session);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.key.seal(body)))
    }

    pub(super) fn open(&self, text: &str) -> Result<Token, Error> {
        self.read(text).ok_or_else(refused)
    }

    fn read(&self, text: &str) -> Option<Token> {
        let sealed = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let mut body = self.key.open(&sealed)?;
        if body.len() != BODY_BYTES || body.get_u8() != VERSION {
            return None;
        }
        let user_id = UserId(body.get_u64_le());
        let generation = body.get_u32_le();
        let issued_at = body.get_i64_le();
        let expires_at = body.get_i64_le();
        let mut session = [0; 16];
        body.copy_to_slice(&mut session);
        let token = Token { user_id, generation, issued_at, expires_at, session };
        (self.clock.now_us() < expires_at).then_some(token)
    }
}

fn new_session() -> [u8; 16] {
    *uuid::Uuid::new_v4().as_bytes()
}

/// Returns the error for every invalid token, whatever the reason.
pub(super) fn refused() -> Error {
    Error::new(
        ErrorKind::Unauthenticated,
        SqlState::INVALID_AUTHORIZATION,
        "the bearer token is not valid or has expired",
    )
    .hint("log in again: a Handshake with Basic credentials returns a new one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kalamdb_core::clock::ManualClock;

    fn tokens() -> (Tokens, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(1_000));
        let key = SealKey::derive(b"secret", "bearer token");
        (Tokens { key, clock: Arc::clone(&clock) as _ }, clock)
    }

    #[test]
    fn the_text_is_frozen() {
        // Version 1 | user 7 | generation 3 | issued at 1,000 | expires at 2,000 | session | seal.
        const TEXT: &str = concat!(
            "kalam1.AQcAAAAAAAAAAwAAAOgDAAAAAAAA0AcAAAAAAAAFBQUFBQUFBQUFBQUFBQUF",
            "MfRC9t2jFmK1tNxdipTtRIRitfCaC3hrb-umrAr1-rE",
        );
        let (tokens, _) = tokens();
        let (user_id, session) = (UserId(7), [5; 16]);
        let token = Token { user_id, generation: 3, issued_at: 1_000, expires_at: 2_000, session };
        assert_eq!(tokens.write(token), TEXT);
        assert_eq!(tokens.open(TEXT).unwrap(), token);
    }

    #[test]
    fn a_token_lives_a_day_and_bears_no_change() {
        let (tokens, clock) = tokens();
        let text = tokens.issue(UserId(7), 3);
        let token = tokens.open(&text).unwrap();
        assert_eq!((token.user_id, token.generation), (UserId(7), 3));

        for position in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[position] = if forged[position] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert!(tokens.open(&forged).is_err(), "{position}");
        }
        for text in ["", "kalam1.", "kalam1.AAAA", "x"] {
            assert!(tokens.open(text).is_err(), "{text}");
        }
        clock.advance(LIFETIME_US);
        assert!(tokens.open(&text).is_err());
    }

    #[test]
    fn a_token_made_of_another_is_a_session_of_its_own_until_the_same_end() {
        let (tokens, clock) = tokens();
        let token = tokens.open(&tokens.issue(UserId(7), 3)).unwrap();
        clock.advance(LIFETIME_US - 1);
        let text = tokens.fork(token);
        let other = tokens.open(&text).unwrap();
        assert_ne!(other.session, token.session);
        assert_eq!(Token { session: token.session, ..other }, token);
        clock.advance(1);
        assert!(tokens.open(&text).is_err());
    }

    #[test]
    fn a_token_is_renewed_from_half_its_life_on() {
        let (tokens, clock) = tokens();
        let text = tokens.issue(UserId(7), 3);
        let token = tokens.open(&text).unwrap();
        clock.advance(LIFETIME_US / 2 - 1);
        assert_eq!(tokens.renew(token), None);
        clock.advance(1);
        let renewed = tokens.renew(token).unwrap();
        clock.advance(LIFETIME_US - 1);
        assert!(tokens.open(&text).is_err());
        let renewed = tokens.open(&renewed).unwrap();
        assert_eq!((renewed.session, renewed.generation), (token.session, token.generation));
    }
}
