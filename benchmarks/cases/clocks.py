"""Where bars end: the clocks alone, on arrays in memory against finmlkit's kernels, and minutes from Parquet.

Both sides are asked for positions in the tape and nothing else. Thresholds are such that a bar has about `LENGTH`
trades. finmlkit has no imbalance bars; a loop in Python stands for what a notebook does."""
from __future__ import annotations

from collections.abc import Callable

from benchmarks import inputs
from benchmarks.harness import FLOOR, OURS, Case, Env, Side, Skip

LENGTH, SECONDS = 500, 60
SIZES = {"500k": 500_000, "10m": 10_000_000}
WORK = 10_000_000        # trades of a pass: a short tape is run through several times
BOUND = 1e-3             # of log returns, for CUSUM
SLOW = 200_000           # trades for plain Python


def made_tape(env: Env): return inputs.tape(env.data, env.rows)
def arrays(env: Env) -> dict: return env.once("arrays", lambda: inputs.arrays(made_tape(env)))


def threshold(kind: str, a: dict) -> float:
    "What a bar of `LENGTH` trades has, on average; an imbalance that takes as long on balanced flow."
    mean = {"tick": 1.0, "volume": a["amount"].mean(), "dollar": (a["price"] * a["amount"]).mean(),
            "volume_imbalance": a["amount"].std()}
    return float(mean[kind]) * (LENGTH**0.5 if kind == "volume_imbalance" else LENGTH)


def again(env: Env, work: Callable[[], int]) -> dict:
    "`work` until a pass has seen enough trades; its bars."
    n = arrays(env)["t"].size
    times = max(1, WORK // n) if env.rows >= min(SIZES.values()) else 1
    bars = [work() for _ in range(times)]
    return {"rows": n * times, "bars": bars[-1]}


def ours(kind: str):
    def work(env: Env) -> dict:
        from daedalus_etl.core.feature_config import BarSpec
        from daedalus_etl.features.bar_clocks import BarClock
        a = arrays(env)
        if kind == "time": spec = SECONDS
        elif kind == "cusum": spec = BarSpec(type=kind, threshold=BOUND)
        else: spec = env.once("spec", lambda: BarSpec(type=kind, threshold=threshold(kind, a)))
        return again(env, lambda: len(BarClock(spec).close(a["t"], a["price"], a["amount"], a["sign"])))
    return work


def finmlkit(kind: str):
    "Its indexer of that kind, on arrays as it wants them (times in ns, a bound per trade), which are made beforehand."
    def work(env: Env) -> dict:
        import numpy as np
        from finmlkit.bar import logic
        a = arrays(env)
        t, sigma = env.once("own", lambda: (a["t"] * 1000, np.full(a["t"].size, BOUND)))
        bound = env.once("bound", lambda: 0.0 if kind in ("time", "cusum") else threshold(kind, a))
        made = {"time": lambda: logic._time_bar_indexer(t, float(SECONDS))[1],
                "tick": lambda: logic._tick_bar_indexer(t, int(bound)),
                "volume": lambda: logic._volume_bar_indexer(a["amount"], bound),
                "dollar": lambda: logic._dollar_bar_indexer(a["price"], a["amount"], bound),
                "cusum": lambda: logic._cusum_bar_indexer(t, a["price"], sigma, 1e-9, 1.0)}
        if kind not in made: raise Skip("finmlkit has no imbalance bars")
        return again(env, lambda: len(made[kind]()))
    return work


def python(env: Env) -> dict:
    "A loop over lists that are there already."
    a = arrays(env)
    bound = env.once("bound", lambda: threshold("volume_imbalance", a))
    n = min(env.most, a["t"].size)
    rows = env.once("rows", lambda: list(zip(a["amount"][:n].tolist(), a["sign"][:n].tolist())))
    theta, edges = 0.0, []
    for i, (amount, sign) in enumerate(rows):
        theta += amount * sign
        if abs(theta) >= bound:
            theta = 0.0
            edges.append(i + 1)
    return {"rows": n, "bars": len(edges)}


def case(kind: str, size: str) -> Case:
    peers = [Side("finmlkit", finmlkit(kind), needs=("finmlkit",))]
    if "_" in kind: peers.append(Side("python", python, most=SLOW))
    name = kind.replace("_", " ")
    what = "at multiples of a minute" if kind == "time" else f"after about {LENGTH} trades"
    return Case(f"clock_{kind}_{size}", f"Ends of {name} bars, {SIZES[size]:,} trades",
                f"Where {name} bars end, {what}: positions only, from arrays in memory.", "bars", SIZES[size],
                (Side("daedalus_etl", ours(kind), OURS), *peers), made_tape, "trades")


# ---- minutes from Parquet: trades in each

def parquet(env: Env) -> str: return str(made_tape(env) / "tape.parquet")


def scan(env: Env):
    import polars as pl
    return pl.scan_parquet(parquet(env), hive_partitioning=False).select("capture_ts")


def file_ours(env: Env) -> dict:
    import numpy as np
    from daedalus_etl.features.bar_clocks import BarClock
    clock, lengths, before = BarClock(SECONDS), [], 0
    for batch in scan(env).collect_batches(maintain_order=True):
        t = batch["capture_ts"].to_physical().to_numpy()
        none = np.empty(t.size)
        edges = clock.close(t, none, none, np.empty(t.size, np.int8))
        lengths += np.diff(edges, prepend=-before).tolist()
        before = t.size - edges[-1] if edges.size else before + t.size
    return {"rows": env.rows, "bars": len(lengths) + 1}


def file_polars(env: Env) -> dict:
    import polars as pl
    bars = scan(env).set_sorted("capture_ts").group_by_dynamic("capture_ts", every=f"{SECONDS}s").agg(pl.len())
    return {"rows": env.rows, "bars": bars.collect().height}


def file_duckdb(env: Env) -> dict:
    import duckdb
    query = f"""select time_bucket(interval '{SECONDS} seconds', capture_ts) b, count(*)
        from read_parquet('{parquet(env)}') group by b order by b"""
    return {"rows": env.rows, "bars": len(duckdb.sql(query).arrow().read_all())}


def file_floor(env: Env) -> dict:
    "The clocks read and dropped."
    for _ in scan(env).collect_batches(): pass
    return {"rows": env.rows, "bars": 0}


KINDS = ("time", "tick", "volume", "dollar", "cusum", "volume_imbalance")
CASES = [
    *(case(kind, size) for size in SIZES for kind in KINDS),
    Case("clock_parquet", "Trades per minute from Parquet", "How many trades each minute has, from one column of a "
         "file; the floor reads it.", "bars", SIZES["10m"],
         (Side("daedalus_etl", file_ours, OURS), Side("floor", file_floor, FLOOR), Side("polars", file_polars),
          Side("duckdb", file_duckdb, needs=("duckdb",))), made_tape, "trades")]
