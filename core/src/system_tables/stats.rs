//! `system.stats`: metrics of this node, one per row, ordered by name.

use datafusion::arrow::array::RecordBatch;

use super::SystemSources;
use super::columns::{self, text};
use crate::error::Result;
use crate::schema_registry::TableSchemas;

pub(super) fn batch(sources: &SystemSources<'_>, table: &TableSchemas) -> Result<RecordBatch> {
    let mut metrics = metrics(sources);
    metrics.sort_unstable();
    columns::batch(
        table,
        vec![
            text("metric_name", metrics.iter().map(|(name, _)| *name)),
            text("metric_value", metrics.iter().map(|(_, value)| value)),
        ],
    )
}

fn metrics(sources: &SystemSources<'_>) -> Vec<(&'static str, String)> {
    let SystemSources { snapshot, committer, .. } = sources;
    let registry = sources.registry.counters();
    let live = sources.live_queries.counters();
    let storage = committer.storage_metrics();
    let hot = snapshot.hot.counters();
    let (ring_commits, ring_bytes) = committer.commits().size();
    let uptime_us = sources.clock.now_us().saturating_sub(sources.opened_at).max(0);
    vec![
        ("server_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("node_id", sources.node_id.to_string()),
        ("database_id", committer.database_id().to_string()),
        ("server_uptime_seconds", (uptime_us / 1_000_000).to_string()),
        ("epoch", snapshot.epoch.to_string()),
        ("commit_seq", snapshot.seq.to_string()),
        ("commit_queue_len", committer.queue_len().to_string()),
        ("commit_ring_commits", ring_commits.to_string()),
        ("commit_ring_bytes", ring_bytes.to_string()),
        ("change_log_floor_seq", snapshot.log_floor.to_string()),
        ("change_log_bytes", storage.log_bytes.to_string()),
        ("storage_disk_bytes", storage.disk_bytes.to_string()),
        ("storage_memtable_bytes", storage.memtable_bytes.to_string()),
        ("storage_cache_bytes", storage.cache_bytes.to_string()),
        ("hot_tier_bytes", hot.bytes.to_string()),
        ("hot_tier_chunks", hot.chunks.to_string()),
        ("hot_tier_hits", hot.hits.to_string()),
        ("hot_tier_misses", hot.misses.to_string()),
        ("storage_rows_estimate", storage.rows_estimate.to_string()),
        ("hot_rows_bytes", committer.hot_limit().bytes().to_string()),
        ("storage_compactions_running", storage.compactions_running.to_string()),
        ("storage_flushes_running", storage.flushes_running.to_string()),
        ("storage_is_read_only", (!committer.accepts_writes()).to_string()),
        ("storage_reopenings", committer.reopenings().to_string()),
        ("disk_free_bytes", committer.disk_free_bytes().unwrap_or_default().to_string()),
        ("schema_registry_hits", registry.hits.to_string()),
        ("schema_registry_misses", registry.misses.to_string()),
        ("schema_registry_builds", registry.builds.to_string()),
        ("schema_registry_encodings", registry.encodings.to_string()),
        ("schema_registry_entries", registry.entries.to_string()),
        ("schema_registry_bytes", registry.bytes.to_string()),
        ("live_queries", live.subscriptions.to_string()),
        ("live_query_groups", live.groups.to_string()),
        ("live_query_evaluations", live.evaluations.to_string()),
        ("live_query_frames", live.frames.to_string()),
        ("live_query_log_reads", live.log_reads.to_string()),
        ("live_query_resets", live.resets.to_string()),
        ("live_query_ring_bytes", live.ring_bytes.to_string()),
        ("live_query_held_bytes", live.held_bytes.to_string()),
        ("live_query_evictions", live.evictions.to_string()),
        ("live_query_frontier_seq", live.frontier.to_string()),
        ("jobs_running", sources.jobs.running().to_string()),
        ("users", snapshot.catalog.user_count().to_string()),
        ("tables", snapshot.catalog.table_count().to_string()),
        ("namespaces", snapshot.catalog.namespaces().count().to_string()),
    ]
}
