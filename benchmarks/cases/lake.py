"""Reading a lake: three columns of every stream and day as one table."""
from __future__ import annotations

from datetime import timedelta

from benchmarks import inputs
from benchmarks.harness import OURS, Case, Env, Side

SYMBOLS, DAYS = 4, 15
COLUMNS = ("price", "vwap_60s", "tfi_60s")
MORE = 57                # further columns that nobody asks for


def lake(env: Env):
    "Silver trades of some symbols and days, `env.rows` in all, with sixty columns."
    def make(folder):
        import numpy as np
        import polars as pl
        from daedalus_etl.storage.partitions import Partition
        n = max(1, env.rows // (SYMBOLS * DAYS))
        for s in range(SYMBOLS):
            for d in range(DAYS):
                rng, day = np.random.default_rng([s, d]), inputs.DAY + timedelta(days=d)
                clock = pl.Series((day.timestamp() * 1e6 + np.arange(n) * (86_400e6 / n)).astype(np.int64))
                names = (*COLUMNS, *(f"other_{k}" for k in range(MORE)))
                columns = {c: rng.normal(size=n).astype(np.float32).astype(float) for c in names}
                frame = pl.DataFrame({"capture_ts": clock.cast(pl.Datetime("us", "UTC")), **columns})
                when = dict(year=day.year, month=day.month, day=day.day)
                at = Partition.of(exchange="simulated", symbol=f"S{s}-USDT", **when)
                place = folder / "silver" / "trades" / at.path
                place.mkdir(parents=True)
                frame.write_parquet(place / "part-0.parquet", **inputs.WRITER)
    return inputs.made(env.data / f"lake-{env.rows}", make)


def ours(env: Env) -> int:
    import daedalus_etl
    return daedalus_etl.read(lake(env), "silver", "trades", features=list(COLUMNS)).collect().height


def polars(env: Env) -> int:
    import polars as pl
    rows = pl.scan_parquet(lake(env) / "silver" / "trades", hive_partitioning=True)
    return rows.select("exchange", "symbol", "capture_ts", *COLUMNS).collect().height


def duckdb(env: Env) -> int:
    import duckdb
    where = f"read_parquet('{lake(env)}/silver/trades/**/*.parquet', hive_partitioning=true)"
    query = f"select exchange, symbol, capture_ts, {', '.join(COLUMNS)} from {where}"
    return duckdb.sql(query).arrow().read_all().num_rows


def pandas(env: Env) -> int:
    import pandas as pd
    names = ["exchange", "symbol", "capture_ts", *COLUMNS]
    return len(pd.read_parquet(lake(env) / "silver" / "trades", columns=names))


CASES = [Case("read_lake", "Three columns of a lake", f"{SYMBOLS} symbols, {DAYS} days, sixty columns a file; `read` "
              "also checks the types of every file and puts streams and days in order.", "lake", 3_000_000,
              (Side("daedalus_etl", ours, OURS), Side("polars", polars), Side("duckdb", duckdb, needs=("duckdb",)),
               Side("pandas", pandas, needs=("pandas",))), lake, quick=60_000)]
