//! Refuses, by name, clauses that the SQL parser reads and the planner ignores.
//!
//! Every field of a node is named, so that a parser with new clauses does not compile until each is handled.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    CastKind, Cte, Expr, Function, FunctionArguments, GroupByExpr, LimitClause, ObjectName, OrderBy,
    OrderByKind, Query, Select, SelectItem, SetExpr, TableAlias, TableFactor, Visit, Visitor,
};

use crate::error::{Error, Result};

/// Checks the queries and expressions of a statement.
///
/// # Errors
/// 0A000 for a clause without effect.
pub(super) fn check(statement: &impl Visit) -> Result<()> {
    match statement.visit(&mut Clauses) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Clauses;

impl Visitor for Clauses {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Error> {
        flow(of_query(query))
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Error> {
        flow(of_select(select))
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Error> {
        flow(of_factor(factor))
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Error> {
        match expr {
            Expr::Function(function) => flow(of_function(function)),
            Expr::Cast { kind, array, format, .. } => {
                flow(refuse(*array, "CAST AS ... ARRAY").and_then(|()| {
                    refuse(format.is_some(), "CAST ... FORMAT")?;
                    refuse(*kind == CastKind::SafeCast, "SAFE_CAST")
                }))
            }
            Expr::Collate { collation, .. } if !is_of_bytes(collation) => ControlFlow::Break(
                Error::unsupported(format!("COLLATE {collation}"))
                    .hint("text is compared by its bytes, as with COLLATE \"C\""),
            ),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Whether a collation compares bytes.
fn is_of_bytes(collation: &ObjectName) -> bool {
    let name = collation.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.as_str());
    matches!(name, Some("C" | "POSIX" | "ucs_basic"))
}

fn flow(outcome: Result<()>) -> ControlFlow<Error> {
    match outcome {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    }
}

/// Returns an error that names the clause if the condition holds.
pub(super) fn refuse(condition: bool, clause: &str) -> Result<()> {
    if condition { Err(Error::unsupported(clause)) } else { Ok(()) }
}

fn of_query(query: &Query) -> Result<()> {
    let Query {
        with,
        body,
        order_by,
        limit_clause,
        fetch,
        locks,
        for_clause,
        settings,
        format_clause,
        pipe_operators,
    } = query;
    refuse_volatile_read_twice(query)?;
    for cte in with.iter().flat_map(|with| &with.cte_tables) {
        // A common table expression runs at each reference. Its rows are the same, or it was refused above.
        let Cte { alias, query, from, materialized: _, closing_paren_token: _ } = cte;
        of_alias(alias)?;
        refuse(from.is_some(), "WITH ... FROM")?;
        if with.as_ref().is_some_and(|with| with.recursive)
            && matches!(*query.body, SetExpr::SetOperation { .. })
        {
            let is_bare = query.with.is_none()
                && query.order_by.is_none()
                && query.limit_clause.is_none()
                && query.fetch.is_none();
            if !is_bare {
                return Err(Error::unsupported("WITH, ORDER BY or LIMIT around the UNION of WITH RECURSIVE")
                    .hint("move it to the SELECT that reads the common table expression"));
            }
        }
    }
    if let Some(order_by) = order_by {
        of_order(order_by)?;
    }
    if let Some(LimitClause::LimitOffset { limit_by, .. }) = limit_clause {
        refuse(!limit_by.is_empty(), "LIMIT ... BY")?;
    }
    if let Some(fetch) = fetch {
        refuse(fetch.with_ties, "FETCH ... WITH TIES")?;
        refuse(fetch.percent, "FETCH ... PERCENT")?;
        refuse(
            matches!(
                limit_clause,
                Some(LimitClause::LimitOffset { limit: Some(_), .. } | LimitClause::OffsetCommaLimit { .. })
            ),
            "LIMIT together with FETCH",
        )?;
    }
    refuse(!locks.is_empty(), "SELECT ... FOR UPDATE")?;
    refuse(for_clause.is_some(), "FOR XML, FOR JSON and FOR BROWSE")?;
    refuse(settings.is_some(), "SETTINGS")?;
    refuse(format_clause.is_some(), "FORMAT")?;
    refuse(!pipe_operators.is_empty(), "|>")?;
    match &**body {
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            Err(Error::unsupported("INSERT, UPDATE, DELETE or MERGE inside a query"))
        }
        SetExpr::Table(_) => Err(Error::unsupported("TABLE t").hint("write SELECT * FROM t")),
        SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::SetOperation { .. } | SetExpr::Values(_) => Ok(()),
    }
}

/// Functions that return another value with each call.
const VOLATILE: [&str; 5] = ["random", "uuid", "uuid_v7", "ulid", "snowflake_id"];

/// Refuses a common table expression that is read twice and calls a function of [`VOLATILE`].
fn refuse_volatile_read_twice(query: &Query) -> Result<()> {
    let mut volatile: Vec<&str> = Vec::new();
    for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
        let mut found = VolatileCalls { names: &volatile, is_called: false, uses: 0 };
        let _ = cte.query.visit(&mut found);
        if found.is_called || found.uses > 0 {
            volatile.push(&cte.alias.name.value);
        }
    }
    for name in volatile {
        let mut found = VolatileCalls { names: &[name], is_called: false, uses: 0 };
        let _ = query.visit(&mut found);
        if found.uses > 1 {
            let what = format!("reading WITH \"{name}\" twice when it calls a function such as random()");
            return Err(Error::unsupported(what).hint("store its rows in a table first"));
        }
    }
    Ok(())
}

struct VolatileCalls<'a> {
    names: &'a [&'a str],
    is_called: bool,
    /// How often one of `names` is read.
    uses: usize,
}

impl Visitor for VolatileCalls<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            self.is_called |= VOLATILE.contains(&function.name.to_string().to_lowercase().as_str());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, .. } = factor
            && let [part] = name.0.as_slice()
            && let Some(ident) = part.as_ident()
        {
            self.uses += usize::from(self.names.iter().any(|known| known.eq_ignore_ascii_case(&ident.value)));
        }
        ControlFlow::Continue(())
    }
}

fn of_order(order_by: &OrderBy) -> Result<()> {
    let OrderBy { kind, interpolate } = order_by;
    refuse(interpolate.is_some(), "ORDER BY ... INTERPOLATE")?;
    match kind {
        OrderByKind::All(_) => Err(Error::unsupported("ORDER BY ALL").hint("name the columns")),
        OrderByKind::Expressions(exprs) => {
            refuse(exprs.iter().any(|expr| expr.with_fill.is_some()), "ORDER BY ... WITH FILL")
        }
    }
}

fn of_select(select: &Select) -> Result<()> {
    let Select {
        select_token: _,
        optimizer_hints: _, // Hints are comments.
        distinct: _,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection,
        exclude,
        into,
        from,
        lateral_views,
        prewhere,
        selection: _,
        connect_by,
        group_by,
        cluster_by,
        distribute_by,
        sort_by,
        having: _,
        named_window: _,
        qualify: _,
        window_before_qualify: _,
        value_table_mode,
        flavor: _,
    } = select;
    let is_text = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => alias.quote_style == Some('\''),
        _ => false,
    };
    if from.is_empty() && projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_))) {
        return Err(Error::syntax("SELECT * names no table").hint("add FROM"));
    }
    if projection.iter().any(is_text) {
        return Err(
            Error::syntax("a column alias cannot be a string literal").hint("put names in double quotes")
        );
    }
    refuse(select_modifiers.is_some(), "a modifier after SELECT")?;
    refuse(top.is_some(), "TOP").map_err(|error| error.hint("write LIMIT"))?;
    refuse(exclude.is_some(), "EXCLUDE after the select list")?;
    refuse(into.is_some(), "SELECT INTO")?;
    refuse(!lateral_views.is_empty(), "LATERAL VIEW")?;
    refuse(prewhere.is_some(), "PREWHERE")?;
    refuse(!connect_by.is_empty(), "CONNECT BY").map_err(|error| error.hint("write WITH RECURSIVE"))?;
    refuse(!cluster_by.is_empty(), "CLUSTER BY")?;
    refuse(!distribute_by.is_empty(), "DISTRIBUTE BY")?;
    refuse(!sort_by.is_empty(), "SORT BY")?;
    refuse(value_table_mode.is_some(), "SELECT AS STRUCT and SELECT AS VALUE")?;
    refuse(from.iter().flat_map(|from| &from.joins).any(|join| join.global), "GLOBAL JOIN")?;
    let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = group_by;
    refuse(!modifiers.is_empty(), "WITH after GROUP BY")
        .map_err(|error| error.hint("write GROUP BY ROLLUP (...)"))
}

fn of_factor(factor: &TableFactor) -> Result<()> {
    match factor {
        TableFactor::Table {
            name: _,
            alias,
            args,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
        } => {
            alias.as_ref().map_or(Ok(()), of_alias)?;
            refuse(args.as_ref().is_some_and(|args| args.settings.is_some()), "SETTINGS")?;
            refuse(!with_hints.is_empty() || !index_hints.is_empty(), "a hint after a table")?;
            refuse(version.is_some(), "a table as of another time")?;
            refuse(*with_ordinality, "WITH ORDINALITY")?;
            refuse(!partitions.is_empty(), "PARTITION after a table")?;
            refuse(json_path.is_some(), "a JSON path after a table")?;
            refuse(sample.is_some(), "TABLESAMPLE").map_err(|error| error.hint("write WHERE random() < 0.1"))
        }
        TableFactor::Derived { lateral: _, subquery: _, alias, sample } => {
            alias.as_ref().map_or(Ok(()), of_alias)?;
            refuse(sample.is_some(), "TABLESAMPLE").map_err(|error| error.hint("write WHERE random() < 0.1"))
        }
        TableFactor::Function { lateral: _, name: _, args: _, with_ordinality, alias } => {
            alias.as_ref().map_or(Ok(()), of_alias)?;
            refuse(*with_ordinality, "WITH ORDINALITY")
        }
        TableFactor::UNNEST { alias, array_exprs: _, with_offset, with_offset_alias: _, with_ordinality } => {
            alias.as_ref().map_or(Ok(()), of_alias)?;
            refuse(*with_offset, "WITH OFFSET")?;
            refuse(*with_ordinality, "WITH ORDINALITY")
        }
        TableFactor::NestedJoin { table_with_joins, alias } => {
            alias.as_ref().map_or(Ok(()), of_alias)?;
            refuse(table_with_joins.joins.iter().any(|join| join.global), "GLOBAL JOIN")
        }
        TableFactor::TableFunction { .. } => refuse(true, "TABLE (...)"),
        TableFactor::JsonTable { .. } | TableFactor::OpenJsonTable { .. } => refuse(true, "JSON_TABLE"),
        TableFactor::XmlTable { .. } => refuse(true, "XMLTABLE"),
        TableFactor::Pivot { .. } => refuse(true, "PIVOT"),
        TableFactor::Unpivot { .. } => refuse(true, "UNPIVOT"),
        TableFactor::MatchRecognize { .. } => refuse(true, "MATCH_RECOGNIZE"),
        TableFactor::SemanticView { .. } => refuse(true, "SEMANTIC_VIEW"),
    }
}

fn of_alias(alias: &TableAlias) -> Result<()> {
    let TableAlias { explicit: _, name: _, columns, at } = alias;
    refuse(at.is_some(), "AT after an alias")?;
    refuse(columns.iter().any(|column| column.data_type.is_some()), "column types in an alias")
}

fn of_function(function: &Function) -> Result<()> {
    let Function {
        name: _,
        uses_odbc_syntax: _,
        parameters,
        args,
        filter: _,
        null_treatment: _,
        over: _,
        within_group: _,
    } = function;
    refuse(!matches!(parameters, FunctionArguments::None), "a call with two argument lists")?;
    refuse(matches!(args, FunctionArguments::Subquery(_)), "a query as the argument of a function")
        .map_err(|error| error.hint("put the query into its own parentheses"))
}
