"""Joins in time and grids against quadratic twins: frames with ties, nulls, several streams, rows in any order."""
import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daedalus_etl.core.catalog import Catalogue
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.core.errors import BadDataError, ConfigError, SchemaError
from daedalus_etl.features import joins
from daedalus_etl.features.frames import feature_frame
from daedalus_etl.features.grid import panel, resample
from daedalus_etl.features.joins import asof_join, best_quotes, window_join, with_quotes
from daedalus_etl.features.resample import STALENESS
from daedalus_etl.features.slices import AGGREGATES

CLOCK, SECOND = pl.Datetime("us", "UTC"), 1_000_000
T0 = datetime(2026, 1, 15, tzinfo=UTC)
BASE = int(T0.timestamp()) * SECOND
KEYS = ("exchange", "symbol")
STREAMS = (("a", "X"), ("a", "Y"), ("b", "X"), ("a", None), (None, "X"))
TYPES = {"capture_ts": CLOCK, "exchange": pl.String, "symbol": pl.String, "timestamp": pl.Int64, "nonce": pl.Int64,
         "x": pl.Float64, "row": pl.Int64}


def at(us: int) -> datetime: return T0 + timedelta(microseconds=us)


def frame(rows: list[dict]) -> pl.DataFrame:
    "`rows` (clock in us after T0) as a frame; `row` numbers them."
    told = [dict(r, capture_ts=at(r["t"]), row=i, exchange=r["stream"][0], symbol=r["stream"][1])
            for i, r in enumerate(rows)]
    return pl.DataFrame([{n: r.get(n) for n in TYPES} for r in told], schema=TYPES)


# few different clocks, so that there are ties; some around the epoch's seconds, some far away
clocks = st.one_of(st.integers(0, 6), st.integers(-3, 3).map(lambda k: SECOND + k), st.integers(0, 9 * SECOND))
numbers = st.one_of(st.none(), st.sampled_from([0.0, -1.5, 1e-9, 1e12, math.nan, math.inf, -math.inf]),
                    st.floats(-100, 100))


@st.composite
def tables(draw, most: int = 14) -> list[dict]:
    "Rows of up to five streams in any order; half of the tables know nonces."
    known = draw(st.booleans())
    row = st.fixed_dictionaries({
        "t": clocks, "stream": st.sampled_from(STREAMS[:draw(st.integers(1, 5))]), "x": numbers,
        "timestamp": st.sampled_from([None, 1, 2]) if known else st.none(),
        "nonce": st.integers(0, 3) if known else st.none()})
    return draw(st.lists(row, max_size=most))


def place(row: dict, i: int) -> tuple:
    "Where a row stands in its stream: clock, timestamp, nonce (0 is none), input order; null first."
    return (row["t"], *((v is not None, v or 0) for v in (row["timestamp"], row["nonce"] or None)), i)


def in_order(rows: list[dict], stream) -> list[int]:
    "Numbers of the rows of a stream, in its order."
    return sorted((i for i, r in enumerate(rows) if r["stream"] == stream), key=lambda i: place(rows[i], i))


def defined(values: list) -> list: return [v for v in values if v is not None and math.isfinite(v)]


# ---- as-of

def naive_asof(left, right, strict, tolerance):
    for row in left:
        seen = [i for i in in_order(right, row["stream"])
                if (right[i]["t"] < row["t"] if strict else right[i]["t"] <= row["t"])]
        last = seen[-1] if seen else None
        yield last if last is not None and (tolerance is None or row["t"] - right[last]["t"] <= tolerance) else None


@given(tables(), tables(), st.booleans(), st.sampled_from([None, 0, 1, 3, SECOND]))
def test_asof_is_the_last_row_known(left, right, strict, tolerance):
    seconds = None if tolerance is None else tolerance / SECOND
    got = asof_join(frame(left), frame(right), strict=strict, tolerance_s=seconds, columns=["row", "x"])
    assert got["row_right"].to_list() == list(naive_asof(left, right, strict, tolerance))
    assert got["row"].to_list() == list(range(len(left)))                    # the left side's rows, in its order
    assert got.schema == pl.Schema({**TYPES, "row_right": pl.Int64, "x_right": pl.Float64})
    lazy = asof_join(frame(left).lazy(), frame(right).lazy(), strict=strict, tolerance_s=seconds, columns=["row", "x"])
    assert lazy.equals(got)


def test_asof_joins_bars_when_they_were_known():
    bars = pl.DataFrame({"bar_start": [at(0)], "available_at": [at(60 * SECOND)], "symbol": "X", "close": 7.0},
                        schema_overrides={"bar_start": CLOCK, "available_at": CLOCK})
    rows = frame([{"t": t * SECOND, "stream": ("a", "X")} for t in (59, 60)])
    assert asof_join(rows, bars)["close"].to_list() == [None, 7.0]
    assert asof_join(rows, bars, right_on="bar_start")["close"].to_list() == [7.0, 7.0]
    counted = window_join(rows, bars, before_s=100, aggs={"n": ("close", "count")})
    assert counted["n"].to_list() == [0, 1]


def test_asof_of_clocks_in_two_units():
    right = frame([{"t": 1000, "stream": ("a", "X"), "x": 1.0}]).with_columns(
        timestamp=pl.col("capture_ts").dt.epoch("ms")).drop("capture_ts")
    left = frame([{"t": t, "stream": ("a", "X")} for t in (999, 1000, 1001)])
    got = asof_join(left, right, right_on="timestamp", columns=["x"])
    assert got["x_right"].to_list() == [None, 1.0, 1.0]


def test_keys_of_two_types_meet():
    left = frame([{"t": 1, "stream": ("a", "X")}, {"t": 1, "stream": ("b", "X")}])
    right = frame([{"t": 0, "stream": ("b", "X"), "x": 3.0}]).cast(
        {"exchange": pl.Categorical, "symbol": pl.Enum(["X"])})
    assert asof_join(left, right, columns=["x"])["x_right"].to_list() == [None, 3.0]


# ---- windows

def naive_window(values: list) -> dict:
    v = defined(values)
    n, total = len(v), math.fsum(v)
    spread = math.sqrt(math.fsum((u - total / n) ** 2 for u in v) / (n - 1)) if n > 1 else None
    return {"sum": total if n else None, "mean": total / n if n else None, "std": spread, "count": n,
            "min": min(v, default=None), "max": max(v, default=None), "first": v[0] if n else None,
            "last": v[-1] if n else None}


def members(row, right, before, after, prevailing) -> list:
    "Values of the right rows in the window of a left row."
    own, start, end = in_order(right, row["stream"]), row["t"] - before, row["t"] + after
    if not prevailing: return [right[i]["x"] for i in own if start <= right[i]["t"] <= end]
    held = [i for i in own if right[i]["t"] <= start][-1:]
    return [right[i]["x"] for i in held + [i for i in own if start < right[i]["t"] <= end]]


def close(got, want, scale) -> bool:
    if got is None or want is None: return got is want
    return abs(got - want) <= 1e-13 * max(scale, 1.0)


AGGS = {how: ("x", how) for how in AGGREGATES}
widths = st.sampled_from([0, 1, 2, 5, SECOND, SECOND + 1, 20 * SECOND])


@given(tables(), tables(24), widths, st.sampled_from([-1, 0, 0, 0, 1, 4, SECOND]), st.booleans())
def test_window_is_what_plain_python_makes_of_its_rows(left, right, before, after, prevailing):
    if before + after < 0: return
    got = window_join(frame(left), frame(right), before_s=before / SECOND, after_s=after / SECOND, aggs=AGGS,
                      prevailing=prevailing, looks_ahead=after > 0)
    assert got["row"].to_list() == list(range(len(left)))
    for j, row in enumerate(left):
        values = members(row, right, before, after, prevailing)
        scale = sum(map(abs, defined(values)))
        for how, want in naive_window(values).items():
            exact = how in ("count", "min", "max", "first", "last")
            assert got[how][j] == want if exact else close(got[how][j], want, scale), (how, got[how][j], want, values)


@given(tables(24), widths.filter(bool), st.booleans())
def test_window_has_the_same_bits_whatever_lies_around_it(right, before, prevailing):
    "A window that is asked of its own rows alone gives what it gives within the whole table."
    left = [dict(r, x=None) for r in right]
    args = dict(before_s=before / SECOND, aggs=AGGS, prevailing=prevailing)
    whole = window_join(frame(left), frame(right), **args)
    for j, row in enumerate(left):
        mine = in_order(right, row["stream"])
        near = [i for i in mine if row["t"] - before <= right[i]["t"] <= row["t"]]
        held = [i for i in mine if right[i]["t"] <= row["t"] - before][-1:]
        alone = window_join(frame([row]), frame([right[i] for i in dict.fromkeys(held + near)]), **args)
        assert alone.select(*AGGS).equals(whole[j:j + 1].select(*AGGS))


def test_columns_keep_their_type_in_min_max_first_last():
    right = frame([{"t": t, "stream": ("a", "X")} for t in (0, 1)]).with_columns(
        big=pl.Series([2**53 + 1, 2**53]), word=pl.Series(["u", "v"]), when=pl.col("capture_ts"))
    left = frame([{"t": 1, "stream": ("a", "X")}])
    aggs = {"big_max": ("big", "max"), "word_first": ("word", "first"), "when_min": ("when", "min"),
            "n": ("word", "count")}
    got = window_join(left, right, before_s=1, prevailing=False, aggs=aggs)
    assert got.select("big_max", "word_first", "when_min", "n").row(0) == (2**53 + 1, "u", at(0), 2)
    with pytest.raises(SchemaError, match="'word': .* has no mean"):
        window_join(left, right, before_s=1, aggs={"w": ("word", "mean")})


@pytest.mark.parametrize(("dtype", "values"), [
    (pl.UInt64, [2**64 - 1, 2**63, 2**63 - 1, 0, None]), (pl.Int64, [2**63 - 1, -2**63, 0, None]),
    (pl.Int128, [-5, 2**63 - 1, None])])
def test_extremes_of_the_largest_whole_numbers(dtype, values):
    right = frame([{"t": t, "stream": ("a", "X")} for t in range(len(values))]).with_columns(
        big=pl.Series(values, dtype=dtype))
    left = frame([{"t": len(values), "stream": ("a", "X")}])
    got = window_join(left, right, before_s=1, aggs={"lo": ("big", "min"), "hi": ("big", "max")})
    known = [v for v in values if v is not None]
    assert got.select("lo", "hi").row(0) == (min(known), max(known)) and got.schema["lo"] == dtype


def test_a_whole_number_beyond_64_bits_is_refused():
    right = ROWS.with_columns(big=pl.Series([1, 2**64], dtype=pl.Int128))
    with pytest.raises(SchemaError, match="'big': 18446744073709551616 is beyond 64 bits"):
        window_join(ROWS, right, before_s=1, aggs={"hi": ("big", "max")})


def test_a_sum_beyond_all_floats_is_null():
    right = frame([{"t": t, "stream": ("a", "X"), "x": 1.7e308} for t in (0, 1)])
    got = window_join(right.drop("x"), right, before_s=1, prevailing=False, aggs={"s": ("x", "sum"), "m": ("x", "max")})
    assert got.select("s", "m").rows() == [(1.7e308, 1.7e308), (None, 1.7e308)]


# ---- trades and quotes

def naive_tbbo(trade, quotes, tolerance):
    held = [i for i in in_order(quotes, trade["stream"]) if quotes[i]["t"] < trade["t"]][-1:]
    if not held or (tolerance is not None and trade["t"] - quotes[held[0]]["t"] > tolerance): return (None,) * 6
    q = quotes[held[0]]
    bid, ask = (v if v is not None and math.isfinite(v) else None for v in (q["bid"], q["ask"]))
    mid = (bid + ask) / 2 if None not in (bid, ask) and 0 < bid <= ask else None
    sign = {"buy": 1, "sell": -1}.get((trade["side"] or "").lower())
    paid = None if None in (sign, mid) else 2 * sign * (trade["price"] - mid)
    return bid, ask, mid, (trade["t"] - q["t"]) / SECOND, paid, None if paid is None else 1e4 * paid / mid


prices = st.sampled_from([None, math.nan, 0.0, 99.0, 100.0, 100.5, 101.0])


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_an_age_is_the_exact_quotient_for_any_number_of_rows(rows):
    "A product with 10^-6 is 0.9999979999999999."
    trades = frame([{"t": 999_998, "stream": STREAMS[0]}] * rows).with_columns(price=pl.lit(1.0), side=pl.lit("buy"))
    quotes = frame([{"t": 0, "stream": STREAMS[0]}]).with_columns(bid=pl.lit(1.0), ask=pl.lit(2.0))
    assert with_quotes(trades, quotes)["quote_age_s"].to_list() == [0.999998] * rows


@given(st.data(), st.sampled_from([None, 1, SECOND]))
def test_a_trade_meets_the_quote_before_it(data, tolerance):
    trades, quotes = data.draw(tables()), data.draw(tables())
    for r in trades: r |= {"price": data.draw(st.floats(90, 110)), "side": data.draw(
        st.sampled_from(["buy", "SELL", "Buy", "", None]))}
    for r in quotes: r |= {"bid": data.draw(prices), "ask": data.draw(prices)}
    tape = frame(trades).with_columns(pl.Series(n, [r[n] for r in trades], d)
                                      for n, d in (("price", pl.Float64), ("side", pl.String)))
    ticker = frame(quotes).with_columns(pl.Series(n, [r[n] for r in quotes], pl.Float64) for n in ("bid", "ask"))
    got = with_quotes(tape, ticker, tolerance_s=None if tolerance is None else tolerance / SECOND)
    made = got.select("bid", "ask", "mid_price", "quote_age_s", "effective_spread", "effective_spread_bps")
    assert made.rows() == [naive_tbbo(r, quotes, tolerance) for r in trades]
    assert got.columns[:len(tape.columns)] == tape.columns and "capture_ts_quote" not in got.columns


@pytest.mark.parametrize("bid, ask, mid, paid", [
    (99.0, 101.0, 100.0, 1.0), (100.0, 100.0, 100.0, 1.0), (101.0, 99.0, None, None), (0.0, 1.0, None, None),
    (None, 101.0, None, None), (math.inf, math.inf, None, None)])
def test_spread_of_quotes_that_are_locked_crossed_or_one_sided(bid, ask, mid, paid):
    sides = {"bid": pl.lit(bid, pl.Float64), "ask": pl.lit(ask, pl.Float64)}
    quote = frame([{"t": 0, "stream": ("a", "X")}]).with_columns(**sides)
    trade = frame([{"t": 1, "stream": ("a", "X")}]).with_columns(price=100.5, side=pl.lit("buy"))
    assert with_quotes(trade, quote).select("mid_price", "effective_spread").row(0) == (mid, paid)


def test_quotes_of_ticker_books_and_features_agree():
    keys = {"capture_ts": [at(0), at(SECOND)], "exchange": "a", "symbol": "X"}
    books = pl.DataFrame({**keys, "bids": [[(99.0, 0.0), (98.0, 2.0)], []], "asks": [[(101.0, 1.0)], [(102.0, 3.0)]]},
                         schema_overrides={"capture_ts": CLOCK, **dict.fromkeys(("bids", "asks"), pl.List(
                             pl.Struct({"price": pl.Float64, "size": pl.Float64})))})
    silver = pl.DataFrame({**keys, "best_bid": [98.0, None], "best_ask": [101.0, 102.0], "bid_size_L0": [2.0, None],
                           "ask_size_L0": [1.0, 3.0]}, schema_overrides={"capture_ts": CLOCK})
    declared = {c.name for c in Catalogue("orderbook", FeatureConfig()).values()}
    assert {"best_bid", "best_ask", "bid_size_L0", "ask_size_L0"} <= declared
    ticker = pl.DataFrame({**keys, "bid": [98.0, None], "ask": [101.0, 102.0], "bid_volume": [2.0, None],
                           "ask_volume": [1.0, 3.0]}, schema_overrides={"capture_ts": CLOCK})
    want = ["bid", "ask", "bid_volume", "ask_volume"]
    read = [best_quotes(q).select(want).collect().rows() for q in (ticker, books, silver)]
    assert read[0] == read[1] == read[2] == [(98.0, 101.0, 2.0, 1.0), (None, 102.0, None, 3.0)]


# ---- grids

def naive_points(rows, stream, every, stale, start, end):
    "(clock, row or None if too old, age) of each point of one stream."
    own = [i for i in in_order(rows, stream) if end is None or rows[i]["t"] + BASE < end]
    if not own: return
    clock = [rows[i]["t"] + BASE for i in own]
    point = -(-clock[0] // every) * every
    while point <= clock[-1] if end is None else point < end:
        last = [i for i, t in zip(own, clock, strict=True) if t <= point][-1]
        age = (point - rows[last]["t"] - BASE) / SECOND
        if start is None or point >= start: yield point, None if stale is not None and age > stale else last, age
        point += every


bounds = st.one_of(st.none(), st.integers(-SECOND, 10 * SECOND).map(lambda k: BASE + k))


@given(tables(), st.sampled_from(["1s", "250ms", "3s"]), st.sampled_from([None, 0.5, 2.0]), bounds, bounds)
def test_grid_is_the_last_row_at_or_before_each_point(rows, every, stale, start, end):
    if None not in (start, end) and end < start: return
    step = {"1s": 1_000_000, "250ms": 250_000, "3s": 3_000_000}[every]
    moments = [None if b is None else at(b - BASE) for b in (start, end)]
    got = resample(frame(rows), every, max_staleness_s=stale, start=moments[0], end=moments[1])
    for stream in {r["stream"] for r in rows}:
        own = got.filter(*(pl.col(k).eq_missing(pl.lit(v)) for k, v in zip(KEYS, stream, strict=True)))
        have = own.select(pl.col("capture_ts").dt.epoch("us"), "row", STALENESS).rows()
        assert have == list(naive_points(rows, stream, step, stale, start, end))
    assert set(got.select(KEYS).rows()) <= {r["stream"] for r in rows}


def test_grid_of_frames_is_the_grid_of_the_executor():
    quotes = pl.DataFrame({
        "capture_ts": [at(k * 370_000) for k in range(40)], "exchange": "a", "symbol": ["X", "Y"] * 20,
        "bid": [100.0 + k % 7 for k in range(40)], "ask": [101.0 + k % 7 for k in range(40)]},
        schema_overrides={"capture_ts": CLOCK})
    plain = FeatureConfig(features=("mid_price", "spread"))
    grid = FeatureConfig(features=("mid_price", "spread"), resample_frequency="1s", resample_max_staleness=0.5)
    executor = feature_frame("ticker", quotes.lazy(), grid).collect()
    ours = resample(feature_frame("ticker", quotes.lazy(), plain), "1s", max_staleness_s=0.5)
    assert ours.select(executor.columns).equals(executor)


@given(tables(), st.sampled_from([None, 1.0]))
def test_panel_lays_every_stream_on_all_points(rows, stale):
    if not rows: return
    given_frame = frame(rows)
    long = panel(given_frame, "1s", columns=["row"], how="long", max_staleness_s=stale)
    last, points = max(r["t"] for r in rows) + BASE, {}
    for stream in {r["stream"] for r in rows}:
        for point, row, _ in naive_points(rows, stream, SECOND, stale, None, last + 1):
            points[point, stream] = row
    streams, times = {s for _, s in points}, {p for p, _ in points}
    got = {(t, (e, s)): row for t, e, s, row in long.select(
        pl.col("capture_ts").dt.epoch("us"), *KEYS, "row").rows()}
    assert {k for k in got if k[1] in streams} == {(p, s) for p in times for s in streams}
    assert all(row == points.get(k) for k, row in got.items())


def test_panel_is_as_wide_as_it_is_long():
    rows = frame([{"t": k * 300_000, "stream": STREAMS[k % 3], "x": float(k)} for k in range(20)])
    wide = panel(rows, "1s", columns=["x", "row"])
    long = panel(rows, "1s", columns=["x", "row"], how="long")
    assert wide.columns == ["capture_ts", *(f"{c}_{s}" for s in ("a_X", "a_Y", "b_X") for c in ("x", "row", STALENESS))]
    for e, s in STREAMS[:3]:
        own = long.filter(exchange=e, symbol=s)
        assert wide.select("capture_ts", pl.col(f"x_{e}_{s}").alias("x")).equals(own.select("capture_ts", "x"))
    apart = panel([rows.filter(exchange=e, symbol=s) for e, s in STREAMS[:3]], "1s", columns=["x", "row"])
    assert apart.equals(wide)


def test_a_long_panel_keeps_the_names_of_a_mapping():
    rows = frame([{"t": k * 300_000, "stream": STREAMS[k % 2], "x": float(k)} for k in range(20)])
    one, two = (rows.filter(exchange=e, symbol=s) for e, s in STREAMS[:2])
    keyless = two.drop("exchange", "symbol")
    for second in (one, two, keyless, two.drop("exchange")):
        long = panel({"p": one, "q": second}, "1s", columns=["x"], how="long")
        wide = panel({"p": one, "q": second}, "1s", columns=["x"])
        assert long.columns == ["capture_ts", "name", "exchange", "symbol", "x", STALENESS]
        assert long["name"].unique(maintain_order=True).to_list() == ["p", "q"]
        for n in "pq":
            own = long.filter(name=n)
            assert own["x"].to_list() == wide[f"x_{n}"].to_list()
    assert panel({"p": keyless}, "1s", columns=["x"], how="long").columns == ["capture_ts", "name", "x", STALENESS]
    some = panel([one, two.drop("exchange")], "1s", columns=["x"], how="long")
    assert set(some["exchange"].to_list()) == {None, STREAMS[0][0]}
    named = one.with_columns(name=pl.lit("x"))
    with pytest.raises(SchemaError, match="which stream a row is of"):
        panel({"p": named}, "1s", columns=["name"], how="long")


def test_an_empty_frame_of_a_mapping_is_named():
    with pytest.raises(ConfigError, match="the frame 'q' is empty"):
        panel({"p": ROWS[:1], "q": ROWS.clear()}, "1s", columns=["x"])


# ---- the future changes nothing, and the order of rows neither

MADE = {
    "asof": lambda a, b: asof_join(a, b, columns=["x"]),
    "strict": lambda a, b: asof_join(a, b, columns=["x"], strict=True, tolerance_s=2.0),
    "wj": lambda a, b: window_join(a, b, before_s=1.0, aggs={f"w_{k}": v for k, v in AGGS.items()}),
    "wj1": lambda a, b: window_join(a, b, before_s=1.0, aggs={f"w_{k}": v for k, v in AGGS.items()}, prevailing=False),
    "grid": lambda a, b: resample(b, "1s", max_staleness_s=3.0),
}


@pytest.mark.parametrize("name", MADE)
@given(rows=tables(), other=tables(24), cut=st.integers(0, 9 * SECOND))
def test_no_row_depends_on_a_later_one(name, rows, other, cut):
    "What is made of the rows up to a cut is what is made of all, up to the cut."
    early = [MADE[name](frame(rows), frame([r for r in other if k or r["t"] <= cut])).filter(
        pl.col("capture_ts") <= at(cut)) for k in (0, 1)]
    if name == "grid":                     # the whole goes on to the last row, the cut one ends before
        both = [*KEYS, "capture_ts"]
        early[1] = early[1].join(early[0], on=both, how="semi", nulls_equal=True, maintain_order="left").drop("row")
        early[0] = early[0].drop("row")
    assert early[0].equals(early[1])


@pytest.mark.parametrize("name", MADE)
@given(rows=tables(), other=tables(24), seed=st.integers(0, 99))
def test_the_order_of_rows_does_not_matter(name, rows, other, seed):
    "Unless rows are equal in all that orders them; their own number decides then."
    a, b = frame(rows), frame(other).with_columns(nonce=pl.int_range(1, pl.len() + 1), timestamp=1)
    mixed = [f.sample(fraction=1.0, shuffle=True, seed=seed) for f in (a, b)]
    got, want = MADE[name](*mixed), MADE[name](a, b)
    assert got.sort("row", *KEYS, "capture_ts").equals(want.sort("row", *KEYS, "capture_ts"))


# ---- what is refused

ROWS = frame([{"t": 0, "stream": ("a", "X"), "x": 1.0}, {"t": 5, "stream": ("a", "Y"), "x": 2.0}])
NULL_CLOCK = ROWS.with_columns(pl.when(pl.col("row") == 0).then("capture_ts").alias("capture_ts"))
REFUSED = {
    "no clock": (SchemaError, "column 'when'", lambda: asof_join(ROWS, ROWS, on="when")),
    "null clock": (BadDataError, "row 1", lambda: asof_join(NULL_CLOCK, ROWS)),
    "null clock right": (BadDataError, "right frame", lambda: window_join(ROWS, NULL_CLOCK, before_s=1, aggs={})),
    "naive clock": (SchemaError, "UTC", lambda: resample(
        ROWS.with_columns(pl.col("capture_ts").dt.replace_time_zone(None)), "1s")),
    "nanoseconds": (SchemaError, "us or ms", lambda: asof_join(
        ROWS.with_columns(pl.col("capture_ts").dt.cast_time_unit("ns")), ROWS)),
    "two streams for one": (SchemaError, "holds 2 of them", lambda: asof_join(ROWS.drop("symbol"), ROWS)),
    "unknown key": (SchemaError, "right frame", lambda: asof_join(ROWS, ROWS.drop("symbol"), by=["symbol"])),
    "unknown column": (SchemaError, "Did you mean 'nonce'", lambda: asof_join(ROWS, ROWS, columns=["nonze"])),
    "name twice": (ConfigError, "second 'capture_ts'", lambda: asof_join(ROWS, ROWS, suffix="")),
    "negative tolerance": (ConfigError, "at least 0", lambda: asof_join(ROWS, ROWS, tolerance_s=-1)),
    "tolerance nan": (ConfigError, "at least 0", lambda: asof_join(ROWS, ROWS, tolerance_s=math.nan)),
    "not a frame": (ConfigError, "is a list", lambda: asof_join(ROWS, [1])),
    "future": (ConfigError, "looks_ahead=True", lambda: window_join(ROWS, ROWS, before_s=1, after_s=1, aggs={})),
    "window inside out": (ConfigError, ">= 0", lambda: window_join(ROWS, ROWS, before_s=1, after_s=-2, aggs={})),
    "unknown aggregate": (ConfigError, "Did you mean 'mean'", lambda: window_join(
        ROWS, ROWS, before_s=1, aggs={"m": ("x", "meen")})),
    "aggregate's name taken": (ConfigError, "new name", lambda: window_join(
        ROWS, ROWS, before_s=1, aggs={"x": ("x", "sum")})),
    "no quotes": (SchemaError, "bids and asks", lambda: with_quotes(ROWS.with_columns(price=1.0, side=None), ROWS)),
    "no side": (SchemaError, "'side'", lambda: with_quotes(
        ROWS.with_columns(price=1.0), ROWS.with_columns(bid=1.0, ask=2.0))),
    "has a mid": (SchemaError, "'mid_price'", lambda: with_quotes(
        ROWS.with_columns(price=1.0, side=pl.lit("buy"), mid_price=1.0), ROWS.with_columns(bid=1.0, ask=2.0))),
    "bad step": (ConfigError, "duration", lambda: resample(ROWS, "1 parsec")),
    "bad how": (ConfigError, "'wide' or 'long'", lambda: panel(ROWS, "1s", columns=["x"], how="tall")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    kind, message, call = REFUSED[case]
    with pytest.raises(kind, match=message): call()


def test_right_side_reads_only_what_it_needs():
    "Columns that are not asked for are never read: here one that cannot be."
    broken = ROWS.lazy().with_columns(pl.col("symbol").cast(pl.Int64).alias("unreadable"))
    assert asof_join(ROWS, broken, columns=["x"])["x_right"].to_list() == [1.0, 2.0]
    assert joins.window_join(ROWS, broken, before_s=1, aggs={"n": ("x", "count")})["n"].to_list() == [1, 1]
