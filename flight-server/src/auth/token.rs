//! Bearer tokens: what Handshake answers and every later call brings back. Nothing is stored, so they survive a restart.
//!
//! ```text
//! text = "kalam1." | base64url without padding of
//! version u8 (1) | user u64 | generation u32 | issued_at i64 | expires_at i64 (micros UTC) | session [16] | seal [32]
//! ```
//! All numbers little endian. The generation is the user's at the time of issue; it grows with every change of password or
//! role, which so ends all earlier tokens.
//!
//! Invariant: forged, expired and outdated tokens are refused in the same words.

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
pub(super) struct Token {
    pub(super) user_id: UserId,
    pub(super) generation: u32,
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

    pub(super) fn issue(&self, user_id: UserId, generation: u32) -> String {
        let now_us = self.clock.now_us();
        let mut body = Vec::with_capacity(BODY_BYTES + crate::seal::MAC_BYTES);
        body.push(VERSION);
        body.extend_from_slice(&user_id.0.to_le_bytes());
        body.extend_from_slice(&generation.to_le_bytes());
        body.extend_from_slice(&now_us.to_le_bytes());
        body.extend_from_slice(&now_us.saturating_add(LIFETIME_US).to_le_bytes());
        body.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
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
        let _issued_at = body.get_i64_le();
        let expires_at = body.get_i64_le();
        let mut session = [0; 16];
        body.copy_to_slice(&mut session);
        (self.clock.now_us() < expires_at).then_some(Token { user_id, generation, session })
    }
}

/// The answer to every token that is not good, whatever is wrong with it.
pub(super) fn refused() -> Error {
    Error::new(
        ErrorKind::Unauthenticated,
        SqlState::INVALID_AUTHORIZATION,
        "the bearer token is not valid or has expired",
    )
    .hint("log in again: a Handshake with Basic credentials answers a new one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kalamdb_core::clock::ManualClock;

    #[test]
    fn a_token_lives_a_day_and_bears_no_change() {
        let clock = Arc::new(ManualClock::new(1_000));
        let tokens =
            Tokens { key: SealKey::derive(b"secret", "bearer token"), clock: Arc::clone(&clock) as _ };
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
}
