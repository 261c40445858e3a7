"Recorded order books with their trades: agreement with the ticker, midnight, gaps, and runs that do nothing."
import lakes
import numpy as np
import polars as pl
import pytest
from lakes import dataset, statuses
from polars.testing import assert_frame_equal
from test_shared_data import STREAMS, bronze_of, part

from daedalus_etl.core.catalog import Catalogue
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.features.frames import features

CONFIG = FeatureConfig(categories={"structural", "dynamic", "rolling", "advanced"})
SOCKETS_US = 1000          # two channels of one capture are this far apart at most in almost all rows


@pytest.fixture(scope="module")
def lake(shared_bronze, tmp_path_factory):
    "Silver and gold of all recorded books with their trades, and the report."
    root = tmp_path_factory.mktemp("lake")
    report = lakes.run(lakes.orderbook(shared_bronze / "orderbook", root), features=CONFIG)
    bars = lakes.run(lakes.bars(root / "silver/orderbook", root, "orderbook"), features=CONFIG)
    return root, report, bars


def test_no_book_is_lost(lake):
    rows = [(u.rows_in, u.rows["silver"]) for u in lake[1].units]
    assert rows == [(n, n) for n in (3448, 3044, 2559, 3432, 3036)]
    assert lake[1].totals()["quarantined"] == 0 and lakes.leftovers(lake[0]) == []
    assert set(dataset(lake[0] / "silver/orderbook")["book_state"]) == {"ok"}


def quoted(book: pl.DataFrame, ticker: pl.DataFrame, tolerance_us: int) -> np.ndarray:
    "Whether the best level of each book is a quote that prevailed within `tolerance_us` of the book's clock."
    t, q = (f["capture_ts"].dt.epoch("us").to_numpy() for f in (book, ticker))
    best = book.select("best_bid", "bid_size_L0", "best_ask", "ask_size_L0").to_numpy()
    quotes = ticker.select("bid", "bid_volume", "ask", "ask_volume").to_numpy()
    low = np.maximum(np.searchsorted(q, t - tolerance_us) - 1, 0)
    high = np.searchsorted(q, t + tolerance_us, side="right")
    return np.array([[(quotes[a:b, k] == row[k]).all(axis=1).any() for k in (slice(None), slice(0, None, 2))]
                     for a, b, row in zip(low, high, best)])


@pytest.mark.parametrize("stream", STREAMS)
def test_best_levels_are_the_tickers(lake, shared_bronze, stream):
    "Books and quotes come through two subscriptions: up to a millisecond apart, hence the tolerance."
    ticker = bronze_of(shared_bronze, "ticker", stream).sort("capture_ts", maintain_order=True)
    book = pl.concat([part(lake[0], "silver/orderbook", stream, d) for d in (8, 9)])
    sizes, prices = quoted(book, ticker, SOCKETS_US).mean(axis=0)
    assert prices >= 0.998 and sizes >= 0.994
    assert quoted(book, ticker, 5 * SOCKETS_US)[:, 1].mean() >= 0.999
    assert quoted(book, ticker, 0)[:, 1].mean() >= 0.994


@pytest.mark.parametrize("stream", STREAMS)
def test_midnight_leaves_no_trace(lake, shared_bronze, stream):
    "Two partitions, written one after the other, are the two days as one plain frame, bit for bit."
    books, trades = (bronze_of(shared_bronze, c, stream) for c in ("orderbook", "trades"))
    plain = features(books, trades, config=CONFIG)
    silver = pl.concat([part(lake[0], "silver/orderbook", stream, d) for d in (8, 9)])
    names = [c for c in silver.columns if c in plain.columns]
    assert set(names) >= set(Catalogue("orderbook", CONFIG))
    assert_frame_equal(silver.select(names), plain.select(names), check_exact=True)
    first, last = silver.row(3448 if stream[1] == "BTC-USDT" else 3432, named=True), silver.row(3431, named=True)
    assert first["capture_ts"].day == 9 and first["segment_id"] == last["segment_id"]
    assert first["log_return"] is not None and first["segment_age_s"] > 300
    assert first["trade_count_300s"] > 1000 and first["kyle_lambda_n"] > 290 and first["ofi_n"] > 2900


def test_a_gap_of_years_starts_a_segment_and_keeps_the_buckets(lake):
    silver = dataset(lake[0] / "silver/orderbook").filter(pl.col("symbol") == "BTC-USDT").sort("capture_ts")
    old, new = (silver.filter(pl.col("capture_ts").dt.year() == year) for year in (2024, 2026))
    first = new.row(0, named=True)
    assert first["segment_age_s"] == 0.0 and first["log_return"] is None and first["ofi_n"] == 0
    assert first["kyle_lambda_n"] == 0 and first["trade_count_900s"] == 0 and first["mean_spread_300s"] is not None
    assert first["vpin_bucket_count"] >= old["vpin_bucket_count"][-1] > 0 and first["vpin"] is not None


def test_values_are_sane(lake):
    silver = dataset(lake[0] / "silver/orderbook")
    floats = silver.select(pl.selectors.float())
    assert all(floats[c].drop_nulls().is_finite().all() for c in floats.columns)
    for c in Catalogue("orderbook", CONFIG).values():
        s = silver[c.name].drop_nulls()
        if s.len() == 0 or not s.dtype.is_numeric(): continue
        assert c.lo is None or s.min() >= c.lo, c.name
        assert c.hi is None or s.max() <= c.hi, c.name
    assert 0 < silver["spread_bps"].median() < 1
    assert silver["kyle_lambda"].median() > 0 and silver["ofi_beta"].median() > 0


@pytest.mark.parametrize("stream", STREAMS)
def test_book_bars(lake, stream):
    silver = pl.concat([part(lake[0], "silver/orderbook", stream, d) for d in (8, 9)])
    gold = pl.concat([part(lake[0], "gold/orderbook_bars/60s", stream, d) for d in (8, 9)])
    mid = pl.col("mid_price")
    plain = silver.group_by_dynamic("capture_ts", every="60s").agg(
        snapshot_count=pl.len(), open=mid.first(), high=mid.max(), low=mid.min(), close=mid.last()
    ).rename({"capture_ts": "bar_start"})
    assert_frame_equal(gold.select(plain.columns), plain, check_exact=True, check_dtypes=False)
    sums = silver.group_by_dynamic("capture_ts", every="60s").agg(pl.col("ofi").sum(), pl.col("mlofi").sum())
    assert np.allclose(gold["sum_ofi"].to_numpy(), sums["ofi"].to_numpy(), rtol=1e-9, atol=1e-9)
    assert ((gold["mean_spread"] >= silver["spread"].min()) & (gold["mean_spread"] <= silver["spread"].max())).all()


def test_second_run_does_nothing(lake, shared_bronze):
    before = lakes.places(lake[0])
    again = lakes.run(lakes.orderbook(shared_bronze / "orderbook", lake[0]), features=CONFIG)
    assert set(statuses(again)) == {"done"} and lakes.places(lake[0]) == before


def test_a_day_of_trades_without_books_is_counted(shared_bronze, tmp_path):
    "Books of the 8th are gone: the trades of that day still fill the buckets of the 9th."
    stream, days = STREAMS[0], tmp_path / "bronze"
    for channel, kept in (("orderbook", (9,)), ("trades", (8, 9))):
        for day in kept: lakes.put(days / channel, bronze_of(shared_bronze, channel, stream, [day]), day, stream)
    lakes.run(lakes.orderbook(days / "orderbook", tmp_path / "lake"), features=CONFIG)
    silver = part(tmp_path / "lake", "silver/orderbook", stream, 9)
    books, trades = bronze_of(shared_bronze, "orderbook", stream, [9]), bronze_of(shared_bronze, "trades", stream)
    plain = features(books, trades, config=CONFIG)
    names = ["vpin", "vpin_bucket_count", "trade_vol_900s", "tfi_300s", "kyle_lambda"]
    assert_frame_equal(silver.select(names), plain.select(names), check_exact=True)
    assert silver["vpin_bucket_count"][0] > 50 and silver["trade_count_900s"][0] > 5000
