"""What every catalogued column of trades, ticker and their bars must obey, whatever its formula.

The truth is `naive` (slow, written from the definitions alone). Absolute tolerances are listed in `absolute`, each
with its reason; everything else is held to a relative 1e-12 with the same nulls, or to the same bits.
"""
import math
import random
import sys

import naive
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import SECOND
from strategies import SATURDAY, multi_stream, ticker_rows, trade_rows

import daedalus_etl
from daedalus_etl.core.base import Notes, TransformContext
from daedalus_etl.core.catalog import Catalogue, schema_of, select
from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.errors import BadDataError
from daedalus_etl.core.state import dump_state, load_state
from daedalus_etl.features.bars import BarsProcessor, fill_empty_bars
from daedalus_etl.features.frames import PROCESSORS, feature_frame
from daedalus_etl.transforms.bars import BarAggregationTransform

CHANNELS, CLOCKS, DURATIONS = ("trades", "ticker"), ("capture_ts", "timestamp"), (60, 300, 3600)
RTOL, EPS = 1e-12, sys.float_info.epsilon
UTC = pl.Datetime("us", "UTC")
BASE = {"collected_at": pl.Int64, "capture_ts": UTC, "timestamp": pl.Int64, "exchange": pl.String, "symbol": pl.String}
NUMBERS = {"trades": "price amount cost", "ticker": "bid ask bid_volume ask_volume last open high low close vwap "
                                                    "base_volume quote_volume change percentage"}
TEXTS = {"trades": {"trade_id": pl.String, "side": pl.String}, "ticker": {}}
SCHEMA = {c: BASE | TEXTS[c] | dict.fromkeys(NUMBERS[c].split(), pl.Float64) for c in CHANNELS}
ROWS = {"trades": trade_rows, "ticker": ticker_rows}
SILVER = {"trades": naive.trades, "ticker": naive.ticker}
GOLD = {"trades": naive.trade_bars, "ticker": naive.ticker_bars}


# ---- running the package

def config(**changes) -> FeatureConfig:
    return FeatureConfig(**{"bar_durations": DURATIONS} | changes)


def frame(channel, rows) -> pl.DataFrame:
    "Bronze rows (dicts) as a frame; `nr` numbers them and passes through."
    columns = {k: pl.Series(k, [r.get(k) for r in rows], pl.Int64 if d == UTC else d).cast(d)
               for k, d in SCHEMA[channel].items()}
    return pl.DataFrame(columns).with_columns(nr=pl.int_range(pl.len(), dtype=pl.Int64))


def silver(channel, rows, cfg, states=None, notes=None) -> pl.DataFrame:
    rows = rows if isinstance(rows, pl.DataFrame) else frame(channel, rows)
    context = None if notes is None else TransformContext(notes=notes)
    return feature_frame(channel, rows.lazy(), cfg, states, context=context).collect()


def ordered(channel, rows, clock="capture_ts"):
    return naive.order(rows, clock, "trade_id" if channel == "trades" else None)


def through_bytes(state: dict) -> dict:
    return load_state(dump_state(state))[0]


def pieces(data: pl.DataFrame, cuts) -> list[pl.DataFrame]:
    edges = [0, *sorted(cuts), data.height]
    return [data[a:b] for a, b in zip(edges, edges[1:])]


def process(channel, parts, cfg, *, restart=False) -> pl.DataFrame:
    "Silver of the ordered `parts`, one after the other; `restart`: a new processor from the state's bytes for each."
    columns = select(Catalogue(channel, cfg))
    processor, out = PROCESSORS[channel](cfg, columns), []
    for part in parts:
        out.append(processor.process(part))
        if restart: processor = PROCESSORS[channel](cfg, columns, through_bytes(processor.state()))
    return pl.concat(out)


def process_bars(channel, parts, cfg, *, restart=False) -> dict[int, pl.DataFrame]:
    "All bars of the ordered `parts` by duration, the open ones at the end."
    processor, out = BarsProcessor(channel, cfg, DURATIONS), {d: [] for d in DURATIONS}
    for part in parts:
        for d, bars in processor.process(part).items(): out[d].append(bars)
        if restart: processor = BarsProcessor(channel, cfg, DURATIONS, through_bytes(processor.state()))
    return {d: processor.frame(d, out[d]) for d in DURATIONS}


# ---- comparing

def bits(data: pl.DataFrame) -> pl.DataFrame:
    "Floats as the integers of their bits: 0.0 is not -0.0."
    def exact(s):
        if not s.dtype.is_float(): return s
        raw = s.fill_null(0.0).to_numpy()
        return pl.DataFrame({"v": raw.view(f"i{raw.itemsize}"), "ok": s.is_not_null()}).select(
            pl.when("ok").then("v").alias(s.name)).to_series()
    return pl.DataFrame([exact(s) for s in data])


def same(a: pl.DataFrame, b: pl.DataFrame) -> None:
    assert a.schema == b.schema
    a, b = bits(a), bits(b)
    differ = [c for c in a.columns if not a[c].equals(b[c], null_equal=True)] if a.height == b.height else "height"
    assert not differ, f"{differ}\n{a.select(differ) if a.height == b.height else a}\n{b}"


def plain(data: pl.DataFrame) -> list[dict]:
    "Rows with times as epoch microseconds, as naive has them."
    return data.with_columns(pl.col(UTC).dt.epoch("us")).to_dicts()


def close(got, want, atol=0.0) -> bool:
    if got is None or want is None or isinstance(want, (bool, str)): return got is want or got == want
    return math.isclose(got, want, rel_tol=RTOL, abs_tol=atol)


def meets(got: list[dict], want: list[dict], columns, atol=lambda n, name: 0.0) -> None:
    "Each of `columns` in each row: null where the truth is, else near it."
    assert len(got) == len(want)
    wrong = [(n, c, g[c], w[c]) for n, (g, w) in enumerate(zip(got, want)) for c in columns
             if not close(g[c], w[c], atol(n, c))]
    assert not wrong, wrong[:5]


def largest(pairs) -> float:
    return max((abs(v) for _, v in pairs), default=0.0)


HELD = {"mid_price_std": "mid_price", "vol_imbalance_mean": "volume_imbalance"}


def absolute(channel, want, cfg):
    """Absolute tolerances of silver, by row and column; 0 for all that are not named.

    * `tfi`: B - S cancels; B and S, sums of n amounts, are each right to n eps, so tfi to n eps of 1.
    * `mid_price_std`: a deviation is the difference of two prices, right to eps of the price itself; so is the root of
      their mean square. The condition of the data, whatever the algorithm.
    * `vol_imbalance_mean`: terms of both signs cancel; right to eps of the largest term.
    The factor 32 stands for the growth of rounding over the merges of a window."""
    clocks, segs = [naive.clock_us(r, cfg.clock) for r in want], [r["segment_id"] for r in want]

    def of(n, name):
        stem, _, width = name.rpartition("_")
        if stem == "tfi": return want[n][f"trade_count_{width}"] * EPS
        if stem not in HELD: return 0.0
        values = [r[HELD[stem]] for r in want]
        return 32 * EPS * largest(naive.held(values, clocks, segs, n, int(width[:-1])))
    return of if channel == "trades" or cfg.rolling_windows else lambda n, name: 0.0


def absolute_bars(want):
    "As `absolute`, for bars: `trade_imbalance` is a `tfi`."
    return lambda n, name: want[n]["n_obs"] * EPS if name == "trade_imbalance" else 0.0


# ---- fixed streams that visit the edges

def row(seconds, **values):
    us = SATURDAY + round(seconds * SECOND)
    times = {"collected_at": us // 1000, "capture_ts": us, "timestamp": us // 1000}
    return times | {"exchange": "x", "symbol": "A"} | values


def trade(seconds, side="buy", price=100.0, amount=1.0, trade_id=None, **more):
    return row(seconds, side=side, price=price, amount=amount, trade_id=trade_id, **more)


def quote(seconds, bid=99.0, ask=101.0, bid_volume=1.0, ask_volume=2.0, **more):
    return row(seconds, bid=bid, ask=ask, bid_volume=bid_volume, ask_volume=ask_volume, **more)


US1 = 1e-6
TIMES = {
    "one": [0], "one clock": [7.5] * 12, "empty": [],
    "window edges": [0, 5 - US1, 5, 5 + US1, 10, 15 - US1, 15, 60, 65, 300, 305, 360, 660, 900, 960 - US1, 960],
    "gaps of exactly max_gap_s": [10, 310, 610.000001, 910.000001, 1210, 1510.000001, 1510.000001, 1810.000002],
    "jumps over blocks": [4, 9, 11, 30, 31, 46, 120, 121, 299, 598, 897, 1196, 1200, 1500, 1501],
    "block edges": [k * 5 + e for k in range(1, 25) for e in (-US1, 0, US1)],
    "every second": list(range(0, 330, 1)),
}


def fixed(channel, times, seed=5):
    "Random values (outliers among them) at given times, the same in each run."
    rng, price, out = random.Random(seed), 61_234.5, []
    for t in times:
        price = 1e12 if rng.random() < 0.02 else round(61_234.5 * math.exp(rng.gauss(0, 1e-4)), 2)
        if channel == "trades":
            side = rng.choice(("buy", "sell", "SELL", "", None))
            out.append(trade(t, side, price, rng.choice((0.0, 0.1, 1.0, rng.random()))))
        else:
            bid = rng.choice((price - 0.5, price - 0.5, price, price + 1, None, 0.0))
            sizes = [rng.choice((0.0, None, rng.random(), 3.0)) for _ in range(2)]
            out.append(quote(t, bid, rng.choice((price + 0.5, price + 0.5, price, None)), *sizes))
    return out


ADVERSARIAL = [pytest.param(channel, fixed(channel, times), id=f"{channel} {name}")
               for channel in CHANNELS for name, times in TIMES.items()]
LONG = {channel: fixed(channel, TIMES["block edges"] + TIMES["every second"][130:] + [700, 701, 701, 5000], seed=9)
        for channel in CHANNELS}
both = pytest.mark.parametrize("channel", CHANNELS)
drawn, briefly = settings(max_examples=25), settings(max_examples=10)      # the latter where an example is many runs


# ---- every column against its twin

def check_silver(channel, rows, cfg):
    rows = ordered(channel, rows, cfg.clock)
    got, want = silver(channel, rows, cfg), SILVER[channel](rows, cfg.rolling_windows, cfg.max_gap_s, cfg.clock)
    meets(plain(got), want, Catalogue(channel, cfg), absolute(channel, want, cfg))


def check_gold(channel, rows, cfg):
    rows = ordered(channel, rows, cfg.clock)
    for d, bars in process_bars(channel, [frame(channel, rows)], cfg).items():
        want = GOLD[channel](rows, d, cfg.max_gap_s, cfg.clock)
        meets(plain(bars), want, Catalogue(f"{channel}_bars", cfg), absolute_bars(want))


@both
def test_every_column_has_a_twin(channel):
    cfg, rows = config(rolling_windows=(3, 86_400)), LONG[channel][:3]
    assert set(Catalogue(channel, cfg)) <= set(SILVER[channel](rows, cfg.rolling_windows)[0])
    assert set(Catalogue(f"{channel}_bars", cfg)) <= set(GOLD[channel](rows, 60)[0])


@both
@drawn
@given(data=st.data())
def test_silver_meets_the_twin(channel, data):
    clock = data.draw(st.sampled_from(CLOCKS))
    cfg = config(clock=clock, max_gap_s=data.draw(st.sampled_from((300, 300, 5, 10**6))))
    check_silver(channel, data.draw(ROWS[channel](max_size=80, clock=clock)), cfg)


@both
@drawn
@given(data=st.data())
def test_bars_meet_the_twin(channel, data):
    clock = data.draw(st.sampled_from(CLOCKS))
    cfg = config(clock=clock, max_gap_s=data.draw(st.sampled_from((300, 300, 5, 10**6))))
    check_gold(channel, data.draw(ROWS[channel](max_size=80, clock=clock)), cfg)


@pytest.mark.parametrize("channel, rows", ADVERSARIAL)
def test_fixed_streams_meet_the_twin(channel, rows):
    check_silver(channel, rows, config(rolling_windows=(1, 5, 60, 300, 86_400)))
    check_gold(channel, rows, config())


@both
def test_nearly_constant_prices(channel):
    "A window of equal prices has a deviation of exactly 0; one of prices an ulp apart never a negative or NaN one."
    price, up = 61_234.56, math.nextafter(61_234.56, math.inf)
    rows = {"trades": [trade(k, price=price if k % 3 else up) for k in range(60)],
            "ticker": [quote(k, p, p) for k in range(60) for p in [price if k < 30 or k % 3 else up]]}[channel]
    check_silver(channel, rows, config())
    if channel == "ticker": assert set(silver(channel, rows[:30], config())["mid_price_std_15s"]) == {None, 0.0}


# ---- causality and splits

@both
@briefly
@given(data=st.data())
def test_a_prefix_gives_a_prefix(channel, data):
    clock = data.draw(st.sampled_from(CLOCKS))
    rows, cfg = data.draw(ROWS[channel](max_size=60, clock=clock)), config(clock=clock)
    whole, cut = frame(channel, rows), data.draw(st.integers(0, len(rows)))
    same(silver(channel, whole[:cut], cfg), silver(channel, whole, cfg)[:cut])
    now, later = (process_bars(channel, [w], cfg) for w in (whole[:cut], whole))
    for d in DURATIONS:
        done = now[d].filter("is_complete")
        same(done, later[d].head(done.height))


@both
@briefly
@given(data=st.data())
def test_splits_give_the_same_bits(channel, data):
    clock = data.draw(st.sampled_from(CLOCKS))
    rows = frame(channel, data.draw(ROWS[channel](max_size=60, clock=clock)))
    cfg = config(clock=clock, output_dtype=data.draw(st.sampled_from(("float64", "float32"))))
    parts = pieces(rows, data.draw(st.lists(st.integers(0, rows.height), max_size=6)))
    whole, bars = process(channel, [rows], cfg), process_bars(channel, [rows], cfg)
    for restart in (False, True):
        same(process(channel, parts, cfg, restart=restart), whole)
        for d, made in process_bars(channel, parts, cfg, restart=restart).items(): same(made, bars[d])


@both
@pytest.mark.parametrize("restart", (False, True))
def test_row_by_row_gives_the_same_bits(channel, restart):
    cfg, rows = config(), frame(channel, LONG[channel][::3])
    single = pieces(rows, range(1, rows.height))
    same(process(channel, single, cfg, restart=restart), process(channel, [rows], cfg))
    bars = process_bars(channel, [rows], cfg)
    for d, made in process_bars(channel, single, cfg, restart=restart).items(): same(made, bars[d])


@both
@briefly
@given(data=st.data())
def test_states_hand_on_at_any_place(channel, data):
    """`feature_frame` over parts of a stream, repeated ids included; what is a repeat then depends on the window alone
    (it spans the stream here), for within one partition a repeat counts at any age."""
    clock = data.draw(st.sampled_from(CLOCKS))
    rows = data.draw(trade_rows(max_size=50, clock=clock, repeats=True) if channel == "trades"
                     else ticker_rows(max_size=50, clock=clock))
    cfg, states = config(clock=clock, dedup_window_s=10**9), {}
    data_rows = frame(channel, rows)
    parts = pieces(data_rows, data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    out = []
    for part in parts:
        out.append(silver(channel, part, cfg, states))
        states = {k: through_bytes(v) for k, v in states.items()}
    same(pl.concat(out), silver(channel, data_rows, cfg))


@both
def test_states_are_the_same_however_they_came_about(channel):
    cfg, rows = config(), frame(channel, LONG[channel])
    columns = select(Catalogue(channel, cfg))
    a, b = (PROCESSORS[channel](cfg, columns) for _ in range(2))
    a.process(rows)
    for part in pieces(rows, range(7, rows.height, 7)): b.process(part)
    c = PROCESSORS[channel](cfg, columns, through_bytes(a.state()))
    assert dump_state(a.state()) == dump_state(b.state()) == dump_state(c.state())


# ---- streams and order

@both
@briefly
@given(data=st.data())
def test_interleaved_streams_are_apart(channel, data):
    rows = data.draw(multi_stream(ROWS[channel](max_size=25)))
    cfg, mixed = config(), frame(channel, rows)
    parts = sorted(naive.streams(rows))
    alone = [mixed.filter((pl.col("exchange") == e) & (pl.col("symbol") == s)) for e, s in parts]
    same(silver(channel, mixed, cfg), pl.concat([silver(channel, a, cfg) for a in [mixed[:0], *alone]]))
    if not rows: return
    gold = transform_bars(channel, mixed, cfg)
    for d in DURATIONS:
        names = [(pl.lit(e).alias("exchange"), pl.lit(s).alias("symbol")) for e, s in parts]
        own = [process_bars(channel, [a], cfg)[d].select(*n, pl.all()) for n, a in zip(names, alone)]
        same(gold[d], pl.concat(own))


@both
def test_no_rows_make_no_bars(channel):
    for bars in transform_bars(channel, frame(channel, []), config()).values(): assert bars.height == 0
    assert silver(channel, [], config()).height == 0


def transform_bars(channel, rows: pl.DataFrame, cfg) -> dict[int, pl.DataFrame]:
    "Bars of bronze-like rows by the transform itself."
    places = dict(inputs={channel: InputConfig(name=channel, path="in")},
                  outputs={"gold": OutputConfig(name="gold", path="lake/gold/b")})
    transform = BarAggregationTransform(TransformConfig(name="bars", **places))
    made = transform.transform({channel: rows.lazy()}, TransformContext(feature_config=cfg))
    return {d: made[f"gold/{d}s"].collect() for d in DURATIONS}


@both
@briefly
@given(data=st.data())
def test_input_order_counts_among_equals_only(channel, data):
    clock = data.draw(st.sampled_from(CLOCKS))
    rows, cfg = data.draw(ROWS[channel](max_size=40, clock=clock, shuffled=True)), config(clock=clock)
    rows = [r | {"collected_at": i} for i, r in enumerate(rows)]                # tells where a row stood
    same(silver(channel, rows, cfg).drop("nr"), silver(channel, ordered(channel, rows, clock), cfg).drop("nr"))
    if not rows: return
    made, want = (transform_bars(channel, frame(channel, r), cfg) for r in (rows, ordered(channel, rows, clock)))
    for d in DURATIONS: same(made[d], want[d])


def ids(rows, **changes) -> list:
    return silver("trades", rows, config(**changes))["trade_id"].to_list()


def test_order_of_ids():
    "Null, empty, non-numeric and id 0.. : what is no number comes first in input order, numbers go by value."
    rows = [trade(0, trade_id=i) for i in ("10", "9", "b", None, "100", "", "a", "8")]
    assert ids(rows) == ["b", None, "", "a", "8", "9", "10", "100"]
    assert ids(rows[::-1]) == ["a", "", None, "b", "8", "9", "10", "100"]


def test_order_of_keys():
    "Clock first, then the exchange's time (null first), then the id."
    rows = [trade(1, trade_id="1"), trade(0, trade_id="2", timestamp=7), trade(0, trade_id="3", timestamp=5),
            trade(0, trade_id="9", timestamp=None), trade(0, trade_id="4", timestamp=5)]
    assert ids(rows) == ["9", "3", "4", "2", "1"]
    by_event = [trade(s, trade_id=i, timestamp=t) for s, i, t in ((1, "1", 3), (0, "2", 7), (5, "3", 5))]
    assert ids(by_event, clock="timestamp") == ["1", "3", "2"]


def test_nonce_zero_and_null_sort_first():
    rows = frame("ticker", [quote(0, bid=float(k)) for k in range(1, 6)])
    rows = rows.with_columns(nonce=pl.Series([3, 0, 2, None, 10]))
    assert silver("ticker", rows, config())["bid"].to_list() == [2.0, 4.0, 3.0, 1.0, 5.0]


def test_equal_tickers_keep_their_order():
    rows = [quote(0, bid=float(k)) for k in (5, 3, 4, 4)]
    assert silver("ticker", rows, config())["bid"].to_list() == [5.0, 3.0, 4.0, 4.0]


# ---- duplicates

def sent(seconds, trade_id="a", **more):
    "A trade captured at `seconds`, for the first time or again: the exchange's time is part of what was sent."
    return trade(seconds, trade_id=trade_id, **{"timestamp": SATURDAY // 1000} | more)


def two_runs(first, second, **changes):
    "Kept ids, notes of both runs: `first` and `second` are two partitions of a stream."
    states, notes, kept = {}, [Notes(), Notes()], []
    for rows, note in zip((first, second), notes):
        kept.append(silver("trades", rows, config(**changes), states, note)["nr"].to_list())
    return kept, notes


def test_repeats_within_a_partition_at_any_age():
    (kept, _), (notes, _) = two_runs([sent(0), sent(5000, "b"), sent(5001), sent(9000)], [])
    assert (kept, notes.duplicates, notes.quarantined) == ([0, 1], 2, [])


@pytest.mark.parametrize("age, kept", ((899.999999, []), (900, [0]), (901, [0])))
def test_repeats_across_partitions_within_the_window(age, kept):
    (_, second), (_, notes) = two_runs([sent(0)], [sent(age)])
    assert (second, notes.duplicates, notes.quarantined) == (kept, 1 - len(kept), [])


def test_a_repeat_renews_the_window():
    "An earlier row counts as seen whether it was kept or not."
    (_, second), _ = two_runs([sent(0), sent(800)], [sent(1600)])
    assert second == []


def test_conflicting_repeats_are_quarantined():
    rows = [sent(0), sent(1, price=7.0), sent(2, side="sell"), sent(3, amount=2.0), sent(4, timestamp=None), sent(5)]
    (kept, _), (notes, _) = two_runs(rows, [])
    assert (kept, notes.duplicates) == ([0], 1)
    bad = pl.concat(notes.quarantined)
    assert bad["row"].to_list() == [1, 2, 3, 4]
    assert bad["reason"].unique().to_list() == ["conflicting_repeat"]


def test_conflict_with_a_row_of_the_partition_before():
    (_, second), (_, notes) = two_runs([sent(0)], [sent(1, price=7.0), sent(2)])
    assert (second, notes.duplicates, [q["price"].to_list() for q in notes.quarantined]) == ([], 1, [[7.0]])


def test_a_repeat_is_compared_with_the_row_that_was_kept():
    "The row at 0 is too old to matter at 2000, which is kept; what equals it is no conflict."
    (_, second), (_, notes) = two_runs([sent(0, price=1.0)], [sent(2000, price=2.0), sent(2100, price=2.0)])
    assert (second, notes.duplicates, notes.quarantined) == ([0], 1, [])


@pytest.mark.parametrize("prices", ["112", "121", "122", "1212", "1221", "12321", "1 2 1 2 2"])
def test_counts_of_repeats_do_not_depend_on_where_the_tape_is_cut(prices):
    "Equal ids of several contents, and another trade between them; the first content of an id is the one that counts."
    rows = [sent(300 * k, "b" if p == " " else "a", price=float(p.strip() or 9)) for k, p in enumerate(prices)]
    def fates(first, second):
        kept, notes = two_runs(first, second)
        bad = [row for n in notes for q in n.quarantined for row in q.select("price", "reason").rows()]
        return [*kept[0], *(len(first) + k for k in kept[1])], sum(n.duplicates for n in notes), bad
    whole = fates(rows, [])
    assert whole[1] + len(whole[2]) + len(whole[0]) == len(rows)
    assert [fates(rows[:k], rows[k:]) for k in range(1, len(rows))] == [whole] * (len(rows) - 1)


def test_late_rows_are_quarantined_once():
    "A row before the last one of the state cannot be fed any more; one fault, one place, its own columns."
    (_, second), (_, notes) = two_runs([sent(10, "5")], [sent(9, "5"), sent(9, "6"), sent(11, "4")])
    assert second == [2]
    late = pl.concat(q.select("row", "reason") for q in notes.quarantined if "late" in q["reason"])
    rejected = pl.concat(q["row"] for q in notes.quarantined)
    assert rejected.n_unique() == len(rejected) and notes.duplicates + len(rejected) == 2, late
    assert all("__row__" not in q.columns for q in notes.quarantined)


def test_empty_and_null_ids_never_repeat():
    (kept, second), _ = two_runs([sent(0, i) for i in ("", None, "", None)], [sent(0, i) for i in ("", None)])
    assert sorted(kept) == [0, 1, 2, 3] and sorted(second) == [0, 1]


def test_equal_quotes_are_all_kept():
    assert silver("ticker", [quote(0)] * 4, config()).height == 4


@drawn
@given(trade_rows(max_size=50, repeats=True), st.integers(0, 50))
def test_dedup_of_two_partitions(rows, cut):
    "Kept, dropped and conflicting rows of a stream in two partitions."
    parts = [[r | {"partition": p} for r in part] for p, part in enumerate((rows[:cut], rows[cut:]))]
    kept, dropped, conflicting = naive.dedup_trades(parts[0] + parts[1])
    got, notes = two_runs(*parts)
    assert [parts[p][i] for p in (0, 1) for i in got[p]] == kept
    assert sum(n.duplicates + sum(q.height for q in n.quarantined) for n in notes) == len(dropped) + len(conflicting)


# ---- what holds of every column

@both
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_dtypes_bounds_and_holes(channel, dtype):
    cfg = config(output_dtype=dtype)
    lazy = feature_frame(channel, frame(channel, LONG[channel]).lazy(), cfg)
    made, expected = lazy.collect(), schema_of(Catalogue(channel, cfg).values(), dtype)
    assert made.schema == lazy.collect_schema() == pl.Schema(frame(channel, []).schema | expected)
    hold_all(made, Catalogue(channel, cfg))
    wide = silver(channel, LONG[channel], config()).select(*expected)
    same(made.select(*expected), wide.cast(expected))
    for bars in process_bars(channel, [frame(channel, LONG[channel])], cfg).values():
        assert bars.schema == pl.Schema(schema_of(Catalogue(f"{channel}_bars", cfg).values()))
        hold_all(bars, Catalogue(f"{channel}_bars", cfg))


def hold_all(made: pl.DataFrame, catalogue) -> None:
    "Bounds hold and no column has NaN or infinities."
    for c in catalogue.values():
        values = made[c.name].drop_nulls()
        if values.dtype.is_float(): assert values.is_finite().all(), c.name
        if len(values) and c.lo is not None: assert values.min() >= c.lo, c.name
        if len(values) and c.hi is not None: assert values.max() <= c.hi, c.name


@both
@drawn
@given(data=st.data())
def test_bounds_hold_on_any_stream(channel, data):
    rows, cfg = data.draw(ROWS[channel](max_size=60)), config()
    hold_all(silver(channel, rows, cfg), Catalogue(channel, cfg))
    gold = Catalogue(f"{channel}_bars", cfg)
    for bars in process_bars(channel, [frame(channel, rows)], cfg).values(): hold_all(bars, gold)


@both
def test_holes_in_the_input_become_null(channel):
    "NaN and infinities that pass through are written as null."
    name = {"trades": "cost", "ticker": "last"}[channel]
    holes = frame(channel, LONG[channel][:4]).with_columns(pl.Series(name, [math.nan, math.inf, -math.inf, 1.0]))
    assert silver(channel, holes, config())[name].to_list() == [None, None, None, 1.0]
    if channel == "ticker":
        sizes = pl.Series("bid_volume", [1.0, math.nan, math.inf, -math.inf, 1.0])
        made = silver(channel, frame(channel, [quote(k) for k in range(5)]).with_columns(sizes), config())
        hold_all(made, Catalogue(channel, config()))
        assert made["volume_imbalance"].is_null().to_list() == [False, True, True, True, False]


@pytest.mark.parametrize("price", (0.0, -1.0, math.inf, math.nan, None))
def test_a_price_that_is_none_is_refused(price):
    "Files are cleaned when they are read; in a frame such a row is an error, not an infinity in the output."
    with pytest.raises(BadDataError, match="price"):
        daedalus_etl.features(trades=frame("trades", [trade(0), trade(1, price=price), trade(2)]))


def test_a_spread_of_all_the_ask_is_within_bounds():
    "A bid of almost nothing: spread = 2 mid, 20 000 bps and not an ulp more."
    hold_all(silver("ticker", [quote(0, 1e-20, 844.601460775)], config()), Catalogue("ticker", config()))


ALWAYS = {"trades": "segment_id segment_age_s dollar_volume hour day_of_week is_weekend volume_{W}s dollar_volume_{W}s "
                    "trade_count_{W}s",
          "ticker": "segment_id segment_age_s hour day_of_week is_weekend"}
FIRST = {"trades": "log_return dt_s realized_var_{W}s", "ticker": "log_return mid_price_std_{W}s"}


def expand(names, windows):
    return [n.format(W=w) for n in names.split() for w in (windows if "{W}" in n else windows[:1])]


@both
def test_nulls_only_where_undefined(channel):
    "Null at a segment's first row for what needs two rows, and nowhere else once all inputs are there."
    rows = {"trades": [trade(t) for t in TIMES["jumps over blocks"] + [9000, 9001]],
            "ticker": [quote(t) for t in TIMES["jumps over blocks"] + [9000, 9001]]}[channel]
    made, windows = silver(channel, rows, config()), config().rolling_windows
    first = (made["segment_age_s"] == 0).to_list()
    assert first == [t in (4, 9000) for t in TIMES["jumps over blocks"] + [9000, 9001]]
    needs_two = expand(FIRST[channel], windows)
    for c in Catalogue(channel, config()):
        assert made[c].is_null().to_list() == (first if c in needs_two else [False] * len(rows)), c
    mixed = silver(channel, LONG[channel], config())
    assert all(mixed[c].null_count() == 0 for c in expand(ALWAYS[channel], windows))


@both
def test_one_feature_alone_has_the_same_bits(channel):
    "By `features` and by selection of the lazy frame; the state does not depend on what was asked for."
    cfg, rows, state = config(), frame(channel, LONG[channel]), {}
    whole = silver(channel, rows, cfg, state)
    for name in Catalogue(channel, cfg):
        alone, other = silver(channel, rows, config(features=(name,))), {}
        always = [c.name for c in Catalogue(channel, cfg).values() if c.always]
        assert set(alone.columns) == {*rows.columns, *always, name}
        same(alone.select(name), whole.select(name))
        same(feature_frame(channel, rows.lazy(), cfg, other).select(name).collect(), whole.select(name))
        assert dump_state(other) == dump_state(state), name


@both
def test_filters_and_heads_of_the_lazy_frame(channel):
    "Predicates and row limits see rows whose windows saw all that came before."
    cfg, rows = config(), frame(channel, LONG[channel])
    whole, lazy = silver(channel, rows, cfg), feature_frame(channel, rows.lazy(), cfg)
    same(lazy.filter(pl.col("nr") % 3 == 0).collect(), whole.filter(pl.col("nr") % 3 == 0))
    same(lazy.head(17).collect(), whole.head(17))


@both
@pytest.mark.parametrize("categories", (("structural",), ("dynamic",), ("rolling",)))
def test_categories_select_columns(channel, categories):
    cfg = config(categories=categories)
    chosen = [c.name for c in Catalogue(channel, cfg).values() if c.always or c.category in categories]
    same(silver(channel, LONG[channel], cfg).select(chosen), silver(channel, LONG[channel], config()).select(chosen))
    assert [c for c in silver(channel, LONG[channel], cfg).columns if c not in [*SCHEMA[channel], "nr"]] == chosen


@both
def test_no_windows_at_all(channel):
    made = silver(channel, LONG[channel], config(rolling_windows=()))
    same(made, silver(channel, LONG[channel], config()).select(made.columns))


# ---- by hand

def test_unknown_side_is_no_sell():
    made = daedalus_etl.features(trades=frame("trades", [trade(0, "buy", 100.0, 1.0), trade(1, "", 100.0, 5.0),
                                                         trade(2, None, 100.0, 5.0), trade(3, "b", 100.0, 5.0),
                                                         trade(4, "SELL", 100.0, 3.0)]))
    assert made["side_sign"].to_list() == [1, None, None, None, -1]
    assert made["is_buy"].to_list() == [1, None, None, None, 0]
    assert made["signed_volume"].to_list() == [1.0, None, None, None, -3.0]
    assert made["tfi_5s"].to_list() == [1.0, 1.0, 1.0, 1.0, -0.5]
    assert made["buy_ratio_5s"].to_list() == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert made["volume_5s"].to_list() == [1.0, 6.0, 11.0, 16.0, 19.0]
    unknown = daedalus_etl.features(trades=frame("trades", [trade(0, "x")]))
    assert [unknown[c][0] for c in ("tfi_5s", "buy_ratio_5s", "is_buy")] == [None, None, None]
    rows = frame("trades", [trade(0, "x", 2.0, 3.0), trade(0, "SELL", 2.0, 1.0)])
    [bar] = transform_bars("trades", rows, config())[60].to_dicts()
    names = ("buy_volume", "sell_volume", "volume", "buy_ratio", "trade_imbalance")
    assert [bar[k] for k in names] == [0, 1, 4, 0, -1]


@both
def test_friday_is_no_weekend(channel):
    make, day = {"trades": trade, "ticker": quote}[channel], 86_400
    times = [-2 * day, -day, -US1, 0, 2 * day - US1, 2 * day]           # Thu, Fri, Fri 23:59, Sat, Sun 23:59, Mon
    made = silver(channel, [make(t) for t in times], config())
    assert made["day_of_week"].to_list() == [4, 5, 5, 6, 7, 1]
    assert made["is_weekend"].to_list() == [False, False, False, True, True, False]
    assert made["hour"].to_list() == [0, 0, 23, 0, 23, 0]


def test_calendar_follows_the_clock():
    late = [trade(0, timestamp=SATURDAY // 1000 - 1)]
    assert silver("trades", late, config(clock="timestamp"))["day_of_week"].to_list() == [5]
    assert silver("trades", late, config())["day_of_week"].to_list() == [6]


def test_event_clock_drives_windows_and_ages():
    rows = [trade(s, amount=a, timestamp=t) for s, a, t in ((0, 1.0, 1_000), (9, 2.0, 5_999), (9, 4.0, 6_000))]
    made = silver("trades", rows, config(clock="timestamp"))
    assert made["volume_5s"].to_list() == [1.0, 3.0, 6.0]               # (1 s, 6 s]: 1 s is out, 5.999 s in
    assert made["segment_id"].to_list() == [1_000_000] * 3
    assert made["dt_s"].to_list() == [None, 4.999, 0.001]


def test_trades_by_hand():
    rows = [trade(0, "buy", 100.0, 2.0), trade(4, "sell", 50.0, 2.0), trade(5, "sell", 200.0, 1.0)]
    made = silver("trades", rows, config())
    assert made["vwap_5s"].to_list() == [100.0, 75.0, 100.0]
    assert made["trade_count_5s"].to_list() == [1, 2, 2]
    assert made["tfi_15s"].to_list() == [1.0, 0.0, -0.2]
    assert made["realized_var_5s"].to_list() == pytest.approx([None, math.log(2)**2, math.log(2)**2 + math.log(4)**2])


def test_ticker_return_reaches_over_undefined_mids():
    "From the last defined mid of the segment, and never over a gap."
    times, bids, asks = (0, 1, 2, 3, 303.1), (99.0, None, 102.0, 109.0, 1.0), (101.0, 101.0, 101.0, 111.0, 3.0)
    rows = [quote(*r) for r in zip(times, bids, asks)]
    made = silver("ticker", rows, config())["log_return"].to_list()
    assert made == pytest.approx([None, None, None, math.log(1.1), None])


def test_ticker_by_hand():
    "The value that prevails at the window's left edge counts, the row itself has no weight yet."
    rows = [quote(0, 99.0, 101.0), quote(3, 198.0, 202.0), quote(8, 299.0, 301.0), quote(9, 9.0, 11.0)]
    made = silver("ticker", rows, config())
    assert made["mid_price_mean_5s"].to_list() == [100.0, 100.0, 200.0, 220.0]       # 9: 200 for 4 s, 300 for 1 s
    assert made["spread_mean_5s"].to_list() == pytest.approx([2.0, 2.0, 4.0, 3.6])
    assert made["mid_price_std_5s"].to_list() == pytest.approx([None, 0.0, 0.0, 40.0])
    assert made["microprice"].to_list()[0] == pytest.approx((99 * 2 + 101 * 1) / 3)


# ---- bars

def assert_column(got, want):
    for a, b in zip(got.to_list(), want.to_list(), strict=True): assert close(a, b), (got.name, a, b)


@pytest.mark.parametrize("every", DURATIONS)
def test_trade_bars_are_those_of_polars(every):
    rows = frame("trades", LONG["trades"]).with_columns(side=pl.col("side").str.to_lowercase())
    p, q, side = pl.col("price"), pl.col("amount"), pl.col("side")
    want = rows.group_by_dynamic("capture_ts", every=f"{every}s", closed="left", label="left", start_by="window").agg(
        open=p.first(), high=p.max(), low=p.min(), close=p.last(), volume=q.sum(), dollar_volume=(p * q).sum(),
        trade_count=pl.len(), n_obs=pl.len(), buy_volume=q.filter(side == "buy").sum(),
        sell_volume=q.filter(side == "sell").sum(),
        buy_ratio=(side == "buy").sum() / side.is_in(["buy", "sell"]).sum())
    got = process_bars("trades", [rows], config())[every]
    assert got["bar_start"].to_list() == want["capture_ts"].to_list()
    for c in want.columns[1:]: assert_column(got[c], want[c].fill_nan(None))


@pytest.mark.parametrize("every", DURATIONS)
def test_ticker_bars_are_those_of_polars(every):
    rows = frame("ticker", LONG["ticker"])
    bid, ask = pl.col("bid"), pl.col("ask")
    valid = (bid > 0) & (ask > 0) & (bid <= ask)
    rows = rows.with_columns(m=pl.when(valid).then((bid + ask) / 2), s=pl.when(valid).then(ask - bid))
    m, s = pl.col("m").drop_nulls(), pl.col("s")
    want = rows.group_by_dynamic("capture_ts", every=f"{every}s", closed="left", label="left", start_by="window").agg(
        open=m.first(), high=m.max(), low=m.min(), close=m.last(), min_spread=s.min(), max_spread=s.max(),
        tick_count=pl.len())
    got = process_bars("ticker", [rows], config())[every]
    assert got["bar_start"].to_list() == want["capture_ts"].to_list()
    for c in want.columns[1:]: assert_column(got[c], want[c])


@both
def test_a_bar_over_batch_edges_is_one_bar(channel):
    make = {"trades": lambda t: trade(t, price=100 + t, amount=0.1 + t),
            "ticker": lambda t: quote(t, 99 - t / 9, 101 + t)}[channel]
    rows = frame(channel, [make(t) for t in (1, 7.3, 20, 31, 59.999999)])
    whole = process_bars(channel, [rows], config())[60]
    assert whole["n_obs"].to_list() == [5] and not whole["is_complete"][0]
    for cut in range(6):
        for restart in (False, True):
            same(process_bars(channel, pieces(rows, [cut]), config(), restart=restart)[60], whole)


@both
def test_bars_do_not_depend_on_the_other_durations(channel):
    rows, cfg = frame(channel, LONG[channel]), config()
    for d, bars in process_bars(channel, [rows], cfg).items():
        alone = BarsProcessor(channel, cfg, (d,))
        same(alone.frame(d, [alone.process(rows)[d]]), bars)


@both
def test_bars_of_silver_are_those_of_bronze(channel):
    bronze = frame(channel, LONG[channel])
    a, b = (transform_bars(channel, rows, config()) for rows in (bronze, silver(channel, bronze, config())))
    for d in DURATIONS: same(a[d], b[d])


@both
def test_empty_bars_are_filled(channel):
    "Volumes and counts 0, prices carried, all else null; the others are untouched."
    bars = process_bars(channel, [frame(channel, LONG[channel])], config())[60]
    full = fill_empty_bars(bars, 60)
    same(full.filter(pl.col("bar_start").is_in(bars["bar_start"].implode())), bars)
    assert full["bar_start"].diff().drop_nulls().unique().to_list() == [naive.timedelta(seconds=60)]
    empty = full.filter(pl.col("n_obs") == 0)
    assert empty.height == full.height - bars.height > 0
    kept = {"bar_start", "bar_end", "available_at", "is_complete", "bar_duration_sec", "open", "high", "low", "close"}
    zero = {"n_obs", "volume", "dollar_volume", "trade_count", "buy_volume", "sell_volume", "tick_count"}
    for c in full.columns:
        if c in zero: assert set(empty[c]) == {0}, c
        elif c in kept: assert empty[c].null_count() == 0, c
        else: assert empty[c].null_count() == empty.height, c
    before = full["close"].forward_fill().shift(1)
    for c in ("open", "high", "low", "close"): assert_column(empty[c], before.filter(full["n_obs"] == 0))
    assert (empty["bar_end"] - empty["bar_start"]).unique().to_list() == [naive.timedelta(seconds=60)]
    assert empty["is_complete"].all() and np.all(empty["bar_duration_sec"].to_numpy() == 60.0)
