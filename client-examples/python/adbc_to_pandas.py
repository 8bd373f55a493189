"""Writes a pandas frame into KalamDB and reads a query back as a frame, over ADBC."""

import os

import adbc_driver_flightsql.dbapi
import pandas
import pyarrow

url = os.environ.get("KALAMDB_URL", "grpc://127.0.0.1:8815")
credentials = {"username": "root", "password": os.environ["KALAMDB_PASSWORD"]}

with adbc_driver_flightsql.dbapi.connect(url, db_kwargs=credentials, autocommit=True) as connection:
    with connection.cursor() as cursor:
        cursor.execute("CREATE NAMESPACE IF NOT EXISTS examples")
        cursor.execute("DROP TABLE IF EXISTS examples.readings")
        cursor.execute("CREATE TABLE examples.readings (id BIGINT PRIMARY KEY, sensor TEXT NOT NULL, celsius DOUBLE)")

        # Bulk ingest: the rows travel as Arrow batches and are committed together.
        frame = pandas.DataFrame({
            "id": range(10_000),
            "sensor": [f"sensor-{number % 4}" for number in range(10_000)],
            "celsius": [20 + number % 10 / 10 for number in range(10_000)],
        })
        ingested = cursor.adbc_ingest("readings", pyarrow.Table.from_pandas(frame, preserve_index=False),
                                      mode="append", db_schema_name="examples")
        assert ingested == 10_000

        # Parameters are bound, never pasted into the statement.
        cursor.execute("SELECT count(*) FROM examples.readings WHERE sensor = ?", ("sensor-1",))
        assert cursor.fetchone() == (2_500,)

    summary = pandas.read_sql(
        "SELECT sensor, avg(celsius) AS mean FROM examples.readings GROUP BY sensor ORDER BY sensor", connection)
    assert summary["sensor"].tolist() == ["sensor-0", "sensor-1", "sensor-2", "sensor-3"]
    assert summary["mean"].between(20, 21).all()
    print(summary)
