//! GetXdbcTypeInfo: the column types, as ODBC requests them.
//!
//! Invariant: lists every type of `ColumnType` that a driver can name, under its name in CREATE TABLE.

use std::sync::LazyLock;

use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode};
use kalamdb_core::{Error, Result};

static DATA: LazyLock<Option<XdbcTypeInfoData>> = LazyLock::new(|| {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    numbers().into_iter().chain(texts()).chain(times()).for_each(|info| builder.append(info));
    builder.build().ok()
});

/// Returns all types.
pub(super) fn data() -> Result<&'static XdbcTypeInfoData> {
    DATA.as_ref().ok_or_else(|| Error::internal("the list of types could not be built"))
}

fn named(name: &str, data_type: XdbcDataType, column_size: i32) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type,
        sql_data_type: data_type,
        column_size: Some(column_size),
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        local_type_name: Some(name.to_owned()),
        ..XdbcTypeInfo::default()
    }
}

fn numbers() -> Vec<XdbcTypeInfo> {
    let number = |name: &str, data_type, digits, radix| XdbcTypeInfo {
        unsigned_attribute: Some(false),
        auto_increment: Some(false),
        minimum_scale: Some(0),
        maximum_scale: Some(0),
        num_prec_radix: Some(radix),
        searchable: Searchable::Basic,
        ..named(name, data_type, digits)
    };
    vec![
        named("BOOLEAN", XdbcDataType::XdbcBit, 1),
        number("SMALLINT", XdbcDataType::XdbcSmallint, 5, 10),
        number("INTEGER", XdbcDataType::XdbcInteger, 10, 10),
        number("BIGINT", XdbcDataType::XdbcBigint, 19, 10),
        number("REAL", XdbcDataType::XdbcReal, 24, 2),
        number("DOUBLE", XdbcDataType::XdbcDouble, 53, 2),
        XdbcTypeInfo {
            create_params: Some(vec!["precision".to_owned(), "scale".to_owned()]),
            maximum_scale: Some(38),
            ..number("DECIMAL", XdbcDataType::XdbcDecimal, 38, 10)
        },
    ]
}

fn texts() -> Vec<XdbcTypeInfo> {
    let quoted = |info: XdbcTypeInfo, prefix: &str, case_sensitive| XdbcTypeInfo {
        literal_prefix: Some(prefix.to_owned()),
        literal_suffix: Some("'".to_owned()),
        case_sensitive,
        ..info
    };
    vec![
        XdbcTypeInfo {
            create_params: Some(vec!["length".to_owned()]),
            ..quoted(named("VARCHAR", XdbcDataType::XdbcVarchar, i32::MAX), "'", true)
        },
        quoted(named("TEXT", XdbcDataType::XdbcLongvarchar, i32::MAX), "'", true),
        quoted(named("JSON", XdbcDataType::XdbcLongvarchar, i32::MAX), "'", true),
        quoted(named("BYTES", XdbcDataType::XdbcVarbinary, i32::MAX), "X'", false),
        quoted(named("UUID", XdbcDataType::XdbcBinary, 16), "'", false),
    ]
}

fn times() -> Vec<XdbcTypeInfo> {
    let time = |name: &str, data_type, column_size, subcode, prefix: &str| XdbcTypeInfo {
        sql_data_type: XdbcDataType::XdbcDatetime,
        datetime_subcode: Some(subcode),
        literal_prefix: Some(prefix.to_owned()),
        literal_suffix: Some("'".to_owned()),
        minimum_scale: Some(0),
        maximum_scale: Some(6),
        searchable: Searchable::Basic,
        ..named(name, data_type, column_size)
    };
    vec![
        XdbcTypeInfo {
            maximum_scale: Some(0),
            // ODBC's subcode 1 is DATE; arrow-flight names it YEAR.
            ..time("DATE", XdbcDataType::XdbcDate, 10, XdbcDatetimeSubcode::XdbcSubcodeYear, "DATE '")
        },
        time("TIME", XdbcDataType::XdbcTime, 15, XdbcDatetimeSubcode::XdbcSubcodeTime, "TIME '"),
        time(
            "TIMESTAMP",
            XdbcDataType::XdbcTimestamp,
            26,
            XdbcDatetimeSubcode::XdbcSubcodeTimestamp,
            "TIMESTAMP '",
        ),
        time(
            "TIMESTAMPTZ",
            XdbcDataType::XdbcTimestamp,
            32,
            XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone,
            "TIMESTAMPTZ '",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_listed_and_filtered() {
        assert_eq!(data().unwrap().record_batch(None).unwrap().num_rows(), 16);
        let bigint = data().unwrap().record_batch(XdbcDataType::XdbcBigint as i32).unwrap();
        assert_eq!(bigint.num_rows(), 1);
        assert_eq!(data().unwrap().record_batch(4_711).unwrap().num_rows(), 0);
    }
}
