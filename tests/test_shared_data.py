"Recorded days through silver and gold: nothing is lost, and midnight leaves no trace in any value."
import lakes
import polars as pl
import pytest
from lakes import dataset, statuses
from polars.testing import assert_frame_equal

from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.features.frames import features

CONFIG = FeatureConfig()
STREAMS = [("binance", "BTC-USDT"), ("binance", "ETH-USDT")]
DAYS = [(s, d) for s in STREAMS for d in (8, 9)]


def bronze_of(root, channel, stream, days=(8, 9)):
    return pl.concat(
        [
            pl.read_parquet(root / channel / lakes.leaf(d, stream) / "data.parquet", hive_partitioning=False)
            for d in days
        ]
    )


@pytest.fixture(scope="module")
def lake(shared_bronze, tmp_path_factory):
    "Silver and gold of all recorded trades and tickers, and the reports."
    root, reports = tmp_path_factory.mktemp("lake"), {}
    for channel in ("trades", "ticker"):
        reports[channel] = lakes.run(getattr(lakes, channel)(shared_bronze / channel, root), features=CONFIG)
        reports[f"{channel}_bars"] = lakes.run(lakes.bars(root / f"silver/{channel}", root, channel), features=CONFIG)
    return root, reports


def part(root, name, stream, day):
    return pl.read_parquet(root / name / lakes.leaf(day, stream) / "part-0.parquet", hive_partitioning=False)


@pytest.mark.parametrize("channel", ["trades", "ticker"])
def test_no_row_is_lost(lake, shared_bronze, channel):
    root, report = lake[0], lake[1][channel]
    assert set(statuses(report)) == {"written"} and len(report.units) == {"trades": 5, "ticker": 4}[channel]
    for u in report.units:
        rows = pl.read_parquet(shared_bronze / channel / u.partition / "data.parquet", hive_partitioning=False).height
        written = pl.read_parquet(
            root / "silver" / channel / u.partition / "part-0.parquet", hive_partitioning=False
        ).height
        assert u.rows_in == rows and u.rows["silver"] == written == rows - u.duplicates - u.quarantined
    assert report.totals()["quarantined"] == 0
    assert report["write_stats"]["silver"]["rows"] == dataset(root / "silver" / channel).height
    assert lakes.leftovers(root) == []


@pytest.mark.parametrize(("stream", "day"), DAYS)
@pytest.mark.parametrize("channel", ["trades", "ticker"])
def test_bronze_passes_through(lake, shared_bronze, channel, stream, day):
    bronze = bronze_of(shared_bronze, channel, stream, [day])
    silver = part(lake[0], f"silver/{channel}", stream, day)
    keys = ["capture_ts", *(["timestamp", pl.col("trade_id").cast(pl.Int64)] if channel == "trades" else [])]
    expected = bronze.sort(keys, maintain_order=True)
    time_keys = ("year", "month", "day", "hour")
    assert_frame_equal(
        silver.select(c for c in bronze.columns if c not in time_keys),
        expected.select(c for c in bronze.columns if c not in time_keys),
        check_exact=True,
        check_dtypes=False,
    )


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("channel", ["trades", "ticker"])
def test_midnight_leaves_no_trace(lake, shared_bronze, channel, stream):
    "Two partitions, written one after the other, are the two days as one plain frame, bit for bit."
    both = bronze_of(shared_bronze, channel, stream)
    plain = features(**{channel: both}, config=CONFIG)
    silver = pl.concat([part(lake[0], f"silver/{channel}", stream, d) for d in (8, 9)])
    names = [c for c in silver.columns if c in plain.columns]
    assert set(names) >= set(plain.columns) - {"year", "month", "day"}
    assert_frame_equal(silver.select(names), plain.select(names), check_exact=True)
    first = part(lake[0], f"silver/{channel}", stream, 9).row(0, named=True)
    assert first["log_return"] is not None and first["segment_age_s"] > 300
    last = part(lake[0], f"silver/{channel}", stream, 8).row(-1, named=True)
    assert first["segment_id"] == last["segment_id"]
    if channel == "trades": assert first["dt_s"] is not None and first["trade_count_300s"] > 1000
    split = part(lake[0], f"silver/{channel}", stream, 9)
    alone = features(**{channel: bronze_of(shared_bronze, channel, stream, [9])}, config=CONFIG)
    name = "volume_300s" if channel == "trades" else "mid_price_mean_300s"
    assert split[name][0] != alone[name][0]                         # so that the test above says something


def test_a_gap_of_a_year_starts_a_segment(lake):
    path = lake[0] / "silver/trades/exchange=binance/symbol=BTC-USDT/year=2026/month=02/day=16/part-0.parquet"
    later = pl.read_parquet(path, hive_partitioning=False)
    first = later.row(0, named=True)
    assert first["segment_age_s"] == 0.0 and first["segment_id"] == int(later["capture_ts"].dt.epoch("us")[0])
    assert first["log_return"] is None and first["dt_s"] is None and first["trade_count_900s"] == 1
    assert first["realized_var_900s"] is None and later["segment_id"].n_unique() == 1


def test_undefined_is_null(lake):
    for name in ("silver/trades", "silver/ticker", "gold/trades_bars/60s", "gold/ticker_bars/60s"):
        frame = dataset(lake[0] / name)
        floats = frame.select(pl.selectors.float())
        assert all(floats[c].is_finite().all() for c in floats.columns), name


def last_at(frame): return frame.sort("bar_start")


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("d", [60, 3600])
def test_trade_bars(lake, shared_bronze, stream, d):
    gold = pl.concat([part(lake[0], f"gold/trades_bars/{d}s", stream, day) for day in (8, 9)])
    rows = bronze_of(shared_bronze, "trades", stream).sort(
        "capture_ts", "timestamp", pl.col("trade_id").cast(pl.Int64), maintain_order=True
    )
    p, q, buy, sell = pl.col("price"), pl.col("amount"), pl.col("side") == "buy", pl.col("side") == "sell"
    plain = (
        rows.with_columns(r2=p.log().diff().pow(2))
        .group_by_dynamic("capture_ts", every=f"{d}s")
        .agg(
            n_obs=pl.len(),
            trade_count=pl.len(),
            open=p.first(),
            high=p.max(),
            low=p.min(),
            close=p.last(),
            volume=q.sum(),
            dollar_volume=(p * q).sum(),
            buy_volume=q.filter(buy).sum(),
            sell_volume=q.filter(sell).sum(),
            vwap=(p * q).sum() / q.sum(),
            buy_ratio=buy.sum() / (buy | sell).sum(),
            realized_variance=pl.col("r2").sum(),
        )
    )
    plain = plain.rename({"capture_ts": "bar_start"})
    exact = ["bar_start", "n_obs", "trade_count", "open", "high", "low", "close", "buy_ratio"]
    assert_frame_equal(gold.select(exact), plain.select(exact), check_exact=True, check_dtypes=False)
    assert_frame_equal(
        gold.select(plain.columns), plain, check_exact=False, rel_tol=1e-9, check_dtypes=False, check_column_order=False
    )
    made = gold.select(
        pl.col("log_return") - (pl.col("close") / pl.col("open")).log(),
        pl.col("range") * pl.col("open") - (pl.col("high") - pl.col("low")),
    )
    assert made.select(pl.all().abs().max()).row(0) == pytest.approx((0, 0), abs=1e-9)
    # the last bar of BTC is closed by 2026, that of ETH is open
    assert gold["is_complete"].to_list() == [True] * (gold.height - 1) + [stream[1] == "BTC-USDT"]


@pytest.mark.parametrize("stream", STREAMS)
def test_ticker_bars(lake, shared_bronze, stream):
    gold = pl.concat([part(lake[0], "gold/ticker_bars/60s", stream, day) for day in (8, 9)])
    rows = bronze_of(shared_bronze, "ticker", stream).sort("capture_ts", maintain_order=True)
    mid, spread = (pl.col("bid") + pl.col("ask")) / 2, pl.col("ask") - pl.col("bid")
    plain = rows.group_by_dynamic("capture_ts", every="60s").agg(
        n_obs=pl.len(), tick_count=pl.len(), open=mid.first(), high=mid.max(), low=mid.min(), close=mid.last(),
        min_spread=spread.min(), max_spread=spread.max()).rename({"capture_ts": "bar_start"})
    assert_frame_equal(gold.select(plain.columns), plain, check_exact=True, check_dtypes=False)
    assert (
        gold.select(
            (pl.col("min_spread") <= pl.col("mean_spread"))
            & (pl.col("mean_spread") <= pl.col("max_spread") * (1 + 1e-12))
        )
        .to_series()
        .all()
    )


@pytest.mark.parametrize("channel", ["trades", "ticker"])
def test_second_run_does_nothing(lake, shared_bronze, channel):
    before = lakes.places(lake[0])
    again = lakes.run(getattr(lakes, channel)(shared_bronze / channel, lake[0]), features=CONFIG)
    assert set(statuses(again)) == {"done"} and lakes.places(lake[0]) == before
