"""Several processes write to one dataset, and others read it: what is there in the end is what one after the other
would have left, losers are told so, and no reader sees rows of two versions of a partition together."""
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from daedalus_etl.core.config import OutputConfig
from daedalus_etl.storage.commit import Dataset
from daedalus_etl.storage.journal import journals
from daedalus_etl.storage.write import write



# Each version of a partition holds 50 rows with the same number: a mixture shows as two numbers, or another count.
WRITER = """
import sys, time
from pathlib import Path
import polars as pl
from daedalus_etl.core.config import OutputConfig
from daedalus_etl.core.errors import ConflictError
from daedalus_etl.storage.commit import Dataset, look, stage
from daedalus_etl.storage.journal import Change, commit
from daedalus_etl.storage.partitions import Partition
from daedalus_etl.storage.modes import fresh_name
from dataclasses import replace

root, me, order, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
output = OutputConfig(name="o", path=root)
dataset, done, lost = Dataset.of(output), 0, 0
days = [Partition.of(symbol="X", year=2024, month=8, day=int(d)) for d in order.split(",")]
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + seconds
while time.monotonic() < end or done + lost < 10:       # a busy machine may be slow
    number, changes = me * 1_000_000 + done + lost, []
    for day in days:
        seen = look(dataset.folder(day))
        frame = pl.LazyFrame({"number": [number] * 50})
        n = 1 if number % 3 else 2              # every third version is of two files: folders change places
        names = [f"part-{me}-{number}-{k}.parquet" for k in range(n)] if n > 1 else [fresh_name(seen)]
        put = tuple(replace(stage(dataset, frame.slice(k * 50 // n, 50 // n), output), name=x)
                    for k, x in enumerate(names))
        changes.append(Change(dataset, day, seen, put, seen.names - {x for x in names}))
    try:
        commit(changes)
        done += 1
    except ConflictError: lost += 1
print(done, lost, flush=True)
"""

READER = """
import sys, time
from pathlib import Path
root, tool, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
import polars as pl, duckdb, pyarrow.dataset as ds
read = {
    "polars": lambda p: pl.read_parquet(p, hive_partitioning=False)["number"].to_list(),
    "pyarrow": lambda p: ds.dataset(p, format="parquet").to_table()["number"].to_pylist(),
    "duckdb": lambda p: [r[0] for r in duckdb.sql(f"from read_parquet('{p}/*.parquet')").fetchall()]}[tool]
print("ready", flush=True)
sys.stdin.readline()
good = failed = wrong = 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    for day in ("08", "09", "10"):
        try: numbers = read(f"{root}/symbol=X/year=2024/month=08/day={day}")
        except BaseException: failed += 1; continue           # a file went while it was read: an error, no wrong row
        if len(numbers) == 50 and len(set(numbers)) == 1: good += 1
        else: wrong += 1
print(good, failed, wrong, flush=True)
"""


def start(script: str, *args) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script, *map(str, args)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)


def run_together(processes: list[subprocess.Popen]) -> list[list[int]]:
    "Let all processes begin at once; returns the numbers that each prints at its end."
    for p in processes: assert p.stdout.readline() == "ready\n"
    for p in processes:
        p.stdin.write("go\n")
        p.stdin.flush()
    said = [p.communicate(timeout=120)[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes)
    return [[int(x) for x in s.split()] for s in said]


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "lake/silver/t"
    frame = pl.DataFrame({"symbol": "X", "year": 2024, "month": 8, "day": [d for d in (8, 9, 10) for _ in range(50)],
                          "number": 7})
    write(frame, OutputConfig(name="o", path=path, partition_cols=("symbol", "year", "month", "day")))
    return path


def left(root: Path) -> dict[str, set[int]]:
    "The numbers that each day holds."
    return {f"{d:02}": set(pl.read_parquet(root / f"symbol=X/year=2024/month=08/day={d:02}",
                                           hive_partitioning=False)["number"]) for d in (8, 9, 10)}


def tidy(root: Path) -> None:
    dataset = Dataset.of(OutputConfig(name="o", path=root))
    assert journals(dataset.lake) == [] and list((dataset.meta / "stage").iterdir()) == []
    assert list((dataset.meta / "locks").iterdir()) == []


@pytest.mark.parametrize("orders", [("8,9,10", "10,9,8", "9,8,10"), ("8", "9", "10"), ("8,9", "9,10", "8,10")])
def test_writers_of_overlapping_partitions(root, orders):
    "In whatever order they name the days: no deadlock, and each day holds the rows of one commit."
    said = run_together([start(WRITER, root, k + 1, order, 2.0) for k, order in enumerate(orders)])
    assert sum(done for done, _ in said) > 2, said           # who is slow may lose each time: nobody waits for it
    now = left(root)
    assert all(len(numbers) == 1 for numbers in now.values())
    if orders[0] == "8,9,10": assert len(set.union(*now.values())) == 1        # of one commit, all three
    if orders == ("8", "9", "10"): assert sum(lost for _, lost in said) == 0
    tidy(root)


def test_readers_never_see_a_mixture(root):
    began = time.monotonic()
    tools = ("polars", "pyarrow", "duckdb")
    said = run_together([start(WRITER, root, 1, "8,9,10", 4.0), *(start(READER, root, t, 4.0) for t in tools)])
    commits, reads = said[0][0], dict(zip(tools, said[1:], strict=True))
    print(f"{commits} commits; good, failed, wrong reads: {reads}; {time.monotonic() - began:.1f} s")
    assert commits > 3 and all(good > 10 for good, _, _ in reads.values())
    assert all(wrong == 0 for _, _, wrong in reads.values()), reads
