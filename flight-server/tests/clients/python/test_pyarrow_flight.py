"""Flight SQL as any gRPC program sees it: hand-built commands, sent only with pyarrow.flight."""

import re

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from conftest import connect, execute
from flight_sql import Client, descriptor, fields, message, unwrap, wrap
from server import ROOT_PASSWORD


# TableDefinitionOptions of an ingest: fail if the table is missing, append if it exists.
APPEND = message((1, 2), (2, 2))


@pytest.fixture
def client(server):
    with Client(server, password=ROOT_PASSWORD) as connected:
        yield connected


@pytest.fixture
def table(client, namespace):
    client.update(f"CREATE TABLE {namespace}.t (id BIGINT PRIMARY KEY, name TEXT NOT NULL, n INTEGER)")
    assert client.update(f"INSERT INTO {namespace}.t VALUES (1, 'one', 1), (2, 'two', NULL), (3, 'three', 3)") == 3
    return f"{namespace}.t"


def test_handshake_gives_a_bearer_token_that_works_elsewhere(server, client):
    with Client(server, token=client.token) as other:
        assert other.query("SELECT current_user() AS me").to_pylist() == [{"me": "root"}]


def test_the_token_survives_a_restart(own_server):
    with Client(own_server, password=ROOT_PASSWORD) as before:
        token = before.token
    own_server.restart()
    with Client(own_server, token=token) as after:
        assert after.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


def test_ad_hoc_query(client, table):
    rows = client.query(f"SELECT id, name FROM {table} WHERE n IS NOT NULL ORDER BY id DESC")
    assert rows.to_pylist() == [{"id": 3, "name": "three"}, {"id": 1, "name": "one"}]


def test_get_schema_flight_info_and_data_agree(client, table):
    sql = f"SELECT * FROM {table}"
    announced = client.schema("CommandStatementQuery", (1, sql))
    info = client.info("CommandStatementQuery", (1, sql))
    assert announced.equals(info.schema)
    assert len(info.endpoints) == 1 and not info.endpoints[0].locations
    assert client.read(info).num_rows == 3
    assert "_seq" not in announced.names


def test_a_large_result_arrives_in_messages_any_client_takes(client, namespace):
    client.update(f"CREATE TABLE {namespace}.big (id BIGINT PRIMARY KEY, payload TEXT NOT NULL)")
    batch = pa.record_batch({"id": pa.array(range(6000), pa.int64()), "payload": ["x" * 2000] * 6000})
    put = client.put("CommandStatementIngest", (1, APPEND), (2, "big"), (3, namespace), batches=[batch],
                     schema=batch.schema)
    assert put == {1: [6000]}
    info = client.info("CommandStatementQuery", (1, f"SELECT * FROM {namespace}.big"))
    sizes = [chunk.data.nbytes for chunk in client.client.do_get(info.endpoints[0].ticket, client.options)]
    assert sum(sizes) > 12_000_000 and max(sizes) < 4 << 20


def test_repeating_do_get_does_not_repeat_an_update(client, table):
    info = client.info("CommandStatementQuery", (1, f"INSERT INTO {table} VALUES (10, 'ten', 10)"))
    for _ in range(2):
        try:
            client.client.do_get(info.endpoints[0].ticket, client.options).read_all()
        except (flight.FlightError, KeyError, pa.ArrowException):
            pass  # a ticket may be good for one read only
    assert client.query(f"SELECT count(*) AS n FROM {table} WHERE id = 10").to_pylist() == [{"n": 1}]


def test_prepared_query_with_parameters(client, table):
    handle, dataset, parameters = client.prepare(f"SELECT id, name FROM {table} WHERE id = ? OR name = ?")
    assert dataset.names == ["id", "name"]
    assert parameters.types == [pa.int64(), pa.string()] and all(field.nullable for field in parameters)
    for key, name, expected in ((1, "two", [1, 2]), (3, "nobody", [3]), (None, "one", [1])):
        batch = pa.record_batch([pa.array([key], pa.int64()), pa.array([name])], names=["0", "1"])
        answer = client.put("CommandPreparedStatementQuery", (1, handle), batches=[batch], schema=batch.schema)
        assert answer[1] == [handle]
        rows = client.rows("CommandPreparedStatementQuery", (1, handle))
        assert sorted(rows.column("id").to_pylist()) == expected
    client.close_prepared(handle)
    client.close_prepared(handle)  # closing twice is not an error
    with pytest.raises((flight.FlightError, KeyError, pa.ArrowException)):
        client.rows("CommandPreparedStatementQuery", (1, handle))


def test_prepared_update_runs_once_per_row_and_counts(client, table):
    handle, dataset, _ = client.prepare(f"INSERT INTO {table} (id, name) VALUES (?, ?)")
    assert dataset is None or not dataset.names
    batch = pa.record_batch([pa.array([20, 21, 22], pa.int64()), pa.array(["a", "b", "c"])], names=["0", "1"])
    more = pa.record_batch([pa.array([23], pa.int64()), pa.array(["d"])], names=["0", "1"])
    assert client.put("CommandPreparedStatementUpdate", (1, handle), batches=[batch, more],
                      schema=batch.schema) == {1: [4]}
    assert client.query(f"SELECT name FROM {table} WHERE id >= 20 ORDER BY id").column(0).to_pylist() == list("abcd")


def test_preparing_has_no_effect(client, namespace, table):
    for sql in (f"DROP TABLE {table}", f"DELETE FROM {table}", f"CREATE TABLE {namespace}.other (id BIGINT)",
                f"INSERT INTO {table} VALUES (99, 'x', 0)", "SHOW TABLES"):
        client.close_prepared(client.prepare(sql)[0])
    assert client.query(f"SELECT count(*) AS n FROM {table}").to_pylist() == [{"n": 3}]


def test_updates_say_how_many_rows(client, table):
    assert client.update(f"UPDATE {table} SET n = 7 WHERE id <= 2") == 2
    assert client.update(f"UPDATE {table} SET n = 7 WHERE id > 99") == 0
    assert client.update(f"DELETE FROM {table} WHERE id = 3") == 1
    assert client.query(f"SELECT id, n FROM {table} ORDER BY id").to_pylist() == [{"id": 1, "n": 7}, {"id": 2, "n": 7}]


def test_every_result_carries_its_commit_number(client, table):
    info = client.info("CommandStatementQuery", (1, f"SELECT * FROM {table}"))
    chunks = client.client.do_get(info.endpoints[0].ticket, client.options)
    metadata = b"".join(chunk.app_metadata.to_pybytes() for chunk in chunks if chunk.app_metadata is not None)
    assert b'"kalamdb-seq":' in metadata


def test_catalogs_and_schemas(client, namespace):
    assert client.rows("CommandGetCatalogs").to_pydict() == {"catalog_name": ["kalam"]}
    schemas = client.rows("CommandGetDbSchemas")
    assert schemas.schema.names == ["catalog_name", "db_schema_name"]
    names = schemas.column("db_schema_name").to_pylist()
    assert {"public", "system", namespace} <= set(names) and names == sorted(names)
    filtered = client.rows("CommandGetDbSchemas", (1, "kalam"), (2, namespace[:-1] + "_"))
    assert filtered.column("db_schema_name").to_pylist() == [namespace]
    assert client.rows("CommandGetDbSchemas", (1, "elsewhere")).num_rows == 0


def test_table_types(client):
    types = client.rows("CommandGetTableTypes").column("table_type").to_pylist()
    assert types and len(types) == len(set(types))


def test_tables_with_and_without_their_schema(client, namespace, table):
    plain = client.rows("CommandGetTables", (2, namespace))
    assert plain.schema.names == ["catalog_name", "db_schema_name", "table_name", "table_type"]
    assert plain.column("table_name").to_pylist() == ["t"]
    full = client.rows("CommandGetTables", (2, namespace), (3, "%"), (5, True))
    encoded = full.column("table_schema").to_pylist()[0]
    described = pa.ipc.read_schema(pa.py_buffer(encoded))
    assert described.equals(client.schema("CommandStatementQuery", (1, f"SELECT * FROM {table}")))
    kind = plain.column("table_type").to_pylist()[0]
    assert client.rows("CommandGetTables", (2, namespace), (4, kind)).num_rows == 1
    assert client.rows("CommandGetTables", (2, namespace), (4, "NO SUCH TYPE")).num_rows == 0
    assert client.rows("CommandGetTables", (2, namespace), (3, "nowhere")).num_rows == 0
    system = client.rows("CommandGetTables", (2, "system")).column("table_name").to_pylist()
    assert set(system) == {"users", "jobs", "namespaces", "storages", "live_queries", "tables", "audit_logs", "stats",
                           "queries", "sessions"}


def test_primary_keys_in_key_order(client, namespace):
    client.update(f"CREATE TABLE {namespace}.composite (b TEXT, a BIGINT, v TEXT, PRIMARY KEY (a, b))")
    keys = client.rows("CommandGetPrimaryKeys", (2, namespace), (3, "composite"))
    assert keys.schema.names == ["catalog_name", "db_schema_name", "table_name", "column_name", "key_sequence", "key_name"]
    assert [(row["column_name"], row["key_sequence"]) for row in keys.to_pylist()] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("command, pairs", [
    ("CommandGetExportedKeys", [(3, "t")]),
    ("CommandGetImportedKeys", [(3, "t")]),
    ("CommandGetCrossReference", [(3, "t"), (6, "t")]),
])
def test_foreign_keys_are_none_but_well_formed(client, command, pairs):
    rows = client.rows(command, *pairs)
    assert rows.num_rows == 0
    assert rows.schema.names == [
        "pk_catalog_name", "pk_db_schema_name", "pk_table_name", "pk_column_name", "fk_catalog_name",
        "fk_db_schema_name", "fk_table_name", "fk_column_name", "key_sequence", "fk_key_name", "pk_key_name",
        "update_rule", "delete_rule"]


def test_xdbc_type_info(client):
    every = client.rows("CommandGetXdbcTypeInfo").to_pylist()
    names = {row["type_name"].upper() for row in every}
    assert {"BIGINT", "BOOLEAN", "DATE"} <= names
    codes = [row["data_type"] for row in every]
    assert codes == sorted(codes)
    assert client.rows("CommandGetXdbcTypeInfo", (1, codes[0])).num_rows == codes.count(codes[0])


def sql_info(client, *codes):
    return {row["info_name"]: row["value"] for row in client.rows(
        "CommandGetSqlInfo", *[(1, code) for code in codes]).to_pylist()}


def test_sql_info_is_complete(client):
    every = sql_info(client)
    assert every[0] == "KalamDB" and every[3] is False and every[4] is True
    # A JDBC driver fails if any code of DatabaseMetaData is missing.
    assert set(range(500, 577)) <= set(every)
    assert sql_info(client, 0, 3) == {0: "KalamDB", 3: False}


METADATA = ["CommandGetCatalogs", "CommandGetDbSchemas", "CommandGetTables", "CommandGetTableTypes", "CommandGetSqlInfo",
            "CommandGetXdbcTypeInfo"]


@pytest.mark.parametrize("command", METADATA)
def test_get_schema_of_a_metadata_command_is_what_it_sends(client, command):
    assert client.schema(command).equals(client.rows(command).schema)


def test_list_actions_names_what_is_there(client):
    names = {action.type for action in client.client.list_actions(client.options)}
    assert {"CreatePreparedStatement", "ClosePreparedStatement"} <= names


def test_subscribe_as_a_statement_is_an_endless_stream(client, table):
    info = client.info("CommandStatementQuery", (1, f"SUBSCRIBE TO (SELECT id, name FROM {table})"))
    assert info.schema.names == ["_op", "_seq", "id", "name"]
    reader = client.client.do_get(info.endpoints[0].ticket, client.options)

    def rows(at_least):
        seen = []
        while len(seen) < at_least:
            chunk = reader.read_chunk()
            seen += chunk.data.to_pylist() if chunk.data is not None else []
        return seen

    assert sorted((row["_op"], row["id"]) for row in rows(3)) == [(1, 1), (1, 2), (1, 3)]
    client.update(f"DELETE FROM {table} WHERE id = 2")
    (gone,) = rows(1)
    assert (gone["_op"], gone["id"]) == (2, 2)
    reader.cancel()


def test_dropping_a_stream_ends_its_subscription(server, client, table):
    marker = "dropped_here"
    info = client.info("CommandStatementQuery", (1, f"SUBSCRIBE TO (SELECT id AS {marker} FROM {table})"))
    reader = client.client.do_get(info.endpoints[0].ticket, client.options)
    reader.read_chunk()
    mine = f"SELECT count(*) AS n FROM system.live_queries WHERE query LIKE '%{marker}%'"
    assert client.query(mine).to_pylist() == [{"n": 1}]
    reader.cancel()
    with connect(server) as other:
        for _ in range(200):  # each round trip gives the server time to notice
            if execute(other, mine).to_pylist() == [{"n": 0}]:
                return
    pytest.fail("the subscription is still registered")


def test_information_schema_lists_the_columns(client, namespace, table):
    rows = client.query("SELECT column_name, is_nullable FROM information_schema.columns "
                        f"WHERE table_schema = '{namespace}' AND table_name = 't' ORDER BY ordinal_position")
    assert [(row["column_name"], row["is_nullable"]) for row in rows.to_pylist()] == [
        ("id", "NO"), ("name", "NO"), ("n", "YES")]


def test_an_expression_without_fields_in_its_answer_still_counts(client, table):
    """DDL through GetFlightInfo returns a stream that can be read to its end."""
    info = client.client.get_flight_info(descriptor("CommandStatementQuery", (1, f"DROP TABLE {table}")), client.options)
    client.client.do_get(info.endpoints[0].ticket, client.options).read_all()
    with pytest.raises((flight.FlightError, KeyError), match="42P01"):
        client.query(f"SELECT * FROM {table}")


def test_create_prepared_statement_says_whether_it_is_an_update(client, table):
    for sql, update in ((f"SELECT * FROM {table}", 0), (f"DELETE FROM {table}", 1)):
        (body,) = client.action("CreatePreparedStatement", wrap("ActionCreatePreparedStatementRequest", (1, sql)))
        assert unwrap(body).get(4, [0]) == [update]


def test_cancel_of_an_unknown_flight_is_not_found(client):
    with pytest.raises((KeyError, flight.FlightError), match=re.compile("not found|no ", re.IGNORECASE)):
        client.action("CancelFlightInfo", b"\x0a\x00")


def test_session_options_and_close(client):
    assert isinstance(fields(client.action("GetSessionOptions", b"")[0]), dict)
    client.action("CloseSession", b"")
