"""Bronze to silver by the executor, Parquet to Parquet, against the I/O floor: every file read, checked, computed,
encoded, synced, committed."""
from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import inputs
from benchmarks.reference import reference
from benchmarks.harness import FLOOR, OURS, Case, Env, Side

ALL = ("structural", "dynamic", "rolling", "advanced")
FEW = 4 * 131_072        # rows of real silver that the floor writes again and again
CHANNELS = {"trades": inputs.trades, "ticker": inputs.books, "orderbook": inputs.books}


def settings(channel: str, said: dict):
    "Feature configuration of a case: the defaults, or categories and columns as `said`."
    from daedalus_etl.core.catalog import Catalogue, select
    from daedalus_etl.core.config import FeatureConfig
    from daedalus_etl.features import frames  # noqa: F401  declares the columns
    said = dict(said)
    levels = said.pop("levels", True)
    config = FeatureConfig(**said)
    if levels: return config
    names = [c.name for c in select(Catalogue(channel, config))]
    names = [n for n in names if "_price_L" not in n and "_size_L" not in n]
    return FeatureConfig(features=names, **{k: v for k, v in said.items() if k != "categories"})


def job(channel: str, said: dict, source):
    "The executor, from bronze to silver."
    def work(env: Env) -> dict:
        lake = Path(tempfile.mkdtemp(dir=env.scratch))
        return inputs.silver(source(env.data, env.rows), channel, lake, settings(channel, said))
    return work


def floor(channel: str, said: dict, source):
    "The same bronze columns read and as many rows of the same silver columns written, nothing computed."
    def work(env: Env) -> int:
        import polars as pl
        bronze = source(env.data, env.rows)
        sample = env.once("sample", lambda: sample_of(channel, said, bronze))
        if channel == "orderbook":
            trades = pl.scan_parquet(inputs.files(bronze, "trades"), hive_partitioning=False)
            for _ in trades.select("capture_ts", "side", "price", "amount").collect_batches(): pass
        rows = pl.scan_parquet(inputs.files(bronze, channel), hive_partitioning=False)
        return inputs.copied(rows, sample, env.scratch / "floor.parquet")
    return work


def sample_of(channel: str, said: dict, bronze: Path):
    "Some row groups of real silver, in memory."
    import polars as pl
    from daedalus_etl.features.frames import feature_frame
    few = pl.scan_parquet(inputs.files(bronze, channel), hive_partitioning=False).head(FEW)
    beside = inputs.files(bronze, "trades") if channel == "orderbook" else None
    trades = pl.scan_parquet(beside, hive_partitioning=False) if beside else None
    return feature_frame(channel, few, settings(channel, said), trades=trades).collect()


def case(name: str, channel: str, title: str, what: str, rows: int, said: dict | None = None, *, depth: int = 20,
         extra: tuple[Side, ...] = (), with_floor: bool = True, **more) -> Case:
    make, said = CHANNELS[channel], said or {}
    def source(data, n): return make(data, n) if channel == "trades" else make(data, n, depth)
    sides = [Side("daedalus_etl", job(channel, said, source), OURS)]
    if with_floor: sides.append(Side("floor", floor(channel, said, source), FLOOR))
    units = {"trades": "trades", "ticker": "quotes", "orderbook": "snapshots"}
    return Case(name, title, what, "silver", rows, (*sides, *extra), lambda env: source(env.data, env.rows),
                units[channel], quick=QUICK[channel], **more)


def core(said: dict, n: int | None) -> Side:
    "The order book job on so many cores."
    return Side(f"{n} core" if n == 1 else f"{n} cores", job("orderbook", said, inputs.books), "variant", cores=n)


QUICK = {"trades": 20_000, "ticker": 3_000, "orderbook": 3_000}
TRADES, SNAPSHOTS = 2_000_000, 200_000
CASES = [
    case("trades_silver", "trades", "Trades, five windows", "The trades job with its default columns: flags, returns, "
         "and sums, flow, variance over 5, 15, 60, 300 and 900 s.", TRADES, extra=(reference("trades"),)),
    case("ticker_silver", "ticker", "Quotes", "The ticker job with its default columns.", SNAPSHOTS),
    case("books_silver", "orderbook", "Books, 20 levels, defaults", "The order book job with its default columns, "
         "trades beside the books.", SNAPSHOTS, extra=(reference("orderbook"),)),
    case("books_all", "orderbook", "Books, 20 levels, all families", "All categories (VPIN, Kyle's lambda, regimes "
         "too), without the per-level columns.", SNAPSHOTS, dict(categories=ALL, levels=False)),
    case("books_levels", "orderbook", "Books, 20 levels, every column", "All categories, and price and size of each "
         "level.", SNAPSHOTS, dict(categories=ALL), rounds=2),
    case("books_float32", "orderbook", "Books, 20 levels, Float32", "All categories without per-level columns, stored "
         "as Float32.", SNAPSHOTS, dict(categories=ALL, levels=False, output_dtype="float32"),
         rounds=2),
    case("books_50", "orderbook", "Books, 50 levels", "All categories without per-level columns, on deep books.",
         SNAPSHOTS // 2, dict(categories=ALL, levels=False), depth=50, rounds=2),
    case("books_cores", "orderbook", "Books on one core and on two", "The default order book job of one stream, "
         "confined to some cores: what threads inside a chain gain.", SNAPSHOTS, with_floor=False,
         extra=(core({}, 1), core({}, 2))),
]
