"Distributions against slow twins: bins, distribution function, distance, quantiles by hour; and what is no chart."
import json
from bisect import bisect_right
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daedalus_etl.core.errors import ConfigError, SchemaError, UnknownFeatureError
from daedalus_etl.explore import distribution as d

T0 = datetime(2026, 1, 14)
finite = st.floats(-1e6, 1e6, allow_nan=False)


def frame(values, dtype=None, step_s=60):
    clock = [T0 + timedelta(seconds=step_s * i) for i in range(len(values))]
    return pl.DataFrame({"capture_ts": clock, "x": pl.Series("x", values, dtype=dtype, strict=False)})


def sample(values):
    return d._sample(frame(values, pl.Float64), "x", "s")


def said(chart) -> str:
    "All text of titles in a chart."
    return json.dumps(chart.to_dict(), ensure_ascii=False)


def rows_of(chart) -> list[list[dict]]:
    return [pl.read_csv(text.encode()).to_dicts() for text in chart.to_dict()["datasets"].values()]


@given(st.lists(finite, min_size=1, max_size=80), st.integers(1, 20))
def test_bins_hold_what_a_loop_puts_into_them(values, bins):
    s = sample(values)
    low, high = min(values), max(values)
    if low == high: high = low + 1
    edges = d._edges(low, high, bins, whole=False)
    expected = [0] * (edges.size - 1)
    for v in values:
        expected[min(bisect_right(edges.tolist(), v) - 1, edges.size - 2)] += 1
    got = d._binned(s, edges)
    assert got["rows"].to_list() == expected
    assert (got["density"] * (got["high"] - got["low"])).sum() == pytest.approx(1)


def test_density_counts_values_outside_the_axis_in_its_whole():
    got = d._binned(sample([0.5, 0.5, 1.5, 99.0]), np.array([0.0, 1.0, 2.0]))
    assert got["rows"].to_list() == [2, 1] and got["density"].to_list() == [0.5, 0.25]


def test_axis_cuts_a_thousandth_at_each_end_and_says_so():
    values = [-1e9] * 2 + list(np.linspace(0, 1, 9_996)) + [1e9] * 2
    text = said(d.histogram(frame(values), "x"))
    low, high = d._limits([sample(values)])
    assert 0 <= low < 0.01 and 0.99 < high <= 1
    outside = sum(not low <= v <= high for v in values)
    assert f"{100 * outside / 10_000:.3g} % of values outside the axis" in text


def test_two_samples_share_their_bins():
    chart = d.histogram(frame(list(range(100))), "x", frame(list(range(50, 400))), labels=("a", "b"))
    bins = [{(r["low"], r["high"]) for r in rows} for rows in rows_of(chart)]
    a, b = sorted(bins, key=len)
    assert a <= b and len(b - a) == 1                   # the outline has one point more, at its end


@given(st.lists(finite, min_size=1, max_size=60), st.lists(finite, min_size=1, max_size=60))
def test_ks_distance_by_the_definition(a, b):
    def f(values, x): return sum(v <= x for v in values) / len(values)
    expected = max(abs(f(a, x) - f(b, x)) for x in a + b)
    assert d.ks_distance(pl.Series(a), pl.Series(b)) == pytest.approx(expected, abs=1e-12)


def test_distribution_function_is_exact_where_it_is_drawn():
    values = np.random.default_rng(1).choice(np.arange(3000) / 7, 20_000)
    s = sample(values)
    drawn = d._cumulative(s, *d._limits([s]))
    assert len(drawn) <= d.STEPS + 3
    for x, share in drawn.select("x", "share").sample(40, seed=1).rows():
        assert share == pytest.approx((values <= x).mean(), abs=1e-12)
    assert drawn["share"].diff().max() < 0.005          # no step is skipped


@given(st.lists(st.one_of(st.none(), finite), min_size=1, max_size=60))
def test_boxes_are_the_quantiles_of_each_hour(values):
    data = frame(values, pl.Float64, step_s=1700)
    got = {r["hour"]: r for r in d._hourly(data, "x", "", None).rows(named=True)}
    hours = {}
    for t, v in data.rows():
        if v is not None: hours.setdefault(t.hour, []).append(v)
    assert set(got) == set(hours)
    for hour, held in hours.items():
        assert got[hour]["rows"] == len(held)
        assert [got[hour][k] for k in d._QUANTILES] == pytest.approx(
            np.quantile(held, list(d._QUANTILES.values())).tolist(), abs=1e-6)


def test_classes_are_counted_and_the_many_are_one_bar():
    names = [f"c{i:02}" for i in range(40) for _ in range(i + 1)]
    table, order = d._classes([d._sample(frame(names, pl.String), "x", "")])
    assert order[:2] == ["c39", "c38"] and order[-1] == "… 10 others" and len(order) == 31
    assert table["rows"].sum() == len(names)
    assert table.filter(pl.col("value") == order[-1])["rows"].item() == sum(range(1, 11))


def test_an_enum_keeps_its_order_and_numbers_are_sorted_as_numbers():
    enum = d._sample(frame(["high", "low", "high"], pl.Enum(["low", "mid", "high"])), "x", "")
    assert d._classes([enum])[1] == ["low", "high"]
    assert d._classes([d._sample(frame([10, 9, 10, -1], pl.Int64), "x", "")])[1] == ["-1", "9", "10"]


def test_nulls_nans_and_infinities_are_said():
    text = said(d.histogram(frame([1.0, None, float("nan"), float("inf"), *range(16)], pl.Float64), "x"))
    assert "20 rows, 10 % null, 5 % infinite" in text


@pytest.mark.parametrize("draw", [d.histogram, d.ecdf, d.box_by_hour, d.distribution])
def test_errors_name_what_is_wrong(draw):
    x = frame([1.0, 2.0])
    with pytest.raises(UnknownFeatureError, match="no column 'xx'"): draw(x, "xx")
    with pytest.raises(UnknownFeatureError, match="no column 'x'"): draw(x, "x", x.rename({"x": "y"}))
    with pytest.raises(SchemaError, match="numbers, booleans or text"): draw(x, "capture_ts")
    with pytest.raises(ConfigError, match="two different names"): draw(x, "x", x, labels=("a", "a"))


@pytest.mark.parametrize("draw", [d.histogram, d.ecdf, d.box_by_hour, d.distribution])
def test_the_frame_is_left_as_it_was(draw):
    x = frame(list(range(100)))
    before = x.clone()
    draw(x, "x", x.lazy())
    assert x.equals(before) and x.columns == ["capture_ts", "x"]


def test_a_million_rows_are_a_small_chart():
    x = frame(np.random.default_rng(1).normal(size=1_000_000), step_s=0.08)
    assert len(d.distribution(x, "x", x).to_json()) < 500_000


def test_two_recorded_days(shared_bronze):
    root = "ticker/exchange=binance/symbol=BTC-USDT/year=2024/month=08/day={:02}/data.parquet"
    a, b = (pl.scan_parquet(shared_bronze / root.format(day), hive_partitioning=False) for day in (9, 8))
    text = said(d.distribution(a, "bid", b, channel="ticker", labels=("2024-08-09", "2024-08-08")))
    assert "2024-08-09: 45,134 rows, 0 % null" in text and "bid (quote)" in text
