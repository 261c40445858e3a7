"""What storage costs: a commit against a bare sink with the same fsyncs, and a run that finds nothing to do."""
from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks import inputs
from benchmarks.harness import FLOOR, OURS, Case, Env, Side

COMMITS = 5              # of a pass
PARTITIONS = 1_000
SIZES = {"tiny": (1_000, 20), "small": (10_000, 40), "large": (100_000, 40), "wide": (100_000, 120)}   # rows, columns


def frame_of(n: int, columns: int):
    "`n` rows of `columns` random floats with a clock."
    import numpy as np
    import polars as pl
    rng = np.random.default_rng(0)
    start = datetime(2024, 8, 8, tzinfo=UTC)
    clock = pl.datetime_range(start, start + timedelta(microseconds=n - 1), "1us", time_unit="us", eager=True)
    return pl.DataFrame({"capture_ts": clock} | {f"c{i}": rng.normal(size=n).round(4) for i in range(columns)})


# ---- commits; rows are commits, so that sides compare

def commits(n: int, columns: int):
    "Stage, check, sum, lineage record, lock, compare, rename."
    def work(env: Env) -> dict:
        lake = Path(tempfile.mkdtemp(dir=env.scratch))
        frame = env.once("frame", lambda: frame_of(n, columns)).lazy()
        for k in range(env.rows): publish(lake, frame, k)
        return {"rows": env.rows, "fsyncs": env.once("fsyncs", lambda: fsyncs(lake, frame))}
    return work


def publish(lake: Path, frame, n: int) -> None:
    from daedalus_etl.core.config import OutputConfig
    from daedalus_etl.storage.commit import Dataset, look, stage
    from daedalus_etl.storage.journal import Change, commit
    from daedalus_etl.storage.lineage import save_record
    from daedalus_etl.storage.partitions import Partition
    output = OutputConfig(name="silver", path=str(lake / "silver" / "bench"))
    dataset, day = Dataset.of(output), Partition.of(exchange="x", symbol="BTC-USDT", year=2024, month=8, day=8)
    staged = stage(dataset, frame, output, lambda: {"key": f"{n:064x}", "transform": "bench"})
    save_record(dataset, day, staged, {"inputs": {}})
    commit([Change(dataset, day, look(dataset.folder(day)), (staged,))])


def fsyncs(lake: Path, frame) -> int:
    "How often a commit calls fsync, polars' own call for the data file included."
    from daedalus_etl.storage import disk
    counted, calls, through = {"fsync", "_full_fsync"}, [], disk.syscall
    def counting(call, *args, **kwargs):
        if call.__name__ in counted: calls.append(call)
        return through(call, *args, **kwargs)
    disk.syscall = counting
    try: publish(lake, frame, 10**6)      # a key of its own: a record that is there would not be written
    finally: disk.syscall = through
    return 1 + len(calls)


def bare(n: int, columns: int, *, same: bool):
    "One plain sink: write, fsync, rename, fsync of the folder; `same`: with as many fsyncs as a commit of ours."
    def work(env: Env) -> int:
        from daedalus_etl.storage.disk import fsync_dir, fsync_file
        folder = Path(tempfile.mkdtemp(dir=env.scratch))
        frame = env.once("frame", lambda: frame_of(n, columns)).lazy()
        more = env.once("more", lambda: fsyncs(folder / "lake", frame) - 2) if same else 0
        for k in range(env.rows):
            for j in range(more // 2):                  # a record as ours: a small file made durable, and its folder
                (folder / f"{k}.{j}.json").write_bytes(b"x" * 900)
                fsync_file(folder / f"{k}.{j}.json")
                fsync_dir(folder)
            part = folder / f"{k}.part"
            frame.sink_parquet(part, **inputs.WRITER, sync_on_close="all")
            os.replace(part, folder / "part-0.parquet")
            fsync_dir(folder)
        return env.rows
    return work


# ---- a run over many partitions that finds nothing to do

def partitions(env: Env) -> int: return max(1, env.rows // 20)


def bronze(env: Env) -> Path:
    "Bronze trades: streams of up to a hundred days with 20 rows each."
    import polars as pl
    n = partitions(env)
    def make(root: Path) -> None:
        for k in range(n):
            day = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=k % 100)
            date = f"year={day.year}/month={day.month:02}/day={day.day:02}"
            folder = root / f"exchange=x/symbol=S{k // 100:03}-USDT/{date}"
            folder.mkdir(parents=True)
            times = [day + timedelta(minutes=3 * i) for i in range(20)]
            frame = pl.DataFrame(
                {"capture_ts": times, "price": [100.0 + i for i in range(20)], "amount": [1.0] * 20,
                 "side": ["buy", "sell"] * 10}, schema_overrides={"capture_ts": pl.Datetime("us", "UTC")})
            frame.write_parquet(folder / "data.parquet")
    return inputs.made(env.data / f"partitions-{n}", make)


def run_over(env: Env, lake: Path, what: str = "execute"):
    from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, TransformConfig
    from daedalus_etl.core.executor import TransformExecutor
    from daedalus_etl.transforms.trades import TradesFeatureTransform
    config = TransformConfig(
        name="trades_features", inputs={"trades": InputConfig(name="trades", path=str(bronze(env)))},
        outputs={"silver": OutputConfig(name="silver", path=str(lake / "silver" / "trades"))})
    executor = TransformExecutor(FeatureConfig(rolling_windows=(60,)), progress=False)
    return getattr(executor, what)(TradesFeatureTransform(config))


def built(env: Env) -> Path:
    "The lake of that bronze; its key names the inputs, so it stays where it was made."
    return inputs.made(env.data / f"partitions-{partitions(env)}-lake", lambda lake: run_over(env, lake))


def first_run(env: Env) -> dict:
    report = run_over(env, Path(tempfile.mkdtemp(dir=env.scratch)))
    return {"rows": report.totals()["written"]}


def noop(what: str):
    def work(env: Env) -> dict:
        report = run_over(env, built(env), what)
        return {"rows": report.totals()["done"]}
    return work


def walk(env: Env) -> int:
    "Both trees walked, and every file's status asked for."
    n = 0
    for root in (bronze(env), built(env) / "silver"):
        for folder, _, names in os.walk(root): n += sum(os.stat(os.path.join(folder, f)).st_size > 0 for f in names)
    return n // 2


def commit_case(name: str, n: int, columns: int) -> Case:
    sides = (Side("daedalus_etl", commits(n, columns), OURS),
             Side("sink, same fsyncs", bare(n, columns, same=True), FLOOR),
             Side("sink, 2 fsyncs", bare(n, columns, same=False), FLOOR))
    return Case(f"commit_{name}", f"Commits of {n:,} rows, {columns} columns", "Stage, sync, check, sum, lineage, "
                "lock, compare, rename, five times; against a plain sink and rename.", "storage", COMMITS, sides,
                unit="commits", quick=1, rounds=None if name == "tiny" else 2)


CASES = [
    *(commit_case(name, *size) for name, size in SIZES.items()),
    Case("noop", "A run with nothing to do", "A run and a plan over partitions that are all up to date, against a walk "
         "over both trees that asks for every file's status.", "storage", 20 * PARTITIONS,
         (Side("execute", noop("execute"), OURS), Side("plan", noop("plan"), "variant"), Side("walk", walk, FLOOR)),
         built, "partitions", quick=800),
    Case("tiny_partitions", "Many tiny partitions", "A first run over partitions of 20 trades: what a unit of work "
         "costs beside its rows.", "storage", 20 * PARTITIONS,
         (Side("daedalus_etl", first_run, OURS, passes=1),), bronze, "partitions", quick=800, rounds=1),
]
