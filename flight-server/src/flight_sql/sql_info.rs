//! GetSqlInfo: every code, with the type that drivers expect.
//!
//! JDBC 18.3 fails on a missing code and on a wrong type, so the list is complete: texts, booleans, 64-bit
//! numbers for limits (0 means "no known limit"), 32-bit numbers for bitmasks and enumerations. The default
//! isolation is 64-bit, against the spec, because JDBC and ODBC both read it that way.
//!
//! Invariant: what is declared here is true; a capability changes here when it is built.

use std::collections::HashMap;
use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{
    CommandGetSqlInfo, SqlInfo as Code, SqlNullOrdering, SqlOuterJoinsSupportLevel,
    SqlSupportedCaseSensitivity, SqlSupportedGroupBy, SqlSupportedResultSetConcurrency,
    SqlSupportedResultSetType, SqlSupportedSubqueries, SqlSupportedTransaction, SqlSupportedUnions,
    SqlSupportsConvert as Convert, SqlTransactionIsolationLevel, SupportedSqlGrammar,
};
use kalamdb_core::{Error, Result};

use super::wire::metadata_not_built;

/// `SupportedAnsi92SqlGrammarLevel.ANSI92_ENTRY_SQL`, for which arrow-flight has no name.
const ANSI92_ENTRY_SQL: i32 = 0;
/// Maximum bytes of a name: namespaces, tables, columns.
const NAME_BYTES_MAX: i64 = 63;

const KEYWORDS: [&str; 20] = [
    "ACCESS_LEVEL",
    "ANTI",
    "CATALOG",
    "DURABILITY",
    "EXPLAIN",
    "FLUSH_POLICY",
    "ILIKE",
    "NAMESPACE",
    "QUALIFY",
    "RETURNING",
    "SCOPE",
    "SEMI",
    "SHARED",
    "SHOW",
    "STORAGE",
    "STORAGE_ID",
    "STREAM",
    "SUBSCRIBE",
    "TTL_SECONDS",
    "USER",
];
const NUMERIC_FUNCTIONS: [&str; 24] = [
    "ABS", "ACOS", "ASIN", "ATAN", "ATAN2", "CEIL", "COS", "COT", "DEGREES", "EXP", "FLOOR", "LN", "LOG",
    "LOG10", "LOG2", "PI", "POWER", "RADIANS", "RANDOM", "ROUND", "SIN", "SQRT", "TAN", "TRUNC",
];
const STRING_FUNCTIONS: [&str; 22] = [
    "ASCII",
    "BTRIM",
    "CHR",
    "CONCAT",
    "ENDS_WITH",
    "INITCAP",
    "LEFT",
    "LENGTH",
    "LOWER",
    "LPAD",
    "LTRIM",
    "OCTET_LENGTH",
    "REPEAT",
    "REPLACE",
    "REVERSE",
    "RIGHT",
    "RPAD",
    "RTRIM",
    "SPLIT_PART",
    "STRPOS",
    "SUBSTR",
    "UPPER",
];
const SYSTEM_FUNCTIONS: [&str; 3] = ["COALESCE", "CURRENT_USER", "NULLIF"];
const DATETIME_FUNCTIONS: [&str; 9] = [
    "CURRENT_DATE",
    "CURRENT_TIME",
    "DATE_BIN",
    "DATE_PART",
    "DATE_TRUNC",
    "EXTRACT",
    "NOW",
    "TO_CHAR",
    "TO_TIMESTAMP",
];

static DATA: LazyLock<Option<SqlInfoData>> = LazyLock::new(|| {
    let mut builder = SqlInfoDataBuilder::new();
    append_server(&mut builder);
    append_language(&mut builder);
    append_support(&mut builder);
    append_grammar(&mut builder);
    append_limits(&mut builder);
    append_transactions(&mut builder);
    builder.build().ok()
});

/// Returns the requested codes; all codes when none is requested.
pub(super) fn rows(command: CommandGetSqlInfo) -> Result<RecordBatch> {
    let data = DATA.as_ref().ok_or_else(|| Error::internal("the list of SqlInfo could not be built"))?;
    // The builder compares each code with each row, so remove repeated codes.
    let mut codes = command.info;
    codes.sort_unstable();
    codes.dedup();
    if codes.len() > 1_000 {
        return Err(Error::invalid("more than 1000 SqlInfo codes were requested"));
    }
    data.record_batch(codes).map_err(metadata_not_built)
}

fn append_server(builder: &mut SqlInfoDataBuilder) {
    builder.append(Code::FlightSqlServerName, "KalamDB");
    builder.append(Code::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    builder.append(Code::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    builder.append(Code::FlightSqlServerReadOnly, false);
    builder.append(Code::FlightSqlServerSql, true);
    builder.append(Code::FlightSqlServerSubstrait, false);
    builder.append(Code::FlightSqlServerSubstraitMinVersion, "");
    builder.append(Code::FlightSqlServerSubstraitMaxVersion, "");
    builder.append(Code::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    builder.append(Code::FlightSqlServerCancel, true);
    builder.append(Code::FlightSqlServerBulkIngestion, true);
    builder.append(Code::FlightSqlServerIngestTransactionsSupported, false);
    builder.append(Code::FlightSqlServerStatementTimeout, 0_i32);
    builder.append(Code::FlightSqlServerTransactionTimeout, 0_i32);
}

fn append_language(builder: &mut SqlInfoDataBuilder) {
    builder.append(Code::SqlDdlCatalog, false);
    builder.append(Code::SqlDdlSchema, true);
    builder.append(Code::SqlDdlTable, true);
    builder.append(Code::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
    builder.append(Code::SqlIdentifierQuoteChar, "\"");
    builder.append(
        Code::SqlQuotedIdentifierCase,
        SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32,
    );
    builder.append(Code::SqlAllTablesAreSelectable, true);
    builder.append(Code::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    builder.append(Code::SqlKeywords, KEYWORDS.as_slice());
    builder.append(Code::SqlNumericFunctions, NUMERIC_FUNCTIONS.as_slice());
    builder.append(Code::SqlStringFunctions, STRING_FUNCTIONS.as_slice());
    builder.append(Code::SqlSystemFunctions, SYSTEM_FUNCTIONS.as_slice());
    builder.append(Code::SqlDatetimeFunctions, DATETIME_FUNCTIONS.as_slice());
    builder.append(Code::SqlSearchStringEscape, "\\");
    builder.append(Code::SqlExtraNameCharacters, "");
    builder.append(Code::SqlSchemaTerm, "namespace");
    builder.append(Code::SqlProcedureTerm, "procedure");
    builder.append(Code::SqlCatalogTerm, "catalog");
    builder.append(Code::SqlCatalogAtStart, true);
}

fn append_support(builder: &mut SqlInfoDataBuilder) {
    for (code, supported) in [
        (Code::SqlSupportsColumnAliasing, true),
        (Code::SqlNullPlusNullIsNull, true),
        (Code::SqlSupportsTableCorrelationNames, true),
        (Code::SqlSupportsDifferentTableCorrelationNames, false),
        (Code::SqlSupportsExpressionsInOrderBy, true),
        (Code::SqlSupportsOrderByUnrelated, true),
        (Code::SqlSupportsLikeEscapeClause, true),
        (Code::SqlSupportsNonNullableColumns, true),
        (Code::SqlSupportsIntegrityEnhancementFacility, false),
        (Code::SqlSelectForUpdateSupported, false),
        (Code::SqlStoredProceduresSupported, false),
        (Code::SqlCorrelatedSubqueriesSupported, true),
        (Code::SqlMaxRowSizeIncludesBlobs, true),
        (Code::SqlTransactionsSupported, false),
        (Code::SqlDataDefinitionCausesTransactionCommit, false),
        (Code::SqlDataDefinitionsInTransactionsIgnored, false),
        (Code::SqlBatchUpdatesSupported, true),
        (Code::SqlSavepointsSupported, false),
        (Code::SqlNamedParametersSupported, false),
        (Code::SqlLocatorsUpdateCopy, false),
        (Code::SqlStoredFunctionsUsingCallSyntaxSupported, false),
    ] {
        builder.append(code, supported);
    }
}

fn append_grammar(builder: &mut SqlInfoDataBuilder) {
    let group_by =
        [SqlSupportedGroupBy::SqlGroupByUnrelated as i32, SqlSupportedGroupBy::SqlGroupByBeyondSelect as i32];
    let subqueries = [
        SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
        SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
        SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
        SqlSupportedSubqueries::SqlSubqueriesInQuantifieds as i32,
    ];
    builder.append(Code::SqlSupportedGroupBy, bits(&group_by));
    builder.append(
        Code::SqlSupportedGrammar,
        bits(&[SupportedSqlGrammar::SqlMinimumGrammar as i32, SupportedSqlGrammar::SqlCoreGrammar as i32]),
    );
    builder.append(Code::SqlAnsi92SupportedLevel, bits(&[ANSI92_ENTRY_SQL]));
    builder.append(
        Code::SqlOuterJoinsSupportLevel,
        bits(&[SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32]),
    );
    builder.append(Code::SqlSupportedSubqueries, bits(&subqueries));
    builder.append(
        Code::SqlSupportedUnions,
        bits(&[SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]),
    );
    builder.append(Code::SqlSchemasSupportedActions, 0_i32);
    builder.append(Code::SqlCatalogsSupportedActions, 0_i32);
    builder.append(Code::SqlSupportedPositionedCommands, 0_i32);
    builder.append(
        Code::SqlSupportedResultSetTypes,
        bits(&[SqlSupportedResultSetType::SqlResultSetTypeForwardOnly as i32]),
    );
    let read_only = bits(&[SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyReadOnly as i32]);
    builder.append(Code::SqlSupportedConcurrenciesForResultSetUnspecified, 0_i32);
    builder.append(Code::SqlSupportedConcurrenciesForResultSetForwardOnly, read_only);
    builder.append(Code::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0_i32);
    builder.append(Code::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0_i32);
    builder.append(Code::SqlSupportsConvert, conversions());
}

/// Returns the conversions of CAST: between numbers, and between text and everything.
fn conversions() -> HashMap<i32, Vec<i32>> {
    let numbers = [
        Convert::SqlConvertBigint,
        Convert::SqlConvertInteger,
        Convert::SqlConvertSmallint,
        Convert::SqlConvertDecimal,
        Convert::SqlConvertNumeric,
        Convert::SqlConvertFloat,
        Convert::SqlConvertReal,
    ];
    let others = [
        Convert::SqlConvertBit,
        Convert::SqlConvertDate,
        Convert::SqlConvertTime,
        Convert::SqlConvertTimestamp,
        Convert::SqlConvertVarbinary,
    ];
    let texts = [Convert::SqlConvertVarchar, Convert::SqlConvertChar];
    let mut table: HashMap<i32, Vec<i32>> = HashMap::new();
    for from in numbers {
        table.insert(from as i32, numbers.iter().chain(&texts).map(|to| *to as i32).collect());
    }
    for from in others {
        table.insert(from as i32, texts.iter().map(|to| *to as i32).collect());
    }
    for from in texts {
        table.insert(from as i32, numbers.iter().chain(&others).chain(&texts).map(|to| *to as i32).collect());
    }
    table.insert(
        Convert::SqlConvertTimestamp as i32,
        [Convert::SqlConvertDate, Convert::SqlConvertTime, Convert::SqlConvertVarchar]
            .map(|to| to as i32)
            .to_vec(),
    );
    table
}

fn append_limits(builder: &mut SqlInfoDataBuilder) {
    for code in [
        Code::SqlMaxBinaryLiteralLength,
        Code::SqlMaxCharLiteralLength,
        Code::SqlMaxColumnsInGroupBy,
        Code::SqlMaxColumnsInIndex,
        Code::SqlMaxColumnsInOrderBy,
        Code::SqlMaxColumnsInSelect,
        Code::SqlMaxColumnsInTable,
        Code::SqlMaxConnections,
        Code::SqlMaxCursorNameLength,
        Code::SqlMaxIndexLength,
        Code::SqlMaxProcedureNameLength,
        Code::SqlMaxStatements,
        Code::SqlMaxTablesInSelect,
        Code::SqlMaxUsernameLength,
    ] {
        builder.append(code, 0_i64);
    }
    builder.append(Code::SqlMaxColumnNameLength, NAME_BYTES_MAX);
    builder.append(Code::SqlDbSchemaNameLength, NAME_BYTES_MAX);
    builder.append(Code::SqlMaxCatalogNameLength, NAME_BYTES_MAX);
    builder.append(Code::SqlMaxTableNameLength, NAME_BYTES_MAX);
    builder.append(Code::SqlMaxRowSize, 16_i64 << 20);
    builder.append(Code::SqlMaxStatementLength, 1_i64 << 20);
}

fn append_transactions(builder: &mut SqlInfoDataBuilder) {
    builder.append(
        Code::SqlDefaultTransactionIsolation,
        SqlTransactionIsolationLevel::SqlTransactionNone as i64,
    );
    builder.append(
        Code::SqlSupportedTransactionsIsolationLevels,
        bits(&[SqlTransactionIsolationLevel::SqlTransactionNone as i32]),
    );
}

/// Returns a bitmask of enumeration values.
fn bits(values: &[i32]) -> i32 {
    values.iter().fold(0, |mask, value| mask | (1 << value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::UInt32Type;

    fn type_ids() -> HashMap<u32, i8> {
        let batch = rows(CommandGetSqlInfo { info: Vec::new() }).unwrap();
        let codes = batch.column(0).as_primitive::<UInt32Type>();
        let values = batch.column(1).as_union();
        (0..batch.num_rows()).map(|row| (codes.value(row), values.type_id(row))).collect()
    }

    #[test]
    fn every_code_is_there() {
        let type_ids = type_ids();
        for code in (0..=11).chain([100, 101]).chain(500..=576) {
            assert!(type_ids.contains_key(&code), "{code}");
        }
        assert_eq!(type_ids.len(), 12 + 2 + 77);
    }

    #[test]
    fn types_are_those_jdbc_casts_to() {
        let type_ids = type_ids();
        let is = |code: Code, type_id: i8| assert_eq!(type_ids[&(code as u32)], type_id, "{code:?}");
        is(Code::FlightSqlServerName, 0);
        is(Code::SqlTransactionsSupported, 1);
        is(Code::SqlDefaultTransactionIsolation, 2);
        (541..=555).chain(557..=561).for_each(|code| assert_eq!(type_ids[&code], 2, "{code}"));
        is(Code::FlightSqlServerTransaction, 3);
        is(Code::SqlIdentifierCase, 3);
        is(Code::SqlKeywords, 4);
        is(Code::SqlSupportsConvert, 5);
    }

    #[test]
    fn only_codes_asked_for_are_answered() {
        let batch = rows(CommandGetSqlInfo { info: vec![8, 8, 0, 4_000_000] }).unwrap();
        assert_eq!(batch.num_rows(), 2);
        assert_eq!(batch.column(1).len(), 2);
    }
}
