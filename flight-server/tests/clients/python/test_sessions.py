"""What a session is for real drivers: a connection, or the cookie that it sends."""

import adbc_driver_flightsql.dbapi
import pytest

from conftest import TIMEOUTS, execute
from flight_sql import Client
from server import ROOT_PASSWORD

TOKEN = "adbc.flight.sql.authorization_header"
COOKIES = "adbc.flight.sql.rpc.with_cookie_middleware"


@pytest.fixture
def token(server):
    with Client(server, password=ROOT_PASSWORD) as client:
        return client.token


def connect(server, **options):
    return adbc_driver_flightsql.dbapi.connect(server.url, db_kwargs={**TIMEOUTS, **options}, autocommit=True)


def schema(connection):
    return execute(connection, "SELECT current_schema() AS name").to_pylist()[0]["name"]


def test_connections_with_one_token_have_their_own_namespace(server, namespace, token):
    options = {TOKEN: f"Bearer {token}"}
    with connect(server, **options) as one, connect(server, **options) as two:
        execute(one, f"USE {namespace}")
        assert (schema(one), schema(two)) == (namespace, "public")


@pytest.mark.parametrize("cookies", ["true", "false"])
def test_a_driver_stays_in_its_session_with_and_without_cookies(server, namespace, cookies):
    login = {"username": "root", "password": ROOT_PASSWORD, COOKIES: cookies}
    with connect(server, **login) as connection, connect(server, **login) as other:
        execute(connection, f"USE {namespace}")
        assert (schema(connection), schema(other)) == (namespace, "public")
        connection.adbc_current_db_schema = "public"
        assert schema(connection) == "public"
        with connection.cursor() as cursor:
            cursor.execute("SELECT CAST(? AS BIGINT) AS n", (1,))
            assert cursor.fetchall() == [(1,)]
