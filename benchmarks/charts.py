"""Charts: `python benchmarks/charts.py` prints the median time from a frame to its chart as JSON, and the JSON's size.

The frame is made up once: a day of evenly spaced rows, three features (a random walk, noise, and noise of which three
in ten are null). Wall seconds hold on an idle machine only; CPU seconds of all threads are printed beside them."""
import argparse
import statistics
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from daedalus_etl.explore.coverage import gap_map, null_map
from daedalus_etl.explore.distribution import box_by_hour, distribution, ecdf, histogram
from daedalus_etl.explore.series import series

DAY_US = 86_400_000_000


def day(rows: int) -> pl.DataFrame:
    "Features of one stream over a day."
    rng, start = np.random.default_rng(0), datetime(2026, 1, 14, tzinfo=UTC)
    step = timedelta(microseconds=DAY_US // rows)
    clock = pl.datetime_range(start, start + step * (rows - 1), step, eager=True)
    frame = pl.DataFrame({"exchange": "binance", "symbol": "BTC-USDT", "capture_ts": clock})
    sparse = pl.when(pl.Series(rng.uniform(size=rows)) > 0.3).then(pl.Series(rng.normal(size=rows)))
    return frame.with_columns(walk=pl.Series(rng.normal(size=rows).cumsum()), noise=pl.Series(rng.normal(size=rows)),
                              sparse=sparse)


def cases(frame: pl.DataFrame) -> dict:
    "Name -> what draws the chart."
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


def measured(draw, times: int) -> tuple[float, float, int]:
    "Median wall and CPU seconds from the frame to JSON, and the bytes of the JSON; the first pass is not counted."
    size, wall, cpu = len(draw().to_json(indent=None)), [], []
    for _ in range(times):
        w, c = time.perf_counter(), time.process_time()
        draw().to_json(indent=None)
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return statistics.median(wall), statistics.median(cpu), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    frame = day(args.rows)
    print(f"{args.rows:,} rows; median of {args.times}\n{'chart':30}{'wall s':>8}{'CPU s':>8}{'kB':>8}")
    for name, draw in cases(frame).items():
        wall, cpu, size = measured(draw, args.times)
        print(f"{name:30}{wall:8.2f}{cpu:8.2f}{size / 1e3:8.0f}", flush=True)


if __name__ == "__main__": main()
