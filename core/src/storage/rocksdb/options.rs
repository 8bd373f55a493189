//! The options of a store and of its column families.
//!
//! Each partition is a column family. `Rows` has Bloom filters over the table and scope prefix and over the
//! whole key, in memtables and files, because every INSERT looks up a key that is almost never there.
//! RocksDB's own checksums cover the write-ahead log, the files and the manifest.

use ::rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, LogLevel, Options,
    SliceTransform,
};

use crate::config::Config;
use crate::storage::{Partition, keys};

/// The limit of the write-ahead log, unless four memtables are larger; a restart reads at most that much.
const WAL_BYTES_MAX: u64 = 192 << 20;
const INFO_LOG_BYTES_MAX: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 1_000;

/// Memory limits of a store.
#[derive(Clone, Copy, Debug)]
pub struct StorageOptions {
    /// Bytes of uncompressed file blocks in the cache that all partitions share.
    pub block_cache_bytes: usize,
    /// Bytes of a memtable; each partition has one, and up to two more that are being flushed.
    pub write_buffer_bytes: usize,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 32 << 20, write_buffer_bytes: 32 << 20 }
    }
}

impl From<&Config> for StorageOptions {
    fn from(config: &Config) -> Self {
        Self { block_cache_bytes: config.block_cache_bytes, write_buffer_bytes: config.write_buffer_bytes }
    }
}

/// Returns the options of the whole store.
pub(super) fn database_options(options: StorageOptions) -> Options {
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    database.set_paranoid_checks(true);
    database.set_track_and_verify_wals_in_manifest(true);
    database.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    database.set_max_total_wal_size(WAL_BYTES_MAX.max(4 * options.write_buffer_bytes as u64));
    database.set_max_background_jobs(4);
    database.set_max_open_files(OPEN_FILES_MAX);
    database.set_log_level(LogLevel::Warn);
    database.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    database.set_keep_log_file_num(2);
    database.set_stats_dump_period_sec(0);
    database
}

/// Returns the column families, one per partition.
pub(super) fn families(options: StorageOptions, cache: &Cache) -> [ColumnFamilyDescriptor; 4] {
    Partition::ALL.map(|partition| {
        ColumnFamilyDescriptor::new(family_name(partition), family_options(partition, options, cache))
    })
}

fn family_options(partition: Partition, options: StorageOptions, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_whole_key_filtering(true);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_optimize_filters_for_memory(true);
    blocks.set_block_size(16 << 10);
    blocks.set_format_version(6);

    let mut family = Options::default();
    family.set_write_buffer_size(match partition {
        Partition::Meta | Partition::Cold => options.write_buffer_bytes.min(4 << 20),
        Partition::Rows | Partition::Log => options.write_buffer_bytes,
    });
    family.set_max_write_buffer_number(3);
    family.set_compression_type(DBCompressionType::Lz4);
    family.set_level_compaction_dynamic_level_bytes(true);
    if partition == Partition::Rows {
        family.set_prefix_extractor(SliceTransform::create_fixed_prefix(keys::SCOPE_PREFIX_BYTES));
        family.set_memtable_prefix_bloom_ratio(0.05);
        family.set_memtable_whole_key_filtering(true);
    }
    family.set_block_based_table_factory(&blocks);
    family
}

pub(super) fn family_name(partition: Partition) -> &'static str {
    match partition {
        Partition::Meta => "meta",
        Partition::Rows => "rows",
        Partition::Log => "log",
        Partition::Cold => "cold",
    }
}
