"""USER tables: the same statement on the same name returns each user's own rows, also in live queries."""

import adbc_driver_manager.dbapi as dbapi
import pytest

from conftest import connect, execute
from live import INSERT, Live


@pytest.fixture
def notes(db, namespace):
    execute(db, f"CREATE USER TABLE {namespace}.notes (id BIGINT PRIMARY KEY, body TEXT NOT NULL)")
    return f"{namespace}.notes"


def bodies(connection, notes):
    return execute(connection, f"SELECT * FROM {notes} ORDER BY id").column("body").to_pylist()


def test_two_users_run_the_same_select_and_get_their_own_rows(server, db, notes, new_user):
    ann, bob = new_user(), new_user()
    with connect(server, *ann) as as_ann, connect(server, *bob) as as_bob:
        execute(as_ann, f"INSERT INTO {notes} VALUES (1, 'ann 1'), (2, 'ann 2')")
        execute(as_bob, f"INSERT INTO {notes} VALUES (1, 'bob 1')")  # the same key is another row
        assert bodies(as_ann, notes) == ["ann 1", "ann 2"]
        assert bodies(as_bob, notes) == ["bob 1"]
        assert bodies(db, notes) == []  # root has no rows of its own here

        with as_bob.cursor() as cursor:
            cursor.execute(f"SELECT count(*), min(body), max(body) FROM {notes}")
            assert cursor.fetchall() == [(1, "bob 1", "bob 1")]
        execute(as_bob, f"UPDATE {notes} SET body = 'changed by bob'")
        execute(as_bob, f"DELETE FROM {notes} WHERE id = 2")
        assert bodies(as_ann, notes) == ["ann 1", "ann 2"]
        execute(as_bob, f"DELETE FROM {notes}")
        assert bodies(as_ann, notes) == ["ann 1", "ann 2"]


def test_joins_subqueries_and_aggregates_stay_inside(server, notes, new_user):
    ann, bob = new_user(), new_user()
    with connect(server, *ann) as as_ann, connect(server, *bob) as as_bob:
        execute(as_ann, f"INSERT INTO {notes} VALUES (1, 'secret of ann')")
        execute(as_bob, f"INSERT INTO {notes} VALUES (1, 'of bob'), (2, 'of bob')")
        for sql in (f"SELECT a.body FROM {notes} a JOIN {notes} b ON a.id = b.id",
                    f"SELECT body FROM {notes} WHERE id IN (SELECT id FROM {notes})",
                    f"WITH w AS (SELECT * FROM {notes}) SELECT body FROM w UNION ALL SELECT body FROM {notes}",
                    f"SELECT body FROM {notes} WHERE id = 1", f"EXPLAIN ANALYZE SELECT * FROM {notes}"):
            try:
                assert "ann" not in str(execute(as_bob, sql).to_pylist())
            except dbapi.Error as error:
                assert sql.startswith("EXPLAIN") and "42501" in str(error)


def test_errors_do_not_show_another_users_row(server, notes, new_user):
    ann, bob = new_user(), new_user()
    with connect(server, *ann) as as_ann, connect(server, *bob) as as_bob:
        execute(as_ann, f"INSERT INTO {notes} VALUES (1, 'canary')")
        execute(as_bob, f"INSERT INTO {notes} VALUES (1, 'mine')")
        with pytest.raises(dbapi.Error, match="23505") as raised:
            execute(as_bob, f"INSERT INTO {notes} VALUES (1, 'again')")
        assert "canary" not in str(raised.value) and "mine" not in str(raised.value)


def test_live_queries_of_two_users_stay_apart(server, notes, new_user):
    ann, bob = new_user(), new_user()
    sql = f"SELECT id, body FROM {notes}"
    with connect(server, *ann) as as_ann, connect(server, *bob) as as_bob:
        execute(as_ann, f"INSERT INTO {notes} VALUES (1, 'ann 1')")
        with Live(server, sql, *ann) as for_ann, Live(server, sql, *bob) as for_bob:
            assert for_ann.snapshot().rows == {(1,): (1, "ann 1")}
            assert for_bob.snapshot().rows == {}
            execute(as_ann, f"INSERT INTO {notes} VALUES (2, 'ann 2')")
            execute(as_bob, f"INSERT INTO {notes} VALUES (1, 'bob 1')")
            for_ann.until(lambda q: q.changes)
            for_bob.until(lambda q: q.changes)
            assert for_ann.changes == [(INSERT, (2, "ann 2"))]
            assert for_bob.changes == [(INSERT, (1, "bob 1"))]


def test_a_token_of_another_user_gives_nothing_of_theirs(server, notes, new_user):
    ann, bob = new_user(), new_user()
    sql = f"SELECT id, body FROM {notes}"
    with connect(server, *ann) as as_ann:
        with Live(server, sql, *ann) as for_ann:
            token = for_ann.snapshot().token
        execute(as_ann, f"INSERT INTO {notes} VALUES (1, 'canary')")
    with Live(server, sql, *bob, resume_token=token) as for_bob:
        try:
            for_bob.snapshot()
        except Exception as error:  # an error is as good as a reset
            assert "canary" not in str(error)
        assert for_bob.rows == {} and for_bob.changes == []


def test_a_user_dropped_and_created_again_sees_nothing_old(server, db, notes, new_user):
    name, password = new_user()
    sql = f"SELECT id, body FROM {notes}"
    with connect(server, name, password) as first:
        execute(first, f"INSERT INTO {notes} VALUES (1, 'old')")
        with Live(server, sql, name, password) as query:
            token = query.snapshot().token
        execute(db, f"DROP USER '{name}'")
        with pytest.raises(dbapi.Error):
            execute(first, f"SELECT * FROM {notes}")
    with pytest.raises(dbapi.Error):
        connect(server, name, password)
    execute(db, f"CREATE USER '{name}' WITH PASSWORD '{password}' ROLE user")
    with connect(server, name, password) as second:
        assert bodies(second, notes) == []
        with Live(server, sql, name, password, resume_token=token) as query:
            try:
                query.snapshot()
            except Exception as error:
                assert "old" not in str(error)
            assert query.rows == {} and query.changes == []
        execute(second, f"INSERT INTO {notes} VALUES (1, 'new')")
        assert bodies(second, notes) == ["new"]
    with pytest.raises(dbapi.Error):  # the old connection's token is invalid, although the name exists
        execute(first, f"SELECT * FROM {notes}")


def test_the_open_live_query_of_a_dropped_user_is_closed(server, db, notes, new_user):
    name, password = new_user()
    with Live(server, f"SELECT id FROM {notes}", name, password) as query:
        query.snapshot()
        execute(db, f"DROP USER '{name}'")
        with pytest.raises(Exception) as raised:
            while True:
                query.read()
        assert "DEADLINE_EXCEEDED" not in str(raised.value)


def test_metadata_hides_what_a_user_may_not_see(server, db, namespace, new_user):
    execute(db, f"CREATE TABLE {namespace}.private_plans (id BIGINT PRIMARY KEY)")
    with connect(server, *new_user()) as guest:
        listed = str(guest.adbc_get_objects(depth="all").read_all().to_pylist())
        assert "private_plans" not in listed and "password_hash" not in listed
        with pytest.raises(dbapi.Error, match=r"\[(42501|42P01)\]"):
            execute(guest, f"SELECT * FROM {namespace}.private_plans")
        visible = execute(guest, "SELECT table_name FROM information_schema.tables").column("table_name").to_pylist()
        assert "private_plans" not in visible


def test_password_hashes_are_shown_to_nobody(db):
    for row in execute(db, "SELECT * FROM system.users").to_pylist():
        assert "argon2" not in str(row)
