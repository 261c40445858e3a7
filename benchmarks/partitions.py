"""What a partition costs that holds next to nothing: many streams of one trade a day, first run and no-op run.

    python benchmarks/partitions.py [--symbols 20] [--days 500] [--workers 1,2] [--pool threads]

Prints wall and CPU milliseconds per partition: of a plain loop (read a file, `features`, write it durably, rename it),
which is the work that no executor can save, and of the executor, whose difference to that is its overhead: plan,
contract, state, lineage, lock, journal, commit. On a machine that does other work look at the CPU time."""
import argparse
import os
import resource
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from daedalus_etl.core.config import InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.features.frames import features
from daedalus_etl.transforms.trades import TradesFeatureTransform

START = datetime(2024, 1, 1, 12, tzinfo=UTC)


def bronze(root: Path, symbols: int, days: int) -> None:
    "One trade a day for each symbol."
    for s in range(symbols):
        for d in range(days):
            at, symbol = START + timedelta(days=d), f"S{s:03}-USDT"
            part = root / f"exchange=x/symbol={symbol}/year={at.year}/month={at.month:02}/day={at.day:02}"
            part.mkdir(parents=True)
            pl.DataFrame({"capture_ts": [at], "exchange": ["x"], "symbol": [symbol], "trade_id": [str(d)],
                          "side": ["buy"], "price": [100.0 + d], "amount": [1.0]}).with_columns(
                pl.col("capture_ts").cast(pl.Datetime("us", "UTC"))).write_parquet(part / "data.parquet")


def cpu_s() -> float:
    "CPU seconds of this process and of its children that are over."
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def plain(root: Path, out: Path) -> int:
    "The same work without an executor, one partition after the other."
    out.mkdir(parents=True)
    files = sorted(root.rglob("*.parquet"))
    for i, file in enumerate(files):
        part = out / f"{i}.part"
        with open(part, "wb") as f:
            features(trades=pl.scan_parquet(file)).write_parquet(f, compression="zstd")
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, out / f"{i}.parquet")
    return len(files)

def timed(what: str, work) -> None:
    "Run `work`, which returns a number of partitions, and print what each of them took."
    wall, cpu = time.perf_counter(), cpu_s()
    n = work()
    wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
    print(f"{what}: {n:,} partitions in {wall:.1f} s; {1000 * wall / n:.2f} ms wall, {1000 * cpu / n:.2f} ms CPU each",
          flush=True)

def measure(root: Path, lake: Path, workers: int, pool: str) -> None:
    "A first run and one that finds nothing to do."
    made = TradesFeatureTransform(TransformConfig(
        name="trades_features", inputs={"trades": InputConfig(name="trades", path=root)},
        outputs={"silver": OutputConfig(name="silver", path=lake / "silver/trades")}))
    for what in ("first run", "no-op run"):
        timed(f"{pool}, {workers} worker(s), {what}", lambda: len(
            TransformExecutor(workers=workers, pool=pool, progress=False).execute(made).units))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--days", type=int, default=500)
    parser.add_argument("--workers", type=lambda t: [int(w) for w in t.split(",")], default=[1, 2])
    parser.add_argument("--pool", choices=["threads", "processes"], default="threads")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bronze(Path(folder) / "bronze", args.symbols, args.days)
        for what in ("warm", "plain"):      # the first compiles, or loads what is compiled
            timed(f"{what} loop", lambda out=Path(folder) / what: plain(Path(folder) / "bronze", out))
        for n in args.workers: measure(Path(folder) / "bronze", Path(folder) / f"lake{n}", n, args.pool)


if __name__ == "__main__": main()
