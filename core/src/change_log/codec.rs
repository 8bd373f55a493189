//! The byte format of the change log. Frozen: any change of it needs a new format byte.
//!
//! ```text
//! header   format u8 = 1 | flags u8 | database id, 16 bytes | epoch u32 | shard u16 | seq u64
//!          | commit_ts i64 | principal u64
//!          | client transaction id: length u32, bytes     only with flag bit 0; nothing writes it yet
//!          | catalog changes: length u32, JSON            length 0 when there are none
//!          | count u32 | count times: table u32 | scope u64 | version u32 | parts u32 | rows u64
//! part     format u8 = 1, row-wise | version u32 | count u32
//!          | count times: op u8 (1 insert, 2 delete, 3 update) | key: length u32, bytes
//!                         | old row: length u32, bytes    for delete and update
//!                         | new row: length u32, bytes    for insert and update
//!          or format u8 = 2, inserts in columnar form | version u32 | count u32 | described in `columns`
//! ```
//!
//! Numbers in values are little-endian. Numbers in keys are big-endian, so that keys sort.
//!
//! Invariant: no bytes make the decoder panic. Damaged bytes are an error of kind `Corruption`.

use bytes::Bytes;

use super::columns::{self, PART_FORMAT_COLUMNS};
use super::fields::{FieldReader, damaged, length};
use super::window::Window;
use super::{CommitRecord, LoggedInsert, PART_BYTES_MAX, RowChange, RowOp, TableChanges};
use crate::error::{Error, Result};
use crate::ids::{DatabaseId, Epoch, SchemaVersion, ScopeId, Seq, Shard, TableId, UserId};
use crate::schema_registry::CatalogChange;
use crate::storage::{KeyRange, Partition, WriteBatch};

const HEADER_FORMAT: u8 = 1;
const FLAG_CLIENT_TRANSACTION: u8 = 0b1;
const PART_FORMAT_ROWS: u8 = 1;
const KEY_HEADER: u8 = b'H';
const KEY_CHANGES: u8 = b'C';
const OP_INSERT: u8 = 1;
const OP_DELETE: u8 = 2;
const OP_UPDATE: u8 = 3;

/// The log's header of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// The database it was written for.
    pub database: DatabaseId,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// The shard of the database it belongs to.
    pub shard: Shard,
    /// The position in the commit order.
    pub seq: Seq,
    /// The commit time, microseconds UTC.
    pub commit_ts: i64,
    /// The user who committed it.
    pub principal: UserId,
    /// The catalog changes.
    pub catalog: Vec<CatalogChange>,
    /// The tables and scopes it changed.
    pub tables: Vec<TableSummary>,
}

/// One table and scope of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSummary {
    /// The table.
    pub table: TableId,
    /// The owner of the rows.
    pub scope: ScopeId,
    /// The version of the definition that encoded the new rows.
    pub version: SchemaVersion,
    /// The number of log entries of the changes.
    pub parts: u32,
    /// The number of changed rows.
    pub rows: u64,
}

pub(super) fn header_key(seq: Seq) -> Vec<u8> {
    let mut key = Vec::with_capacity(9);
    key.push(KEY_HEADER);
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

/// Returns the range of the headers of commits after `after` up to `up_to`.
pub(super) fn header_range(after: Seq, up_to: Seq) -> KeyRange {
    KeyRange {
        start: header_key(Seq(after.0.saturating_add(1))),
        end: KeyRange::prefix(header_key(up_to)).end,
    }
}

pub(super) fn all_headers() -> KeyRange {
    KeyRange::prefix([KEY_HEADER])
}

pub(super) fn part_key(table: TableId, scope: ScopeId, seq: Seq, part: u32) -> Vec<u8> {
    let mut key = commit_prefix(table, scope, seq);
    key.extend_from_slice(&part.to_be_bytes());
    key
}

/// Returns the range of the parts from part `first` of commit `seq` up to commit `up_to` in this table and
/// scope.
pub(super) fn part_range(table: TableId, scope: ScopeId, (seq, first): (Seq, u32), up_to: Seq) -> KeyRange {
    KeyRange {
        start: part_key(table, scope, seq, first),
        end: KeyRange::prefix(commit_prefix(table, scope, up_to)).end,
    }
}

/// Returns the seq and the number in a part's key.
pub(super) fn part_of(key: &[u8]) -> Result<(Seq, u32)> {
    let (seq, part) = key.get(13..).and_then(|rest| rest.split_first_chunk::<8>()).ok_or_else(damaged)?;
    let part = part.try_into().map_err(|_| damaged())?;
    Ok((Seq(u64::from_be_bytes(*seq)), u32::from_be_bytes(part)))
}

fn commit_prefix(table: TableId, scope: ScopeId, seq: Seq) -> Vec<u8> {
    let mut key = Vec::with_capacity(25);
    key.push(KEY_CHANGES);
    key.extend_from_slice(&table.0.to_be_bytes());
    key.extend_from_slice(&scope.0.to_be_bytes());
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

pub(super) fn append(
    batch: &mut WriteBatch,
    database: DatabaseId,
    record: &CommitRecord,
    parts: &[Bytes],
) -> Result<()> {
    let mut tables = Vec::with_capacity(record.tables.len());
    for changes in &record.tables {
        let parts = append_parts(batch, record.seq, changes)?;
        tables.push(TableSummary {
            table: changes.table,
            scope: changes.scope,
            version: changes.version,
            parts,
            rows: changes.rows.len() as u64,
        });
    }
    if let Some(LoggedInsert { summary, .. }) = record.large_insert {
        for (number, part) in (0..).zip(parts) {
            let key = part_key(summary.table, summary.scope, record.seq, number);
            batch.put(Partition::Log, key, Bytes::clone(part));
        }
        tables.push(summary);
    }
    let header = encode_header(database, record, &tables)?;
    batch.put(Partition::Log, header_key(record.seq), header);
    Ok(())
}

fn append_parts(batch: &mut WriteBatch, seq: Seq, changes: &TableChanges) -> Result<u32> {
    let mut rows = changes.rows.as_slice();
    let mut part = 0;
    while !rows.is_empty() {
        let mut bytes = 0;
        let fitting = rows.iter().take_while(|change| {
            bytes += encoded_row_bytes(change);
            bytes <= PART_BYTES_MAX
        });
        let (these, rest) = rows.split_at(fitting.count().max(1));
        batch.put(
            Partition::Log,
            part_key(changes.table, changes.scope, seq, part),
            encode_part(changes.version, these)?,
        );
        rows = rest;
        part += 1;
    }
    Ok(part)
}

fn encoded_row_bytes(change: &RowChange) -> usize {
    change.bytes() + 13
}

fn encode_part(version: SchemaVersion, rows: &[RowChange]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(9 + rows.iter().map(encoded_row_bytes).sum::<usize>());
    out.push(PART_FORMAT_ROWS);
    out.extend_from_slice(&version.0.to_le_bytes());
    out.extend_from_slice(&length(rows.len())?);
    for change in rows {
        let (op, old, new) = match (change.op, &change.old, &change.new) {
            (RowOp::Insert, None, Some(new)) => (OP_INSERT, None, Some(new)),
            (RowOp::Delete, Some(old), None) => (OP_DELETE, Some(old), None),
            (RowOp::Update, Some(old), Some(new)) => (OP_UPDATE, Some(old), Some(new)),
            _ => return Err(Error::internal("a change does not have the images of its kind")),
        };
        out.push(op);
        for bytes in [Some(&change.key), old, new].into_iter().flatten() {
            out.extend_from_slice(&length(bytes.len())?);
            out.extend_from_slice(bytes);
        }
    }
    Ok(out)
}

fn encode_header(database: DatabaseId, record: &CommitRecord, tables: &[TableSummary]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(64 + 28 * tables.len());
    out.extend_from_slice(&[HEADER_FORMAT, 0]);
    out.extend_from_slice(database.0.as_bytes());
    out.extend_from_slice(&record.epoch.0.to_le_bytes());
    out.extend_from_slice(&record.shard.0.to_le_bytes());
    out.extend_from_slice(&record.seq.0.to_le_bytes());
    out.extend_from_slice(&record.commit_ts.to_le_bytes());
    out.extend_from_slice(&record.principal.0.to_le_bytes());
    if record.catalog.is_empty() {
        out.extend_from_slice(&length(0)?);
    } else {
        let json = serde_json::to_vec(&record.catalog)
            .map_err(|error| Error::internal("a catalog change cannot be written").source(error))?;
        out.extend_from_slice(&length(json.len())?);
        out.extend_from_slice(&json);
    }
    out.extend_from_slice(&length(tables.len())?);
    for summary in tables {
        out.extend_from_slice(&summary.table.0.to_le_bytes());
        out.extend_from_slice(&summary.scope.0.to_le_bytes());
        out.extend_from_slice(&summary.version.0.to_le_bytes());
        out.extend_from_slice(&summary.parts.to_le_bytes());
        out.extend_from_slice(&summary.rows.to_le_bytes());
    }
    Ok(out)
}

pub(super) fn decode_header(value: &[u8]) -> Result<CommitHeader> {
    let mut reader = FieldReader { bytes: value };
    let [format, flags] = reader.take()?;
    if format != HEADER_FORMAT || flags & !FLAG_CLIENT_TRANSACTION != 0 {
        return Err(damaged());
    }
    let database = DatabaseId(uuid::Uuid::from_bytes(reader.take()?));
    let epoch = Epoch(reader.u32()?);
    let shard = Shard(u16::from_le_bytes(reader.take()?));
    let seq = Seq(reader.u64()?);
    let commit_ts = i64::from_le_bytes(reader.take()?);
    let principal = UserId(reader.u64()?);
    if flags & FLAG_CLIENT_TRANSACTION != 0 {
        reader.variable()?;
    }
    let catalog = match reader.variable()? {
        [] => Vec::new(),
        json => serde_json::from_slice(json).map_err(|error| damaged().source(error))?,
    };
    let count = reader.u32()?;
    let mut tables = Vec::new();
    for _ in 0..count {
        tables.push(TableSummary {
            table: TableId(reader.u32()?),
            scope: ScopeId(reader.u64()?),
            version: SchemaVersion(reader.u32()?),
            parts: reader.u32()?,
            rows: reader.u64()?,
        });
    }
    reader.end()?;
    Ok(CommitHeader { database, epoch, shard, seq, commit_ts, principal, catalog, tables })
}

/// Adds the changes of one part of commit `seq` to `rows`. Those of a row-wise part share its memory. Returns
/// the version of the definition that encoded them.
pub(super) fn decode_part(value: &Bytes, seq: Seq, rows: &mut Vec<RowChange>) -> Result<SchemaVersion> {
    let mut all = Window::ALL;
    decode_some(value, seq, &mut all, rows).map(|part| part.version)
}

/// A part of which some changes were decoded.
pub(super) struct DecodedPart {
    /// The version of the definition that encoded them.
    pub(super) version: SchemaVersion,
    /// The number of all its changes.
    pub(super) rows: u32,
}

/// As [`decode_part`], but adds only the changes that `window` takes.
pub(super) fn decode_some(
    value: &Bytes,
    seq: Seq,
    window: &mut Window,
    rows: &mut Vec<RowChange>,
) -> Result<DecodedPart> {
    let mut reader = FieldReader { bytes: value };
    let [format] = reader.take()?;
    let version = SchemaVersion(reader.u32()?);
    let count = reader.u32()?;
    match format {
        PART_FORMAT_ROWS => decode_row_wise(value, reader, count, window, rows)?,
        PART_FORMAT_COLUMNS => columns::decode((version, count), reader.bytes, seq, window, rows)?,
        _ => return Err(damaged()),
    }
    Ok(DecodedPart { version, rows: count })
}

fn decode_row_wise(
    value: &Bytes,
    mut reader: FieldReader<'_>,
    count: u32,
    window: &mut Window,
    rows: &mut Vec<RowChange>,
) -> Result<()> {
    for _ in 0..count {
        if window.is_full() {
            return Ok(());
        }
        let [op] = reader.take()?;
        let key = value.slice_ref(reader.variable()?);
        let mut image = || reader.variable().map(|bytes| Some(value.slice_ref(bytes)));
        let change = match op {
            OP_INSERT => RowChange { op: RowOp::Insert, key, old: None, new: image()? },
            OP_DELETE => RowChange { op: RowOp::Delete, key, old: image()?, new: None },
            OP_UPDATE => RowChange { op: RowOp::Update, key, old: image()?, new: image()? },
            _ => return Err(damaged()),
        };
        window.take(change, rows);
    }
    reader.end()
}
