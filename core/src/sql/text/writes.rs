//! INSERT, UPDATE and DELETE, from what the SQL parser reads. Refuses, by name, the clauses that the database
//! lacks.
//!
//! Every field of a node is named, so that a parser with new clauses does not compile until each is handled.

use datafusion::sql::sqlparser::ast;

use super::clauses::refuse;
use super::cursor::qualified;
use super::statement::{Delete, Insert, Update};
use crate::error::{Error, Result};

/// Returns an INSERT, unless it has a clause that the database lacks.
pub(super) fn insert(insert: ast::Insert) -> Result<Insert> {
    let ast::Insert {
        insert_token: _,
        optimizer_hints: _, // Hints are comments.
        or,
        ignore,
        into: _,
        table,
        table_alias,
        columns,
        overwrite,
        source,
        assignments,
        partitioned,
        after_columns,
        has_table_keyword: _,
        on,
        returning,
        output,
        replace_into,
        priority,
        insert_alias,
        settings,
        format_clause,
        multi_table_insert_type,
        multi_table_into_clauses,
        multi_table_when_clauses,
        multi_table_else_clause,
    } = insert;
    refuse(on.is_some() || or.is_some() || ignore, "INSERT ... ON CONFLICT")?;
    refuse(returning.is_some() || output.is_some(), "RETURNING")?;
    refuse(overwrite || replace_into, "INSERT OVERWRITE and REPLACE")?;
    refuse(table_alias.is_some() || insert_alias.is_some(), "an alias for the table of INSERT")?;
    refuse(!assignments.is_empty(), "INSERT ... SET")?;
    refuse(partitioned.is_some() || !after_columns.is_empty(), "INSERT ... PARTITION")?;
    let is_multi_table = multi_table_insert_type.is_some()
        || !multi_table_into_clauses.is_empty()
        || !multi_table_when_clauses.is_empty()
        || multi_table_else_clause.is_some();
    refuse(
        settings.is_some() || format_clause.is_some() || priority.is_some() || is_multi_table,
        "this form of INSERT",
    )?;
    let ast::TableObject::TableName(table) = table else {
        return Err(Error::unsupported("INSERT into anything but a table"));
    };
    let names = columns.iter().map(|column| qualified(column, "column").map(|name| name.name));
    let columns = names.collect::<Result<Vec<_>>>()?;
    Ok(Insert { table: qualified(&table, "table")?, columns, source })
}

/// Returns an UPDATE, unless it has a clause that the database lacks.
pub(super) fn update(update: ast::Update) -> Result<Update> {
    let ast::Update {
        update_token: _,
        optimizer_hints: _,
        table,
        assignments,
        from,
        selection,
        returning,
        output,
        or,
        order_by,
        limit,
    } = update;
    refuse(from.is_some() || !table.joins.is_empty(), "UPDATE ... FROM")?;
    refuse(returning.is_some() || output.is_some(), "RETURNING")?;
    refuse(or.is_some(), "UPDATE OR ...")?;
    refuse(limit.is_some() || !order_by.is_empty(), "UPDATE ... ORDER BY ... LIMIT")?;
    Ok(Update { table, assignments, selection })
}

/// Returns a DELETE, unless it has a clause that the database lacks.
pub(super) fn delete(delete: ast::Delete) -> Result<Delete> {
    let ast::Delete {
        delete_token: _,
        optimizer_hints: _,
        tables,
        from,
        using,
        selection,
        returning,
        output,
        order_by,
        limit,
    } = delete;
    refuse(using.is_some() || !tables.is_empty(), "DELETE ... USING")?;
    refuse(returning.is_some() || output.is_some(), "RETURNING")?;
    refuse(limit.is_some() || !order_by.is_empty(), "DELETE ... ORDER BY ... LIMIT")?;
    let (ast::FromTable::WithFromKeyword(from) | ast::FromTable::WithoutKeyword(from)) = from;
    match <[ast::TableWithJoins; 1]>::try_from(from) {
        Ok([table]) => Ok(Delete { table, selection }),
        Err(_) => Err(Error::unsupported("DELETE from several tables")),
    }
}
