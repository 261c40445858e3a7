"""What a live push costs: features per second, and the latencies that a trading loop would see.

    python benchmarks/live.py [--minutes 30] [--levels 20] [--snapshot-s 0.1] [--json out.json]

Messages of a simulated market are pushed one by one as a venue's client hands them out (books as CCXT's pairs of
price and amount, trades as dicts), with Python's garbage collector on, as it is in a user's loop. The first tenth is
left out: it compiles. Printed are, for each kind of push, pushes and columns per second, microseconds per push (median,
99 % and 99.9 % of them below, the longest), and the share that took more than a millisecond."""
import argparse
import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import numpy as np
import polars as pl

from daedalus_etl.core.catalog import selected
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.features.state import BarBuilder, SymbolState
from daedalus_etl.sources.simulated import simulate
from daedalus_etl.sources.simulator import SimulatorConfig

ALL = {"structural", "dynamic", "rolling", "advanced"}
TYPICAL = ("mid_price", "spread_bps", "microprice", "imbalance_L5", "total_imbalance", "ofi", "ofi_sum_60s", "rv_60s",
           "tfi_60s", "mean_spread_60s")


def messages(minutes: float, levels: int, snapshot_s: float) -> list[tuple[str, dict]]:
    "Trades and books of a simulated market by clock, trades first; the books' sides as lists of [price, amount]."
    frames = simulate(SimulatorConfig(depth=levels, snapshot_s=snapshot_s), 60.0 * minutes,
                      datetime(2026, 1, 14, tzinfo=UTC))
    def pairs(side: list[dict]) -> list[list[float]]: return [[x["price"], x["size"]] for x in side]
    books = [("book", r | {"bids": pairs(r["bids"]), "asks": pairs(r["asks"])}) for r in frames["orderbook"].to_dicts()]
    return sorted([("trade", r) for r in frames["trades"].to_dicts()] + books, key=lambda m: m[1]["capture_ts"])


def spent(told: Iterable[tuple[str, dict]], push: dict[str, Callable[[dict], object]], kind: str) -> np.ndarray:
    "Nanoseconds of each push of `kind`; the others are pushed too, but not timed."
    took, clock = [], time.perf_counter_ns
    for channel, message in told:
        work = push.get(channel)
        if work is None: continue
        began = clock()
        work(message)
        if channel == kind: took.append(clock() - began)
    return np.array(took[len(took) // 10:])


def row(what: str, columns: int, ns: np.ndarray) -> dict:
    "One line of the table."
    us, total = ns / 1000, ns.sum() / 1e9
    return {"pushed": what, "columns": columns, "pushes": len(ns), "pushes/s": round(len(ns) / total),
            "columns/s": round(columns * len(ns) / total), "median us": round(float(np.median(us)), 1),
            "p99 us": round(float(np.quantile(us, 0.99)), 1), "p99.9 us": round(float(np.quantile(us, 0.999)), 1),
            "max us": round(float(us.max()), 1), "above 1 ms": f"{(us > 1000).mean():.3%}"}


def books_row(what: str, told: list[tuple[str, dict]], live: SymbolState, kind: str = "book") -> dict:
    "Books pushed into `live`, and trades as they come; `kind`: which of the two is timed."
    ns = spent(told, {"book": live.push, "trade": live.push_trades}, kind)
    return row(what, len(selected("orderbook", live.config)) if kind == "book" else 0, ns)


def measure(minutes: float, levels: int, snapshot_s: float) -> pl.DataFrame:
    "The table."
    told, every = messages(minutes, levels, snapshot_s), FeatureConfig(categories=ALL)
    bars = FeatureConfig(bar_durations=(60,), bars=("tick:100",))
    return pl.DataFrame([
        books_row("book, all columns", told, SymbolState(every)),
        books_row("book, 10 columns", told, SymbolState(features=TYPICAL)),
        books_row("trade beside books", told, SymbolState(features=TYPICAL), "trade"),
        row("trade into bars (60 s, 100 ticks)", 0, spent(told, {"trade": BarBuilder("trades", bars).push}, "trade"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the simulated market (30)")
    parser.add_argument("--levels", type=int, default=20, help="of the books (20)")
    parser.add_argument("--snapshot-s", type=float, default=0.1, help="seconds between books (0.1)")
    parser.add_argument("--json", help="write the rows to this file, too")
    args = parser.parse_args()
    table = measure(args.minutes, args.levels, args.snapshot_s)
    with pl.Config(tbl_cols=-1, tbl_width_chars=160, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True,
                   fmt_str_lengths=40, tbl_formatting="ASCII_MARKDOWN"):
        print(table)
    if args.json:
        with open(args.json, "w") as f: json.dump(table.to_dicts(), f, indent=1)


if __name__ == "__main__": main()
