"""Scalar series beside rows, against a quadratic twin, and as a channel of a lake."""
import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lakes import leaf, put

import daedalus_etl
from daedalus_etl.core.errors import BadDataError, PartitionError, SchemaError
from daedalus_etl.explore.quality import profile
from daedalus_etl.features.series import series_join
from daedalus_etl.storage.contract import UTC_US, bad_row_rules, split_bad
from daedalus_etl.storage.dataset import scan

T0 = datetime(2024, 8, 8, tzinfo=UTC)
NAMES = ("funding_rate", "mark_price", "open_interest")
STREAMS = (("a", "X"), ("a", "Y"), ("b", "X"))
TYPES = {"capture_ts": UTC_US, "exchange": pl.String, "symbol": pl.String, "name": pl.String, "value": pl.Float64}


def rows_of(told: list[tuple]) -> pl.DataFrame:
    "(us after T0, stream, name, value) as a frame of the channel."
    return pl.DataFrame([(T0 + timedelta(microseconds=t), *stream, name, value) for t, stream, name, value in told],
                        schema=TYPES, orient="row")


clocks = st.one_of(st.integers(0, 5), st.integers(0, 8_000_000))
values = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, math.nan, math.inf]))
told = st.lists(st.tuples(clocks, st.sampled_from(STREAMS), st.sampled_from(NAMES), values), min_size=1, max_size=25)
asked = st.lists(st.tuples(clocks, st.sampled_from(STREAMS)), max_size=12)


def naive(t: int, stream, name: str, series: list[tuple], tolerance_s: float | None) -> tuple:
    "The value known at `t` and its age; of rows with one clock the last."
    known = [(s, i, v) for i, (s, own, n, v) in enumerate(series) if own == stream and n == name and s <= t]
    if not known or (tolerance_s is not None and t - max(known)[0] > round(tolerance_s * 1e6)): return None, None
    s, _, value = max(known, key=lambda k: k[:2])
    return value if math.isfinite(value) else None, (t - s) / 1_000_000


@given(series=told, at=asked, tolerance_s=st.sampled_from([None, 0.0, 0.000002, 3.5]))
def test_each_value_is_the_last_one_of_its_stream_and_name(series, at, tolerance_s):
    left = rows_of([(t, stream, "row", float(i)) for i, (t, stream) in enumerate(at)]).drop("name")
    names = sorted({n for _, _, n, _ in series})
    got = series_join(left, rows_of(series), tolerance_s=tolerance_s)
    assert got.columns == [*left.columns, *(c for n in names for c in (n, f"{n}_age_s"))]
    assert got.select(left.columns).equals(left)
    for name in names:
        expected = [naive(t, stream, name, series, tolerance_s) for t, stream in at]
        assert got.select(name, f"{name}_age_s").rows() == expected


@given(series=told, at=asked, cut=clocks)
def test_what_comes_later_changes_nothing(series, at, cut):
    left = rows_of([(t, stream, "row", 0.0) for t, stream in at if t <= cut]).drop("name")
    names = [n for n in NAMES if any(n == name and t <= cut for t, _, name, _ in series)]
    if not names: return
    before = [s for s in series if s[0] <= cut]
    whole, early = (series_join(left, rows_of(s), names) for s in (series, before))
    assert whole.equals(early)


def test_lazy_frames_and_refusals():
    series = rows_of([(0, STREAMS[0], "mark_price", 1.0)])
    left = series.drop("name", "value")
    assert series_join(left.lazy(), series.lazy(), "mark_price")["mark_price"].item() == 1.0
    with pytest.raises(SchemaError, match="no column 'value'|no such column"): series_join(left, series.drop("value"))
    with pytest.raises(SchemaError, match="no such column"): series_join(left, series, on="t")
    null = series.with_columns(capture_ts=pl.lit(None, UTC_US))
    with pytest.raises(BadDataError, match="without a clock"): series_join(left, null)
    several = rows_of([(0, s, "mark_price", 1.0) for s in STREAMS])
    with pytest.raises(SchemaError, match="the left frame lacks it"): series_join(left.drop("symbol"), several)


@pytest.fixture
def lake(tmp_path):
    "A lake with two days of series, the second with a row that says nothing."
    series = rows_of([(0, ("binance", "BTC-USDT"), "funding_rate", -0.0001),
                      (5_000_000, ("binance", "BTC-USDT"), "mark_price", 60_000.5)])
    put(tmp_path / "series", series.with_columns(seq_gap=pl.lit(0, pl.Int64)), day=8)
    put(tmp_path / "series", series.with_columns(pl.col("capture_ts").dt.offset_by("1d")), day=9)
    return tmp_path


def test_a_lake_has_the_channel(lake):
    whole = daedalus_etl.read(lake, "bronze", "series").collect()
    assert whole.height == 4 and whole["seq_gap"].to_list() == [0, 0, None, None]
    one = scan(lake / "series", channel="series").filter(pl.col("day") == 9).collect()
    assert one.select("name", "value").rows() == [("funding_rate", -0.0001), ("mark_price", 60_000.5)]
    points = whole.select("capture_ts", "exchange", "symbol")
    assert series_join(points, whole, "funding_rate")["funding_rate_age_s"].to_list() == [0.0, 5.0, 0.0, 5.0]
    facts = profile(lake, "bronze", "series", cache=False)
    assert facts.partitions["rows"].to_list() == [2, 2]


def test_a_copied_file_and_a_wrong_type_are_refused(lake):
    root = lake / "series"
    first = root / leaf(8) / "data.parquet"
    (first.parent / "copy.parquet").write_bytes(first.read_bytes())
    with pytest.raises(PartitionError, match="the same bytes"): scan(root, channel="series").collect()
    (first.parent / "copy.parquet").unlink()
    pl.read_parquet(first).with_columns(pl.col("value").cast(pl.Boolean)).write_parquet(first)
    with pytest.raises(SchemaError, match="value"): scan(root, channel="series").collect()


@pytest.mark.parametrize("column, value", [("value", None), ("value", math.nan), ("value", -math.inf), ("name", None),
                                           ("name", "")])
def test_a_row_that_says_nothing_is_set_aside(column, value):
    rows = rows_of([(0, STREAMS[0], "funding_rate", -1.0), (1, STREAMS[0], "funding_rate", 0.0)])
    last = pl.int_range(pl.len()) == 1
    broken = rows.with_columns(pl.when(last).then(pl.lit(value, TYPES[column])).otherwise(column).alias(column))
    good, bad = split_bad(broken, bad_row_rules("series", columns=rows.columns))
    assert good.height == 1 and bad.select("__row", "reason").rows() == [(1, "bad_series")]
