"""Live queries with grpcio: stubs generated from proto/ at test time, and a reader that folds the frames."""

import importlib
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
import pyarrow as pa
from grpc_tools import protoc

from flight_sql import basic

PROTO = pathlib.Path(__file__).resolve().parents[4] / "proto"
DEADLINE_S = 30
INSERT, DELETE, UPDATE = 1, 2, 3


def _generate():
    out = tempfile.mkdtemp(prefix="kalamdb-stubs-")
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}",
                        "kalamdb/live/v1/live.proto"])
    assert code == 0, "protoc failed"
    sys.path.insert(0, out)
    return (importlib.import_module("kalamdb.live.v1.live_pb2"),
            importlib.import_module("kalamdb.live.v1.live_pb2_grpc"))


pb, pb_grpc = _generate()


class Live:
    """One subscription. `rows` is the fold of every frame up to `complete_through`."""

    def __init__(self, server, sql, user="root", password=None, metadata=None, **request):
        self.channel = grpc.insecure_channel(server.target)
        stub = pb_grpc.LiveQueryStub(self.channel)
        self.call = stub.Subscribe(
            pb.SubscribeRequest(sql=sql, **request), timeout=DEADLINE_S,
            metadata=metadata or [("authorization", basic(user, password))])
        self.rows = {}
        self.changes = []  # (op, row) of every delta so far
        self.seq = 0
        self.token = b""
        self.started = self.reset = self.closed = None
        self.open_rows = None  # rows of an unfinished snapshot
        self.frontiers = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call.cancel()
        self.channel.close()

    def read(self):
        """Reads one frame; the gRPC deadline limits the wait."""
        frame = next(self.call)
        body = frame.WhichOneof("body")
        getattr(self, "_" + body)(getattr(frame, body))
        assert frame.complete_through >= self.seq, "the frontier went back"
        self.seq = frame.complete_through
        if frame.resume_token:
            self.token = frame.resume_token
        self.frontiers.append((body, frame.complete_through))
        return frame

    def until(self, condition):
        """Reads until the condition holds for this object; each frame is applied as a whole."""
        while not condition(self):
            self.read()
        return self

    def snapshot(self):
        """Reads to the end of the first snapshot."""
        return self.until(lambda live: any(body == "snapshot_end" for body, _ in live.frontiers))

    def _batch(self, batch):
        decoded = pa.ipc.read_record_batch(pa.py_buffer(batch.ipc), self.schema)
        assert decoded.num_rows == batch.rows
        decoded.validate(full=True)
        return decoded.to_pylist()

    def _key(self, row):
        return tuple(row[name] for name in self.started.key_columns)

    def _started(self, started):
        self.started = started
        self.schema = pa.ipc.read_schema(pa.py_buffer(started.schema_ipc))
        assert self.schema.names[:2] == ["_op", "_seq"]
        assert self.schema.types[:2] == [pa.uint8(), pa.int64()]

    def _snapshot(self, batch):
        if self.open_rows is None:
            self.open_rows = {}
        for row in self._batch(batch):
            assert row["_op"] == INSERT
            self.open_rows[self._key(row)] = self._plain(row)

    def _snapshot_end(self, _):
        self.rows, self.open_rows = self.open_rows or {}, None

    def _delta(self, batch):
        for row in self._batch(batch):
            key, plain = self._key(row), self._plain(row)
            if row["_op"] == INSERT:
                assert key not in self.rows, f"inserted twice: {row}"
                self.rows[key] = plain
            elif row["_op"] == UPDATE:
                assert key in self.rows, f"updated before it was there: {row}"
                self.rows[key] = plain
            else:
                assert row["_op"] == DELETE and key in self.rows, f"deleted before it was there: {row}"
                del self.rows[key]
            self.changes.append((row["_op"], plain))

    def _progress(self, _):
        pass

    def _reset(self, reset):
        self.reset, self.rows, self.open_rows = reset, {}, None

    def _notice(self, _):
        pass

    def _closed(self, closed):
        self.closed = closed

    @staticmethod
    def _plain(row):
        return tuple(value for name, value in row.items() if name not in ("_op", "_seq"))
