"Reading a lake: what comes, in which order and types, what is not read, and what is refused."
import errno
import os
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import lakes
import polars as pl
import pyarrow.parquet as pq
import pytest
from lakes import BTC, ETH, SMALL, leaf, put, run, tape
from polars.testing import assert_frame_equal

import daedalus_etl
from daedalus_etl import cli
from daedalus_etl.core.config import FeatureConfig, OutputConfig
from daedalus_etl.core.enums import DataTier
from daedalus_etl.core.errors import (
    ConfigError,
    ConflictError,
    CorruptFileError,
    EmptyMatchError,
    InputNotFoundError,
    SchemaError,
    StaleStateError,
    StorageError,
    UnknownFeatureError,
)
from daedalus_etl.core.filters import FilterSpec
from daedalus_etl.lake import read
from daedalus_etl.storage import disk, journal
from daedalus_etl.storage.commit import Dataset, Snapshot, stage
from daedalus_etl.storage.fresh import check_fresh, stale_partitions
from daedalus_etl.storage.journal import Change, Journal, commit, journals
from daedalus_etl.storage.partitions import Partition


def raises(kind, *texts):
    "An error of this very kind whose message holds all the texts."
    return pytest.raises(kind, check=lambda e: type(e) is kind and all(t in str(e) for t in texts))


def write(lake, folder, frame, name="part-0.parquet", dataset="silver/trades", **kwargs) -> Path:
    path = Path(lake) / dataset / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path, **kwargs)
    return path


def rows(day=8, hours=(0, 6, 12, 18), **columns) -> pl.DataFrame:
    "A row at each of the hours of a day of August 2024."
    at = [datetime(2024, 8, day, tzinfo=UTC) + timedelta(hours=h) for h in hours]
    return pl.DataFrame({"capture_ts": at, "price": [day + h / 100 for h in hours]} | columns,
                        schema_overrides={"capture_ts": pl.Datetime("us", "UTC")})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A lake of two streams that the transforms made: silver trades, and bars of two lengths."
    home = tmp_path_factory.mktemp("made")
    for day in (8, 9): put(home / "raw/trades", tape(day), day)
    put(home / "raw/trades", tape(8, stream=ETH), 8, ETH)
    run(lakes.trades(home / "raw/trades", home / "lake"))
    run(lakes.bars(home / "lake/silver/trades", home / "lake"), features=FeatureConfig(bar_durations=(60, 300)))
    return home


# ---- what comes

def test_all_rows_and_columns_of_a_dataset(made):
    got = read(made / "lake", "silver", "trades").collect()
    want = lakes.dataset(made / "lake/silver/trades")
    assert got.columns[:3] == ["exchange", "symbol", "capture_ts"]
    assert sorted(got.columns) == sorted(want.columns)
    assert_frame_equal(got, want.select(got.columns))


def test_it_is_offered_by_the_package(made):
    assert daedalus_etl.read is read
    assert "read" in dir(daedalus_etl)


@pytest.mark.parametrize("tier", [DataTier.SILVER, "silver", "SILVER"])
def test_tiers_in_any_spelling(made, tier):
    assert read(made / "lake", tier, "trades", "ETH/USDT").select(pl.len()).collect().item() == 480


def test_gold_by_the_folder_of_its_bars(made):
    got = read(made / "lake", "gold", "trades_bars/300s", "BTC-USDT").collect()
    assert got.columns[:5] == ["exchange", "symbol", "bar_start", "bar_end", "available_at"]
    assert (got["bar_end"] - got["bar_start"]).unique().to_list() == [timedelta(seconds=300)]


@pytest.mark.parametrize("tier, channel, texts", [
    ("gold", "trades_bars", ["'trades_bars'", "trades_bars/60s"]),
    ("gold", "trades", ["trades_bars/300s"]),
    ("silver", "trade", ["Did you mean 'trades'?"]),
])
def test_unknown_channel_names_what_there_is(made, tier, channel, texts):
    with raises(InputNotFoundError, tier, *texts): read(made / "lake", tier, channel)


def test_a_lake_that_is_not_there(tmp_path):
    with raises(InputNotFoundError, "nearest that exists"): read(tmp_path / "no", "silver", "trades")


@pytest.mark.parametrize("channel", ["", "../silver/trades", "/etc", "exchange=binance"])
def test_a_channel_is_no_path(made, channel):
    with raises(ConfigError, "expected a dataset such as trades"): read(made / "lake", "silver", channel)


def test_unknown_tier(made):
    with raises(ConfigError, "'iron'", "bronze, silver, gold"): read(made / "lake", "iron", "trades")


def test_bronze_lies_where_the_user_says(made):
    got = read(made / "raw", "bronze", "trades", "BTC-USDT").collect()
    want = pl.concat([tape(8), tape(9)])
    assert_frame_equal(got, want.select(got.columns))


def test_bronze_has_the_types_of_its_contract(tmp_path):
    frame = tape(8, seconds=(1, 2, 3)).drop("exchange")
    frame = frame.with_columns(pl.col("price").cast(pl.Float32), pl.col("amount").cast(pl.String),
                               pl.col("timestamp").cast(pl.Float64), symbol=pl.lit(None, pl.String))
    put(tmp_path / "trades", frame)
    put(tmp_path / "trades", tape(9, seconds=(1, 2)), 9)
    got = read(tmp_path, "bronze", "trades").collect()
    assert got.schema == tape().select(got.columns).schema
    assert got["exchange"].to_list() == ["binance"] * 5 and got["symbol"].to_list() == ["BTC-USDT"] * 5
    assert got["price"].to_list()[:3] == frame["price"].cast(pl.Float64).to_list()


def test_bronze_values_that_do_not_fit_are_refused(tmp_path):
    frame = tape(8, seconds=(1, 2, 3))
    path = put(tmp_path / "trades", frame.with_columns(timestamp=pl.col("timestamp") + 0.5))
    with raises(SchemaError, str(path), "'timestamp'", "exactly"): read(tmp_path, "bronze", "trades")


# ---- streams and times

def test_symbols_exactly_or_sanitised(tmp_path):
    write(tmp_path, "exchange=a/symbol=X-Y/day=1", rows(symbol="X-Y"))
    write(tmp_path, "exchange=a/symbol=X%2FY/day=1", rows(symbol="X/Y"))
    write(tmp_path, "exchange=b/symbol=Z-Y/day=1", rows(symbol="Z-Y"))
    def symbols(*args, **kwargs):
        return read(tmp_path, "silver", "trades", *args, **kwargs).collect()["symbol"].unique()
    assert symbols("X/Y").to_list() == ["X/Y"]
    assert symbols("Z/Y").to_list() == ["Z-Y"]
    assert symbols(["X/Y", "Z/Y"]).sort().to_list() == ["X/Y", "Z-Y"]
    assert symbols({"X-Y"}).to_list() == ["X-Y"]
    assert symbols(exchange="b").to_list() == ["Z-Y"]
    with raises(EmptyMatchError, "nearest existing:", "a/X-Y"): symbols("Q/Y")
    with raises(ConfigError, "empty list"): symbols([])


@pytest.fixture
def days(tmp_path):
    "Days 8 to 11 of a stream, four rows each."
    for day in range(8, 12): write(tmp_path, leaf(day), rows(day))
    return tmp_path


def found(lake, *args, **kwargs): return read(lake, "silver", "trades", *args, **kwargs).collect()["price"].to_list()


def test_days_are_inclusive(days):
    every = [d + h / 100 for d in range(8, 12) for h in (0, 6, 12, 18)]
    assert found(days, start="2024-08-09", end=date(2024, 8, 10)) == every[4:12]
    assert found(days, start=date(2024, 8, 11)) == every[12:]
    assert found(days, end="2024-08-08") == every[:4]
    assert found(days) == every


@pytest.mark.parametrize("end", ["2024-08-09T12:00:00Z", "2024-08-09T14:00:00+02:00",
                                 datetime(2024, 8, 9, 12, tzinfo=UTC)])
def test_instants_cut_rows_by_the_clock(days, end):
    assert found(days, start="2024-08-08T18:00Z", end=end) == [8.18, 9.0, 9.06, 9.12]


def test_an_instant_and_a_day(days):
    assert found(days, start="2024-08-10T12:00:00.000001Z", end="2024-08-10") == [10.18]


def test_bars_are_cut_by_their_start(tmp_path):
    at = datetime(2024, 8, 8, tzinfo=UTC)
    bar = pl.DataFrame({"bar_start": [at + timedelta(hours=i) for i in range(4)], "close": [0, 1, 2, 3]})
    bar = bar.with_columns(bar_end=pl.col("bar_start") + timedelta(hours=1)).with_columns(available_at="bar_end")
    write(tmp_path, leaf(8), bar.cast({pl.Datetime: pl.Datetime("us", "UTC")}), dataset="gold/trades_bars/3600s")
    got = read(tmp_path, "gold", "trades_bars/3600s", start="2024-08-08T01:00Z", end="2024-08-08T02:30Z")
    assert got.collect()["close"].to_list() == [1, 2]


def test_a_clock_in_milliseconds(tmp_path):
    ms = int(datetime(2024, 8, 8, 12, tzinfo=UTC).timestamp()) * 1000
    write(tmp_path, leaf(8), pl.DataFrame({"timestamp": [ms - 1, ms, ms + 1], "price": [1.0, 2.0, 3.0]}))
    assert found(tmp_path, start="2024-08-08T12:00Z") == [2.0, 3.0]
    assert found(tmp_path, start="2024-08-08T12:00:00.000001Z") == [3.0]
    assert found(tmp_path, end="2024-08-08T12:00:00.000999Z") == [1.0, 2.0]


def test_days_inside_of_coarser_partitions_are_cut_by_the_clock(tmp_path):
    write(tmp_path, "symbol=X/year=2024/month=8", pl.concat([rows(d) for d in (8, 9, 10)]))
    assert found(tmp_path, start="2024-08-09", end="2024-08-09") == [9.0, 9.06, 9.12, 9.18]
    assert len(found(tmp_path, start="2024-08-01", end="2024-08-31")) == 12


def test_hours(tmp_path):
    for h in (9, 10): write(tmp_path, f"{leaf(8)}/hour={h}", rows(hours=(h, h + 0.5)))
    assert found(tmp_path) == [8.09, 8.095, 8.1, 8.105]
    assert found(tmp_path, start="2024-08-08T10:00Z") == [8.1, 8.105]


def test_rows_without_a_clock_cannot_be_cut(tmp_path):
    write(tmp_path, leaf(8), pl.DataFrame({"price": [8.0]}))
    assert found(tmp_path, start="2024-08-08") == [8.0]
    with raises(SchemaError, "no clock"): found(tmp_path, start="2024-08-08T12:00Z")


@pytest.mark.parametrize("given, text", [
    (dict(start=datetime(2024, 8, 8)), "has no zone"), (dict(end="2024-08-08T12:00"), "has no zone"),
    (dict(start="8.8.2024"), "expected a day such as"), (dict(start=1723075200), "expected a day such as"),
    (dict(start="2024-08-09", end="2024-08-08"), "after end"),
    (dict(start="2024-08-08T13:00Z", end="2024-08-08T12:00Z"), "after end"),
])
def test_times_that_are_none(days, given, text):
    with raises(ConfigError, text): read(days, "silver", "trades", **given)


# ---- columns

def test_features_come_after_the_identifying_columns(made):
    got = read(made / "lake", "silver", "trades", features=["tfi_60s", "price", "symbol", "price"])
    assert got.collect_schema().names() == ["exchange", "symbol", "capture_ts", "tfi_60s", "price"]
    one = read(made / "lake", "gold", "trades_bars/60s", features="vwap").collect_schema().names()
    assert one == ["exchange", "symbol", "bar_start", "bar_end", "available_at", "vwap"]
    assert read(made / "lake", "silver", "trades", features=[]).collect_schema().names() == one[:2] + ["capture_ts"]


def test_an_alias_names_its_column(tmp_path):
    write(tmp_path, leaf(8), rows(ofi=[1.0, 2.0, 3.0, 4.0], vpin=0.5), dataset="silver/orderbook")
    got = read(tmp_path, "silver", "orderbook", features=["ofi_step", "ofi", "order_flow_toxicity"]).collect()
    assert got.columns == ["exchange", "symbol", "capture_ts", "ofi_step", "ofi", "order_flow_toxicity"]
    assert got["ofi_step"].to_list() == got["ofi"].to_list() == [1.0, 2.0, 3.0, 4.0]


def test_a_column_that_is_called_like_an_alias_is_meant_itself(tmp_path):
    write(tmp_path, leaf(8), rows(ofi=1.0, ofi_step=2.0), dataset="silver/orderbook")
    assert read(tmp_path, "silver", "orderbook", features="ofi_step").collect()["ofi_step"].to_list() == [2.0] * 4


def test_aliases_are_those_of_the_channel(tmp_path):
    write(tmp_path, leaf(8), rows(ofi=1.0))
    with raises(UnknownFeatureError, "'ofi_step'"): read(tmp_path, "silver", "trades", features="ofi_step")


def test_unknown_names_are_compared_with_what_the_files_hold(made, tmp_path):
    with raises(UnknownFeatureError, "'tfi_50s'", "Did you mean 'tfi_5s'?"):
        read(made / "lake", "silver", "trades", features=["price", "tfi_50s"])
    write(tmp_path, leaf(8), rows(ofi_a=1.0), dataset="silver/orderbook")
    with raises(UnknownFeatureError, "(the name of 'ofi')"):      # known to the catalogue, but in no file
        read(tmp_path, "silver", "orderbook", features="ofi_step")


def test_keys_of_the_path_are_columns_where_the_files_have_none(tmp_path):
    write(tmp_path, "venue=spot/exchange=x/symbol=007/year=2024/month=8/day=9", rows(9))
    got = read(tmp_path, "silver", "trades", features=[]).collect()
    assert got.head(1).drop("capture_ts").to_dicts() == [{"exchange": "x", "symbol": "007", "venue": "spot"}]
    assert not {"year", "month", "day"} & set(read(tmp_path, "silver", "trades").collect_schema())


def test_a_row_keeps_its_own_spelling_of_the_symbol(tmp_path):
    write(tmp_path, leaf(8), rows(symbol="BTC/USDT"))
    assert read(tmp_path, "silver", "trades", "BTC/USDT").collect()["symbol"].to_list() == ["BTC/USDT"] * 4


@pytest.mark.parametrize("symbol", ["007", "2025-01-01", "1e5", "true"])
def test_symbols_stay_text(tmp_path, symbol):
    write(tmp_path, f"exchange=1/symbol={symbol}/year=2024/month=8/day=8", rows())
    got = read(tmp_path, "silver", "trades", symbol).collect()
    assert got.select("exchange", "symbol").unique().rows() == [("1", symbol)]


def test_columns_of_all_configurations_null_where_missing(tmp_path):
    write(tmp_path, leaf(8), rows(8, a=1))
    write(tmp_path, leaf(9), rows(9, b="x").select("b", "price", "capture_ts"))
    write(tmp_path, leaf(10), rows(10, c=[[1.0]] * 4, a=3))
    got = read(tmp_path, "silver", "trades").collect()
    assert got.columns == ["exchange", "symbol", "capture_ts", "price", "a", "b", "c"]
    assert got["a"].to_list() == [1] * 4 + [None] * 4 + [3] * 4
    assert got["b"].to_list() == [None] * 4 + ["x"] * 4 + [None] * 4
    assert got["c"].null_count() == 8
    assert read(tmp_path, "silver", "trades", end="2024-08-08").collect().width == 5    # of the files that are read


@pytest.mark.parametrize("place", [(8, "part-1.parquet"), (9, "part-0.parquet")], ids=["one partition", "two"])
def test_types_that_differ_name_both_files(tmp_path, place):
    first = write(tmp_path, leaf(8), rows(8, a=1.0))
    second = write(tmp_path, leaf(place[0]), rows(9, a=pl.Series([1.0] * 4, dtype=pl.Float32)), place[1])
    with raises(SchemaError, str(first), str(second), "column 'a'", "Float64", "Float32"):
        read(tmp_path, "silver", "trades")


def test_classes_keep_their_type(tmp_path):
    kind = pl.Enum(["tight", "wide"])
    write(tmp_path, leaf(8), rows(8, regime=pl.Series(["tight", "wide", None, "tight"], dtype=kind)))
    write(tmp_path, leaf(9), rows(9))
    assert read(tmp_path, "silver", "trades").collect()["regime"].dtype == kind


# ---- order

def test_order_is_stream_then_time_then_row(tmp_path):
    for exchange, symbol in (("b", "A"), ("a", "Z"), ("a", "B")):
        for day, folder in ((10, "month=8/day=10"), (9, "month=8/day=9"), (1, "month=09/day=01")):
            frame = rows(day, hours=(6, 0), label=f"{exchange}{symbol}{day}")      # out of order inside of a file
            write(tmp_path, f"exchange={exchange}/symbol={symbol}/year=2024/{folder}", frame)
    got = read(tmp_path, "silver", "trades").collect()
    assert got["label"].to_list()[::2] == [f"{s}{d}" for s in ("aB", "aZ", "bA") for d in (9, 10, 1)]
    assert got["price"].to_list()[:2] == [9.06, 9.0]
    assert read(tmp_path, "silver", "trades").collect(engine="streaming").equals(got)


def test_appended_files_come_by_name(tmp_path):
    write(tmp_path, leaf(8), rows(hours=(1,)), "part-20240808T010000000000-ffff0000.parquet")
    write(tmp_path, leaf(8), rows(hours=(0,), more=1), "part-20240808T000000000000-eeee0000.parquet")
    write(tmp_path, leaf(8), rows(hours=(2,)), "part-20240808T020000000000-00000000.parquet")
    assert found(tmp_path) == [8.0, 8.01, 8.02]


# ---- what is not read

def spoil(path: Path, *, column: str | None = None, group: int | None = None) -> None:
    "Overwrite pages of a Parquet file: those of a column, of a row group, or all; its footer stays."
    meta = pq.read_metadata(path)
    groups = range(meta.num_row_groups) if group is None else [group]
    chunks = [meta.row_group(g).column(c) for g in groups for c in range(meta.num_columns)]
    with open(path, "r+b") as f:
        for chunk in chunks:
            if column not in (None, chunk.path_in_schema): continue
            f.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
            f.write(b"\xff" * chunk.total_compressed_size)


def test_nothing_but_footers_is_read_before_collect(days):
    for path in days.rglob("*.parquet"): spoil(path)
    frame = read(days, "silver", "trades", start="2024-08-08T12:00Z", features="price")
    with pytest.raises(pl.exceptions.PolarsError): frame.collect()


def test_other_folders_are_not_opened(days):
    for day in (8, 10, 11): (days / "silver/trades" / leaf(day) / "part-0.parquet").write_bytes(b"no Parquet")
    (days / "silver/trades/exchange=binance/symbol=ETH-USDT/year=2024/month=08/day=09").mkdir(parents=True)
    put(days / "silver/trades", b"no Parquet", 9, ETH)
    assert len(found(days, "BTC/USDT", "2024-08-09", "2024-08-09")) == 4
    with raises(CorruptFileError, leaf(8)): found(days, "BTC/USDT", "2024-08-08", "2024-08-09")


def test_projection_reaches_the_files(tmp_path):
    for day in (8, 9): spoil(write(tmp_path, leaf(day), rows(day, heavy=1.5)), column="heavy")
    frame = read(tmp_path, "silver", "trades")
    assert frame.select("symbol", "price").collect().height == 8
    assert read(tmp_path, "silver", "trades", features="price").collect().height == 8
    assert "PROJECT 1/" in frame.select("price").explain()
    with pytest.raises(pl.exceptions.PolarsError): frame.collect()


def test_predicates_reach_the_files(tmp_path):
    "Polars rules groups out by the statistics of whole numbers, texts and times; a float could be NaN."
    path = write(tmp_path, leaf(8), rows(8, hours=range(24), n=range(24)), row_group_size=12)
    spoil(path, group=0)
    frame = read(tmp_path, "silver", "trades")
    with pytest.raises(pl.exceptions.PolarsError): frame.collect()
    assert frame.filter(pl.col("n") > 12).collect().height == 11
    assert found(tmp_path, start="2024-08-08T12:00Z") == [8 + h / 100 for h in range(12, 24)]
    assert "SELECTION" in frame.filter(pl.col("n") > 12).explain()


def test_a_dataset_of_ours_is_one_scan(made):
    assert read(made / "lake", "silver", "trades").explain(optimized=False).count("Parquet SCAN") == 1


def test_empty_and_broken_files(days):
    (days / "silver/trades" / leaf(8) / "part-0.parquet").write_bytes(b"")
    with raises(CorruptFileError, "0 bytes"): read(days, "silver", "trades")
    assert len(found(days, start="2024-08-09")) == 12


def test_reading_leaves_no_trace(made):
    before = lakes.places(made)
    read(made / "lake", "silver", "trades", fresh=True).collect()
    read(made / "raw", "bronze", "trades").collect()
    assert lakes.places(made) == before


def test_reading_all_columns_needs_no_numba(days):
    "Only aliases need the declarations, which bring the kernels along."
    code = """
import sys, daedalus_etl
assert daedalus_etl.read(sys.argv[1], 'silver', 'trades').collect().height == 16
assert 'numba' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(days)], check=True)


# ---- commits that were cut off

def cut_off(lake: Path, monkeypatch, *, held: bool = False) -> Journal:
    "A commit of two days whose process dies when its journal is written; `held`: it is alive and waits."
    output = OutputConfig(name="silver", path=f"{lake}/silver/trades")
    dataset = Dataset.of(output)
    changes = [Change(dataset, Partition.parse(leaf(day)), Snapshot(), (stage(dataset, rows(day).lazy(), output),))
               for day in (8, 9)]
    def die(self): raise InterruptedError("killed")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "carry_out", die)
        with pytest.raises(StorageError): commit(changes)
    (left,) = journals(lake)
    return left


def test_a_commit_that_was_cut_off_is_finished_first(tmp_path, monkeypatch):
    cut_off(tmp_path, monkeypatch)
    assert not (tmp_path / "silver").exists()
    assert found(tmp_path) == [d + h / 100 for d in (8, 9) for h in (0, 6, 12, 18)]
    assert journals(tmp_path) == []


def test_a_living_commit_is_left_alone(tmp_path, monkeypatch):
    left = cut_off(tmp_path, monkeypatch)
    write(tmp_path, leaf(7), rows(7))
    monkeypatch.setattr("daedalus_etl.storage.lake.COMMIT_WAIT_S", 0.01)
    with disk.Lock(tmp_path / left.alone[0]):
        assert found(tmp_path) == [7.0, 7.06, 7.12, 7.18]
        assert [j.path for j in journals(tmp_path)] == [left.path]
    assert len(found(tmp_path)) == 12


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("call", [os.open, os.replace])
def test_who_may_not_write_is_told_to_recover(tmp_path, monkeypatch, code, call):
    cut_off(tmp_path, monkeypatch)
    real = disk.syscall
    def refuse(function, *args, **kwargs):
        if function is call: raise OSError(code, os.strerror(code), str(args[0]))
        return real(function, *args, **kwargs)
    monkeypatch.setattr(disk, "syscall", refuse)
    with raises(ConflictError, f"daedalus recover {tmp_path}", os.strerror(code)): found(tmp_path)
    monkeypatch.setattr(disk, "syscall", real)
    assert len(found(tmp_path)) == 8


def test_other_faults_are_what_they_are(tmp_path, monkeypatch):
    cut_off(tmp_path, monkeypatch)
    real = disk.syscall
    def broken(function, *args, **kwargs):
        if function is os.replace: raise OSError(errno.EIO, "Input/output error", str(args[0]))
        return real(function, *args, **kwargs)
    monkeypatch.setattr(disk, "syscall", broken)
    with raises(StorageError, "Input/output error"): found(tmp_path)


def test_without_a_journal_no_right_is_needed(days, monkeypatch):
    def refuse(function, *args, **kwargs): raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(disk, "syscall", refuse)
    monkeypatch.setattr(journal, "recover", lambda *_: pytest.fail("nothing to recover"))
    assert len(found(days)) == 16


# ---- stale or fresh

@pytest.fixture
def chain(made, tmp_path):
    "A copy of the lake and its sources in which every result is up to date."
    for day in (8, 9): put(tmp_path / "raw/trades", tape(day), day)
    run(lakes.trades(tmp_path / "raw/trades", tmp_path / "lake"))
    run(lakes.bars(tmp_path / "lake/silver/trades", tmp_path / "lake"), features=FeatureConfig(bar_durations=(60,)))
    return tmp_path


SILVER, GOLD = "silver/trades", "gold/trades_bars/60s"


def stale(home, name=SILVER, spec=None):
    "Day to reason."
    return {int(p.get("day")): why for p, why in stale_partitions(Dataset(str(home / "lake"), name), spec)}


def test_results_of_a_run_are_fresh(chain):
    assert (stale(chain), stale(chain, GOLD)) == ({}, {})
    assert read(chain / "lake", "silver", "trades", fresh=True).select(pl.len()).collect().item() == 960
    assert read(chain / "lake", "gold", "trades_bars/60s", fresh=True).collect().height > 0


def test_an_input_that_was_replaced(chain):
    path = put(chain / "raw/trades", tape(9), 9)               # the same bytes, but who knows
    assert stale(chain) == {9: f"input trades: {path} was replaced"}
    with raises(StaleStateError, f"{leaf(9)}: input trades", "1 stale partition;", "daedalus trades --input"):
        read(chain / "lake", "silver", "trades", fresh=True)
    assert read(chain / "lake", "silver", "trades").collect().height == 960                     # if nobody asks
    assert read(chain / "lake", "silver", "trades", end="2024-08-08", fresh=True).collect().height == 480


def test_an_input_that_was_written_over_in_place(chain):
    path = chain / "raw/trades" / leaf(8) / "data.parquet"
    s = path.stat()
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns + 1))
    assert list(stale(chain)) == [8]


def test_an_input_that_is_gone(chain):
    shutil.rmtree(chain / "raw/trades" / leaf(8))
    assert "data.parquet is gone" in stale(chain)[8]
    shutil.rmtree(chain / "raw")
    assert sorted(stale(chain)) == [8, 9]


def test_a_file_that_came_beside_an_input(chain):
    put(chain / "raw/trades", b"notes", name="_notes.parquet")
    put(chain / "raw/trades", b"notes", name="notes.txt.parquet.tmp")
    assert stale(chain) == {}
    path = put(chain / "raw/trades", tape(8), name="more.parquet")
    assert stale(chain) == {8: f"input trades: {path} came"}


def test_gold_is_stale_where_its_silver_is(chain):
    put(chain / "raw/trades", tape(9), 9)
    assert list(stale(chain, GOLD)) == [9]
    assert stale(chain, GOLD)[9].startswith(f"silver/trades/{leaf(9)} is stale: input trades")
    run(lakes.trades(chain / "raw/trades", chain / "lake"))
    assert stale(chain) == {}
    assert "part-0.parquet was replaced" in stale(chain, GOLD)[9]


def test_a_partition_follows_from_the_one_before(chain):
    put(chain / "raw/trades", tape(8, n=300), 8)
    run(lakes.trades(chain / "raw/trades", chain / "lake"), FilterSpec(day=8))
    why = stale(chain)
    assert list(why) == [9] and f"not with the state in which {leaf(8)} ended" in why[9]
    assert list(stale(chain, spec=FilterSpec(day=9))) == [9]          # the day before is looked at all the same


def test_a_day_that_came_before_the_first(chain):
    put(chain / "raw/trades", tape(7), 7)
    run(lakes.trades(chain / "raw/trades", chain / "lake"), FilterSpec(day=7))
    assert stale(chain) == {8: f"it began as the first of its stream, not with the state in which {leaf(7)} ended"}


def test_a_cold_start_is_fresh_while_it_has_no_past(tmp_path):
    for day in (8, 9): put(tmp_path / "raw/trades", tape(day), day)
    run(lakes.trades(tmp_path / "raw/trades", tmp_path / "lake"), FilterSpec(day=9), cold_start=True)
    assert stale(tmp_path) == {}
    run(lakes.trades(tmp_path / "raw/trades", tmp_path / "lake"), FilterSpec(day=8))
    assert "it began cold" in stale(tmp_path)[9]


def test_a_day_whose_past_was_removed(chain):
    shutil.rmtree(chain / "lake/silver/trades" / leaf(8))
    assert stale(chain) == {9: "the partition before it, with whose state it began, is gone"}


def test_a_state_that_was_brought_along_is_a_beginning(tmp_path):
    for day in (8, 9): put(tmp_path / "raw/trades", tape(day), day)
    run(lakes.trades(tmp_path / "raw/trades", tmp_path / "other"), FilterSpec(day=8), state_path=tmp_path / "states")
    run(lakes.trades(tmp_path / "raw/trades", tmp_path / "lake"), FilterSpec(day=9), state_path=tmp_path / "states")
    assert stale(tmp_path) == {}


def test_what_nobody_vouches_for(chain):
    shutil.rmtree(chain / "lake/.daedalus/silver/trades/lineage")
    assert all("no record of what part-0.parquet was made from" in why for why in stale(chain).values())
    assert sorted(stale(chain)) == [8, 9]


def test_a_file_that_was_changed_by_hand(chain):
    path = chain / "lake/silver/trades" / leaf(9) / "part-0.parquet"
    footer = pl.read_parquet_metadata(path)
    frame = pl.read_parquet(path, hive_partitioning=False)
    kept = {k: v for k, v in footer.items() if k.startswith("daedalus.")}
    frame.head(10).write_parquet(path, metadata=kept)
    assert list(stale(chain)) == [9] and "changed since" in stale(chain)[9]


def test_damage_is_a_reason_too(chain):
    (chain / "lake/silver/trades" / leaf(9) / "part-0.parquet").write_bytes(b"")
    for record in (chain / "lake/.daedalus/silver/trades/lineage").iterdir(): record.write_bytes(b"{")
    why = stale(chain)
    assert "not a readable Parquet file" in why[9] and "record is damaged" in why[8]


def test_a_lake_that_moved_with_its_sources_is_judged_by_its_files(chain):
    "Paths in records are relative to the lake; inodes stay when a folder is renamed."
    home = chain.with_name(chain.name + "-moved")
    chain.rename(home)
    assert (stale(home), stale(home, GOLD)) == ({}, {})


def test_a_lake_that_is_reached_over_a_link(chain):
    (chain / "far/away").mkdir(parents=True)
    (chain / "far/away/link").symlink_to(chain / "lake")
    for name in (SILVER, GOLD): assert stale_partitions(Dataset(str(chain / "far/away/link"), name)) == []


def test_the_list_is_cut_and_the_command_names_the_first_day(tmp_path):
    for day in range(1, 16): put(tmp_path / "lake/silver/trades", tape(day, seconds=(1.0,)), day)
    with pytest.raises(StaleStateError) as e: check_fresh(Dataset(str(tmp_path / "lake"), SILVER))
    text = str(e.value)
    assert "15 stale partitions;" in text and "and 3 more" in text and text.count("no record") == 12
    assert "--start-date 2024-08-01" in text


@pytest.mark.parametrize("name", [SILVER, GOLD])
def test_the_command_mends(chain, name, capsys, monkeypatch):
    "What the refusal proposes is run as it stands (with the configuration that it asks for)."
    monkeypatch.delenv("DAEDALUS_CONFIG", raising=False)
    config = chain / "config.yaml"
    config.write_text("features: {rolling_windows: [5, 60, 900], bar_durations: [60]}\n")
    put(chain / "raw/trades", tape(8, n=300), 8)
    with pytest.raises(StaleStateError) as e: check_fresh(Dataset(str(chain / "lake"), name))
    commands = str(e.value).partition("made them: ")[2].splitlines()[0].split(" && ")
    for command in commands: assert cli.main([*shlex.split(command)[1:], "--config", str(config)]) == 0
    assert stale(chain, name) == {}
    assert SMALL.rolling_windows == (5, 60, 900)


def test_other_transforms_have_no_command(tmp_path):
    write(tmp_path, leaf(8), rows(), dataset="silver/mine")
    with raises(StaleStateError, "the transform that makes silver/mine"): read(tmp_path, "silver", "mine", fresh=True)


def test_bronze_is_not_computed(made):
    with raises(ConfigError, "bronze is captured"): read(made / "raw", "bronze", "trades", fresh=True)


# ---- the same by other tools

def lines(lake: Path) -> tuple[pl.DataFrame, str]:
    whole = read(lake, "silver", "trades").collect()
    return whole, f"{lake}/silver/trades/**/*.parquet"


def test_plain_polars(made):
    whole, files = lines(made / "lake")
    got = pl.scan_parquet(files, schema=whole.select(sorted(whole.columns)).schema, hive_partitioning=False)
    assert_frame_equal(got.select(whole.columns).collect(), whole)


def test_duckdb(made):
    duckdb = pytest.importorskip("duckdb")
    whole, files = lines(made / "lake")
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        got = db.sql(f"SELECT * FROM read_parquet('{files}', union_by_name = true, hive_partitioning = false)").pl()
    assert_frame_equal(got.select(whole.columns), whole)


def test_pandas(made):
    pandas = pytest.importorskip("pandas")
    whole, _ = lines(made / "lake")
    root = made / "lake/silver/trades"
    got = pandas.read_parquet(root, partitioning=None, schema=pq.read_schema(max(root.rglob("*.parquet"))))
    assert pl.from_pandas(got).select("trade_id", "capture_ts", "price").equals(
        whole.select("trade_id", "capture_ts", "price"))


# ---- recorded data

@pytest.mark.parametrize("channel", ["trades", "ticker", "orderbook"])
def test_recorded_bronze(shared_bronze, channel):
    got = read(shared_bronze, "bronze", channel, "BTC/USDT", "2024-08-08", "2024-08-09").collect()
    folder = shared_bronze / channel / "exchange=binance/symbol=BTC-USDT/year=2024/month=08"
    want = pl.concat([pl.read_parquet(p, hive_partitioning=False) for p in sorted(folder.rglob("*.parquet"))])
    assert_frame_equal(got, want.select(got.columns))
    first = datetime(2024, 8, 9, tzinfo=UTC)
    cut = read(shared_bronze, "bronze", channel, "BTC/USDT", first, first + timedelta(seconds=30)).collect()
    assert_frame_equal(cut, want.filter(pl.col("capture_ts").is_between(first, first + timedelta(seconds=30)))
                       .select(cut.columns))


def test_recorded_trades_to_silver_and_back(shared_bronze, tmp_path):
    run(lakes.trades(shared_bronze / "trades", tmp_path), FilterSpec(symbol="ETH/USDT", year=2024))
    got = read(tmp_path, "silver", "trades", "ETH/USDT", features=["price", "tfi_60s"], fresh=True).collect()
    bronze = read(shared_bronze, "bronze", "trades", "ETH/USDT", end="2024-08-09", features="price").collect()
    assert got["price"].sum() == pytest.approx(bronze["price"].sum()) and got.height == bronze.height
    assert BTC[1] not in got["symbol"]
