"""The node's name is set once and appears in every log line, job and audit row, also after a restart."""

import re

from conftest import connect, execute

NODE = "node-7"


def test_one_node_id_everywhere(own_server):
    def work(number):
        with connect(own_server) as db:
            execute(db, f"CREATE NAMESPACE app{number}")
            execute(db, f"CREATE STREAM TABLE app{number}.s (id BIGINT PRIMARY KEY) WITH (TTL_SECONDS = 1)")
            execute(db, f"INSERT INTO app{number}.s VALUES (1)")
            execute(db, f"CREATE USER 'u{number}' WITH PASSWORD 'a long enough secret' ROLE user")
            audited = execute(db, "SELECT * FROM system.audit_logs").to_pylist()
            jobs = execute(db, "SELECT * FROM system.jobs").to_pylist()
            assert len(audited) >= 2 * number
            assert {row["node_id"] for row in audited + jobs} == {NODE}
            assert execute(db, "SELECT count(*) AS n FROM system.stats").to_pylist()[0]["n"] > 0

    work(1)
    own_server.restart()
    work(2)
    own_server.stop()
    # Text for people on standard output is not a log line: a log line begins with its time.
    log = [line for line in own_server.log if re.match(r'^(\{|\S*\d{4}-\d\d-\d\dT)', line)]
    assert len(log) >= 4
    for line in log:
        assert NODE in line, line
        assert not re.search(r"node-(?!7)\w", line), line
