"""What the user gets for each kind of bad input, one test per kind, from end to end.

Three outcomes: an error that stops the partition and names the place, a row (line, file) in quarantine with its reason
and place, or a defined handling that is counted. ELSEWHERE says which kinds have their test in another file."""
import ast
import gzip
import json
import os
import pickle
import re
import unicodedata
import warnings
from datetime import timedelta
from pathlib import Path

import lakes
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lakes import BTC, SMALL, cli, dataset, day_start, leaf, put, run, statuses, tape
from polars.testing import assert_frame_equal

from daedalus_etl.core.config import FeatureConfig, FilterSpec
from daedalus_etl.core.errors import (
    BadDataError,
    CorruptFileError,
    PartitionError,
    SchemaError,
    StateError,
)
from daedalus_etl.core.levels import LEVELS
from daedalus_etl.core.registry import create_transform
from daedalus_etl.features.frames import features
from daedalus_etl.storage import text
from daedalus_etl.storage.dataset import scan

N = 3000              # rows of a large tape: one bad row is a third of the default share
BAD = "tests/test_bad_input.py::"
ELSEWHERE = {
    2: BAD + "test_zero_bytes",
    3: "tests/test_modes.py::test_lineage_verify_status_recover", 4: BAD + "test_broken_parquet",
    9: BAD + "test_prices_as_text",
    17: BAD + "test_empty_match", 21: BAD + "test_column_and_folder_disagree",
    22: BAD + "test_two_symbols_in_one_partition", 30: BAD + "test_timestamps_in_another_unit",
    31: BAD + "test_few_bad_rows_go_to_quarantine", 33: BAD + "test_duplicated_rows",
    34: BAD + "test_repeats_with_other_content_are_set_aside", 35: BAD + "test_unsorted_rows",
    36: BAD + "test_mistyped_column", 38: BAD + "test_few_bad_rows_go_to_quarantine",
    39: BAD + "test_few_bad_rows_go_to_quarantine", 40: BAD + "test_few_bad_rows_go_to_quarantine",
    52: BAD + "test_unknown_sides_are_null_and_no_sell",
    54: "tests/test_modes.py::test_no_room_is_said_before_anything_is_computed",
    55: "tests/test_modes.py::test_no_right_is_said_before_anything_is_computed",
    56: "tests/test_modes.py::test_a_file_that_is_replaced_while_it_is_read_is_read_again",
    57: "tests/test_doctor.py::test_calls_that_are_refused",
    58: BAD + "test_configuration_errors",
    61: "tests/test_etl_core.py::test_damaged_and_foreign_states",
    62: "tests/test_modes.py::test_what_another_transform_made_is_not_written_over"}


@pytest.fixture
def bronze(tmp_path): return tmp_path / "bronze"


@pytest.fixture
def lake(tmp_path): return tmp_path / "lake"


def silver(lake, channel="trades"): return dataset(lake / "silver" / channel)


def quarantine(lake, channel="trades"): return dataset(lake / ".daedalus/silver" / channel / "quarantine")


def plain(rows=None, config=SMALL): return features(trades=tape(8, n=N) if rows is None else rows, config=config)


def same(got, want): assert_frame_equal(got.select(want.columns), want, check_exact=True)


def raises(kind, *texts):
    "An error of this very kind whose message holds all the texts."
    return pytest.raises(kind, check=lambda e: type(e) is kind and all(t in str(e) for t in texts))


def nothing_published(lake): assert not list((lake / "silver").rglob("*.parquet")) and lakes.leftovers(lake) == []


def side(*levels): return [dict(zip(("price", "size"), level, strict=True)) for level in levels]


GOOD = side((100.0, 1.0), (99.0, 2.0)), side((101.0, 1.0), (102.0, 2.0))


def books(*pairs, start=day_start(8) + timedelta(hours=12)) -> pl.DataFrame:
    "Order books, a second apart, of (bids, asks)."
    at = [start + timedelta(seconds=i) for i in range(len(pairs))]
    return pl.DataFrame({"capture_ts": at, "nonce": range(1, len(pairs) + 1), "bids": [b for b, _ in pairs],
                         "asks": [a for _, a in pairs]},
                        schema_overrides={"capture_ts": lakes.UTC_US, "bids": LEVELS, "asks": LEVELS})


ALL = FeatureConfig(categories={"structural", "dynamic", "rolling", "advanced"}, rolling_windows=(5, 60))


def books_run(bronze, lake, *pairs, config=ALL, trades="", frame=None):
    "Silver of such books."
    put(bronze / "orderbook", books(*pairs) if frame is None else frame)
    run(lakes.orderbook(bronze / "orderbook", lake, trades), features=config)
    return silver(lake, "orderbook")


# ---- files

def test_row_01_truncated_parquet(bronze, lake, tmp_path):
    "An error that names the file; with --quarantine-files the run goes on without it and notes it."
    put(bronze, tape(8, n=N), name="a.parquet")
    path = put(bronze, tape(8, stream=BTC), name="b.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    put(bronze, tape(9, n=N), 9)
    command = ["trades", "--input", bronze, "--output", lake, "--rolling-windows", "5,60,900"]
    done = cli(*command, cwd=tmp_path)
    assert done.returncode == 1 and str(path) in done.stderr and "truncated" in done.stderr
    nothing_published(lake)
    done = cli(*command, "--quarantine-files", cwd=tmp_path)
    assert done.returncode == 0 and "1 quarantined" in done.stdout
    assert "set aside whole" in done.stderr and str(path) in done.stderr
    same(silver(lake), plain(pl.concat([tape(8, n=N), tape(9, n=N)])))
    aside = quarantine(lake).row(0, named=True)
    assert (aside["file"], aside["row"], aside["reason"]) == (str(path), None, "unreadable_file")
    assert aside["bytes"] == len(whole) - 100 and len(aside["sha256"]) == 64 and "truncated" in aside["found"]
    assert path.read_bytes() == whole[:-100]                         # bronze is never touched


def test_row_01_the_only_file_of_a_day(bronze, lake):
    "With --quarantine-files a day whose only file is unreadable has no rows; mending the file mends the day."
    for day in (8, 9, 10): put(bronze, tape(day, n=N), day)
    put(bronze, b"PAR1 cut", 9)
    transform = lakes.trades(bronze, lake)
    lenient = {"trades": transform.config.inputs["trades"].model_copy(update={"quarantine_files": True})}
    transform = create_transform("trades_features", transform.config.model_copy(update={"inputs": lenient}))
    with pytest.warns(UserWarning, match="set aside whole"): report = run(transform)
    assert statuses(report) == ["written"] * 3 and report.totals()["quarantined"] == 1
    assert pl.read_parquet(lake / "silver/trades" / leaf(9) / "part-0.parquet").height == 0
    put(bronze, tape(9, n=N), 9)
    assert run(lakes.trades(bronze, lake)).units[1].status == "written"
    same(silver(lake), plain(pl.concat([tape(d, n=N) for d in (8, 9, 10)])))
    assert not list((lake / ".daedalus").rglob("rows.parquet"))


@pytest.mark.parametrize("dtype", [pl.Int32, pl.Int64, pl.Float32, pl.Decimal(18, 4)])
def test_row_05_another_number_type(bronze, lake, dtype):
    "Prices of a type that widens without loss give the same silver; integers beyond 2^53 are an error."
    rounded = tape(8, n=N).with_columns(pl.col("price").round(0))
    put(bronze, rounded.with_columns(pl.col("price").cast(dtype)))
    run(lakes.trades(bronze, lake))
    same(silver(lake), plain(rounded))
    put(bronze, rounded.with_columns(price=pl.lit(2**53 + 1)))
    with raises(SchemaError, "'price'", "exactly"): run(lakes.trades(bronze, lake))


def test_row_06_missing_column(bronze, lake):
    "A required column is an error that names it; without optional ones the features are the same."
    put(bronze, tape(8, n=N).drop("cost", "timestamp", "collected_at"))
    run(lakes.trades(bronze, lake))
    added = [c for c in silver(lake).columns if c not in tape(8).columns]
    assert_frame_equal(silver(lake).select(added), plain().select(added), check_exact=True)
    put(bronze, tape(8, n=N).drop("amount"))
    with raises(SchemaError, "'amount'", "missing"): run(lakes.trades(bronze, lake))


@pytest.mark.parametrize(("extra", "kept"), [("keep", True), ("ignore", False)])
def test_row_07_extra_column(bronze, lake, extra, kept):
    "A column that nobody declared passes through, is dropped with one warning, or is an error, as configured."
    for day in (8, 9): put(bronze, tape(day).with_columns(fee=pl.lit(0.1)), day)
    transform = lakes.trades(bronze, lake)
    inputs = {"trades": transform.config.inputs["trades"].model_copy(update={"extra": extra})}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run(create_transform("trades_features", transform.config.model_copy(update={"inputs": inputs})))
    assert ("fee" in silver(lake).columns) is kept
    assert len([w for w in caught if "'fee'" in str(w.message)]) == (0 if kept else 1)
    inputs = {"trades": inputs["trades"].model_copy(update={"extra": "forbid"})}
    transform = create_transform("trades_features", transform.config.model_copy(update={"inputs": inputs}))
    with raises(SchemaError, "'fee'"): run(transform)


def test_row_08_column_order(bronze, lake):
    "The order of columns does not matter."
    put(bronze, tape(8, n=N).select(reversed(tape(8).columns)))
    run(lakes.trades(bronze, lake))
    same(silver(lake), plain())


# ---- text

def lines_of(frame, fmt) -> list[str]: return (iso_text(frame, fmt)).splitlines(keepends=True)


def iso_text(frame, fmt): return lakes.iso(frame).write_ndjson() if fmt == "ndjson" else lakes.iso(frame).write_csv()


def put_lines(bronze, lines, fmt, suffix=""): return put(bronze, "".join(lines).encode(), name=f"data.{fmt}{suffix}")


def without(*rows): return tape(8, n=N).filter(~pl.int_range(pl.len()).is_in(rows))


def text_run(bronze, lake, fmt, **kwargs): return run(lakes.trades(bronze, lake, fmt=fmt), **kwargs)


def the_line(lake) -> dict:
    (aside,) = quarantine(lake).iter_rows(named=True)
    return aside


@pytest.mark.parametrize("cell", ["NaN", "1e400", "1_000", "", "1,5"])
def test_row_10_csv_cells_that_are_no_price(bronze, lake, cell):
    "A price that is no finite number sets its row aside; the column stays a number, nothing is guessed."
    lines = lines_of(tape(8, n=N), "csv")
    price = tape(8, n=N)["price"][99]
    lines[100] = lines[100].replace(f",{price},", f',"{cell}",' if "," in cell else f",{cell},")
    path = put_lines(bronze, lines, "csv")
    text_run(bronze, lake, "csv")
    aside = the_line(lake)
    assert (aside["file"], aside["row"], aside["reason"]) == (str(path), 99, "bad_price")
    same(silver(lake), plain(without(99)))


def test_row_11_byte_order_mark(bronze, lake):
    "A byte-order mark at the start of a CSV file is no part of the first column's name."
    put_lines(bronze, ["\ufeff", *lines_of(tape(8, n=N), "csv")], "csv")
    text_run(bronze, lake, "csv")
    same(silver(lake), plain())


@pytest.mark.parametrize("change", [lambda s: s.replace("\n", ",7\n"), lambda s: s.rsplit(",", 2)[0] + "\n"])
def test_row_12_ragged_csv(bronze, lake, change):
    "A line with more or fewer fields than the header goes to quarantine with line and byte; the others are computed."
    lines = lines_of(tape(8, n=N), "csv")
    bad = change(lines[2000])
    path = put_lines(bronze, [*lines[:2000], bad, *lines[2001:]], "csv")
    assert text_run(bronze, lake, "csv").totals()["quarantined"] == 1
    aside = the_line(lake)
    assert (aside["file"], aside["line"], aside["row"], aside["reason"]) == (str(path), 2001, 1999, "bad_line")
    assert path.read_bytes()[aside["byte_offset"]:].startswith(aside["text"].encode()) and aside["text"] == bad.strip()
    same(silver(lake), plain(without(1999)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_row_13_broken_ndjson_line(bronze, lake, suffix, monkeypatch):
    "A broken line goes to quarantine with line and byte, and bad rows behind it keep their number in the file."
    monkeypatch.setattr(text, "PIECE_BYTES", 5000)                     # many pieces
    frame = tape(8, n=N).with_columns(price=pl.when(pl.int_range(pl.len()) == 2500).then(-1.0).otherwise("price"))
    lines = lines_of(frame, "ndjson")
    lines[300] = lines[300][:40] + "\n"
    data = "".join(lines).encode()
    path = put(bronze, gzip.compress(data) if suffix else data, name=f"data.ndjson{suffix}")
    assert text_run(bronze, lake, "ndjson").totals()["quarantined"] == 2
    aside = quarantine(lake).sort("row")
    assert aside.select("row", "reason", "line").rows() == [(300, "bad_line", 301), (2500, "bad_price", None)]
    assert set(aside["file"]) == {str(path)} and "no JSON" in aside["found"][0]
    assert data[aside["byte_offset"][0]:].startswith(lines[300].encode())
    same(silver(lake), plain(without(300, 2500)))


def test_row_13_many_broken_lines(bronze, lake):
    "More than max_bad_fraction of broken lines is an error that names the first one, and how many there are."
    lines = lines_of(tape(8, n=N), "ndjson")
    put_lines(bronze, [line[:40] + "\n" if i % 500 == 3 else line for i, line in enumerate(lines)], "ndjson")
    with raises(CorruptFileError, "data.ndjson:4", "no JSON", "7 of 3040 lines", "max_bad_fraction"):
        text_run(bronze, lake, "ndjson")
    nothing_published(lake)
    lenient = SMALL.model_copy(update={"max_bad_fraction": 0.01})
    assert text_run(bronze, lake, "ndjson", features=lenient).totals()["quarantined"] == 7


@pytest.mark.parametrize(("key", "value"), [
    ("timestamp", "x"), ("timestamp", 1.5), ("capture_ts", "2024-08-08T12:00:00")])
def test_row_14_ndjson_type_change(bronze, lake, key, value):
    "A value of another type, however late in the file, goes to quarantine with its line."
    lines = lines_of(tape(8, n=N), "ndjson")
    lines[2500] = json.dumps(json.loads(lines[2500]) | {key: value}) + "\n"
    put_lines(bronze, lines, "ndjson")
    text_run(bronze, lake, "ndjson")
    aside = the_line(lake)
    assert (aside["line"], aside["reason"]) == (2501, "bad_line") and f"'{key}'" in aside["found"]
    same(silver(lake), plain(without(2500)))


def test_row_15_truncated_gzip(bronze, lake):
    "A gzip stream that ends early is an error that says so."
    path = put(bronze, gzip.compress(iso_text(tape(8, n=N), "ndjson").encode())[:-20], name="data.ndjson.gz")
    with raises(CorruptFileError, str(path), "truncated"): text_run(bronze, lake, "ndjson")
    nothing_published(lake)


@pytest.mark.parametrize("fmt", ["csv", "ndjson"])
def test_row_16_gzip_by_content(bronze, lake, fmt):
    "Compression is told by the first bytes, not by the suffix; what was compressed twice is an error that says so."
    data = iso_text(tape(8, n=N), fmt).encode()
    put(bronze, data, name=f"data.{fmt}.gz")
    text_run(bronze, lake, fmt)
    same(silver(lake), plain())
    put(bronze, gzip.compress(gzip.compress(data)), name=f"data.{fmt}.gz")
    with raises(CorruptFileError, f"data.{fmt}.gz", "compressed twice"): text_run(bronze, lake, fmt)


# ---- the tree

def test_row_18_foreign_files(bronze, lake):
    "Marks, temporary and hidden files in the tree are passed over; our own tree holds Parquet and nothing else."
    folder = put(bronze, tape(8, n=N)).parent
    for name in ("_SUCCESS", ".DS_Store", ".hidden.parquet", "_x.parquet", "b.parquet.tmp", "notes.txt"):
        (folder / name).write_bytes(b"no data")
    run(lakes.trades(bronze, lake))
    same(silver(lake), plain())
    assert {p.suffix for p in (lake / "silver").rglob("*") if p.is_file()} == {".parquet"}


def test_row_19_symlink_loop(bronze, lake):
    "Links are not followed, with a warning: each row counts once."
    put(bronze, tape(8, n=N))
    (bronze / "exchange=binance/symbol=LOOP").symlink_to(bronze / "exchange=binance")
    with pytest.warns(UserWarning, match="symbol=LOOP is a symbolic link"): report = run(lakes.trades(bronze, lake))
    assert report.totals()["rows_in"] == N + 40 and len(report.units) == 1


def test_row_20_same_file_twice(bronze, lake):
    "A hard link, or a copy of quotes, is an error that names both; repeated trades are dropped by id and counted."
    path = put(bronze, lakes.quotes(8))
    put(bronze, lakes.quotes(8), name="copy.parquet")
    with raises(PartitionError, "copy.parquet", "data.parquet", "twice"): run(lakes.ticker(bronze, lake))
    (path.parent / "copy.parquet").unlink()
    os.link(path, path.parent / "copy.parquet")
    with raises(PartitionError, "copy.parquet", "hard link"): run(lakes.ticker(bronze, lake))
    put(bronze, lakes.quotes(8)[:200], name="copy.parquet")              # other bytes: quotes are never dropped
    assert run(lakes.ticker(bronze, lake)).totals()["rows_in"] == 680


def test_row_23_rows_of_another_day(bronze, lake):
    "A row whose capture time lies outside its partition goes to quarantine; many of them fail the partition."
    astray = pl.concat([tape(9)[:1], tape(7)[-1:]])
    path = put(bronze, pl.concat([tape(8, n=N), astray]))
    assert run(lakes.trades(bronze, lake)).totals()["quarantined"] == 2
    rows = quarantine(lake)
    assert rows.select("file", "row", "reason").rows() == [(str(path), N + 40 + k, "wrong_partition") for k in (0, 1)]
    same(silver(lake), plain())
    put(bronze, tape(9, n=N))
    with raises(BadDataError, "wrong_partition", "'capture_ts'", "row 0"): run(lakes.trades(bronze, lake))


def test_row_24_padded_and_unpadded_month(bronze, lake):
    "Two folders for one month are an error that names both, since their rows would count twice."
    path = put(bronze, tape(8, n=N))
    other = Path(str(path).replace("month=08", "month=8"))
    other.parent.mkdir(parents=True)
    other.write_bytes(path.read_bytes())
    with raises(PartitionError, "month=08", "month=8/"): run(lakes.trades(bronze, lake))


@pytest.mark.parametrize("symbol", ["007", "2025-01-01", "1e5"])
def test_row_25_symbols_that_look_like_numbers(bronze, lake, symbol):
    "A symbol is text, whatever it looks like."
    put(bronze, tape(8, n=N).drop("symbol"), stream=("binance", symbol))
    run(lakes.trades(bronze, lake), FilterSpec(symbol=symbol))
    assert silver(lake)["symbol"].unique().to_list() == [symbol]
    assert scan(lake / "silver/trades").select("symbol").unique().collect().item() == symbol


@pytest.mark.parametrize("value", ["__HIVE_DEFAULT_PARTITION__", "unnamed"])
def test_row_26_null_symbol(bronze, lake, value):
    "A null symbol is an error, in the path as among the rows; nothing is called 'unknown'."
    frame = tape(8, n=N)
    if value == "unnamed":
        value, frame = BTC[1], frame.with_columns(symbol=pl.when(pl.col("side") == "buy").then("symbol"))
    put(bronze, frame, symbol=value)
    with pytest.raises(PartitionError, match="null"): run(lakes.trades(bronze, lake))


def test_row_27_empty_symbol(bronze, lake):
    "An empty symbol is an error."
    put(bronze, tape(8, n=N), stream=("binance", ""))
    with raises(PartitionError, "empty"): run(lakes.trades(bronze, lake))


@pytest.mark.parametrize("symbol", ["../../x", "BTC/USDT:USDT", "A B", "a=b", "ünï", "*[a]?", "50%"])
def test_row_28_symbols_in_paths(bronze, lake, symbol):
    "Any symbol is percent-encoded in the path, stays below the lake, and reads back as itself."
    from daedalus_etl.storage.partitions import Partition
    folder = Partition.of(exchange="binance", symbol=symbol, year=2024, month=8, day=8).path
    (bronze / folder).mkdir(parents=True)
    tape(8, n=N).with_columns(symbol=pl.lit(symbol)).write_parquet(bronze / folder / "a.parquet")
    run(lakes.trades(bronze, lake), FilterSpec(symbol=symbol))
    (file,) = (p for p in lake.parent.rglob("part-0.parquet"))
    assert file.resolve().is_relative_to(lake.resolve()) and file.parent == lake / "silver/trades" / folder
    for frame in (scan(lake / "silver/trades").collect(), pl.read_parquet(file, hive_partitioning=True)):
        assert frame["symbol"].unique().to_list() == [symbol]


@pytest.mark.parametrize("symbol", ["a%00b", "a%0Ab", "%2E%2E", "x" * 201, "%FF"])
def test_row_28_values_that_no_path_may_carry(bronze, lake, symbol):
    "Control characters, parents, over-long and undecodable values are an error."
    put(bronze, tape(8, n=N), symbol=symbol)
    with pytest.raises(PartitionError): run(lakes.trades(bronze, lake))


def test_row_29_names_that_differ_in_case_or_form(bronze, lake):
    "Two symbols that are one folder elsewhere are an error naming both, unless a filter chooses one."
    for symbol in ("btc-usd", "BTC-USD"): put(bronze, tape(8, n=N).drop("symbol"), stream=("binance", symbol))
    with raises(PartitionError, "'btc-usd'", "'BTC-USD'", "case"): run(lakes.trades(bronze, lake))
    run(lakes.trades(bronze, lake), FilterSpec(symbol="BTC-USD"))
    put(bronze / "nfd", tape(8), symbol=unicodedata.normalize("NFD", "ünï"))
    with raises(PartitionError, "NFC"): run(lakes.trades(bronze / "nfd", lake))


# ---- rows

def test_row_32_equal_times(bronze, lake):
    "Rows of one instant each stand for themselves, in the order of their ids."
    frame = tape(8, seconds=[10.0, 10.0, 10.0, 20.0])
    put(bronze, frame[[2, 0, 1, 3]])
    report = run(lakes.trades(bronze, lake))
    assert (report.totals()["duplicates"], silver(lake)["trade_id"].to_list()) == (0, frame["trade_id"].to_list())
    assert silver(lake)["trade_count_5s"].to_list() == [1, 2, 3, 1]


def test_row_37_gap(bronze, lake):
    "A silence longer than max_gap_s starts a segment: deltas begin anew, and the age tells how full a window is."
    put(bronze, tape(8, seconds=[10.0, 20.0, 321.0, 322.0]))
    run(lakes.trades(bronze, lake))
    rows = silver(lake)
    assert rows["segment_id"].rle_id().to_list() == [0, 0, 1, 1] and rows["segment_age_s"].to_list() == [0, 10, 0, 1]
    assert rows["log_return"].is_null().to_list() == [True, False, True, False]


def test_row_41_levels_of_size_zero(bronze, lake):
    "A level of size zero, whatever its price, is no level."
    zero = (side((100.0, 1.0), (99.5, 0.0), (99.0, 2.0)), side((0.0, 0.0), (101.0, 1.0), (102.0, 2.0)))
    got = books_run(bronze, lake, GOOD, zero)
    assert got["n_bid_levels"].to_list() == [2, 2] and got["book_state"].to_list() == ["ok", "ok"]
    assert got["best_ask"].to_list() == [101.0, 101.0]


STATES = [
    (42, "crossed", (side((102.0, 1.0)), side((101.0, 1.0)))), (43, "locked", (side((101.0, 1.0)), side((101.0, 1.0)))),
    (44, "one_sided", (side((100.0, 1.0)), [])), (44, "empty", ([], [])),
    (45, "unsorted", (side((99.0, 1.0), (100.0, 1.0)), side((101.0, 1.0)))),
    (46, "unsorted", (side((100.0, 1.0), (100.0, 2.0)), side((101.0, 1.0))))]


def check_state(bronze, lake, number, only=None):
    "Books of that state are kept and flagged, and what is not defined for them is null."
    for state, pair in [(s, p) for n, s, p in STATES if n == number]:
        got = books_run(bronze / state, lake / state, GOOD, pair, GOOD)
        assert got["book_state"].to_list() == ["ok", state, "ok"]
        assert got["mid_price"].is_null().to_list() == [False, state != "locked", False]
        assert got["log_return"].is_null().to_list() == [True, state != "locked", False]
        assert all(got.select(pl.selectors.float().is_finite().all()).row(0))
        yield got


def test_row_42_crossed_book(bronze, lake):
    "A crossed book is kept and flagged; its sides are written, its mid is null and enters no window."
    (got,) = check_state(bronze, lake, 42)
    assert got["best_bid"][1] == 102.0 and got["ofi"][1] is None and got["ofi"][2] == 0.0


def test_row_43_locked_book(bronze, lake):
    "A locked book is kept and flagged; its spread is a measured zero and nothing divides by it."
    (got,) = check_state(bronze, lake, 43)
    assert got["spread"][1] == 0.0 and got["mid_price"][1] == 101.0


def test_row_44_one_sided_and_empty_book(bronze, lake):
    "A book without a side is kept and flagged; what needs both sides is null, never 0."
    one, empty = check_state(bronze, lake, 44)
    assert (one["best_bid"][1], one["best_ask"][1], one["total_ask_depth"][1]) == (100.0, None, None)
    assert (empty["best_bid"][1], empty["n_bid_levels"][1]) == (None, 0)


def test_row_45_unsorted_levels(bronze, lake):
    "Levels out of order are flagged, and no best price is made up."
    (got,) = check_state(bronze, lake, 45)
    assert got["best_bid"][1] is None


def test_row_46_repeated_prices(bronze, lake):
    "Two levels of one price are ambiguous: the book is flagged, nothing is summed."
    (got,) = check_state(bronze, lake, 46)
    assert got["total_bid_depth"][1] is None


def test_row_47_few_levels(bronze, lake):
    "Levels that a book does not have are null in price and size, never 0."
    got = books_run(bronze, lake, GOOD, config=FeatureConfig(**dict(ALL) | {"depth_levels": 4}))
    assert got.select("bid_price_L1", "bid_size_L1", "bid_price_L2", "bid_size_L3").row(0) == (99.0, 2.0, None, None)


def test_row_48_huge_books_and_row_groups(bronze, lake):
    "A book above max_levels is an error naming the cap; so is a row group that claims more than its cap, unread."
    many = side(*((100.0 - i / 100, 1.0) for i in range(30)))
    few = FeatureConfig(**dict(ALL) | {"max_levels": 20})
    with raises(BadDataError, "max_levels=20"): books_run(bronze, lake, (many, GOOD[1]), config=few)
    transform = lakes.orderbook(bronze / "orderbook", lake, "")
    limits = transform.config.inputs["orderbook"].limits.model_copy(update={"max_group_values": 25})
    inputs = {"orderbook": transform.config.inputs["orderbook"].model_copy(update={"limits": limits})}
    transform = create_transform("orderbook_features", transform.config.model_copy(update={"inputs": inputs}))
    with raises(CorruptFileError, "30 values", "storage.limits.max_group_values"): run(transform)
    nothing_published(lake)


def test_row_49_price_without_size(bronze, lake):
    "A level that has a price and no size sets its book aside."
    pairs = [[[[100.0, 1.0]], [[101.0, 1.0]]]] * 3 + [[[[100.0]], [[101.0, 1.0]]]]
    sides = {"bids": pl.Series([b for b, _ in pairs]), "asks": pl.Series([a for _, a in pairs])}
    frame = books(*[GOOD] * 4).with_columns(**sides)
    got = books_run(bronze, lake, frame=frame, config=FeatureConfig(**dict(ALL) | {"max_bad_fraction": 0.5}))
    aside = quarantine(lake, "orderbook")
    assert got.height == 3 and aside.select("row", "reason").rows() == [(3, "bad_size")]


def test_row_50_absurd_jump(bronze, lake):
    "One absurd price is kept; once it has left a window, not a digit of it is left there."
    frame = tape(8, n=N)
    wild = frame.with_columns(price=pl.when(pl.int_range(pl.len()) == 1500).then(1e9).otherwise("price"))
    put(bronze, wild)
    run(lakes.trades(bronze, lake))
    rows, calm = silver(lake), plain(frame.with_columns(cost=wild["cost"]))
    assert rows["price"][1500] == 1e9 and rows["log_return"][1500] > 9
    after = (rows["capture_ts"] > rows["capture_ts"][1501] + timedelta(seconds=900)).arg_true()
    windows = [c for c in rows.columns if c.endswith("s") and c not in ("dt_s", "segment_age_s")]
    assert_frame_equal(rows[after].select(windows), calm[after].select(windows), check_exact=True)


def test_row_51_large_integers(bronze, lake):
    "Ids beyond 2^53 stay exact, and keep apart what a float would make one."
    ids = [2**53 + i for i in range(N + 40)]
    put(bronze, tape(8, n=N).with_columns(trade_id=pl.Series(ids, dtype=pl.Int64)))
    assert run(lakes.trades(bronze, lake)).totals()["duplicates"] == 0
    assert silver(lake)["trade_id"].to_list() == [str(i) for i in ids]


def test_row_53_trades_around_books(bronze, lake):
    "A trade before the first book, or outside of it, is kept, and counts in the windows of the books after it."
    noon = 12 * 3600.0
    trades = tape(8, seconds=[noon - 2, noon + 0.5]).with_columns(price=pl.Series([50.0, 500.0]))
    put(bronze / "trades", trades)
    got = books_run(bronze, lake, GOOD, GOOD, trades=str(bronze / "trades"))
    assert got["trade_count_5s"].to_list() == [1, 2] and got["tfi_5s"].null_count() == 0


# ---- configuration, states, schema

@pytest.mark.parametrize(("content", "hint"), [
    ("a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n", "anchors and aliases"),
    ("features: !!python/object:os.system {}\n", "tag"),
    ("features: {max_gap_s: 1, max_gap_s: 2}\n", "twice"), ("x: " + "y" * (1 << 20), "1 MiB"), ("[" * 100, "nested")])
def test_row_59_yaml(bronze, lake, tmp_path, content, hint):
    "Bombs, tags, repeated keys and huge files are a configuration error that names the line; nothing is run."
    put(bronze, tape(8))
    (tmp_path / "c.yaml").write_text(content)
    done = cli("trades", "--input", bronze, "--output", lake, "--config", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "c.yaml" in done.stderr and hint in done.stderr and not lake.exists()


class Planted:
    "Would leave a file behind if it were unpickled."
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir, (str(self.mark),)


def test_row_60_pickle(bronze, lake, tmp_path):
    "A pickle in the place of a state is refused by its first bytes and never opened."
    for day in (8, 9): put(bronze, tape(day, n=N), day)
    run(lakes.trades(bronze, lake))
    for path in (lake / ".daedalus").rglob("*.state"): path.write_bytes(pickle.dumps(Planted(tmp_path / "opened")))
    put(bronze, tape(9, n=N)[:-1], 9)
    with pytest.raises(StateError): run(lakes.trades(bronze, lake))
    assert not (tmp_path / "opened").exists()


def test_row_63_schema_drift(bronze, lake):
    "A new field of the venue starts on its day and is null before; a field that changes its type is an error."
    for day, fee in ((8, None), (9, 0.5), (10, "0.5")):
        frame = tape(day, n=N)
        put(bronze, frame if fee is None else frame.with_columns(fee=pl.lit(fee)), day)
    with raises(SchemaError, "'fee'", "String", "Float64", "day=09"): run(lakes.trades(bronze, lake))
    first, second = (pl.read_parquet(lake / "silver/trades" / leaf(d) / "part-0.parquet") for d in (8, 9))
    assert "fee" not in first.columns and second["fee"].unique().to_list() == [0.5]
    assert pl.concat([first, second], how="diagonal")["fee"].null_count() == first.height
    assert not (lake / "silver/trades" / leaf(10)).exists()


def flavours(frame: pl.DataFrame) -> pa.Table:
    "The same tape as other writers leave it."
    t = frame.to_arrow()
    ns = pa.timestamp("ns", "Europe/Berlin")
    types = {"exchange": pa.large_string(), "symbol": pa.large_string(), "side": pa.dictionary(pa.int8(), pa.string()),
             "price": pa.decimal128(38, 4), "amount": pa.decimal128(20, 5), "capture_ts": ns,
             "timestamp": pa.timestamp("ms", "UTC"), "collected_at": pa.int64(), "trade_id": pa.int64(),
             "cost": pa.float64()}
    def cast(name, kind):
        column = t[name]
        if name == "side": return column.cast(pa.string()).dictionary_encode()
        if name in ("price", "amount"): column = column.combine_chunks().cast(kind, safe=False)
        if name == "trade_id": column = column.cast(pa.string())
        return column.cast(kind)
    return pa.table({n: cast(n, k) for n, k in types.items()})


def test_row_64_flavours_of_parquet(bronze, lake):
    "Decimals, dictionaries, nanoseconds of another zone, large strings are read as what they mean; loss is an error."
    folder = bronze / leaf(8)
    folder.mkdir(parents=True)
    table = flavours(tape(8, n=N))
    pq.write_table(table, folder / "data.parquet", version="2.6")
    run(lakes.trades(bronze, lake))
    got, want = silver(lake), plain()
    assert got.select("capture_ts", "price", "amount", "side", "timestamp", "trade_id").equals(
        want.select("capture_ts", "price", "amount", "side", "timestamp", "trade_id"))
    odd = table["capture_ts"].cast(pa.int64()).to_pylist()
    odd[7] += 1                                                            # a nanosecond that microseconds cannot hold
    column = pa.array(odd, pa.int64()).cast(pa.timestamp("ns", "UTC"))
    table = table.set_column(table.column_names.index("capture_ts"), "capture_ts", column)
    pq.write_table(table, folder / "data.parquet", version="2.6")
    with raises(SchemaError, "'capture_ts'", "exactly"): run(lakes.trades(bronze, lake))


def test_row_65_unknown_codec_and_encryption(bronze, lake):
    "A codec that cannot be read is named; an encrypted file is said to be one."
    path = bronze / leaf(8) / "data.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(tape(8, n=N).select("price", "amount", "side", "capture_ts").to_arrow(), path, compression="snappy")
    data = path.read_bytes()
    codec = re.compile(rb"(\x18\x05price\x15)\x02")                         # path_in_schema, then codec 1 (zigzag)
    assert len(codec.findall(data)) == 1
    put(bronze, codec.sub(lambda m: m[1] + b"\x06", data))                               # codec 3: LZO
    with raises(CorruptFileError, str(path), "Lzo"): run(lakes.trades(bronze, lake))
    put(bronze, codec.sub(lambda m: m[1] + b"\x7e", data))                # codec 63: nobody's
    with raises(CorruptFileError, str(path), "damaged inside"): run(lakes.trades(bronze, lake))
    put(bronze, data[:-4] + b"PARE")
    with raises(CorruptFileError, str(path), "encrypted"): run(lakes.trades(bronze, lake))


# ---- the table is whole

def functions(path: Path) -> set[str]:
    return {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}


def test_every_row_has_its_test():
    "Rows 1 to 65 are covered here or elsewhere, and the tests that are named exist."
    root = Path(__file__).resolve().parents[1]
    own = {int(m[1]) for n in functions(Path(__file__)) if (m := re.match(r"test_row_(\d\d)_", n))}
    assert own | set(ELSEWHERE) == set(range(1, 66)) and not own & set(ELSEWHERE)
    for named in ELSEWHERE.values():
        path, _, name = named.partition("::")
        assert name in functions(root / path), named
