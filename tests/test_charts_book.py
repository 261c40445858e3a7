"""Books over time and candles, against slow and obvious twins; and every chart here as a picture that is not blank."""
import json
import math
import struct
import zlib
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daedalus_etl.core.errors import BadDataError, ConfigError, SchemaError
from daedalus_etl.core.levels import LEVELS
from daedalus_etl.explore import book as of_book
from daedalus_etl.explore.book import book_heatmap, depth_profile
from daedalus_etl.explore.candles import candles, join_bars, read_bars
from daedalus_etl.explore.returns import correlation, decile_plot

START = datetime(2026, 1, 15, tzinfo=UTC)
US = 1_000_000


def at(seconds) -> datetime: return START + timedelta(seconds=seconds)


def books_of(rows) -> pl.DataFrame:
    "Rows of (seconds, bids, asks), sides as lists of (price, size)."
    def side(levels): return None if levels is None else [{"price": p, "size": q} for p, q in levels]
    data = {"exchange": "x", "symbol": "S", "capture_ts": [at(t) for t, _, _ in rows],
            "bids": [side(b) for _, b, _ in rows], "asks": [side(a) for _, _, a in rows]}
    return pl.DataFrame(data, schema={"exchange": pl.String, "symbol": pl.String, "bids": LEVELS, "asks": LEVELS,
                                      "capture_ts": pl.Datetime("us", "UTC")}, strict=False)


def random_books(n=60, depth=6, seed=0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    t, mid = np.cumsum(rng.integers(0, 5, n)), 1000 + np.cumsum(rng.integers(-1, 2, n))
    def side(m, s): return [(float(m + s * (k + 1)), float(rng.integers(0, 4))) for k in range(depth)]
    return books_of([(float(q), side(m, -1), side(m, 1)) for q, m in zip(t, mid, strict=True)])


def cells_of(frame, window=None, price_bins=80, time_bins=200):
    rows = of_book.read_books(frame, window)
    survey = of_book._survey(rows, window)
    grid = of_book._grid(survey, price_bins, time_bins)
    return *of_book.book_cells(rows, survey, grid), grid


def naive_cells(frame, grid, window=None):
    "Mean size per cell, one microsecond-exact interval of one book after the other."
    rows = [(round((r["capture_ts"] - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)),
             *([(x["price"], x["size"]) for x in r[s] or [] if x["size"]] for s in ("bids", "asks")))
            for r in frame.sort("capture_ts", maintain_order=True).to_dicts()]
    sums, time = {}, {}
    for (t, bids, asks), (until, _, _) in zip(rows, rows[1:]):
        sound = bids and asks and bids[0][0] <= asks[0][0]
        if not sound or until - t > 300 * US: continue
        for i in range(grid.nt):
            lo, hi = max(t, grid.start + i * grid.step), min(until, grid.start + (i + 1) * grid.step)
            if window: lo, hi = max(lo, window[0]), min(hi, window[1])
            if hi <= lo: continue
            for j in range(grid.np):
                a, b = grid.low + j * grid.height, grid.low + (j + 1) * grid.height
                if asks[-1][0] < a or bids[-1][0] >= b: continue
                time[i, j] = time.get((i, j), 0) + hi - lo
                sums[i, j] = sums.get((i, j), 0) + (hi - lo) * sum(q for p, q in bids + asks if a <= p < b)
    return {k: sums[k] / time[k] for k in time}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins", [(80, 200), (3, 7)])
def test_cells_are_their_twin(seed, bins):
    frame = random_books(seed=seed)
    cells, _, grid = cells_of(frame, None, *bins)
    wanted = naive_cells(frame, grid)
    found = {(i, j): v for i, j, v in cells.rows()}
    assert found.keys() == wanted.keys()
    assert all(math.isclose(found[k], wanted[k], rel_tol=1e-3) for k in found)
    assert grid.nt <= bins[1] and grid.np <= bins[0] + 2


def test_window_counts_the_book_that_holds_into_it():
    frame = books_of([(t, [(99.0, q)], [(101.0, 3.0)]) for t, q in ((0, 2.0), (10, 4.0), (20, 9.0), (30, 9.0))])
    start = round((START - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * US
    window = (start + 5 * US, start + 15 * US)
    cells, _, grid = cells_of(frame, window, 80, 2)
    assert {(i, j): v for i, j, v in cells.rows()} == naive_cells(frame, grid, window)
    assert sorted(cells.filter(pl.col("v") > 0)["v"]) == [2, 3, 3, 4]
    last = books_of([(40, [(9.0, 1.0)], [(11.0, 1.0)]), (41, [(9.0, 1.0)], [(11.0, 1.0)])])
    chart = book_heatmap(pl.concat([frame, last]), window=(at(5), at(15)))
    assert "2 books" in said(chart)
    assert {p["mid"] for v in values(chart.to_dict()) for p in v if "mid" in p} == {100.0}      # none of the later ones


def test_gaps_and_bad_books_stay_blank():
    good = [(99.0, 1.0)], [(101.0, 1.0)]
    rows = [(0, *good), (10, *good), (400, *good), (410, [(102.0, 1.0)], [(101.0, 1.0)]),
            (420, [], [(101.0, 1.0)]), (430, *good), (440, None, None)]
    cells, _, grid = cells_of(books_of(rows), None, 80, 44)
    seconds = {(grid.start + i * grid.step) // US % 86_400 for i in cells["i"].unique()}
    assert seconds == {0, 400, 430}
    chart = book_heatmap(books_of(rows))
    assert "3 books that are no market" in said(chart)
    lines = next(v for v in values(chart.to_dict()) if v and "mid" in v[0])
    assert len({p["run"] for p in lines}) == 3 and {p["mid"] for p in lines} == {100.0}


def said(chart) -> str: return " ".join(chart.to_dict()["title"]["subtitle"])


def test_all_forms_and_orders_give_one_picture():
    frame = random_books(20)
    pairs = frame.with_columns(pl.Series(s, [[[x["price"], x["size"]] for x in row] for row in frame[s].to_list()],
                                         dtype=pl.List(pl.List(pl.Float64))) for s in ("bids", "asks"))
    texts = pairs.cast({s: pl.List(pl.List(pl.String)) for s in ("bids", "asks")})
    def level(s, k, v): return pl.col(s).list.get(k, null_on_oob=True).struct.field(v).alias(f"{s[:-1]}_{v}_L{k}")
    names = [(s, k, v) for s in ("bids", "asks") for v in ("price", "size") for k in range(7)]
    silver = frame.select("exchange", "symbol", "capture_ts", *(level(*n) for n in names))
    wanted = cells_of(frame)[0]
    shuffled = frame.with_columns(nonce=pl.int_range(1, pl.len() + 1)).sample(fraction=1, shuffle=True, seed=1)
    for other in (pairs, texts, silver, frame.lazy(), shuffled): assert cells_of(other)[0].equals(wanted)


def test_chunks_do_not_matter(monkeypatch):
    frame = random_books(50)
    wanted = cells_of(frame)[0]
    monkeypatch.setattr(of_book, "CHUNK", 7)
    assert cells_of(frame)[0].equals(wanted)


def test_a_wild_quote_moves_nothing():
    rows = [(float(t), [(999.0, 1.0)], [(1001.0, 1.0)]) for t in range(400)]
    rows[200] = (200.0, [(1.0, 1.0)], [(9e9, 1.0)])
    low, height, n = cells_of(books_of(rows))[2][3:]
    assert 990 < low < 999 and low + height * n < 1010
    deep = [(t, b + [(0.01, 5.0)], a + [(1e9, 5.0)]) for t, b, a in rows]
    low, height, n = cells_of(books_of(deep))[2][3:]
    assert 990 < low and low + height * n < 1010
    assert "lies at prices outside" in said(book_heatmap(books_of(deep)))


def trades_of(n, price=1000.0) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    return pl.DataFrame({
        "capture_ts": [at(float(t)) for t in rng.uniform(10, 90, n)], "price": price + rng.integers(-1, 2, n),
        "amount": rng.exponential(1, n), "side": rng.choice(["BUY", "sell", ""], n)})


def test_trades_are_summed_not_dropped():
    frame, tape = random_books(), trades_of(2000)
    chart = book_heatmap(frame, tape).to_dict()
    assert "2,000 trades; drawn as" in " ".join(chart["title"]["subtitle"])
    points = next(v for v in values(chart) if v and "amount" in v[0])
    assert len(points) <= 600 and sum(p["n"] for p in points) == 2000
    assert math.isclose(sum(p["amount"] for p in points), tape["amount"].sum()) and {p["side"] for p in points} == {
        "buy", "sell", "unknown"}
    few = book_heatmap(frame, trades_of(5, 5000.0))
    assert "5 trades, 5 of them at prices outside" in said(few)


def values(spec) -> list[list[dict]]:
    "All data of a chart, table by table."
    return [pl.read_csv(text.encode(), infer_schema_length=None).to_dicts() for text in spec["datasets"].values()]


def without_data(spec) -> dict:
    "The same chart of tables without rows."
    return spec | {"datasets": {name: text.split("\n")[0] + "\n" for name, text in spec["datasets"].items()}}


def test_streams_do_not_mix():
    frame = random_books(10)
    two = pl.concat([frame, frame.with_columns(symbol=pl.lit("T"))])
    with pytest.raises(ConfigError, match="2 streams"): book_heatmap(two)
    b = bars_of()
    with pytest.raises(ConfigError, match="2 streams"): candles(pl.concat([b, b.with_columns(symbol=pl.lit("T"))]))
    with pytest.raises(ConfigError, match="trades of T on x"):
        book_heatmap(frame, trades_of(5).with_columns(exchange=pl.lit("x"), symbol=pl.lit("T")))
    with pytest.raises(SchemaError, match="'bids'"): book_heatmap(frame.with_columns(bids=pl.lit("[]")))
    with pytest.raises(SchemaError, match="'capture_ts'"): depth_profile(frame.with_columns(capture_ts=pl.lit(1.5)))
    for empty in (frame[:0], frame[:1]): assert book_heatmap(empty).to_dict()["mark"]["type"] == "text"


def test_specs_are_small_whatever_the_number_of_books():
    frame = random_books(3000, depth=40)
    assert len(json.dumps(book_heatmap(frame, trades_of(5000)).to_dict())) < 2_000_000


def test_recorded_books(shared_bronze):
    day = "exchange=binance/symbol=BTC-USDT/year=2024/month=08/day=08/data.parquet"
    chart = book_heatmap(*(pl.scan_parquet(shared_bronze / c / day) for c in ("orderbook", "trades")))
    assert "3,448 books" in said(chart) and "9,753 trades" in said(chart)
    assert len(json.dumps(chart.to_dict())) < 1_000_000


def test_depth_adds_up():
    frame = random_books(5)
    table = next(v for v in values(depth_profile(frame, at(1e6), levels=3).to_dict()) if len(v) > 1)
    last = frame[-1]
    for s in ("bid", "ask"):
        sizes = [x["size"] for x in last[f"{s}s"][0] if x["size"]][:3]
        assert [r["total"] for r in table if r["side"] == s] == list(np.cumsum(sizes))


# ---- candles

def bars_of(n=50, width=60, drop=()) -> pl.DataFrame:
    rng = np.random.default_rng(4)
    close = 100 + np.cumsum(rng.normal(0, 1, n))
    first = np.append(100.0, close[:-1])
    frame = pl.DataFrame({
        "exchange": "x", "symbol": "S", "bar_start": [at(i * width) for i in range(n)], "open": first, "close": close,
        "bar_end": [at((i + 1) * width) for i in range(n)], "high": np.maximum(first, close) + 0.5,
        "low": np.minimum(first, close) - 0.5, "volume": rng.exponential(1, n),
        "is_complete": [True] * (n - 1) + [False]})
    return frame.filter(~pl.int_range(pl.len()).is_in(list(drop)))


@given(st.sets(st.integers(0, 49), max_size=45), st.integers(1, 60), st.booleans())
def test_joined_bars_are_their_twin(drop, most, by_time):
    frame = bars_of(drop=drop)
    uneven = pl.col("bar_end") - pl.duration(milliseconds=pl.int_range(pl.len()))
    if not by_time: frame = frame.with_columns(bar_end=uneven)
    rows, _, _ = read_bars(frame.sample(fraction=1, shuffle=True, seed=0))
    joined, k = join_bars(rows, most)
    assert joined.height <= most and joined["bars"].sum() == rows.height
    timed = rows.height > 0 and (rows["end"] - rows["t"]).n_unique() == 1
    groups = {}
    for n, r in enumerate(rows.to_dicts()):
        groups.setdefault(r["t"] // (k * 60 * US) if timed else n // k, []).append(r)
    for got, part in zip(joined.to_dicts(), groups.values(), strict=True):
        assert (got["open"], got["close"]) == (part[0]["open"], part[-1]["close"])
        assert (got["high"], got["low"]) == (max(r["high"] for r in part), min(r["low"] for r in part))
        assert math.isclose(got["amount"], sum(r["amount"] for r in part))
        assert got["complete"] == all(r["complete"] for r in part)
        assert got["t"] <= part[0]["t"] and got["end"] >= part[-1]["end"]
        if timed and k > 1: assert got["t"] % (k * 60 * US) == 0


def test_candles_say_what_they_do():
    assert "joins 2 of 50 bars of 1 min" in said(candles(bars_of(), bars_max=30))
    assert "2 bars missing" in said(candles(bars_of(drop=(3, 9))))
    flat = bars_of(3).with_columns(close=pl.col("open"))
    assert {r["way"] for v in values(candles(flat).to_dict()) for r in v} == {"unchanged"}
    with pytest.raises(BadDataError, match="before the one before"): candles(pl.concat([bars_of(10), bars_of(2, 300)]))


# ---- pictures

def content(png: bytes) -> int:
    "How many pixels of a picture differ from what its PNG filter expects of them: about those where something ends."
    width, height = struct.unpack(">II", png[16:24])
    place, packed = 8, b""
    while place < len(png):
        size, kind = struct.unpack(">I4s", png[place:place + 8])
        if kind == b"IDAT": packed += png[place + 8:place + 8 + size]
        place += 12 + size
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)[:, 1:]
    return int((lines.reshape(height, width, -1) != 0).any(axis=2).sum())


def feature_frame() -> pl.DataFrame:
    rng = np.random.default_rng(2)
    walk = 100 + rng.normal(0, 0.1, 600).cumsum()
    return pl.DataFrame({"capture_ts": [at(t / 2) for t in range(600)], "mid_price": walk,
                         "f": rng.normal(size=600), "g": rng.normal(size=600)})


CHARTS = {
    "decile_plot": lambda theme: decile_plot(feature_frame(), "f", 5, theme=theme),
    "correlation": lambda theme: correlation(feature_frame(), ["f", "g", "mid_price"], theme=theme),
    "depth_profile": lambda theme: depth_profile(random_books(), theme=theme),
    "book_heatmap": lambda theme: book_heatmap(random_books(), trades_of(50), theme=theme),
    "candles": lambda theme: candles(bars_of(), theme=theme),
    "joined": lambda theme: candles(bars_of().drop("volume"), bars_max=10, theme=theme),
    "empty": lambda theme: book_heatmap(random_books()[:0], theme=theme),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_pictures_are_not_blank(name, theme):
    convert = pytest.importorskip("vl_convert")
    spec = CHARTS[name](theme).to_dict()
    drawn = content(convert.vegalite_to_png(spec))
    bare = content(convert.vegalite_to_png(without_data(spec)))
    assert drawn > bare + 500, f"{name}: {drawn} pixels with its data, {bare} without"
