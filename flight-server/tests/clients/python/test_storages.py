"""Segments in an S3 bucket, tested against a real S3 server: SeaweedFS."""

import collections
import contextlib
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import adbc_driver_manager
import pytest

from conftest import connect, execute, flush
from server import Server

KEY, SECRET = "kalamdb-test", "a secret that nobody may see"
BUCKET = "segments"
CREDENTIALS = {"ARCHIVE_AWS_ACCESS_KEY_ID": KEY, "ARCHIVE_AWS_SECRET_ACCESS_KEY": SECRET}


def free_port():
    """Returns a port below 55,000, because SeaweedFS also listens 10,000 above each of its ports."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55_000:
            return port


class SeaweedFs:
    """One process that is master, volume server, filer and S3 gateway."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        self.config = folder / "s3.json"
        identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                    "actions": ["Admin", "Read", "List", "Tagging", "Write"]}
        self.config.write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        self.binary = pathlib.Path(sys.executable).parent / "weed"

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.ports['s3']}"

    def start(self):
        ports = [f"-{name}.port={port}" for name, port in self.ports.items()]
        self.log = open(self.folder / "log", "a")
        self.process = subprocess.Popen(
            [self.binary, "server", "-ip=127.0.0.1", "-s3", f"-s3.config={self.config}", f"-dir={self.folder / 'data'}",
             "-volume.max=20", "-master.volumeSizeLimitMB=64", *ports],
            stdout=self.log, stderr=self.log, preexec_fn=os.setsid)
        self.wait_until_ready()
        return self

    def wait_until_ready(self):
        """Waits until a file can be stored: the parts of the server start one after the other."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2_000:]
            shell = subprocess.run(
                [self.binary, "shell", f"-master=127.0.0.1:{self.ports['master']}",
                 f"-filer=127.0.0.1:{self.ports['filer']}"],
                input=f"s3.bucket.create -name {BUCKET}\ns3.bucket.list\n", capture_output=True, text=True, timeout=60)
            with socket.socket() as probe:
                answers = probe.connect_ex(("127.0.0.1", self.ports["s3"])) == 0
            if answers and any(line.strip().startswith(BUCKET) for line in shell.stdout.splitlines()):
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "log").read_text()[-2_000:])

    def pause(self):
        """Keeps the server from answering; only a kill ends it."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


class FaultyProxy:
    """Forwards bytes to a server, except on connections that get a fault."""

    def __init__(self, port):
        self.target = port
        self.faults = collections.deque()
        self.open = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def fail(self, fault, connections):
        """Gives the next connections the fault; closes the open ones, so that new connections follow."""
        self.faults.extend([fault] * connections)
        for connection in list(self.open):
            # Closing alone would not end the calls of other threads that wait for bytes.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        fault = self.faults.popleft() if self.faults else None
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            return
        if fault == "503":
            client.recv(65_536)
            client.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            client.close()
            return
        if fault == "latency":
            time.sleep(1)
        server = socket.create_connection(("127.0.0.1", self.target))
        self.open |= {client, server}
        threading.Thread(target=self.pump, args=(client, server, None), daemon=True).start()
        self.pump(server, client, 300 if fault == "truncated" else None)

    def pump(self, source, sink, bytes_max):
        """Forwards until one side ends, or up to `bytes_max` bytes."""
        try:
            while (bytes_max is None or bytes_max > 0) and (data := source.recv(65_536)):
                data = data if bytes_max is None else data[:bytes_max]
                sink.sendall(data)
                bytes_max = bytes_max and bytes_max - len(data)
        except OSError:
            pass
        for connection in (source, sink):
            self.open.discard(connection)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@pytest.fixture(scope="module")
def seaweedfs(tmp_path_factory):
    running = SeaweedFs(tmp_path_factory.mktemp("seaweedfs")).start()
    yield running
    running.kill()


@pytest.fixture
def s3_server(seaweedfs, tmp_path):
    """A server with the storage `archive` in the bucket."""
    running = Server(tmp_path / "data", extra_env=CREDENTIALS).start()
    with connect(running) as connection:
        execute(connection, f"""CREATE STORAGE archive WITH (URL = 's3://{BUCKET}/{tmp_path.name}', CREDENTIALS = 'ARCHIVE',
            ENDPOINT = '{seaweedfs.endpoint}', REGION = 'us-east-1', ALLOW_HTTP = 'true')""")
    yield running
    if running.alive():
        running.stop()
    assert not running.unexpected(), "unexpected lines in the server's log:\n" + "\n".join(running.unexpected())


def fill(connection, rows=20_000):
    execute(connection, "CREATE TABLE t (id BIGINT PRIMARY KEY, body TEXT) WITH (STORAGE_ID = 'archive')")
    execute(connection, f"INSERT INTO t SELECT value, 'row ' || value::TEXT FROM generate_series(1, {rows})")


def sums(connection):
    return execute(connection, "SELECT count(*) AS n, sum(id) AS s, max(body) AS b FROM t").to_pylist()[0]


def test_rows_in_a_bucket_are_rows(s3_server):
    with connect(s3_server) as connection:
        checked = execute(connection, "STORAGE CHECK archive").to_pylist()
        assert [row["status"] for row in checked] == ["ok"]
        fill(connection)
        before = sums(connection)
        flush(connection)
        (segment,) = execute(connection, "SHOW MANIFEST FOR t").to_pylist()
        assert (segment["storage_id"], segment["rows"]) == ("archive", 20_000)
        assert list((s3_server.data_dir / "spool").rglob("*.new")) == []
        assert sums(connection) == before
        execute(connection, "DELETE FROM t WHERE id % 2 = 0")
        execute(connection, "UPDATE t SET body = 'changed' WHERE id < 10")
        execute(connection, "INSERT INTO t VALUES (0, 'new')")
        after = sums(connection)
    # After a restart the server reads the same rows, and compacts them into a new object.
    s3_server.kill()
    s3_server.start()
    with connect(s3_server) as connection:
        assert sums(connection) == after
        assert execute(connection, "SELECT body FROM t WHERE id = 1").to_pylist() == [{"body": "changed"}]
        flush(connection)
        execute(connection, "STORAGE COMPACT TABLE t")
        while execute(connection, "SELECT 1 AS one FROM system.jobs WHERE status IN ('queued', 'running')").num_rows:
            time.sleep(0.01)
        (segment,) = execute(connection, "SHOW MANIFEST FOR t").to_pylist()
        assert (segment["rows"], segment["rows_gone"]) == (after["n"], 0)
        assert sums(connection) == after


def test_a_storage_that_dies_in_the_middle_of_a_flush_loses_nothing(s3_server, seaweedfs):
    with connect(s3_server) as connection:
        fill(connection, rows=200_000)
        before = sums(connection)
        seaweedfs.pause()
        execute(connection, "FLUSH TABLE t")
        # Nothing is flushed before the end of the storage.
        time.sleep(0.2)
        seaweedfs.kill()
        # While rows are hot, nothing depends on the storage: reads and writes continue.
        assert sums(connection) == before
        execute(connection, "INSERT INTO t VALUES (0, 'while it was away')")
        job = "SELECT status, error_message FROM system.jobs WHERE job_type = 'flush'"
        while execute(connection, job).to_pylist()[0]["status"] in ("queued", "running"):
            time.sleep(0.05)
        state = execute(connection, job).to_pylist()[0]
        assert state["status"] in ("retrying", "failed", "completed"), state
        assert SECRET not in str(state)
        with pytest.raises(adbc_driver_manager.Error, match=r'58030.*storage "archive"'):
            execute(connection, "STORAGE CHECK archive")
    s3_server.kill()
    seaweedfs.start()
    s3_server.start()
    with connect(s3_server) as connection:
        expected = {"n": before["n"] + 1, "s": before["s"], "b": "while it was away"}
        assert sums(connection) == expected
        execute(connection, "FLUSH TABLE t")
        while execute(connection, "SELECT 1 AS one FROM system.jobs WHERE status IN ('queued', 'running')").num_rows:
            time.sleep(0.01)
        manifest = execute(connection, "SHOW MANIFEST FOR t").to_pylist()
        assert sum(segment["rows"] - segment["rows_gone"] for segment in manifest) == expected["n"]
        assert sums(connection) == expected


@pytest.mark.parametrize("fault", ["latency", "503", "reset", "truncated"])
def test_a_faulty_storage_gives_the_right_rows_or_an_error(seaweedfs, tmp_path, fault):
    proxy = FaultyProxy(seaweedfs.ports["s3"])
    server = Server(tmp_path / "data", extra_env=CREDENTIALS).start()
    try:
        with connect(server) as connection:
            execute(connection, f"""CREATE STORAGE archive WITH (URL = 's3://{BUCKET}/{tmp_path.name}', CREDENTIALS = 'ARCHIVE',
                ENDPOINT = '{proxy.endpoint}', REGION = 'us-east-1', ALLOW_HTTP = 'true')""")
            fill(connection, rows=100_000)
            before = sums(connection)
            # The flush succeeds in the end, through retries of the client or of the job.
            proxy.fail(fault, connections=5)
            execute(connection, "FLUSH TABLE t")
            job = "SELECT status, error_message FROM system.jobs WHERE job_type = 'flush' AND completed_at IS NULL"
            while execute(connection, job).num_rows:
                time.sleep(0.05)
            (segment,) = execute(connection, "SHOW MANIFEST FOR t").to_pylist()
            assert segment["rows"] == before["n"]
            assert len(proxy.faults) < 5, "the fault was not met"
            proxy.faults.clear()
            answered = 0
            for connections in (1, 3, 20):
                proxy.fail(fault, connections)
                try:
                    assert sums(connection) == before
                    answered += 1
                except adbc_driver_manager.Error as error:
                    assert "58030" in str(error) and SECRET not in str(error), error
                proxy.faults.clear()
            assert answered > 0
            assert sums(connection) == before
    finally:
        server.stop()
    assert not server.unexpected(), server.unexpected()


def test_a_secret_is_shown_nowhere(s3_server):
    with connect(s3_server) as connection:
        with pytest.raises(adbc_driver_manager.Error, match="22023"):
            execute(connection, f"CREATE STORAGE other WITH (URL = 's3://{BUCKET}', SECRET_ACCESS_KEY = '{SECRET}')")
        execute(connection, f"CREATE STORAGE wrong WITH (URL = 's3://{BUCKET}', CREDENTIALS = 'NOBODYS')")
        with pytest.raises(adbc_driver_manager.Error) as refused:
            execute(connection, "STORAGE CHECK wrong")
        shown = execute(connection, "SELECT * FROM system.storages").to_pylist()
        audit = execute(connection, "SELECT * FROM system.audit_logs").to_pylist()
    assert SECRET not in str(refused.value) + str(shown) + str(audit) + "\n".join(s3_server.log)
    assert [row["credentials"] for row in shown] == ["ARCHIVE", None, "NOBODYS"]
