"""Charts of future returns and correlations, against slow and obvious twins."""
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daedalus_etl.core.errors import ConfigError, SchemaError
from daedalus_etl.explore import returns
from daedalus_etl.explore.returns import correlation, correlation_table, decile_plot, decile_table, future_return

START = datetime(2026, 1, 15, tzinfo=UTC)
GAP = 300_000_000           # us, the default of max_gap_s


def frame_of(rows) -> pl.DataFrame:
    "Rows of (stream, seconds in quarters, price) in the order given."
    return pl.DataFrame({
        "exchange": ["x"] * len(rows), "symbol": [f"S{s}" for s, _, _ in rows],
        "capture_ts": [None if q is None else START + timedelta(seconds=q / 4) for _, q, _ in rows],
        "mid_price": [p for _, _, p in rows]},
        schema_overrides={"capture_ts": pl.Datetime("us", "UTC"), "mid_price": pl.Float64})


def naive_future(rows, horizon_s):
    "Row by row over all rows of the same stream and segment, straight from the definition."
    order = sorted((i for i, r in enumerate(rows) if r[1] is not None), key=lambda i: (rows[i][0], rows[i][1], i))
    segment, last = {}, None
    for n, i in enumerate(order):
        s, q, _ = rows[i]
        new = last is None or rows[last][0] != s or (q - rows[last][1]) * 250_000 > GAP
        segment[i] = n if new else segment[last]
        last = i
    rank = {i: n for n, i in enumerate(order)}
    out = []
    for i, (_, q, _) in enumerate(rows):
        if q is None: out.append(None); continue
        mine = [j for j in order if segment[j] == segment[i]]
        until = q + horizon_s * 4
        now = [rows[j][2] for j in mine if rank[j] <= rank[i] and rows[j][2]]
        then = [rows[j][2] for j in mine if rows[j][1] <= until and rows[j][2]]
        known = any(rows[j][1] >= until for j in mine)
        out.append(math.log(then[-1]) - math.log(now[-1]) if known and now and then else None)
    return out


ROW = st.tuples(st.integers(0, 1), st.one_of(st.integers(0, 40), st.integers(1300, 1330), st.none()),
                st.one_of(st.none(), st.sampled_from([1.0, 2.0, 3.0, 5.0])))


@given(st.lists(ROW, max_size=30), st.sampled_from([0.25, 1, 2.5, 400]))
def test_future_return_is_its_twin(rows, horizon):
    made = future_return(frame_of(rows), horizon)
    assert made.columns[:-1] == frame_of(rows).columns and made.height == len(rows)
    for found, wanted in zip(made.to_series(-1).to_list(), naive_future(rows, horizon), strict=True):
        assert (found is None) == (wanted is None)
        assert wanted is None or math.isclose(found, wanted, abs_tol=1e-15)


def test_written_segments_decide():
    frame = frame_of([(0, 0, 1.0), (0, 4, 2.0), (0, 8, 4.0)]).with_columns(segment_id=pl.Series([0, 7, 7]))
    assert future_return(frame, 1)["forward_return_1s"].to_list() == [None, math.log(2.0), None]


def test_other_prices_and_clocks():
    bars = pl.DataFrame({"available_at": [START + timedelta(hours=h) for h in (1, 2, 4)], "close": [1.0, 2.0, 4.0],
                         "bar_duration_sec": [3600.0] * 3})
    made = future_return(bars, 3600, clock="available_at")["forward_return_3600s"]
    assert made.to_list() == [math.log(2.0), None, None]        # the bar between is missing: a gap
    ms = pl.DataFrame({"timestamp": [0, 1000, 2000], "bid": [1, 2, 4]})
    assert future_return(ms, 1, price="bid", clock="timestamp")["forward_return_1s"].to_list()[:2] == [math.log(2)] * 2
    bad = frame_of([(0, 0, -1.0), (0, 4, float("nan")), (0, 8, 0.0), (0, 12, 3.0)])
    assert future_return(bad, 1)["forward_return_1s"].null_count() == 4


def test_decimal_prices():
    frame = frame_of([(0, 0, 1.0), (0, 4, 2.0)]).cast({"mid_price": pl.Decimal(10, 2)})
    assert future_return(frame, 1)["forward_return_1s"][0] == math.log(2.0)


@pytest.mark.parametrize("horizon", [0, -1, float("nan"), float("inf")])
def test_horizon_is_a_length_of_time(horizon):
    with pytest.raises(ConfigError): future_return(frame_of([(0, 0, 1.0)]), horizon)


def test_what_is_no_number_is_refused():
    frame = frame_of([(0, 0, 1.0)]).with_columns(side=pl.lit("buy"))
    with pytest.raises(SchemaError, match="'side'"): decile_plot(frame, "side", 1)


# ---- groups

def walk(n=900, seed=3) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 900 * 4, n))
    frame = frame_of([(0, int(q), float(p)) for q, p in zip(t, 100 * np.exp(np.cumsum(rng.normal(0, 1e-4, n))))])
    return frame.with_columns(f=pl.Series(rng.normal(size=n)), g=pl.Series(rng.integers(0, 3, n)))


def test_error_is_the_double_sum():
    rng = np.random.default_rng(0)
    t, u = rng.uniform(0, 60, 150), rng.normal(size=150)
    for width in (0.3, 5, 200):
        weights = np.clip(1 - np.abs(t[:, None] - t) / width, 0, None)
        assert math.isclose(returns.overlap_error(t, u, width), math.sqrt(u @ weights @ u) / 150, rel_tol=1e-9)


def test_groups_are_equal_parts_and_ties_stay_together():
    frame = walk()
    rows = pl.DataFrame({"t": frame["capture_ts"].dt.epoch("us"), "x": frame["f"], "r": frame["f"] * 1e-4})
    table = decile_table(rows, 1_000_000, 10)
    assert table["n"].to_list() == [90] * 10 and table["mean"].is_sorted()
    means = [chunk.mean() for chunk in np.split(np.sort(frame["f"].to_numpy()), 10)]
    np.testing.assert_allclose(table["mean"], means, rtol=1e-12)
    tied = decile_table(rows.with_columns(x=frame["g"].cast(float)), 1_000_000, 10)
    assert tied.height == 3 and tied.select(pl.col("low") == pl.col("high")).to_series().all()


def test_band_holds_what_it_says():
    "Features that know nothing: a 95 % band of overlapping returns misses zero seldom, a naive one very often."
    inside = naive = total = 0
    for seed in range(12):
        frame = future_return(walk(seed=seed), 20).with_columns(pl.col("f").rolling_mean(60, min_samples=1))
        rows = frame.select(t=pl.col("capture_ts").dt.epoch("us"), x="f", r="forward_return_20s").drop_nulls()
        table = decile_table(rows, 20_000_000, 4)
        band, r = table.filter(pl.col("lo").is_not_null()), rows["r"].std() * 1e4
        inside += ((band["lo"] <= 0) & (band["hi"] >= 0)).sum()
        naive += (band["mean"].abs() <= 1.96 * r / band["n"].sqrt()).sum()
        total += band.height
    assert total >= 40 and inside / total > 0.8 > naive / total + 0.2


# ---- correlations

@given(st.lists(st.tuples(*[st.one_of(st.none(), st.integers(0, 4).map(float))] * 3), max_size=25),
       st.sampled_from(["spearman", "pearson"]))
def test_correlations_are_pairwise(rows, method):
    frame = pl.DataFrame(rows, schema=dict.fromkeys("abc", pl.Float64), orient="row")
    for a, b, r, n in correlation_table(frame, list("abc"), method).rows():
        both = frame.select(x=a, y=b).drop_nulls()
        assert n == both.height
        x, y = (both[k].rank() if method == "spearman" else both[k] for k in "xy")
        if n < 3 or x.n_unique() == 1 or y.n_unique() == 1: assert r is None
        else: assert math.isclose(r, np.corrcoef(x, y)[0, 1], abs_tol=1e-12)


def test_infinity_is_no_value():
    frame = pl.DataFrame({"a": [1.0, 2, 3, 4], "b": [1.0, 2, float("inf"), float("nan")]})
    assert set(correlation_table(frame, ["a", "b"])["n"]) == {4, 2}


def test_many_features_and_none():
    wide = pl.DataFrame({f"f{i}": np.random.default_rng(i).normal(size=50) for i in range(13)})
    def marks(chart): return [layer["mark"]["type"] for layer in chart.to_dict()["layer"]]
    assert marks(correlation(wide, wide.columns)) == ["rect", "text"]                # crosses, but no numbers
    assert marks(correlation(wide, wide.columns[:12])) == ["rect", "text", "text"]
    assert correlation(wide, []).to_dict()["mark"]["type"] == "text"
    assert sorted(returns.by_angle(correlation_table(wide, wide.columns), wide.columns)) == sorted(wide.columns)
