"""Reads the flushed rows of a KalamDB table without KalamDB: python read_segments.py FOLDER_OF_THE_STORAGE TABLE_ID"""

import base64, datetime, json, pathlib, re, sys, uuid

import pyarrow as arrow
import pyarrow.parquet as parquet
from pyroaring import BitMap

TYPES = {
    "BOOLEAN": arrow.bool_(), "SMALLINT": arrow.int16(), "INTEGER": arrow.int32(), "BIGINT": arrow.int64(),
    "REAL": arrow.float32(), "DOUBLE": arrow.float64(), "TEXT": arrow.string(), "JSON": arrow.string(),
    "FILE": arrow.string(), "BYTES": arrow.binary(), "DATE": arrow.date32(), "TIME": arrow.time64("us"),
    "TIMESTAMP": arrow.timestamp("us"), "TIMESTAMPTZ": arrow.timestamp("us", "UTC"), "UUID": arrow.binary(16),
}
# How to read a value of a type from its text, where Arrow's cast cannot or reads another value.
PARSERS = {
    "BYTES": lambda text: bytes.fromhex(text.removeprefix("\\x")), "TIME": datetime.time.fromisoformat,
    "UUID": lambda text: uuid.UUID(text).bytes, "EMBEDDING": json.loads,
}
FIRST_SYSTEM_COLUMN = 2_000_000_001


def read(storage, table_id):
    """Returns the newest published manifest, and the rows that it lists as an Arrow table, without deleted ones."""
    storage = pathlib.Path(storage)
    manifest = json.loads(max((storage / str(table_id)).glob("manifest-*.json")).read_text())
    parts = []
    for segment in manifest["segments"]:
        rows = parquet.read_table(storage / segment["path"])
        if segment["commit_seq"]:
            seq = arrow.array([segment["commit_seq"]] * rows.num_rows, arrow.int64())
            rows = rows.set_column(rows.column_names.index("_seq"), rows.field("_seq"), seq)
        vector = segment["deletion_vector"]
        deleted = BitMap.deserialize(base64.b64decode(vector)) if vector else BitMap()
        rows = rows.take([position for position in range(rows.num_rows) if position not in deleted])
        parts.append(in_newest_columns(manifest["columns"], rows))
    return manifest, arrow.concat_tables(parts)


def in_newest_columns(columns, rows):
    """Returns rows in the columns of the newest table version: a column keeps its id, not its name or its type."""
    stored = {int(field.metadata[b"PARQUET:field_id"]): place for place, field in enumerate(rows.schema)}
    shown = {}
    for column in columns:
        type, initial = arrow_type(column["type"]), column.get("initial")
        if column["id"] in stored:
            values = rows.column(stored[column["id"]])
            shown[column["name"]] = values if arrow.types.is_fixed_size_list(type) else values.cast(type)
        elif initial is None:
            shown[column["name"]] = arrow.nulls(rows.num_rows, type)
        else:
            parse = PARSERS.get(column["type"].split("(")[0])
            value = arrow.scalar(parse(initial), type) if parse else arrow.scalar(initial).cast(type)
            shown[column["name"]] = arrow.repeat(value, rows.num_rows)
    for id, place in stored.items():
        if id >= FIRST_SYSTEM_COLUMN:
            shown[rows.column_names[place]] = rows.column(place)
    return arrow.table(shown)


def arrow_type(name):
    """Returns the Arrow type of an SQL type."""
    numbers = map(int, re.findall("[0-9]+", name))
    if name.startswith("DECIMAL"):
        return arrow.decimal128(*numbers)
    return arrow.list_(arrow.float32(), *numbers) if name.startswith("EMBEDDING") else TYPES[name]


if __name__ == "__main__":
    print(read(*sys.argv[1:3])[1].to_pandas())
