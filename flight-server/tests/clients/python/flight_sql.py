"""Flight SQL without a Flight SQL library: hand-written protobuf messages, sent through plain pyarrow.flight.

Contains only what the tests need: strings, bytes and varints as (field number, value) pairs, and a reader
that returns the fields as a dictionary of lists.
"""

import base64

import pyarrow as pa
import pyarrow.flight as flight

TYPE_PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(*fields):
    """Encodes (number, value) pairs: int and bool as varint; str, bytes, messages with their length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(int(value) & (1 << 64) - 1)
        else:
            raw = value.encode() if isinstance(value, str) else bytes(value)
            out += varint(number << 3 | 2) + varint(len(raw)) + raw
    return out


def fields(raw):
    """Decodes a message into {number: [value, ...]}."""
    out, at = {}, 0

    def read():
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(raw):
        tag = read()
        if tag & 7 == 0:
            value = read()
        elif tag & 7 == 2:
            length = read()
            value, at = raw[at:at + length], at + length
        else:
            raise ValueError(f"unexpected wire type {tag & 7}")
        out.setdefault(tag >> 3, []).append(value)
    return out


def wrap(name, *pairs):
    """Wraps a Flight SQL message in google.protobuf.Any, the form of every command and action body."""
    return message((1, TYPE_PREFIX + name), (2, message(*pairs)))


def unwrap(raw):
    """Returns the fields inside an Any."""
    return fields(fields(raw)[2][0])


def descriptor(name, *pairs):
    return flight.FlightDescriptor.for_command(wrap(name, *pairs))


class Client:
    """One connection with its bearer token."""

    def __init__(self, server, user="root", password=None, token=None):
        self.client = flight.connect(server.url)
        if token is None:
            header, value = self.client.authenticate_basic_token(user, password)
            assert header == b"authorization" and value.startswith(b"Bearer ")
            token = value.decode().removeprefix("Bearer ")
        self.token = token
        self.options = flight.FlightCallOptions(
            headers=[(b"authorization", f"Bearer {token}".encode())], timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def info(self, name, *pairs):
        return self.client.get_flight_info(descriptor(name, *pairs), self.options)

    def schema(self, name, *pairs):
        return self.client.get_schema(descriptor(name, *pairs), self.options).schema

    def read(self, info):
        """Returns all rows of one FlightInfo: one endpoint, same connection, the announced schema."""
        assert len(info.endpoints) == 1
        table = self.client.do_get(info.endpoints[0].ticket, self.options).read_all()
        assert table.schema.equals(info.schema), f"announced {info.schema}, sent {table.schema}"
        return table

    def rows(self, name, *pairs):
        return self.read(self.info(name, *pairs))

    def query(self, sql):
        return self.rows("CommandStatementQuery", (1, sql))

    def action(self, name, body):
        return [result.body.to_pybytes() for result in self.client.do_action(flight.Action(name, body), self.options)]

    def prepare(self, sql):
        """Returns (handle, dataset schema or None, parameter schema or None)."""
        (body,) = self.action("CreatePreparedStatement", wrap("ActionCreatePreparedStatementRequest", (1, sql)))
        result = unwrap(body)
        schemas = [pa.ipc.read_schema(pa.py_buffer(result[number][0])) if result.get(number, [b""])[0] else None
                   for number in (2, 3)]
        return result[1][0], *schemas

    def close_prepared(self, handle):
        return self.action("ClosePreparedStatement", wrap("ActionClosePreparedStatementRequest", (1, handle)))

    def put(self, name, *pairs, batches, schema):
        """Sends batches with DoPut; returns the fields of the only PutResult, read after all data is sent."""
        writer, reader = self.client.do_put(descriptor(name, *pairs), schema, self.options)
        for batch in batches:
            writer.write_batch(batch)
        writer.done_writing()
        result = reader.read()
        writer.close()
        return fields(result.to_pybytes()) if result is not None else {}

    def update(self, sql):
        """Runs an ad hoc update; returns the number of rows."""
        result = self.put("CommandStatementUpdate", (1, sql), batches=[], schema=pa.schema([]))
        return result.get(1, [0])[0]


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
