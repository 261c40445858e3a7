"""What a Dask cluster costs and gives: `python benchmarks/cluster.py` starts one here, and prints a table and JSON.

Cost of a unit: steps that do nothing, and tiny real partitions against the same ones in this process. Gain: chains of
order books on one worker and on two, each with one thread, of polars too; the goal is a factor of 1.7. Only a quiet
machine with as many cores as workers tells anything."""
import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from types import SimpleNamespace

os.environ["POLARS_MAX_THREADS"] = "1"          # here as in the workers, or the comparison is none

from daedalus_etl.core.base import BaseTransform
from daedalus_etl.core.config import FeatureConfig, OutputConfig, StorageConfig, TransformConfig
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.core.registry import create_transform
from daedalus_etl.core.report import UnitReport
from daedalus_etl.run.cluster import as_pool, local_cluster
from daedalus_etl.run.local import Threads
from daedalus_etl.runners.jobs import features_config
from daedalus_etl.sources.simulated import write_bronze
from daedalus_etl.sources.simulator import SimulatorConfig

START = datetime(2026, 1, 14, tzinfo=UTC)
GOAL = 1.7          # two workers against one


class Nothing(BaseTransform):
    "Has no data."
    def transform(self, inputs, context): return inputs


@dataclass(frozen=True)
class Job:
    "Of steps that do nothing."
    transform: Nothing
    state_path: None = None
    since_ns: int | None = None


def nothing(job: Job, unit, before): return UnitReport(unit.partition.path, "done"), (before or 0) + 1
def no_end(job: Job, last) -> None: return None


def noop_chains(scratch: Path, chains: int, units: int) -> list:
    out = {"b": OutputConfig(name="b", path=str(scratch / "noop/silver/b"))}
    job = Job(Nothing(TransformConfig(name="nothing", inputs={}, outputs=out)))
    return [(job, [SimpleNamespace(partition=SimpleNamespace(path=f"chain={c}/unit={k}")) for k in range(units)])
            for c in range(chains)]


def tiny_bronze(root: Path, symbols: int, days: int) -> Path:
    "Trades of a few seconds a day."
    for s in range(symbols):
        for d in range(days):
            noon = START + timedelta(days=d, hours=12)
            write_bronze(root, {f"S{s:02}-USDT": SimulatorConfig()}, noon, 20.0, s + 100 * d, channels=("trades",))
    return root


def book_bronze(root: Path, symbols: int, seconds: float) -> Path:
    "Two days of books and trades of each symbol, half of `seconds` in each."
    streams = {f"B{s:02}-USDT": SimulatorConfig(snapshot_s=0.1) for s in range(symbols)}
    begin = START + timedelta(days=1, seconds=-seconds / 2)
    write_bronze(root, streams, begin, seconds, channels=("trades", "orderbook"))
    return root


def execute(channel: str, bronze: Path, lake: Path, pool, features: FeatureConfig) -> tuple[float, int]:
    "Seconds and units of a run into a new lake."
    shutil.rmtree(lake, ignore_errors=True)
    config = features_config(channel, StorageConfig(output_root=str(lake)), str(bronze / channel))
    executor = TransformExecutor(features, pool=pool, progress=False)
    began = time.perf_counter()
    report = executor.execute(create_transform(config.name, config))
    return time.perf_counter() - began, len(report.units)


def repeated(work, times: int) -> float:
    "Median seconds of `work()`, after one run that warms everything up."
    work()
    return statistics.median(work() for _ in range(times))


def cost(scratch: Path, chains: int, units: int, times: int) -> dict:
    "Milliseconds that a unit costs on the cluster beyond its work."
    noop, bronze = noop_chains(scratch, chains, units), tiny_bronze(scratch / "tiny", chains, 4)
    features = FeatureConfig(rolling_windows=(5,))
    def flown(pool) -> float:
        began = time.perf_counter()
        pool.run(noop, nothing, no_end, stop=Event(), told=lambda i, r: None)
        return time.perf_counter() - began
    def real(pool) -> float: return execute("trades", bronze, scratch / "lake", pool, features)[0]
    here, n = Threads(1), chains * units
    with local_cluster(1) as cluster, as_pool(cluster) as there:
        found = {name: (repeated(lambda p=p: flown(p), times), repeated(lambda p=p: real(p), times))
                 for name, p in (("here", here), ("cluster", there))}
    (noop_here, real_here), (noop_there, real_there) = found["here"], found["cluster"]
    return {"noop units": n, "noop ms/unit": 1e3 * (noop_there - noop_here) / n, "tiny units": 4 * chains,
            "tiny ms/unit here": 250 * real_here / chains, "tiny ms/unit cluster": 250 * real_there / chains,
            "tiny extra ms/unit": 250 * (real_there - real_here) / chains}


def scaling(scratch: Path, symbols: int, seconds: float, times: int) -> dict:
    "Seconds for chains of order books on one worker and on two."
    bronze, took = book_bronze(scratch / "books", symbols, seconds), {}
    features = FeatureConfig(categories={"structural", "dynamic", "rolling", "advanced"})
    for workers in (1, 2):
        with local_cluster(workers) as cluster, as_pool(cluster) as pool:
            def work(p=pool): return execute("orderbook", bronze, scratch / "lake", p, features)[0]
            took[workers] = repeated(work, times)
    return {"symbols": symbols, "units": 2 * symbols, "1 worker s": took[1], "2 workers s": took[2],
            "factor": took[1] / took[2], "goal": GOAL}


def table(name: str, rows: dict) -> str:
    width = max(map(len, rows))
    return "\n".join([name, *(f"  {k:<{width}}  {v:>10.2f}" for k, v in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder for inputs and lakes (a temporary one)")
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--units", type=int, default=250, help="of each chain of steps that do nothing")
    parser.add_argument("--symbols", type=int, default=4, help="order books side by side")
    parser.add_argument("--seconds", type=float, default=3600.0, help="simulated, of each order book")
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.data or Path(temporary)
        found = {"cost of a unit": cost(scratch, args.chains, args.units, args.times),
                 "order books": scaling(scratch, args.symbols, args.seconds, args.times)}
    for name, rows in found.items(): print(table(name, rows), file=sys.stderr)
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0]} | found, indent=1))


if __name__ == "__main__": main()
