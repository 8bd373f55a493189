//! The bytes of a backup. Frozen: a change needs a new format number.
//!
//! ```text
//! URL/BACKUP                                 text: `kalamdb backup`, the job's id; created first as a claim
//! URL/store/NUMBER.zst                       zstd of: "KBAK" | format u8 = 1
//!                                              | partition u8 (1 Meta, 2 Rows, 4 Cold)
//!                                              | per entry: key length u32, key, value length u32, value
//! URL/segments/TABLE/EPOCH-SEGMENT.parquet   the segment, byte for byte
//! URL/manifest.json                          created last: without it there is no backup. Its `features` are
//!                                              those of the data directory, as in `FORMAT`
//! ```
//!
//! Numbers are little-endian; numbers in names have eight digits. A backup omits the change log: a restored
//! database has another id, so nobody can resume from it, and the rows already hold its changes.
//!
//! Invariant: no input makes the decoder panic or allocate more memory than it has decompressed bytes.

use std::io::{BufRead, BufReader, Read};

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::commit::Snapshot;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{DatabaseId, Seq};
use crate::storage::{Features, Partition, WriteBatch, check_known};

/// The format this program writes, and the newest it reads.
const FORMAT: u32 = 1;
const MAGIC: [u8; 4] = *b"KBAK";
const STORE_FORMAT: u8 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 2;
/// A fast level; most of the time then goes into the I/O of the backup's location.
const ZSTD_LEVEL: i32 = 1;

/// The object that is created last.
pub(super) const MANIFEST: &str = "manifest.json";
/// The object that is created first: it claims the location.
pub(super) const CLAIM: &str = "BACKUP";
/// The folder of the segments.
pub(super) const SEGMENTS: &str = "segments";
/// The folder of the store's objects.
pub(super) const STORE: &str = "store";

/// The contents of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackupManifest {
    pub(super) format: u32,
    /// The features of the data directory; a program that does not know one of them refuses the backup.
    #[serde(default, skip_serializing_if = "Features::is_empty")]
    pub(super) features: Features,
    /// The version of the program that made the backup, for people.
    pub(super) program: String,
    /// The id of the database that was backed up; a restored database gets another id.
    pub(super) database_id: DatabaseId,
    /// The last commit in the backup.
    pub(super) seq: Seq,
    /// When it was committed, in microseconds UTC.
    pub(super) commit_ts: i64,
    /// The tables in the backup, for people.
    pub(super) tables: Vec<String>,
    /// All objects except this one.
    pub(super) objects: Vec<BackupObject>,
}

/// One object of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackupObject {
    /// The object's name below the backup's URL.
    pub(super) path: String,
    pub(super) bytes: u64,
    /// The SHA-256 of the object's bytes, in hexadecimal.
    pub(super) sha256: String,
}

impl BackupManifest {
    /// Creates a manifest of this program's version, without objects.
    pub(super) fn new(database_id: DatabaseId, snapshot: &Snapshot, features: Features) -> Self {
        Self {
            format: FORMAT,
            features,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            database_id,
            seq: snapshot.seq,
            commit_ts: snapshot.commit_ts,
            tables: snapshot.catalog.tables().map(|table| table.qualified_name()).collect(),
            objects: Vec::new(),
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
            .map_err(|error| Error::internal("the manifest of a backup cannot be written").source(error))
    }

    /// # Errors
    /// XX001 when it is damaged, 55000 when it is newer than this program or uses a feature that this program
    /// does not know.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        /// The part of a manifest that all formats share.
        #[derive(Deserialize)]
        struct AnyFormat {
            format: u32,
            #[serde(default)]
            features: Features,
        }
        let unreadable = |error| damaged(MANIFEST, "it cannot be read").source(error);
        let AnyFormat { format, features } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if format > FORMAT {
            return Err(Error::new(
                ErrorKind::Unavailable,
                SqlState::OBJECT_NOT_IN_STATE,
                format!("the backup has format {format}, this program reads up to {FORMAT}"),
            )
            .hint("restore it with the version that made it, or a newer one"));
        }
        check_known("the backup", &features)?;
        serde_json::from_slice(bytes).map_err(unreadable)
    }
}

impl BackupObject {
    /// Returns the name as an object store path; fails for a name that could lead outside the backup.
    pub(super) fn location(&self) -> Result<Path> {
        Path::parse(&self.path).map_err(|_| damaged(MANIFEST, "it names an invalid object path"))
    }

    /// Returns the path of the segment as the database names it, if the object is one.
    pub(super) fn segment(&self) -> Option<&str> {
        self.path.strip_prefix(SEGMENTS)?.strip_prefix('/')
    }

    /// Returns whether the object holds entries of the store.
    pub(super) fn is_store(&self) -> bool {
        self.path.strip_prefix(STORE).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Counts and hashes the bytes of an object as they stream by.
pub(super) struct ObjectDigest {
    bytes: u64,
    hash: Sha256,
}

impl ObjectDigest {
    pub(super) fn new() -> Self {
        Self { bytes: 0, hash: Sha256::new() }
    }

    pub(super) fn update(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hash.update(piece);
    }

    /// Returns the object that consists of the bytes so far.
    pub(super) fn finish(self, path: String) -> BackupObject {
        let hash = self.hash.finalize();
        let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        BackupObject { path, bytes: self.bytes, sha256 }
    }

    /// Compares the bytes so far with the expected object.
    ///
    /// # Errors
    /// XX001 with the object's name when they differ.
    pub(super) fn verify(self, expected: &BackupObject) -> Result<()> {
        let found = self.finish(expected.path.clone());
        if found.bytes != expected.bytes {
            return Err(damaged(&expected.path, "its length differs"));
        }
        if !found.sha256.eq_ignore_ascii_case(&expected.sha256) {
            return Err(damaged(&expected.path, "its checksum differs"));
        }
        Ok(())
    }
}

/// Collects entries of one partition for one object.
pub(super) struct StoreWriter {
    raw: Vec<u8>,
}

impl StoreWriter {
    pub(super) fn new(partition: Partition) -> Self {
        let mut raw = MAGIC.to_vec();
        raw.extend_from_slice(&[STORE_FORMAT, partition_code(partition)]);
        Self { raw }
    }

    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        for piece in [key, value] {
            let length = u32::try_from(piece.len())
                .map_err(|_| Error::internal("a stored value is longer than 4 GiB"))?;
            self.raw.extend_from_slice(&length.to_le_bytes());
            self.raw.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Returns the uncompressed bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.raw.len()
    }

    /// Returns the object's bytes.
    pub(super) fn finish(self) -> Result<Vec<u8>> {
        zstd::bulk::compress(&self.raw, ZSTD_LEVEL)
            .map_err(|error| Error::internal("a part of a backup cannot be compressed").source(error))
    }
}

/// Decodes the entries of an object and passes them to `write` in batches of about `batch_bytes`.
///
/// # Errors
/// XX001 with `path` when the bytes are not such an object; whatever `write` returns.
pub(super) fn read_store(
    path: &str,
    object: &[u8],
    batch_bytes: usize,
    mut write: impl FnMut(WriteBatch) -> Result<()>,
) -> Result<()> {
    let unreadable = |_| damaged(path, "it cannot be read");
    let raw = zstd::stream::read::Decoder::with_buffer(object).map_err(unreadable)?;
    let mut raw = BufReader::new(raw);
    let mut header = [0; HEADER_BYTES];
    raw.read_exact(&mut header).map_err(unreadable)?;
    let partition = match header {
        [magic @ .., STORE_FORMAT, code] if magic == MAGIC => partition_of(code),
        _ => None,
    };
    let partition = partition.ok_or_else(|| damaged(path, "it is not a part of a backup"))?;
    let mut batch = WriteBatch::new();
    while !raw.fill_buf().map_err(unreadable)?.is_empty() {
        let key = read_piece(&mut raw).map_err(unreadable)?;
        let value = read_piece(&mut raw).map_err(unreadable)?;
        batch.put(partition, key, value);
        if batch.bytes() >= batch_bytes {
            write(std::mem::take(&mut batch))?;
        }
    }
    write(batch)
}

/// Reads a length and that many bytes. It allocates no more memory than the stream has bytes.
fn read_piece(raw: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    raw.read_exact(&mut length)?;
    let length = u64::from(u32::from_le_bytes(length));
    let mut piece = Vec::new();
    if raw.take(length).read_to_end(&mut piece)? as u64 != length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(piece)
}

/// The change log has a code, so that no other partition ever gets it, but is not part of a backup.
fn partition_code(partition: Partition) -> u8 {
    match partition {
        Partition::Meta => 1,
        Partition::Rows => 2,
        Partition::Log => 3,
        Partition::Cold => 4,
    }
}

fn partition_of(code: u8) -> Option<Partition> {
    Partition::ALL.into_iter().find(|partition| partition_code(*partition) == code)
}

/// Returns the error for an object of a backup that is not as it was written.
pub(super) fn damaged(path: &str, why: &str) -> Error {
    Error::corruption(format!("object \"{path}\" of the backup is damaged: {why}"))
        .hint("copy it again from where the backup was made, or restore another backup")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::WriteOp;

    fn read(object: &[u8], batch_bytes: usize) -> Result<Vec<WriteOp>> {
        let mut ops = Vec::new();
        read_store("store/00000000.zst", object, batch_bytes, |batch| {
            ops.extend(batch.ops().iter().cloned());
            Ok(())
        })?;
        Ok(ops)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn entries_come_back(
            entries in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            batch_bytes in 1_usize..1_000,
        ) {
            let mut writer = StoreWriter::new(Partition::Cold);
            for (key, value) in &entries {
                writer.push(key, value).unwrap();
            }
            let expected: Vec<WriteOp> = entries
                .into_iter()
                .map(|(key, value)| WriteOp::Put { partition: Partition::Cold, key: key.into(), value: value.into() })
                .collect();
            prop_assert_eq!(read(&writer.finish().unwrap(), batch_bytes).unwrap(), expected);
        }

        #[test]
        fn damaged_entries_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..60) {
            let mut writer = StoreWriter::new(Partition::Rows);
            writer.push(b"key", b"value").unwrap();
            let raw = writer.raw.get(..cut.min(writer.raw.len() - 1)).unwrap().to_vec();
            let header = writer.raw.get(..HEADER_BYTES).unwrap();
            for raw in [bytes.clone(), raw, [header, &bytes].concat()] {
                let object = zstd::bulk::compress(&raw, 1).unwrap();
                if let Err(error) = read(&object, 100) {
                    prop_assert_eq!(error.kind(), ErrorKind::Corruption);
                }
            }
            prop_assert!(read(&bytes, 100).is_err());
        }
    }

    #[test]
    fn the_bytes_are_frozen() {
        let mut writer = StoreWriter::new(Partition::Rows);
        writer.push(b"k", b"value").unwrap();
        assert_eq!(writer.raw, *b"KBAK\x01\x02\x01\0\0\0k\x05\0\0\0value");
        let manifest = BackupManifest {
            format: 1,
            features: Features::new(),
            program: "0.1.0".to_owned(),
            database_id: DatabaseId(uuid::Uuid::from_bytes([7; 16])),
            seq: Seq(9),
            commit_ts: 1_000,
            tables: vec!["app.notes".to_owned()],
            objects: vec![BackupObject {
                path: "store/00000000.zst".to_owned(),
                bytes: 3,
                sha256: "ab".to_owned(),
            }],
        };
        let text = r#"{"format":1,"program":"0.1.0","database_id":"07070707-0707-0707-0707-070707070707","seq":9,
            "commit_ts":1000,"tables":["app.notes"],
            "objects":[{"path":"store/00000000.zst","bytes":3,"sha256":"ab"}]}"#;
        assert_eq!(BackupManifest::decode(text.as_bytes()).unwrap(), manifest);
        assert_eq!(BackupManifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        let with_feature = BackupManifest { features: Features::from(["x".to_owned()]), ..manifest };
        let text = String::from_utf8(with_feature.encode().unwrap()).unwrap();
        assert!(text.starts_with("{\n  \"format\": 1,\n  \"features\": [\n    \"x\"\n  ],\n"), "{text}");
        // A program refuses an unknown feature even if it cannot read the rest.
        for newer in [r#"{"format":2,"objects":{}}"#, r#"{"format":1,"features":["x"],"objects":{}}"#] {
            let error = BackupManifest::decode(newer.as_bytes()).unwrap_err();
            assert_eq!(error.sqlstate(), SqlState::OBJECT_NOT_IN_STATE, "{newer}");
        }
        assert_eq!(BackupManifest::decode(b"{}").unwrap_err().kind(), ErrorKind::Corruption);
    }
}
