"""Time bars of silver order-book rows against their twin in `naive_orderbook`, cut anywhere, and by the transform.

Values meet the twin to a relative 1e-12 with the same nulls, but for those of both signs (`absolute`); one way of
computing them meets another to the last bit.
"""
import math
import random
import sys

import naive
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import SECOND
from naive_orderbook import BAR_MEANS, config, orderbook, orderbook_bars
from strategies import SATURDAY, STREAMS, clocks, sizes, times
from strategies_orderbook import book_rows, fixed_books
from test_contract import CLOCKS, DURATIONS, TIMES, UTC, meets, pieces, plain, same, through_bytes

from daedalus_etl.core.base import TransformContext
from daedalus_etl.core.catalog import Catalogue, schema_of
from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.errors import BadDataError, SchemaError
from daedalus_etl.core.state import dump_state
from daedalus_etl.features.bars import BOOK_ROW, BarsProcessor, fill_empty_bars
from daedalus_etl.transforms.bars import BarAggregationTransform, StreamBars, channel_of

EPS = sys.float_info.epsilon
FLOWS = {"sum_ofi": "ofi", "sum_mlofi": "mlofi"}
PLAIN = config(rolling_windows=(), enable_vpin=False, cost_notionals=(), depth_levels=10, spread_regime_window=1)
SCHEMA = {"capture_ts": UTC, "timestamp": pl.Int64, "exchange": pl.String, "symbol": pl.String,
          "book_state": pl.String, "segment_id": pl.Int64} | dict.fromkeys(BOOK_ROW, pl.Float64)
FEATURES = FeatureConfig(bar_durations=DURATIONS)
drawn, briefly = settings(max_examples=25), settings(max_examples=10)      # the latter where an example is many runs


# ---- silver rows

def frame(rows) -> pl.DataFrame:
    "Silver rows (dicts) as a frame."
    columns = {k: pl.Series(k, [r.get(k) for r in rows], pl.Int64 if d == UTC else d).cast(d)
               for k, d in SCHEMA.items()}
    return pl.DataFrame(columns)


def book(seconds, state="ok", **values):
    "One silver row, `seconds` after Saturday; what is not given is null."
    us = SATURDAY + round(seconds * SECOND)
    named = {"exchange": "x", "symbol": "A", "book_state": state, "segment_id": us}
    return {"capture_ts": us, "timestamp": us // 1000} | named | dict.fromkeys(BOOK_ROW) | values


RANGES = {"mid_price": (1e-3, 1e9), "spread": (0, 1e5), "relative_spread": (0, 2), "microprice": (1e-3, 1e9),
          "total_bid_depth": (0, 1e9), "total_ask_depth": (0, 1e9), "imbalance_L1": (-1, 1),
          "total_imbalance": (-1, 1), "smart_depth_imbalance": (-1, 1)}


def value(name):
    "A value of the column or null, often one of few."
    lo, hi = RANGES.get(name, (-1e6, 1e6))
    few = st.sampled_from((max(lo, 0.25), 0.5, 1.0))
    return st.one_of(st.none(), few, few, st.floats(lo, hi, allow_subnormal=False))


VALUES = st.tuples(*(value(k) for k in BOOK_ROW))


@st.composite
def silver_rows(draw, max_size=60, clock="capture_ts"):
    "Silver rows with clocks on the edges of bars and gaps; each column has nulls of its own."
    n = draw(sizes(max_size))
    at, values = draw(clocks(n, clock)), draw(st.lists(VALUES, min_size=n, max_size=n))
    segs = naive.segments(at)
    return [times(c, 5, clock) | {"book_state": "ok", "segment_id": s} | dict(zip(BOOK_ROW, v))
            for c, s, v in zip(at, segs, values)]


def rows_of(data, max_size=60):
    "(clock, silver rows): of books through the twin, or drawn column by column."
    clock = data.draw(st.sampled_from(CLOCKS))
    if data.draw(st.booleans()): return clock, data.draw(silver_rows(max_size, clock))
    books = data.draw(book_rows(max_size // 3, clock, max_levels=11))
    return clock, orderbook(books, None, PLAIN.__class__(**vars(PLAIN) | {"clock": clock}))


def fixed(seconds, seed=3):
    "Random values at given times, nulls and outliers among them, the same in each run."
    rng, out = random.Random(seed), []
    for t in seconds:
        values = {k: rng.uniform(*RANGES.get(k, (-50, 50))) for k in BOOK_ROW}
        if rng.random() < 0.05: values |= {"mid_price": 1e12, "spread": 1e11, "ofi": -1e12}
        gone = [k for k in BOOK_ROW if rng.random() < 0.2] if rng.random() < 0.7 else BOOK_ROW
        out.append(book(t, **values | dict.fromkeys(gone)))
    return out


FIXED = [pytest.param(fixed(t), id=name) for name, t in TIMES.items()]
LONG = fixed(TIMES["block edges"] + TIMES["every second"][130:] + [700, 701, 701, 5000], seed=9)
REAL = orderbook(fixed_books([SATURDAY + round(t * SECOND) for t in sorted(
    random.Random(1).uniform(0, 900) for _ in range(250))], 4), None, PLAIN)


# ---- running the package

def bars_of(parts, cfg=FEATURES, *, restart=False) -> dict[int, pl.DataFrame]:
    "All bars of the ordered `parts` by duration, the open ones at the end."
    processor, out = BarsProcessor("orderbook", cfg, DURATIONS), {d: [] for d in DURATIONS}
    for part in parts:
        for d, bars in processor.process(part).items(): out[d].append(bars)
        if restart: processor = BarsProcessor("orderbook", cfg, DURATIONS, through_bytes(processor.state()))
    return {d: processor.frame(d, out[d]) for d in DURATIONS}


def transformed(rows: pl.DataFrame, cfg=FEATURES) -> dict[int, pl.DataFrame]:
    "Bars of silver rows by the transform itself."
    places = dict(inputs={"silver": InputConfig(name="silver", path="in")},
                  outputs={"gold": OutputConfig(name="gold", path="lake/gold/b")})
    transform = BarAggregationTransform(TransformConfig(name="bars", **places))
    made = transform.transform({"silver": rows.lazy()}, TransformContext(feature_config=cfg))
    return {d: made[f"gold/{d}s"].collect() for d in cfg.bar_durations}


def absolute(rows):
    """Absolute tolerances by column, 0 for those that are not named: the terms of a mean or a sum of both signs cancel,
    so it is right to eps of the largest term, times 32 or their number for the growth of rounding."""
    def most(k): return max((abs(r[k]) for r in rows if r[k] is not None), default=0.0)
    signed = {n: 32 * EPS * most(k) for n, k in BAR_MEANS.items() if RANGES.get(k, (-1,))[0] < 0}
    signed |= {n: len(rows) * EPS * sum(abs(r[k]) for r in rows if r[k] is not None) for n, k in FLOWS.items()}
    return lambda n, name: signed.get(name, 0.0)


def check(rows, cfg=FEATURES):
    for d, bars in bars_of([frame(rows)], cfg).items():
        want = orderbook_bars(rows, d, cfg.max_gap_s, cfg.clock)
        meets(plain(bars), want, Catalogue("orderbook_bars", cfg), absolute(rows))


# ---- every column against its twin

def test_every_column_has_a_twin():
    names = list(Catalogue("orderbook_bars", FEATURES))
    assert set(names) <= set(orderbook_bars(LONG[:3], 60)[0])
    assert names[-12:] == ["snapshot_count", *BAR_MEANS, *FLOWS]
    assert set(BOOK_ROW) == {"mid_price", *BAR_MEANS.values(), *FLOWS.values()}


@drawn
@given(data=st.data())
def test_bars_meet_the_twin(data):
    clock, rows = rows_of(data)
    check(rows, FEATURES.model_copy(update={"clock": clock, "max_gap_s": data.draw(st.sampled_from((300, 5, 10**6)))}))


@pytest.mark.parametrize("rows", [*FIXED, pytest.param(LONG, id="long"), pytest.param(REAL, id="books")])
def test_fixed_streams_meet_the_twin(rows):
    check(rows)


@pytest.mark.parametrize("rows", [LONG, REAL])
def test_dtypes_bounds_and_holes(rows):
    "Bounds hold, and no column has NaN or infinities."
    for bars in bars_of([frame(rows)]).values():
        assert bars.schema == pl.Schema(schema_of(Catalogue("orderbook_bars", FEATURES).values()))
        for c in Catalogue("orderbook_bars", FEATURES).values():
            values = bars[c.name].drop_nulls()
            if values.dtype.is_float(): assert values.is_finite().all(), c.name
            if len(values) and c.lo is not None: assert values.min() >= c.lo, c.name
            if len(values) and c.hi is not None: assert values.max() <= c.hi, c.name


def test_narrow_silver_is_taken_at_its_value():
    narrow = frame(LONG).with_columns(pl.col(pl.Float64).cast(pl.Float32))
    wide = narrow.with_columns(pl.col(pl.Float32).cast(pl.Float64))
    for d, bars in bars_of([narrow]).items(): same(bars, bars_of([wide])[d])


# ---- by hand

def means(bars, name): return [b[name] for b in plain(bars)]


def test_each_mean_has_its_own_time():
    "A one-sided book has a bid depth and no spread: its 20 s count for the one alone."
    rows = [book(0, spread=1.0, total_bid_depth=4.0, mid_price=10.0),
            book(30, "one_sided", total_bid_depth=10.0), book(50, spread=3.0, total_bid_depth=4.0, mid_price=11.0)]
    bars = bars_of([frame(rows)])[60]
    assert means(bars, "mean_spread") == pytest.approx([(30 * 1 + 10 * 3) / 40], rel=1e-15)
    assert means(bars, "mean_bid_depth") == pytest.approx([(30 * 4 + 20 * 10 + 10 * 4) / 60], rel=1e-15)
    assert means(bars, "mean_ask_depth") == [None]
    assert means(bars, "realized_variance") == pytest.approx([math.log(1.1) ** 2])     # over the undefined mid


def test_a_bar_begins_with_what_was_carried_in():
    "Within the segment; after a gap, nothing is."
    near = [book(50, spread=1.0), book(80, spread=4.0)]
    assert means(bars_of([frame(near)])[60], "mean_spread") == [1.0, (20 * 1 + 40 * 4) / 60]
    far = [book(50, spread=1.0), book(380, spread=4.0)]                                 # 380 = 360 + 20
    assert means(bars_of([frame(far)])[60], "mean_spread") == [1.0, 4.0]


def test_without_time_the_last_defined_value_of_the_bar_counts():
    rows = [book(59, spread=5.0), book(60, spread=1.0), book(60, spread=2.0), book(60)]
    assert means(bars_of([frame(rows)])[60], "mean_spread") == [5.0, 2.0]
    rows = [book(59, spread=5.0), book(60, ofi=1.0)]
    assert means(bars_of([frame(rows)])[60], "mean_spread") == [5.0, None]              # not that of another bar


def test_flows_are_summed_and_null_without_any():
    rows = [book(0), book(1, ofi=2.0), book(2, ofi=-2.0), book(60, mlofi=-3.0), book(130, ofi=1.0)]
    bars = bars_of([frame(rows)])[60]
    assert means(bars, "sum_ofi") == [0.0, None, 1.0]
    assert means(bars, "sum_mlofi") == [None, -3.0, None]
    assert means(bars, "snapshot_count") == [3, 1, 1]


def test_books_without_a_mid_are_counted():
    bars = bars_of([frame([book(k, "empty") for k in range(5)])])[60]
    assert means(bars, "snapshot_count") == [5] == means(bars, "n_obs")
    undefined = set(bars.columns[6:]) - {"snapshot_count"}                              # all but the bar's own times
    assert all(bars[k].null_count() == 1 for k in undefined)


# ---- causality and splits

@briefly
@given(data=st.data())
def test_a_prefix_gives_a_prefix(data):
    clock, rows = rows_of(data)
    cfg, whole = FEATURES.model_copy(update={"clock": clock}), frame(rows)
    now, later = (bars_of([w], cfg) for w in (whole[:data.draw(st.integers(0, len(rows)))], whole))
    for d in DURATIONS:
        done = now[d].filter("is_complete")
        same(done, later[d].head(done.height))


@briefly
@given(data=st.data())
def test_splits_give_the_same_bits(data):
    clock, rows = rows_of(data)
    cfg, whole = FEATURES.model_copy(update={"clock": clock}), frame(rows)
    bars, parts = bars_of([whole], cfg), pieces(whole, data.draw(st.lists(st.integers(0, whole.height), max_size=6)))
    for restart in (False, True):
        for d, made in bars_of(parts, cfg, restart=restart).items(): same(made, bars[d])


@pytest.mark.parametrize("restart", (False, True))
@pytest.mark.parametrize("rows", [LONG[::3], REAL[:120]])
def test_row_by_row_gives_the_same_bits(rows, restart):
    whole = frame(rows)
    single, bars = pieces(whole, range(1, whole.height)), bars_of([whole])
    for d, made in bars_of(single, restart=restart).items(): same(made, bars[d])


def test_states_are_the_same_however_they_came_about():
    rows = frame(LONG)
    a, b = (BarsProcessor("orderbook", FEATURES, DURATIONS) for _ in range(2))
    a.process(rows)
    for part in pieces(rows, range(7, rows.height, 7)): b.process(part)
    c = BarsProcessor("orderbook", FEATURES, DURATIONS, through_bytes(a.state()))
    assert dump_state(a.state()) == dump_state(b.state()) == dump_state(c.state())


def test_a_state_is_not_touched_by_what_follows():
    processor = BarsProcessor("orderbook", FEATURES, DURATIONS)
    processor.process(frame(LONG[:50]))
    state = processor.state()
    before = dump_state(state)
    processor.process(frame(LONG[50:]))
    assert dump_state(state) == before
    BarsProcessor("orderbook", FEATURES, DURATIONS, state).process(frame(LONG[50:]))
    assert dump_state(state) == before


def test_bars_do_not_depend_on_the_other_durations():
    for d, bars in bars_of([frame(LONG)]).items():
        alone = BarsProcessor("orderbook", FEATURES, (d,))
        same(alone.frame(d, [alone.process(frame(LONG))[d]]), bars)


def test_an_outlier_leaves_no_trace_in_later_bars():
    rows = [book(k * 7, spread=1.0 + k % 3, ofi=float(k), mid_price=10.0, imbalance_L1=0.1) for k in range(40)]
    spiked = [r | dict.fromkeys(("spread", "ofi", "imbalance_L1"), 1e12) if k == 3 else r for k, r in enumerate(rows)]
    (a, b) = (bars_of([frame(r)])[60] for r in (rows, spiked))
    assert a["mean_spread"][0] != b["mean_spread"][0]
    same(a[1:], b[1:])


# ---- the transform

def test_no_rows_make_no_bars():
    for bars in transformed(frame([])).values():
        names = list(Catalogue("orderbook_bars", FEATURES))
        assert bars.height == 0 and bars.columns == ["exchange", "symbol", *names]


@briefly
@given(data=st.data())
def test_streams_are_apart(data):
    parts = [[r | dict(zip(("exchange", "symbol"), s)) for r in data.draw(silver_rows(25))] for s in sorted(STREAMS)]
    rows = sorted((r for part in parts for r in part), key=lambda r: r["capture_ts"])
    if not rows: return
    gold, owned = transformed(frame(rows)), [p for p in parts if p]
    for d in DURATIONS:
        names = [[pl.lit(p[0][k]).alias(k) for k in ("exchange", "symbol")] for p in owned]
        own = [bars_of([frame(p)])[d].select(*n, pl.all()) for n, p in zip(names, owned)]
        same(gold[d], pl.concat(own))


def test_only_what_is_needed_is_read():
    "Other columns of silver, whatever their type, change nothing."
    rows = frame(LONG)
    more = rows.with_columns(pl.lit("x").alias("spread_regime"), pl.lit(None).alias("nonce"), ofi_sum_5s=1.0)
    for d, bars in transformed(more).items(): same(bars, transformed(rows)[d])


def test_bars_that_wait_for_a_later_partition():
    "Closed bars beyond the partition's end are handed on with the state, value for value."
    first, high = StreamBars("orderbook", FEATURES, None), SATURDAY + 120 * SECOND
    first.feed([frame(LONG)])
    second = StreamBars("orderbook", FEATURES, through_bytes(first.state(high)))
    for d in DURATIONS: same(second.bars(d, high, None), first.bars(d, high, None))
    assert second.bars(60, None, None).height > 3


def test_silver_books_are_told_from_quotes():
    quotes = ["bid", "ask", "mid_price", "spread", "relative_spread", "microprice", "capture_ts"]
    assert channel_of(quotes) == "ticker"
    assert channel_of([*BOOK_ROW, "book_state"]) == "orderbook"
    with pytest.raises(SchemaError, match="no bars can be made"): channel_of(["bids", "asks", "capture_ts"])


@pytest.mark.parametrize("gone", [("imbalance_L1",), ("mid_price",), ("spread", "mlofi"), BOOK_ROW])
def test_columns_that_are_missing_are_named(gone):
    rows = frame(LONG).drop(gone)
    with pytest.raises(SchemaError) as e: transformed(rows)
    assert f"lack {', '.join(gone)}," in str(e.value) and f"features: [{', '.join(gone)}]" in str(e.value)
    assert "imbalance_levels" in str(e.value)
    with pytest.raises(SchemaError): bars_of([rows])


@pytest.mark.parametrize("name, bad", [("mid_price", 0.0), ("mid_price", -1.0), ("mid_price", math.inf),
                                       ("spread", math.inf), ("ofi", -math.inf)])
def test_values_that_silver_never_holds_are_refused(name, bad):
    rows = [book(0, mid_price=1.0), book(1, **{name: bad}), book(2, mid_price=1.0)]
    with pytest.raises(BadDataError, match=name): bars_of([frame(rows)])


def test_holes_are_null():
    "A NaN is as undefined as a null."
    rows = frame(LONG)
    holes = rows.with_columns(pl.col(BOOK_ROW).fill_null(math.nan))
    for d, bars in bars_of([holes]).items(): same(bars, bars_of([rows])[d])


# ---- empty bars

def test_empty_bars_are_filled():
    "Counts 0, prices carried, all else null; the others are untouched."
    bars = bars_of([frame(LONG)])[60]
    full = transformed(frame(LONG), FEATURES.model_copy(update={"fill_empty": True}))[60].drop("exchange", "symbol")
    same(full, fill_empty_bars(bars, 60))
    same(full.filter(pl.col("n_obs") > 0), bars)
    assert full["bar_start"].diff().drop_nulls().unique().to_list() == [naive.timedelta(seconds=60)]
    empty = full.filter(pl.col("n_obs") == 0)
    assert empty.height == full.height - bars.height > 0
    kept = {"bar_start", "bar_end", "available_at", "is_complete", "bar_duration_sec", "open", "high", "low", "close"}
    for c in full.columns:
        if c in ("n_obs", "snapshot_count"): assert set(empty[c]) == {0}, c
        elif c in kept: assert empty[c].null_count() == 0, c
        else: assert empty[c].null_count() == empty.height, c
    before = full.select(pl.col("close").forward_fill().shift(1)).filter(full["n_obs"] == 0)
    for c in ("open", "high", "low", "close"): same(empty.select(c), before.rename({"close": c}))
