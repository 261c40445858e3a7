"""Profiles and drift: every number against a slow twin; what is kept beside the lake against whatever may happen."""
import errno
import math
import os
import shutil
import subprocess
import sys
from bisect import bisect_right
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lakes
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import daedalus_etl
from daedalus_etl.core.base import Notes
from daedalus_etl.core.config import FeatureConfig, FilterSpec
from daedalus_etl.core.errors import ConfigError, CorruptFileError, EmptyMatchError, InputChangedError
from daedalus_etl.core.levels import LEVELS
from daedalus_etl.explore import quality
from daedalus_etl.explore.drift import EMPTY, KS_ERROR, drift, drift_map, ks, psi, psi_classes
from daedalus_etl.explore.quality import profile
from daedalus_etl.explore.summary import MAD_SIGMA, QUANTILES, SKETCH, profile_columns, summarise
from daedalus_etl.features.cleaning import CleanBooks
from daedalus_etl.storage import disk
from daedalus_etl.storage.verify import gc, verify

BTC = lakes.BTC


# ---- numbers against their twins

def quantile(values: list[float], k: int, of: int) -> float:
    "The smallest value with at least the share k/of at or below it, by counting."
    ordered, need = sorted(values), max(k * len(values), of)                     # the least value for the share 0
    return next(v for v in ordered if bisect_right(ordered, v) * of >= need)


TICKS = st.integers(-30, 30).map(lambda i: i / 4)
FLOATS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: float(f"{x:.8g}"))
VALUES = st.one_of(st.lists(TICKS, min_size=1, max_size=80), st.lists(FLOATS, min_size=1, max_size=60))


def near(a, b): return a is b or a == pytest.approx(b, rel=1e-9, abs=1e-9)


@given(VALUES)
def test_a_column_against_counting(values):
    got = summarise(np.array(values))
    for name, k in QUANTILES.items(): assert got[name] == quantile(values, k, 1000)
    assert got["sketch"] == [quantile(values, k, SKETCH) for k in range(SKETCH + 1)]
    mean = math.fsum(values) / len(values)
    assert near(got["mean"], mean)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else None
    assert near(got["std"], std)
    assert got["mad"] == quantile([abs(v - got["median"]) for v in values], 1, 2)
    assert (got["distinct"], got["zeros"]) == (len(set(values)), values.count(0.0))
    assert got["zero_share"] == values.count(0.0) / len(values)


def test_what_is_undefined_is_null_and_not_zero():
    frame = pl.DataFrame({"none": pl.Series([None, None], dtype=pl.Float64), "nan": [math.nan, math.inf],
                          "one": [None, 2.0], "huge": [1.7e308, -1.7e308], "flag": [True, None]})
    got = {r["column"]: r for r in profile_columns(frame.lazy()).iter_rows(named=True)}
    assert [got["none"][k] for k in ("nulls", "null_share", "mean", "sketch")] == [2, 1.0, None, None]
    assert (got["nan"]["non_finite"], got["nan"]["max"], got["nan"]["zero_share"]) == (2, None, None)
    assert (got["one"]["std"], got["one"]["mad"], got["one"]["median"]) == (None, 0.0, 2.0)
    assert got["huge"]["std"] is None                       # it is beyond the range of a float
    assert (got["flag"]["mean"], got["flag"]["kind"]) == (1.0, "number")
    empty = profile_columns(frame.clear().lazy())
    assert empty["rows"].to_list() == [0] * 5 and empty["null_share"].null_count() == 5


def test_the_numbers_do_not_depend_on_how_many_columns_are_read_at_once(monkeypatch):
    frame = lakes.tape().lazy()
    whole = profile_columns(frame)
    monkeypatch.setattr("daedalus_etl.explore.summary.CELLS", 1)
    assert profile_columns(frame).equals(whole)


def test_classes_times_lists_and_decimals():
    frame = pl.DataFrame({
        "side": ["buy", None, "sell", "buy"], "capture_ts": [datetime(2024, 8, 8, tzinfo=UTC)] * 4,
        "bids": [[1.0], [], None, [1.0, 2.0]], "trade_id": ["1", "1", "2", None],
        "pair": [{"a": 1}, None, {"a": 2}, None],
        "cost": pl.Series(["1.50", "2.25", None, "0.00"]).cast(pl.Decimal(10, 2))})
    got = {r["column"]: r for r in profile_columns(frame.lazy()).iter_rows(named=True)}
    assert got["side"]["frequent"] == [{"value": "buy", "count": 2}, {"value": "sell", "count": 1}]
    assert (got["capture_ts"]["kind"], got["capture_ts"]["distinct"], got["capture_ts"]["mean"]) == ("time", 1, None)
    assert (got["len(bids)"]["max"], got["len(bids)"]["nulls"], got["len(bids)"]["zeros"]) == (2.0, 1, 1)
    assert (got["trade_id"]["kind"], got["trade_id"]["distinct"], got["trade_id"]["nulls"]) == ("id", 2, 1)
    assert (got["pair"]["kind"], got["pair"]["nulls"]) == ("other", 2)
    assert (got["cost"]["median"], got["cost"]["zero_share"]) == (1.5, 1 / 3)


# ---- sketches

def sketch(values) -> np.ndarray: return np.array(summarise(np.array(values, float))["sketch"])


def share(values, x) -> float: return sum(v <= x for v in values) / len(values)


@given(VALUES, VALUES)
def test_ks_of_sketches_is_within_its_bound(a, b):
    exact = max(abs(share(a, x) - share(b, x)) for x in [*a, *b])
    assert abs(ks(sketch(a), sketch(b)) - exact) < KS_ERROR
    assert ks(sketch(a), sketch(a)) == 0.0


@given(st.integers(0, 2**32 - 1), st.integers(2, 3_000), st.floats(0.2, 3.0))
def test_ks_bound_on_larger_samples(seed, n, scale):
    rng = np.random.default_rng(seed)
    a, b = np.round(rng.normal(size=n), 3), np.round(rng.standard_t(3, size=2 * n) * scale, 3)
    at = np.unique(np.concatenate([a, b]))
    x, y = (np.searchsorted(np.sort(v), at, "right") / v.size for v in (a, b))
    assert abs(ks(sketch(a), sketch(b)) - np.abs(x - y).max()) < KS_ERROR


def naive_psi(reference: list[float], other: list[float]) -> float:
    "By the data, part by part: between deciles, and one for each value that two deciles or more have."
    deciles = Counter(quantile(reference, k, 10) for k in range(1, 10))
    parts, low = [], -math.inf
    for edge in sorted(deciles):
        if deciles[edge] > 1: parts += [(low, edge, False), (edge, edge, True)]
        else: parts.append((low, edge, True))
        low = edge
    parts.append((low, math.inf, True))
    def inside(v, k):
        lo, hi, closed = parts[k]
        if lo == hi: return v == lo
        return lo < v and (v <= hi if closed else v < hi)
    total = 0.0
    for k in range(len(parts)):
        p, q = (max(sum(inside(v, k) for v in x) / len(x), EMPTY) for x in (reference, other))
        total += (q - p) * math.log(q / p)
    return total


@given(st.lists(st.one_of(TICKS, st.just(0.0)), min_size=SKETCH, max_size=SKETCH),
       st.lists(TICKS, min_size=SKETCH, max_size=SKETCH))
def test_psi_of_two_hundred_rows_is_that_of_the_data(a, b):
    "A sketch of 200 rows holds them all: the only difference left is rounding."
    assert psi(sketch(a), sketch(b)) == pytest.approx(naive_psi(a, b), abs=1e-9)


def test_psi_of_many_rows_is_near_that_of_the_data():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=4_000), rng.normal(0.4, 1.3, size=3_000)
    edges = np.quantile(a, np.arange(1, 10) / 10, method="inverted_cdf")
    p, q = (np.diff(np.searchsorted(np.sort(x), edges, "right") / x.size, prepend=0, append=1) for x in (a, b))
    assert psi(sketch(a), sketch(b)) == pytest.approx(((q - p) * np.log(q / p)).sum(), abs=0.02)


@pytest.mark.parametrize("reference, other, expected", [
    ([5.0] * 10, [5.0] * 3, 0.0),                                                              # a constant stays
    ([5.0] * 10, [4.0] * 3, 2 * (1 - EMPTY) * math.log(1 / EMPTY)),                            # moves down
    ([5.0] * 10, [6.0] * 3, 2 * (1 - EMPTY) * math.log(1 / EMPTY)),                            # moves up
    ([0.0] * 100 + list(range(1, 101)), [0.0] * 100 + list(range(1, 101)), 0.0),               # half zeros
])
def test_psi_of_ties(reference, other, expected):
    assert psi(sketch(reference), sketch(other)) == pytest.approx(expected)


def test_rounding_error_is_no_drift():
    a, b = ([(p + k) - p for k in (0.01, 0.02) for _ in range(50)] for p in (61_000.0, 68_000.0))
    assert set(a) != set(b)
    assert (psi(sketch(a), sketch(b)), ks(sketch(a), sketch(b))) == (0.0, 0.0)


def test_psi_of_classes():
    a, b = [{"value": "ok", "count": 90}, {"value": "crossed", "count": 10}], [{"value": "one_sided", "count": 5}]
    terms = [(0.9, EMPTY), (0.1, EMPTY), (EMPTY, 1.0)]
    assert psi_classes(a, b, (100, 5)) == pytest.approx(sum((q - p) * math.log(q / p) for p, q in terms))
    assert psi_classes(a, a, (100, 100)) == 0.0


# ---- facts of a partition

def one(lake, channel="trades", tier="bronze", **kwargs) -> dict:
    return profile(lake, tier, channel, cache=False, **kwargs).partitions.row(0, named=True)


def test_trades_as_a_whole(tmp_path):
    rows = lakes.tape(seconds=[10, 20, 20, 1_000, 1_001, 5_000.5])
    rows = rows.with_columns(trade_id=pl.Series(["1", "2", "3", "2", "", ""]))
    lakes.put(tmp_path / "trades", rows[[0, 3, 1, 2, 5, 4]])
    lakes.put(tmp_path / "trades", rows.head(1), name="second.parquet")
    got = one(tmp_path)
    assert (got["rows"], got["files"], got["duplicates"]) == (7, 2, 2)           # id 2, and id 1 in the second file
    assert got["out_of_order"] == 3                                              # rows 1, 4, and the second file's
    assert (got["gaps"], got["longest_step_s"]) == (2, 3_999.5)
    assert one(tmp_path, max_gap_s=1_000)["gaps"] == 1
    first = lakes.day_start(8) + timedelta(seconds=10)
    assert (got["first"], got["last"]) == (first, first + timedelta(seconds=4_990.5))
    assert (got["crossed_share"], got["exchange"], got["symbol"], got["start"]) == (None, *BTC, lakes.day_start(8))


def test_rows_equal_in_every_column_are_repeats_of_a_ticker(tmp_path):
    rows = lakes.quotes(n=20)
    other = rows.head(1).with_columns(pl.col("ask") + 1)                         # the clock repeats, the row does not
    lakes.put(tmp_path / "ticker", pl.concat([rows, rows.tail(3), rows.tail(1), other]))
    assert one(tmp_path, "ticker")["duplicates"] == 4


def test_crossed_and_locked_quotes(tmp_path):
    rows = lakes.quotes(n=20).with_row_index("i")
    i, n = pl.col("i"), rows.height
    bid = pl.when(i < 3).then(pl.col("ask") + 1).when(i < 5).then("ask").when(i != 7).then("bid")
    rows = rows.with_columns(bid=bid)
    lakes.put(tmp_path / "ticker", rows.drop("i"))
    got = one(tmp_path, "ticker")
    assert (got["crossed_share"], got["locked_share"]) == (3 / (n - 1), 2 / (n - 1))


def level(price, size=1.0): return {"price": float(price), "size": float(size)}


def books(tmp_path) -> pl.DataFrame:
    t = [lakes.day_start(8) + timedelta(seconds=s) for s in (1, 1, 1, 2, 3, 4, 5)]
    good = ([level(99), level(98)], [level(101)])
    sides = [good, good, ([level(99), level(98)], [level(101, 2)]), good, ([level(103, 0), level(99)], [level(101)]),
             ([level(102)], [level(101)]), ([], [level(101)])]
    frame = pl.DataFrame({"capture_ts": t, "nonce": [7, 7, 7, 8, 9, 10, 11], "bids": [b for b, _ in sides],
                          "asks": [a for _, a in sides]},
                         schema={"capture_ts": lakes.UTC_US, "nonce": pl.Int64, "bids": LEVELS, "asks": LEVELS})
    lakes.put(tmp_path / "orderbook", frame)
    return frame


def test_books_as_a_whole(tmp_path):
    frame = books(tmp_path)
    got = one(tmp_path, "orderbook")
    assert [got[k] for k in ("duplicates", "crossed_share", "locked_share")] == [1, 1 / 6, 0.0]  # size 0: no level
    notes = Notes()
    for _ in CleanBooks(FeatureConfig()).batches(frame.lazy(), notes): pass
    assert notes.duplicates == got["duplicates"]


def test_steps_of_bars_begin_where_a_bar_ends(tmp_path):
    start = [lakes.day_start(8) + timedelta(minutes=m) for m in (0, 15, 60, 75)]
    bars = pl.DataFrame({"exchange": BTC[0], "symbol": BTC[1], "bar_start": start, "close": [1.0, 2.0, 2.0, 3.0],
                         "bar_end": [s + timedelta(minutes=15) for s in start]})
    lakes.put(tmp_path / "gold/trades_bars/900s", bars)
    got = one(tmp_path, "trades_bars/900s", "gold")
    assert (got["gaps"], got["longest_step_s"], got["duplicates"]) == (1, 1_800.0, 0)


def test_streams_in_one_partition_do_not_mix(tmp_path):
    a, b = lakes.tape(n=30), lakes.tape(n=30, stream=lakes.ETH)
    path = tmp_path / "silver/own/day=8/part-0.parquet"
    path.parent.mkdir(parents=True)
    pl.concat([a, b]).write_parquet(path)
    got = one(tmp_path, "own", "silver")
    assert (got["rows"], got["duplicates"], got["out_of_order"]) == (a.height + b.height, 0, 0)
    assert got["first"] == min(a["capture_ts"].min(), b["capture_ts"].min())


def test_findings_say_what_is_odd(tmp_path):
    rows = lakes.tape(seconds=[10, 20, 900]).with_columns(cost=pl.lit(None, pl.Float64), amount=pl.lit(2.0))
    lakes.put(tmp_path / "trades", pl.concat([rows, rows.head(1)]))
    lakes.put(tmp_path / "trades", rows.clear(), day=9)
    found = profile(tmp_path, "bronze", "trades", cache=False)
    said = found.findings().select("column", "finding").rows()
    assert said == [(None, "1 repeated row"), (None, "1 row behind a later one"),
                    (None, "1 gap of more than 300 s, the longest 880 s"), (None, "no row"),
                    ("amount", "constant: 2"), ("cost", "null in every row")]
    assert found.findings()["start"].n_unique() == 2
    assert "6 findings" in found._repr_html_() and "2 partitions" in repr(found)
    assert found.of("price")["unit"].to_list() == ["quote", "quote"]


def test_what_is_asked_for_is_checked(tmp_path):
    lakes.put(tmp_path / "trades", lakes.tape())
    with pytest.raises(ConfigError): profile(tmp_path, "bronze", "trades", max_gap_s=0)
    with pytest.raises(ConfigError): profile(tmp_path, "tin", "trades")
    with pytest.raises(EmptyMatchError): profile(tmp_path, "bronze", "trades", "DOGE/USDT")
    lakes.put(tmp_path / "trades", b"PAR1 and no more", day=9)
    with pytest.raises(CorruptFileError, match="day=09"): profile(tmp_path, "bronze", "trades")
    assert profile(tmp_path, "bronze", "trades", "BTC/USDT", end="2024-08-08").partitions.height == 1


# ---- kept beside the lake

@pytest.fixture
def lake(tmp_path) -> Path:
    "Bronze trades and ticker of three days, and silver trades of them."
    for day in (8, 9, 10):
        lakes.put(tmp_path / "trades", lakes.tape(day, n=60), day)
        lakes.put(tmp_path / "ticker", lakes.quotes(day, n=60), day)
    return tmp_path


def caches(lake, tier="bronze", channel="trades", **kwargs) -> list[str]:
    return profile(lake, tier, channel, **kwargs).partitions["cache"].to_list()


def kept(lake, dataset="trades") -> list[Path]:
    return sorted((lake / ".daedalus" / dataset / "quality").rglob("*.parquet"))


def without_cache(found): return found.partitions.drop("cache")


@pytest.fixture
def blind(monkeypatch):
    "Nobody can look at rows."
    def refuse(*args, **kwargs): raise AssertionError("rows were read")
    def close():
        for name in ("scan_files", "partition_facts", "profile_columns"): monkeypatch.setattr(quality, name, refuse)
        for name in ("scan_parquet", "read_parquet_schema"): monkeypatch.setattr(pl, name, refuse)
    return close


def test_a_second_look_reads_no_row(lake, blind):
    first = profile(lake, "bronze", "trades")
    assert first.partitions["cache"].to_list() == ["stored"] * 3
    blind()
    again = profile(lake, "bronze", "trades")
    assert again.partitions["cache"].to_list() == ["read"] * 3
    assert without_cache(again).equals(without_cache(first)) and again.columns.equals(first.columns)
    with pytest.raises(AssertionError, match="rows were read"): profile(lake, "bronze", "trades", cache=False)


def test_only_what_is_asked_for_is_computed(lake):
    assert caches(lake, end="2024-08-08") == ["stored"]
    assert caches(lake) == ["read", "stored", "stored"]


def test_a_changed_partition_is_computed_again_and_its_old_profile_goes(lake):
    profile(lake, "bronze", "trades")
    before = kept(lake)
    lakes.put(lake / "trades", lakes.tape(9, n=50), 9)
    assert caches(lake) == ["read", "stored", "read"]
    after = kept(lake)
    assert len(after) == 3 and len(set(after) & set(before)) == 2
    lakes.put(lake / "trades", lakes.tape(9, n=50), 9, name="more.parquet")      # a further file
    assert caches(lake) == ["read", "stored", "read"]
    assert profile(lake, "bronze", "trades").partitions["files"].to_list() == [1, 2, 1]


def test_computed_data_is_known_by_its_key(lake):
    lakes.run(lakes.trades(lake / "trades", lake))
    assert caches(lake, "silver") == ["stored"] * 3
    copied = lake.parent / "copied"
    shutil.copytree(lake, copied)                                                # other times and inodes
    assert caches(copied, "silver") == ["read"] * 3
    assert caches(copied) == ["stored"] * 3
    lakes.put(lake / "trades", lakes.tape(10, n=40), 10)
    lakes.run(lakes.trades(lake / "trades", lake))
    assert caches(lake, "silver") == ["read", "read", "stored"]


def test_several_definitions_live_side_by_side(lake):
    assert caches(lake) == ["stored"] * 3 and caches(lake, max_gap_s=60) == ["stored"] * 3
    assert caches(lake) == ["read"] * 3 and caches(lake, max_gap_s=60) == ["read"] * 3
    assert len(kept(lake)) == 6


def test_another_version_of_the_definitions_is_another_profile(lake, monkeypatch):
    profile(lake, "bronze", "trades")
    monkeypatch.setattr(quality, "VERSION", quality.VERSION + 1)
    assert caches(lake) == ["stored"] * 3
    assert len(kept(lake)) == 3


def test_damage_is_found_and_said_and_mended(lake):
    truth = profile(lake, "bronze", "trades", end="2024-08-08")
    file, = kept(lake)
    good = file.read_bytes()
    ways = [b"", good[:-1], good + b"x", b"PAR1"] + [good[:k] + bytes([good[k] ^ 4]) + good[k + 1:]
                                                    for k in range(0, len(good), len(good) // 12)]
    assert len(ways) > 12
    for bad in ways:
        file.write_bytes(bad)
        found = profile(lake, "bronze", "trades", end="2024-08-08")
        assert found.partitions["cache"].to_list() == ["mended"]
        assert found.columns.equals(truth.columns)
        assert "damaged" in " ".join(found.findings()["finding"])
        assert kept(lake) == [file] and file.read_bytes() == good
    assert caches(lake, end="2024-08-08") == ["read"]


def test_a_damaged_profile_under_another_sum_goes(lake):
    caches(lake, end="2024-08-08")
    file, = kept(lake)
    strange = file.with_name(file.name.replace(file.name.split(".")[-2], "0" * 16))
    file.rename(strange)
    assert caches(lake, end="2024-08-08") == ["mended"]
    assert kept(lake) == [file]


@pytest.mark.parametrize("code, warned", [(errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True)])
def test_where_nothing_can_be_written_nothing_fails(lake, monkeypatch, recwarn, code, warned):
    truth = profile(lake, "bronze", "trades", cache=False)
    def refuse(call, *args, **kwargs): raise OSError(code, os.strerror(code))
    with monkeypatch.context() as m:
        m.setattr(disk, "syscall", refuse)
        found = profile(lake, "bronze", "trades")
    assert found.partitions["cache"].to_list() == ["none"] * 3
    assert found.columns.equals(truth.columns) and kept(lake) == []
    assert bool([w for w in recwarn if "not kept" in str(w.message)]) is warned
    assert lakes.leftovers_in_meta(lake) == []


def test_what_was_kept_is_read_where_nothing_can_be_written(lake, monkeypatch):
    profile(lake, "bronze", "trades")
    def refuse(call, *args, **kwargs): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(disk, "syscall", refuse)
    assert caches(lake) == ["read"] * 3


def test_without_a_cache_nothing_is_left(lake):
    before = lakes.places(lake)
    assert caches(lake, cache=False) == ["off"] * 3
    assert lakes.places(lake) == before


def test_a_partition_that_is_replaced_while_it_is_read(lake, monkeypatch):
    real, times = quality.profile_columns, []
    def slow(frame):
        found = real(frame)
        times.append(1)
        if len(times) == 1: lakes.put(lake / "trades", lakes.tape(8, n=70), 8)
        return found
    monkeypatch.setattr(quality, "profile_columns", slow)
    found = profile(lake, "bronze", "trades", end="2024-08-08")
    assert found.partitions["rows"].to_list() == [lakes.tape(8, n=70).height] and len(times) == 2
    def always(frame):
        lakes.put(lake / "trades", lakes.tape(9), 9)
        return real(frame)
    monkeypatch.setattr(quality, "profile_columns", always)
    with pytest.raises(InputChangedError): profile(lake, "bronze", "trades", start="2024-08-09", end="2024-08-09")
    assert len(kept(lake)) == 1


PROCESS = """
import sys
from daedalus_etl.explore.quality import profile
for _ in range(4):
    found = profile(sys.argv[1], "bronze", "trades")
    assert found.columns["rows"].null_count() == 0 and set(found.partitions["cache"]) <= {"read", "stored"}, found
print(found.partitions["rows"].to_list())
"""


def test_processes_at_once(lake):
    running = [subprocess.Popen([sys.executable, "-c", PROCESS, lake], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True) for _ in range(3)]
    rows = str([lakes.tape(d, n=60).height for d in (8, 9, 10)])
    for p in running:
        said, wrong = p.communicate(timeout=120)
        assert (p.returncode, said.strip()) == (0, rows), wrong
    assert len(kept(lake)) == 3 and caches(lake) == ["read"] * 3
    assert lakes.leftovers_in_meta(lake) == []


# ---- nobody else minds

def test_the_cache_is_no_data(lake):
    lakes.run(lakes.trades(lake / "trades", lake))
    def seen() -> list:
        plain = pl.scan_parquet(lake / "silver/trades", hive_schema={"year": pl.Int16, "month": pl.Int8, "day": pl.Int8,
                                                                     "exchange": pl.String, "symbol": pl.String})
        found = [plain.select(pl.len()).collect().item(), daedalus_etl.read(lake, "silver", "trades").collect().height,
                 daedalus_etl.read(lake, "bronze", "trades").collect().height, verify(lake).drop("bytes").rows()]
        try: import duckdb
        except ImportError: return found
        query = f"SELECT count(*) FROM read_parquet('{lake}/silver/**/*.parquet')"
        with duckdb.connect() as db: return [*found, db.sql(query).fetchall()]
    before = seen()
    for tier in ("silver", "bronze"): profile(lake, tier, "trades")
    assert seen() == before
    again = lakes.run(lakes.trades(lake / "trades", lake))
    assert lakes.statuses(again) == ["done"] * 3                                     # up to date


def test_gc_keeps_live_profiles_and_removes_those_of_partitions_that_are_gone(lake):
    unpadded = lake / "trades" / lakes.leaf(8).replace("month=08", "month=8").replace("day=08", "day=8")
    unpadded.parent.parent.mkdir(parents=True, exist_ok=True)
    (lake / "trades" / lakes.leaf(8)).parent.rename(unpadded.parent)
    for day in ("08", "09", "10"): (unpadded.parent / f"day={day}").rename(unpadded.parent / f"day={int(day)}")
    profile(lake, "bronze", "trades"), profile(lake, "bronze", "ticker")
    assert gc(lake, min_age_s=0).is_empty() and len(kept(lake)) == 3
    shutil.rmtree(unpadded.parent / "day=9")
    assert gc(lake, min_age_s=0, dry_run=True)["why"].to_list() == ["the profile of a partition that is gone"]
    assert gc(lake)["path"].to_list() == []                                      # too young
    assert gc(lake, min_age_s=0).height == 1 and len(kept(lake)) == 2 and len(kept(lake, "ticker")) == 3
    assert caches(lake) == ["read", "read"]


# ---- drift

def silver(lake, day, stream=BTC, **columns) -> None:
    n = len(next(iter(columns.values())))
    times = [lakes.day_start(day) + timedelta(seconds=i) for i in range(n)]
    frame = pl.DataFrame({"capture_ts": times, "exchange": stream[0], "symbol": stream[1], **columns})
    lakes.put(lake / "silver/ticker", frame, day, stream)


def rows_of(table: pl.DataFrame, **where) -> dict[str, dict]:
    found = table.filter(pl.col(k) == v for k, v in where.items()) if where else table
    return {r["column"]: r for r in found.iter_rows(named=True)}


def test_drift_of_one_day(tmp_path):
    rng = np.random.default_rng(1)
    a, b = rng.gamma(2.0, size=900), rng.gamma(3.0, size=600)
    holes = [None if i % 4 == 0 else float(v) for i, v in enumerate(b)]
    silver(tmp_path, 8, spread_bps=a, spread=[0.01] * 900, bid_volume=a, state=["ok"] * 600 + ["locked"] * 300, old=a)
    silver(tmp_path, 9, spread_bps=b, spread=[0.02] * 600, bid_volume=holes, state=["ok"] * 600, new=b)
    table = drift(profile(tmp_path, "silver", "ticker"))
    got = rows_of(table)
    r = got["spread_bps"]
    x, y = (np.array([float(f"{v:.8g}") for v in s]) for s in (a, b))
    at = np.concatenate([x, y])
    exact = max(abs((x <= v).mean() - (y <= v).mean()) for v in at)
    median = np.quantile(a, 0.5, method="inverted_cdf")
    mad = np.quantile(np.abs(a - median), 0.5, method="inverted_cdf")
    assert abs(r["ks"] - exact) < KS_ERROR and r["psi"] == pytest.approx(psi(sketch(a), sketch(b)))
    assert r["mean_shift"] == pytest.approx((b.mean() - a.mean()) / (MAD_SIGMA * mad))
    assert (r["unit"], r["category"], r["null_change"]) == ("bps", "structural", 0.0)
    assert r["psi_chance"] == pytest.approx(9 * (1 / 900 + 1 / 600))
    assert r["what"].startswith("spread_bps: median ") and r["what"].endswith(" bps")
    assert got["spread"]["mean_shift"] is None                                   # a MAD of 0: null, not infinity
    assert (got["spread"]["ks"], got["spread"]["moved"]) == (1.0, "much")
    assert got["bid_volume"]["null_change"] == 0.25 and "; null 0.0% -> 25.0%" in got["bid_volume"]["what"]
    assert got["state"]["what"] == "state: ok 66.7% -> 100.0%" and got["state"]["ks"] is None
    assert (got["old"]["what"], got["old"]["psi"]) == ("old: the column is gone", None)
    assert (got["new"]["what"], got["new"]["psi"], got["new"]["moved"]) == ("new: a new column", None, None)
    assert not {"capture_ts", "exchange", "symbol"} & set(got)
    assert table["psi"].drop_nulls().to_list() == sorted(table["psi"].drop_nulls(), reverse=True)
    assert table["psi"].is_null().to_list() == sorted(table["psi"].is_null())
    assert not [c for c in ("psi", "ks", "mean_shift") if table[c].is_infinite().any() or table[c].is_nan().any()]


def test_columns_without_values(tmp_path):
    some, none = [1.0, 2.0, 3.0], pl.Series([None] * 3, dtype=pl.Float64)
    silver(tmp_path, 8, a=none, b=none, c=some)
    silver(tmp_path, 9, a=none, b=some, c=none)
    got = rows_of(drift(profile(tmp_path, "silver", "ticker")))
    assert [got[k]["what"] for k in "abc"] == ["a: no value in either", "b: has values now", "c: no value any more"]
    assert [got[k]["null_change"] for k in "abc"] == [0.0, -1.0, 1.0] and got["a"]["psi"] is None


def test_references(tmp_path):
    for stream, days in ((BTC, (8, 9, 10)), (lakes.ETH, (9, 10))):
        for day in days: silver(tmp_path, day, stream, spread=[float(day + i) for i in range(5)])
    p = profile(tmp_path, "silver", "ticker")
    def pairs(reference):
        table = drift(p, reference)
        return sorted(zip(*(table[k].str.replace_all(r".*symbol=(...).*day=", "${1}").to_list()
                            for k in ("partition", "reference")), strict=True))
    assert pairs("previous") == [("BTC09", "BTC08"), ("BTC10", "BTC09"), ("ETH10", "ETH09")]
    day = [("BTC08", "BTC09"), ("BTC10", "BTC09"), ("ETH10", "ETH09")]
    assert pairs("2024-08-09") == pairs(datetime(2024, 8, 9).date()) == day
    assert pairs({"symbol": "BTC-USDT"}) == [("ETH09", "BTC09"), ("ETH10", "BTC10")]
    assert pairs(lakes.leaf(8)) == [(x, "BTC08") for x in ("BTC09", "BTC10", "ETH09", "ETH10")]
    with pytest.raises(EmptyMatchError, match="Profile the reference, too"): drift(p, "2024-08-07")
    with pytest.raises(ConfigError): drift(p, "last")
    with pytest.raises(ConfigError): drift(p, rank="size")


def test_the_map_has_a_cell_for_each_psi(tmp_path):
    for day in (8, 9, 10): silver(tmp_path, day, a=[float(day)] * 3, b=[1.0, 2.0, float(day)], c=[None, None, None])
    table = drift(profile(tmp_path, "silver", "ticker"))
    chart = drift_map(table).to_dict()
    cells = next(iter(chart["datasets"].values()))
    assert {(c["at"], c["column"]) for c in cells} == {(f"2024-08-{d:02}", c) for d in (9, 10) for c in "ab"}
    assert drift_map(table, ["b"], theme=None).to_dict()["encoding"]["y"]["sort"] == ["b"]


# ---- recorded data

def test_what_moved_between_2024_and_2026(shared_bronze, tmp_path):
    "Ten minutes around one midnight, and half a day a year and a half later."
    everything = FeatureConfig(categories={"structural", "dynamic"})
    for channel, make in (("trades", lakes.trades), ("orderbook", lakes.orderbook)):
        source = {"trades": ""} if channel == "orderbook" else {}
        lakes.run(make(shared_bronze / channel, tmp_path, **source), FilterSpec(symbol="BTC-USDT"), everything)
    books = profile(tmp_path, "silver", "orderbook")
    table = drift(books, "2024-08-08")
    late, next_day = (rows_of(table, start=datetime(*d, tzinfo=UTC)) for d in ((2026, 2, 16), (2024, 8, 9)))
    top = list(late)[:70]
    assert {"mid_price", "best_bid", "best_ask", "bid_price_L0", "microprice", "spread_bps"} <= set(top)
    assert any(c.startswith(("bid_size_L", "ask_size_L")) or "depth" in c for c in top)
    mid, soon = late["mid_price"], next_day["mid_price"]
    assert mid["ks"] == 1.0 and mid["mean_shift"] > 50 > abs(soon["mean_shift"])
    assert late["mid_price"]["unit"] == "quote" and " -> 68,4" in late["mid_price"]["what"]
    both = [c for c in late if None not in (late[c]["psi"], next_day.get(c, {"psi": None})["psi"])]
    medians = [float(np.median([day[c]["psi"] for c in both])) for day in (late, next_day)]
    assert medians[0] > 3 * medians[1]
    assert sum(late[c]["psi"] > next_day[c]["psi"] for c in both) > 0.75 * len(both)
    tape = rows_of(drift(profile(tmp_path, "silver", "trades"), "2024-08-08"), start=datetime(2026, 2, 16, tzinfo=UTC))
    assert tape["price"]["ks"] == 1.0 and "price" in list(tape)[:5]
