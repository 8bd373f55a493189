//! `CREATE TABLE`: the database's own keywords and WITH clause around the SQL parser's column definitions.
//!
//! Invariant: every clause has an effect or is refused. In particular, a DEFAULT that is neither a literal
//! nor a known function is an error, never a string.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::alter_table::OptionChange;
use super::cursor::{Cursor, QualifiedName};
use super::dialect::{BoundedDialect, parser};
use super::keywords;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::ColumnId;
use crate::schema_registry::{
    ColumnDefault, ColumnDefinition, FlushPolicy, ScopeKind, TableKind, TableOptions,
};
use crate::sql::syntax_tree::{fold, syntax_error};
use crate::types::{ColumnType, text_length_max};

/// A parsed `CREATE TABLE`.
#[derive(Clone, Debug)]
pub(crate) struct CreateTable {
    pub(crate) name: QualifiedName,
    pub(crate) if_not_exists: bool,
    pub(crate) kind: TableKind,
    pub(crate) columns: Vec<ColumnDefinition>,
    /// Positions in `columns`.
    pub(crate) primary_key: Vec<usize>,
    pub(crate) options: TableOptions,
    /// The policy in the statement; `None` means the server's default, not `options.flush_policy`.
    pub(crate) flush_policy: Option<FlushPolicy>,
}

/// Takes `[USER|SHARED|STREAM] TABLE`; the inner `None` leaves the kind to the WITH clause.
pub(crate) fn kind(cursor: &mut Cursor<'_>) -> Option<Option<TableKind>> {
    let kinds = [
        (&["TABLE"][..], None),
        (&["USER", "TABLE"], Some(TableKind::User)),
        (&["SHARED", "TABLE"], Some(TableKind::Shared)),
        (&["STREAM", "TABLE"], Some(TableKind::Stream)),
    ];
    kinds.into_iter().find(|(words, _)| cursor.keywords(words)).map(|(_, kind)| kind)
}

/// Parses the part after `CREATE [kind] TABLE`.
pub(crate) fn parse(cursor: &mut Cursor<'_>, kind: Option<TableKind>) -> Result<CreateTable> {
    let if_not_exists = cursor.keywords(&["IF", "NOT", "EXISTS"]);
    let name = keywords::qualified_name(cursor, "table")?;
    if cursor.keyword("AS") {
        return Err(
            Error::unsupported("CREATE TABLE ... AS").hint("create the table, then INSERT ... SELECT")
        );
    }
    if cursor.keyword("LIKE") {
        return Err(Error::unsupported("CREATE TABLE ... LIKE"));
    }
    let (Some(Token::LParen), Some(len)) = (cursor.peek(), cursor.group_len()) else {
        return Err(cursor.unexpected("columns in parentheses"));
    };
    let inner = cursor.rest().get(..len).unwrap_or_default();
    let dialect = BoundedDialect::new(inner);
    let mut parser = parser(inner, &dialect);
    let (columns, constraints) = parser.parse_columns().map_err(syntax_error)?;
    if parser.peek_token().token != Token::EOF {
        return Err(Error::syntax(format!("unexpected {} in the columns of a table", parser.peek_token())));
    }
    cursor.skip(len);
    if cursor.keyword("USING") {
        cursor.expect_keyword("KALAMDB")?;
    }
    let given = if cursor.keyword("WITH") { cursor.options()? } else { Vec::new() };
    let (kind, options) = options(kind, &given)?;
    let has_policy = given.iter().any(|(name, _)| name == "flush_policy");
    let flush_policy = has_policy.then_some(options.flush_policy);
    let mut table = CreateTable {
        name,
        if_not_exists,
        kind,
        columns: Vec::new(),
        primary_key: Vec::new(),
        options,
        flush_policy,
    };
    for column in &columns {
        add_column(&mut table, column)?;
    }
    for constraint in &constraints {
        add_constraint(&mut table, constraint)?;
    }
    if cursor.keyword("AS") {
        return Err(
            Error::unsupported("CREATE TABLE ... AS").hint("create the table, then INSERT ... SELECT")
        );
    }
    Ok(table)
}

fn options(kind: Option<TableKind>, given: &[(String, String)]) -> Result<(TableKind, TableOptions)> {
    let in_with = given
        .iter()
        .find(|(name, _)| name == "type")
        .map(|(_, value)| TableKind::parse(value))
        .transpose()?;
    let kind = match (kind, in_with) {
        (Some(kind), Some(other)) if kind != other => {
            return Err(Error::syntax(format!("CREATE {kind} TABLE with TYPE='{other}'"))
                .hint("specify the type once"));
        }
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => TableKind::Shared,
    };
    let mut options = TableOptions::defaults_for(kind);
    let mut changes = Vec::new();
    for (name, value) in given {
        match name.as_str() {
            "type" => {}
            "storage_id" => options.storage_id = Arc::from(value.as_str()),
            "scope" => options.scope = scope(value)?,
            _ => changes.push(OptionChange::parse(name, Some(value))?),
        }
    }
    for change in &changes {
        change.apply(kind, &mut options)?;
    }
    Ok((kind, options))
}

fn scope(value: &str) -> Result<ScopeKind> {
    match value.to_ascii_lowercase().as_str() {
        "user" => Ok(ScopeKind::User),
        "shared" => Ok(ScopeKind::Shared),
        _ => {
            Err(Error::invalid(format!("scope \"{value}\" does not exist"))
                .hint("scopes are USER and SHARED"))
        }
    }
}

fn add_column(table: &mut CreateTable, column: &ast::ColumnDef) -> Result<()> {
    if column.name.quote_style.is_none() {
        if column.name.value.eq_ignore_ascii_case("like") {
            return Err(Error::unsupported("CREATE TABLE ... (LIKE ...)"));
        }
        keywords::check("column", &column.name.value)?;
    }
    let name = fold(&column.name);
    let serial = matches!(&column.data_type, ast::DataType::Custom(name, arguments)
        if arguments.is_empty() && is_serial(&name.to_string()));
    let ty = if serial { ColumnType::BigInt } else { ColumnType::from_sql(&column.data_type)? };
    let mut definition = ColumnDefinition::new(ColumnId(0), name.as_str(), ty, !serial);
    definition.length_max = text_length_max(&column.data_type)?;
    if serial {
        definition.default = Some(ColumnDefault::SnowflakeId);
    }
    for option in &column.options {
        match &option.option {
            ast::ColumnOption::Null => definition.nullable = true,
            ast::ColumnOption::NotNull => definition.nullable = false,
            ast::ColumnOption::Default(expr) => definition.default = default_of(&name, expr)?,
            ast::ColumnOption::PrimaryKey(_) => {
                if !table.primary_key.is_empty() {
                    return Err(second_key(table));
                }
                table.primary_key.push(table.columns.len());
                definition.nullable = false;
            }
            ast::ColumnOption::Generated { generation_expr: None, .. } => {
                definition.default = Some(ColumnDefault::SnowflakeId);
                definition.nullable = false;
            }
            ast::ColumnOption::Unique(_) => return Err(Error::unsupported("UNIQUE")),
            ast::ColumnOption::Check(_) => return Err(Error::unsupported("CHECK")),
            ast::ColumnOption::ForeignKey(_) => return Err(Error::unsupported("REFERENCES")),
            other => return Err(Error::unsupported(format!("{other} of column \"{name}\""))),
        }
    }
    table.columns.push(definition);
    Ok(())
}

fn is_serial(name: &str) -> bool {
    ["serial", "bigserial", "smallserial", "serial4", "serial8"]
        .iter()
        .any(|serial| name.eq_ignore_ascii_case(serial))
}

fn second_key(table: &CreateTable) -> Error {
    Error::new(
        ErrorKind::InvalidSql,
        SqlState::INVALID_TABLE_DEFINITION,
        format!("table \"{}\" has more than one primary key", table.name.name),
    )
    .hint("a key of several columns is written PRIMARY KEY (a, b)")
}

fn add_constraint(table: &mut CreateTable, constraint: &ast::TableConstraint) -> Result<()> {
    let ast::TableConstraint::PrimaryKey(key) = constraint else {
        let name = match constraint {
            ast::TableConstraint::Unique(_) => "UNIQUE",
            ast::TableConstraint::Check(_) => "CHECK",
            ast::TableConstraint::ForeignKey(_) => "FOREIGN KEY",
            _ => "this constraint",
        };
        return Err(Error::unsupported(name));
    };
    if !table.primary_key.is_empty() {
        return Err(second_key(table));
    }
    for column in &key.columns {
        let ast::Expr::Identifier(ident) = &column.column.expr else {
            return Err(Error::unsupported("an expression in a primary key"));
        };
        let name = fold(ident);
        let position = table.columns.iter().position(|column| *column.name == name).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_COLUMN,
                format!("column \"{name}\" of the primary key does not exist"),
            )
        })?;
        table.primary_key.push(position);
        if let Some(column) = table.columns.get_mut(position) {
            column.nullable = false;
        }
    }
    Ok(())
}

/// Parses a DEFAULT clause; `None` for `DEFAULT NULL`.
fn default_of(column: &str, expr: &ast::Expr) -> Result<Option<ColumnDefault>> {
    let unknown = || {
        Error::unsupported(format!("DEFAULT {expr} of column \"{column}\"")).hint(
            "a default is a literal, NOW(), CURRENT_TIMESTAMP, SNOWFLAKE_ID(), UUID_V7(), ULID() \
             or CURRENT_USER()",
        )
    };
    match expr {
        ast::Expr::Nested(inner) => default_of(column, inner),
        ast::Expr::Cast { expr, .. } => match default_of(column, expr)? {
            literal @ (None | Some(ColumnDefault::Literal(_))) => Ok(literal),
            Some(_) => Err(unknown()),
        },
        ast::Expr::TypedString(typed) => literal(&typed.value.value).ok_or_else(unknown),
        ast::Expr::Value(value) => literal(&value.value).ok_or_else(unknown),
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => match default_of(column, expr)? {
            Some(ColumnDefault::Literal(text)) if !text.starts_with('-') => {
                Ok(Some(ColumnDefault::Literal(format!("-{text}"))))
            }
            _ => Err(unknown()),
        },
        ast::Expr::Function(function) => {
            let no_arguments = match &function.args {
                ast::FunctionArguments::None => true,
                ast::FunctionArguments::List(list) => list.args.is_empty() && list.clauses.is_empty(),
                ast::FunctionArguments::Subquery(_) => false,
            };
            let default = match function.name.to_string().to_ascii_lowercase().as_str() {
                "now" | "current_timestamp" => ColumnDefault::Now,
                "snowflake_id" => ColumnDefault::SnowflakeId,
                "uuid_v7" => ColumnDefault::UuidV7,
                "ulid" => ColumnDefault::Ulid,
                "current_user" => ColumnDefault::CurrentUser,
                _ => return Err(unknown()),
            };
            if no_arguments { Ok(Some(default)) } else { Err(unknown()) }
        }
        _ => Err(unknown()),
    }
}

/// Returns a literal as a default. The outer `None` means no literal, the inner one NULL.
fn literal(value: &ast::Value) -> Option<Option<ColumnDefault>> {
    let text = match value {
        ast::Value::Null => return Some(None),
        ast::Value::Boolean(value) => value.to_string(),
        ast::Value::Number(text, _)
        | ast::Value::SingleQuotedString(text)
        | ast::Value::EscapedStringLiteral(text)
        | ast::Value::UnicodeStringLiteral(text) => text.clone(),
        ast::Value::DollarQuotedString(text) => text.value.clone(),
        ast::Value::HexStringLiteral(text) => format!("\\x{text}"),
        _ => return None,
    };
    Some(Some(ColumnDefault::Literal(text)))
}
