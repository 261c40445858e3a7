"""The leak check: whose clock counts, which rows are the same, when a label is known, and cuts that check nothing."""
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from daedalus_etl.core.base import TransformContext
from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.errors import ConfigError, LeakError, SchemaError
from daedalus_etl.features.frames import features
from daedalus_etl.labels.frames import labels
from daedalus_etl.research.leaks import leak_check
from daedalus_etl.sources.simulated import simulate
from daedalus_etl.sources.simulator import SimulatorConfig
from daedalus_etl.transforms.bars import BarAggregationTransform
from daedalus_etl.transforms.labels import LabelTransform

CONFIG = FeatureConfig(label_horizons=(5,), barrier_horizon=10, barrier_bps=1)
T0 = datetime(2026, 1, 14, tzinfo=UTC)


@pytest.fixture(scope="module")
def market(): return simulate(SimulatorConfig(), 240.0, seed=5)


@pytest.fixture(scope="module")
def two(market):
    "The tape under two names, the second three seconds behind."
    later = pl.col("capture_ts") + timedelta(seconds=3)
    late = market["trades"].with_columns(pl.lit("ETH-USDT").alias("symbol"), later)
    return pl.concat([market["trades"], late]).sort("capture_ts")


def minutes(tape, *, flag=True):
    "Bars of 20 s by hand; the last one of each stream may be open."
    bars = tape.sort("capture_ts").group_by_dynamic("capture_ts", every="20s", group_by="symbol").agg(
        close=pl.col("price").last()).rename({"capture_ts": "bar_start"})
    bars = bars.with_columns(available_at=pl.col("bar_start") + timedelta(seconds=20))
    heard = tape.group_by("symbol").agg(pl.col("capture_ts").max().alias("heard"))
    made = bars.join(heard, on="symbol", maintain_order="left").with_columns(
        is_complete=pl.col("available_at") <= pl.col("heard")).drop("heard")
    return made if flag else made.drop("is_complete")


def transform(cls, name):
    return cls(TransformConfig(name="t", inputs={name: InputConfig(name=name, path="x")},
                               outputs={"out": OutputConfig(name="out", path="y")}))


# ---- whose clock

def by_start(m):
    return m["trades"].join_asof(m["bars"], left_on="capture_ts", right_on="bar_start", by="symbol",
                                 check_sortedness=False)


def by_known(m):
    return m["trades"].join_asof(m["bars"], left_on="capture_ts", right_on="available_at", by="symbol",
                                 coalesce=False, check_sortedness=False)


def test_a_clock_that_a_join_brought_along_does_not_hide_a_leak(market):
    both = {"trades": market["trades"], "bars": minutes(market["trades"], flag=False)}
    for join in (by_start, by_known):
        with pytest.raises(SchemaError, match="capture_ts"): leak_check(join, both)
    with pytest.raises(LeakError) as found: leak_check(by_start, both, on="capture_ts")
    assert found.value.column in ("close", "available_at", "bar_start")
    assert leak_check(by_known, both, on="capture_ts")["rows"].min() > 0


def test_a_clock_of_rows_that_know_the_venues_alone_is_asked_for(market):
    tape = market["trades"].drop("capture_ts")
    right = market["ticker"].select("capture_ts", pl.col("timestamp").alias("stamp"), "bid").sort("stamp")
    joined = lambda d: d.sort("timestamp").join_asof(right, left_on="timestamp", right_on="stamp")      # noqa: E731
    with pytest.raises(SchemaError, match="timestamp"): leak_check(joined, tape)
    assert leak_check(joined, tape, on="timestamp").height == 3


# ---- labels

def ahead(claimed):
    "A label 20 rows ahead that says it is known `claimed` rows ahead."
    return lambda d: d.select("capture_ts", y=pl.col("price").shift(-20) / pl.col("price"),
                              y_known_at=pl.col("capture_ts").shift(-claimed))


@pytest.mark.parametrize("claimed", [0, 1, 19])
def test_a_label_that_says_it_is_known_too_early_is_a_leak(market, claimed):
    with pytest.raises(LeakError) as found: leak_check(ahead(claimed), market["trades"])
    assert found.value.column == "y" and "None" in str(found.value)


def test_a_label_that_says_when_it_is_known_passes(market):
    assert leak_check(ahead(20), market["trades"])["rows"].min() > 0


def test_a_label_that_is_known_without_the_future_only_is_a_leak(market):
    last = market["trades"]["capture_ts"].max()

    def made(d):
        late = timedelta(0) if d["capture_ts"].max() < last else timedelta(days=1)
        return d.select("capture_ts", y=pl.lit(late.days), y_known_at=pl.col("capture_ts") + late)
    with pytest.raises(LeakError): leak_check(made, market["trades"])


@pytest.mark.parametrize("cuts", [7, "silence"])
def test_labels_of_the_package_pass_on_rows_with_silence(market, cuts):
    books = features(books=market["orderbook"], config=FeatureConfig(features=("mid_price",)))
    quiet = pl.col("capture_ts").is_between(T0 + timedelta(seconds=60), T0 + timedelta(seconds=72))
    books = books.filter(~quiet)
    if cuts == "silence":                                   # between rows: a label is known that no row has confirmed
        low, high = (books.filter(e)["capture_ts"] for e in (pl.col("capture_ts") < T0 + timedelta(seconds=66),
                                                             pl.col("capture_ts") > T0 + timedelta(seconds=66)))
        cuts = [low.max() + (high.min() - low.max()) * i / 5 for i in range(1, 5)]
    report = leak_check(lambda d: labels(d, config=CONFIG), books, cuts)
    assert report["rows"].min() > 0
    context = TransformContext(feature_config=CONFIG)
    assert leak_check(transform(LabelTransform, "books"), books, cuts, context=context)["rows"].min() > 0


@pytest.mark.parametrize("name", ["fwd_return_5s", "barrier_label", "barrier_return"])
def test_labels_of_the_package_that_claim_too_much_do_not(market, name):
    known = "barrier_known_at" if name.startswith("barrier") else f"{name}_known_at"

    def early(d): return labels(d, config=CONFIG).with_columns(pl.col("capture_ts").alias(known)).select(
        "capture_ts", name, known)
    with pytest.raises(LeakError) as found: leak_check(early, market["orderbook"])
    assert found.value.column == name


def test_a_column_that_shares_a_prefix_with_a_label_is_no_label(market):
    def made(d):
        return ahead(20)(d).with_columns(y_mean=pl.col("y").mean(), barrier_x=d["price"].shift(-1),
                                         barrier_known_at=pl.col("capture_ts") + timedelta(days=1))
    with pytest.raises(LeakError) as found: leak_check(lambda d: made(d).drop("y_mean"), market["trades"])
    assert found.value.column == "barrier_x"
    with pytest.raises(LeakError) as found: leak_check(lambda d: made(d).drop("barrier_x"), market["trades"])
    assert found.value.column == "y_mean"


# ---- which rows

@pytest.mark.parametrize("flag", [True, False])
def test_bars_that_are_chosen_by_the_future_are_a_leak(two, flag):
    bars = minutes(two).filter("is_complete")
    bars = bars if flag else bars.drop("is_complete")
    rising = pl.col("close") != pl.col("close").shift(-1).over("symbol")
    for chosen in (rising, ~rising.fill_null(value=False)):
        with pytest.raises(LeakError, match="rows are known"): leak_check(lambda d, e=chosen: d.filter(e), bars)


def test_bars_of_two_streams_pass_in_any_order(two):
    for bars in (minutes, lambda d: minutes(d).sort("symbol", "bar_start"), lambda d: minutes(d).filter("is_complete")):
        assert leak_check(bars, two, 4)["rows"].min() > 0
    context = TransformContext(feature_config=FeatureConfig(bar_durations=[10]))
    tape = features(trades=two)
    assert leak_check(transform(BarAggregationTransform, "silver"), tape, 4, context=context)["rows"].min() > 0


def test_a_leak_in_bars_of_two_streams_is_found(two):
    def leaky(d): return minutes(d).with_columns(pl.col("close").shift(-1).over("symbol"))
    with pytest.raises(LeakError) as found: leak_check(leaky, two)
    assert found.value.column == "close"
    config = FeatureConfig(bar_durations=[10])

    class Leaky(BarAggregationTransform):
        def transform(self, inputs, context):
            made = super().transform(inputs, context)
            return {k: f.with_columns(pl.col("close").shift(-1).over("symbol")) for k, f in made.items()}
    with pytest.raises(LeakError) as found:
        leak_check(transform(Leaky, "silver"), features(trades=two), context=TransformContext(feature_config=config))
    assert found.value.column == "close"


def test_only_the_last_bar_of_a_stream_may_be_open(market):
    def late(d):
        bars = minutes(d)
        return bars.with_columns(is_complete=pl.int_range(pl.len()) < pl.len() - 3)
    with pytest.raises(LeakError, match="is_complete"): leak_check(late, market["trades"])


# ---- cuts

def next_price(d): return d.with_columns(x=pl.col("price").shift(-1))


@pytest.mark.parametrize("cuts", [
    [], 0, True, "3", 1.5, None, T0, [T0 + timedelta(days=900)], [T0 - timedelta(days=900)], [datetime(2026, 1, 14)],
    ["2026-01-14"], [T0.date()], [T0 + timedelta(seconds=60), T0 + timedelta(days=1)]])
def test_cuts_that_check_nothing_are_refused(market, cuts):
    with pytest.raises(ConfigError): leak_check(lambda d: d, market["trades"], cuts)


def test_cuts_are_instants_whatever_the_type_of_the_clock(market):
    tape, stamps = market["trades"], market["trades"].drop("capture_ts")
    for rows in (tape, stamps, tape.with_columns(pl.col("capture_ts").dt.cast_time_unit("ms"))):
        for cuts in (np.int64(3), [tape["capture_ts"][100]], [np.int64(tape["timestamp"][100])]):
            with pytest.raises(LeakError): leak_check(next_price, rows, cuts)
            assert leak_check(lambda d: d, rows, cuts)["rows"].min() > 50
    cut = tape["capture_ts"][100]
    report = leak_check(lambda d: d, stamps, [cut])
    assert report["cut"].to_list() == [cut]
    assert report["rows"].to_list() == [int((tape["timestamp"] <= cut.timestamp() * 1000).sum())]


def test_frames_of_different_clocks_are_cut_at_one_instant(market):
    rows = {"a": market["trades"].drop("timestamp"), "b": market["trades"].drop("capture_ts")}
    with pytest.raises(LeakError): leak_check(lambda m: {k: next_price(f) for k, f in m.items()}, rows)
    assert leak_check(lambda m: dict(m), rows).height == 6


@pytest.mark.parametrize("made", [None, 3, {}, np.zeros(3)])
def test_what_is_no_frame_is_refused(market, made):
    with pytest.raises(SchemaError): leak_check(lambda d: made, market["trades"])


def test_rows_without_a_time_zone_are_refused(market):
    naive = market["trades"].with_columns(pl.col("capture_ts").dt.replace_time_zone(None))
    with pytest.raises(SchemaError, match="UTC"): leak_check(lambda d: d, naive)
