//! Plans parsed queries with DataFusion, and runs the plans.
//!
//! Names are resolved against the statement's snapshot, one by one as the query names them. Invariant: a
//! result has the announced schema, unless a value does not fit its parameter ([`Bound::is_as_announced`]).

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;

use super::description::{Description, announce};
use super::names::Names;
use super::parameter_types::{self, ParameterTypes, ParameterUse};
use super::scope::{self, Renamed};
use crate::casts::cast;
use crate::error::{Error, Result};
use crate::jobs::JobManager;
use crate::live_query::{Planning, refuse_subqueries};
use crate::schema_registry::TableDefinition;
use crate::sql::execution::{Execution, TableVisibility};
use crate::sql::guests::batches::{batch_rows, with_batch_rows};
use crate::sql::guests::functions::has_long_call;
use crate::sql::guests::heavy::{refuse_heavy, works_long};
use crate::sql::guests::plan::guard_plan;
use crate::sql::guests::windows::guard_windows;
use crate::sql::limits::complexity;
use crate::sql::pump::Query;
use crate::sql::result::{ResultSchema, RowStream};
use crate::sql::text::statement::Parsed;
use crate::sql::workarounds;
use crate::tables::KalamTable;
use crate::types;
use crate::workload::StatementControl;

/// A logical plan with the state it was made with.
pub(crate) struct Planned {
    pub(crate) plan: LogicalPlan,
    pub(crate) state: SessionState,
    pub(crate) control: Arc<StatementControl>,
    /// The memory and the files of the statement.
    pub(crate) runtime: Arc<RuntimeEnv>,
    /// The number of threads that are given up.
    pub(crate) given_up: usize,
    /// Knows how wide hot rows are.
    pub(crate) jobs: Arc<JobManager>,
    /// The use of parameters such as `$1`, where it is more than a comparison.
    pub(crate) uses: HashMap<String, ParameterUse>,
    /// The result names of columns that have an internal name in the plan.
    pub(crate) renamed: Renamed,
}

/// A plan to run.
struct Physical {
    plan: Arc<dyn ExecutionPlan>,
    /// The rows of its batches.
    batch_rows: usize,
}

/// A plan with values in place of its parameters.
pub(crate) struct Bound {
    pub(crate) plan: LogicalPlan,
    /// Whether every value fits the type of its parameter, so that the columns are as announced.
    pub(crate) is_as_announced: bool,
}

/// Plans a query (or an EXPLAIN of one).
pub(crate) fn plan(
    execution: &Execution,
    mut statement: ast::Statement,
    visibility: TableVisibility,
    context: &mut PlannerContext,
) -> Result<Planned> {
    let operators_max = execution.ctx().config.sql_operators_max;
    complexity::check_statement(&statement, operators_max)?;
    let state = execution.engine.state(execution.now_us, &execution.control);
    let options = &state.config_options().sql_parser;
    let options = ParserOptions::new()
        .with_parse_float_as_decimal(options.parse_float_as_decimal)
        .with_enable_ident_normalization(true)
        .with_support_varchar_with_length(true)
        .with_map_string_types_to_utf8view(false);
    let names = Names::new(execution, &state, visibility);
    let renamed = scope::resolve(&mut statement, &names, visibility)?;
    let planned =
        SqlToRel::new_with_options(&names, options).sql_statement_to_plan_with_context(statement, context);
    let plan = planned.map_err(|error| names.explain(error))?;
    complexity::check_plan(&plan, operators_max)?;
    let uses = parameter_types::computed(&plan)?;
    let runtime = execution.engine.runtime(&execution.control)?;
    let (control, given_up) = (Arc::clone(&execution.control), execution.ctx().engine_threads.given_up());
    let jobs = Arc::clone(&execution.ctx().jobs);
    Ok(Planned { plan, state, control, runtime, given_up, jobs, uses, renamed })
}

/// Plans the query of a SELECT statement.
pub(crate) fn plan_query(
    execution: &Execution,
    query: &ast::Query,
    visibility: TableVisibility,
) -> Result<Planned> {
    plan(execution, ast::Statement::Query(Box::new(query.clone())), visibility, &mut PlannerContext::new())
}

/// Plans the query of a live query.
pub(crate) fn plan_live_query(
    execution: &Execution,
    query: &ast::Query,
    visibility: TableVisibility,
) -> Result<Planned> {
    let planned = plan_query(execution, query, visibility)?;
    refuse_subqueries(&planned.plan)?;
    Ok(planned)
}

impl Planned {
    /// Gives every parameter a type; returns the types and the analysed plan.
    ///
    /// A parameter of unknown type is text, as in PostgreSQL, or else a number if text makes the plan fail.
    pub(crate) fn resolve(&self, parameter_count: usize) -> Result<(ParameterTypes, LogicalPlan)> {
        if let LogicalPlan::Explain(_) = self.plan {
            return Ok((parameter_types::types(&self.plan)?, self.plan.clone()));
        }
        if parameter_count == 0 {
            return Ok((HashMap::new(), self.analyse(self.plan.clone())?));
        }
        let types = parameter_types::types(&self.plan)?;
        let mut first_error = None;
        for guess in [DataType::Utf8, DataType::Int64, DataType::Float64] {
            let mut guessed = types.clone();
            for index in 1..=parameter_count {
                let ty = guessed.entry(format!("${index}")).or_default();
                ty.get_or_insert_with(|| guess.clone());
            }
            let nulls = (1..=parameter_count)
                .map(|index| {
                    let ty = guessed.get(&format!("${index}")).and_then(Option::as_ref).unwrap_or(&guess);
                    Ok(ScalarValue::try_from(ty)?)
                })
                .collect::<Result<Vec<_>>>()?;
            let analysed = self
                .plan
                .clone()
                .replace_params_with_values(&ParamValues::from(nulls))
                .map_err(Error::from)
                .and_then(|plan| self.analyse(plan));
            match analysed {
                Ok(plan) => return Ok((guessed, plan)),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| Error::internal("a statement's parameters have no types")))
    }

    fn analyse(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let analyzer = self.state.analyzer();
        let analysed = analyzer.execute_and_check(plan, self.state.config_options(), |_, _| {})?;
        // Before calls of constants are computed.
        refuse_heavy(&analysed, has_long_call, self.given_up)?;
        Ok(analysed)
    }

    /// Replaces parameters by values. A value that does not fit its parameter's type keeps its own type, and
    /// the other operand is widened: an integer is compared with 1.5, not with 2.
    pub(crate) fn bind(&self, types: &ParameterTypes, params: &[ScalarValue]) -> Result<Bound> {
        if params.is_empty() {
            return Ok(Bound { plan: self.plan.clone(), is_as_announced: true });
        }
        let mut is_as_announced = true;
        let values = params
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let name = format!("${}", index + 1);
                let Some(Some(ty)) = types.get(&name) else { return Ok(value.clone()) };
                let fitting = parameter_types::fitting(value, ty, self.uses.get(&name).copied())?;
                is_as_announced &= fitting.is_some();
                Ok(fitting.unwrap_or_else(|| value.clone()))
            })
            .collect::<Result<Vec<_>>>()?;
        let plan = self.plan.clone().replace_params_with_values(&ParamValues::from(values))?;
        Ok(Bound { plan, is_as_announced })
    }

    /// Analyses and optimises the plan, and returns its physical plan.
    async fn physical(&self, plan: LogicalPlan) -> Result<Physical> {
        if let LogicalPlan::Explain(_) = plan {
            let plan = self.state.create_physical_plan(&plan).await?;
            return Ok(Physical { plan, batch_rows: self.state.config().batch_size() });
        }
        let analysed = self.analyse(plan)?;
        self.physical_of_analysed(analysed).await
    }

    async fn physical_of_analysed(&self, analysed: LogicalPlan) -> Result<Physical> {
        let optimised = self.state.optimizer().optimize(analysed, &self.state, |_, _| {})?;
        let optimised = guard_windows(workarounds::guard(optimised)?, &self.control)?;
        refuse_heavy(&optimised, works_long, self.given_up)?;
        let state = workarounds::state_for(&optimised, &self.state);
        let mut plan = self.state.query_planner().create_physical_plan(&optimised, &*state).await?;
        let rows_max = state.config().batch_size();
        let batch_rows = batch_rows(&optimised, rows_max, |table| self.jobs.hot_row_bytes(table))?;
        if batch_rows < rows_max {
            plan = with_batch_rows(plan, batch_rows)?;
        }
        Ok(Physical { plan: guard_plan(plan, &self.control)?, batch_rows })
    }

    /// Runs the plan once per row of parameters, all of the same types, and passes every batch to `take`.
    pub(crate) async fn each_batch(
        &self,
        params: &[Vec<ScalarValue>],
        mut take: impl FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let types = self.resolve(params.first().map_or(0, Vec::len))?.0;
        for params in params {
            let physical = self.physical(self.bind(&types, params)?.plan).await?;
            let context = self.task_context(&physical);
            let mut batches = execute_stream(physical.plan, context)?;
            while let Some(batch) = batches.next().await {
                take(batch?)?;
            }
        }
        Ok(())
    }

    /// Returns the analysed plan with values in place of parameters, and the schema of its rows.
    fn bound_query(
        &self,
        execution: &Execution,
        params: &[ScalarValue],
    ) -> Result<(LogicalPlan, ResultSchema)> {
        let (types, announced) = self.resolve(params.len())?;
        if params.is_empty() {
            let schema = self.result_schema(execution, &announced)?;
            return Ok((announced, schema));
        }
        let bound = self.bind(&types, params)?;
        let is_explain = matches!(bound.plan, LogicalPlan::Explain(_));
        let plan = if is_explain { bound.plan } else { self.analyse(bound.plan)? };
        let schema = self.result_schema(execution, if bound.is_as_announced { &announced } else { &plan })?;
        Ok((plan, schema))
    }

    /// Returns the schema of an analysed plan's rows: the registry's own when the plan reads one table and
    /// returns its visible columns. Other columns are nullable: a plan's nullability is not always right.
    fn result_schema(&self, execution: &Execution, plan: &LogicalPlan) -> Result<ResultSchema> {
        let schema = plan.schema().as_arrow();
        if let Some(table) = only_table(plan)?
            && let Some(schemas) = execution.ctx().schema_registry.match_visible(schema, &table)
        {
            return Ok(ResultSchema {
                schema: Arc::clone(&schemas.visible),
                ipc: Some(schemas.visible_ipc()),
            });
        }
        let fields: Vec<_> = schema
            .fields()
            .iter()
            .map(|field| {
                let plain = types::wire_type(field.data_type());
                let name = self.renamed.get(field.name()).unwrap_or(field.name());
                if plain == *field.data_type() && field.is_nullable() && name == field.name() {
                    Arc::clone(field)
                } else {
                    Arc::new(Field::new(name, plain, true).with_metadata(field.metadata().clone()))
                }
            })
            .collect();
        Ok(ResultSchema { schema: Arc::new(Schema::new(fields)), ipc: None })
    }

    /// Returns what a live query needs from the plan.
    pub(crate) fn planning(&self) -> Planning<'_> {
        Planning {
            state: &self.state,
            simplify: workarounds::simplify,
            guard: workarounds::guard_condition,
            renamed: &self.renamed,
        }
    }

    /// Plans the query; it runs when its rows are requested.
    pub(crate) async fn rows(&self, execution: &Execution, params: &[ScalarValue]) -> Result<RowStream> {
        let (plan, schema) = self.bound_query(execution, params)?;
        let physical = match plan {
            LogicalPlan::Explain(_) => self.physical(plan).await?,
            plan => self.physical_of_analysed(plan).await?,
        };
        let (context, row_schema) = (self.task_context(&physical), Arc::clone(&schema.schema));
        let query = Query::new(&execution.ctx().engine_threads, &execution.control, move || {
            let batches = execute_stream(physical.plan, context)?;
            Ok(batches.map(move |batch| with_schema(&row_schema, batch?)).boxed())
        });
        Ok(RowStream::planned(schema, execution.snapshot.seq, query))
    }

    /// Returns the context in which a plan runs. It has functions only for `information_schema`, which lists
    /// them: a copy of all of them costs as much as a short query.
    fn task_context(&self, Physical { plan, batch_rows }: &Physical) -> Arc<TaskContext> {
        let config = self.state.config().clone().with_batch_size(*batch_rows);
        let lists_functions = plan.exists(|node| Ok(node.is::<StreamingTableExec>())).unwrap_or(true);
        if lists_functions {
            let context = TaskContext::from(&self.state).with_session_config(config);
            return Arc::new(context.with_runtime(Arc::clone(&self.runtime)));
        }
        Arc::new(TaskContext::new(
            None,
            self.state.session_id().to_owned(),
            config,
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            Arc::clone(&self.runtime),
        ))
    }
}

/// Returns the schema of a query without parameters.
pub(crate) fn query_schema(execution: &Execution, query: &ast::Query) -> Result<ResultSchema> {
    let planned = plan_query(execution, query, TableVisibility::default())?;
    planned.result_schema(execution, &planned.resolve(0)?.1)
}

/// Describes a planned query or EXPLAIN; its schema is that for the values, if there are any.
pub(crate) fn query_description(
    execution: &Execution,
    parsed: &Parsed,
    planned: Planned,
    values: Option<&[ScalarValue]>,
) -> Result<Description> {
    let (types, analysed) = planned.resolve(parsed.parameters.count)?;
    let schema = match values {
        Some(values) => planned.bound_query(execution, values)?.1,
        None => planned.result_schema(execution, &analysed)?,
    };
    let parameters = announce(parsed, &types);
    Ok(Description { parameters, types, uses: planned.uses, ..Description::of_rows(schema) })
}

/// Returns the table of a plan that reads exactly one table, once.
fn only_table(plan: &LogicalPlan) -> Result<Option<Arc<TableDefinition>>> {
    let mut tables = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            let any: &dyn std::any::Any = provider.as_ref();
            tables
                .push(any.downcast_ref::<KalamTable>().map(|table| Arc::clone(&table.schemas().definition)));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    match tables.pop() {
        Some(table) if tables.is_empty() => Ok(table),
        _ => Ok(None),
    }
}

/// Returns the batch with exactly `schema`; casts only columns whose type differs.
pub(crate) fn with_schema(schema: &SchemaRef, batch: RecordBatch) -> Result<RecordBatch> {
    if Arc::ptr_eq(schema, batch.schema_ref()) {
        return Ok(batch);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else {
                Ok(cast(column, field.data_type())?)
            }
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// Whether two schemas have the same columns, ignoring metadata.
pub(crate) fn same_columns(one: &SchemaRef, other: &SchemaRef) -> bool {
    Arc::ptr_eq(one, other)
        || (one.fields().len() == other.fields().len()
            && one.fields().iter().zip(other.fields()).all(|(one, other)| {
                one.name() == other.name()
                    && one.data_type() == other.data_type()
                    && one.is_nullable() == other.is_nullable()
            }))
}
