//! DataFusion as this database configures it, once: settings, functions, rules, memory and spill limits.
//!
//! Invariant: no view types, times in microseconds, lower-case names, and no way to a file: the only object
//! store holds segments, no table factory is reachable, and no statement plans COPY or CREATE EXTERNAL TABLE.

mod ordering;

use std::sync::Arc;

use chrono::DateTime;
use datafusion::arrow::datatypes::{Field, FieldRef};
use datafusion::common::Result as DataFusionResult;
use datafusion::common::config::Dialect;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{FunctionRegistry, SessionState};
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::optimizer::Analyzer;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::ast;

use self::ordering::OrderRule;
use super::functions::generators::{Generator, generators};
use super::guests::functions::GuardRule;
use super::guests::options::GuestOptions;
use super::guests::rule::with_stops;
use super::password::Passwords;
use super::retry_queue::RetryQueues;
use super::workarounds;
use crate::app_context::AppContext;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::types::ColumnType;
use crate::workload::{Spill, StatementControl, StatementPool};

/// The state that all sessions share to plan and run queries.
pub(crate) struct Engine {
    base: SessionState,
    pub(crate) generator: Arc<Generator>,
    pub(crate) passwords: Arc<Passwords>,
    /// Queues of statements that retry after a conflict.
    pub(crate) retry_queues: RetryQueues,
    spill: Arc<Spill>,
}

impl Engine {
    pub(crate) fn new(ctx: &AppContext) -> Result<Self> {
        let generator = Arc::new(Generator::new(Arc::clone(&ctx.clock), &ctx.node_id));
        let mut rules = Analyzer::new().rules;
        rules.insert(0, workarounds::before_coercion());
        rules.extend([workarounds::after_coercion(), Arc::new(GuardRule::new(&ctx.config)) as _]);
        let mut physical_rules = workarounds::physical_rules(PhysicalOptimizer::default().rules);
        physical_rules.insert(0, Arc::new(OrderRule));
        let mut logical_rules = workarounds::optimizer_rules();
        for off in &ctx.config.planner.rules_off {
            let before = logical_rules.len() + physical_rules.len();
            logical_rules.retain(|rule| rule.name() != off);
            physical_rules.retain(|rule| rule.name() != off);
            if before == logical_rules.len() + physical_rules.len() {
                return Err(Error::internal(format!("there is no optimizer rule \"{off}\"")));
            }
        }
        let logical_rules = with_stops(logical_rules);
        let mut base = SessionStateBuilder::new()
            .with_session_id(ctx.node_id.to_string())
            .with_config(session_config(&ctx.config)?)
            .with_runtime_env(Arc::new(shared_runtime(ctx).build()?))
            .with_expr_planners(workarounds::operators())
            .with_default_features()
            .with_analyzer_rules(rules)
            .with_optimizer_rules(logical_rules)
            .with_physical_optimizer_rules(physical_rules)
            .with_type_planner(type_planner())
            .build();
        for function in workarounds::functions() {
            base.register_udf(function)?;
        }
        ctx.committer.snapshot().cold.store().register(base.runtime_env());
        for function in generators(&generator) {
            base.register_udf(function)?;
        }
        let passwords = Arc::new(Passwords::start()?);
        let (retry_queues, spill) = (RetryQueues::default(), Arc::clone(&ctx.spill));
        Ok(Self { base, generator, passwords, retry_queues, spill })
    }

    /// Returns what the plans of one statement run with: its memory, and its files on disk.
    pub(crate) fn runtime(&self, control: &Arc<StatementControl>) -> Result<Arc<RuntimeEnv>> {
        let disk = DiskManagerBuilder::default().with_temp_file_factory(self.spill.files(control));
        Ok(Arc::new(RuntimeEnv {
            memory_pool: Arc::new(StatementPool::new(control.memory())),
            disk_manager: Arc::new(disk.build()?),
            ..RuntimeEnv::clone(self.base.runtime_env())
        }))
    }

    /// Returns the DataFusion state of one statement. `NOW()` is `now_us`, in microseconds since 1970. Rules
    /// and functions find `control` in the options.
    pub(crate) fn state(&self, now_us: i64, control: &Arc<StatementControl>) -> SessionState {
        let mut state = self.base.clone();
        // Before the start of the execution, which keeps the options.
        state.config_mut().options_mut().extensions.insert(GuestOptions(Arc::clone(control)));
        state.mark_start_execution();
        state.execution_props_mut().query_execution_start_time = DateTime::from_timestamp_micros(now_us);
        state
    }
}

fn session_config(config: &Config) -> Result<SessionConfig> {
    let mut session = SessionConfig::new()
        .with_target_partitions(config.query_partitions)
        .with_batch_size(config.batch_rows)
        .with_information_schema(false);
    let options = session.options_mut();
    options.sql_parser.dialect = Dialect::PostgreSQL;
    options.sql_parser.enable_ident_normalization = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.schema_force_view_types = false;
    options.catalog.default_catalog = super::CATALOG.to_owned();
    options.catalog.default_schema = crate::schema_registry::NAMESPACE_PUBLIC.to_owned();
    options.catalog.create_default_catalog_and_schema = false;
    workarounds::configure(&mut session);
    for (name, value) in &config.planner.options {
        session.options_mut().set(name, value)?;
    }
    Ok(session)
}

/// Returns what plans run with that belong to no statement. They sort and join nothing.
fn shared_runtime(ctx: &AppContext) -> RuntimeEnvBuilder {
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(StatementPool::new(ctx.memory.users().all())))
        .with_disk_manager_builder(disk)
}

pub(crate) fn type_planner() -> Arc<dyn TypePlanner> {
    Arc::new(Types)
}

/// Gives SQL types in casts the meaning they have in table definitions.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql: &ast::DataType) -> DataFusionResult<Option<FieldRef>> {
        use ast::DataType as Sql;
        let ours = matches!(
            sql,
            Sql::Timestamp(..)
                | Sql::TimestampNtz(_)
                | Sql::Datetime(_)
                | Sql::Time(..)
                | Sql::Uuid
                | Sql::JSON
                | Sql::JSONB
                | Sql::Custom(..)
                | Sql::Bytea
                | Sql::Bytes(_)
                | Sql::Blob(_)
                | Sql::Float(_)
                | Sql::Float32
                | Sql::Float64
        );
        if !ours {
            return Ok(None);
        }
        match ColumnType::from_sql(sql) {
            Ok(ty) => Ok(Some(Arc::new(Field::new("", ty.arrow(), true)))),
            Err(error) if matches!(sql, Sql::Float(_)) => Err(error.into()),
            // DataFusion handles precisions that columns do not support.
            Err(_) => Ok(None),
        }
    }
}
