"""Charts: the time from a frame to its chart as JSON, and the JSON's size.

The frame is made up once: a day of evenly spaced rows, three features (a random walk, noise, and noise of which three
in ten are null)."""
from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from benchmarks.harness import OURS, Case, Env, Side, measured

if TYPE_CHECKING: import polars as pl

DAY_US = 86_400_000_000


def day(rows: int) -> pl.DataFrame:
    "Features of one stream over a day."
    import numpy as np
    import polars as pl
    rng, start = np.random.default_rng(0), datetime(2026, 1, 14, tzinfo=UTC)
    step = timedelta(microseconds=DAY_US // rows)
    clock = pl.datetime_range(start, start + step * (rows - 1), step, eager=True)
    frame = pl.DataFrame({"exchange": "binance", "symbol": "BTC-USDT", "capture_ts": clock})
    sparse = pl.when(pl.Series(rng.uniform(size=rows)) > 0.3).then(pl.Series(rng.normal(size=rows)))
    return frame.with_columns(walk=pl.Series(rng.normal(size=rows).cumsum()), noise=pl.Series(rng.normal(size=rows)),
                              sparse=sparse)


def charts(frame: pl.DataFrame) -> dict:
    "Name -> what draws the chart."
    from daedalus_etl.explore.coverage import gap_map, null_map
    from daedalus_etl.explore.distribution import box_by_hour, distribution, ecdf, histogram
    from daedalus_etl.explore.series import series
    half = frame.height // 2
    return {
        "series, 1 feature": lambda: series(frame, ["walk"]),
        "series, 2 features": lambda: series(frame, ["walk", "noise"]),
        "series, 3 features": lambda: series(frame, ["walk", "noise", "sparse"]),
        "histogram with reference": lambda: histogram(frame[half:], "walk", frame[:half]),
        "ecdf with reference": lambda: ecdf(frame[half:], "walk", frame[:half]),
        "box_by_hour": lambda: box_by_hour(frame, "walk"),
        "distribution with reference": lambda: distribution(frame[half:], "walk", frame[:half]),
        "gap_map": lambda: gap_map(frame),
        "null_map": lambda: null_map(frame),
    }


def draw(env: Env) -> dict:
    "Every chart once; how long each took, and the bytes of its JSON."
    frame = env.once("day", lambda: day(env.rows))
    def drawn(make):
        def work() -> dict: return {"rows": frame.height, "bytes": len(make().to_json(indent=None))}
        return work
    return {"rows": frame.height, "parts": {name: measured(drawn(make)) for name, make in charts(frame).items()}}


CASES = [Case("charts", "Charts of a day", "From a frame to a chart's JSON, which is what a browser is sent.", "look",
              1_000_000, (Side("daedalus_etl", draw, OURS),))]
