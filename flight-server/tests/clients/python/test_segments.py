"""Flushed rows are plain Parquet files that other tools read."""

import datetime
import decimal
import importlib.util
import json
import pathlib
import time
import uuid

import duckdb
import pyarrow as arrow
import pyarrow.parquet as parquet

from conftest import connect, execute, flush
from server import FLUSHED, Server

_root = pathlib.Path(__file__).resolve().parents[4]
_spec = importlib.util.spec_from_file_location("read_segments", _root / "docs" / "read_segments.py")
read_segments = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(read_segments)


def wait_until_published(connection, folder):
    """Waits until the newest manifest lists the live segments; it is published after the flush."""
    live = {segment["path"] for segment in execute(connection, "SHOW MANIFEST FOR notes").to_pylist()}
    while True:
        newest = max(folder.glob("manifest-*.json"), default=None)
        if newest and {segment["path"] for segment in json.loads(newest.read_text())["segments"]} == live:
            return
        time.sleep(0.01)


def segments(server, connection, table):
    """Returns the files of a table, as SHOW MANIFEST names them."""
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
        ids = [int(field.metadata[b"PARQUET:field_id"]) for field in table.schema]
        assert ids == [1, 2, 3, 4, 2_000_000_001, 2_000_000_002]
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


def test_the_published_manifest_gives_the_rows_of_a_select(own_server):
    with connect(own_server) as connection:
        execute(connection, "CREATE USER TABLE notes (id BIGINT PRIMARY KEY, body TEXT)")
        execute(connection, "INSERT INTO notes SELECT value, 'note ' || value::TEXT FROM generate_series(1, 5000)")
        flush(connection)
        execute(connection, "DELETE FROM notes WHERE id % 3 = 0")
        execute(connection, "UPDATE notes SET body = 'changed' WHERE id < 100")
        flush(connection)
        (folder,) = {path.parent for path in segments(own_server, connection, "notes")}
        wait_until_published(connection, folder)
        manifest, rows = read_segments.read(folder.parent, folder.name)
        stored = execute(connection, "SELECT *, _seq FROM notes ORDER BY id")
        assert rows.select(stored.column_names).sort_by("id").to_pylist() == stored.to_pylist()
        live = execute(connection, "SHOW MANIFEST FOR notes").to_pylist()
        listed = [(segment["path"], segment["rows"], segment["deleted_rows"]) for segment in manifest["segments"]]
        assert listed == [(segment["path"], segment["rows"], segment["rows_gone"]) for segment in live]


def test_initial_values_are_read_in_the_types_of_their_columns(tmp_path):
    """The columns are as `core/tests/it/formats.rs` publishes them; the segment is older than all but the first."""
    columns = json.loads((_root / "core" / "tests" / "fixtures" / "initial-values.json").read_text())
    stored = arrow.schema([arrow.field("id", arrow.int64(), metadata={"PARQUET:field_id": "1"})])
    folder = tmp_path / "1000"
    folder.mkdir()
    parquet.write_table(arrow.table([[1, 2]], schema=stored), folder / "segment.parquet")
    segment = {"path": "1000/segment.parquet", "commit_seq": None, "deletion_vector": None}
    (folder / "manifest-1.json").write_text(json.dumps({"columns": columns, "segments": [segment]}))
    _, rows = read_segments.read(tmp_path, "1000")
    assert {field.name: field.type for field in rows.schema} == {
        column["name"]: read_segments.arrow_type(column["type"]) for column in columns
    }
    utc = datetime.timezone.utc
    values = {
        "b": True, "s": -5, "i": 7, "l": 2**63 - 1, "r": arrow.scalar(0.1, arrow.float32()).as_py(),
        "d": float("-inf"), "n": decimal.Decimal("0.50"), "t": "täxt", "v": b"a\\b", "j": '{"a": [1]}',
        "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 500_000), "atz": datetime.datetime(2026, 1, 2, 1, 4, 5, tzinfo=utc),
        "day": datetime.date(2026, 1, 2), "clock": datetime.time(3, 4, 5, 500_000),
        "u": uuid.UUID("00112233-4455-6677-8899-aabbccddeeff").bytes, "e": [1.0, 2.5], "f": '{"name": "x"}', "none": None,
    }
    assert rows.to_pylist() == [{"id": id, **values} for id in (1, 2)]


def test_a_large_insert_is_segments_at_once_that_others_can_read(tmp_path):
    server = Server(tmp_path / "data", extra_args=["--set", "large_insert_bytes=1000"]).start()
    try:
        with connect(server) as connection:
            execute(connection, "CREATE TABLE notes (id BIGINT PRIMARY KEY, body TEXT)")
            execute(connection, "INSERT INTO notes VALUES (0, 'small')")
            rows = arrow.table({"id": range(5000, 0, -1), "body": ["large"] * 5000})
            with connection.cursor() as cursor:
                cursor.adbc_ingest("notes", rows, mode="append")
            (path,) = segments(server, connection, "notes")
            execute(connection, "DELETE FROM notes WHERE id % 5 = 0")
            execute(connection, "UPDATE notes SET body = 'changed' WHERE id < 100")
            flush(connection)
            wait_until_published(connection, path.parent)
            manifest, rows = read_segments.read(path.parent.parent, path.parent.name)
            stored = execute(connection, "SELECT *, _seq FROM notes ORDER BY id")
            assert rows.select(stored.column_names).sort_by("id").to_pylist() == stored.to_pylist()
            assert [segment["commit_seq"] is None for segment in manifest["segments"]] == [False, True]
            assert len(set(stored["_seq"].to_pylist())) == 2 and stored.num_rows == 4000
    finally:
        server.stop()
    assert not server.unexpected()


def test_a_server_told_to_flush_every_row_does(tmp_path):
    server = Server(tmp_path / "data", extra_args=FLUSHED).start()
    try:
        with connect(server) as connection:
            execute(connection, "CREATE TABLE t (id BIGINT PRIMARY KEY)")
            for number in range(3):
                execute(connection, f"INSERT INTO t VALUES ({number})")
                while sum(segment["rows"] for segment in execute(connection, "SHOW MANIFEST FOR t").to_pylist()) <= number:
                    time.sleep(0.01)
            assert execute(connection, "SELECT count(*) AS n FROM t").to_pylist() == [{"n": 3}]
    finally:
        server.stop()
    assert not server.unexpected()
