//! Resolves the names in a statement: tables of the snapshot, session functions, DataFusion's functions.

use std::cell::RefCell;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::cte_worktable::CteWorkTable;
use datafusion::catalog::default_table_source::provider_as_source;
use datafusion::catalog::{TableFunctionArgs, TableProvider};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{
    DFSchema, Result as DataFusionResult, ScalarValue, TableReference, plan_datafusion_err,
};
use datafusion::execution::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{AggregateUDF, Expr, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use super::catalog;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::sql::engine::type_planner;
use crate::sql::execution::{Execution, TableVisibility};
use crate::sql::functions::session_functions::{SESSION_FUNCTIONS, session_function};
use crate::sql::guests::functions::guard_calls;
use crate::sql::text::cursor::QualifiedName;
use crate::sql::{CATALOG, INFORMATION_SCHEMA};

/// The names that the planner can use in one statement.
pub(crate) struct Names<'a> {
    execution: &'a Execution,
    state: &'a SessionState,
    visibility: TableVisibility,
    /// The first unknown function of the statement; the planner reports it only as text.
    unknown_function: RefCell<Option<String>>,
}

/// The columns of a table as a wildcard shows them.
pub(crate) struct TableColumns {
    pub(crate) names: Vec<Arc<str>>,
    /// The planner's table has more columns.
    pub(crate) has_hidden: bool,
}

impl<'a> Names<'a> {
    pub(crate) fn new(
        execution: &'a Execution,
        state: &'a SessionState,
        visibility: TableVisibility,
    ) -> Self {
        Self { execution, state, visibility, unknown_function: RefCell::new(None) }
    }

    /// Returns why planning failed: 42883 when a function was not found, else `error`.
    pub(crate) fn explain(self, error: impl Into<Error>) -> Error {
        match self.unknown_function.into_inner() {
            Some(name) => Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_FUNCTION,
                format!("function \"{name}\" does not exist"),
            ),
            None => error.into(),
        }
    }

    fn note_function(&self, name: &str) {
        let known = self.state.scalar_functions().contains_key(name)
            || self.state.higher_order_functions().contains_key(name)
            || self.state.aggregate_functions().contains_key(name)
            || self.state.window_functions().contains_key(name)
            || SESSION_FUNCTIONS.contains(&name);
        if !known {
            self.unknown_function.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
    }

    /// Returns the columns of a table that a wildcard shows, without hidden ones such as `_seq`.
    pub(crate) fn columns(&self, name: &QualifiedName, visibility: TableVisibility) -> Result<TableColumns> {
        if self.execution.namespace_of(name) == INFORMATION_SCHEMA {
            let provider = catalog::information_schema(self.execution, &name.name)?;
            let names =
                provider.schema().fields().iter().map(|field| Arc::from(field.name().as_str())).collect();
            return Ok(TableColumns { names, has_hidden: false });
        }
        let table = self.execution.readable(name)?;
        let names = table.columns.iter().map(|column| Arc::clone(&column.name)).collect();
        Ok(TableColumns { names, has_hidden: visibility.names_seq || visibility.target == Some(table.id) })
    }

    /// Whether a name is that of a scalar function and of no aggregate or window function.
    pub(crate) fn is_scalar_function(&self, name: &str) -> bool {
        self.get_function_meta(name).is_some()
            && !self.state.aggregate_functions().contains_key(name)
            && !self.state.window_functions().contains_key(name)
    }

    fn table(&self, name: &TableReference) -> Result<Arc<dyn TableProvider>> {
        let name = match name {
            TableReference::Bare { table } => QualifiedName { namespace: None, name: table.to_string() },
            TableReference::Partial { schema, table } => {
                QualifiedName { namespace: Some(schema.to_string()), name: table.to_string() }
            }
            TableReference::Full { catalog, schema, table } => {
                if &**catalog != CATALOG {
                    return Err(Error::table_not_found(format!("{catalog}.{schema}.{table}"))
                        .hint("the only catalog is \"kalam\""));
                }
                QualifiedName { namespace: Some(schema.to_string()), name: table.to_string() }
            }
        };
        if self.execution.namespace_of(&name) == INFORMATION_SCHEMA {
            return catalog::information_schema(self.execution, &name.name);
        }
        let definition = self.execution.readable(&name)?;
        catalog::provider(self.execution, definition, self.visibility)
    }
}

/// Converts a constant to a type that table functions take: nanoseconds for timestamps, BIGINT for integers.
fn for_table_function(arg: Expr) -> Expr {
    match arg {
        Expr::Literal(ScalarValue::TimestampMicrosecond(us, zone), metadata) => {
            let value = match us.map(|us| us.checked_mul(1_000)) {
                Some(None) => ScalarValue::TimestampMicrosecond(us, zone),
                ns => ScalarValue::TimestampNanosecond(ns.flatten(), zone),
            };
            Expr::Literal(value, metadata)
        }
        Expr::Literal(ScalarValue::Int16(value), metadata) => {
            Expr::Literal(ScalarValue::Int64(value.map(i64::from)), metadata)
        }
        Expr::Literal(ScalarValue::Int32(value), metadata) => {
            Expr::Literal(ScalarValue::Int64(value.map(i64::from)), metadata)
        }
        other => other,
    }
}

impl ContextProvider for Names<'_> {
    fn get_table_source(&self, name: TableReference) -> DataFusionResult<Arc<dyn TableSource>> {
        Ok(provider_as_source(self.table(&name)?))
    }

    fn get_table_function_source(
        &self,
        name: &str,
        args: Vec<Expr>,
    ) -> DataFusionResult<Arc<dyn TableSource>> {
        let function = self
            .state
            .table_functions()
            .get(name)
            .ok_or_else(|| plan_datafusion_err!("table function \"{name}\" does not exist"))?;
        let context = SimplifyContext::builder()
            .with_config_options(Arc::clone(self.state.config_options()))
            .with_query_execution_start_time(self.state.execution_props().query_execution_start_time)
            .build();
        let simplifier = ExprSimplifier::new(context);
        let schema = DFSchema::empty();
        let steps_max = self.execution.ctx().config.function_cost_max();
        let args = args
            .into_iter()
            .map(|arg| {
                // The planner needs the values before there is a plan to guard.
                simplifier
                    .coerce(arg, &schema)
                    .and_then(|arg| guard_calls(arg, steps_max))
                    .and_then(|arg| simplifier.simplify(arg.data))
                    .map(for_table_function)
            })
            .collect::<DataFusionResult<Vec<_>>>()?;
        let provider = function.create_table_provider_with_args(TableFunctionArgs::new(&args, self.state))?;
        Ok(provider_as_source(provider))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> DataFusionResult<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        self.state.relation_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(type_planner())
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let principal = &self.execution.principal;
        session_function(name, &principal.username, principal.role.name(), &self.execution.namespace)
            .or_else(|| self.state.scalar_functions().get(name).cloned())
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.note_function(name);
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        let own = SESSION_FUNCTIONS.into_iter().map(str::to_owned);
        self.state.scalar_functions().keys().cloned().chain(own).collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}
