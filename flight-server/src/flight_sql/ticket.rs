//! Tickets: GetFlightInfo issues them, DoGet redeems them.
//!
//! A ticket contains everything needed to answer it, so it stays valid after its prepared statement is
//! closed, on another connection, and after a restart. Large parameters stay on the server, and such a ticket
//! works for one DoGet only. A ticket names its owner, and only the owner may use it. All numbers are little
//! endian:
//!
//! ```text
//! version u8 (1) | kind u8 | owner u64 | expires_at i64 (micros UTC) | query id [16]
//!   kind 1, statement: schema hash u64 | namespace (u32 len, utf8) | sql (u32 len, utf8)
//!     | parameters (u32 len, messages of parameters.rs)
//!   kind 2, update done: rows i64 | seq u64
//!   kind 3, statement whose parameters are too large to travel: schema hash u64
//!   kind 4, statement that was prepared: all of kind 1 | its handle [16]
//! | seal [32], HMAC-SHA256 of all of the above by the database's key for tickets
//! ```
//!
//! Invariant: a forged, expired or foreign ticket is refused with the same message as an unknown one.

use bytes::{Buf, Bytes};
use kalamdb_core::{Error, ErrorKind, Seq, SqlState, UserId};

use crate::seal::SealKey;

const VERSION: u8 = 1;
const KIND_STATEMENT: u8 = 1;
const KIND_UPDATE_DONE: u8 = 2;
const KIND_SERVER_HELD: u8 = 3;
const KIND_PREPARED: u8 = 4;
const HEADER_BYTES: usize = 1 + 1 + 8 + 8 + 16;

/// Identifies one GetFlightInfo and the DoGets of its tickets, in logs and in `app_metadata`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueryId(pub(crate) [u8; 16]);

impl QueryId {
    pub(crate) fn random() -> Self {
        Self(*uuid::Uuid::new_v4().as_bytes())
    }
}

impl std::fmt::Display for QueryId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        uuid::Uuid::from_bytes(self.0).simple().fmt(formatter)
    }
}

/// An opened ticket.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StatementTicket {
    pub(crate) owner: UserId,
    /// Microseconds since 1970 UTC.
    pub(crate) expires_at: i64,
    pub(crate) query: QueryId,
    pub(crate) body: TicketBody,
}

/// What DoGet must do for a ticket.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TicketBody {
    /// Run the statement; the result must still have the advertised schema. Who closes its handle ends it.
    Statement {
        schema_hash: u64,
        namespace: String,
        sql: String,
        parameters: Bytes,
        handle: Option<[u8; 16]>,
    },
    /// The update ran when the ticket was made; return an empty result.
    UpdateDone { rows: i64, seq: Seq },
    /// Run the statement that the server holds with its parameters, if it still does.
    ServerHeld { schema_hash: u64 },
}

impl StatementTicket {
    /// Encodes and seals the ticket.
    pub(crate) fn seal(&self, key: &SealKey) -> Bytes {
        let mut out = Vec::with_capacity(256);
        out.push(VERSION);
        out.push(match self.body {
            TicketBody::Statement { handle: None, .. } => KIND_STATEMENT,
            TicketBody::Statement { handle: Some(_), .. } => KIND_PREPARED,
            TicketBody::UpdateDone { .. } => KIND_UPDATE_DONE,
            TicketBody::ServerHeld { .. } => KIND_SERVER_HELD,
        });
        out.extend_from_slice(&self.owner.0.to_le_bytes());
        out.extend_from_slice(&self.expires_at.to_le_bytes());
        out.extend_from_slice(&self.query.0);
        match &self.body {
            TicketBody::Statement { schema_hash, namespace, sql, parameters, handle } => {
                out.extend_from_slice(&schema_hash.to_le_bytes());
                put_bytes(&mut out, namespace.as_bytes());
                put_bytes(&mut out, sql.as_bytes());
                put_bytes(&mut out, parameters);
                if let Some(handle) = handle {
                    out.extend_from_slice(handle);
                }
            }
            TicketBody::UpdateDone { rows, seq } => {
                out.extend_from_slice(&rows.to_le_bytes());
                out.extend_from_slice(&seq.0.to_le_bytes());
            }
            TicketBody::ServerHeld { schema_hash } => out.extend_from_slice(&schema_hash.to_le_bytes()),
        }
        key.seal(out).into()
    }

    /// Opens a ticket for `caller` at the time `now_us`; `None` if it is forged, expired, another user's or
    /// another version's.
    pub(crate) fn open(sealed: &Bytes, key: &SealKey, caller: UserId, now_us: i64) -> Option<Self> {
        let body_bytes = key.open(sealed)?.len();
        let mut body = sealed.slice(..body_bytes);
        if body.len() < HEADER_BYTES || body.get_u8() != VERSION {
            return None;
        }
        let kind = body.get_u8();
        let owner = UserId(body.get_u64_le());
        let expires_at = body.get_i64_le();
        let query = get_array(&mut body)?;
        if owner != caller || expires_at <= now_us {
            return None;
        }
        let body = match kind {
            KIND_STATEMENT | KIND_PREPARED => TicketBody::Statement {
                schema_hash: body.try_get_u64_le().ok()?,
                namespace: get_string(&mut body)?,
                sql: get_string(&mut body)?,
                parameters: get_bytes(&mut body)?,
                handle: if kind == KIND_PREPARED { Some(get_array(&mut body)?) } else { None },
            },
            KIND_UPDATE_DONE => TicketBody::UpdateDone {
                rows: body.try_get_i64_le().ok()?,
                seq: Seq(body.try_get_u64_le().ok()?),
            },
            KIND_SERVER_HELD => TicketBody::ServerHeld { schema_hash: body.try_get_u64_le().ok()? },
            _ => return None,
        };
        Some(Self { owner, expires_at, query: QueryId(query), body })
    }
}

/// Returns the error for a ticket that the caller cannot use.
pub(super) fn unknown_ticket() -> Error {
    Error::new(ErrorKind::NotFound, SqlState::INVALID_CURSOR, "the ticket does not exist or has expired")
        .hint("run the query again: GetFlightInfo returns a new ticket")
}

/// Hashes an encoded schema. The hash is not secret and not stored: it only detects a changed schema between
/// two calls.
pub(crate) fn schema_hash(encoded: &[u8]) -> u64 {
    // FNV-1a is the same after a restart and in every build.
    encoded.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // The transport's message limit keeps every part far below 4 GiB.
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Takes the output of `put_bytes` from the front of `input`, without a copy.
pub(crate) fn get_bytes(input: &mut Bytes) -> Option<Bytes> {
    let len = usize::try_from(input.try_get_u32_le().ok()?).ok()?;
    (len <= input.len()).then(|| input.split_to(len))
}

fn get_array(input: &mut Bytes) -> Option<[u8; 16]> {
    let mut array = [0; 16];
    input.try_copy_to_slice(&mut array).ok()?;
    Some(array)
}

fn get_string(input: &mut Bytes) -> Option<String> {
    String::from_utf8(get_bytes(input)?.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    fn key() -> SealKey {
        SealKey::derive(b"secret", "ticket")
    }

    fn ticket(body: TicketBody) -> StatementTicket {
        StatementTicket { owner: UserId(7), expires_at: 1_000, query: QueryId([3; 16]), body }
    }

    proptest! {
        #[test]
        fn a_ticket_comes_back_as_it_was_made(
            sql in ".*",
            namespace in ".*",
            schema_hash: u64,
            parameters: Vec<u8>,
            handle: Option<[u8; 16]>
        ) {
            let parameters = parameters.into();
            let statement = TicketBody::Statement { schema_hash, namespace, sql, parameters, handle };
            for made in [ticket(statement), ticket(TicketBody::ServerHeld { schema_hash })] {
                prop_assert_eq!(StatementTicket::open(&made.seal(&key()), &key(), UserId(7), 0), Some(made));
            }
        }

        #[test]
        fn any_bytes_are_refused_quietly(bytes: Vec<u8>) {
            prop_assert_eq!(StatementTicket::open(&bytes.clone().into(), &key(), UserId(7), 0), None);
            prop_assert_eq!(StatementTicket::open(&key().seal(bytes).into(), &key(), UserId(7), 0), None);
        }
    }

    #[test]
    fn the_bytes_are_frozen() {
        let check = |body: TicketBody, kind: u8, expected: &[u8], seal: &str| {
            let header = [
                &[1, kind][..],               // version, kind
                &[7, 0, 0, 0, 0, 0, 0, 0],    // owner
                &[0xE8, 3, 0, 0, 0, 0, 0, 0], // expires at 1,000
                &[3; 16],                     // query id
            ];
            let seal = STANDARD.decode(seal).unwrap();
            let sealed = Bytes::from([&header.concat()[..], expected, &seal].concat());
            let made = ticket(body);
            assert_eq!(made.seal(&key()), sealed);
            assert_eq!(StatementTicket::open(&sealed, &key(), UserId(7), 0), Some(made));
        };
        let statement = |handle| TicketBody::Statement {
            schema_hash: 0x0102,
            namespace: "app".to_owned(),
            sql: "SELECT 1".to_owned(),
            parameters: Bytes::from_static(&[9, 8]),
            handle,
        };
        check(
            statement(None),
            1,
            // Schema hash, then namespace, statement and parameters, each after its length.
            b"\x02\x01\0\0\0\0\0\0\x03\0\0\0app\x08\0\0\0SELECT 1\x02\0\0\0\x09\x08",
            "n+EFbHLJvjlKpPEbRDgRzn96V15iwqAOxJy6NcBTgvA=",
        );
        check(
            TicketBody::UpdateDone { rows: -1, seq: Seq(9) },
            2,
            // Rows, seq.
            b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x09\0\0\0\0\0\0\0",
            "jYsXZSWjtncgW5lmIvAsGdzoQMRN5TomXmMOwx/NAN8=",
        );
        check(
            TicketBody::ServerHeld { schema_hash: 0x0102 },
            3,
            b"\x02\x01\0\0\0\0\0\0",
            "XTA5V239hcAHJFJtnJGWn7ds3kp2WU9DXCbhpO/5zEo=",
        );
        check(
            statement(Some([5; 16])),
            4,
            // As kind 1, then the handle.
            b"\x02\x01\0\0\0\0\0\0\x03\0\0\0app\x08\0\0\0SELECT 1\x02\0\0\0\x09\x08\
              \x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05",
            "oAPEcWGIlesld19OWCkDrh5cYIMe3C/rTsMZuBLAOTA=",
        );
        assert_eq!(schema_hash(b"schema"), 0x758d_17ff_7646_67b6);
    }

    #[test]
    fn a_ticket_is_for_its_owner_and_for_its_time() {
        let made = ticket(TicketBody::UpdateDone { rows: 3, seq: Seq(9) });
        let sealed = made.seal(&key());
        assert_eq!(StatementTicket::open(&sealed, &key(), UserId(7), 999), Some(made));
        assert_eq!(StatementTicket::open(&sealed, &key(), UserId(8), 999), None);
        assert_eq!(StatementTicket::open(&sealed, &key(), UserId(7), 1_000), None);
        assert_eq!(StatementTicket::open(&sealed, &SealKey::derive(b"other", "ticket"), UserId(7), 0), None);
    }
}
