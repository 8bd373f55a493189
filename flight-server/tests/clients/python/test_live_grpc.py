"""Live queries from grpcio with stubs generated from the .proto file, without any client code of KalamDB."""

import grpc
import pyarrow as pa
import pytest
from google.protobuf.duration_pb2 import Duration

from conftest import connect, execute
from flight_sql import Client
from live import DELETE, INSERT, UPDATE, Live, pb
from server import ROOT_PASSWORD


@pytest.fixture
def table(db, namespace):
    execute(db, f"CREATE TABLE {namespace}.tasks (id BIGINT PRIMARY KEY, state TEXT NOT NULL, points INTEGER)")
    execute(db, f"INSERT INTO {namespace}.tasks VALUES (1, 'open', 1), (2, 'open', 2), (3, 'done', 3)")
    return f"{namespace}.tasks"


def live(server, sql, **request):
    return Live(server, sql, password=ROOT_PASSWORD, **request)


def test_snapshot_then_every_change_in_order(server, db, table):
    with live(server, f"SELECT * FROM {table}") as query:
        query.snapshot()
        assert query.started.key_columns == ["id"] and not query.started.resumed
        assert query.rows == {(1,): (1, "open", 1), (2,): (2, "open", 2), (3,): (3, "done", 3)}
        assert query.started.snapshot_seq <= query.seq
        execute(db, f"INSERT INTO {table} VALUES (4, 'open', NULL)")
        execute(db, f"UPDATE {table} SET points = 40 WHERE id = 4")
        execute(db, f"DELETE FROM {table} WHERE id = 1")
        query.until(lambda q: len(q.changes) == 3)
        assert query.changes == [(INSERT, (4, "open", None)), (UPDATE, (4, "open", 40)), (DELETE, query.changes[2][1])]
        assert query.changes[2][1][0] == 1
        assert sorted(query.rows) == [(2,), (3,), (4,)]


def test_a_row_enters_and_leaves_the_filter(server, db, table):
    with live(server, f"SELECT id, points * 10 AS tenfold FROM {table} WHERE state = 'open' AND points < 10") as query:
        query.snapshot()
        assert query.rows == {(1,): (1, 10), (2,): (2, 20)}
        execute(db, f"UPDATE {table} SET state = 'done' WHERE id = 1")
        execute(db, f"UPDATE {table} SET state = 'open' WHERE id = 3")
        execute(db, f"UPDATE {table} SET points = 5 WHERE id = 2")
        execute(db, f"UPDATE {table} SET points = 50 WHERE id = 2")
        execute(db, f"INSERT INTO {table} VALUES (9, 'done', 1)")  # never in the filter: never seen
        execute(db, f"INSERT INTO {table} VALUES (10, 'open', 1)")
        query.until(lambda q: (10,) in q.rows)
        assert [op for op, _ in query.changes] == [DELETE, INSERT, UPDATE, DELETE, INSERT]
        assert query.rows == {(3,): (3, 30), (10,): (10, 10)}


@pytest.mark.parametrize("value, ids", [(1.5, []), (2.0, [2]), (2, [2]), (2**40, [])])
def test_a_parameter_that_is_no_integer_is_not_rounded(server, db, table, value, ids):
    params = pa.record_batch({"1": [value]})
    params = params.schema.serialize().to_pybytes() + params.serialize().to_pybytes()
    sql = f"SELECT id FROM {table} WHERE points = $1"
    with live(server, sql, params_ipc=params, heartbeat=Duration()) as query:
        query.snapshot()
        assert sorted(query.rows) == [(number,) for number in ids]
        execute(db, f"INSERT INTO {table} VALUES (8, 'open', 1), (9, 'open', 2)")
        execute(db, f"DELETE FROM {table} WHERE id = 2")
        # Flushes are commits, too: the seq alone does not show that both writes have arrived.
        expected = [(9,)] if ids else []
        query.until(lambda q: q.seq >= q.started.snapshot_seq + 2 and sorted(q.rows) == expected)


def test_one_statement_arrives_as_one_commit(server, db, table):
    with live(server, f"SELECT id, state FROM {table}") as query:
        query.snapshot()
        execute(db, f"UPDATE {table} SET state = 'all'")
        query.until(lambda q: q.changes)
        assert sorted(query.changes) == [(UPDATE, (number, "all")) for number in (1, 2, 3)]


def test_a_change_of_the_key_is_a_delete_and_an_insert(server, db, table):
    with live(server, f"SELECT id, state FROM {table} WHERE id < 100") as query:
        query.snapshot()
        execute(db, f"UPDATE {table} SET id = 7 WHERE id = 1")
        query.until(lambda q: len(q.changes) == 2)
        assert sorted(query.rows) == [(2,), (3,), (7,)]


def test_the_token_resumes_exactly_after_it(server, db, table):
    sql = f"SELECT id, points FROM {table}"
    with live(server, sql) as query:
        query.snapshot()
        execute(db, f"INSERT INTO {table} VALUES (4, 'open', 4)")
        query.until(lambda q: (4,) in q.rows)
        token, rows = query.token, dict(query.rows)
        assert token
    execute(db, f"INSERT INTO {table} VALUES (5, 'open', 5)")
    execute(db, f"DELETE FROM {table} WHERE id = 2")
    with live(server, sql, resume_token=token) as query:
        query.rows = rows
        query.until(lambda q: len(q.changes) == 2)
        assert query.started.resumed and query.reset is None
        assert [op for op, _ in query.changes] == [INSERT, DELETE]
        assert sorted(query.rows) == [(1,), (3,), (4,), (5,)]


def test_the_token_survives_a_restart_of_the_server(own_server):
    with connect(own_server) as db:
        execute(db, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
        execute(db, "INSERT INTO t VALUES (1, 'a')")
        with live(own_server, "SELECT * FROM t") as query:
            query.snapshot()
            token, rows = query.token, dict(query.rows)
        execute(db, "INSERT INTO t VALUES (2, 'b')")
    own_server.restart()
    with connect(own_server) as db:
        execute(db, "UPDATE t SET v = 'c' WHERE id = 1")
        with live(own_server, "SELECT * FROM t", resume_token=token) as query:
            query.rows = rows
            query.until(lambda q: len(q.changes) == 2)
            assert query.started.resumed
            assert query.changes == [(INSERT, (2, "b")), (UPDATE, (1, "c"))]


def test_a_token_survives_kill_9(own_server):
    with connect(own_server) as db:
        execute(db, "CREATE TABLE t (id BIGINT PRIMARY KEY)")
        with live(own_server, "SELECT * FROM t") as query:
            query.snapshot()
            token = query.token
        execute(db, "INSERT INTO t VALUES (1), (2)")
    own_server.kill()
    own_server.start()
    with live(own_server, "SELECT * FROM t", resume_token=token) as query:
        query.until(lambda q: len(q.changes) == 2)
        assert query.rows == {(1,): (1,), (2,): (2,)}


@pytest.mark.parametrize("spoil", ["other query", "flipped", "garbage"])
def test_a_token_that_does_not_fit_resets_or_is_refused(server, db, table, spoil):
    """The data is never silently wrong: a new snapshot after an announced RESET, or an error."""
    sql = f"SELECT id FROM {table}"
    with live(server, sql) as query:
        query.snapshot()
        token = query.token
    if spoil == "other query":
        sql = f"SELECT id FROM {table} WHERE id > 1"
    else:
        token = b"garbage" if spoil == "garbage" else token[:-1] + bytes([token[-1] ^ 1])
    with live(server, sql, resume_token=token) as query:
        try:
            query.until(lambda q: q.reset is not None)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            return
        query.snapshot()
        expected = execute(db, sql).column("id").to_pylist()
        assert sorted(query.rows) == [(number,) for number in sorted(expected)]


def test_dropping_and_creating_the_table_again_never_mixes_the_two(server, db, table):
    sql = f"SELECT id FROM {table}"
    with live(server, sql) as query:
        query.snapshot()
        token = query.token
        execute(db, f"DROP TABLE {table}")
        with pytest.raises((grpc.RpcError, StopIteration)):
            while True:
                query.read()
        assert query.closed is not None and query.closed.message
    execute(db, f"CREATE TABLE {table} (id BIGINT PRIMARY KEY)")
    execute(db, f"INSERT INTO {table} VALUES (77)")
    with live(server, sql, resume_token=token) as query:
        try:
            query.until(lambda q: q.reset is not None)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            return
        query.snapshot()
        assert query.rows == {(77,): (77,)}


def test_snapshot_modes(server, db, table):
    sql = f"SELECT id FROM {table}"
    with live(server, sql, snapshot=pb.SnapshotMode.Value("SNAPSHOT_MODE_ONLY")) as query:
        with pytest.raises(StopIteration):
            while True:
                query.read()
        assert sorted(query.rows) == [(1,), (2,), (3,)]
    with live(server, sql, snapshot=pb.SnapshotMode.Value("SNAPSHOT_MODE_SKIP")) as query:
        query.until(lambda q: q.started is not None)
        execute(db, f"INSERT INTO {table} VALUES (4, 'open', 4)")
        query.until(lambda q: q.changes)
        assert query.changes == [(INSERT, (4,))] and not any(body == "snapshot" for body, _ in query.frontiers)


def test_progress_moves_while_other_tables_change(server, db, namespace, table):
    execute(db, f"CREATE TABLE {namespace}.other (id BIGINT PRIMARY KEY)")
    with live(server, f"SELECT id FROM {table}", heartbeat=Duration(nanos=50_000_000)) as query:
        query.snapshot()
        before = query.seq
        execute(db, f"INSERT INTO {namespace}.other VALUES (1)")
        query.until(lambda q: q.seq > before)
        assert query.changes == [] and query.frontiers[-1][0] == "progress"


def test_live_queries_are_listed_and_can_be_killed(server, db, table):
    with live(server, f"SELECT id AS kill_me FROM {table}", label="to be killed") as query:
        query.snapshot()
        listed = execute(db, "SELECT * FROM system.live_queries WHERE query LIKE '%kill_me%'").to_pylist()
        assert len(listed) == 1
        execute(db, f"KILL LIVE QUERY '{listed[0]['live_id']}'")
        with pytest.raises((grpc.RpcError, StopIteration)):
            while True:
                query.read()
        assert query.closed is not None
    assert execute(db, "SELECT count(*) AS n FROM system.live_queries WHERE query LIKE '%kill_me%'").to_pylist() == [{"n": 0}]


def test_killing_an_unknown_live_query_is_an_error(db):
    with pytest.raises(Exception, match=r"\[\w{5}\]"):
        execute(db, "KILL LIVE QUERY 'no-such-id'")


@pytest.mark.parametrize("sql, code", [
    ("SELEC", grpc.StatusCode.INVALID_ARGUMENT),
    ("SELECT * FROM nowhere", grpc.StatusCode.NOT_FOUND),
    ("DELETE FROM {t}", grpc.StatusCode.UNIMPLEMENTED),
    ("SELECT colour FROM {t}", grpc.StatusCode.NOT_FOUND),
    ("SELECT state, count(*) FROM {t} GROUP BY state", grpc.StatusCode.UNIMPLEMENTED),
    ("SELECT a.id FROM {t} a JOIN {t} b ON a.id = b.id", grpc.StatusCode.UNIMPLEMENTED),
])
def test_what_cannot_be_subscribed_to_is_refused_with_a_code(server, table, sql, code):
    with live(server, sql.format(t=table)) as query:
        with pytest.raises(grpc.RpcError) as raised:
            query.snapshot()
        assert raised.value.code() == code and "[" in raised.value.details()


@pytest.mark.parametrize("metadata", [[("x", "y")], [("authorization", "Bearer forged")],
                                      [("authorization", "Basic cm9vdDp3cm9uZw==")]])
def test_credentials_are_needed(server, metadata):
    with Live(server, "SELECT * FROM system.stats", metadata=metadata) as query, pytest.raises(grpc.RpcError) as raised:
        query.read()
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_flight_token_opens_the_live_door(server, table):
    with Client(server, password=ROOT_PASSWORD) as flight_client:
        token = flight_client.token
    with Live(server, f"SELECT id FROM {table}", metadata=[("authorization", f"Bearer {token}")]) as query:
        assert sorted(query.snapshot().rows) == [(1,), (2,), (3,)]


def test_identical_subscribers_see_the_same(server, db, table):
    sql = f"SELECT id, points FROM {table} WHERE points > 1"
    queries = [live(server, sql) for _ in range(10)]
    try:
        for query in queries:
            query.snapshot()
        for number in range(100, 120):
            execute(db, f"INSERT INTO {table} VALUES ({number}, 'open', {number})")
        for query in queries:
            query.until(lambda q: (119,) in q.rows)
        assert all(query.rows == queries[0].rows and query.changes == queries[0].changes for query in queries)
    finally:
        for query in queries:
            query.__exit__()


def test_a_large_snapshot_comes_in_frames_under_the_default_limit(server, db, namespace):
    import pyarrow as pa
    execute(db, f"CREATE TABLE {namespace}.big (id BIGINT PRIMARY KEY, payload TEXT NOT NULL)")
    with db.cursor() as cursor:
        cursor.adbc_ingest("big", pa.table({"id": pa.array(range(6000), pa.int64()), "payload": ["x" * 2000] * 6000}),
                           mode="append", db_schema_name=namespace)
    with live(server, f"SELECT * FROM {namespace}.big") as query:  # grpcio accepts at most 4 MiB per message
        assert len(query.snapshot().rows) == 6000
