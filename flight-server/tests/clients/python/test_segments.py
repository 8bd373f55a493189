"""Flushed rows are plain Parquet files that other tools read."""

import duckdb
import pyarrow.parquet as parquet

from conftest import connect, execute, flush


def segments(server, connection, table):
    """The files of a table, as SHOW MANIFEST names them."""
    manifest = execute(connection, f"SHOW MANIFEST FOR {table}").to_pylist()
    return [server.data_dir / "segments" / segment["path"] for segment in manifest]


def test_other_tools_read_segments(own_server):
    with connect(own_server) as connection:
        execute(connection, "CREATE USER TABLE notes (id BIGINT PRIMARY KEY, body TEXT, price DECIMAL(10, 2), at TIMESTAMP)")
        rows = "SELECT value, 'note ' || value::TEXT, value / 4.0, TIMESTAMP '2026-01-01' FROM generate_series(1, 5000)"
        execute(connection, f"INSERT INTO notes {rows}")
        stored = execute(connection, "SELECT *, _seq FROM notes ORDER BY id")
        flush(connection)
        (path,) = segments(own_server, connection, "notes")
        table = parquet.read_table(path)
        assert table.column_names == ["id", "body", "price", "at", "_seq", "_user_id"]
        assert table.select(stored.column_names).to_pylist() == stored.to_pylist()
        assert set(table["_user_id"].to_pylist()) == {1}
        query = f"SELECT count(*), sum(price), max(id), min(body) FROM read_parquet('{path}')"
        ours = execute(connection, "SELECT count(*) AS n, sum(price) AS s, max(id) AS i, min(body) AS b FROM notes")
        assert duckdb.sql(query).fetchall() == [tuple(ours.to_pylist()[0].values())]


def test_rows_stay_cold_over_a_restart(own_server):
    with connect(own_server) as connection:
        execute(connection, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
        execute(connection, "INSERT INTO t SELECT value, 'cold' FROM generate_series(1, 1000)")
        flush(connection)
        execute(connection, "UPDATE t SET v = 'hot' WHERE id <= 10")
        execute(connection, "DELETE FROM t WHERE id > 990")
    own_server.kill()
    own_server.start()
    with connect(own_server) as connection:
        counts = execute(connection, "SELECT v, count(*) AS n FROM t GROUP BY v ORDER BY v").to_pylist()
        assert counts == [{"v": "cold", "n": 980}, {"v": "hot", "n": 10}]
        (manifest,) = execute(connection, "SHOW MANIFEST FOR t").to_pylist()
        assert (manifest["rows"], manifest["rows_gone"]) == (1000, 20)
        assert segments(own_server, connection, "t")[0].stat().st_size == manifest["bytes"]
