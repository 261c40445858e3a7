"Series and coverage: what is drawn of a line, where it breaks, and that every chart is a picture, in both themes."
import json
import struct
import zlib
from datetime import UTC, date, datetime, timedelta

import lakes
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daedalus_etl.core.errors import ConfigError, SchemaError, UnknownFeatureError
from daedalus_etl.explore import coverage as c
from daedalus_etl.explore import distribution as d
from daedalus_etl.explore import series as s

T0 = datetime(2026, 1, 14, tzinfo=UTC)
US = pl.Datetime("us", "UTC")
value = st.one_of(st.none(), st.just(float("nan")), st.just(float("inf")), st.floats(-1e6, 1e6, allow_nan=False))
pause = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 10.0, 10.001, 500.0])


def frame(values, seconds=None):
    seconds = range(len(values)) if seconds is None else seconds
    clock = [T0 + timedelta(seconds=float(x)) for x in seconds]
    return pl.DataFrame({"capture_ts": pl.Series(clock, dtype=US), "x": pl.Series(values, dtype=pl.Float64)})


def walk(n, step_s=1.0, seed=0):
    clock = pl.datetime_range(T0, T0 + timedelta(seconds=step_s * (n - 1)), timedelta(seconds=step_s), eager=True)
    return pl.DataFrame({"capture_ts": clock, "x": np.random.default_rng(seed).normal(size=len(clock)).cumsum()})


def naive_segments(data, gap_s):
    "Runs of defined rows without a longer pause, row by row."
    runs, before = [], None
    for t, v in data.rows():
        if v is None or not np.isfinite(v):
            before = None
            continue
        if before is None or (t - before).total_seconds() > gap_s: runs.append([])
        runs[-1].append((t, v))
        before = t
    return runs


@given(st.lists(st.tuples(pause, value), max_size=60))
def test_all_rows_are_drawn_where_they_fit_and_break_where_a_loop_breaks_them(steps):
    data = frame([v for _, v in steps], np.cumsum([p for p, _ in steps]))
    got = s.downsample(data, "x", 10_000, gap_s=10)
    drawn = [[(t, v) for t, v, _ in run.rows()] for run in got.partition_by("segment")]
    assert drawn == naive_segments(data, 10)


@pytest.mark.parametrize("points", [16, 100, 2000])
@pytest.mark.parametrize("holes", [0, 1, 7])
def test_ends_and_extremes_of_every_segment_are_drawn(points, holes):
    data = walk(30_000, seed=holes)
    for k in range(holes):
        a = T0 + timedelta(seconds=3_000 * (k + 1))
        data = data.filter(~pl.col("capture_ts").is_between(a, a + timedelta(seconds=400 + k)))
    got, runs = s.downsample(data, "x", points), naive_segments(data, 300)
    limit = points // 8
    assert len(got) <= points and len(runs) == holes + 1
    assert got["segment"].n_unique() == min(holes, limit) + 1
    assert set(got.select("capture_ts", "x").rows()) <= set(data.rows())
    assert got["capture_ts"].is_sorted() and got["capture_ts"].is_unique().all()
    if holes > limit: runs = [data.rows()]
    for run in runs:
        kept = set(got.select("capture_ts", "x").rows())
        assert {run[0], run[-1], min(run, key=lambda r: r[1]), max(run, key=lambda r: r[1])} <= kept


def test_most_of_the_points_asked_for_are_used():
    assert 1900 <= len(s.downsample(walk(100_000), "x", 2000)) <= 2000


def test_of_too_many_breaks_the_longest_count_and_the_rest_is_said():
    data = walk(20_000).with_columns(x=pl.when(pl.int_range(pl.len()) % 2 == 0).then("x"))
    data = data.filter(~pl.col("capture_ts").is_between(T0 + timedelta(seconds=900), T0 + timedelta(seconds=2000)))
    got = s.downsample(data, "x", 80)
    assert len(got) <= 80 and got["segment"].n_unique() == 11
    across = got.filter(pl.col("capture_ts") <= T0 + timedelta(seconds=899))["segment"].max()
    assert got.filter(pl.col("capture_ts") > T0 + timedelta(seconds=2000))["segment"].min() > across
    assert "shorter breaks are not drawn" in s.series(data, "x", points=80).to_json()


def test_rows_out_of_order_are_put_in_order():
    data = walk(5000)
    assert s.downsample(data.sample(fraction=1, shuffle=True, seed=1), "x", 200).equals(s.downsample(data, "x", 200))


def test_times_without_zone_and_of_another_zone_are_the_same_instants():
    data = walk(100)
    tokyo = data.with_columns(pl.col("capture_ts").dt.convert_time_zone("Asia/Tokyo"))
    naive = data.with_columns(pl.col("capture_ts").dt.replace_time_zone(None))
    assert s.downsample(tokyo, "x").equals(s.downsample(data, "x")) and s.downsample(naive, "x").equals(
        s.downsample(data, "x"))


def drawn_rows(spec, panel):
    "The rows of a panel's line, read from the chart."
    name = spec["vconcat"][panel]["layer"][0].get("data", spec["vconcat"][panel].get("data"))["name"]
    return pl.read_csv(spec["datasets"][name].encode())


def test_a_window_gets_all_points_and_the_rest_stays_in_sight():
    data = walk(50_000)
    window = T0 + timedelta(seconds=20_000), T0 + timedelta(seconds=21_000)
    spec = s.series(data, "x", window=window, points=1500).to_dict()
    rows = drawn_rows(spec, 0)
    inside = rows.filter(pl.col("time").is_between(*(int(t.timestamp() * 1000) for t in window)))
    assert len(inside) == 1001 and 400 < len(rows) - len(inside) <= 2 * s.CONTEXT
    assert "1,001 points, in the window; 50,000 in all" in json.dumps(spec)
    assert rows["time"][0] == int(T0.timestamp() * 1000)


def test_the_selections_have_their_names_and_the_panels_follow_the_strip():
    spec = s.series(walk(100).with_columns(y="x"), ["x", "y"]).to_dict()
    zoom, overview = spec["params"]
    assert (zoom["name"], zoom["bind"], overview["name"]) == (s.ZOOM, "scales", s.OVERVIEW)
    panels = [v["layer"][0]["name"] for v in spec["vconcat"][:2]]
    assert zoom["views"] == panels and overview["views"] == ["strip"]
    for panel in spec["vconcat"][:2]:
        scale = panel["layer"][0]["encoding"]["x"]["scale"]
        assert scale["type"] == "utc" and scale["domainMin"]["expr"].startswith(f"{s.OVERVIEW}.{s.TIME} ?")


def test_a_million_rows_are_less_than_two_megabytes():
    data = walk(1_000_000, 0.0864).with_columns(y=-pl.col("x"), z=pl.col("x").abs())
    text = s.series(data, ["x", "y", "z"]).to_json()
    assert len(text) < 2_000_000 and "of 1,000,000 points drawn (MinMaxLTTB)" in text


def test_errors_name_what_is_wrong():
    data = walk(10)
    with pytest.raises(UnknownFeatureError, match="no column 'y'"): s.series(data, ["x", "y"])
    with pytest.raises(UnknownFeatureError, match="no clock"): s.series(data.select("x"), "x")
    with pytest.raises(ConfigError, match="2 streams in one frame"):
        s.series(data.with_columns(symbol=pl.Series(["a", "b"] * 5)), "x")
    with pytest.raises(ConfigError, match="at least 16"): s.series(data, "x", points=1)
    with pytest.raises(SchemaError, match="numbers or booleans"): s.downsample(data, "capture_ts")


# ---- coverage

def test_partitions_by_their_footers(tmp_path):
    for day, n in ((8, 20), (10, 30)): lakes.put(tmp_path / "trades", lakes.tape(day, n), day)
    lakes.put(tmp_path / "trades", lakes.tape(8, 5, lakes.ETH), 8, lakes.ETH)
    lakes.put(tmp_path / "trades", lakes.tape(9, 5, lakes.ETH).clear(), 9, lakes.ETH)
    got = c.partitions_frame(tmp_path, "bronze", "trades")
    assert got.rows() == [("binance", "BTC-USDT", date(2024, 8, 8), 60), ("binance", "BTC-USDT", date(2024, 8, 10), 70),
                          ("binance", "ETH-USDT", date(2024, 8, 8), 45), ("binance", "ETH-USDT", date(2024, 8, 9), 0)]
    full = c._calendar(c._checked(got))
    assert full.height == 6 and full["state"].to_list().count("missing") == 2
    assert full.filter(pl.col("state") == "missing")["rows"].null_count() == 2
    assert "4 of 6 days are there; × 2 missing; □ 1 without rows" in json.dumps(
        c.coverage_calendar(got).to_dict(), ensure_ascii=False)


def test_the_hours_of_a_day_are_one_day(tmp_path):
    for hour in (1, 2): lakes.put(tmp_path / "trades", lakes.tape(8, 20), 8, hour=hour)
    assert c.partitions_frame(tmp_path, "bronze", "trades")["rows"].to_list() == [120]


@given(st.lists(pause, min_size=1, max_size=40), st.sampled_from([0.0, 50.0]))
def test_spans_fill_the_time_and_each_pause_is_on_its_side(pauses, margin):
    clock = frame([0.0] * len(pauses), np.cumsum(pauses))["capture_ts"]
    first, last = clock[0] - timedelta(seconds=margin), clock[-1] + timedelta(seconds=margin)
    spans, hidden = c._spans(clock, 10, first, last)
    assert hidden == 0
    rows = spans.rows()
    assert rows[0][0] == first and rows[-1][1] == last
    assert all(a[1] == b[0] and a[2] != b[2] for a, b in zip(rows, rows[1:]))
    def held(a, b): return clock.filter(clock.is_between(a, b)).to_list()
    for a, b, state in rows:
        inside = [t for t in held(a, b) if a < t < b]
        if state == "missing": assert not inside and (b - a).total_seconds() > 10
        else: assert all((y - x).total_seconds() <= 10 for x, y in zip(held(a, b), held(a, b)[1:]))


def test_null_shares_per_bin_by_a_loop():
    rng = np.random.default_rng(2)
    data = walk(500, 7.0).with_columns(y=pl.Series(rng.uniform(size=500)))
    data = data.with_columns(y=pl.when(pl.col("y") > 0.4).then("y"), z=pl.lit(float("nan")))
    data = data.filter(~pl.col("capture_ts").is_between(T0 + timedelta(seconds=700), T0 + timedelta(seconds=1500)))
    cells = c._null_cells(data["capture_ts"], c._nulls(data, ["x", "y", "z"]))
    assert cells.filter(pl.col("feature") == "x")["rows"].sum() == data.height
    assert cells["start"].n_unique() < c.TIME_BINS                       # the gap is no cell, not a zero
    for feature, start, end, n, share in cells.select("feature", "start", "end", "rows", "share").rows():
        held = [r[feature] for r in data.rows(named=True) if start <= r["capture_ts"] < end]
        assert n == len(held) and share == pytest.approx(sum(v is None or v != v for v in held) / n)


# ---- pictures

def pixels(png: bytes) -> set[tuple]:
    "The colours of a PNG of 8 bits per channel."
    at, data = 8, b""
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at:at + 8])
        body = png[at + 8:at + 8 + size]
        if kind == b"IHDR": width, height, depth, colour = struct.unpack(">IIBB", body[:10])
        if kind == b"IDAT": data += body
        at += 12 + size
    assert depth == 8 and colour == 6
    raw, rows, stride = zlib.decompress(data), [], 4 * width
    before = np.zeros(stride, np.uint8)
    for y in range(height):
        line = np.frombuffer(raw, np.uint8, stride, y * (stride + 1) + 1)
        before = unfilter(raw[y * (stride + 1)], line, before)
        rows.append(before)
    return {tuple(p) for p in np.unique(np.concatenate(rows).reshape(-1, 4), axis=0)}


def unfilter(kind, line, before):
    "One row of a PNG from its difference to the neighbours."
    if kind == 0: return line.copy()
    if kind == 2: return line + before
    out, left, corner = bytearray(len(line)), [0] * 4, [0] * 4
    for i, (v, up) in enumerate(zip(line.tolist(), before.tolist())):
        k = i % 4
        a, b, cc = left[k], up, corner[k]
        pa, pb, pc = abs(b - cc), abs(a - cc), abs(a + b - 2 * cc)
        guess = a if kind == 1 else (a + b) // 2 if kind == 3 else a if pa <= pb and pa <= pc else b if pb <= pc else cc
        out[i] = (v + guess) & 255
        left[k], corner[k] = out[i], up
    return np.frombuffer(bytes(out), np.uint8)


DAY = walk(2000, 43.2).with_columns(symbol=pl.lit("BTC-USDT"), exchange=pl.lit("binance"),
                                    side=pl.Series(["buy", "sell", "sell", "buy"] * 500),
                                    y=pl.when(pl.int_range(2000) > 300).then("x"))
DAYS = pl.DataFrame({"exchange": "binance", "symbol": "BTC-USDT", "rows": [5, 0, 9],
                     "date": [date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 5)]})
CHARTS = {
    "histogram": lambda **k: d.histogram(DAY, "x", DAY.head(900), **k),
    "histogram_classes": lambda **k: d.histogram(DAY, "side", **k),
    "histogram_nothing": lambda **k: d.histogram(DAY.clear(), "x", **k),
    "histogram_huge": lambda **k: d.histogram(frame([1e308, -1e308, *range(30)]), "x", **k),
    "ecdf": lambda **k: d.ecdf(DAY, "x", DAY.head(900), **k),
    "box_by_hour": lambda **k: d.box_by_hour(DAY, "x", DAY.head(900), **k),
    "distribution": lambda **k: d.distribution(DAY, "x", DAY.head(900), **k),
    "series": lambda **k: s.series(DAY, ["x", "y"], **k),
    "series_one_row": lambda **k: s.series(DAY.head(1), "x", **k),
    "series_window": lambda **k: s.series(DAY, "x", window=(T0, T0 + timedelta(hours=1)), **k),
    "coverage_calendar": lambda **k: c.coverage_calendar(DAYS, **k),
    "gap_map": lambda **k: c.gap_map(DAY.filter(~pl.int_range(2000).is_between(50, 99)), **k),
    "null_map": lambda **k: c.null_map(DAY, **k),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_a_picture(name, theme):
    vlc = pytest.importorskip("vl_convert")
    colours = pixels(vlc.vegalite_to_png(CHARTS[name](theme=theme).to_dict(), scale=0.5))
    ground = (255, 255, 255, 255) if theme == "light" else (0x15, 0x19, 0x1E, 255)
    assert ground in colours and len(colours) > 12
    if name not in ("histogram_nothing", "null_map", "coverage_calendar"):       # these have other colours
        assert max(int(blue) - int(red) for red, _, blue, _ in colours) > 60, "nothing in the colour of a series"
