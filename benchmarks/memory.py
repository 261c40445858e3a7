"""Memory: `python benchmarks/memory.py` runs one chain of simulated order books, short and long, within a budget.

The chain is days of a million snapshots each, 20 levels, and the trades beside them: one day is simulated, the others
are it with later clocks. `daedalus orderbook --max-memory` runs as a child; the resident memory of its whole process
tree is sampled every 20 ms. Peak memory and CPU seconds hold on a loaded machine; wall seconds do not. Disk: 0.05 GB
of bronze and 1 GB of silver for each million, 40 GB for the 40 days of the default; all of it goes at the end."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

DAY_S, DAY_MS = 86_400.0, 86_400_000
START = datetime(2026, 1, 14, tzinfo=UTC)
KEYS = "exchange=simulated/symbol=BTC-USDT"
CHANNELS = ("orderbook", "trades")
SAMPLE_S = 0.02


def day_file(root: Path, channel: str, day: int) -> Path:
    d = START + timedelta(days=day)
    return root / channel / KEYS / f"year={d.year}/month={d.month:02}/day={d.day:02}/part-0.parquet"


def first_day(root: Path, rows: int) -> None:
    "Simulate the chain's first day."
    from daedalus_etl.sources.simulated import write_bronze
    from daedalus_etl.sources.simulator import SimulatorConfig
    config = SimulatorConfig(depth=20, snapshot_s=(DAY_S - 1.0) / rows)
    write_bronze(root, {"BTC-USDT": config}, START, DAY_S - 1.0, channels=CHANNELS)


def later_day(root: Path, channel: str, day: int) -> None:
    "The first day with clocks, nonces and ids of a later one."
    import polars as pl
    ms = day * DAY_MS
    later = {"capture_ts": pl.col("capture_ts") + pl.duration(milliseconds=ms), "timestamp": pl.col("timestamp") + ms,
             "collected_at": pl.col("collected_at") + ms, "nonce": pl.col("nonce") + ms,
             "trade_id": (pl.col("trade_id").cast(pl.Int64) + ms).cast(pl.String)}
    rows = pl.scan_parquet(day_file(root, channel, 0), hive_partitioning=False)
    names, target = rows.collect_schema().names(), day_file(root, channel, day)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows.with_columns(**{k: e for k, e in later.items() if k in names}).sink_parquet(target, row_group_size=65_536)


def make_input(root: Path, days: int, rows: int) -> Path:
    "Bronze of so many days below `root`; days that are there already stay."
    if not day_file(root, "orderbook", 0).exists(): first_day(root, rows)
    for day in range(1, days):
        for channel in CHANNELS:
            if not day_file(root, channel, day).exists(): later_day(root, channel, day)
    return root


def resident(pid: int) -> int:
    "Resident bytes of a process and of all that it has started."
    import psutil
    try: tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess: return 0
    total = 0
    for process in tree:
        try: total += process.memory_info().rss
        except psutil.NoSuchProcess: pass
    return total


def watched(command: list[str]) -> dict:
    "Run `command`; peak resident MiB of its tree, wall and CPU s."
    before, began, peak = os.times(), time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as child:
            while child.poll() is None:
                peak = max(peak, resident(child.pid))
                time.sleep(SAMPLE_S)
        said.seek(0)
        if child.returncode: raise SystemExit(said.read())
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"peak_mib": peak / 2**20, "wall_s": time.perf_counter() - began, "cpu_s": cpu}


def case(bronze: Path, days: int, rows: int, a: argparse.Namespace) -> dict:
    "One chain of so many days of `rows` snapshots."
    with tempfile.TemporaryDirectory(dir=a.data) as folder:
        lake = Path(folder) / "lake"
        end = f"{START + timedelta(days=days - 1):%Y-%m-%d}"
        command = [sys.executable, "-m", "daedalus_etl.cli", "orderbook", "--input", str(bronze / "orderbook"),
                   "--output", str(lake), "--max-memory", a.max_memory, "--end-date", end]
        found = watched([*command, *a.extra])
    n = days * rows
    return {"snapshots": n} | found | {"rows_per_s": n / found["wall_s"], "cpu_s_per_million": found["cpu_s"] / n * 1e6}


def warm(bronze: Path, a: argparse.Namespace) -> None:
    "Compile the kernels, so that no case pays for it."
    with tempfile.TemporaryDirectory(dir=a.data) as folder:
        subprocess.run([sys.executable, "-m", "daedalus_etl.cli", "orderbook", "--input", str(bronze / "orderbook"),
                        "--output", folder, "--limit", "1000"], check=True, capture_output=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "daedalus-memory")
    args.add_argument("--rows", type=int, default=1_000_000, help="snapshots in a day")
    args.add_argument("--days", type=int, nargs="*", default=[1, 40], help="lengths of the chains")
    args.add_argument("--max-memory", default="2GiB")
    args.add_argument("--keep", action="store_true", help="leave the bronze where it is")
    args.add_argument("extra", nargs="*", help="further flags of `daedalus orderbook`, after --")
    a = args.parse_args()
    a.data.mkdir(parents=True, exist_ok=True)
    bronze = make_input(a.data / f"bronze-{a.rows}", max(a.days), a.rows)
    try:
        warm(bronze, a)
        found = []
        for days in a.days:
            found.append(case(bronze, days, a.rows, a))
            print(json.dumps(found[-1]), flush=True)
        show(found, a)
    finally:
        if not a.keep: shutil.rmtree(bronze)


def show(found: list[dict], a: argparse.Namespace) -> None:
    print(f"\none chain of order books, 20 levels, --max-memory {a.max_memory}, load {os.getloadavg()[0]:.1f}\n"
          f"{'snapshots':>12}{'peak MiB':>10}{'wall s':>9}{'rows/s':>9}{'CPU s per million':>19}")
    for f in found:
        print(f"{f['snapshots']:>12,}{f['peak_mib']:>10,.0f}{f['wall_s']:>9,.0f}{f['rows_per_s']:>9,.0f}"
              f"{f['cpu_s_per_million']:>19.1f}")


if __name__ == "__main__": main()
