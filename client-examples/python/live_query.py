"""A live query with grpcio: first the result, then every change to it. It generates its stubs from proto/."""

import base64
import importlib
import os
import pathlib
import sys
import tempfile

import adbc_driver_flightsql.dbapi
import grpc
import grpc_tools
import pyarrow
from grpc_tools import protoc

url = os.environ.get("KALAMDB_URL", "grpc://127.0.0.1:8815")
password = os.environ["KALAMDB_PASSWORD"]

# protoc writes kalamdb/live/v1/live_pb2.py and live_pb2_grpc.py; a real program generates them in its build.
stubs = tempfile.mkdtemp()
protos = pathlib.Path(__file__).parents[2] / "proto"
assert protoc.main(["", f"-I{protos}", f"-I{pathlib.Path(grpc_tools.__file__).parent}/_proto", f"--python_out={stubs}",
                    f"--grpc_python_out={stubs}", "kalamdb/live/v1/live.proto"]) == 0
sys.path.insert(0, stubs)
live = importlib.import_module("kalamdb.live.v1.live_pb2")
live_grpc = importlib.import_module("kalamdb.live.v1.live_pb2_grpc")

connection = adbc_driver_flightsql.dbapi.connect(
    url, db_kwargs={"username": "root", "password": password}, autocommit=True)
cursor = connection.cursor()
cursor.execute("CREATE NAMESPACE IF NOT EXISTS examples")
cursor.execute("DROP TABLE IF EXISTS examples.tasks")
cursor.execute("CREATE TABLE examples.tasks (id BIGINT PRIMARY KEY, title TEXT, done BOOLEAN NOT NULL)")
cursor.execute("INSERT INTO examples.tasks VALUES (1, 'write', false), (2, 'test', false)")

channel = grpc.insecure_channel(url.removeprefix("grpc://"))
authorization = "Basic " + base64.b64encode(f"root:{password}".encode()).decode()
frames = live_grpc.LiveQueryStub(channel).Subscribe(
    live.SubscribeRequest(sql="SELECT id, title FROM examples.tasks WHERE NOT done"),
    metadata=[("authorization", authorization)], timeout=60)

open_tasks = {}  # the folded frames; at each `complete_through` exactly the result of the SELECT


def apply(batch, schema):
    for row in pyarrow.ipc.read_record_batch(pyarrow.py_buffer(batch.ipc), schema).to_pylist():
        if row["_op"] == 2:  # deleted, or no longer matching the filter
            del open_tasks[row["id"]]
        else:  # 1 inserted, 3 updated
            open_tasks[row["id"]] = row["title"]


for frame in frames:
    body = frame.WhichOneof("body")
    if body == "started":
        schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(frame.started.schema_ipc))
    elif body == "snapshot":
        apply(frame.snapshot, schema)
    elif body == "snapshot_end":
        assert open_tasks == {1: "write", 2: "test"}
        cursor.execute("INSERT INTO examples.tasks VALUES (3, 'ship', false)")
        cursor.execute("UPDATE examples.tasks SET done = true WHERE id = 1")
    elif body == "delta":
        apply(frame.delta, schema)
        print(f"commit {frame.complete_through}: {open_tasks}")
        if open_tasks == {2: "test", 3: "ship"}:
            break  # to continue exactly here later: SubscribeRequest(resume_token=frame.resume_token)
else:
    sys.exit("the stream ended before all changes arrived")

frames.cancel()
channel.close()
cursor.close()
connection.close()
