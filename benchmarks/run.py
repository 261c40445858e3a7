"""Side by side: `python benchmarks/run.py` measures each case in processes of its own and prints medians and ratios.

Cases: trades silver with five windows against the I/O floor (the same columns read and written, nothing computed), its
peak memory at several sizes, 60 s bars from Parquet against polars and DuckDB, and the time that imports take. Inputs
are simulated and made once, below --data. CPU seconds hold on a loaded machine; wall seconds do not."""
import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
DAY_S = 86_400.0
WRITER = dict(compression="zstd", compression_level=3, row_group_size=131_072)        # as the executor's defaults


def measured(work) -> dict:
    "Wall and CPU seconds of `work()`, and this process's peak memory so far in MiB."
    wall, cpu = time.perf_counter(), time.process_time()
    rows = work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "rows": rows,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


# ---- cases: each runs in a process of its own, twice, and reports the second pass (caches warm, kernels loaded)
def silver_job(data: Path, out: Path):
    from daedalus_etl.core.config import StorageConfig
    from daedalus_etl.core.executor import TransformExecutor
    from daedalus_etl.core.registry import create_transform
    from daedalus_etl.runners.jobs import features_config
    config = features_config("trades", StorageConfig(output_root=str(out)), str(data / "trades"))
    report = TransformExecutor(progress=False).execute(create_transform(config.name, config))
    return report["write_stats"]["silver"]["rows"]


def case_silver(data: Path, scratch: Path):
    "The executor: bronze trades to silver with five windows."
    shutil.rmtree(scratch / "lake", ignore_errors=True)
    return silver_job(data, scratch / "lake")


def case_floor(data: Path, scratch: Path):
    "The same bronze columns read and as many rows of the same silver columns written, nothing computed."
    import polars as pl
    from daedalus_etl.core.lazy import lazy_source
    (bronze,), sample = list(data.glob("trades/**/*.parquet")), _silver_sample(data, scratch)

    def batches(columns):
        at = 0
        rows = pl.scan_parquet(bronze, hive_partitioning=False)
        for batch in rows.collect_batches(chunk_size=131_072, maintain_order=True):
            at = 0 if at + batch.height > sample.height else at
            yield sample[at:at + batch.height]
            at += batch.height

    target = scratch / "floor.parquet"
    lazy_source(dict(sample.schema), batches).sink_parquet(target, **WRITER, sync_on_close="all")
    return pl.scan_parquet(target).select(pl.len()).collect().item()


def _silver_sample(data: Path, scratch: Path):
    "Some row groups of real silver, in memory: what the floor writes again and again."
    import polars as pl
    if not (scratch / "sample").exists():
        small = scratch / "small" / "trades" / "exchange=a" / "symbol=b" / "year=2026" / "month=01" / "day=14"
        small.mkdir(parents=True)
        (bronze,) = data.glob("trades/**/*.parquet")
        few = pl.scan_parquet(bronze, hive_partitioning=False).head(131_072 * 8).drop("exchange", "symbol")
        few.sink_parquet(small / "part-0.parquet")
        silver_job(scratch / "small", scratch / "sample")
    (silver,) = (scratch / "sample" / "silver").glob("**/*.parquet")
    return pl.read_parquet(silver, hive_partitioning=False)


def case_bars_daedalus(data: Path, scratch: Path):
    "60 s bars straight from the trades file."
    import polars as pl
    from daedalus_etl.core.base import TransformContext
    from daedalus_etl.core.config import FeatureConfig, StorageConfig
    from daedalus_etl.runners.jobs import bars_config
    from daedalus_etl.transforms.bars import BarAggregationTransform
    (source,) = _silver_columns(data, scratch)
    context = TransformContext(feature_config=FeatureConfig(bar_durations=[60]), stream=("simulated", "BTC-USDT"))
    bars = BarAggregationTransform(bars_config("trades", StorageConfig()))
    rows = pl.scan_parquet(source, hive_partitioning=False)
    return bars.transform({"silver": rows}, context)["gold/60s"].collect().height


def case_bars_polars(data: Path, scratch: Path):
    import polars as pl
    (source,) = _silver_columns(data, scratch)
    rows = pl.scan_parquet(source, hive_partitioning=False)
    price, amount, sign = map(pl.col, ("price", "amount", "side_sign"))
    bars = rows.set_sorted("capture_ts").group_by_dynamic("capture_ts", every="60s").agg(
        open=price.first(), high=price.max(), low=price.min(), close=price.last(), volume=amount.sum(),
        dollar_volume=(price * amount).sum(), trade_count=pl.len(), buy_volume=amount.filter(sign > 0).sum(),
        sell_volume=amount.filter(sign < 0).sum())
    return bars.collect().height


def case_bars_duckdb(data: Path, scratch: Path):
    import duckdb
    (source,) = _silver_columns(data, scratch)
    return len(duckdb.sql(f"""select time_bucket(interval '60 seconds', capture_ts) b, arg_min(price, capture_ts),
        max(price), min(price), arg_max(price, capture_ts), sum(amount), sum(price * amount), count(*),
        sum(amount) filter (side_sign > 0), sum(amount) filter (side_sign < 0)
        from read_parquet('{source}') group by b order by b""").arrow().read_all())


def _silver_columns(data: Path, scratch: Path) -> list[Path]:
    "A file with what silver trades hold of each trade, which is what bars are made from."
    import polars as pl
    target = data / "silver-columns.parquet"
    if not target.exists():
        (bronze,) = data.glob("trades/**/*.parquet")
        sign = pl.when(pl.col("side") == "buy").then(1).otherwise(-1).cast(pl.Int8).alias("side_sign")
        rows, segment = pl.scan_parquet(bronze, hive_partitioning=False), pl.lit(0, pl.Int64).alias("segment_id")
        rows.select("capture_ts", "price", "amount", sign, segment).sink_parquet(target, **WRITER)
    return [target]


CASES = {n.removeprefix("case_"): f for n, f in list(globals().items()) if n.startswith("case_")}


# ---- driver
def run_case(name: str, data: Path, passes: int = 2) -> dict:
    "The last of some passes of a case in a fresh process."
    done = subprocess.run([sys.executable, str(HERE), "--case", name, "--data", str(data), "--passes", str(passes)],
                          capture_output=True, text=True, check=False)
    if done.returncode: raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, data: Path, passes: int) -> None:
    with tempfile.TemporaryDirectory(dir=data.parent) as d:
        for _ in range(passes): result = measured(lambda: CASES[name](data, Path(d)))
    print(json.dumps(result))


def make_input(root: Path, rows: int) -> Path:
    data = root / f"trades-{rows}"
    if not data.exists():
        from daedalus_etl.sources.simulated import write_trades
        write_trades(data, rows)
    return data


def compare(title: str, names: list[str], data: Path, repeat: int) -> None:
    "Cases in turns, medians, and the ratio of each to the first."
    results = {n: [] for n in names}
    for _ in range(repeat):
        for n in names: results[n].append(run_case(n, data))
    print(f"\n{title}\n{'case':<16}{'rows':>12}{'wall s':>9}{'(range)':>15}{'CPU s':>9}"
          f"{'wall ratio':>12}{'CPU ratio':>11}{'peak MiB':>10}")
    keys = ("wall", "cpu", "rss", "rows")
    med = {n: {k: statistics.median(r[k] for r in rs) for k in keys} for n, rs in results.items()}
    base = med[names[0]]
    for n in names:
        m, walls = med[n], [r["wall"] for r in results[n]]
        print(f"{n:<16}{m['rows']:>12,.0f}{m['wall']:>9.2f}{min(walls):>8.2f}-{max(walls):<6.2f}{m['cpu']:>9.2f}"
              f"{m['wall'] / base['wall']:>12.2f}{m['cpu'] / base['cpu']:>11.2f}{m['rss']:>10.0f}")


def imports(repeat: int) -> None:
    print(f"\nimports, wall s of a whole process, median of {repeat}")
    modules = ("daedalus_etl", "daedalus_etl.transforms.trades", "daedalus_etl.transforms.bars")
    for code in ("pass", *(f"import {m}" for m in modules)): _time(code, [sys.executable, "-c", code], repeat)
    _time("daedalus --help", [sys.executable, "-m", "daedalus_etl.cli", "--help"], repeat)


def _time(name: str, command: list[str], repeat: int) -> None:
    walls = []
    for _ in range(repeat):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        walls.append(time.perf_counter() - began)
    print(f"  {name:<42}{statistics.median(walls):>7.2f}  ({min(walls):.2f}-{max(walls):.2f})")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "daedalus-bench")
    args.add_argument("--rows", type=int, default=10_000_000)
    args.add_argument("--memory-rows", type=int, nargs="*", default=[10_000_000, 40_000_000])
    args.add_argument("--repeat", type=int, default=3)
    args.add_argument("--passes", type=int, default=2, help=argparse.SUPPRESS)
    args.add_argument("--case", help=argparse.SUPPRESS)
    a = args.parse_args()
    if a.case: return child(a.case, a.data, a.passes)
    import polars
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"polars {polars.__version__}, load {os.getloadavg()[0]:.2f}")
    imports(5)
    data = make_input(a.data, a.rows)
    peers = ["bars_daedalus", "bars_polars", "bars_duckdb"]
    compare(f"60 s bars of {a.rows:,} trades from Parquet", peers, data, a.repeat)
    compare(f"silver of {a.rows:,} trades, five windows, Parquet to Parquet", ["floor", "silver"], data, a.repeat)
    print("\npeak memory of the silver job")
    for rows in a.memory_rows:
        peak = run_case("silver", make_input(a.data, rows), passes=1)["rss"]
        print(f"  {rows:>12,} rows {peak:>8.0f} MiB")


if __name__ == "__main__": main()
