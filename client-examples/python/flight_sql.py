"""Flight SQL with only pyarrow: log in, update, query. The small protobuf messages are written by hand."""

import os

import pyarrow
import pyarrow.flight as flight


def field(number, value):
    """Encodes one length-delimited protobuf field: tag, length as a varint, bytes."""
    raw = value.encode() if isinstance(value, str) else value
    length, rest = [], len(raw)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + raw


def command(name, sql):
    """Returns a google.protobuf.Any with a Flight SQL message whose first field is the statement."""
    body = field(1, f"type.googleapis.com/arrow.flight.protocol.sql.{name}") + field(2, field(1, sql))
    return flight.FlightDescriptor.for_command(body)


client = flight.connect(os.environ.get("KALAMDB_URL", "grpc://127.0.0.1:8815"))
# The handshake trades name and password for a bearer token, the header of every later call.
options = flight.FlightCallOptions(
    headers=[client.authenticate_basic_token("root", os.environ["KALAMDB_PASSWORD"])])


def update(sql):
    """Runs DDL or DML; returns the number of rows (field 1 of DoPutUpdateResult, a varint)."""
    writer, results = client.do_put(command("CommandStatementUpdate", sql), pyarrow.schema([]), options)
    writer.done_writing()
    answer = results.read().to_pybytes()
    writer.close()
    return sum((byte & 127) << 7 * place for place, byte in enumerate(answer[1:]))


def query(sql):
    """Plans the statement, then reads its one stream of record batches."""
    info = client.get_flight_info(command("CommandStatementQuery", sql), options)
    return client.do_get(info.endpoints[0].ticket, options).read_all()


update("CREATE NAMESPACE IF NOT EXISTS examples")
update("DROP TABLE IF EXISTS examples.planets")
update("CREATE TABLE examples.planets (name TEXT PRIMARY KEY, moons INTEGER)")
assert update("INSERT INTO examples.planets VALUES ('Earth', 1), ('Mars', 2), ('Venus', 0), ('Vulcan', NULL)") == 4
assert update("DELETE FROM examples.planets WHERE moons IS NULL") == 1

table = query("SELECT name, moons FROM examples.planets WHERE moons > 0 ORDER BY name")
assert table.to_pydict() == {"name": ["Earth", "Mars"], "moons": [1, 2]}
print(table)
client.close()
