"""Windows and estimators in memory: the kernels, one call for a frame, and what polars and pandas offer for the same.

A peer's formula is the usual one, with running sums where its library uses them; ours sums without subtraction. VPIN
and Kyle's lambda in pandas are the vectorised forms: trades are not split over buckets."""
from __future__ import annotations

from benchmarks import inputs
from benchmarks.harness import OURS, Case, Env, Side

WINDOWS = (5, 15, 60, 300, 900)
TRADES, SNAPSHOTS = 2_000_000, 200_000
BATCH = 65_536
BUCKET, BUCKETS = 1.0, 50        # base; number
KYLE_S, STEP_S = 300, 1          # the past of the regression, the length of an interval


def made_tape(env: Env): return inputs.tape(env.data, env.rows)
def made_books(env: Env): return inputs.books(env.data, env.rows)


# ---- five trailing sums

def arrays(env: Env) -> dict: return env.once("arrays", lambda: inputs.arrays(made_tape(env)))


def sums_kernel(env: Env) -> int:
    import numpy as np
    from daedalus_etl.features.streaming import Rows, new_window, sum_window_batch
    a = arrays(env)
    n = a["t"].size
    fresh = np.zeros(n, np.uint8)
    fresh[0] = 1
    rows = Rows(a["t"], a["amount"].reshape(-1, 1), fresh, np.empty((n, 0), np.int64))
    out, head = np.empty((1, n)), np.empty(n, np.int64)
    for w in WINDOWS: sum_window_batch(new_window(w, 1), rows, 0, n, out, head)
    return n


def bronze_trades(env: Env):
    import polars as pl
    return pl.read_parquet(inputs.files(inputs.trades(env.data, env.rows), "trades"), hive_partitioning=False)


def sums_frame(env: Env) -> int:
    import daedalus_etl
    rows = env.once("bronze", lambda: bronze_trades(env))
    return daedalus_etl.features(trades=rows, features=[f"volume_{w}s" for w in WINDOWS]).height


def sums_polars(env: Env) -> int:
    import polars as pl
    rows = env.once("frame", lambda: pl.read_parquet(made_tape(env) / "tape.parquet").set_sorted("capture_ts"))
    amount = pl.col("amount")
    sums = [amount.rolling_sum_by("capture_ts", f"{w}s").alias(f"volume_{w}s") for w in WINDOWS]
    return rows.lazy().select(sums).collect().height


def sums_pandas(env: Env) -> int:
    import pandas as pd
    source = made_tape(env) / "tape.parquet"
    amount = env.once("pandas", lambda: pd.read_parquet(source).set_index("capture_ts")["amount"])
    for w in WINDOWS: sums = amount.rolling(f"{w}s").sum()
    return len(sums)


# ---- order flow, VPIN, Kyle's lambda

def ours(names: tuple[str, ...]):
    def work(env: Env) -> int:
        import daedalus_etl
        import polars as pl
        def read(channel): return pl.read_parquet(inputs.files(made_books(env), channel), hive_partitioning=False)
        books, tape = env.once("frames", lambda: (read("orderbook"), read("trades")))
        return daedalus_etl.features(books, trades=tape, features=list(names)).height
    return work


def top(env: Env):
    "Best level of each book as a pandas frame, indexed by its clock."
    import polars as pl
    rows = pl.scan_parquet(inputs.files(made_books(env), "orderbook"), hive_partitioning=False)
    def best(side, field): return pl.col(side).list.first().struct.field(field)
    columns = {f"{side[:3]}_{field}": best(side, field) for side in ("bids", "asks") for field in ("price", "size")}
    return rows.select("capture_ts", **columns).collect().to_pandas().set_index("capture_ts")


def flow_pandas(env: Env) -> int:
    "Cont, Kukanov and Stoikov's e_n of the best level by shifted columns, and its trailing sums."
    rows = env.once("top", lambda: top(env))
    bid, bid_size, ask, ask_size = (rows[c] for c in rows.columns)
    bid0, bid_size0, ask0, ask_size0 = (c.shift() for c in (bid, bid_size, ask, ask_size))
    flow = (bid_size.where(bid >= bid0, 0) - bid_size0.where(bid <= bid0, 0)
            - ask_size.where(ask <= ask0, 0) + ask_size0.where(ask >= ask0, 0))
    for w in WINDOWS: flow.rolling(f"{w}s").sum()
    return len(flow)


def pandas_trades(env: Env):
    import pandas as pd
    import polars as pl
    rows = pl.scan_parquet(inputs.files(made_books(env), "trades"), hive_partitioning=False)
    signed = pl.when(pl.col("side") == "buy").then("amount").otherwise(-pl.col("amount"))
    frame = rows.select("capture_ts", "price", "amount", signed=signed).collect().to_pandas()
    assert isinstance(frame, pd.DataFrame)
    return frame.set_index("capture_ts")


def vpin_pandas(env: Env) -> int:
    import pandas as pd
    tape = env.once("trades", lambda: pandas_trades(env))
    rows = env.once("top", lambda: top(env))
    bucket = (tape["amount"].cumsum() / BUCKET).astype("int64")
    sides = tape["signed"].groupby(bucket).sum().abs() / tape["amount"].groupby(bucket).sum()
    value = bucket.map(sides.rolling(BUCKETS).mean().shift()).groupby(level=0).last()
    return len(pd.merge_asof(rows[[]], value.rename("vpin"), left_index=True, right_index=True))


def kyle_pandas(env: Env) -> int:
    "Slope of returns on signed volume of one second, over the last 300 s, by rolling covariance."
    import numpy as np
    import pandas as pd
    tape = env.once("trades", lambda: pandas_trades(env))
    rows = env.once("top", lambda: top(env))
    mid = ((rows["bid_price"] + rows["ask_price"]) / 2).resample(f"{STEP_S}s").last().ffill()
    r, flow = np.log(mid).diff(), tape["signed"].resample(f"{STEP_S}s").sum().reindex(mid.index, fill_value=0.0)
    slope = r.rolling(f"{KYLE_S}s").cov(flow) / flow.rolling(f"{KYLE_S}s").var()
    return len(pd.merge_asof(rows[[]], slope.rename("kyle"), left_index=True, right_index=True))


def features(name: str, title: str, what: str, names: tuple[str, ...], peer) -> Case:
    return Case(name, title, what, "features", SNAPSHOTS,
                (Side("daedalus_etl", ours(names), OURS), Side("pandas", peer, needs=("pandas",))), made_books,
                "snapshots", quick=3_000)


CASES = [
    Case("rolling_sums", "Five trailing sums", "Volume over 5, 15, 60, 300 and 900 s at every trade, in memory. The "
         "call for a frame checks, orders and looks for repeats first; the kernel is what it comes to.", "features",
         TRADES,
         (Side("daedalus_etl, kernel", sums_kernel, OURS), Side("daedalus_etl, frame", sums_frame, "variant"),
          Side("polars", sums_polars), Side("pandas", sums_pandas, needs=("pandas",))), made_tape, "trades"),
    features("order_flow", "Order flow imbalance", "OFI at the best level and its five trailing sums, from frames of "
             "books of 20 levels; pandas begins with the best level as columns.",
             ("ofi", *(f"ofi_sum_{w}s" for w in WINDOWS)), flow_pandas),
    features("vpin", "VPIN", "VPIN as of every book, from frames of books and trades.", ("vpin",), vpin_pandas),
    features("kyle_lambda", "Kyle's lambda", "Slope of returns on signed volume, seconds of the last five minutes, as "
             "of every book.", ("kyle_lambda",), kyle_pandas),
]
