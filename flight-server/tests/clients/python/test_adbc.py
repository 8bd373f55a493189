"""The ADBC driver (and through it pandas and polars): statements, parameters, ingest, metadata, errors."""

import datetime as dt
import decimal
import uuid

import adbc_driver_manager
import adbc_driver_manager.dbapi as dbapi
import pandas
import polars
import pyarrow as pa
import pytest

from conftest import connect, execute

UTC = dt.timezone.utc

ID = uuid.UUID("018f3d9a-7c1e-7b3a-9f2d-0123456789ab")

# SQL type, values to bind, and the column's expected Arrow type. A UUID is bound as text and read as bytes.
TYPES = {
    "boolean": ("BOOLEAN", [True, False], pa.bool_()),
    "smallint": ("SMALLINT", [-32768, 32767], pa.int16()),
    "integer": ("INTEGER", [-2**31, 2**31 - 1], pa.int32()),
    "bigint": ("BIGINT", [-2**63, 2**63 - 1], pa.int64()),
    "real": ("REAL", [0.5, -1.25], pa.float32()),
    "double": ("DOUBLE PRECISION", [0.1, -1e300], pa.float64()),
    "decimal": ("DECIMAL(18, 4)", [decimal.Decimal("12345678901234.5678"), decimal.Decimal("-0.0001")],
                pa.decimal128(18, 4)),
    "text": ("TEXT", ["", "grüße, 世界 🌍", "it's \"quoted\""], pa.string()),
    "bytes": ("BYTES", [b"", b"\x00\xff\x7f"], pa.binary()),
    "json": ("JSON", ['{"a": [1, null, "x"]}', "null"], pa.string()),
    "timestamp": ("TIMESTAMP", [dt.datetime(2026, 2, 28, 23, 59, 59, 999999), dt.datetime(1969, 1, 1)],
                  pa.timestamp("us")),
    "datetime": ("DATETIME", [dt.datetime(2026, 2, 28, 23, 59, 59, 1, tzinfo=UTC)], pa.timestamp("us", "UTC")),
    "date": ("DATE", [dt.date(2024, 2, 29), dt.date(1900, 1, 1)], pa.date32()),
    "time": ("TIME", [dt.time(23, 59, 59, 999999), dt.time(0)], pa.time64("us")),
    "uuid": ("UUID", [str(ID)], pa.binary(16)),
    "embedding": ("EMBEDDING(3)", [[0.5, -1.0, 2.0]], None),
}


@pytest.fixture
def notes(db, namespace):
    """A small table with three rows; one body is NULL."""
    table = f"{namespace}.notes"
    execute(db, f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, author TEXT NOT NULL, body TEXT, score DOUBLE PRECISION)")
    execute(db, f"INSERT INTO {table} VALUES (1, 'ann', 'hello', 1.5), (2, 'bob', NULL, 2.5), (3, 'ann', 'bye', 3.0)")
    return table


def test_execute_returns_rows(db, notes):
    with db.cursor() as cursor:
        cursor.execute(f"SELECT id, author, body FROM {notes} ORDER BY id")
        assert [column[0] for column in cursor.description] == ["id", "author", "body"]
        assert cursor.fetchone() == (1, "ann", "hello")
        assert cursor.fetchmany(1) == [(2, "bob", None)]
        assert cursor.fetchall() == [(3, "ann", "bye")]


def test_several_rows_bound_to_one_execution_are_one_commit(db, notes):
    """`execute` of an update uses the query path, `executemany` the update path; both accept many rows."""
    insert = f"INSERT INTO {notes} (id, author) VALUES (?, ?)"
    rows = pa.record_batch({"0": pa.array(range(10, 60), pa.int64()), "1": [f"author {id}" for id in range(10, 60)]})
    with db.cursor() as cursor:
        cursor.execute(insert, rows)
        cursor.executemany(insert, [(number, "many") for number in range(60, 110)])
    assert execute(db, f"SELECT count(*) AS n FROM {notes}").to_pylist() == [{"n": 103}]


def test_a_result_with_lists_comes_in_few_messages(db):
    lists = execute(db, "SELECT make_array(value, value, value, value, value, value, value, value) AS list "
                        "FROM generate_series(1, 200000)")
    assert sorted(lists.column("list").to_pylist()) == [[number] * 8 for number in range(1, 200_001)]
    assert lists.column(0).num_chunks < 100


def test_fetch_arrow_table_has_the_columns_types_and_nullability(db, notes):
    table = execute(db, f"SELECT * FROM {notes} ORDER BY id")
    assert table.schema.names == ["id", "author", "body", "score"]
    assert table.schema.types == [pa.int64(), pa.string(), pa.string(), pa.float64()]
    assert [field.nullable for field in table.schema] == [False, False, True, True]
    assert table.to_pylist()[1] == {"id": 2, "author": "bob", "body": None, "score": 2.5}


def test_an_update_on_the_query_path_runs_exactly_once(db, notes):
    with db.cursor() as cursor:
        cursor.execute(f"INSERT INTO {notes} VALUES (4, 'cyd', 'once', 0)")
        cursor.execute(f"UPDATE {notes} SET score = score + 1 WHERE id = 4")
    assert execute(db, f"SELECT score FROM {notes} WHERE id = 4").to_pylist() == [{"score": 1.0}]


@pytest.mark.parametrize("name", TYPES)
def test_parameters_of_each_type_come_back_unchanged(db, namespace, name):
    sql_type, values, arrow_type = TYPES[name]
    table = f"{namespace}.typed"
    execute(db, f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, v {sql_type})")
    for number, value in enumerate([*values, None]):
        execute(db, f"INSERT INTO {table} (id, v) VALUES (?, ?)", (number, value))
    back = execute(db, f"SELECT id, v FROM {table} ORDER BY id")
    expected = [ID.bytes] if name == "uuid" else values
    assert back.column("v").to_pylist() == [*expected, None]
    if arrow_type is not None:
        assert back.schema.field("v").type == arrow_type
    if name not in ("embedding", "json"):
        for number, value in enumerate(values):
            found = execute(db, f"SELECT id FROM {table} WHERE v = $1", (value,))
            assert found.to_pylist() == [{"id": number}], value


@pytest.mark.parametrize("key", ["PRIMARY KEY", ""])
@pytest.mark.parametrize("value", [ID, str(ID)])
def test_a_uuid_is_found_however_it_is_bound(db, namespace, value, key):
    table = f"{namespace}.devices"
    execute(db, f"CREATE TABLE {table} (id UUID {key}, n INTEGER)")
    execute(db, f"INSERT INTO {table} VALUES (?, 1)", (value,))
    execute(db, f"INSERT INTO {table} VALUES ('{uuid.UUID(int=7)}', 2)")
    assert execute(db, f"SELECT id, n FROM {table} WHERE id = ?", (value,)).to_pylist() == [{"id": ID.bytes, "n": 1}]
    assert execute(db, f"SELECT n FROM {table} WHERE id <> ?", (value,)).to_pylist() == [{"n": 2}]
    with db.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET n = 3 WHERE id IN (?, ?)", (value, value))
    assert execute(db, f"SELECT n FROM {table} ORDER BY n").column("n").to_pylist() == [2, 3]


def test_executemany_inserts_every_row(db, notes):
    with db.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {notes} (id, author, body) VALUES (?, ?, ?)",
                           [(number, "many", None if number % 2 else "even") for number in range(100, 200)])
        assert cursor.rowcount == 100
    rows = execute(db, f"SELECT count(*) AS n, count(body) AS bodies FROM {notes} WHERE author = 'many'").to_pylist()
    assert rows == [{"n": 100, "bodies": 50}]


def test_executemany_is_all_or_nothing(db, notes):
    with db.cursor() as cursor, pytest.raises(dbapi.Error, match="23505"):
        cursor.executemany(f"INSERT INTO {notes} (id, author) VALUES (?, ?)", [(50, "x"), (51, "x"), (1, "taken")])
    assert execute(db, f"SELECT id FROM {notes} ORDER BY id").column("id").to_pylist() == [1, 2, 3]


def test_executescript_runs_an_update_without_parameters(db, notes):
    with db.cursor() as cursor:
        cursor.executescript(f"DELETE FROM {notes} WHERE author = 'ann'")
    assert execute(db, f"SELECT id FROM {notes}").column("id").to_pylist() == [2]


def test_adbc_ingest_appends(db, namespace, notes):
    rows = 20_000
    data = pa.table({
        "id": pa.array(range(1000, 1000 + rows), pa.int64()),
        "author": pa.array(["ingest"] * rows),
        "body": pa.array([None if number % 3 == 0 else f"body {number}" for number in range(rows)]),
        "score": pa.array([number / 2 for number in range(rows)], pa.float64()),
    })
    with db.cursor() as cursor:
        assert cursor.adbc_ingest("notes", data, mode="append", db_schema_name=namespace) == rows
    back = execute(db, f"SELECT * FROM {notes} WHERE author = 'ingest' ORDER BY id")
    assert back.to_pydict() == data.to_pydict()


def test_adbc_ingest_matches_columns_by_name_and_casts(db, namespace, notes):
    data = pa.table({"author": pa.array(["late"], pa.large_string()), "id": pa.array([7], pa.int32())})
    with db.cursor() as cursor:
        cursor.adbc_ingest("notes", data, mode="append", db_schema_name=namespace)
    assert execute(db, f"SELECT * FROM {notes} WHERE id = 7").to_pylist() == [
        {"id": 7, "author": "late", "body": None, "score": None}]


def test_an_ingest_without_rows_writes_nothing(db, namespace, notes):
    schema = pa.schema([("id", pa.int64()), ("author", pa.string())])
    for data in (schema.empty_table(), pa.RecordBatchReader.from_batches(schema, []),
                 pa.RecordBatchReader.from_batches(schema, [pa.RecordBatch.from_pylist([], schema)])):
        with db.cursor() as cursor:
            assert cursor.adbc_ingest("notes", data, mode="append", db_schema_name=namespace) == 0
    with db.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {notes} (id, author) VALUES (?, ?)", schema.empty_table())
    assert execute(db, f"SELECT id FROM {notes} ORDER BY id").column("id").to_pylist() == [1, 2, 3]


def test_a_failed_ingest_leaves_nothing(db, namespace, notes):
    data = pa.table({"id": [60, 61, 1], "author": ["x", "x", "taken"]})
    with db.cursor() as cursor, pytest.raises(dbapi.Error, match="23505"):
        cursor.adbc_ingest("notes", data, mode="append", db_schema_name=namespace)
    assert execute(db, f"SELECT id FROM {notes} ORDER BY id").column("id").to_pylist() == [1, 2, 3]


def test_ingest_into_an_unknown_table_or_column_names_it(db, namespace, notes):
    with db.cursor() as cursor, pytest.raises(dbapi.Error, match=r"42P01.*nowhere"):
        cursor.adbc_ingest("nowhere", pa.table({"id": [1]}), mode="append", db_schema_name=namespace)
    with db.cursor() as cursor, pytest.raises(dbapi.Error, match=r"42703.*colour"):
        cursor.adbc_ingest("notes", pa.table({"id": [9], "author": ["x"], "colour": ["red"]}), mode="append",
                           db_schema_name=namespace)


def objects(db, namespace, depth, **filters):
    """Returns get_objects as {schema: {table: ...}} of the only catalog."""
    catalogs = db.adbc_get_objects(depth=depth, catalog_filter="kalam", **filters).read_all().to_pylist()
    assert [catalog["catalog_name"] for catalog in catalogs] == ["kalam"]
    return catalogs[0]["catalog_db_schemas"]


def test_get_objects_at_every_depth(db, namespace, notes):
    assert objects(db, namespace, "catalogs") is None
    schemas = objects(db, namespace, "db_schemas")
    names = {schema["db_schema_name"] for schema in schemas}
    assert {namespace, "public", "system"} <= names
    assert all(schema["db_schema_tables"] is None for schema in schemas)

    (schema,) = objects(db, namespace, "tables", db_schema_filter=namespace)
    (table,) = schema["db_schema_tables"]
    assert table["table_name"] == "notes" and table["table_type"] and table["table_columns"] is None

    (schema,) = objects(db, namespace, "all", db_schema_filter=namespace, table_name_filter="not%")
    (table,) = schema["db_schema_tables"]
    assert [column["column_name"] for column in table["table_columns"]] == ["id", "author", "body", "score"]
    assert [column["ordinal_position"] for column in table["table_columns"]] == [1, 2, 3, 4]


def test_get_table_schema_equals_the_schema_of_select(db, namespace, notes):
    described = db.adbc_get_table_schema("notes", db_schema_filter=namespace)
    assert described.equals(execute(db, f"SELECT * FROM {notes}").schema)


def test_get_table_schema_of_an_unknown_table_is_an_error(db, namespace):
    with pytest.raises(dbapi.Error):
        db.adbc_get_table_schema("nowhere", db_schema_filter=namespace)


def test_get_table_types_and_info(db):
    assert db.adbc_get_table_types()
    info = db.adbc_get_info()
    assert info["vendor_name"] == "KalamDB" and info["vendor_version"] and info["vendor_arrow_version"]


def test_execute_schema_does_not_run_the_statement(db, notes):
    with db.cursor() as cursor:
        schema = cursor.adbc_execute_schema(f"SELECT id, count(*) AS n FROM {notes} GROUP BY id")
    assert schema.names == ["id", "n"]


def test_partitions_can_be_read_by_another_connection(server, db, notes):
    with db.cursor() as cursor:
        partitions, schema = cursor.adbc_execute_partitions(f"SELECT id FROM {notes} ORDER BY id")
    assert schema.names == ["id"] and len(partitions) == 1
    with connect(server) as other, other.cursor() as cursor:
        cursor.adbc_read_partition(partitions[0])
        assert cursor.fetch_arrow_table().column("id").to_pylist() == [1, 2, 3]


def test_pandas_reads_a_query(db, notes):
    frame = pandas.read_sql(f"SELECT id, author, score FROM {notes} ORDER BY id", db)
    assert list(frame.columns) == ["id", "author", "score"]
    assert frame["id"].tolist() == [1, 2, 3] and frame["score"].sum() == 7.0


def test_polars_reads_a_query(db, notes):
    frame = polars.read_database(f"SELECT author, sum(score) AS total FROM {notes} GROUP BY author ORDER BY author", db)
    assert frame.rows() == [("ann", 4.5), ("bob", 2.5)]


# The driver refuses a result whose schema differs from the announced one in name, type or nullability.
CONSISTENT = {
    "count": "SELECT count(*) FROM {t}",
    "aggregates": "SELECT min(id), max(author), sum(score), avg(score), count(body), bool_or(id > 1) FROM {t}",
    "aggregates over nothing": "SELECT min(id), sum(score), count(*) FROM {t} WHERE id > 99",
    "group by": "SELECT author, count(*) AS n, min(id) AS first FROM {t} GROUP BY author",
    "group by nothing found": "SELECT author, count(*) FROM {t} WHERE id < 0 GROUP BY author",
    "inner join": "SELECT a.id, b.author FROM {t} a JOIN {t} b ON a.author = b.author",
    "left join": "SELECT a.id, b.id AS other, b.author FROM {t} a LEFT JOIN {t} b ON a.id = b.id + 1",
    "full join": "SELECT a.id, b.id AS other FROM {t} a FULL JOIN {t} b ON a.id = b.id + 1",
    "empty": "SELECT * FROM {t} WHERE id = -1",
    "empty by constant": "SELECT id, author FROM {t} WHERE false",
    "limit 0": "SELECT * FROM {t} LIMIT 0",
    "one key": "SELECT * FROM {t} WHERE id = 2",
    "nullable": "SELECT body, score FROM {t}",
    "not nullable": "SELECT id, author FROM {t}",
    "union": "SELECT id, body FROM {t} UNION ALL SELECT 5, 'five'",
    "union of nullable and not": "SELECT author FROM {t} UNION SELECT body FROM {t}",
    "expressions": "SELECT id + 1, upper(author), coalesce(body, ''), CASE WHEN id > 1 THEN 1 END, 1, 'x', NULL FROM {t}",
    "window": "SELECT id, row_number() OVER (ORDER BY id) AS n, lag(id) OVER (ORDER BY id) AS before FROM {t}",
    "with": "WITH w AS (SELECT author, count(*) AS n FROM {t} GROUP BY author) SELECT * FROM w WHERE n > 1",
    "subquery": "SELECT id, (SELECT max(score) FROM {t}) AS top FROM {t} WHERE id IN (SELECT id FROM {t})",
    "values": "VALUES (1, 'a'), (2, NULL)",
    "literals": "SELECT 1 AS one, 'text' AS two, CAST(NULL AS BIGINT) AS three, 1.5 AS four",
    "now": "SELECT now() AS t, current_date AS d",
    "show tables": "SHOW TABLES",
    "describe": "DESCRIBE {t}",
    "explain": "EXPLAIN SELECT * FROM {t} WHERE id = 1",
    "information schema tables": "SELECT * FROM information_schema.tables",
    "information schema columns": "SELECT * FROM information_schema.columns",
    **{f"system {name}": f"SELECT * FROM system.{name}" for name in
       ("users", "jobs", "namespaces", "storages", "live_queries", "tables", "audit_logs", "stats")},
}


@pytest.mark.parametrize("name", CONSISTENT)
def test_the_announced_schema_is_the_schema_sent(db, notes, name):
    table = execute(db, CONSISTENT[name].format(t=notes))
    table.validate(full=True)
    for field, column in zip(table.schema, table.columns, strict=True):
        assert field.nullable or column.null_count == 0


# Statement, expected SQLSTATE and ADBC status.
ERRORS = {
    "syntax": ("SELEC 1", "42601", "INVALID_ARGUMENT"),
    "unknown table": ("SELECT * FROM {ns}.nowhere", "42P01", "NOT_FOUND"),
    "unknown namespace": ("CREATE TABLE nowhere_ns.t (id BIGINT PRIMARY KEY)", "3F000", "NOT_FOUND"),
    "unknown column": ("SELECT colour FROM {t}", "42703", "NOT_FOUND"),
    "duplicate key": ("INSERT INTO {t} (id, author) VALUES (1, 'x')", "23505", "ALREADY_EXISTS"),
    "null into not null": ("INSERT INTO {t} (id, author) VALUES (9, NULL)", "23502", "INVALID_ARGUMENT"),
    "table exists": ("CREATE TABLE {t} (id BIGINT PRIMARY KEY)", "42P07", "ALREADY_EXISTS"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_carry_sqlstate_and_status(db, namespace, notes, name):
    sql, sqlstate, status = ERRORS[name]
    with pytest.raises(dbapi.Error, match=rf"\[{sqlstate}\]") as raised:
        execute(db, sql.format(t=notes, ns=namespace))
    assert raised.value.status_code == getattr(adbc_driver_manager.AdbcStatusCode, status)
    assert execute(db, "SELECT 1 AS one").to_pylist() == [{"one": 1}]
