"""Research tables: splits without overlap, the leak check that can fail, and each value as a slow twin finds it."""
import errno
import json
import shutil
import warnings
from datetime import UTC, datetime, timedelta
from math import log
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lakes import leftovers

import daedalus_etl
from daedalus_etl.cli import main
from daedalus_etl.core.base import TransformContext
from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.errors import (
    ConfigError, ConflictError, EmptyMatchError, LeakError, SchemaError, StorageError, UnknownFeatureError)
from daedalus_etl.research import make, rows
from daedalus_etl.research.leaks import leak_check
from daedalus_etl.research.rows import MIDS, Recipe, table_rows
from daedalus_etl.research.sources import BARS, Clock, Feature
from daedalus_etl.research.split import ROLES, UNKNOWN, Split, fold_of, roles
from daedalus_etl.research.table import ResearchTable, known_us
from daedalus_etl.sources.simulated import simulate, write_bronze
from daedalus_etl.sources.simulator import SimulatorConfig
from daedalus_etl.storage.lake import selection
from daedalus_etl.transforms.trades import TradesFeatureTransform

S = 1_000_000
START = datetime(2026, 1, 14, 23, 52, tzinfo=UTC)
BTC = "BTC-USDT"
GAP = timedelta(seconds=300)


# ---- splits

@st.composite
def labelled_rows(draw):
    "Clocks (any order), when labels are known, and a test that is one stretch of time."
    t = np.array(draw(st.lists(st.integers(0, 40), min_size=1, max_size=25)))
    length = draw(st.lists(st.none() | st.integers(0, 15), min_size=t.size, max_size=t.size))
    known = np.array([UNKNOWN if d is None else c + d for c, d in zip(t, length, strict=True)])
    low = draw(st.integers(0, 40))
    high = draw(st.integers(low, 40))
    return t, known, (t >= low) & (t <= high)


def overlaps(t, known, i, j):
    "Whether the labels of two rows, over (t, known], share a moment, or one row is decided within the other's label."
    return t[i] < known[j] and known[i] > t[j]


@given(labelled_rows(), st.integers(0, 8), st.booleans())
def test_roles_are_those_of_the_quadratic_twin(sample, embargo, purge):
    t, known, test = sample
    got = [ROLES[i] for i in roles(t, known, test, purge=purge, embargo_us=embargo)]
    of_test = [j for j in range(t.size) if test[j] and known[j] != UNKNOWN]
    for i, role in enumerate(got):
        if known[i] == UNKNOWN: expected = "unlabelled"
        elif test[i]: expected = "test"
        elif purge and any(overlaps(t, known, i, j) for j in of_test): expected = "purged"
        elif of_test and t[i] > min(t[of_test]) and any(
                t[i] < (known[j] if purge else t[j]) + embargo for j in of_test): expected = "embargoed"
        else: expected = "train"
        assert role == expected, i


@given(labelled_rows(), st.integers(2, 5), st.integers(0, 5))
def test_no_training_label_touches_the_test_in_any_fold(sample, n_folds, embargo):
    t, known, _ = sample
    of = fold_of(t, n_folds)
    assert sorted(t.tolist()) == [x for k in range(n_folds) for x in sorted(t[of == k].tolist())]   # in order of time
    assert all(len(set(of[t == x])) == 1 for x in t)                                            # an instant is whole
    for k in range(n_folds):
        role = roles(t, known, of == k, embargo_us=embargo)
        train, test = np.flatnonzero(role == 0), np.flatnonzero(role == 1)
        assert not any(overlaps(t, known, i, j) for i in train for j in test)
        assert not any(t[i] > t[test].min() and t[i] < known[test].max() + embargo for i in train if test.size)


def test_a_label_known_when_the_test_begins_stays_and_one_known_later_goes():
    t = np.array([0, 1, 2, 10])
    known = np.array([9, 10, 11, 12])
    assert [ROLES[i] for i in roles(t, known, t == 10)] == ["train", "train", "purged", "test"]
    assert [ROLES[i] for i in roles(t, known, t == 10, purge=False)] == ["train", "train", "train", "test"]


@pytest.mark.parametrize("wrong", [
    dict(), dict(test=0.2, n_folds=3), dict(n_folds=1), dict(n_folds=2.0), dict(test=0.0), dict(test=1), dict(test="x"),
    dict(test=0.2, embargo_s=-1), dict(test=0.2, embargo_s=float("nan")), dict(train=("2026-01-02", "2026-01-01"))])
def test_splits_that_say_nothing_or_two_things_are_refused(wrong):
    with pytest.raises(ConfigError): Split(**wrong)


def test_ranges_include_both_ends_and_leave_the_rest_unused():
    t = np.array([int(datetime(2026, 1, d, h, tzinfo=UTC).timestamp()) * S for d in (1, 2, 3, 4) for h in (0, 23)])
    split = Split(train=("2026-01-01", "2026-01-02"), test=("2026-01-04", None))
    assert [ROLES[i] for i in split.roles(t, t)] == ["train"] * 4 + ["unused"] * 2 + ["test"] * 2
    assert Split(train=0.5, test=0.25).fold(t).tolist() == [0, 0, 0, 0, -1, -1, 1, 1]


# ---- the leak check

@pytest.fixture(scope="module")
def market():
    return simulate(SimulatorConfig(), 240.0, seed=5)


LEAKS = {
    "centred window": lambda d: d.with_columns(x=pl.col("price").rolling_mean(5, center=True)),
    "z-score of the sample": lambda d: d.with_columns(
        x=(pl.col("price") - pl.col("price").mean()) / pl.col("price").std()),
    "next price": lambda d: d.with_columns(x=pl.col("price").shift(-1)),
    "fill backwards": lambda d: d.with_columns(
        x=pl.when(pl.col("amount") > 0.1).then(pl.col("price")).fill_null(strategy="backward")),
    "rank in the sample": lambda d: d.with_columns(x=pl.col("amount").rank()),
    "scale to the maximum": lambda d: d.with_columns(x=pl.col("amount") / pl.col("amount").max()),
    "mean of the hour": lambda d: d.with_columns(x=pl.col("price").mean().over(pl.col("capture_ts").dt.truncate("1h"))),
    "nearest, not last": lambda d: d.join_asof(
        d.select("capture_ts", x="price").gather_every(7), on="capture_ts", strategy="nearest")}
HONEST = {
    "trailing window": lambda d: d.with_columns(x=pl.col("price").rolling_max(5)),
    "distance from the past's mean": lambda d: d.with_columns(
        x=pl.col("price") - pl.col("price").cum_sum() / pl.int_range(1, pl.len() + 1)),
    "last price": lambda d: d.with_columns(x=pl.col("price").shift(1)),
    "last, not nearest": lambda d: d.join_asof(
        d.select("capture_ts", x="price").gather_every(7), on="capture_ts", strategy="backward")}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_found_and_named(market, name):
    with pytest.raises(LeakError) as found: leak_check(LEAKS[name], market["trades"], 3)
    e, whole = found.value, LEAKS[name](market["trades"])
    assert e.column == "x" and repr(whole["x"][e.row]) in str(e) and str(whole["capture_ts"][e.row]) in str(e)


@pytest.mark.parametrize("name", HONEST)
def test_what_looks_back_passes(market, name):
    report = leak_check(HONEST[name], market["trades"], 3)
    assert report.height == 3 and report["rows"].min() > 0


def test_the_first_row_that_differs_is_named(market):
    tape, cut = market["trades"], market["trades"]["capture_ts"][100]
    last = int((tape["capture_ts"] <= cut).sum()) - 1
    with pytest.raises(LeakError) as found: leak_check(LEAKS["next price"], tape, [cut])
    assert found.value.row == last and "None" in str(found.value)
    with pytest.raises(LeakError) as found: leak_check(LEAKS["centred window"], tape, [cut])
    assert found.value.row == last - 1                      # two rows that a window of five looks beyond


def test_a_label_may_look_ahead_as_far_as_it_says(market):
    def label(shift):
        known = pl.col("capture_ts").shift(-shift)
        return lambda d: d.select("capture_ts", y=pl.col("price").shift(-2) / pl.col("price"), y_known_at=known)
    assert leak_check(label(2), market["trades"]).height == 3
    # one that says it is known before it is: without the future it is null, as if it were not known yet ...
    early = lambda d: label(1)(d).with_columns(pl.col("y").fill_null(0.0))       # noqa: E731  ... so let it be a value
    with pytest.raises(LeakError, match="'y'"): leak_check(early, market["trades"])


def test_rows_and_columns_that_depend_on_the_future_are_leaks(market):
    tape = market["trades"]
    with pytest.raises(LeakError, match="rows are known"):
        leak_check(lambda d: d.filter(pl.col("price") < pl.col("price").shift(-1)), tape)
    with pytest.raises(LeakError, match="columns"):
        leak_check(lambda d: d.with_columns(pl.lit(1).alias("late")) if d.height == tape.height else d, tape)
    with pytest.raises(LeakError, match="'b'"):
        leak_check(lambda d: {"a": d, "b": LEAKS["next price"](d)} if d.height == tape.height else {"a": d}, tape)


def test_a_transform_is_checked_as_it_is(market):
    config = TransformConfig(
        name="t", inputs={"trades": InputConfig(name="trades", path="x")},
        outputs={"silver": OutputConfig(name="silver", path="y")})
    context = TransformContext(feature_config=FeatureConfig(rolling_windows=(5,)))
    assert leak_check(TradesFeatureTransform(config), market["trades"], 2, context=context).height == 2

    class Leaky(TradesFeatureTransform):
        def transform(self, inputs, context):
            (name, frame), = super().transform(inputs, context).items()
            return {name: frame.collect().with_columns(pl.col("vwap_5s").shift(-3)).lazy()}
    with pytest.raises(LeakError) as found: leak_check(Leaky(config), market["trades"], 2, context=context)
    assert found.value.column == "vwap_5s" and "silver: " in str(found.value)


# ---- a lake of two symbols across midnight

@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("research")
    write_bronze(base / "bronze", {BTC: SimulatorConfig(), "ETH-USDT": SimulatorConfig(tick=0.1)}, START, 960.0, 3)
    assert main(["run", "--input", str(base / "bronze"), "--output", str(base / "lake"), "--durations", "60",
                 "--rolling-windows", "5,60"]) == 0
    return base / "lake"


def silver(lake, channel, symbol=BTC):
    return daedalus_etl.read(lake, "silver", channel, symbol).collect()


def last_known(frame, t, *, strict=False):
    "The row of `frame` that a decision at `t` sees, found by looking at all of them; None if it is too old."
    seen = [i for i, c in enumerate(frame["capture_ts"]) if (c < t if strict else c <= t)]
    return frame.row(seen[-1], named=True) if seen and t - frame["capture_ts"][seen[-1]] <= GAP else None


def value(row, column, window=0):
    return None if row is None or row["segment_age_s"] < window else row[column]


FEATURES = ("orderbook.spread_bps", "ofi_sum_60s", "vwap_5s", "ticker.microprice")
OWN = {"spread_bps": ("orderbook", "spread_bps", 0), "ofi_sum_60s": ("orderbook", "ofi_sum_60s", 60),
       "vwap_5s": ("trades", "vwap_5s", 5), "microprice": ("ticker", "microprice", 0)}


@pytest.mark.parametrize("clock", ["bars:60s", "grid:10s", "rows:trades", "rows:orderbook"])
def test_values_are_those_of_the_slow_twin(lake, clock):
    table = daedalus_etl.research_table(lake, features=FEATURES, clock=clock, symbols=BTC, labels="fwd_return_15s")
    frames = {c: silver(lake, c) for c in ("orderbook", "trades", "ticker")}
    own = clock.removeprefix("rows:")
    rng = np.random.default_rng(1)
    for i in sorted({0, 1, len(table) - 1, *rng.integers(0, len(table), 25).tolist()}):
        row = table.frame.row(i, named=True)
        for name, (channel, column, window) in OWN.items():
            if channel == own: found = frames[channel].row(i, named=True)
            else: found = last_known(frames[channel], row["t"], strict=own == "trades")
            assert row[name] == value(found, column, window), (i, name)
        _check_label(row, frames["orderbook"])


def _check_label(row, books):
    now, then = (last_known(books, row["t"] + timedelta(seconds=s)) for s in (0, 15))
    known = row["t"] + timedelta(seconds=15)
    if now is None or known > books["capture_ts"][-1]: assert row["fwd_return_15s"] is None
    else: assert row["fwd_return_15s"] == log(then["mid_price"] / now["mid_price"])
    assert row["fwd_return_15s_known_at"] == (None if row["fwd_return_15s"] is None else known)


def test_labels_of_trades_are_those_of_the_function(lake):
    names = ("realized_spread_5s", "price_impact_5s")
    table = daedalus_etl.research_table(lake, features="trades.price", clock="rows:trades", symbols=BTC, labels=names)
    config = FeatureConfig(label_horizons=(5,))
    made = daedalus_etl.labels(silver(lake, "orderbook"), trades=silver(lake, "trades"), config=config)
    assert table.y.equals(made.select(names)) and table.y.null_count().max_horizontal()[0] < len(table) / 2
    with pytest.raises(ConfigError, match="rows:trades"):
        daedalus_etl.research_table(lake, features="trades.price", labels=names, clock="grid:1s")


def test_a_bar_is_decided_upon_when_it_is_known_and_only_if_it_is_over(lake):
    table = daedalus_etl.research_table(lake, features=["bars.volume", "bars.close"], symbols=BTC).frame
    bars = daedalus_etl.read(lake, "gold", "trades_bars/60s", BTC).collect()
    over = bars.filter("is_complete")
    assert over.height < bars.height                        # the last one is open
    assert table["t"].to_list() == over["available_at"].to_list()
    assert table["volume"].to_list() == over["volume"].to_list()


def test_days_read_one_by_one_are_the_whole(lake):
    for clock in ("grid:5s", "rows:orderbook", "rows:trades"):
        for warmup in ("mask", "drop", "keep"):
            kwargs = dict(features=FEATURES, clock=clock, symbols=BTC, labels=("fwd_return_60s", "barrier_return"))
            table = daedalus_etl.research_table(lake, **kwargs, warmup=warmup)
            frames = {c: silver(lake, c) for c in table.recipe.silver}
            whole = table_rows(frames | {MIDS: silver(lake, "orderbook")}, table.recipe)
            assert table.frame.equals(whole), (clock, warmup)


def test_a_choice_of_time_is_a_choice_of_rows(lake):
    low, high = START + timedelta(seconds=150), START + timedelta(seconds=700)
    for clock in ("bars:60s", "grid:10s", "rows:orderbook"):
        kwargs = dict(features=FEATURES, clock=clock, symbols=BTC, labels="fwd_return_60s", warmup="drop")
        whole = daedalus_etl.research_table(lake, **kwargs).frame
        part = daedalus_etl.research_table(lake, **kwargs, start=low, end=high).frame
        assert part.equals(whole.filter(pl.col("t").is_between(low, high))), clock
        assert 0 < part.height < whole.height
    midnight = datetime(2026, 1, 15, tzinfo=UTC)            # the bar before lies in the day before, and is known then
    day = daedalus_etl.research_table(lake, features="bars.volume", start="2026-01-15", symbols=BTC).frame
    assert day["t"][0] == midnight and day["bar_start"][0] < midnight


def test_streams_do_not_mix(lake):
    kwargs = dict(features=FEATURES, clock="grid:10s", labels="fwd_return_60s")
    both = daedalus_etl.research_table(lake, **kwargs).frame
    assert both["symbol"].unique().sort().to_list() == [BTC, "ETH-USDT"]
    for symbol in (BTC, "ETH-USDT"):
        assert daedalus_etl.research_table(lake, **kwargs, symbols=symbol).frame.equals(both.filter(symbol=symbol))


def test_warm_up(lake):
    asked = dict(features="ofi_sum_60s", clock="rows", symbols=BTC)
    masked, dropped, kept = (daedalus_etl.research_table(lake, **asked, warmup=w) for w in ("mask", "drop", "keep"))
    books = silver(lake, "orderbook")
    young = (books["segment_age_s"] < 60).sum()
    assert young > 10 and masked.X["ofi_sum_60s"].null_count() == young == len(kept) - len(dropped)
    assert kept.X["ofi_sum_60s"].to_list() == books["ofi_sum_60s"].to_list()
    asked["features"] = "orderbook.log_return"
    first = daedalus_etl.research_table(lake, **asked, warmup="drop")
    assert len(first) == books.height - 1                   # a return needs two rows


def test_names_categories_and_prefixes(lake):
    def names(*asked, clock="rows"): return daedalus_etl.research_table(lake, features=asked, clock=clock).features
    assert names("log_return") == [f"{c}_log_return" for c in ("orderbook", "trades", "ticker")]
    assert names("log_return", clock="bars:60s")[0] == "bars_log_return"
    assert names("trades.log_return", "trades.price") == ["log_return", "price"]
    assert names("total_bid_volume") == ["total_bid_volume"]            # an alias of total_bid_depth
    rolling = names("ticker.rolling")
    assert "mid_price_mean_60s" in rolling and "microprice" not in rolling
    for asked, error in (("nothing", UnknownFeatureError), ("fwd_return_60s", UnknownFeatureError),
                         ("label", UnknownFeatureError), ("barrier_known_at", UnknownFeatureError)):
        with pytest.raises(error): names(asked)
    with pytest.raises(ConfigError): daedalus_etl.research_table(lake, features="spread_bps", labels="spread_bps")
    with pytest.raises(ConfigError): daedalus_etl.research_table(lake, features="spread_bps", warmup="perhaps")
    with pytest.raises(ConfigError): daedalus_etl.research_table(lake, features="spread_bps", clock="daily")
    with pytest.raises(EmptyMatchError):
        daedalus_etl.research_table(lake, features="spread_bps", clock="rows", start="2026-01-14T00:00Z",
                                    end="2026-01-14T01:00Z")


def test_only_the_columns_that_are_asked_for_are_read(lake, monkeypatch):
    asked, read_lake = {}, make.read_lake

    def noting(lake, tier, channel, chosen, columns):
        asked.setdefault(channel, set()).update(columns)
        return read_lake(lake, tier, channel, chosen, columns)
    monkeypatch.setattr(make, "read_lake", noting)
    daedalus_etl.research_table(lake, features=("orderbook.spread_bps", "bars.volume"), labels="fwd_return_60s")
    assert asked == {"trades_bars/60s": {"volume", "is_complete"},
                     "orderbook": {"segment_id", "segment_age_s", "spread_bps", "mid_price"}}


# ---- frames by hand: gaps and ties

def frame_of(channel, seconds, **columns):
    at = [START + timedelta(seconds=s) for s in seconds]
    base = {"exchange": "x", "symbol": BTC, "capture_ts": at, "segment_id": 0, "segment_age_s": 1e6}
    return pl.DataFrame(base | columns, schema_overrides={"capture_ts": pl.Datetime("us", "UTC")})


def test_a_value_does_not_outlive_a_gap():
    books = frame_of("orderbook", [0, 600], mid_price=[1.0, 2.0])
    recipe = Recipe(Clock.parse("grid:60s"), (Feature("mid", "orderbook", "mid_price"),))
    got = table_rows({"orderbook": books}, recipe)
    assert got["t"].to_list() == [START + timedelta(seconds=s) for s in range(0, 601, 60)]
    assert got["mid"].to_list() == [*[1.0] * 6, *[None] * 4, 2.0]
    short = Recipe(recipe.clock, recipe.features, config=FeatureConfig(resample_max_staleness=100.0))
    assert table_rows({"orderbook": books}, short)["mid"].to_list() == [1.0, 1.0, *[None] * 8, 2.0]


def test_at_equal_clocks_trades_come_before_books():
    books = frame_of("orderbook", [0, 5, 10], mid_price=[1.0, 2.0, 3.0])
    tape = frame_of("trades", [5, 5, 11], price=[7.0, 8.0, 9.0])
    frames = {"orderbook": books, "trades": tape}
    both = Feature("mid", "orderbook", "mid_price"), Feature("price", "trades", "price")
    at_trades = table_rows(frames, Recipe(Clock.parse("rows:trades"), both))
    assert at_trades.select("mid", "price").rows() == [(1.0, 7.0), (1.0, 8.0), (3.0, 9.0)]
    at_books = table_rows(frames, Recipe(Clock.parse("rows:orderbook"), both))
    assert at_books.select("mid", "price").rows() == [(1.0, None), (2.0, 8.0), (3.0, 8.0)]
    bars = pl.DataFrame({"exchange": ["x"], "symbol": [BTC], "available_at": tape["capture_ts"][1:2],
                         "is_complete": [True]})
    closed = table_rows(frames | {BARS: bars}, Recipe(Clock.parse("bars:tick-2"), both))
    assert closed.select("mid", "price").rows() == [(1.0, 8.0)]
    timed = table_rows(frames | {BARS: bars}, Recipe(Clock.parse("bars:60s"), both))
    assert timed.select("mid", "price").rows() == [(2.0, 8.0)]


def test_silver_that_cannot_tell_its_age_is_refused_or_kept():
    books = frame_of("orderbook", [0, 1], mid_price=[1.0, 2.0]).drop("segment_age_s")
    feature = (Feature("mid", "orderbook", "mid_price"),)
    with pytest.raises(SchemaError, match="segment_age_s"):
        table_rows({"orderbook": books}, Recipe(Clock.parse("rows:orderbook"), feature))
    kept = table_rows({"orderbook": books}, Recipe(Clock.parse("rows:orderbook"), feature, warmup="keep"))
    assert kept["mid"].to_list() == [1.0, 2.0]


# ---- leaks of whole tables

def test_a_table_passes_and_a_join_that_looks_forward_does_not(lake, monkeypatch):
    plan = make.plan_table(lake, FEATURES, "grid:10s", ("fwd_return_15s", "barrier_label"), "mask", selection(BTC),
                           FeatureConfig())
    assert make.check_table(plan, 3)["rows"].min() > 0
    asof = rows.asof_join

    def late(left, right, **how):
        return asof(left, right.with_columns(pl.col("capture_ts") - timedelta(seconds=4)), **how)
    monkeypatch.setattr(rows, "asof_join", late)
    with pytest.raises(LeakError): make.check_table(plan, 3)


# ---- the table itself

@pytest.fixture(scope="module")
def table(lake) -> ResearchTable:
    return daedalus_etl.research_table(
        lake, features=FEATURES, clock="grid:10s", labels=("fwd_return_15s", "fwd_return_60s"),
        split=Split(test=0.3, embargo_s=20))


def test_training_ends_before_the_test_begins(table):
    train, test = table.train(), table.test()
    assert len(train) and len(test)
    assert train.frame["fwd_return_60s_known_at"].max() <= test.frame["t"].min()
    assert train.y.null_count().sum_horizontal()[0] == test.y.null_count().sum_horizontal()[0] == 0
    assert train.X.columns == table.features and train.y.columns == table.labels
    assert set(table.roles()) == {"train", "test", "purged", "unlabelled"}


def test_folds_cover_all_labelled_rows_once(table):
    folded = table.with_split(Split(n_folds=4, embargo_s=15))
    tested = pl.concat(b.frame for _, b in folded.folds())
    assert tested.height == int((known_us(folded.frame, folded.recipe.labels) != UNKNOWN).sum())
    assert tested.select("symbol", "t").is_duplicated().sum() == 0
    for train, test in folded.folds():
        low, high = test.frame["t"].min(), test.frame["fwd_return_60s_known_at"].max()
        t, known = train.frame["t"], train.frame["fwd_return_60s_known_at"]
        assert ((known <= low) | (t >= high + timedelta(seconds=15))).all()
    with pytest.raises(ConfigError): folded.train(4)
    with pytest.raises(ConfigError): folded.train()


def test_a_file_holds_all_that_the_table_is(table, tmp_path):
    path = table.write(tmp_path / "below" / "t.parquet")
    assert pl.read_parquet(path).equals(table.frame) and [p.name for p in path.parent.iterdir()] == ["t.parquet"]
    schema = pq.read_schema(path)
    said = {k.decode(): v.decode() for k, v in schema.field("ofi_sum_60s").metadata.items()}
    assert said["unit"] == "base" and said["source"] == "orderbook.ofi_sum_60s" and said["window_s"] == "60"
    assert schema.field("fwd_return_60s").metadata[b"role"] == b"label"
    about = json.loads(schema.metadata[b"daedalus.table"])
    assert about["labels"] == table.labels and about["split"]["embargo_s"] == 20 and about["warmup"] == "mask"
    assert str(tmp_path) not in json.dumps(about)
    arrow, back = table.to_arrow(), pq.read_table(path)             # a dictionary may be cut anew on the way
    assert arrow.drop_columns("split").equals(back.drop_columns("split"))
    assert arrow["split"].to_pylist() == back["split"].to_pylist()
    before = path.read_bytes()
    with pytest.raises(ConflictError): table.write(path)
    assert path.read_bytes() == before
    table.train().write(path, overwrite=True)
    assert pl.read_parquet(path).height == len(table.train())


def test_a_write_that_fails_leaves_what_was_there(table, tmp_path, monkeypatch):
    path = table.write(tmp_path / "t.parquet")
    before = path.read_bytes()

    def full(made, file, **_):
        file.write(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StorageError): table.write(path, overwrite=True)
    with pytest.raises(StorageError): table.write(tmp_path / "other.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"] and path.read_bytes() == before


def test_it_shows_what_it_is(table):
    page = table._repr_html_()
    assert "ofi_sum_60s" in page and "fwd_return_60s" in page and BTC in page and "purged" in page
    assert repr(table).startswith(f"ResearchTable({len(table):,} rows, 4 features, 2 labels")


# ---- the command line

def test_the_command_writes_a_table_and_checks_it(lake, tmp_path, capsys):
    out = tmp_path / "t.parquet"
    argv = ["table", str(lake), "--features", ",".join(FEATURES), "--clock", "grid:10s", "--symbol", "BTC/USDT"]
    assert main([*argv, "--labels", "fwd_return_15s", "--folds", "3", "--check-leaks", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no leak found in joins, warm-up and labels" in said and str(out) in said
    frame = pl.read_parquet(out)
    assert frame["fold"].unique().sort().to_list() == [0, 1, 2] and frame["symbol"].unique().to_list() == [BTC]
    assert main([*argv, "--output", str(out)]) == 3         # it is there
    assert main([*argv, "--features", "fwd_return_15s"]) == 2
    assert main([*argv, "--embargo", "5"]) == 2
    assert main([*argv, "--symbol", "XRP/USDT"]) == 2
    assert "fwd_return_15s" in capsys.readouterr().err and leftovers(lake) == []


# ---- windows as silver was made, mids of each stream, bars longer than a gap

@pytest.fixture(scope="module")
def short_lake(tmp_path_factory) -> Path:
    "Silver with a regression over 60 s; the books of one symbol are missing; bars of 600 s."
    base = tmp_path_factory.mktemp("short")
    write_bronze(base / "bronze", {BTC: SimulatorConfig(), "ETH-USDT": SimulatorConfig(tick=0.1)}, START, 2400.0, 3)
    (base / "c.yaml").write_text("features: {kyle_lambda_window: 60, bar_durations: [600], rolling_windows: [5],\n"
                                 "           categories: [structural, dynamic, advanced]}\n")
    assert main(["run", "--config", str(base / "c.yaml"), "--input", str(base / "bronze"),
                 "--output", str(base / "lake")]) == 0
    shutil.rmtree(next((base / "lake/silver/orderbook").rglob("symbol=ETH-USDT")))
    return base / "lake"


def test_windows_are_those_that_silver_was_made_with(short_lake):
    asked = dict(features="orderbook.ofi_n", clock="rows", symbols=BTC)
    books = silver(short_lake, "orderbook")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = daedalus_etl.research_table(short_lake, **asked)
    assert table.recipe.features[0].window_s == 60
    want = books.select(pl.when(pl.col("segment_age_s") >= 60).then("ofi_n")).to_series().to_list()
    assert table.X["ofi_n"].to_list() == want and any(v is not None for v in want)
    with pytest.warns(UserWarning, match="made with a window of 60 s"):
        told = daedalus_etl.research_table(short_lake, **asked, config=FeatureConfig(kyle_lambda_window=300))
    assert told.frame.equals(table.frame)


def test_mids_are_chosen_for_each_stream(short_lake):
    asked = dict(features="trades.price", clock="rows:trades", labels="fwd_return_15s")
    both = daedalus_etl.research_table(short_lake, **asked).frame
    for symbol in (BTC, "ETH-USDT"):
        one = daedalus_etl.research_table(short_lake, **asked, symbols=symbol).frame
        assert one["fwd_return_15s"].is_not_null().any() and one.equals(both.filter(symbol=symbol)), symbol


def test_the_first_bar_of_a_partition_has_a_label_even_if_it_is_longer_than_a_gap(short_lake, tmp_path):
    only_bars = tmp_path / "lake"
    shutil.copytree(short_lake, only_bars)
    for channel in ("orderbook", "ticker"): shutil.rmtree(only_bars / "silver" / channel)
    table = daedalus_etl.research_table(only_bars, features="bars.close", clock="bars:600s", symbols=BTC,
                                        labels="fwd_return_600s").frame
    bars = daedalus_etl.read(only_bars, "gold", "trades_bars/600s", BTC).collect()
    want = daedalus_etl.labels(bars, config=FeatureConfig(label_horizons=(600,))).filter("is_complete")
    assert table["fwd_return_600s"].to_list() == want["fwd_return_600s"].to_list()
    assert table["fwd_return_600s"][0] is not None


# ---- folds in a file, splits cut once, and what is refused

def test_folds_reach_the_file_purged_and_with_the_embargo(lake, tmp_path, capsys):
    out = tmp_path / "folds.parquet"
    assert main(["table", str(lake), "--features", "trades.price", "--clock", "grid:10s", "--labels", "fwd_return_60s",
                 "--folds", "3", "--embargo", "30", "--output", str(out)]) == 0
    frame, said = pl.read_parquet(out), capsys.readouterr().out
    for k in range(3):
        role, (low, high) = frame[f"split_{k}"], (frame.filter(pl.col(f"split_{k}") == "test").select(
            pl.col("t").min(), pl.col("fwd_return_60s_known_at").max()).row(0))
        train = frame.filter(role == "train")
        assert train.filter((pl.col("fwd_return_60s_known_at") > low)
                            & (pl.col("t") < high + timedelta(seconds=30))).is_empty()
        assert (role == "purged").any() and ((role == "test") <= (frame["fold"] == k)).all()
    assert "embargoed" in said and "split_2" in said
    assert pq.read_schema(out).field("split_1").metadata[b"role"] == b"split"


@pytest.mark.parametrize(("train", "test"), [(0.1, 0.9), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3)])
def test_two_shares_are_cut_once(train, test):
    for n in range(10, 60):
        fold = Split(train=train, test=test).fold(np.arange(n))
        assert (fold >= 0).all() and (fold == 0).sum() == round(n * train)


def test_an_embargo_may_be_a_timedelta_and_ranges_hold_rows():
    assert Split(test=0.5, embargo_s=timedelta(minutes=1)) == Split(test=0.5, embargo_s=60.0)
    t = np.arange(10) * S
    for wrong in (Split(test=("2031-01-01", None)), Split(test=0.5, train=("2031-01-01", None))):
        with pytest.raises(ConfigError, match="holds none of the 10 rows"): wrong.fold(t)
    for wrong in (dict(test=0.5, embargo_s="60"), dict(test=0.5, embargo_s=None), dict(train=0.6, test=0.6)):
        with pytest.raises(ConfigError): Split(**wrong)


@pytest.mark.parametrize(("asked", "error"), [
    (dict(features="bars.bar_end"), UnknownFeatureError), (dict(features="bar_end"), UnknownFeatureError),
    (dict(features="exchange"), UnknownFeatureError), (dict(features="symbol"), UnknownFeatureError),
    (dict(features="bars.is_complete"), UnknownFeatureError), (dict(features=None), ConfigError),
    (dict(features=[1]), ConfigError), (dict(labels=[None]), ConfigError), (dict(split="x"), ConfigError),
    (dict(labels="fwd_return_999999999999s"), ConfigError)])
def test_what_makes_no_table_is_refused_by_name(lake, asked, error):
    with pytest.raises(error): daedalus_etl.research_table(lake, **dict(features="bars.close") | asked)


def test_a_label_that_is_asked_for_twice_is_there_once(lake):
    table = daedalus_etl.research_table(lake, features="bars.close", labels=["fwd_return_60s"] * 2)
    assert table.labels == ["fwd_return_60s"] and table.y.columns == table.labels
