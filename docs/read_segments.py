"""Reads the flushed rows of a KalamDB table without KalamDB: python read_segments.py FOLDER_OF_THE_STORAGE TABLE_ID"""

import base64, json, pathlib, sys

import pyarrow as arrow
import pyarrow.parquet as parquet
from pyroaring import BitMap


def read(storage, table_id):
    """The rows the newest published manifest lists, as an Arrow table; rows that are gone are left out."""
    storage = pathlib.Path(storage)
    manifest = json.loads(max((storage / str(table_id)).glob("manifest-*.json")).read_text())
    parts = []
    for segment in manifest["segments"]:
        rows = parquet.read_table(storage / segment["path"])
        if segment["commit_seq"]:
            seq = arrow.array([segment["commit_seq"]] * rows.num_rows, arrow.int64())
            rows = rows.set_column(rows.column_names.index("_seq"), rows.field("_seq"), seq)
        vector = segment["deletion_vector"]
        gone = BitMap.deserialize(base64.b64decode(vector)) if vector else BitMap()
        parts.append(rows.take([position for position in range(rows.num_rows) if position not in gone]))
    return manifest, arrow.concat_tables(parts)


if __name__ == "__main__":
    print(read(*sys.argv[1:3])[1].to_pandas())
