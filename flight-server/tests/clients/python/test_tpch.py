"""TPC-H at scale factor 0.01, ingested over Flight: 22 queries give the published answers, hot and flushed.

DuckDB's tpch extension, installed as a Python package, generates the data and knows the queries and the
answers. A number is right when it is within 1e-6 of the answer, absolutely, or within 1e-9, relatively,
because the answers were printed from doubles. Everything else is compared exactly, in the order of ORDER BY.
"""

import pathlib

import duckdb
import duckdb_ext
import pytest

from conftest import connect, execute, flush

SCALE_FACTOR = 0.01
ABSOLUTE, RELATIVE = 1e-6, 1e-9
KEYS = {"region": "r_regionkey", "nation": "n_nationkey", "supplier": "s_suppkey", "customer": "c_custkey",
        "part": "p_partkey", "partsupp": "ps_partkey, ps_suppkey", "orders": "o_orderkey",
        "lineitem": "l_orderkey, l_linenumber"}


@pytest.fixture(scope="module")
def corpus():
    """Returns the generator with its data, and {number: (query, answer)}."""
    (extension,) = [path for base in duckdb_ext.__path__ for path in pathlib.Path(base).rglob("tpch.duckdb_extension")]
    generator = duckdb.connect()
    generator.execute(f"LOAD '{extension}'")
    generator.execute(f"CALL dbgen(sf={SCALE_FACTOR})")
    answers = dict(generator.execute(
        "SELECT query_nr, answer FROM tpch_answers() WHERE scale_factor = ?", [SCALE_FACTOR]).fetchall())
    queries = dict(generator.execute("SELECT query_nr, query FROM tpch_queries()").fetchall())
    assert len(queries) == len(answers) == 22
    return generator, {number: (queries[number], answers[number]) for number in queries}


@pytest.fixture(scope="module", params=["hot", "cold"])
def loaded(server, corpus, request):
    """Returns a connection to a server with the data in namespace `public`, where a session starts."""
    generator, _ = corpus
    with connect(server) as connection:
        for table, key in KEYS.items():
            (create,) = generator.execute("SELECT sql FROM duckdb_tables() WHERE table_name = ?", [table]).fetchone()
            execute(connection, create.rstrip("; \n").removesuffix(")") + f", PRIMARY KEY ({key}))")
            data = generator.execute(f"SELECT * FROM {table}").fetch_arrow_table()
            with connection.cursor() as cursor:
                assert cursor.adbc_ingest(table, data, mode="append", db_schema_name="public") == data.num_rows
            assert execute(connection, f"SELECT count(*) AS n FROM {table}").to_pylist() == [{"n": data.num_rows}]
        if request.param == "cold":
            flush(connection)
        yield connection
        for table in KEYS:
            execute(connection, f"DROP TABLE {table}")


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def equal(ours, answer):
    """Compares a value with its printed form."""
    if ours is None:
        return answer in ("", "NULL")
    if isinstance(ours, str) or not is_number(answer):
        return str(ours) == answer
    distance = abs(float(ours) - float(answer))
    return distance <= ABSOLUTE or distance <= RELATIVE * abs(float(answer))


@pytest.mark.parametrize("number", range(1, 23))
def test_query(loaded, corpus, number):
    sql, answer = corpus[1][number]
    with loaded.cursor() as cursor:
        cursor.execute(sql.rstrip().rstrip(";"))
        rows = cursor.fetchall()
        names = [column[0].lower() for column in cursor.description]
    header, *expected = [line.split("|") for line in answer.removesuffix("\n").split("\n")]
    assert len(names) == len(header) and len(rows) == len(expected)
    for row, line in zip(rows, expected, strict=True):
        assert all(map(equal, row, line)), f"{row} is not {line}"
