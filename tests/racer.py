"""Processes that write and read one dataset at the same time: `python racer.py ROLE LAKE SECONDS SEED`.

Each says what it did as one line of JSON."""
import json
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl

from daedalus_etl.core.config import OutputConfig
from daedalus_etl.core.errors import ConflictError
from daedalus_etl.storage.commit import Dataset, look, stage
from daedalus_etl.storage.journal import Change, commit
from daedalus_etl.storage.modes import fresh_name
from daedalus_etl.storage.partitions import Partition

OUTPUT = OutputConfig(name="silver", path="lake/silver/race")
DAYS = [Partition.of(symbol="BTC-USDT", year=2024, month=8, day=d) for d in range(1, 9)]
ROWS = 12                       # of every version of a partition


def dataset(lake: str) -> Dataset: return Dataset(lake, "silver/race")


def staged(data: Dataset, name: str, **columns): return replace(stage(data, pl.LazyFrame(columns), OUTPUT), name=name)


def count(data: Dataset, days: list[Partition]) -> list[Change]:
    "Changes that add one to the number in each of `days`, from what is there now."
    changes = []
    for day in days:
        seen = look(data.folder(day))
        try: n = pl.read_parquet(data.file(day), hive_partitioning=False)["n"][0] if seen else 0
        except FileNotFoundError as e: raise ConflictError("it went while it was read") from e
        changes.append(Change(data, day, seen, (staged(data, "part-0.parquet", n=[n + 1]),)))
    return changes


def counting(data: Dataset, until: float, dice: random.Random, most: int) -> dict:
    "Add one to some partitions, in any order, all of them in one commit; who loses reads and tries again."
    done, lost = Counter(), 0
    while time.monotonic() < until:
        days = dice.sample(range(len(DAYS)), dice.randint(1, most)) if most > 1 else [0]
        try: commit(count(data, [DAYS[d] for d in days]))
        except ConflictError as e:
            assert e.exit_code == 3
            lost += 1
        else: done.update(days)
    return {"done": {DAYS[d].path: n for d, n in done.items()}, "lost": lost}


def version(data: Dataset, day: Partition, v: int, files: int) -> Change:
    "The partition's next version: ROWS rows in so many files; none takes it away."
    seen, size = look(data.folder(day)), ROWS // max(files, 1)
    def name(k): return fresh_name(seen) if files == 1 else f"part-v{v}-{k}.parquet"
    put = tuple(staged(data, name(k), v=[v] * size, i=list(range(k * size, (k + 1) * size))) for k in range(files))
    return Change(data, day, seen, put, seen.names - {s.name for s in put})


def writing(data: Dataset, until: float, dice: random.Random) -> dict:
    "Replace, exchange and take away partitions, one at a time and several at once."
    v = 0
    while time.monotonic() < until:
        days = dice.sample(DAYS[:3], dice.choice([1, 1, 1, 2]))
        commit([version(data, day, v := v + 1, dice.choice([1, 1, 1, 2, 3, 0])) for day in days])
    return {"versions": v}


def reading(data: Dataset, until: float, read) -> dict:
    "Read a partition again and again: its rows must be all rows of one version, or there is no such partition."
    said, wrong = Counter(), []
    while time.monotonic() < until:
        for day in DAYS[:3]:
            folder = data.folder(day)
            if not folder.exists(): said["nothing"] += 1
            else:
                try: rows = sorted(read(folder))
                except Exception as e: said[f"error {type(e).__name__}"] += 1
                else:
                    whole = not rows or rows == [(rows[0][0], i) for i in range(ROWS)]
                    said["good" if whole and rows else "nothing" if whole else "wrong"] += 1
                    if not whole: wrong.append(rows)
    return {"said": dict(said), "wrong": wrong[:3]}


def with_polars(folder: Path) -> list[tuple]:
    return pl.scan_parquet(folder, hive_partitioning=False).select("v", "i").collect().rows()


def with_pyarrow(folder: Path) -> list[tuple]:
    import pyarrow.dataset
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table(columns=["v", "i"])
    return list(zip(table["v"].to_pylist(), table["i"].to_pylist(), strict=True))


def with_duckdb(folder: Path) -> list[tuple]:
    import duckdb
    return duckdb.sql(f"select v, i from read_parquet('{folder}/*.parquet', hive_partitioning=false)").fetchall()


def main(role: str, lake: str, seconds: float, seed: int) -> dict:
    data, dice = dataset(lake), random.Random(seed)
    sys.stdin.readline()                        # all begin together
    until = time.monotonic() + seconds
    if role == "count": return counting(data, until, dice, 1)
    if role == "sets": return counting(data, until, dice, 5)
    if role == "write": return writing(data, until, dice)
    return reading(data, until, globals()[f"with_{role}"])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
