"""Kernels of books on small streams against the slow twin: with the JIT, without it, and with bounds checks.

Small, because without the JIT each row takes milliseconds; wide, so that every kernel and every branch is visited."""
import math

import naive_orderbook as naive
import polars as pl
import pytest
from strategies_orderbook import fixed_books, fixed_clocks, fixed_trades
from test_orderbook import book_frame, trade_frame

from daedalus_etl.core.catalog import Catalogue, select
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.core.state import dump_state, load_state
from daedalus_etl.features import orderbook  # noqa: F401  declares the columns
from daedalus_etl.features.stateful import StatefulFeatureProcessor

ALL = {"structural", "dynamic", "rolling", "advanced"}
CONFIGS = {
    "defaults": FeatureConfig(categories=ALL, rolling_windows=(5, 60), vpin_bucket_size=0.5, vpin_window_buckets=5),
    "small": FeatureConfig(categories=ALL, rolling_windows=(3,), depth_levels=3, ofi_levels=2, ofi_per_level=True,
                           spread_regime_window=7, kyle_lambda_window=10, kyle_interval_s=3, max_gap_s=5,
                           vpin_bucket_size="auto", vpin_window_buckets=2, use_dynamic_spread_regime=False)}


def stream():
    "Books of all states with gaps among them, and trades before, between and after."
    times = fixed_clocks(45, 1.3)
    times = times[:20] + [t + 40_000_000 for t in times[20:32]] + [t + 86_400_000_000 for t in times[32:]]
    clocks = sorted([*fixed_clocks(60, 0.9, start=times[0] - 3_000_000), *times[::4], times[-1] + 2_000_000])
    return fixed_books(times, 11), fixed_trades(clocks, 12)


def process(books, trades, cfg, cuts=()):
    "All columns; a new processor from the state's bytes behind each cut, the trades running ahead of the books."
    columns, out, state, at = select(Catalogue("orderbook", cfg)), [], None, 0
    for lo, hi in zip([0, *cuts], [*cuts, books.height]):
        processor = StatefulFeatureProcessor(cfg, columns, state, trades=True)
        upto = trades.height if hi == books.height else min(trades.height, at + 17)
        due = trades.filter(pl.col("capture_ts") <= books["capture_ts"][hi - 1]).height
        out.append(processor.process(books[lo:hi], trades[at:max(upto, due)]))
        state, at = load_state(dump_state(processor.state()))[0], max(upto, due)
    return pl.concat(out)


def near(got, want) -> bool:
    if got is None or want is None: return got is want
    return got == want or math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_columns_are_the_twins(name):
    books, trades = stream()
    got = process(book_frame(books), trade_frame(trades), CONFIGS[name])
    want = naive.orderbook(books, trades, CONFIGS[name])
    wrong = [(i, c, g[c], w[c]) for i, (g, w) in enumerate(zip(got.iter_rows(named=True), want))
             for c in Catalogue("orderbook", CONFIGS[name]) if not near(g[c], w[c])]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("name", CONFIGS)
def test_cuts_leave_no_trace(name):
    books, trades = (f(rows) for f, rows in zip((book_frame, trade_frame), stream()))
    assert process(books, trades, CONFIGS[name], (1, 2, 19, 20, 33)).equals(process(books, trades, CONFIGS[name]))
