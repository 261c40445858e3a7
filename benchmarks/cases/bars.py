"""Bars of trades: straight from Parquet, and from columns in memory, against those who make bars too."""
from __future__ import annotations

from benchmarks import inputs
from benchmarks.harness import FLOOR, OURS, Case, Env, Side, measured

TRADES, SECONDS = 2_000_000, 60
TICKS, VOLUME, DOLLARS = 1000, 50.0, 2_000_000.0        # of a tick bar; base, of a volume bar; quote, of a dollar bar
STREAM = ("simulated", "BTC-USDT")


def made_tape(env: Env): return inputs.tape(env.data, env.rows)


def bars_of(rows) -> int:
    "60 s bars of silver trades by this package."
    from daedalus_etl.core.base import TransformContext
    from daedalus_etl.core.config import FeatureConfig, StorageConfig
    from daedalus_etl.runners.jobs import bars_config
    from daedalus_etl.transforms.bars import BarAggregationTransform
    context = TransformContext(feature_config=FeatureConfig(bar_durations=[SECONDS]), stream=STREAM)
    bars = BarAggregationTransform(bars_config("trades", StorageConfig()))
    return bars.transform({"silver": rows}, context)[f"gold/{SECONDS}s"].collect().height


def polars_bars(rows) -> int:
    import polars as pl
    price, amount, sign = map(pl.col, ("price", "amount", "side_sign"))
    bars = rows.set_sorted("capture_ts").group_by_dynamic("capture_ts", every=f"{SECONDS}s").agg(
        open=price.first(), high=price.max(), low=price.min(), close=price.last(), volume=amount.sum(),
        dollar_volume=(price * amount).sum(), trade_count=pl.len(), buy_volume=amount.filter(sign > 0).sum(),
        sell_volume=amount.filter(sign < 0).sum())
    return bars.collect().height


def pandas_bars(frame) -> int:
    "`resample` with the same columns; `frame` is indexed by its clock."
    price, amount, sign = frame["price"], frame["amount"], frame["side_sign"]
    bars = price.resample(f"{SECONDS}s").ohlc()
    sums = {"volume": amount, "dollar_volume": price * amount, "buy_volume": amount.where(sign > 0, 0.0),
            "sell_volume": amount.where(sign < 0, 0.0)}
    for name, values in sums.items(): bars[name] = values.resample(f"{SECONDS}s").sum()
    bars["trade_count"] = price.resample(f"{SECONDS}s").count()
    return len(bars)


DUCKDB = f"""select time_bucket(interval '{SECONDS} seconds', capture_ts) b, arg_min(price, capture_ts), max(price),
    min(price), arg_max(price, capture_ts), sum(amount), sum(price * amount), count(*),
    sum(amount) filter (side_sign > 0), sum(amount) filter (side_sign < 0) from {{}} group by b order by b"""
COLUMNS = ("capture_ts", "price", "amount", "side_sign")


# ---- from Parquet: rows are trades, so that sides compare

def parquet(env: Env) -> str: return str(made_tape(env) / "tape.parquet")


def scan(env: Env):
    import polars as pl
    return pl.scan_parquet(parquet(env), hive_partitioning=False)


def counted(env: Env, bars: int) -> dict: return {"rows": env.rows, "bars": bars}


def file_ours(env: Env) -> dict: return counted(env, bars_of(scan(env)))
def file_polars(env: Env) -> dict: return counted(env, polars_bars(scan(env)))


def file_duckdb(env: Env) -> dict:
    import duckdb
    return counted(env, len(duckdb.sql(DUCKDB.format(f"read_parquet('{parquet(env)}')")).arrow().read_all()))


def file_pandas(env: Env) -> dict:
    import pandas as pd
    return counted(env, pandas_bars(pd.read_parquet(parquet(env), columns=list(COLUMNS)).set_index("capture_ts")))


def file_floor(env: Env) -> dict:
    "The four columns that bars need, read and dropped."
    for _ in scan(env).select(COLUMNS).collect_batches(): pass
    return counted(env, 0)


# ---- from memory

def frame(env: Env): return env.once("frame", lambda: scan(env).collect())
def memory_ours(env: Env) -> dict: return counted(env, bars_of(frame(env).lazy()))
def memory_polars(env: Env) -> dict: return counted(env, polars_bars(frame(env).lazy()))


def memory_duckdb(env: Env) -> dict:
    import duckdb
    columns = env.once("arrow", lambda: frame(env).select(COLUMNS).to_arrow())  # noqa: F841  duckdb finds it by name
    return counted(env, len(duckdb.sql(DUCKDB.format("columns")).arrow().read_all()))


def memory_pandas(env: Env) -> dict:
    return counted(env, pandas_bars(env.once("pandas", lambda: frame(env).to_pandas().set_index("capture_ts"))))


def finmlkit(env: Env) -> dict:
    "finmlkit's time bars with their directional features; its tick and volume bars as parts."
    import pandas as pd
    from finmlkit.bar import kit
    trades = env.once("trades", lambda: finmlkit_trades(env))
    kinds = {"time bars": kit.TimeBarKit(trades, pd.Timedelta(seconds=SECONDS)),
             "tick bars": kit.TickBarKit(trades, TICKS), "volume bars": kit.VolumeBarKit(trades, VOLUME)}
    def made(bars):
        def work() -> dict:
            bars.build_directional_features()
            return counted(env, len(bars.build_ohlcv()))
        return work
    parts = {f"finmlkit, {name}": measured(made(bars)) for name, bars in kinds.items()}
    return parts["finmlkit, time bars"] | {"parts": parts}


def clocks_ours(env: Env) -> dict:
    "Bars by ticks, volume and money in one reading of the file."
    from daedalus_etl.core.base import TransformContext
    from daedalus_etl.core.config import FeatureConfig, StorageConfig
    from daedalus_etl.runners.jobs import bars_config
    from daedalus_etl.transforms.bars import BarAggregationTransform
    clocks = [f"tick:{TICKS}", f"volume:{VOLUME}", f"dollar:{DOLLARS}"]
    context = TransformContext(feature_config=FeatureConfig(bar_durations=(), bars=clocks), stream=STREAM)
    made = BarAggregationTransform(bars_config("trades", StorageConfig())).transform({"silver": scan(env)}, context)
    return counted(env, sum(bars.collect().height for bars in made.values()))


def clocks_finmlkit(env: Env) -> dict:
    "The same from the file with pyarrow and finmlkit, its preprocessing (sorting, merging) included."
    import numpy as np
    import pyarrow.parquet as pq
    from finmlkit.bar import kit
    from finmlkit.bar.data_model import TradesData
    rows = pq.read_table(parquet(env), columns=list(COLUMNS))
    t = rows["capture_ts"].cast("timestamp[us]").to_numpy().astype(np.int64)
    price, amount, sign = (rows[k].to_numpy() for k in COLUMNS[1:])
    trades = TradesData(t, price, amount, np.arange(t.size), side=sign, timestamp_unit="us", preprocess=True)
    bars = 0
    for made in (kit.TickBarKit(trades, TICKS), kit.VolumeBarKit(trades, VOLUME), kit.DollarBarKit(trades, DOLLARS)):
        made.build_directional_features()
        bars += len(made.build_ohlcv())
    return counted(env, bars)


def finmlkit_trades(env: Env):
    "Trades that went through its preprocessing."
    import numpy as np
    from finmlkit.bar.data_model import TradesData
    a = inputs.arrays(made_tape(env))
    return TradesData(a["t"], a["price"], a["amount"], np.arange(a["t"].size), side=a["sign"], timestamp_unit="us",
                      preprocess=True)


def gold(env: Env) -> dict:
    "The executor: silver books to bars of all default lengths."
    import os
    import tempfile
    from daedalus_etl.core.config import StorageConfig
    from daedalus_etl.core.executor import TransformExecutor
    from daedalus_etl.core.registry import create_transform
    from daedalus_etl.runners.jobs import bars_config
    silver = inputs.silver_books(env.data, env.rows) / "silver" / "orderbook"
    config = bars_config("orderbook", StorageConfig(output_root=tempfile.mkdtemp(dir=env.scratch)), str(silver))
    done = TransformExecutor(progress=False).execute(create_transform(config.name, config))["write_stats"]["gold"]
    return {"rows": env.rows, "bars": done["rows"], "bytes_out": done["bytes"],
            "bytes_in": sum(map(os.path.getsize, silver.glob("**/*.parquet")))}


CASES = [
    Case("bars_parquet", "60 s bars from Parquet", "Open, high, low, close, volumes by side and counts of each minute, "
         "straight from a file of trades; the floor reads the four columns.", "bars", TRADES,
         (Side("daedalus_etl", file_ours, OURS), Side("floor", file_floor, FLOOR), Side("polars", file_polars),
          Side("duckdb", file_duckdb, needs=("duckdb",)), Side("pandas", file_pandas, needs=("pandas",))),
         made_tape, "trades"),
    Case("bars_memory", "60 s bars in memory", "The same from columns in memory. finmlkit's preprocessing (sorting, "
         "merging) is not counted; its tick and volume bars stand beside.", "bars",
         TRADES,
         (Side("daedalus_etl", memory_ours, OURS), Side("polars", memory_polars),
          Side("duckdb", memory_duckdb, needs=("duckdb",)), Side("pandas", memory_pandas, needs=("pandas",)),
          Side("finmlkit", finmlkit, needs=("finmlkit",))),
         made_tape, "trades"),
    Case("clocks_parquet", "Bars by ticks, volume and money from Parquet", f"Bars of {TICKS} trades, {VOLUME:g} base "
         f"and {DOLLARS:,.0f} quote with their columns, straight from a file of trades, in one reading.",
         "bars", 500_000,
         (Side("daedalus_etl", clocks_ours, OURS),
          Side("finmlkit", clocks_finmlkit, needs=("finmlkit", "pyarrow"))),
         made_tape, "trades", quick=20_000),
    Case("books_gold", "Bars of books", "The executor over silver books, Parquet to Parquet: bars of 60, 300, 900 and "
         "3600 s.", "bars", 200_000, (Side("daedalus_etl", gold, OURS),),
         lambda env: inputs.silver_books(env.data, env.rows), "snapshots", quick=3_000),
]
