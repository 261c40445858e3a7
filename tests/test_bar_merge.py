"""Longer bars from shorter ones are those that rows give, in a frame and partition by partition."""
import lakes
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import dataset, put, run, statuses, tape
from polars.testing import assert_frame_equal
from test_bar_blocks import bars, time_edges
from test_bar_blocks import tape as trades_of

from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.errors import SchemaError
from daedalus_etl.features.bar_blocks import BLOCKS
from daedalus_etl.features.bar_merge import merge_bars
from daedalus_etl.transforms.bar_merge import BarMergeTransform

CLOSE = dict(rel_tol=1e-11, abs_tol=1e-13)
CONFIG = FeatureConfig(bar_blocks=tuple(BLOCKS), large_trade=100.0)


def time_bars(rows, seconds) -> pl.DataFrame:
    return bars(CONFIG, time_edges(rows[0], seconds), rows, duration_s=seconds)


def mergeable(made: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    "The bars, and those of their columns that are refused one by one, each with its reason."
    drop = []
    while True:
        try: return merge_bars(made, 300, drop=drop), drop
        except SchemaError as e:
            assert "drop=" in str(e) and e.column not in drop
            drop.append(e.column)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 300), st.integers(0, 10**6), st.sampled_from([60, 20, 100]))
def test_merged_bars_are_those_of_the_trades(n, seed, short):
    rows = trades_of(n, seed)
    got, drop = mergeable(time_bars(rows, short))
    assert_frame_equal(got, time_bars(rows, 300).drop(drop), **CLOSE)


def test_what_is_refused_and_what_is_not():
    "With unknown sides, also the ratio of counts."
    _, drop = mergeable(time_bars(trades_of(400, 1), 60))
    assert set(drop) == {
        "buy_ratio", "trade_size_median", "trade_size_p95", "footprint_price", "footprint_buy", "footprint_sell",
        "poc_price", "value_area_low", "value_area_high", "sign_entropy", "sign_entropy_2", "yang_zhang_var_20",
        "roll_spread", "corwin_schultz_spread", "abdi_ranaldo_spread", "bipower_variation", "jump_share"}


@pytest.mark.parametrize("sides", [[1, 0, -1], [-1, 0, 1], [1, 0, 1]])
def test_a_small_trade_of_unknown_side_is_seen_beside_large_ones(sides):
    t = np.array([0, 1, 61_000_000])
    rows = t, np.full(3, 100.0), np.array([1e9, 0.5, 1e9]), np.array(sides, np.int8), np.array([np.nan, 0, 0])
    made = bars(FeatureConfig(), time_edges(t, 60), rows, duration_s=60)
    with pytest.raises(SchemaError, match="unknown side"): merge_bars(made, 300)
    want = bars(FeatureConfig(), time_edges(t, 300), rows, duration_s=300).drop("buy_ratio")
    assert_frame_equal(merge_bars(made, 300, drop=["buy_ratio"]), want, **CLOSE)


@pytest.mark.parametrize("n", [30, 3000, 30_000])
def test_rounding_is_not_taken_for_unknown_sides(n):
    "Sizes over twelve orders of magnitude; merged bars are merged again."
    rng = np.random.default_rng(n)
    for share in (0.0, 0.001, 0.5, 1.0):
        t = np.sort(rng.integers(0, 3600 * 10**6, n))
        sides = np.where(rng.random(n) < share, 1, -1).astype(np.int8)
        rows = t, np.full(n, 100.0), 10 ** rng.uniform(-6, 6, n), sides, np.zeros(n)
        made = bars(FeatureConfig(), time_edges(t, 60), rows, duration_s=60)
        got = merge_bars(merge_bars(made, 300), 1800)
        want = bars(FeatureConfig(), time_edges(t, 1800), rows, duration_s=1800)
        assert_frame_equal(got.select("buy_ratio"), want.select("buy_ratio"), **CLOSE)


@pytest.mark.parametrize("seed", range(20))
def test_delta_lies_between_its_extremes_to_the_last_bit(seed):
    "Also where a bar has no trade of known side, over few bars and many."
    rng = np.random.default_rng(seed)
    n = 600 if seed % 2 else 40
    t = np.sort(rng.integers(0, 3600 * 10**6, n))
    sides = rng.choice([1, 0, -1], n, p=[0.8, 0.1, 0.1] if seed % 3 else [0.1, 0.1, 0.8]).astype(np.int8)
    rows = t, np.full(n, 100.0), rng.exponential(1.0, n), sides, np.zeros(n)
    config = FeatureConfig(bar_blocks=("delta",))
    made = bars(config, time_edges(t, 5), rows, duration_s=5)
    for d in (60, 300, 3600):
        got = merge_bars(made, d, drop=["buy_ratio"])
        assert (got["delta_min"] <= got["delta"]).all() and (got["delta"] <= got["delta_max"]).all()
        want = bars(config, time_edges(t, d), rows, duration_s=d).drop("buy_ratio")
        assert_frame_equal(got, want, **CLOSE)


def merge_config(lake, short: int = 60) -> TransformConfig:
    source, gold = f"{lake}/gold/trades_bars/{short}s", f"{lake}/gold/longer"
    return TransformConfig(name="bars_from_bars", inputs={"bars": InputConfig(name="bars", path=source)},
                           outputs={"gold": OutputConfig(name="gold", path=gold)})


@pytest.mark.parametrize("days", [(8, 9, 10), (8, 10)])
def test_partitions_over_their_edges(tmp_path, days):
    "7020 s divide no day, 102000 s are longer than one; a day may be missing."
    bronze, lake, widths = tmp_path / "bronze", tmp_path / "lake", (60, 300, 7020, 102_000)
    features = FeatureConfig(rolling_windows=(5,), bar_durations=widths)
    for d in days: put(bronze, tape(d), d)
    run(lakes.trades(bronze, lake), features=features)
    run(lakes.bars(lake / "silver/trades", lake), features=features)
    report = run(BarMergeTransform(merge_config(lake)), features=features)
    assert statuses(report) == ["written"] * len(days)
    assert not (lake / "gold/longer/60s").exists()
    for d in widths[1:]:
        want = dataset(lake / f"gold/trades_bars/{d}s")
        assert_frame_equal(dataset(lake / f"gold/longer/{d}s"), want, **CLOSE)
    again = run(BarMergeTransform(merge_config(lake)), features=features)
    assert set(statuses(again)) == {"done"}


def test_a_later_day_completes_the_bars_of_the_day_before(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    features = FeatureConfig(rolling_windows=(5,), bar_durations=(60, 7020))
    for d in (8, 9):
        put(bronze, tape(d), d)
        run(lakes.trades(bronze, lake), features=features)
        run(lakes.bars(lake / "silver/trades", lake), features=features)
        run(BarMergeTransform(merge_config(lake)), features=features)
        assert_frame_equal(dataset(lake / "gold/longer/7020s"), dataset(lake / "gold/trades_bars/7020s"), **CLOSE)
