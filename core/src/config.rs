//! Settings of the core: plain data with defaults, units in the names. Where they come from (flags, environment, files) is the
//! embedder's business.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::NodeId;

/// Everything the core can be told. `Config::default()` is a working database in `./kalamdb-data`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the data lives; `None` keeps it in memory, for tests and throw-away databases.
    pub data_dir: Option<PathBuf>,
    /// The name of this process: letters, digits and hyphens, at most 64.
    pub node_id: String,
    /// The password of `root` at the first start; a random one is made when absent.
    #[serde(skip_serializing)]
    pub root_password: Option<String>,
    /// The longest SQL text.
    pub sql_bytes_max: usize,
    /// Chained operators and set operations in one statement; beyond it a parser or planner could overflow its stack.
    pub sql_operators_max: usize,
    /// The most parameters of one statement.
    pub parameters_max: usize,
    /// The largest stored row.
    pub row_bytes_max: usize,
    /// The most rows one statement may write.
    pub statement_rows_max: usize,
    /// The most bytes one statement may write.
    pub statement_bytes_max: usize,
    /// An INSERT of so many bytes or more is written as segments at once and never hot, unless most of it is NULL or its
    /// storage is a bucket; 0 for none.
    pub large_insert_bytes: usize,
    /// Memory all running queries share; beyond it sorts and joins spill or end with 53200.
    pub query_memory_bytes: usize,
    /// Bytes queries may spill to disk.
    pub spill_bytes_max: u64,
    /// Partitions of a query plan.
    pub query_partitions: usize,
    /// Rows of one batch of a scan.
    pub batch_rows: usize,
    /// Write sets that wait for the sequencer; a writer beyond it waits for a place.
    pub commit_queue_len_max: usize,
    /// Bytes of recent commits kept in memory for live queries; older ones are read from the change log.
    pub commit_ring_bytes: usize,
    /// Bytes of encoded frames one live query keeps for its slower subscribers.
    pub live_ring_bytes: usize,
    /// Live queries of the whole process.
    pub subscriptions_max: usize,
    /// Live queries of one user.
    pub subscriptions_per_user_max: usize,
    /// The age up to which the change log is kept, and so the time a live query can be away and resume.
    pub change_log_retention_s: u64,
    /// The bytes up to which the change log is kept; whichever limit is reached first trims it.
    pub change_log_bytes_max: u64,
    /// Bytes of hot rows kept as columns for scans; 0 keeps none.
    pub hot_cache_bytes: usize,
    /// Bytes of segments' footers and key filters kept in memory.
    pub segment_cache_bytes: usize,
    /// Bytes of rows that may wait to be flushed. Writers are slowed from four fifths of it on, and refused with 53100 when it is
    /// reached; 0 for any.
    pub hot_bytes_max: u64,
    /// The `FLUSH_POLICY` of tables that are created without one.
    pub flush_policy: String,
    /// How often it is looked which tables are to be flushed.
    pub flush_check_interval_ms: u64,
    /// How often expired STREAM rows are looked for.
    pub expiry_interval_ms: u64,
    /// How often it is looked for rows of jobs and of the audit log that need not be kept any longer.
    pub retention_interval_ms: u64,
    /// Days for which rows of finished jobs are kept; 0 for ever.
    pub job_retention_days: u32,
    /// Days for which rows of the audit log are kept; 0 for ever.
    pub audit_retention_days: u32,
    /// How long a shutdown may flush tables with many hot rows; 0 flushes none.
    pub shutdown_flush_ms: u64,
    /// How often the change log is trimmed.
    pub trim_interval_ms: u64,
    /// RocksDB's block cache.
    pub block_cache_bytes: usize,
    /// RocksDB's memtable of each column family.
    pub write_buffer_bytes: usize,
    /// Bytes of the data directory's disk that stay free: below it nothing that grows is written. 0 leaves it to the disk.
    pub disk_free_min_bytes: u64,
    /// How long a query may hold its snapshot, until its last row is taken.
    pub snapshot_age_max_s: u64,
    /// How often an autocommit statement that lost against another commit is run again.
    pub conflict_retries_max: usize,
    /// For tests that compare plans of one query.
    #[doc(hidden)]
    #[serde(skip)]
    pub planner: PlannerOverrides,
}

/// How queries are planned in another way than they are.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct PlannerOverrides {
    /// Settings by DataFusion's names.
    pub options: Vec<(String, String)>,
    /// Names of optimizer rules that do not run.
    pub rules_off: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: Some(PathBuf::from("./kalamdb-data")),
            node_id: "node-1".to_owned(),
            root_password: None,
            sql_bytes_max: 1 << 20,
            sql_operators_max: 1_000,
            parameters_max: 10_000,
            row_bytes_max: 16 << 20,
            statement_rows_max: 5_000_000,
            statement_bytes_max: 1 << 30,
            large_insert_bytes: 8 << 20,
            query_memory_bytes: 1 << 30,
            spill_bytes_max: 10 << 30,
            query_partitions: 2,
            batch_rows: 8_192,
            commit_queue_len_max: 4_096,
            commit_ring_bytes: 32 << 20,
            live_ring_bytes: 4 << 20,
            subscriptions_max: 100_000,
            subscriptions_per_user_max: 1_000,
            change_log_retention_s: 7 * 24 * 3_600,
            change_log_bytes_max: 4 << 30,
            hot_cache_bytes: 128 << 20,
            segment_cache_bytes: 64 << 20,
            hot_bytes_max: 8 << 30,
            flush_policy: "rows:100000,bytes:64MiB,interval:3600".to_owned(),
            flush_check_interval_ms: 1_000,
            expiry_interval_ms: 500,
            trim_interval_ms: 60_000,
            retention_interval_ms: 3_600_000,
            job_retention_days: 30,
            audit_retention_days: 0,
            shutdown_flush_ms: 5_000,
            block_cache_bytes: 32 << 20,
            write_buffer_bytes: 32 << 20,
            disk_free_min_bytes: 64 << 20,
            snapshot_age_max_s: 600,
            conflict_retries_max: 100,
            planner: PlannerOverrides::default(),
        }
    }
}

impl Config {
    /// A database in memory, gone when it is closed.
    pub fn in_memory() -> Self {
        Self { data_dir: None, ..Self::default() }
    }

    /// A database in `data_dir`.
    pub fn at(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: Some(data_dir.into()), ..Self::default() }
    }

    /// The node's name.
    ///
    /// # Errors
    /// When it is empty, longer than 64 bytes or has other characters than letters, digits and hyphens.
    pub fn node_id(&self) -> Result<NodeId> {
        let valid = !self.node_id.is_empty()
            && self.node_id.len() <= 64
            && self.node_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !valid {
            return Err(Error::invalid(format!("node id \"{}\" is not valid", self.node_id))
                .hint("use 1 to 64 letters, digits and hyphens"));
        }
        Ok(NodeId(self.node_id.as_str().into()))
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// The first setting that cannot work, by name.
    pub fn validate(&self) -> Result<()> {
        self.node_id()?;
        let positive = [
            ("sql_bytes_max", self.sql_bytes_max),
            ("sql_operators_max", self.sql_operators_max),
            ("row_bytes_max", self.row_bytes_max),
            ("statement_rows_max", self.statement_rows_max),
            ("statement_bytes_max", self.statement_bytes_max),
            ("query_memory_bytes", self.query_memory_bytes),
            ("query_partitions", self.query_partitions),
            ("batch_rows", self.batch_rows),
            ("commit_queue_len_max", self.commit_queue_len_max),
            ("write_buffer_bytes", self.write_buffer_bytes),
        ];
        match positive.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::invalid(format!("setting \"{name}\" must be greater than 0"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_checked() {
        let check = |text: &str| Config { node_id: text.to_owned(), ..Config::default() }.node_id().is_ok();
        assert!(check("node-1"));
        assert!(check(&"a".repeat(64)));
        for bad in ["", "node 1", "näh", "a_b", &"a".repeat(65)] {
            assert!(!check(bad), "{bad:?}");
        }
    }
}
