//! The memory that a parsed statement takes.
//!
//! A syntax tree does not tell its size, so its nodes are counted: queries, expressions, lists with the room
//! that they keep free, and texts. What is rare counts by the expressions in it.

use std::convert::Infallible;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArguments, ObjectName, Query, Select, SetExpr, Visit, Visitor,
};

use crate::sql::text::statement::{Parsed, Statement};

/// What an allocation takes beside its contents.
const ALLOCATION_BYTES: usize = 16;
/// What a short text takes with its allocation.
const TEXT_BYTES: usize = 32;
/// Factor from the text of a statement without expressions to its parsed form.
const PLAIN_FACTOR: usize = 8;

/// Returns the bytes that a parsed statement takes beside [`Parsed`] itself. Recurses as deep as the
/// statement nests.
pub(super) fn parsed_bytes(parsed: &Parsed) -> usize {
    let mut tree = Tree::default();
    match &parsed.statement {
        Statement::Query(query) => tree.add(query),
        Statement::Explain(statement) => tree.add(statement),
        Statement::Insert(insert) => tree.add(&insert.source),
        Statement::Update(update) => {
            tree.add(&update.table);
            tree.add(&update.assignments);
            tree.add(&update.selection);
        }
        Statement::Delete(delete) => {
            tree.add(&delete.table);
            tree.add(&delete.selection);
        }
        Statement::Subscribe(subscribe) => tree.add(&subscribe.query),
        _ => tree.bytes = parsed.sql.len().saturating_mul(PLAIN_FACTOR),
    }
    let names = parsed.parameters.names.len().saturating_mul(size_of::<String>() + TEXT_BYTES);
    // The text, and once more in the names and literals of the tree.
    names.saturating_add(parsed.sql.len().saturating_mul(2)).saturating_add(tree.bytes)
}

/// The nodes of a syntax tree that were visited.
#[derive(Default)]
struct Tree {
    bytes: usize,
}

impl Tree {
    fn add(&mut self, part: &impl Visit) {
        let _ = part.visit(self);
    }

    /// Counts a list. Its `expressions` are visited one by one, and count there.
    fn list<T>(&mut self, list: &Vec<T>, expressions: usize) {
        let room = list.capacity() * size_of::<T>();
        self.bytes += room.saturating_sub(expressions * size_of::<Expr>()) + ALLOCATION_BYTES;
    }

    fn texts(&mut self, count: usize) {
        self.bytes += count * TEXT_BYTES;
    }

    fn name(&mut self, name: &ObjectName) {
        self.list(&name.0, 0);
        self.texts(name.0.len());
    }
}

impl Visitor for Tree {
    type Break = Infallible;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Infallible> {
        self.bytes += size_of::<Query>() + size_of::<SetExpr>() + 2 * ALLOCATION_BYTES;
        if let Some(with) = &query.with {
            self.list(&with.cte_tables, 0);
        }
        if let SetExpr::Values(values) = &*query.body {
            self.list(&values.rows, 0);
            for row in &values.rows {
                self.list(&row.content, row.content.len());
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Infallible> {
        self.bytes += size_of::<Select>() + ALLOCATION_BYTES;
        self.list(&select.projection, select.projection.len());
        self.texts(select.projection.len());
        self.list(&select.from, 0);
        for from in &select.from {
            self.list(&from.joins, 0);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<Infallible> {
        self.name(name);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Infallible> {
        self.bytes += size_of::<Expr>() + ALLOCATION_BYTES;
        match expr {
            Expr::Identifier(_) | Expr::Value(_) | Expr::TypedString(_) => self.texts(1),
            Expr::CompoundIdentifier(parts) => {
                self.list(parts, 0);
                self.texts(parts.len());
            }
            Expr::InList { list, .. } | Expr::Tuple(list) => self.list(list, list.len()),
            Expr::Array(array) => self.list(&array.elem, array.elem.len()),
            Expr::Case { conditions, .. } => self.list(conditions, 2 * conditions.len()),
            Expr::Function(function) => {
                self.name(&function.name);
                for arguments in [&function.parameters, &function.args] {
                    if let FunctionArguments::List(list) = arguments {
                        self.list(&list.args, list.args.len());
                    }
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::KnownStatement;
    use super::*;
    use crate::config::Config;
    use crate::sql::text::parse::parse;

    fn size(sql: &str) -> usize {
        KnownStatement::new(parse(sql, &Config::in_memory()).unwrap()).size()
    }

    #[test]
    fn a_statement_counts_by_its_tree_and_not_by_its_text() {
        let select = |count: usize| size(&format!("SELECT {} FROM t", vec!["id + 1"; count].join(", ")));
        // Each of them is a sum, a name and a number.
        let least = 3 * size_of::<Expr>();
        let more = select(400) - select(100);
        assert!((300 * least..1_200 * least).contains(&more), "{more} bytes, {least} each");
        let rows = vec!["(1)"; 1_000].join(", ");
        assert!(size(&format!("INSERT INTO t VALUES {rows}")) >= 1_000 * size_of::<Expr>());
    }

    #[test]
    fn every_kind_of_statement_counts() {
        let condition = format!("a IN ({})", vec!["1"; 500].join(", "));
        for sql in [
            format!("SELECT * FROM t WHERE {condition}"),
            format!("EXPLAIN SELECT * FROM t WHERE {condition}"),
            format!("INSERT INTO t SELECT * FROM t WHERE {condition}"),
            format!("UPDATE t SET a = 1 WHERE {condition}"),
            format!("DELETE FROM t WHERE {condition}"),
            format!("SUBSCRIBE TO (SELECT * FROM t WHERE {condition})"),
        ] {
            assert!(size(&sql) >= 500 * size_of::<Expr>(), "{sql}");
        }
        assert!(size("DROP TABLE t") >= "DROP TABLE t".len());
    }
}
