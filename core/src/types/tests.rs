//! Tests of the column types: their names, the literals they read, and which type is wider.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::*;

fn parse(text: &str) -> Result<ColumnType> {
    let sql = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).unwrap().parse_data_type().unwrap();
    ColumnType::from_sql(&sql)
}

#[test]
fn every_alias_names_its_type() {
    let check = |expected: ColumnType, names: &[&str]| {
        for name in names {
            assert_eq!(parse(name).unwrap(), expected, "{name}");
        }
    };
    check(ColumnType::Boolean, &["BOOLEAN", "BOOL"]);
    check(ColumnType::SmallInt, &["SMALLINT", "INT2"]);
    check(ColumnType::Integer, &["INT", "INTEGER", "INT4", "MEDIUMINT"]);
    check(ColumnType::BigInt, &["BIGINT", "INT8"]);
    check(ColumnType::Real, &["REAL", "FLOAT4", "FLOAT(24)"]);
    check(ColumnType::Double, &["DOUBLE", "FLOAT", "DOUBLE PRECISION", "FLOAT8", "FLOAT64", "FLOAT(53)"]);
    check(ColumnType::Decimal { precision: 38, scale: 10 }, &["DECIMAL", "NUMERIC"]);
    check(ColumnType::Decimal { precision: 10, scale: 2 }, &["DECIMAL(10,2)", "NUMERIC(10, 2)"]);
    check(ColumnType::Text, &["TEXT", "VARCHAR", "VARCHAR(20)", "CHAR(3)", "STRING", "NVARCHAR(9)"]);
    check(ColumnType::Bytes, &["BYTES", "BINARY", "VARBINARY", "BLOB", "BYTEA"]);
    check(ColumnType::Json, &["JSON", "JSONB"]);
    check(ColumnType::Timestamp, &["TIMESTAMP", "TIMESTAMP WITHOUT TIME ZONE", "TIMESTAMP(6)"]);
    check(ColumnType::TimestampTz, &["TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE", "DATETIME"]);
    check(ColumnType::Date, &["DATE"]);
    check(ColumnType::Time, &["TIME"]);
    check(ColumnType::Uuid, &["UUID"]);
    check(ColumnType::Embedding(3), &["EMBEDDING(3)", "embedding(3)"]);
    check(ColumnType::File, &["FILE"]);
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let check = |name: &str, sqlstate: SqlState| {
        let error = parse(name).unwrap_err();
        assert_eq!(error.sqlstate(), sqlstate, "{name}: {error}");
    };
    check("INTERVAL", SqlState::FEATURE_NOT_SUPPORTED);
    check("INT[]", SqlState::FEATURE_NOT_SUPPORTED);
    check("TIMESTAMP(3)", SqlState::FEATURE_NOT_SUPPORTED);
    check("TIMETZ", SqlState::FEATURE_NOT_SUPPORTED);
    check("POINTLESS", SqlState::FEATURE_NOT_SUPPORTED);
    check("EMBEDDING", SqlState::INVALID_PARAMETER_VALUE);
    check("EMBEDDING(0)", SqlState::INVALID_PARAMETER_VALUE);
    check("EMBEDDING(9000)", SqlState::INVALID_PARAMETER_VALUE);
    check("DECIMAL(39)", SqlState::INVALID_PARAMETER_VALUE);
    check("DECIMAL(4,5)", SqlState::INVALID_PARAMETER_VALUE);
    assert_eq!(parse("POINTLESS").unwrap_err().message(), "type POINTLESS is not supported");
}

#[test]
fn a_literal_becomes_a_value_of_the_arrow_type() {
    let check = |ty: ColumnType, text: &str| {
        let value = ty.parse_text(text).unwrap();
        assert_eq!(value.data_type(), ty.arrow(), "{ty} {text}");
        assert!(!value.is_null(), "{ty} {text}");
    };
    check(ColumnType::Boolean, "true");
    check(ColumnType::SmallInt, "-7");
    check(ColumnType::BigInt, "9223372036854775807");
    check(ColumnType::Real, "1.5");
    check(ColumnType::Decimal { precision: 10, scale: 2 }, "12.34");
    check(ColumnType::Text, "it's");
    check(ColumnType::Bytes, "\\x00ff");
    check(ColumnType::Json, "{\"a\":[1]}");
    check(ColumnType::Timestamp, "2026-01-02 03:04:05");
    check(ColumnType::TimestampTz, "2026-01-02T03:04:05+02:00");
    check(ColumnType::Date, "2026-01-02");
    check(ColumnType::Time, "03:04:05.5");
    check(ColumnType::Uuid, "0192f3a4-b5c6-7d8e-9f00-010203040506");
    check(ColumnType::Embedding(2), "[1, 2.5]");
    for (ty, text) in [
        (ColumnType::SmallInt, "7x"),
        (ColumnType::Json, "{"),
        (ColumnType::Embedding(2), "[1]"),
        (ColumnType::Bytes, "\\xabc"),
        (ColumnType::Uuid, "x"),
    ] {
        let error = ty.parse_text(text).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::INVALID_TEXT_REPRESENTATION, "{ty} {text}");
    }
    let error = ColumnType::SmallInt.parse_text("70000").unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::NUMERIC_OUT_OF_RANGE);
    let error = ColumnType::Date.parse_text("soon").unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::INVALID_DATETIME);
}

#[test]
fn types_that_drivers_cannot_read_are_replaced_even_inside_lists() {
    let list = |item: DataType| DataType::List(Arc::new(Field::new_list_field(item, true)));
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8View));
    assert_eq!(wire_type(&dictionary), DataType::Utf8);
    assert_eq!(wire_type(&list(dictionary)), list(DataType::Utf8));
    assert_eq!(wire_type(&DataType::UInt32), DataType::Int64);
    assert_eq!(wire_type(&DataType::Int64), DataType::Int64);
}

#[test]
fn a_wider_type_has_every_value_of_a_narrower_one() {
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let check = |from: ColumnType, to: ColumnType, expected: bool| {
        assert_eq!(is_widening(&from.arrow(), &to.arrow()), expected, "{from} to {to}");
    };
    check(ColumnType::SmallInt, ColumnType::BigInt, true);
    check(ColumnType::Real, ColumnType::Double, true);
    check(decimal(10, 2), decimal(12, 2), true);
    check(decimal(10, 2), decimal(12, 3), false);
    check(ColumnType::BigInt, ColumnType::Integer, false);
    check(ColumnType::BigInt, ColumnType::Double, false);
    check(ColumnType::Bytes, ColumnType::Text, false);
}

#[test]
fn stored_names_do_not_change() {
    let stored = |ty: ColumnType| serde_json::to_string(&ty).unwrap();
    assert_eq!(stored(ColumnType::SmallInt), "\"small_int\"");
    assert_eq!(stored(ColumnType::TimestampTz), "\"timestamp_tz\"");
    assert_eq!(stored(ColumnType::Embedding(3)), "{\"embedding\":3}");
    assert_eq!(
        stored(ColumnType::Decimal { precision: 10, scale: 2 }),
        "{\"decimal\":{\"precision\":10,\"scale\":2}}"
    );
}
