"""What every catalogued column of the order book must obey, whatever its formula.

The truth is `naive_orderbook` (slow, written from the definitions alone). Absolute tolerances are derived from the data
by `slacks`, each with its reason; everything else is held to a relative 1e-12 with the same nulls, or to the same bits.
"""
import json
import math
import subprocess
import sys

import naive_orderbook as twin
import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import SECOND, clock_us, segments
from naive_orderbook import OK, distance, levels, near, observations, ofi_terms, previous, size
from strategies import SATURDAY
from strategies_orderbook import book_rows, books_and_trades, fixed_books, fixed_clocks, fixed_trades
from test_contract import CLOCKS, EPS, TIMES, close, drawn, frame, hold_all, pieces, same, through_bytes, trade

from daedalus_etl.core.catalog import Catalogue, schema_of, select
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.core.errors import BadDataError, SchemaError
from daedalus_etl.core.levels import LEVELS
from daedalus_etl.core.state import dump_state
from daedalus_etl.features.impact import PAIR, beta_window_batch
from daedalus_etl.features.orderbook import extract_structural_features, structural_columns
from daedalus_etl.features.processor import clock_array
from daedalus_etl.features.stateful import StatefulFeatureProcessor, trade_arrays
from daedalus_etl.features.streaming import Tape, new_window
from daedalus_etl.features.trade_flow import TradeArrays
from daedalus_etl.features.volatility import (
    ACCUMULATORS, BID_SLOPE, BOOK_VALUES, COG, OFI, RETURN, SPREAD, moment_window_batch, roll_window_batch)
from daedalus_etl.features.vpin import BUCKET, vpin_batch

ALL = frozenset({"structural", "dynamic", "rolling", "advanced"})
often, briefly = settings(max_examples=250), settings(max_examples=15)    # the latter where an example is many runs


# ---- running the package

def config(**changes) -> FeatureConfig:
    return FeatureConfig(**{"categories": ALL, "ofi_per_level": True} | changes)


def book_frame(rows) -> pl.DataFrame:
    "Bronze rows (dicts) as a frame; `nr` numbers them and passes through."
    columns = {"capture_ts": pl.Series([r["capture_ts"] for r in rows], dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
               "timestamp": pl.Series([r["timestamp"] for r in rows], dtype=pl.Int64)}
    for side in ("bids", "asks"):
        made = [r[side] and [{"price": float(p), "size": float(q)} for p, q in r[side]] for r in rows]
        columns[side] = pl.Series(made, dtype=LEVELS)
    return pl.DataFrame(columns).with_columns(nr=pl.int_range(pl.len(), dtype=pl.Int64))


def trade_frame(rows) -> pl.DataFrame:
    return frame("trades", rows)


def processor(cfg, state=None, trades=False) -> StatefulFeatureProcessor:
    return StatefulFeatureProcessor(cfg, select(Catalogue("orderbook", cfg)), state, trades=trades)


def feed(cfg, books, trades=None, cuts=(), ahead=(), *, restart=False, early=False):
    """(columns, processor) of `books`, cut at `cuts`; a piece comes with its trades, `ahead` more, the last with all.

    `restart`: a new processor from the state's bytes for each piece; `early`: trades merged before the books come."""
    made, out = processor(cfg, trades=trades is not None), []
    parts = pieces(books, cuts)
    tapes = [None] * len(parts) if trades is None else tapes_of(parts, trades, cfg.clock, ahead)
    for part, own in zip(parts, tapes):
        if early and part.height and own is not None: own = merge_early(made, own, cfg, part)
        out.append(made.process(part, own))
        if restart: made = processor(cfg, through_bytes(made.state()), trades is not None)
    return pl.concat(out).select(list(made.schema())), made


def tapes_of(parts, trades, clock, ahead):
    "The trades that go with each of `parts`: up to its last clock, and `ahead` more; all that are left with the last."
    times, at, out = clock_array(trades, clock), 0, []
    for part, more in zip(parts[:-1], [*ahead, *[0] * len(parts)]):
        due = np.searchsorted(times, clock_array(part, clock)[-1:], side="right").max(initial=at)
        out.append(trades[at:due + more])
        at = min(times.size, int(due) + more)
    return [*out, trades[at:]]


def merge_early(made, trades, cfg, books):
    "Add the trades, say that no book will come before `books`, and leave no trades to add."
    made.add_trades(trade_arrays(trades, cfg.clock))
    made.advance(int(clock_array(books, cfg.clock)[0]))


def silver(books, trades, cfg) -> pl.DataFrame:
    "Columns of rows (dicts) in one piece; `trades` may be None."
    return feed(cfg, book_frame(books), None if trades is None else trade_frame(trades))[0]


# ---- how far right answers may lie apart

def line_slack(points, dx, dy):
    """(slope, r2): how far a right line through `points` may be off, its x right to `dx` and its y to `dy`.

    A deviation from the mean is right to that and to 8 n eps of the largest value (n additions to the mean, and as many
    merges of moments), whatever the algorithm; `kx`, `ky` are these errors relative to the spread of x and of y. Where
    they are not small, neither the line nor whether there is one is determined by the data: infinite."""
    n, xs, ys = len(points), [x for x, _ in points], [y for _, y in points]
    if n < 3: return 0.0, 0.0
    mx, my = math.fsum(xs) / n, math.fsum(ys) / n
    sxx, syy = math.fsum((x - mx)**2 for x in xs), math.fsum((y - my)**2 for y in ys)
    if min(xs) == max(xs): return (math.inf if dx else 0.0,) * 2
    u = 8 * n * EPS
    ex, ey = dx + u * max(map(abs, xs)), dy + u * max(map(abs, ys))
    if ex * math.sqrt(n) > 1e-3 * math.sqrt(sxx): return math.inf, math.inf
    kx, steep = ex * math.sqrt(n / sxx), math.sqrt(syy / sxx)              # |slope| is at most `steep`
    slope = steep * (2 * u + 3 * kx) + ey * math.sqrt(n / sxx)
    if min(ys) == max(ys): return slope, math.inf if dy else 0.0
    if ey * math.sqrt(n) > 1e-3 * math.sqrt(syy): return slope, math.inf
    return slope, 4 * (u + kx + ey * math.sqrt(n / syy))


def side_slack(name, side, cfg, e):
    """Per side. `entropy`: a logarithm is right to eps of itself, and the logarithms cancel. `50pct_depth_levels`: a
    cumulative size of half the total, but for rounding, may be found on either side of the half."""
    sizes = [q for _, q in side[:cfg.depth_levels]]
    if not sizes: return {}
    n, total = len(sizes), math.fsum(sizes)
    logs = max(abs(math.log(q)) for q in (*sizes, total))
    tie = any(abs(math.fsum(sizes[:i + 1]) - total / 2) <= 2 * n * e * total for i in range(n)) and e > 0.0
    return {f"{name}_entropy": 8 * EPS * (1 + logs) / math.log(max(n, 2)),
            f"{name}_50pct_depth_levels": math.inf if tie else 0.0}


def level_lines(side, m):
    "Points of both regressions over the first ten levels: distance against cumulative size, and against log size."
    ten = side[:10]
    d = [distance(p, m) for p, _ in ten]
    return [(x, size(ten[:i + 1])) for i, x in enumerate(d)], [(x, math.log(q)) for x, (_, q) in zip(d, ten)]


def shape_slack(name, side, m, e):
    "Regressions over the levels: `line_slack` of a cumulative size, right to n eps, or of a logarithm."
    sums, logs = level_lines(side, m)
    far = EPS * max(x for x, _ in sums)
    depth = line_slack(sums, far, len(sums) * e * sums[-1][1])
    decay = line_slack(logs, far, EPS * max(abs(y) for _, y in logs))
    return {f"{name}_slope_regression": depth[0], f"{name}_exp_decay_rate": decay[0]}


def asymmetry_slack(row, own):
    "`slope_asymmetry`: the relative errors of both slopes add up; undetermined where one may have another sign."
    parts = [(row[f"{s}_slope_regression"], own[f"{s}_slope_regression"]) for s in ("bid", "ask")]
    if any(v is None for v, _ in parts): return 0.0
    if any(abs(v) <= 1e3 * s for v, s in parts): return math.inf
    return sum(2 * s / abs(v) for v, s in parts) + 4 * EPS


def snapshot_slack(bids, asks, row, cfg, e):
    """Of an ok or locked book of n levels.

    * `micro_minus_mid`, `vwap_spread`, `cog_vs_mid`, `cost_*`: prices, each right to eps of itself (n eps after sums
      over n levels), are subtracted; in bps of the mid, times 10^4.
    * imbalances: b - a cancels; b and a are each right to n eps, so the ratio to 2 n eps of 1.
    * `smart_depth_imbalance`: besides, exp(-x) is right to x eps; what weighs e^-64 of the best level does not count.
    """
    m, top, n = row["mid_price"], row["best_ask"] / row["mid_price"], len(bids) + len(asks)
    n_top = 2 * min(cfg.depth_levels, max(len(bids), len(asks)))
    out = {"micro_minus_mid": 8 * EPS * row["best_ask"], "micro_minus_mid_bps": 8e4 * EPS * top,
           "vwap_spread": 32 * EPS * row["vwap_ask_5"], "total_imbalance": 2 * n_top * EPS,
           "cog_vs_mid": 2e4 * n_top * EPS * row["center_of_gravity"] / m,
           "smart_depth_imbalance": 2 * (n_top + 4 * (cfg.smart_depth_decay * (1 - bids[0][0] / m) + 64)) * EPS}
    out |= {f"imbalance_L{k}": 4 * min(k, n) * EPS for k in cfg.imbalance_levels}
    out |= {f"imb_{twin.band_name(*edges)}": 2 * n * EPS for edges in twin.band_edges(cfg)}
    for way in ("buy", "sell"):
        for k in (f"cost_to_{way}_{twin.label(x)}_bps" for x in cfg.cost_notionals):
            out[k] = 2 * n * EPS * (1e4 + (row[k] or 0.0))
    for name, side in (("bid", bids), ("ask", asks)): out |= shape_slack(name, side, m, e)
    return out | {"slope_asymmetry": asymmetry_slack(row, out)}


def flow_slack(now, before, cfg, e):
    "`ofi`, `mlofi`: sizes of both signs are added up; right to a few eps of the sum of their absolute values."
    gross = [math.fsum(map(abs, ofi_terms(now, before, i))) for i in range(cfg.ofi_levels)]
    weighted = math.fsum(math.exp(-cfg.ofi_decay_alpha * i) * g for i, g in enumerate(gross))
    return {"ofi": 4 * e * gross[0], "mlofi": (4 * cfg.ofi_levels + 8) * EPS * weighted,
            **{f"ofi_L{i}": 4 * e * g for i, g in enumerate(gross)}}


def largest(values):
    return max((abs(v) for v in values if v is not None), default=0.0)


def moments_slack(values, errors):
    "Mean and std of n values: their own errors, and n merges that are right to eps of the largest."
    return 2 * max(errors, default=0.0) + 8 * len(values) * EPS * largest(values)


def window_slack(want, out, seen, w, e):
    "One of `rolling_windows`. Sums: the errors of the terms, and n eps of the sum of their absolute values."
    row = {}
    for name, eps in (("ofi", e), ("mlofi", EPS)):
        gross = math.fsum(abs(want[i][name] or 0.0) for i in seen)
        row[f"{name}_sum_{w}s"] = math.fsum(out[i].get(name, 0.0) for i in seen) + len(seen) * eps * gross
    r = moments_slack([want[i]["log_return"] for i in seen], ())
    return row | {f"ret_std_{w}s": r, f"mean_return_{w}s": r}


def rolling_slack(want, out, books, clocks, segs, n, cfg, e):
    "The windows over the books' rows, and `tfi` (as other imbalances)."
    row = {f"tfi_{w}s": 2 * (want[n][f"trade_count_{w}s"] or 0) * e for w in cfg.rolling_windows}
    for w in cfg.rolling_windows: row |= window_slack(want, out, observations(want, clocks, segs, n, w), w, e)
    seen = observations(want, clocks, segs, n, twin.SLOPE_WINDOW)
    for name, source in (("bid_slope", "bid_slope_regression"), ("ask_slope", "ask_slope_regression"),
                         ("cog_vs_mid", "cog_vs_mid")):
        s = moments_slack([want[i][source] for i in seen], [out[i][source] for i in seen])
        row |= {f"{name}_mean_60s": s, f"{name}_std_60s": s}
    seen = observations(want, clocks, segs, n, cfg.spread_regime_window)
    depths = [near(*books[i], want[i]["mid_price"], 5) for i in seen]
    seen = observations(want, clocks, segs, n, cfg.kyle_lambda_window)
    seen = [i for i in seen if want[i]["ofi"] is not None and want[i]["log_return"] is not None]
    beta = line_slack([(want[i]["ofi"], want[i]["log_return"]) for i in seen],
                      max((out[i]["ofi"] for i in seen), default=0.0), 0.0)
    return row | {"depth_0_5bps_sigma": moments_slack(depths, ()), "ofi_beta": beta[0], "ofi_r2": beta[1]}


def kyle_slacks(want, out, clocks, segs, trades, cfg, e):
    "As `ofi_beta`: x sums n amounts of both signs."
    flow, mids, parts = twin.signed_flow(trades, cfg), twin.segment_mids(want, clocks, segs), {}
    step = cfg.kyle_interval_s * SECOND
    for x in trades: parts.setdefault(clock_us(x, cfg.clock) // step, []).append(x["amount"])
    dx = e * max((len(a) * math.fsum(a) for a in parts.values()), default=0.0)
    for n, row in enumerate(want):
        if row["book_state"] not in OK: continue
        points = twin.kyle_points(flow, mids[segs[n]], clocks[n], cfg)
        out[n]["kyle_lambda"], out[n]["kyle_lambda_r2"] = line_slack(points, dx, 0.0)


def slacks(want, rows, trades, cfg, exact=False) -> list[dict]:
    """Absolute tolerances by row and column, 0 for all that are not named, infinite where rounding decides; the reasons
    stand at each part. `exact`: sums of sizes and amounts are exact in any order, so that nothing hangs on rounding."""
    books = [(levels(r["bids"]), levels(r["asks"])) for r in rows]
    clocks, e, out = [clock_us(r, cfg.clock) for r in rows], 0.0 if exact else EPS, []
    segs = segments(clocks, cfg.max_gap_s)
    for (bids, asks), row in zip(books, want):
        own = side_slack("bid", bids, cfg, e) | side_slack("ask", asks, cfg, e)
        out.append(own | (snapshot_slack(bids, asks, row, cfg, e) if row["book_state"] in OK else {}))
    good = [n for n, row in enumerate(want) if row["book_state"] in OK]
    for n in good:
        before = previous(want, n)
        if before is not None: out[n] |= flow_slack(books[n], books[before], cfg, e)
    for n in good: out[n] |= rolling_slack(want, out, books, clocks, segs, n, cfg, e)
    if trades is not None: kyle_slacks(want, out, clocks, segs, trades, cfg, e)
    return out


# ---- every column against its twin

def check(rows, trades, cfg, exact=False):
    "All columns of `rows` against their twins; returns the share of values that rounding decides."
    got, want = silver(rows, trades, cfg), twin.orderbook(rows, trades, cfg)
    slack = slacks(want, rows, trades, cfg, exact)
    rows = enumerate(zip(got.to_dicts(), want, slack, strict=True))
    wrong = [(n, c, g[c], w[c], s.get(c, 0.0)) for n, (g, w, s) in rows for c in got.columns
             if s.get(c) != math.inf and not close(g[c], w[c], s.get(c, 0.0))]
    assert not wrong, wrong[:5]
    return sum(v == math.inf for s in slack for v in s.values()) / max(1, len(want) * got.width)


WINDOWS = st.sampled_from(((5, 15, 60, 300, 900), (1, 5, 60), (7, 300), ()))
CHANGES = {
    "rolling_windows": WINDOWS, "max_gap_s": st.sampled_from((300, 300, 5, 10**6)),
    "spread_regime_window": st.sampled_from((300, 5, 60)),
    "use_dynamic_spread_regime": st.sampled_from((True, True, False)),
    "spread_tight_threshold_bps": st.just(1.7), "spread_wide_threshold_bps": st.just(30.3),   # no drawn spread is these
    "vpin_window_buckets": st.sampled_from((1, 3, 50)), "enable_vpin": st.sampled_from((True, True, True, False)),
    "depth_levels": st.sampled_from((20, 1, 3)), "ofi_levels": st.sampled_from((10, 1, 4)),
    "ofi_decay_alpha": st.sampled_from((0.5, 0.0, 2.0)), "ofi_per_level": st.booleans(),
    "bands_bps": st.sampled_from(((5, 10, 25, 50, 100), (2.5, 7), (10_000,))),
    "imbalance_levels": st.sampled_from(((1, 3, 5, 10), (2,), (1, 40))),
    "cost_notionals": st.sampled_from(((1000, 10_000, 100_000), (0.5, 7.25), (10**6,))),
    "smart_depth_decay": st.sampled_from((100.0, 0.0, 250.0))}
KYLE = st.sampled_from(((300, 1), (60, 7), (10, 3), (5, 5), (900, 60)))     # 60 is no multiple of 7


@st.composite
def configs(draw, clock, exact):
    "Any parameters; buckets of a daily volume only where it is exact: its last digit decides when a bucket is full."
    window, interval = draw(KYLE)
    sizes = (0.1, 1.0, "auto") if exact else (0.1, 1.0)
    return config(clock=clock, kyle_lambda_window=window, kyle_interval_s=interval,
                  vpin_bucket_size=draw(st.sampled_from(sizes)), **draw(st.fixed_dictionaries(CHANGES)))


@pytest.mark.parametrize("changes", (
    {}, dict(rolling_windows=(), ofi_levels=1, enable_vpin=False),
    dict(depth_levels=2, ofi_per_level=False, rolling_windows=(3, 86_400), bands_bps=(2.5, 7), imbalance_levels=(2,),
         cost_notionals=(0.5, 10**6))), ids=range(3))
def test_every_column_has_a_twin(changes):
    cfg = config(**changes)
    assert set(Catalogue("orderbook", cfg)) == set(twin.columns(cfg))
    assert len(twin.columns(cfg)) == len(set(twin.columns(cfg)))


@often
@given(data=st.data())
def test_columns_meet_the_twin(data):
    "With trades, with none in the input, and with an empty input of trades."
    clock, exact = data.draw(st.sampled_from(CLOCKS)), data.draw(st.booleans())
    rows, trades = data.draw(books_and_trades(max_size=30, clock=clock, exact=exact))
    trades = data.draw(st.sampled_from((trades, trades, trades, None, [])))
    check(rows, trades, data.draw(configs(clock, exact)), exact)


@often
@given(data=st.data())
def test_books_alone_meet_the_twin(data):
    clock, exact = data.draw(st.sampled_from(CLOCKS)), data.draw(st.booleans())
    rows = data.draw(book_rows(max_size=40, clock=clock, exact=exact))
    check(rows, None, data.draw(configs(clock, exact)), exact)


def clocks_of(seconds) -> list[int]:
    return [SATURDAY + round(s * SECOND) for s in seconds]


@pytest.mark.parametrize("times", [pytest.param(t, id=name) for name, t in TIMES.items()])
def test_fixed_streams_meet_the_twin(times):
    "Clocks on the edges of windows, blocks, intervals and gaps; hardly a value is left to rounding."
    at = clocks_of(times)
    cfg = config(rolling_windows=(1, 5, 60, 300, 86_400), vpin_bucket_size=0.3, vpin_window_buckets=3)
    assert check(fixed_books(at, 5), fixed_trades(sorted(at + at[::2]), 6), cfg) < 0.01
    assert check(fixed_books(at, 7), fixed_trades([c + 1 for c in at], 8), config(max_gap_s=4)) < 0.01


def side(best, step, n, seed):
    "n levels from `best` on, of random sizes."
    rng = np.random.default_rng(seed)
    return [(best + k * step, float(q)) for k, q in enumerate(rng.lognormal(0.0, 2.0, n))]


def one_book(bids, asks, seconds=0.0):
    us = SATURDAY + round(seconds * SECOND)
    return {"capture_ts": us, "timestamp": us // 1000, "nonce": None, "bids": bids, "asks": asks}


def quoted(seconds, bid, ask):
    return one_book([(bid, 1.0)], [(ask, 1.0)], seconds)


@pytest.mark.parametrize("unit", (1e-6, 1.0, 1e7))
def test_spreads_near_each_other_meet_the_twin(unit):
    "Equal to six digits is equal; one more in the sixth digit is not."
    parts = (0, 1e-7, 4.9e-6, 5.1e-6, 1e-5, 2e-5, 0, -1e-7, -4.9e-7, -5.1e-7, -1e-6, -1e-5, 8, 7.99996, 98, 99.99995)
    rows = [quoted(k, 1024 * unit, (1026 + x) * unit) for k, x in enumerate(parts)]
    check(rows, None, config())
    assert silver(rows[:3], None, config())["spread_percentile"].to_list() == [0.5] * 3


def test_a_bucket_is_full_but_for_rounding():
    "Ten trades of 0.1 add up to 0.9999999999999999."
    rows, trades = [quoted(k, 99, 101) for k in range(40)], [trade(k, amount=0.1) for k in range(40)]
    check(rows, trades, config(vpin_window_buckets=2))
    counts = silver(rows, trades, config())["vpin_bucket_count"]
    assert counts.to_list() == [(k + 1) // 10 for k in range(40)]


def test_buckets_of_a_daily_size_meet_the_twin():
    "Days of different volume, one of none; the open bucket keeps the size that it began with. All amounts are exact."
    times = [*range(0, 300_000, 7001), *range(500_000, 700_000, 9001)]
    trades = [trade(t, ("buy", "sell", "buy", "")[k % 4], amount=(1 + k * k % 37) / 8) for k, t in enumerate(times)]
    rows, cfg = [quoted(t + 1, 99, 101) for t in times], config(vpin_bucket_size="auto", vpin_window_buckets=3)
    got, want = silver(rows, trades, cfg).to_dicts(), twin.orderbook(rows, trades, cfg)
    names = ("vpin", "vpin_bucket_count", "vpin_bucket_size")
    assert [(n, c) for n, (g, w) in enumerate(zip(got, want)) for c in names if not close(g[c], w[c])] == []
    assert len({w["vpin_bucket_size"] for w in want}) > 5 and want[-1]["vpin"] is not None


@pytest.mark.parametrize("n, depth_levels", ((300, 300), (65, 65), (64, 64), (5000, 20)))
def test_deep_books_meet_the_twin(n, depth_levels):
    "Hundreds of levels taken, and thousands stored."
    cfg = config(depth_levels=depth_levels, bands_bps=(5, 100, 3000), cost_notionals=(10**3, 10**6, 10**8),
                 imbalance_levels=(1, n))
    rows = [one_book(side(1e4 - 1, -1.0, n, k), side(1e4 + 1, 1.0, n - k, 9 + k), k) for k in range(2)]
    check(rows, None, cfg)


@pytest.mark.parametrize("bids, asks", (
    ([(1e-8, 1e9)], [(1e9, 1e-8)]), ([(1.0, 1e-300)], [(2.0, 1e-300)]), ([(100.0, 5.0)], [(100.0, 5.0)]),
    ([(100.0, 1e9), (99.0, 1e-8), (98.0, 1e-8)], [(101.0, 1e-8), (102.0, 1e9)]),
    ([(61_234.5, 1.0)], [(math.nextafter(61_234.5, math.inf), 1.0)]),
    ([(100 - k * 1e-9, 0.1) for k in range(30)], [(100.5 + k * 1e-9, 0.1) for k in range(30)]),
    (None, [(1.0, 1.0)]), (None, None), ([(1.0, 0.0)], [(2.0, -0.0)]),
    ([(99.0, 1000 / 99 * (1 - 1e-8))], [(101.0, 1000 / 101 * (1 - 1e-10))])), ids=range(10))
def test_strange_books_meet_the_twin(bids, asks):
    """Scales far apart, prices an ulp apart, levels close together and far from the mid, sides that are not there, and
    sides that hold nearly what is to be traded."""
    check([one_book(bids, asks), one_book(bids, asks, 1.0), one_book([(1.0, 1.0)], [(3.0, 1.0)], 2.0)], [], config())


@pytest.mark.parametrize("bid, ask, step", ((9956.0, 10_035.0, 1.0), (9975.0, 10_015.0, 1e-9)))
def test_equal_sizes_do_not_decay(bid, ask, step):
    "A line through equal values has slope 0, to what the logarithm's own rounding can tilt it."
    book = [(bid - k * step, 0.1) for k in range(3)], [(ask + k * step, 0.1) for k in range(3)]
    [got] = silver([one_book(*book)], None, config()).to_dicts()
    for name, own in zip(("bid", "ask"), book):
        logs = level_lines(own, got["mid_price"])[1]
        limit = line_slack(logs, EPS * logs[-1][0], EPS * abs(math.log(0.1)))[0]
        assert abs(got[f"{name}_exp_decay_rate"]) <= limit


# ---- causality and splits

def prefix(books, trades, cut, cfg):
    "The first `cut` books, and the trades of their time."
    if cut == 0: return books[:0], trades[:0]
    now = clock_array(books, cfg.clock)[cut - 1]
    return books[:cut], trades.filter(pl.Series(clock_array(trades, cfg.clock) <= now))


def stream(data, **more):
    "(books, trades, configuration), drawn."
    clock, exact = data.draw(st.sampled_from(CLOCKS)), data.draw(st.booleans())
    rows, trades = data.draw(books_and_trades(max_size=30, clock=clock, exact=exact))
    cfg = data.draw(configs(clock, exact))
    return book_frame(rows), trade_frame(trades), cfg._with(more)


@briefly
@given(data=st.data())
def test_a_prefix_gives_a_prefix(data):
    "Later books and later trades change nothing, whether those trades are there already or not."
    books, trades, cfg = stream(data)
    cut = data.draw(st.integers(0, books.height))
    whole = feed(cfg, books, trades)[0]
    own, past = prefix(books, trades, cut, cfg)
    same(feed(cfg, own, past)[0], whole[:cut])
    same(feed(cfg, own, trades)[0], whole[:cut])
    same(feed(cfg, books, prefix(books, trades, books.height, cfg)[1])[0], whole)


@briefly
@given(data=st.data())
def test_splits_give_the_same_bits(data):
    "Books cut anywhere, trades cut anywhere at or after what the books need, states through bytes."
    books, trades, cfg = stream(data, output_dtype=data.draw(st.sampled_from(("float64", "float32"))))
    cuts = data.draw(st.lists(st.integers(0, books.height), max_size=6))
    ahead = data.draw(st.lists(st.integers(0, 9), max_size=6))
    for tape in (trades, None):
        whole = feed(cfg, books, tape)[0]
        for restart in (False, True): same(feed(cfg, books, tape, cuts, ahead, restart=restart)[0], whole)


@briefly
@given(data=st.data())
def test_merging_trades_early_changes_nothing(data):
    "Told that no book will come before the next one, the processor merges at once; the columns are the same."
    books, trades, cfg = stream(data)
    cuts = data.draw(st.lists(st.integers(0, books.height), max_size=6))
    ahead, whole = data.draw(st.lists(st.integers(0, 9), max_size=6)), feed(cfg, books, trades)[0]
    for restart in (False, True): same(feed(cfg, books, trades, cuts, ahead, restart=restart, early=True)[0], whole)


GAPS = [0, 0, 0.7, 1, 1, 2, 4.999999, 5, 5.000001, 14, 15, 59, 60, 61, 119.5, 120, 299, 300, 301, 320, 620.000001, 621,
        *range(622, 640), 700.5, 901, 1300, 1301, 1301, 1302]
BOOKS = fixed_books(clocks_of(GAPS), 3)
TRADES = fixed_trades(clocks_of(sorted([*GAPS, *GAPS, *np.arange(0, 640, 3.7)])), 4)
SMALL = dict(vpin_bucket_size=0.3, vpin_window_buckets=5, kyle_lambda_window=60, kyle_interval_s=7)
NARROW = SMALL | dict(rolling_windows=(5, 60), spread_regime_window=60)     # the state is no longer than any window


@pytest.mark.parametrize("changes", (SMALL, SMALL | {"output_dtype": "float32"}, NARROW), ids=range(3))
@pytest.mark.parametrize("restart", (False, True))
def test_row_by_row_gives_the_same_bits(restart, changes):
    cfg, books, trades = config(**changes), book_frame(BOOKS), trade_frame(TRADES)
    whole = feed(cfg, books, trades)[0]
    made = feed(cfg, books, trades, range(1, books.height), [0, 2, 0, 1] * books.height, restart=restart)[0]
    same(made, whole)
    assert [c for c in whole.columns if whole[c].null_count() == whole.height] == []


def test_any_one_cut_gives_the_same_bits():
    cfg, books, trades = config(**SMALL), book_frame(BOOKS), trade_frame(TRADES)
    whole = feed(cfg, books, trades)[0]
    for cut in range(1, books.height, 2): same(feed(cfg, books, trades, [cut], [cut % 4], restart=True)[0], whole)


CHILD = """
import json, sys
from pathlib import Path
import polars as pl
from daedalus_etl.core.catalog import Catalogue, select
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.core.state import load_state
from daedalus_etl.features import orderbook
from daedalus_etl.features.stateful import StatefulFeatureProcessor
at = Path(sys.argv[1])
cfg = FeatureConfig(**json.loads((at / "config").read_text()))
state = load_state((at / "state").read_bytes())[0]
made = StatefulFeatureProcessor(cfg, select(Catalogue("orderbook", cfg)), state, trades=True)
made.process(pl.read_ipc(at / "books"), pl.read_ipc(at / "trades")).write_ipc(at / "out")
"""


def test_another_process_goes_on_with_the_same_bits(tmp_path):
    cfg, books, trades = config(**SMALL), book_frame(BOOKS), trade_frame(TRADES)
    whole, cut = feed(cfg, books, trades)[0], 30
    own, past = prefix(books, trades, cut, cfg)
    past = trades[:past.height + 2]                                         # two ran ahead, and wait in the state
    (tmp_path / "state").write_bytes(dump_state(feed(cfg, own, past)[1].state()))
    (tmp_path / "config").write_text(json.dumps(cfg.model_dump(mode="json")))
    books[cut:].write_ipc(tmp_path / "books")
    trades[past.height:].write_ipc(tmp_path / "trades")
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True, cwd=ROOT, timeout=300)
    same(pl.read_ipc(tmp_path / "out").select(whole.columns), whole[cut:])


# ---- the state

@briefly
@given(data=st.data())
def test_states_are_the_same_however_they_came_about(data):
    books, trades, cfg = stream(data)
    cuts = data.draw(st.lists(st.integers(0, books.height), max_size=6))
    ahead = data.draw(st.lists(st.integers(0, 9), max_size=6))
    trades = prefix(books, trades, books.height, cfg)[1]
    whole = dump_state(feed(cfg, books, trades)[1].state())
    for restart in (False, True):
        assert dump_state(feed(cfg, books, trades, cuts, ahead, restart=restart)[1].state()) == whole


def test_states_row_by_row_are_the_same():
    cfg, books, trades = config(**SMALL), book_frame(BOOKS), trade_frame(TRADES)
    for n in range(0, books.height, 5):
        own, past = prefix(books, trades, n, cfg)
        whole = feed(cfg, own, past)[1].state()
        by_row = feed(cfg, own, past, range(1, n), [1, 0] * n, restart=True)[1].state()
        assert dump_state(by_row) == dump_state(whole) == dump_state(processor(cfg, through_bytes(whole), True).state())


def floats_of(state) -> np.ndarray:
    "All floats of a state."
    if isinstance(state, dict): return np.concatenate([floats_of(v) for v in state.values()] or [np.empty(0)])
    return np.atleast_1d(state).astype(float) if np.asarray(state).dtype.kind == "f" else np.empty(0)


def test_nan_and_minus_zero_survive():
    cfg, books, trades = config(**SMALL), book_frame(BOOKS[:40]), trade_frame(TRADES)
    trades = trades.with_columns(amount=pl.when(pl.int_range(pl.len()) % 3 == 0).then(-0.0).otherwise("amount"))
    whole = feed(cfg, books, trades)[0]
    own, past = prefix(books, trades, 20, cfg)
    state = feed(cfg, own, past)[1].state()
    values = floats_of(state)
    assert np.isnan(values).any() and (np.signbit(values) & (values == 0.0)).any()
    back = floats_of(through_bytes(state))
    assert np.array_equal(np.sort(back.view(np.int64)), np.sort(values.view(np.int64)))
    same(feed(cfg, books, trades, [20], restart=True)[0], whole)


# ---- trades that cannot be taken

def test_trades_need_a_processor_for_them():
    with pytest.raises(BadDataError, match="trades"):
        processor(config()).process(book_frame(BOOKS[:2]), trade_frame(TRADES[:2]))


@pytest.mark.parametrize("rows", (TRADES[5::-5], [TRADES[30], TRADES[10]], TRADES[:1]), ids=("back", "down", "late"))
def test_trades_out_of_order_are_refused(rows):
    "Among themselves, or behind a book that was computed already."
    made = processor(config(), trades=True)
    made.process(book_frame(BOOKS[4:6]))
    with pytest.raises(BadDataError, match="out of order"): made.process(book_frame(BOOKS[6:8]), trade_frame(rows))


@pytest.mark.parametrize("column, value", (("price", 0.0), ("price", math.nan), ("amount", -1.0), ("amount", None)))
def test_bad_trades_are_refused(column, value):
    with pytest.raises(BadDataError, match=column):
        silver(BOOKS[:2], [TRADES[0] | {column: value}], config())


# ---- what holds of every column

FIXED = {"books": book_frame(fixed_books(fixed_clocks(300, 1.3), 3)),
         "trades": trade_frame(fixed_trades(fixed_clocks(900, 0.45), 4))}
OTHERS = {pl.UInt16: "n_bid_levels n_ask_levels bid_50pct_depth_levels ask_50pct_depth_levels bid_wall_level "
                     "ask_wall_level",
          pl.UInt32: "ofi_n kyle_lambda_n vpin_bucket_count trade_count_5s trade_count_15s trade_count_60s "
                     "trade_count_300s trade_count_900s",
          pl.Int64: "segment_id", pl.Boolean: "band_truncated", pl.Enum(twin.STATES): "book_state",
          pl.Enum(("tight", "normal", "wide")): "spread_regime"}


@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_dtypes_and_bounds(dtype):
    "Float64 (or Float32, the same values rounded) but for counts, flags and classes; each column has values."
    cfg = config(output_dtype=dtype)
    made, wide = feed(cfg, **FIXED)[0], feed(config(), **FIXED)[0]
    other = {name: d for d, names in OTHERS.items() for name in names.split()}
    floats = pl.Float32 if dtype == "float32" else pl.Float64
    assert made.schema == pl.Schema({c: other.get(c, floats) for c in Catalogue("orderbook", cfg)})
    assert made.schema == pl.Schema(schema_of(Catalogue("orderbook", cfg).values(), dtype))
    same(made, wide.cast(dict(made.schema)))
    hold_all(made, Catalogue("orderbook", cfg))
    assert [c for c in made.columns if made[c].null_count() == made.height] == []


@often
@given(data=st.data())
def test_bounds_hold_on_any_stream(data):
    "Imbalances in [-1, 1], shares in [0, 1], no NaN and no infinity, whatever the books."
    books, trades, cfg = stream(data)
    hold_all(feed(cfg, books, trades)[0], Catalogue("orderbook", cfg))


@drawn
@given(rows=book_rows(max_size=12))
def test_sums_of_levels(rows):
    "Depth, and all bands together, as the list's own sum."
    made = silver(rows, None, config(bands_bps=(3, 10, 500))).to_dicts()
    for row, got in zip(rows, made):
        for name, key in (("bid", "bids"), ("ask", "asks")):
            own = levels(row[key])
            known = own and got["book_state"] not in ("empty", "unsorted")
            assert close(got[f"total_{name}_depth"], math.fsum(q for _, q in own[:20]) if known else None)
            if got["book_state"] not in OK: continue
            inside = math.fsum(q for p, q in own if distance(p, got["mid_price"]) < 500)
            assert close(sum(got[f"{name}_vol_band_{b}bps"] for b in ("0_3", "3_10", "10_500")), inside)


@drawn
@given(rows=book_rows(max_size=12))
def test_cost_rises_with_the_amount(rows):
    "Never falls, but for rounding; and what a larger amount can be traded for, a smaller one can."
    amounts = (1, 50, 700, 10**4, 10**5, 10**7)
    for way in ("buy", "sell"):
        names = [f"cost_to_{way}_{a}_bps" for a in amounts]
        for row, got in zip(rows, silver(rows, None, config(cost_notionals=amounts)).select(names).rows()):
            given_ = [c for c in got if c is not None]
            n = len(row["bids"]) + len(row["asks"])
            assert got[:len(given_)] == tuple(given_)
            assert all(a <= b * (1 + 1e-12) + 4e4 * n * EPS for a, b in zip(given_, given_[1:]))


def test_a_constant_spread_is_in_the_middle():
    made = silver([quoted(k, 99 + k % 3, 101 + k % 3) for k in range(700)], None, config())
    assert set(made["spread_percentile"]) == {0.5} and set(made["spread_regime"]) == {"normal"}
    assert set(made["spread_regime_tight_frac"]) == set(made["spread_regime_wide_frac"]) == {0.0}


def test_vpin_is_at_most_one():
    "Buckets of 0.3: 0.03 and the 0.27 that are left add up to 0.30000000000000004."
    trades = [TRADES[k] | {"side": "buy", "amount": q} for k, q in ((0, 0.03), (1, 0.5))]
    cfg = config(vpin_bucket_size=0.3, vpin_window_buckets=1)
    hold_all(silver(BOOKS[5:6], trades, cfg).select("vpin"), {"vpin": Catalogue("orderbook", cfg)["vpin"]})


def test_a_quiet_day_does_not_end_the_next_one():
    "A day of 1e-8 base makes buckets of 2e-10; a trade of 1 then fills five thousand million of them."
    trades = [trade(-1, amount=1e-8), trade(0, amount=1.0)]
    assert silver([quoted(0, 99, 101)], trades, config(vpin_bucket_size="auto")).height == 1


def hold_book(bids, asks):
    "All columns of a book that is there three times are finite and in bounds."
    hold_all(silver([one_book(bids, asks, k) for k in range(3)], None, config()), Catalogue("orderbook", config()))


def test_a_locked_book_has_no_negative_vwap_spread():
    hold_book([(86.5, 0.54)], [(86.5, 0.4675)])


def test_a_microprice_of_all_the_ask_is_within_bounds():
    hold_book([(1e-300, 10_000.0)], [(431.598831198, 6.09e-13)])


@pytest.mark.parametrize("first", (1e308, 1e-310))
def test_extreme_sizes_leave_no_infinity(first):
    hold_book([(100.0 - k, 1.0 if k else first) for k in range(6)], [(101.0 + k, 1.0) for k in range(6)])


def tape(seed, n):
    "Random trades without clocks that matter."
    rng = np.random.default_rng(seed)
    return TradeArrays(np.arange(n), rng.choice(np.array((-1, 0, 1), np.int8), n), rng.lognormal(-2.0, 1.5, n))


@pytest.mark.parametrize("sides, expected", (((1,), 1.0), ((-1,), 1.0), ((0,), 0.0)))
def test_vpin_of_a_one_sided_tape_is_one(sides, expected):
    rows = [t | {"side": {1: "buy", -1: "SELL", 0: "?"}[sides[0]]} for t in TRADES]
    made = silver(BOOKS, rows, config(vpin_bucket_size=0.3, vpin_window_buckets=5))["vpin"].drop_nulls()
    assert len(made) > 10 and max(abs(v - expected) for v in made) <= 1e-11


@pytest.mark.parametrize("v", (1.0, 0.1, 0.37))
def test_each_bucket_holds_its_size(v):
    "What is bought and sold in the open bucket is what it holds; all buckets together are all trades."
    rec, ratios, trades = np.zeros(1, BUCKET), np.zeros(50), tape(3, 20_000)
    rec["next"] = v
    none, nothing, out, volume = np.empty(0, np.int64), np.empty(0, bool), np.empty((3, 0)), []
    for k in range(trades.t.size):
        vpin_batch(rec, ratios, False, TradeArrays(*(a[k:k + 1] for a in trades)), none, nothing, out)
        s = rec[0]
        assert 0.0 <= s["fill"] < v and abs(s["bought"] + s["sold"] - s["fill"]) <= 1e-12 * v
        volume.append(float(trades.amount[k]))
    assert rec["count"][0] > 1000 and 0.0 <= ratios.min() <= ratios.max() <= 1.0 + 1e-12
    assert rec["count"][0] * v + rec["fill"][0] == pytest.approx(math.fsum(volume), rel=1e-12)


def test_one_feature_alone_has_the_same_bits():
    hold_alone(restart=False)


def test_one_feature_alone_goes_on_with_the_same_bits():
    "From the state of a processor that computed nothing else."
    hold_alone(restart=True)


def hold_alone(restart):
    books, trades = FIXED["books"][:120], FIXED["trades"][:400]
    whole, catalogue = feed(config(**SMALL), books, trades)[0], Catalogue("orderbook", config(**SMALL))
    always = {c.name for c in catalogue.values() if c.always}
    for name in catalogue:
        alone = feed(config(features=(name,), **SMALL), books, trades, [70], restart=restart)[0]
        assert set(alone.columns) == {*always, name}
        same(alone.select(name), whole.select(name))


@pytest.mark.parametrize("category", sorted(ALL))
def test_categories_select_columns(category):
    cfg = config(categories={category})
    chosen = [c.name for c in Catalogue("orderbook", cfg).values() if c.always or c.category == category]
    made = feed(cfg, **FIXED)[0]
    assert made.columns == chosen and len(chosen) > 5
    same(made, feed(config(), **FIXED)[0].select(chosen))


ALIASES = {
    "total_bid_volume": "total_bid_depth", "total_ask_volume": "total_ask_depth", "book_pressure": "total_imbalance",
    "bid_slope": "bid_slope_simple", "ask_slope": "ask_slope_simple", "ofi_step": "ofi", "mlofi_step": "mlofi",
    "log_return_step": "log_return", "order_flow_toxicity": "vpin", "lambda_like": "spread_to_depth_5bps",
    "amihud_like": "spread_to_depth_10bps", "bid_herfindahl": "bid_concentration",
    "ask_herfindahl": "ask_concentration"}


@pytest.mark.parametrize("alias, name", ALIASES.items())
def test_aliases_resolve(alias, name):
    "On selection; what is written bears the column's own name, and no alias is a column."
    cfg = config(features=(alias,))
    assert Catalogue("orderbook", cfg)[alias].name == name and alias not in set(Catalogue("orderbook", cfg))
    made = feed(cfg, **FIXED)[0]
    assert name in made.columns and alias not in made.columns and made[name].null_count() < made.height


# ---- a frame without a clock

@briefly
@given(rows=book_rows(max_size=25))
def test_structural_features_of_any_frame(rows):
    "The same bits as of the stream's processor, whatever form the lists have."
    cfg, books = config(), book_frame(rows)
    names = [c.name for c in structural_columns(cfg)]
    whole = feed(cfg, books)[0].select(names)
    bare = books.select("bids", "asks")
    level = pl.concat_list(pl.element().struct.field("price"), pl.element().struct.field("size"))
    pairs = bare.select(pl.all().list.eval(level))
    texts = pairs.select(pl.all().list.eval(pl.element().list.eval(pl.element().map_elements(repr, pl.String))))
    for data in (bare, pairs, texts): same(extract_structural_features(data, cfg).collect().select(names), whole)
    narrow = config(output_dtype="float32")
    same(extract_structural_features(bare.lazy(), narrow).select("mid_price").collect(),
         whole.select("mid_price").cast(pl.Float32))


@pytest.mark.parametrize("bids", ([(0.0, 1.0)], [(-1.0, 1.0)], [(math.nan, 1.0)], [(1.0, -1.0)], [(1.0, math.inf)]))
def test_bad_levels_are_refused(bids):
    books = book_frame([one_book([(1.0, 1.0)], [(3.0, 1.0)]), one_book(bids, [(3.0, 1.0)])])
    with pytest.raises(BadDataError, match="level"): extract_structural_features(books).collect()


@pytest.mark.parametrize("books", (pl.DataFrame({"bids": [[1.0]]}), pl.DataFrame({"bids": ["x"], "asks": ["y"]})))
def test_no_books_are_refused(books):
    with pytest.raises(SchemaError): extract_structural_features(books).collect()


# ---- every parameter does something

STATIC = {"use_dynamic_spread_regime": False}
PARAMETERS = [  # name, what it is changed among, its other value, a column whose values (or existence) must differ
    ("categories", {}, {"structural"}, "ofi"), ("features", {}, ("mid_price",), "ofi"),
    ("depth_levels", {}, 3, "total_bid_depth"), ("imbalance_levels", {}, (1, 2), "imbalance_L2"),
    ("bands_bps", {}, (5, 10, 25, 50, 99), "imb_band_50_99bps"), ("cost_notionals", {}, (7.5,), "cost_to_buy_7.5_bps"),
    ("smart_depth_decay", {}, 99.0, "smart_bid_depth"), ("ofi_levels", {}, 9, "mlofi"),
    ("ofi_decay_alpha", {}, 0.4, "mlofi"), ("ofi_per_level", {}, False, "ofi_L0"),
    ("rolling_windows", {}, (5, 16), "tfi_16s"), ("max_gap_s", {}, 1, "segment_id"),
    ("kyle_lambda_window", {}, 60, "kyle_lambda"), ("kyle_lambda_window", {}, 60, "ofi_beta"),
    ("kyle_interval_s", {}, 2, "kyle_lambda"), ("enable_vpin", {}, False, "vpin"),
    ("vpin_bucket_size", {}, 2.0, "vpin"), ("vpin_bucket_size", {}, "auto", "vpin_bucket_count"),
    ("vpin_window_buckets", {}, 49, "vpin"), ("use_dynamic_spread_regime", {}, False, "spread_regime"),
    ("spread_regime_window", {}, 60, "spread_percentile"), ("spread_regime_window", {}, 60, "depth_0_5bps_sigma"),
    ("spread_regime_window", {}, 60, "spread_regime_wide_frac"),
    ("spread_tight_percentile", {}, 0.4, "spread_regime"), ("spread_wide_percentile", {}, 0.7, "spread_regime"),
    ("spread_tight_threshold_bps", STATIC, 1.0, "spread_regime"),
    ("spread_wide_threshold_bps", STATIC, 5.5, "spread_regime"), ("clock", {}, "timestamp", "segment_id"),
    ("output_dtype", {}, "float32", "mid_price")]
ELSEWHERE = {  # parameters that no column of a single stream of books and trades depends on: who consumes them
    "max_levels": "a limit: `test_too_many_levels_are_refused`",
    "drop_raw_book_arrays": "which bronze columns the transform writes", "dedup_window_s": "which trades are read",
    "max_bad_fraction": "which partitions are refused when they are read", "bar_durations": "bars", "bars": "bars",
    "fill_empty": "bars", "bar_blocks": "bars", "bar_window": "bars", "large_trade": "bars", "footprint_tick": "bars",
    "value_area": "bars", "label_horizons": "labels", "barrier_bps": "labels", "barrier_horizon": "labels",
    "resample_frequency": "rows of the transform's output",
    "resample_max_staleness": "rows of the transform's output", "normalize_quotes": "names of symbols",
    "overrides": "resolved for a stream before its processor is made: `for_symbol`"}


def by_clock(cfg):
    "The fixed stream in the order of the configuration's clock."
    return {k: v.sort(cfg.clock, maintain_order=True) for k, v in FIXED.items()}


@pytest.mark.parametrize("name, base, value, column", [pytest.param(*p, id=f"{p[0]} {p[3]}") for p in PARAMETERS])
def test_every_parameter_changes_something(name, base, value, column):
    one, other = config(**base), config(**base | {name: value})
    a, b = (feed(cfg, **by_clock(cfg))[0] for cfg in (one, other))
    assert getattr(one, name) != getattr(other, name)
    there = {column in a.columns, column in b.columns}
    assert there == {True, False} or a[column].dtype != b[column].dtype or not a[column].equals(b[column])


def test_every_parameter_is_in_the_table():
    names = {p[0] for p in PARAMETERS}
    assert names | set(ELSEWHERE) == set(FeatureConfig.model_fields) and not names & set(ELSEWHERE)


@pytest.mark.parametrize("name", [n for n, p in FeatureConfig.model_fields.items() if n in vars(twin.CONFIG)])
def test_defaults_are_those_of_the_twin(name):
    got, want = getattr(FeatureConfig(), name), getattr(twin.CONFIG, name)
    assert set(got) == set(want) if name == "categories" else got == want


@pytest.mark.parametrize("where", ("bids", "asks"))
def test_too_many_levels_are_refused(where):
    few = dict(max_levels=20, depth_levels=10, ofi_levels=10, imbalance_levels=(1,))
    rows = [one_book([(1.0, 1.0)], [(2.0, 1.0)]) | {where: side(1.0, 0.01, n, n)} for n in (20, 21)]
    silver(rows[:1], None, config(**few))
    with pytest.raises(BadDataError, match="max_levels=20") as e: silver(rows, None, config(**few))
    assert where in str(e.value)


# ---- windows do not drift

UPDATES, BATCH, STEP_US, WIDTH_S = 2_000_000, 50_000, 100_000, 60


def updates(rng, k):
    "Batch `k` of values; one in a hundred of the first tenth is of the order of 1e12."
    x = rng.normal(size=(BATCH, len(BOOK_VALUES))) + 0.3
    if k * 10 < UPDATES // BATCH: x[rng.random(x.shape) < 0.01] *= 1e12
    x[:, SPREAD] = np.abs(x[:, SPREAD])
    return x


def drive(*kernels):
    "(last outputs of each of [(window, batch, columns)], values of the last batch) after all updates."
    tape, rng, windows = Tape(WIDTH_S, len(BOOK_VALUES), 1), np.random.default_rng(5), [w for w, *_ in kernels]
    for k in range(UPDATES // BATCH):
        x, outs = updates(rng, k), []
        lo, hi = tape.extend(BATCH, windows)
        rows = tape.rows
        rows.t[lo:hi], rows.x[lo:hi] = SATURDAY + np.arange(k * BATCH, (k + 1) * BATCH) * STEP_US, x
        rows.fresh[lo:hi] = lo == 0
        for i, (_, batch, columns) in enumerate(kernels):
            outs.append(np.empty((columns, BATCH)))
            windows[i] = windows[i]._replace(suffix=batch(windows[i], rows, lo, hi, outs[-1]))
    return outs, x


def moments(win, rows, lo, hi, out):
    return moment_window_batch(win, rows, BID_SLOPE, lo, hi, out)


def held_to(got, want, gross):
    assert abs(got - want) <= 1e-12 * gross, (got, want, gross)


def deviations(x):
    "Mean and sum of squared deviations."
    mean = math.fsum(x) / len(x)
    return mean, math.fsum((v - mean)**2 for v in x)


def check_moments(mean, std, x):
    want, m2 = deviations(x)
    held_to(mean, want, math.fsum(map(abs, x)) / len(x))
    held_to(std**2 * (len(x) - 1), m2, math.fsum(v * v for v in x))


def test_windows_do_not_drift():
    """After two million updates, huge ones among the first, the sums of the last windows are right to 1e-12 of the sum
    of absolute values, and second moments to 1e-12 of the sum of squares."""
    (rolled, moved, line), x = drive(
        (new_window(WIDTH_S, ACCUMULATORS), roll_window_batch, 6), (new_window(WIDTH_S, 9), moments, 6),
        (new_window(WIDTH_S, PAIR), beta_window_batch, 3))
    inside = WIDTH_S * SECOND // STEP_US
    for last in range(BATCH - 700, BATCH, 37):
        own = x[last - inside + 1:last + 1]
        ofi, r = own[:, OFI].tolist(), own[:, RETURN].tolist()
        held_to(rolled[0, last], math.fsum(ofi), math.fsum(map(abs, ofi)))
        held_to(rolled[2, last]**2, math.fsum(v * v for v in r), math.fsum(v * v for v in r))
        check_moments(rolled[4, last], rolled[3, last], r)
        spread = x[last - inside:last, SPREAD].tolist()                     # the row before holds at the left edge
        held_to(rolled[5, last], math.fsum(spread) / inside, math.fsum(spread) / inside)
        for k, column in enumerate(range(BID_SLOPE, COG + 1)):
            check_moments(moved[2 * k, last], moved[2 * k + 1, last], own[:, column].tolist())
        slope, r2, n = twin.ols(list(zip(ofi, r)))
        sxx, syy = deviations(ofi)[1], deviations(r)[1]
        assert line[2, last] == n == inside
        held_to(line[0, last], slope, math.sqrt(syy / sxx))
        held_to(line[1, last], r2, 1.0)
