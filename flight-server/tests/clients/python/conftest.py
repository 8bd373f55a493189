"""Fixtures: one server for the whole run, a namespace per test, and connections that are closed again."""

import itertools
import re
import time

import adbc_driver_flightsql.dbapi
import pytest

from server import FLUSHED, ROOT_PASSWORD, Server

_numbers = itertools.count(1)


def pytest_addoption(parser):
    parser.addoption("--flushed", action="store_true", help="have the shared server flush every row as soon as it is written")


@pytest.fixture(scope="session")
def server(tmp_path_factory, pytestconfig):
    """The server that all tests share. Errors in its log fail the run, whichever test caused them."""
    extra_args = FLUSHED if pytestconfig.getoption("flushed") else ()
    running = Server(tmp_path_factory.mktemp("server") / "data", extra_args=extra_args).start()
    yield running
    running.stop()
    assert not running.unexpected(), "unexpected lines in the server's log:\n" + "\n".join(running.unexpected())


@pytest.fixture
def own_server(tmp_path):
    """A server that a test may stop, kill and restart."""
    running = Server(tmp_path / "data", node_id="node-7").start()
    yield running
    if running.alive():
        running.stop()
    assert not running.unexpected(), "unexpected lines in the server's log:\n" + "\n".join(running.unexpected())


# A call that the server never answers fails its test instead of hanging the run.
TIMEOUTS = {f"adbc.flight.sql.rpc.timeout_seconds.{call}": "60" for call in ("fetch", "query", "update")}


def connect(server, user="root", password=ROOT_PASSWORD):
    """Opens an ADBC connection with autocommit, because the server has no client-side transactions."""
    return adbc_driver_flightsql.dbapi.connect(
        server.url, db_kwargs={"username": user, "password": password, **TIMEOUTS}, autocommit=True)


def execute(connection, sql, parameters=None):
    """Runs one statement on its own cursor and returns its rows as an Arrow table."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetch_arrow_table()


def flush(connection):
    """Flushes all rows and waits for the jobs."""
    execute(connection, "FLUSH ALL TABLES")
    unfinished = "SELECT 1 AS one FROM system.jobs WHERE job_type = 'flush' AND status IN ('queued', 'running', 'retrying')"
    while execute(connection, unfinished).num_rows:
        time.sleep(0.01)
    failed = "SELECT error_message FROM system.jobs WHERE job_type = 'flush' AND status <> 'completed'"
    assert execute(connection, failed).to_pylist() == []


@pytest.fixture
def db(server):
    """A connection of root."""
    with connect(server) as connection:
        yield connection


@pytest.fixture
def namespace(server, request):
    """A namespace named after the test, with a number that separates its cases."""
    name = re.sub(r"[^a-z0-9]+", "_", request.node.name.lower())[:50].strip("_") + f"_{next(_numbers)}"
    with connect(server) as connection:
        execute(connection, f"CREATE NAMESPACE {name}")
    return name


@pytest.fixture
def new_user(server):
    """Creates users of role `user` with a unique name; returns (name, password)."""

    def make(role="user"):
        name, password = f"guest{next(_numbers)}", "a long enough secret"
        with connect(server) as connection:
            execute(connection, f"CREATE USER '{name}' WITH PASSWORD '{password}' ROLE {role}")
        return name, password

    return make
