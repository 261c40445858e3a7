"""Order books: `python benchmarks/books.py` prints medians and ratios, each case in processes of its own.

Kernels alone on arrays in memory; the whole job, Parquet to Parquet, against the I/O floor (the same bronze columns
read and the same silver columns written, nothing computed); a row-by-row Python processor of the stateful features;
peak memory at two sizes; latency and throughput of the live path. Inputs are simulated once, below --data. CPU seconds
hold on a loaded machine; wall seconds do not."""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from datetime import UTC, datetime
from math import exp, log, sqrt
from pathlib import Path

from run import DAY_S, WRITER, measured

HERE = Path(__file__).resolve()
ALL = ("structural", "dynamic", "rolling", "advanced")
BATCH = 65_536


def settings(case: dict):
    "Feature configuration of a case; without its per-level columns unless it asks for them."
    from daedalus_etl.core.catalog import Catalogue, select
    from daedalus_etl.core.config import FeatureConfig
    from daedalus_etl.features import orderbook  # noqa: F401  declares the columns
    categories = set(case.get("categories", ALL))
    config = FeatureConfig(categories=categories, output_dtype=case.get("dtype", "float64"))
    if case.get("levels"): return config
    names = [c.name for c in select(Catalogue("orderbook", config))]
    names = [n for n in names if "_price_L" not in n and "_size_L" not in n]
    return FeatureConfig(features=names, output_dtype=case.get("dtype", "float64"))


def bronze(data: Path, channel: str = "orderbook") -> list[str]:
    return sorted(map(str, (data / channel).glob("**/*.parquet")))


# ---- cases: each runs in a process of its own, twice, and reports the second pass (caches warm, kernels loaded)
def case_job(data: Path, scratch: Path, case: dict) -> int:
    "The executor: bronze books and trades to silver."
    from daedalus_etl.core.config import StorageConfig
    from daedalus_etl.core.executor import TransformExecutor
    from daedalus_etl.core.registry import create_transform
    from daedalus_etl.runners.jobs import features_config
    lake = tempfile.mkdtemp(dir=scratch)
    config = features_config("orderbook", StorageConfig(output_root=lake), str(data / "orderbook"))
    report = TransformExecutor(settings(case), progress=False).execute(create_transform(config.name, config))
    return report["write_stats"]["silver"]["rows"]


def case_floor(data: Path, scratch: Path, case: dict) -> int:
    "The same bronze columns read and as many rows of the same silver columns written, nothing computed."
    import polars as pl
    from daedalus_etl.core.lazy import lazy_source
    sample = silver_sample(data, scratch, case)
    trades = pl.scan_parquet(bronze(data, "trades"), hive_partitioning=False)
    trades = trades.select("capture_ts", "side", "price", "amount")
    for _ in trades.collect_batches(chunk_size=BATCH): pass

    def batches(columns):
        rows, at = pl.scan_parquet(bronze(data), hive_partitioning=False), 0
        for batch in rows.collect_batches(chunk_size=BATCH, maintain_order=True):
            at = 0 if at + batch.height > sample.height else at
            yield sample[at:at + batch.height]
            at += batch.height

    target = scratch / "floor.parquet"
    lazy_source(dict(sample.schema), batches).sink_parquet(target, **WRITER, sync_on_close="all")
    return pl.scan_parquet(target).select(pl.len()).collect().item()


def silver_sample(data: Path, scratch: Path, case: dict):
    "Some row groups of real silver, in memory: what the floor writes again and again."
    import polars as pl
    from daedalus_etl.features.frames import feature_frame
    kept = scratch / f"sample-{abs(hash(json.dumps(case, sort_keys=True)))}.parquet"
    if not kept.exists():
        few = pl.scan_parquet(bronze(data), hive_partitioning=False).head(4 * WRITER["row_group_size"])
        trades = pl.scan_parquet(bronze(data, "trades"), hive_partitioning=False)
        feature_frame("orderbook", few, settings(case), trades=trades).sink_parquet(kept)
    return pl.read_parquet(kept)


def case_kernels(data: Path, scratch: Path, case: dict) -> int:
    "Books in memory to arrays of columns: no Parquet, no frames."
    return sum(rows for rows in kernel_pass(data, case))


def kernel_pass(data: Path, case: dict):
    from daedalus_etl.core.catalog import Catalogue, select
    from daedalus_etl.features.stateful import StatefulFeatureProcessor
    books, trades = book_arrays(data)
    config = settings(case)
    columns = select(Catalogue("orderbook", config))
    processor = StatefulFeatureProcessor(config, columns, trades=case.get("trades", True))
    if case.get("trades", True): processor.add_trades(trades)
    for t, bids, asks in books:
        processor.compute(t, bids, asks)
        yield t.size


_ARRAYS: dict = {}


def book_arrays(data: Path):
    "Batches of (clocks, bids, asks), and the trades, read once per process."
    import polars as pl
    from daedalus_etl.features.books import sides
    from daedalus_etl.features.stateful import trade_arrays
    if not _ARRAYS:
        rows = pl.scan_parquet(bronze(data), hive_partitioning=False).select("capture_ts", "bids", "asks")
        batches = rows.collect_batches(chunk_size=BATCH, maintain_order=True)
        _ARRAYS["books"] = [(b["capture_ts"].dt.epoch("us").to_numpy(), *sides(b.rechunk())) for b in batches]
        trades = pl.scan_parquet(bronze(data, "trades"), hive_partitioning=False)
        trades = trades.select("capture_ts", "side", "price", "amount")
        _ARRAYS["trades"] = trade_arrays(trades.collect(), "capture_ts")
    return _ARRAYS["books"], _ARRAYS["trades"]


def book_side(side, i: int) -> list[tuple[float, float]]:
    lo, hi = side.offset[i:i + 2]
    return list(zip(side.price[lo:hi].tolist(), side.size[lo:hi].tolist()))


def case_python(data: Path, scratch: Path, case: dict) -> int:
    "A row-by-row processor of the stateful features in plain Python, on books that are lists already."
    books, trades = book_arrays(data)
    t, bids, asks = books[0]
    n = case["rows"]
    rows = _ARRAYS.setdefault("lists", [(int(t[i]), book_side(bids, i), book_side(asks, i)) for i in range(n)])
    tape = _ARRAYS.setdefault("tape", list(zip(*(a[:10 * n].tolist() for a in (trades.t, trades.sign, trades.amount)))))
    processor, at = RowByRow(), 0
    for clock, bid, ask in rows:
        while at < len(tape) and tape[at][0] <= clock:
            processor.trade(*tape[at])
            at += 1
        processor.book(clock, bid, ask)
    return n


class Trailing:
    "Trailing sums by adding and subtracting, the usual way in Python: a deque, and running totals."
    def __init__(self, seconds: int, k: int):
        self.us, self.rows, self.sums = seconds * 1_000_000, deque(), [0.0] * k

    def add(self, t: int, values: tuple) -> None:
        self.rows.append((t, values))
        sums = self.sums
        for k, v in enumerate(values): sums[k] += v

    def drop(self, t: int) -> None:
        rows, sums, edge = self.rows, self.sums, t - self.us
        while rows and rows[0][0] <= edge:
            for k, v in enumerate(rows.popleft()[1]): sums[k] -= v


class RowByRow:
    "OFI, MLOFI, five windows of flow, volatility and trades, OFI beta, spread rank and VPIN, one row at a time."
    def __init__(self):
        self.last, self.windows = None, [(Trailing(w, 5), Trailing(w, 4)) for w in (5, 15, 60, 300, 900)]
        self.beta, self.spreads, self.weights = Trailing(300, 6), deque(), [exp(-0.5 * i) for i in range(10)]
        self.buckets, self.bought, self.sold = deque(maxlen=50), 0.0, 0.0

    def trade(self, t: int, sign: int, amount: float) -> None:
        row = (amount if sign > 0 else 0.0, amount if sign < 0 else 0.0, amount, 1.0)
        for _, flow in self.windows: flow.add(t, row)
        while amount > 0:
            part = min(amount, 1.0 - self.bought - self.sold)
            if sign > 0: self.bought += part
            else: self.sold += part
            amount -= part
            if self.bought + self.sold >= 1.0 - 1e-12:
                self.buckets.append(abs(self.bought - self.sold))
                self.bought = self.sold = 0.0

    def book(self, t: int, bids: list, asks: list) -> dict:
        mid, spread, out = (bids[0][0] + asks[0][0]) / 2, asks[0][0] - bids[0][0], {}
        if self.last is not None:
            bids0, asks0, mid0 = self.last
            flows = [self.level(*rows) for rows in zip(bids[:10], asks[:10], bids0, asks0)]
            ofi, mlofi, r = flows[0], sum(w * e for w, e in zip(self.weights, flows)), log(mid / mid0)
            out |= {"ofi": ofi, "mlofi": mlofi, "log_return": r}
            for rows, _ in self.windows: rows.add(t, (ofi, mlofi, r * r, r, 1.0))
            self.beta.add(t, (1.0, ofi, r, ofi * ofi, ofi * r, r * r))
        self.last = bids[:10], asks[:10], mid
        for rows, flow in self.windows:
            rows.drop(t)
            flow.drop(t)
            e, m, r2, r, n = rows.sums
            b, s, v, count = flow.sums
            out[rows.us] = (e, m, sqrt(max(r2, 0.0)), sqrt(max(r2 - r * r / n, 0.0) / (n - 1)) if n > 1 else None,
                            (b - s) / (b + s) if b + s else None, v, count)
        self.beta.drop(t)
        n, x, y, xx, xy, _ = self.beta.sums
        out["ofi_beta"] = (n * xy - x * y) / (n * xx - x * x) if n > 2 and n * xx > x * x else None
        self.spreads.append((t, spread))
        while self.spreads[0][0] <= t - 300_000_000: self.spreads.popleft()
        out["spread_percentile"] = sum(s < spread for _, s in self.spreads) / len(self.spreads)
        out["vpin"] = sum(self.buckets) / 50 if len(self.buckets) == 50 else None
        return out

    @staticmethod
    def level(bid, ask, bid0, ask0) -> float:
        e = 0.0
        if bid[0] >= bid0[0]: e += bid[1]
        if bid[0] <= bid0[0]: e -= bid0[1]
        if ask[0] <= ask0[0]: e -= ask[1]
        if ask[0] >= ask0[0]: e += ask0[1]
        return e


def case_live(data: Path, scratch: Path, case: dict) -> int:
    "Books pushed into `SymbolState` in micro-batches; prints latencies per push on stderr's last line."
    import polars as pl
    from daedalus_etl.features.state import SymbolState
    n, size = case["rows"], case["size"]
    rows = pl.scan_parquet(bronze(data), hive_partitioning=False).head(n).collect()
    rows = _ARRAYS.setdefault("records", rows.to_dicts())
    state, spent = SymbolState(settings(case), trades=False), []
    for k in range(0, n, size):
        began = time.perf_counter()
        state.push(rows[k:k + size])
        spent.append(time.perf_counter() - began)
    spent = sorted(spent[len(spent) // 10:])
    case["latency"] = {"median_us": statistics.median(spent) * 1e6, "p99_us": spent[int(len(spent) * 0.99)] * 1e6}
    return n


CASES = {n.removeprefix("case_"): f for n, f in list(globals().items()) if n.startswith("case_")}


# ---- driver
def child(name: str, data: Path, passes: int, case: dict) -> None:
    with tempfile.TemporaryDirectory(dir=data.parent) as d:
        for _ in range(passes): result = measured(lambda: CASES[name](data, Path(d), case))
    print(json.dumps(result | case.get("latency", {})))


def run_case(name: str, data: Path, case: dict, passes: int = 2) -> dict:
    "The last of some passes of a case in a fresh process."
    done = subprocess.run([sys.executable, str(HERE), "--case", name, "--data", str(data), "--passes", str(passes),
                           "--settings", json.dumps(case)], capture_output=True, text=True, check=False)
    if done.returncode: raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def make_input(root: Path, rows: int, depth: int) -> Path:
    "A day of one symbol: `rows` snapshots of `depth` levels, and the trades beside them."
    data = root / f"books-{rows}x{depth}"
    if not data.exists():
        from daedalus_etl.sources.simulated import write_bronze
        from daedalus_etl.sources.simulator import SimulatorConfig
        config = SimulatorConfig(depth=depth, snapshot_s=(DAY_S - 1.0) / rows)
        write_bronze(
            data, {"BTC-USDT": config}, datetime(2026, 1, 14, tzinfo=UTC), DAY_S - 1.0,
            channels=("orderbook", "trades"))
    return data


def medians(names: dict[str, tuple], data: Path, repeat: int) -> dict[str, dict]:
    "Cases in turns; medians of wall, CPU, memory and rows, and the range of wall."
    results = {label: [] for label in names}
    for _ in range(repeat):
        for label, (name, case) in names.items(): results[label].append(run_case(name, data, case))
    keys = list(next(iter(results.values()))[0])
    return {label: {k: statistics.median(r[k] for r in rs) for k in keys}
            | {"low": min(r["wall"] for r in rs), "high": max(r["wall"] for r in rs)} for label, rs in results.items()}


def show(title: str, med: dict[str, dict], base: str | None = None) -> None:
    print(f"\n{title}\n{'case':<34}{'rows':>10}{'wall s':>8}{'(range)':>14}{'CPU s':>8}{'rows/CPU s':>12}"
          f"{'wall x':>8}{'CPU x':>7}{'MiB':>7}")
    for label, m in med.items():
        ratio = f"{m['wall'] / med[base]['wall']:>8.2f}{m['cpu'] / med[base]['cpu']:>7.2f}" if base else " " * 15
        print(f"{label:<34}{m['rows']:>10,.0f}{m['wall']:>8.2f}{m['low']:>7.2f}-{m['high']:<6.2f}{m['cpu']:>8.2f}"
              f"{m['rows'] / m['cpu']:>12,.0f}{ratio}{m['rss']:>7.0f}", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "daedalus-bench")
    args.add_argument("--rows", type=int, default=1_000_000)
    args.add_argument("--memory-rows", type=int, default=4_000_000)
    args.add_argument("--repeat", type=int, default=3)
    args.add_argument("--only", nargs="*", default=["kernels", "python", "job", "deep", "memory", "live"])
    args.add_argument("--passes", type=int, default=2, help=argparse.SUPPRESS)
    args.add_argument("--case", help=argparse.SUPPRESS)
    args.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    a = args.parse_args()
    if a.case: return child(a.case, a.data, a.passes, a.settings)
    import polars
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"polars {polars.__version__}, load {os.getloadavg()[0]:.2f}")
    sections = {"kernels": kernels, "python": python, "job": job, "deep": deep, "memory": memory, "live": live}
    for name in a.only: sections[name](a)


def kernels(a) -> None:
    for depth in (20, 50):
        data = make_input(a.data, a.rows, depth)
        show(f"kernels alone, {depth} levels", medians({
            "structural + dynamic": ("kernels", dict(categories=["structural", "dynamic"], trades=False)),
            "all categories": ("kernels", {}),
            "all, with per-level columns": ("kernels", dict(levels=True))}, data, a.repeat))


def python(a) -> None:
    data = make_input(a.data, a.rows, 20)
    stateful = dict(categories=["dynamic", "rolling", "advanced"])
    med = medians({"row by row in Python": ("python", dict(rows=20_000)),
                   "kernels, dynamic + rolling + advanced": ("kernels", stateful)}, data, a.repeat)
    show("stateful features", med)
    rate = [m["rows"] / m["cpu"] for m in med.values()]
    print(f"  kernels are {rate[1] / rate[0]:,.0f} times as fast")


def job(a) -> None:
    data = make_input(a.data, a.rows, 20)
    for title, case in (("all categories, without per-level columns", {}), ("with all columns", dict(levels=True)),
                        ("Float32", dict(dtype="float32"))):
        show(f"Parquet to Parquet, 20 levels, {title}",
             medians({"floor": ("floor", case), "job": ("job", case)}, data, a.repeat), "floor")


def deep(a) -> None:
    data = make_input(a.data, a.rows, 50)
    show("Parquet to Parquet, 50 levels, without per-level columns",
         medians({"floor": ("floor", {}), "job": ("job", {})}, data, a.repeat), "floor")


def memory(a) -> None:
    print("\npeak memory of the job")
    for rows in (a.rows, a.memory_rows):
        peak = run_case("job", make_input(a.data, rows, 20), {}, passes=1)["rss"]
        print(f"  {rows:>12,} snapshots {peak:>8.0f} MiB", flush=True)


def live(a) -> None:
    data = make_input(a.data, a.rows, 20)
    print(f"\nlive path, all categories without per-level columns\n"
          f"{'books per push':<16}{'books/s':>10}{'median us':>11}{'p99 us':>9}")
    for size in (1, 10, 100):
        m = run_case("live", data, dict(rows=20_000, size=size))
        print(f"{size:<16}{m['rows'] / m['wall']:>10,.0f}{m['median_us']:>11.0f}{m['p99_us']:>9.0f}", flush=True)


if __name__ == "__main__": main()
