"""Rows and writers for tests of Delta tables; as a script, the processes that race and are killed."""
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from daedalus_etl.core.config import OutputConfig
from daedalus_etl.core.enums import DataFormat, WriteMode
from daedalus_etl.core.errors import ConflictError
from daedalus_etl.storage.commit import Dataset
from daedalus_etl.storage.delta import last_transaction, write_delta
from daedalus_etl.storage.delta_dataset import DeltaDataset
from daedalus_etl.storage.partitions import Partition

UTC_US = pl.Datetime("us", "UTC")


def rows(symbol="BTC", day=8, ids=("1", "2"), value=0.0, hour=12) -> pl.DataFrame:
    "Rows of one partition (symbol, day), one second apart, all with one value."
    first = datetime(2024, 8, day, hour, tzinfo=UTC)
    return pl.DataFrame(
        {"capture_ts": [first + timedelta(seconds=i) for i in range(len(ids))], "trade_id": list(ids),
         "value": [value] * len(ids), "symbol": [symbol] * len(ids), "day": [day] * len(ids)},
        schema={"capture_ts": UTC_US, "trade_id": pl.String, "value": pl.Float64, "symbol": pl.String, "day": pl.Int8})


def dataset(lake) -> tuple[DeltaDataset, OutputConfig]:
    output = OutputConfig(name="silver", path=str(Path(lake) / "silver/trades"), format=DataFormat.DELTA)
    return DeltaDataset(Dataset.of(output)), output


def part(symbol="BTC", day=8) -> Partition: return Partition.of(exchange="binance", symbol=symbol, day=day)


def append(root: str, last: int) -> None:
    "Append the batches up to `last`, each as a transaction; begins with some that are there already."
    for n in range(max(0, (last_transaction(root, "job") or 0) - 3), last): append_batch(root, n)


def append_batch(root, n: int) -> int | None:
    frame = rows(ids=(f"{n}-a", f"{n}-b"))
    return write_delta(frame, root, WriteMode.APPEND, partition_cols=["symbol"], transaction=("job", n))


def replace_all_the_time(lake: str, seed: int) -> None:
    "Replace the partitions of seven days, again and again, each by rows of its own number; the facts say how many."
    home, output = dataset(lake)
    for n in range(10**6):
        value = seed * 10**6 + n
        frame = pl.LazyFrame({"value": [value] * (n % 5)}, schema={"value": pl.Int64})
        facts = {"key": str(value), "rows": str(n % 5)}
        try: home.replace(part(day=1 + n % 7), frame, lambda facts=facts: facts, output)
        except ConflictError: pass


def replace_once(lake: str, key: str, go: str) -> None:
    "When the file `go` is there, replace eight partitions by a row that says `key`."
    home, output = dataset(lake)
    while not os.path.exists(go): pass
    for day in range(1, 9):
        try: home.replace(part(day=day), pl.LazyFrame({"value": [key]}), lambda: {"key": key}, output)
        except ConflictError: print("conflict")


if __name__ == "__main__":
    job, place, *args = sys.argv[1:]
    print("ready", flush=True)
    if job == "append": append(place, int(args[0]))
    elif job == "replace": replace_all_the_time(place, int(args[0]))
    else: replace_once(place, *args)
