"""What storage costs: a commit against a bare sink with the same fsyncs, and planning over many partitions.

    python benchmarks/storage.py commit      # ms per partition, ours and bare, in one run
    python benchmarks/storage.py plan        # a run over 10 000 partitions with nothing to do (builds them first)
"""
import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.storage import disk
from daedalus_etl.storage.commit import Dataset, look, stage
from daedalus_etl.storage.disk import fsync_dir, fsync_file
from daedalus_etl.storage.journal import Change, commit
from daedalus_etl.storage.lineage import save_record
from daedalus_etl.storage.partitions import Partition
from daedalus_etl.transforms.trades import TradesFeatureTransform

DAY = Partition.of(exchange="x", symbol="BTC-USDT", year=2024, month=8, day=8)


def rows(n: int, columns: int) -> pl.DataFrame:
    "`n` rows of `columns` random floats with a clock."
    rng = np.random.default_rng(0)
    start = datetime(2024, 8, 8, tzinfo=UTC)
    clock = pl.datetime_range(start, start + timedelta(microseconds=n - 1), "1us", time_unit="us", eager=True)
    return pl.DataFrame({"capture_ts": clock} | {f"c{i}": rng.normal(size=n).round(4) for i in range(columns)})


def bare(frame: pl.LazyFrame, folder: Path, n: int, more: int = 0) -> float:
    "Seconds of one plain sink: write, fsync, rename, fsync of the folder; `more`: fsyncs of small files and folders."
    began = time.perf_counter()
    part = folder / f"{n}.part"
    for k in range(more // 2):                      # a record as ours: a small file made durable, and its folder
        (folder / f"{n}.{k}.json").write_bytes(b"x" * 900)
        fsync_file(folder / f"{n}.{k}.json")
        fsync_dir(folder)
    frame.sink_parquet(part, compression="zstd", compression_level=3, row_group_size=131_072, sync_on_close="all")
    os.replace(part, folder / "part-0.parquet")
    fsync_dir(folder)
    return time.perf_counter() - began


def ours(frame: pl.LazyFrame, dataset: Dataset, output: OutputConfig, n: int) -> float:
    "Seconds of stage, check, sum, lineage record, lock, compare, rename."
    began = time.perf_counter()
    staged = stage(dataset, frame, output, lambda: {"key": f"{n:064x}", "transform": "bench"})
    save_record(dataset, DAY, staged, {"inputs": {}})
    commit([Change(dataset, DAY, look(dataset.folder(DAY)), (staged,))])
    return time.perf_counter() - began


def our_fsyncs(frame: pl.LazyFrame, dataset: Dataset, output: OutputConfig) -> int:
    "How often a commit calls fsync, polars' own call for the data file included."
    counted, calls, through = {"fsync", "_full_fsync"}, [], disk.syscall
    def counting(call, *args, **kwargs):
        if call.__name__ in counted: calls.append(call)
        return through(call, *args, **kwargs)
    disk.syscall = counting
    try: ours(frame, dataset, output, 10**6)      # a key of its own: a record that is there would not be written
    finally: disk.syscall = through
    return 1 + len(calls)


def bench_commit(repeats: int) -> None:
    "Table of medians and their difference."
    print(f"{'rows':>9} {'columns':>8} {'MB':>7} {'fsyncs':>7} {'bare, 2':>9} {'bare, same':>11} {'ours ms':>9} "
          f"{'over, 2':>9} {'over, same':>11}")
    for n, columns in ((1_000, 20), (10_000, 40), (100_000, 40), (100_000, 120)):
        frame = rows(n, columns).lazy()
        with tempfile.TemporaryDirectory() as d:
            output = OutputConfig(name="silver", path=f"{d}/lake/silver/bench")
            dataset, plain = Dataset.of(output), Path(d) / "plain"
            plain.mkdir()
            for w in range(2): ours(frame, dataset, output, w)
            n_sync = our_fsyncs(frame, dataset, output)
            runs = [(bare(frame, plain, i), bare(frame, plain, i, n_sync - 2), ours(frame, dataset, output, i + 9))
                    for i in range(repeats)]
            two, same, mine = (statistics.median(x) * 1e3 for x in zip(*runs, strict=True))
            over = [statistics.median(r[2] - r[k] for r in runs) * 1e3 for k in (0, 1)]
            size = dataset.file(DAY).stat().st_size / 1e6
            print(f"{n:9,} {columns:8} {size:7.1f} {n_sync:7} {two:9.2f} {same:11.2f} {mine:9.2f} "
                  f"{over[0]:9.2f} {over[1]:11.2f}")


def build(root: Path, symbols: int, days: int) -> None:
    "Bronze trades: `symbols` streams of `days` partitions with 20 rows each."
    if root.exists(): return
    for s in range(symbols):
        for d in range(days):
            day = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=d)
            folder = root / f"exchange=x/symbol=S{s:03}-USDT/year={day.year}/month={day.month:02}/day={day.day:02}"
            folder.mkdir(parents=True)
            times = [day + timedelta(minutes=3 * i) for i in range(20)]
            pl.DataFrame({"capture_ts": times, "price": [100.0 + i for i in range(20)], "amount": [1.0] * 20,
                          "side": ["buy", "sell"] * 10}, schema_overrides={"capture_ts": pl.Datetime("us", "UTC")}
                         ).write_parquet(folder / "data.parquet")


def bench_plan(folder: Path, partitions: int, repeats: int) -> None:
    "Seconds of a run that finds nothing to do."
    bronze, lake = folder / f"bronze-{partitions}", folder / f"lake-{partitions}"
    build(bronze, max(1, partitions // 100), min(100, partitions))
    config = TransformConfig(name="trades_features", inputs={"trades": InputConfig(name="trades", path=bronze)},
                             outputs={"silver": OutputConfig(name="silver", path=lake / "silver/trades")})
    executor = TransformExecutor(FeatureConfig(rolling_windows=(60,)), progress=False)
    began = time.perf_counter()
    report = executor.execute(TradesFeatureTransform(config))
    t, took = report.totals(), time.perf_counter() - began
    if n := t.get("written"): print(f"built {n:,} partitions in {took:.1f} s: {took / n * 1e3:.2f} ms each")
    for what in ("execute", "plan"):
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            report = getattr(executor, what)(TradesFeatureTransform(config))
            seconds.append(time.perf_counter() - began)
        print(f"{what}: {report.totals()['done']:,} done, median {statistics.median(seconds):.2f} s, "
              f"spread {min(seconds):.2f} .. {max(seconds):.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["commit", "plan"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=None, help="keep the partitions of `plan` here")
    args = parser.parse_args()
    if args.what == "commit": bench_commit(args.repeats)
    elif args.folder: bench_plan(args.folder, args.partitions, args.repeats)
    else:
        with tempfile.TemporaryDirectory() as scratch: bench_plan(Path(scratch), args.partitions, args.repeats)
    sys.exit(0)
