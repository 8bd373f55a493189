//! Resume tokens: a subscriber's position, sealed. Only this database's tokens for the same query are valid.
//!
//! ```text
//! format u8 = 1 | database id 16 | query fingerprint 16 | table id u32 | schema version u32
//! | security fingerprint 8 | positions u8 | per position: shard u16, epoch u32, seq u64
//! | HMAC-SHA256 over everything before, 32
//! ```
//! Numbers are little endian.
//!
//! Invariant: a token with a wrong seal, format or query is refused. A token of another database, or a valid
//! one whose position is gone, gets a RESET. So no client can start at a position it was never given.

use std::fmt;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::frame::ResetReason;
use crate::error::{Error, Result};
use crate::ids::{DatabaseId, Epoch, SchemaVersion, ScopeId, Seq, Shard, TableId};

const FORMAT: u8 = 1;
const SEAL_BYTES: usize = 32;
/// The most bytes of a token; there is one shard today.
const TOKEN_BYTES_MAX: usize = 4_096;

/// The first sixteen bytes of the SHA-256 of a query's canonical text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint(pub(crate) [u8; 16]);

impl Fingerprint {
    /// Returns the fingerprint of a canonical text.
    pub(crate) fn of(text: &str) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(Sha256::digest(text.as_bytes())) {
            *to = from;
        }
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a principal may see of a table, as eight bytes. Today only the scope decides that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SecurityFingerprint(pub(crate) [u8; 8]);

impl SecurityFingerprint {
    /// Returns the fingerprint of a scope.
    pub(crate) fn of(scope: ScopeId) -> Self {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(Sha256::digest(scope.0.to_le_bytes())) {
            *to = from;
        }
        Self(bytes)
    }
}

/// What a token is bound to; the same for all tokens of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenScope {
    pub(crate) database: DatabaseId,
    pub(crate) query: Fingerprint,
    pub(crate) table: TableId,
    pub(crate) version: SchemaVersion,
    pub(crate) security: SecurityFingerprint,
}

/// A position in one shard's commit order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitPosition {
    pub(crate) shard: Shard,
    pub(crate) epoch: Epoch,
    pub(crate) seq: Seq,
}

/// The database's sealing key. It never leaves the process.
#[derive(Clone)]
pub(crate) struct Sealer(Hmac<Sha256>);

impl Sealer {
    /// Creates a sealer with the database's secret.
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        // HMAC pads a key with zeros up to its block size, so this is the seal by the secret itself.
        let mut block = [0; 64];
        for (to, from) in block.iter_mut().zip(secret) {
            *to = *from;
        }
        Self(Hmac::new(&block.into()))
    }

    /// Returns the token for `position` of a query.
    pub(crate) fn seal(&self, scope: &TokenScope, position: CommitPosition) -> Bytes {
        let mut token = Vec::with_capacity(128);
        token.push(FORMAT);
        token.extend_from_slice(scope.database.0.as_bytes());
        token.extend_from_slice(&scope.query.0);
        token.extend_from_slice(&scope.table.0.to_le_bytes());
        token.extend_from_slice(&scope.version.0.to_le_bytes());
        token.extend_from_slice(&scope.security.0);
        token.push(1);
        token.extend_from_slice(&position.shard.0.to_le_bytes());
        token.extend_from_slice(&position.epoch.0.to_le_bytes());
        token.extend_from_slice(&position.seq.0.to_le_bytes());
        let seal = self.0.clone().chain_update(&token).finalize().into_bytes();
        token.extend_from_slice(&seal);
        token.into()
    }

    /// Opens a token for the query of `scope`.
    ///
    /// Returns the position, or why it cannot be resumed.
    ///
    /// # Errors
    /// 22023 when the token is damaged, forged, of a newer format or of another query.
    pub(crate) fn open(
        &self,
        scope: &TokenScope,
        token: &[u8],
    ) -> Result<Result<CommitPosition, ResetReason>> {
        let damaged = || {
            Error::invalid("the resume token is invalid")
                .hint("subscribe without a token to start with a snapshot")
        };
        if token.len() > TOKEN_BYTES_MAX {
            return Err(damaged());
        }
        let Some((sealed, seal)) = token.split_last_chunk::<SEAL_BYTES>() else { return Err(damaged()) };
        let mut reader = TokenReader(sealed);
        if reader.number::<1>().map(u8::from_le_bytes) != Some(FORMAT) {
            return Err(damaged());
        }
        let database = reader.number::<16>().ok_or_else(damaged)?;
        if database != *scope.database.0.as_bytes() {
            // A restored database has a new id and perhaps a new secret. Its clients recover by the RESET.
            return Ok(Err(ResetReason::Server));
        }
        self.0.clone().chain_update(sealed).verify_slice(seal).map_err(|_| damaged())?;
        let query = reader.number::<16>().ok_or_else(damaged)?;
        let table = reader.number::<4>().map(u32::from_le_bytes).ok_or_else(damaged)?;
        let version = reader.number::<4>().map(u32::from_le_bytes).ok_or_else(damaged)?;
        let security = reader.number::<8>().ok_or_else(damaged)?;
        let positions = reader.number::<1>().map(u8::from_le_bytes).ok_or_else(damaged)?;
        let shard = reader.number::<2>().map(u16::from_le_bytes).ok_or_else(damaged)?;
        let epoch = reader.number::<4>().map(u32::from_le_bytes).ok_or_else(damaged)?;
        let seq = reader.number::<8>().map(u64::from_le_bytes).ok_or_else(damaged)?;
        if positions != 1 || shard != 0 || !reader.0.is_empty() {
            return Err(damaged());
        }
        if query != scope.query.0 {
            return Err(Error::invalid("the resume token belongs to another query")
                .hint("use it with the statement and parameters it was issued for"));
        }
        if security != scope.security.0 {
            return Ok(Err(ResetReason::Security));
        }
        if table != scope.table.0 || version != scope.version.0 {
            return Ok(Err(ResetReason::Schema));
        }
        Ok(Ok(CommitPosition { shard: Shard(shard), epoch: Epoch(epoch), seq: Seq(seq) }))
    }
}

/// Reads numbers from the front of bytes.
struct TokenReader<'a>(&'a [u8]);

impl TokenReader<'_> {
    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (number, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*number)
    }
}

/// Returns a token as SQL text: URL-safe base64 without padding.
pub fn token_to_text(token: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(token)
}

/// Decodes a token from [`token_to_text`], or from standard base64, which clients make of a frame's bytes.
///
/// # Errors
/// 22023 when the text is not base64.
pub fn token_from_text(text: &str) -> Result<Bytes> {
    const EITHER_PADDING: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = text.trim().replace('+', "-").replace('/', "_");
    GeneralPurpose::new(&base64::alphabet::URL_SAFE, EITHER_PADDING)
        .decode(text)
        .map(Bytes::from)
        .map_err(|_| Error::invalid("the resume token is not base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> TokenScope {
        TokenScope {
            database: DatabaseId(uuid::Uuid::from_u128(7)),
            query: Fingerprint::of("select 1"),
            table: TableId(1_000),
            version: SchemaVersion(1),
            security: SecurityFingerprint::of(ScopeId::SHARED),
        }
    }

    const POSITION: CommitPosition = CommitPosition { shard: Shard(0), epoch: Epoch(3), seq: Seq(99) };

    #[test]
    fn the_bytes_are_frozen() {
        let text = concat!(
            "AQEBAQEBAQEBAQEBAQEBAQECAgICAgICAgICAgICAgIC6AMAAAUAAAAGBgYGBgYGBgEAAAMAAAACAQAAAAAA",
            "AB7c_CIMzJZ0Hm801n8HlFUe8MK-w5MXPyXlxTXksmL2",
        );
        let token = token_from_text(text).unwrap();
        let sealed = [
            &[1][..],                  // format
            &[1; 16],                  // database id
            &[2; 16],                  // query fingerprint
            &[0xE8, 3, 0, 0],          // table 1000
            &[5, 0, 0, 0],             // schema version
            &[6; 8],                   // security fingerprint
            &[1],                      // positions
            &[0, 0],                   // shard
            &[3, 0, 0, 0],             // epoch
            &[2, 1, 0, 0, 0, 0, 0, 0], // seq 258
        ];
        assert_eq!(token[..token.len() - SEAL_BYTES], sealed.concat());
        let sealer = Sealer::new(&[9; 32]);
        let scope = TokenScope {
            database: DatabaseId(uuid::Uuid::from_bytes([1; 16])),
            query: Fingerprint([2; 16]),
            table: TableId(1_000),
            version: SchemaVersion(5),
            security: SecurityFingerprint([6; 8]),
        };
        let position = CommitPosition { shard: Shard(0), epoch: Epoch(3), seq: Seq(258) };
        assert_eq!(sealer.seal(&scope, position), token);
        assert_eq!(sealer.open(&scope, &token).unwrap(), Ok(position));
        assert_eq!(token_to_text(&token), text);
        assert_eq!(Fingerprint::of("select 1").to_string(), "822ae07d4783158bc1912bb623e5107c");
        let security = SecurityFingerprint::of(ScopeId(5));
        assert_eq!(security.0, [0xF1, 0x3E, 0xE6, 0xED, 0x54, 0xEA, 0x2A, 0xAE]);
    }

    #[test]
    fn a_token_opens_for_its_own_query() {
        let sealer = Sealer::new(&[1; 32]);
        let token = sealer.seal(&scope(), POSITION);
        assert_eq!(sealer.open(&scope(), &token).unwrap(), Ok(POSITION));
        let text = token_to_text(&token);
        assert_eq!(token_from_text(&text).unwrap(), token);
        for bytes in [&token[..], &[0xFB, 0xFF, 0xBE], &[0xFF], &[0xFB, 0xF0]] {
            let standard = base64::engine::general_purpose::STANDARD.encode(bytes);
            assert_eq!(token_from_text(&standard).unwrap(), bytes, "{standard}");
            assert_eq!(token_from_text(&token_to_text(bytes)).unwrap(), bytes, "{standard}");
        }
    }

    #[test]
    fn a_token_that_leads_nowhere_resets() {
        let sealer = Sealer::new(&[1; 32]);
        let token = sealer.seal(&scope(), POSITION);
        let check = |scope: TokenScope, reason| assert_eq!(sealer.open(&scope, &token).unwrap(), Err(reason));
        check(TokenScope { version: SchemaVersion(2), ..scope() }, ResetReason::Schema);
        check(TokenScope { table: TableId(1_001), ..scope() }, ResetReason::Schema);
        check(TokenScope { security: SecurityFingerprint::of(ScopeId(5)), ..scope() }, ResetReason::Security);
        check(TokenScope { database: DatabaseId(uuid::Uuid::from_u128(8)), ..scope() }, ResetReason::Server);
    }

    #[test]
    fn forged_damaged_and_foreign_tokens_are_refused() {
        let sealer = Sealer::new(&[1; 32]);
        let token = sealer.seal(&scope(), POSITION);
        assert!(sealer.open(&TokenScope { query: Fingerprint::of("select 2"), ..scope() }, &token).is_err());
        assert!(Sealer::new(&[2; 32]).open(&scope(), &token).is_err());
        for length in 0..token.len() {
            assert!(sealer.open(&scope(), &token[..length]).is_err(), "cut to {length}");
        }
        for position in 0..token.len() {
            let mut forged = token.to_vec();
            forged[position] ^= 1;
            let opened = sealer.open(&scope(), &forged);
            assert!(!matches!(opened, Ok(Ok(_))), "byte {position}");
        }
        assert!(token_from_text("not a token!").is_err());
    }
}
