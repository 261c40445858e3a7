"""Joins in time, in memory: the last row known, and aggregates over a window before each row, beside general engines.

Windows in polars and DuckDB are the fastest form that either has: both tables in one, and a window by range over it
(an aggregate over a join by inequality takes as long as the windows are full). pandas has no such window for rows of
another table but by the same detour."""
from __future__ import annotations

from benchmarks import inputs
from benchmarks.harness import OURS, Case, Env, Side

TRADES, EVERY, WINDOW_S = 2_000_000, 4, 60        # rows; a question for every 4th trade; s
AGGS = {"volume": ("amount", "sum"), "price_mean": ("price", "mean"), "price_max": ("price", "max")}


def made_tape(env: Env): return inputs.tape(env.data, env.rows)


def tables(env: Env):
    "Questions (clocks half a millisecond after every 4th trade) and the trades."
    import polars as pl
    def read():
        right = pl.read_parquet(made_tape(env) / "tape.parquet").select("capture_ts", "price", "amount")
        left = right[::EVERY].select(pl.col("capture_ts") + pl.duration(microseconds=500))
        return left.sort("capture_ts"), right
    return env.once("tables", read)


def arrow(env: Env):
    return env.once("arrow", lambda: tuple(t.to_arrow() for t in tables(env)))


def pandas_tables(env: Env):
    return env.once("pandas", lambda: tuple(t.to_pandas() for t in tables(env)))


def counted(env: Env, answers: int) -> dict: return {"rows": env.rows, "answers": answers}


# ---- the last row known

def asof_ours(env: Env) -> dict:
    from daedalus_etl.features.joins import asof_join
    return counted(env, asof_join(*tables(env), columns=["price", "amount"]).height)


def asof_polars(env: Env) -> dict:
    left, right = tables(env)
    made = left.set_sorted("capture_ts").join_asof(right.set_sorted("capture_ts"), on="capture_ts")
    return counted(env, made.height)


def asof_duckdb(env: Env) -> dict:
    import duckdb
    asked, tape = arrow(env)  # noqa: F841  duckdb finds them by name
    made = duckdb.sql("""select a.capture_ts, price, amount
        from asked a asof left join tape t on a.capture_ts >= t.capture_ts""")
    return counted(env, len(made.arrow().read_all()))


def asof_pandas(env: Env) -> dict:
    import pandas as pd
    return counted(env, len(pd.merge_asof(*pandas_tables(env), on="capture_ts")))


# ---- a window before each row

def window_ours(env: Env) -> dict:
    from daedalus_etl.features.joins import window_join
    return counted(env, window_join(*tables(env), before_s=WINDOW_S, aggs=AGGS, prevailing=False).height)


def window_polars(env: Env) -> dict:
    import polars as pl
    left, right = tables(env)
    both = pl.concat([right.with_columns(asked=False), left.with_columns(asked=True)], how="diagonal")
    both = both.sort("capture_ts")
    over = dict(by="capture_ts", window_size=f"{WINDOW_S}s", closed="both")
    made = both.lazy().with_columns(
        volume=pl.col("amount").rolling_sum_by(**over), price_mean=pl.col("price").rolling_mean_by(**over),
        price_max=pl.col("price").rolling_max_by(**over)).filter("asked").collect()
    return counted(env, made.height)


def window_duckdb(env: Env) -> dict:
    import duckdb
    asked, tape = arrow(env)  # noqa: F841  duckdb finds them by name
    made = duckdb.sql(f"""select capture_ts, volume, price_mean, price_max from (
        select capture_ts, asked, sum(amount) over w volume, avg(price) over w price_mean, max(price) over w price_max
        from (select capture_ts, price, amount, false asked from tape
              union all select capture_ts, null, null, true from asked)
        window w as (order by capture_ts range between interval {WINDOW_S} seconds preceding and current row))
        where asked""")
    return counted(env, len(made.arrow().read_all()))


def window_pandas(env: Env) -> dict:
    import pandas as pd
    left, right = pandas_tables(env)
    both = pd.concat([right.assign(asked=False), left.assign(asked=True)]).sort_values("capture_ts", kind="stable")
    over = both.set_index("capture_ts")[["price", "amount"]].rolling(f"{WINDOW_S}s", closed="both", min_periods=1)
    made = pd.DataFrame({"volume": over["amount"].sum(), "price_mean": over["price"].mean(),
                         "price_max": over["price"].max()})
    return counted(env, len(made[both["asked"].to_numpy()]))


def _sides(ours, polars, duckdb, pandas) -> tuple[Side, ...]:
    return (Side("daedalus_etl", ours, OURS), Side("polars", polars), Side("duckdb", duckdb, needs=("duckdb",)),
            Side("pandas", pandas, needs=("pandas",)))


CASES = [
    Case("asof_join", "The last trade known", f"For every {EVERY}th trade a question half a millisecond later: price "
         "and amount of the last trade before it. Ours checks clocks and order, too.", "features", TRADES,
         _sides(asof_ours, asof_polars, asof_duckdb, asof_pandas), made_tape, "trades"),
    Case("window_join", "A minute before each row", f"The same questions: sum of amounts, mean and largest price of "
         f"the trades in the {WINDOW_S} s before. Peers put both tables into one; polars, pandas keep running sums.",
         "features", TRADES, _sides(window_ours, window_polars, window_duckdb, window_pandas), made_tape, "trades"),
]
