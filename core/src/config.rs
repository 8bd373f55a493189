//! Settings of the core: plain data with defaults; names carry the units. The embedder decides where they
//! come from (flags, environment, files).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::NodeId;
use crate::platform;

/// All settings of the core. `Config::default()` is a working database in `./kalamdb-data`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The data directory; `None` keeps the data in memory, for tests and throw-away databases.
    pub data_dir: Option<PathBuf>,
    /// The name of this process: 1 to 64 letters, digits and hyphens.
    pub node_id: String,
    /// The password of `root` at the first start; a random one is generated when absent.
    #[serde(skip_serializing)]
    pub root_password: Option<String>,
    /// The longest SQL text.
    pub sql_bytes_max: usize,
    /// The most chained operators and set operations in one statement; more could overflow the planner's
    /// stack.
    pub sql_operators_max: usize,
    /// The most parameters of one statement.
    pub parameters_max: usize,
    /// The largest stored row.
    pub row_bytes_max: usize,
    /// The most rows one statement may write.
    pub statement_rows_max: usize,
    /// The most bytes one statement may write.
    pub statement_bytes_max: usize,
    /// An INSERT of at least this many bytes is written directly as segments and is never hot. Inserts of
    /// mostly NULLs and tables in a bucket are exempt; 0 disables it.
    pub large_insert_bytes: usize,
    /// The most statements that run at the same time; 0 means four per processor, and at least 8. Others wait
    /// for their turn. Reads by a whole key and small INSERTs of values need no turn.
    pub statements_running_max: usize,
    /// The most statements of one user that run at the same time; 0 means three quarters of all.
    pub statements_running_per_user_max: usize,
    /// The most statements that wait for their turn; more are refused.
    pub statements_queued_max: usize,
    /// The most statements of one user that wait for their turn.
    pub statements_queued_per_user_max: usize,
    /// How long a statement waits for its turn before it is refused; 0 sets no limit.
    pub statement_queue_timeout_ms: u64,
    /// The most processor time that a statement may use in one step, which cannot be interrupted. A statement
    /// that uses more ends with 54000; 0 sets no limit.
    pub step_cpu_ms_max: u64,
    /// The most steps, of about a nanosecond, that a function may need for one row, as estimated before the
    /// call. A call that may need more is refused with 54000; 0 sets no limit.
    pub function_cost_max: u64,
    /// How long a statement may take, from its arrival until its last row is read; 0 sets no limit. A session
    /// can SET another `statement_timeout`.
    pub statement_timeout_ms: u64,
    /// How long a session may do nothing before it ends; 0 sets no limit. A session can SET another
    /// `idle_session_timeout`.
    pub idle_session_timeout_ms: u64,
    /// Statements that take longer are logged; 0 logs none.
    pub slow_statement_ms: u64,
    /// Memory that all statements, prepared statements and sent rows share. Beyond it sorts and groups
    /// spill, and the rest ends with 53200; 0 means a quarter of the memory of the machine or of its control
    /// group, and at most 1 GiB.
    pub query_memory_bytes: usize,
    /// The part of it that one user may have; 0 means half of it.
    pub user_memory_bytes: usize,
    /// The part of it that one statement may have; 0 means half of it.
    pub statement_memory_bytes: usize,
    /// Bytes that all statements together may spill to disk. Beyond it they end with 53400.
    pub spill_bytes_max: u64,
    /// Bytes that one statement may spill; 0 means a quarter of `spill_bytes_max`.
    pub statement_spill_bytes_max: u64,
    /// Partitions of a query plan.
    pub query_partitions: usize,
    /// Rows in one batch of a scan.
    pub batch_rows: usize,
    /// Write sets that may wait for the sequencer. Further writers wait for a free place.
    pub commit_queue_len_max: usize,
    /// Bytes of recent commits kept in memory for live queries. Older commits are read from the change log.
    pub commit_ring_bytes: usize,
    /// Bytes of encoded frames that one live query keeps for its slow subscribers.
    pub live_ring_bytes: usize,
    /// Bytes of frames that were made for single subscribers and wait to be sent. Beyond it they are dropped,
    /// and made again when they can be sent; 0 sets no limit.
    pub live_held_bytes_max: usize,
    /// As `live_held_bytes_max`, for the subscribers of one user.
    pub live_held_per_user_bytes_max: usize,
    /// The most live queries in the process.
    pub subscriptions_max: usize,
    /// The most live queries of one user.
    pub subscriptions_per_user_max: usize,
    /// How long the change log is kept, and so how long a live query can be away and still resume.
    pub change_log_retention_s: u64,
    /// The size up to which the change log is kept. The limit that is reached first trims it.
    pub change_log_bytes_max: u64,
    /// Bytes of hot rows cached as columns for scans; 0 caches none.
    pub hot_cache_bytes: usize,
    /// Bytes of segment footers and key filters kept in memory.
    pub segment_cache_bytes: usize,
    /// Bytes of rows that may wait for a flush. Writers are slowed from 4/5 of it on and refused with 53100
    /// at the limit; 0 sets no limit.
    pub hot_bytes_max: u64,
    /// The `FLUSH_POLICY` of tables created without one.
    pub flush_policy: String,
    /// How often tables are checked for a due flush.
    pub flush_check_interval_ms: u64,
    /// How often STREAM tables are checked for expired rows.
    pub expiry_interval_ms: u64,
    /// How often expired rows of `system.jobs` and `system.audit_logs` are removed.
    pub retention_interval_ms: u64,
    /// Days that rows of finished jobs are kept; 0 keeps them forever.
    pub job_retention_days: u32,
    /// Days that rows of the audit log are kept; 0 keeps them forever.
    pub audit_retention_days: u32,
    /// How long a shutdown may spend flushing tables with many hot rows; 0 flushes none.
    pub shutdown_flush_ms: u64,
    /// How often the change log is trimmed.
    pub trim_interval_ms: u64,
    /// The size of RocksDB's block cache.
    pub block_cache_bytes: usize,
    /// The size of RocksDB's memtable per column family.
    pub write_buffer_bytes: usize,
    /// Bytes to keep free on the data directory's disk. Below it, writes that grow the store are refused; 0
    /// disables the check.
    pub disk_free_min_bytes: u64,
    /// How long a query may hold its snapshot. Its last row must be read within this time.
    pub snapshot_age_max_s: u64,
    /// How often an autocommit statement is retried after a conflict with another commit.
    pub conflict_retries_max: usize,
    /// Bytes of changed rows that a live query evaluates at once; a larger commit is read in pieces. Tests
    /// lower it to cut small commits.
    #[doc(hidden)]
    #[serde(skip)]
    pub live_piece_bytes: usize,
    /// Planner settings for tests that compare plans of one query.
    #[doc(hidden)]
    #[serde(skip)]
    pub planner: PlannerOverrides,
}

/// Overrides of the planner's settings.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct PlannerOverrides {
    /// Names, as DataFusion spells them, and values of settings.
    pub options: Vec<(String, String)>,
    /// Names of optimizer rules to turn off.
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
            statements_running_max: 0,
            statements_running_per_user_max: 0,
            statements_queued_max: 1_000,
            statements_queued_per_user_max: 250,
            statement_queue_timeout_ms: 30_000,
            step_cpu_ms_max: 5_000,
            function_cost_max: 500_000_000,
            statement_timeout_ms: 0,
            idle_session_timeout_ms: 0,
            slow_statement_ms: 1_000,
            query_memory_bytes: 0,
            user_memory_bytes: 0,
            statement_memory_bytes: 0,
            spill_bytes_max: 10 << 30,
            statement_spill_bytes_max: 0,
            query_partitions: 2,
            batch_rows: 8_192,
            commit_queue_len_max: 4_096,
            commit_ring_bytes: 32 << 20,
            live_ring_bytes: 4 << 20,
            live_held_bytes_max: 64 << 20,
            live_held_per_user_bytes_max: 16 << 20,
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
            live_piece_bytes: 1 << 20,
            planner: PlannerOverrides::default(),
        }
    }
}

impl Config {
    /// Returns the settings of an in-memory database. Its data is gone when it is closed.
    pub fn in_memory() -> Self {
        Self { data_dir: None, ..Self::default() }
    }

    /// Returns the settings of a database in `data_dir`.
    pub fn at(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: Some(data_dir.into()), ..Self::default() }
    }

    /// Returns the node's name.
    ///
    /// # Errors
    /// 22023 when it is empty, longer than 64 bytes, or has characters other than ASCII letters, digits and
    /// hyphens.
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

    /// Returns [`Config::statements_running_max`] with its default filled in.
    pub(crate) fn statements_running_max(&self) -> usize {
        match self.statements_running_max {
            0 => platform::processors().saturating_mul(4).max(8),
            statements => statements,
        }
    }

    /// Returns [`Config::statements_running_per_user_max`] with its default filled in.
    pub(crate) fn statements_running_per_user_max(&self) -> usize {
        match self.statements_running_per_user_max {
            0 => (self.statements_running_max().saturating_mul(3) / 4).max(1),
            statements => statements,
        }
    }

    /// Returns [`Config::function_cost_max`], or the largest number for no limit.
    pub(crate) fn function_cost_max(&self) -> u64 {
        match self.function_cost_max {
            0 => u64::MAX,
            steps => steps,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// 22023 with the name of the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        self.node_id()?;
        let positive = [
            ("sql_bytes_max", self.sql_bytes_max),
            ("sql_operators_max", self.sql_operators_max),
            ("row_bytes_max", self.row_bytes_max),
            ("statement_rows_max", self.statement_rows_max),
            ("statement_bytes_max", self.statement_bytes_max),
            ("statements_queued_max", self.statements_queued_max),
            ("statements_queued_per_user_max", self.statements_queued_per_user_max),
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
    fn one_user_leaves_some_of_the_running_statements_to_others() {
        let of_user = |statements_running_max, statements_running_per_user_max| {
            let config =
                Config { statements_running_max, statements_running_per_user_max, ..Config::in_memory() };
            config.statements_running_per_user_max()
        };
        assert_eq!((of_user(8, 0), of_user(1, 0), of_user(8, 3)), (6, 1, 3));
        assert!(Config::in_memory().statements_running_max() > of_user(0, 0));
        for invalid in [
            Config { statements_queued_max: 0, ..Config::in_memory() },
            Config { statements_queued_per_user_max: 0, ..Config::in_memory() },
        ] {
            assert!(invalid.validate().is_err());
        }
    }

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
