"What a user gets for bad input: each test writes the fault as it occurs in the wild and reads it back."
import builtins
import gzip
import json
import os
import warnings
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from daedalus_etl.core.enums import DataFormat
from daedalus_etl.core.errors import (
    InputChangedError,
    CorruptFileError,
    EmptyMatchError,
    InputNotFoundError,
    PartitionError,
    SchemaError,
    TimeUnitError,
)
from daedalus_etl.core.filters import FilterSpec
from daedalus_etl.core.levels import LEVELS
from daedalus_etl.storage.contract import UTC_US, bad_row_rules, check_units, split_bad
from daedalus_etl.storage.dataset import locate_row, reading, scan, scan_partition
from daedalus_etl.storage.partitions import Partition, decode_value, discover, encode_value

START = datetime(2024, 8, 8, 12, tzinfo=UTC)
LEAF = "exchange=binance/symbol=BTC-USDT/year=2024/month=08/day=08"


def trades(n=10, **columns):
    times = pl.Series([START + timedelta(seconds=i) for i in range(n)], dtype=UTC_US)
    frame = pl.DataFrame({"capture_ts": times, "trade_id": [str(i) for i in range(n)], "side": ["buy"] * n,
                          "price": [61837.0 + i for i in range(n)], "amount": [0.5] * n})
    return frame.with_columns(**columns)


def books(n=4):
    side = lambda p: [{"price": p, "size": 1.0}]
    return pl.DataFrame({"capture_ts": [START] * n, "bids": [side(100.0)] * n, "asks": [side(101.0)] * n},
                        schema_overrides={"capture_ts": UTC_US, "bids": LEVELS, "asks": LEVELS})


@pytest.fixture
def put(tmp_path):
    def write(data, folder=LEAF, name="part-0.parquet"):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data) if isinstance(data, bytes) else data.write_parquet(path)
        return path
    return write


def only(root, fmt=DataFormat.PARQUET): return discover(root, fmt=fmt)[0]


def read(root, channel="trades", fmt=DataFormat.PARQUET):
    pf = only(root, fmt)
    with reading(pf, channel, fmt): return scan_partition(pf, channel, fmt).collect()


def raises(kind, *texts):
    "An error of this very kind whose message holds all the texts."
    return pytest.raises(kind, check=lambda e: type(e) is kind and all(t in str(e) for t in texts))


# ---- finding

def test_missing_path_names_the_nearest_parent(tmp_path, put):
    put(trades(), f"trades/{LEAF}")
    with raises(InputNotFoundError, str(tmp_path / "tradez" / "x"), "nearest that exists", "Did you mean 'trades'"):
        discover(tmp_path / "tradez" / "x")


def test_a_file_is_no_root(put):
    with raises(InputNotFoundError, "not a folder"): discover(put(trades()))


def test_empty_match_says_what_exists(tmp_path, put):
    put(trades())
    with raises(EmptyMatchError, "symbol=XRP/USDT", "binance/BTC-USDT", "2024-08-08 .. 2024-08-08"):
        discover(tmp_path, FilterSpec(exchange="binance", symbol="XRP/USDT"))
    with raises(EmptyMatchError, "Did you mean 'binance'"): discover(tmp_path, FilterSpec(exchange="binanse"))
    with raises(EmptyMatchError, "2024-08-08"): discover(tmp_path, FilterSpec(start_date="2025-01-01"))


def test_empty_folder(tmp_path):
    with raises(EmptyMatchError, "key=value folders"): discover(tmp_path)


def test_zero_byte_file(tmp_path, put):
    put(trades())
    put(b"", name="part-1.parquet")
    with raises(CorruptFileError, "part-1.parquet", "0 bytes"): discover(tmp_path)


def test_padded_and_unpadded_month_side_by_side(tmp_path, put):
    put(trades())
    put(trades(), LEAF.replace("month=08", "month=8"))
    with raises(PartitionError, "month=8/", "month=08/"): discover(tmp_path)


@pytest.mark.parametrize("leaf", [LEAF, LEAF.replace("month=08/day=08", "month=8/day=8")])
def test_either_padding_alone_is_read(tmp_path, put, leaf):
    put(trades(), leaf)
    assert only(tmp_path).partition.path == LEAF
    assert read(tmp_path).height == 10
    assert len(discover(tmp_path, FilterSpec(start_date="2024-08-08", end_date="2024-08-08"))) == 1


@pytest.mark.parametrize("value", ["__HIVE_DEFAULT_PARTITION__", ""])
def test_null_partition(tmp_path, put, value):
    put(trades(), f"exchange=binance/symbol={value}/year=2024/month=08/day=08")
    with raises(PartitionError, "null or empty"): discover(tmp_path)


def test_symlink_loop_multiplies_nothing(tmp_path, put):
    put(trades())
    (tmp_path / "exchange=binance" / "symbol=X").symlink_to(tmp_path / "exchange=binance")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert scan(tmp_path).collect().height == 10
    assert len(caught) == 1 and "symbol=X" in str(caught[0].message)
    with raises(PartitionError, "circle"): discover(tmp_path / "circle")


def test_foreign_files_are_passed_over(tmp_path, put):
    put(trades())
    for name in ("_SUCCESS", ".DS_Store", "part-1.parquet.tmp", ".part-2.parquet", "notes.txt"): put(b"x", name=name)
    assert read(tmp_path).height == 10


@pytest.mark.parametrize("symbol", ["007", "2025-01-01", "1e5", "true"])
def test_symbols_stay_text(tmp_path, put, symbol):
    put(trades(), LEAF.replace("BTC-USDT", symbol))
    frame = scan(tmp_path).collect()
    assert frame.schema["symbol"] == pl.String and frame["symbol"].unique().to_list() == [symbol]
    assert read(tmp_path)["symbol"].unique().to_list() == [symbol]


@pytest.mark.parametrize("symbol", ["../../x", "BTC/USDT:USDT", "A B", "a=b", "ünï", "*[a]?", "50%"])
def test_any_symbol_round_trips(tmp_path, put, symbol):
    partition = Partition.of(exchange="binance", symbol=symbol, year=2024, month=8, day=8)
    path = put(trades(), partition.path)
    assert tmp_path in path.resolve().parents
    assert decode_value(encode_value(symbol)) == symbol
    assert discover(tmp_path, FilterSpec(symbol=symbol))[0].partition == partition
    assert read(tmp_path)["symbol"].unique().to_list() == [symbol]
    assert scan(tmp_path).collect()["symbol"].unique().to_list() == [symbol]


@pytest.mark.parametrize("symbol", ["a\0b", "a\nb", "..", "x" * 300])
def test_symbols_that_no_path_should_carry(symbol):
    with pytest.raises(PartitionError): encode_value(symbol)


def test_pruned_files_are_neither_opened_nor_looked_at(tmp_path, put, monkeypatch):
    put(trades())
    pruned = put(b"garbage", LEAF.replace("BTC-USDT", "ETH-USDT"))
    put(b"", LEAF.replace("day=08", "day=09"))
    touched, real_open, real_scandir = [], builtins.open, os.scandir
    monkeypatch.setattr(builtins, "open", lambda p, *a, **k: (touched.append(str(p)), real_open(p, *a, **k))[1])
    monkeypatch.setattr(os, "scandir", lambda p: (touched.append(str(p)), real_scandir(p))[1])
    spec = FilterSpec(symbol="BTC/USDT", end_date="2024-08-08")
    assert scan(tmp_path, spec).collect().height == 10
    assert scan(tmp_path, spec, "trades").collect().height == 10
    assert touched and not [p for p in touched if "ETH-USDT" in p or "day=09" in p]
    pruned.unlink()
    os.mkfifo(pruned)  # to open it for reading would block for ever
    assert scan(tmp_path, spec).collect().height == 10


def test_lazy_filter_prunes_files_too(tmp_path, put):
    put(trades())
    garbage = put(b"garbage", LEAF.replace("BTC-USDT", "ETH-USDT"))
    os.utime(garbage, (0, 0))  # the schema comes from the newest file
    assert scan(tmp_path).filter(pl.col("symbol") == "BTC-USDT").collect().height == 10


# ---- one file

def test_truncated(tmp_path, put):
    path = put(trades())
    path.write_bytes(path.read_bytes()[:-20])
    with raises(CorruptFileError, "part-0.parquet", "truncated", "PAR1"): read(tmp_path)


def test_html_under_the_name_of_parquet(tmp_path, put):
    put(b"<html><body>502 Bad Gateway</body></html>")
    with raises(CorruptFileError, "part-0.parquet", "not a Parquet file", "<html><body>502"): read(tmp_path)


def test_damaged_page_is_found_at_collect(tmp_path, put):
    put(trades())
    path = put(trades(2000), name="part-1.parquet")
    raw = bytearray(path.read_bytes())
    raw[10:300] = b"\xff" * 290
    path.write_bytes(raw)
    with raises(CorruptFileError, "part-1.parquet"): read(tmp_path)


def test_file_replaced_while_it_is_read(tmp_path, put):
    path = put(trades())
    pf = only(tmp_path)
    path.unlink()
    with raises(InputChangedError, "part-0.parquet"), reading(pf, "trades"): scan_partition(pf, "trades").collect()


@pytest.mark.parametrize(("channel", "frame", "column"), [
    ("trades", trades(), "price"), ("trades", trades(), "amount"), ("trades", trades(), "side"),
    ("trades", trades(), "capture_ts"), ("orderbook", books(), "bids"), ("orderbook", books(), "asks")])
def test_missing_required_column(tmp_path, put, channel, frame, column):
    put(frame.drop(column))
    with raises(SchemaError, "part-0.parquet", column, "missing"): read(tmp_path, channel)


def test_misnamed_column_is_proposed(tmp_path, put):
    put(trades().rename({"amount": "qty"}))
    with raises(SchemaError, "amount", "Did you mean 'qty'"): read(tmp_path)


@pytest.mark.parametrize(("channel", "frame", "column", "found"), [
    ("trades", trades(price=pl.lit([1.0])), "price", "List"),
    ("trades", trades(capture_ts=pl.lit(datetime(2024, 8, 8))), "capture_ts", "without a zone"),
    ("trades", trades(capture_ts=pl.lit(1723161254)), "capture_ts", "Int"),
    ("trades", trades(side=pl.lit(True)), "side", "Boolean"),
    ("orderbook", books().with_columns(bids=pl.lit("[[1, 2]]")), "bids", "String"),
    ("orderbook", books().with_columns(bids=pl.lit([{"px": 1.0, "qty": 2.0}])), "bids", "px")])
def test_mistyped_column(tmp_path, put, channel, frame, column, found):
    put(frame)
    with raises(SchemaError, "part-0.parquet", column, found): read(tmp_path, channel)


@pytest.mark.parametrize("dtype", [pl.Int32, pl.Int64, pl.UInt64, pl.Float32, pl.Decimal(18, 4), pl.String])
def test_lossless_types_are_widened(tmp_path, put, dtype):
    put(trades(price=pl.Series([float(i + 1) for i in range(10)]).cast(dtype)))
    frame = read(tmp_path)
    assert frame.schema["price"] == pl.Float64 and frame["price"].to_list() == [float(i + 1) for i in range(10)]


def test_lossy_values_are_not(tmp_path, put):
    put(trades(price=pl.lit(2**53 + 1)))
    with raises(SchemaError, "price", "exactly"): read(tmp_path)


def test_extra_columns_pass_and_column_order_does_not_matter(tmp_path, put):
    frame = trades(fee=pl.lit(0.1))
    put(frame.select(reversed(frame.columns)))
    assert read(tmp_path)["fee"].to_list() == [0.1] * 10
    with raises(SchemaError, "fee"): scan_partition(only(tmp_path), "trades", extra="forbid")
    assert "fee" not in scan_partition(only(tmp_path), "trades", extra="ignore").collect_schema()


# ---- stream and folder

def test_column_disagrees_with_folder(tmp_path, put):
    put(trades(symbol=pl.lit("ETH-USDT")))
    with raises(PartitionError, "ETH-USDT", "BTC-USDT"): read(tmp_path)


def test_sanitised_folder_agrees_and_the_column_passes_through(tmp_path, put):
    put(trades(symbol=pl.lit("BTC/USDT"), exchange=pl.lit("binance")))
    assert read(tmp_path)["symbol"].unique().to_list() == ["BTC/USDT"]


def test_two_symbols_in_one_partition(tmp_path, put):
    put(trades(symbol=pl.when(pl.col("price") > 61840).then(pl.lit("ETH-USDT")).otherwise(pl.lit("BTC-USDT"))))
    with raises(PartitionError, "ETH-USDT", "BTC-USDT", "one partition"): read(tmp_path)


# ---- rows

@pytest.mark.parametrize(("factor", "unit"), [(1, "s"), (10**6, "us"), (10**9, "ns")])
def test_timestamps_in_another_unit(factor, unit):
    batch = trades(timestamp=pl.lit(1723118400 * factor, dtype=pl.Int64))
    with raises(TimeUnitError, "timestamp", f"'{unit}'"): check_units(batch, "trades")


def test_bad_rows_keep_their_place(tmp_path, put):
    put(trades())
    broken = pl.when(pl.col("trade_id") == "3").then(float("inf")).otherwise(pl.col("price"))
    put(trades(price=broken), name="part-1.parquet")
    frame = read(tmp_path)
    good, bad = split_bad(frame, bad_row_rules("trades", columns=frame.columns))
    assert (good.height, bad["__row"].to_list(), bad["reason"].to_list()) == (19, [13], ["bad_price"])
    path, row = locate_row(only(tmp_path), 13)
    assert (os.path.basename(path), row) == ("part-1.parquet", 3)


def test_good_batches_are_not_copied():
    batch = trades()
    assert split_bad(batch, bad_row_rules("trades", columns=batch.columns))[0] is batch


# ---- text

def line(**values):
    return json.dumps({"capture_ts": "2024-08-08T12:00:00Z", "side": "buy", "price": 1.5, "amount": 2} | values)


def ndjson(put, *lines, name="part-0.ndjson", pack=lambda b: b): return put(pack("\n".join(lines).encode()), name=name)


def test_ndjson(tmp_path, put):
    ndjson(put, line(), "", line(price="2.5", timestamp=1723118400000, capture_ts="2024-08-08T14:00:01+02:00"))
    frame = read(tmp_path, fmt=DataFormat.NDJSON)
    assert frame["price"].to_list() == [1.5, 2.5] and frame["timestamp"].to_list() == [None, 1723118400000]
    assert frame["capture_ts"].to_list() == [START, START + timedelta(seconds=1)]


@pytest.mark.parametrize(("fault", "kind", "text"), [
    (line()[:-5], CorruptFileError, "no JSON"), ("7", CorruptFileError, "JSON object"),
    (line(timestamp=1.5), SchemaError, "timestamp"), (line(timestamp="x"), SchemaError, "timestamp"),
    (line(capture_ts="2024-08-08T12:00:00"), SchemaError, "no zone"), (line(capture_ts=17), SchemaError, "ISO 8601")])
def test_ndjson_fault_names_the_line(tmp_path, put, fault, kind, text):
    ndjson(put, *[line()] * 3000, "", fault, line())
    with raises(kind, "part-0.ndjson:3002", text): read(tmp_path, fmt=DataFormat.NDJSON)


def test_number_that_is_none_is_a_bad_row(tmp_path, put):
    ndjson(put, line(), line(price="1,5"))
    frame = read(tmp_path, fmt=DataFormat.NDJSON)
    assert split_bad(frame, bad_row_rules("trades", columns=frame.columns))[1]["__row"].to_list() == [1]


@pytest.mark.parametrize("name", ["part-0.ndjson", "part-0.ndjson.gz"])
@pytest.mark.parametrize("pack", [gzip.compress, lambda b: b])
def test_gzip_is_known_by_content(tmp_path, put, name, pack):
    ndjson(put, line(), name=name, pack=pack)
    assert read(tmp_path, fmt=DataFormat.NDJSON).height == 1


@pytest.mark.parametrize(("pack", "text"), [
    (lambda b: gzip.compress(b)[:-12], "truncated"), (lambda b: gzip.compress(gzip.compress(b)), "part-0")])
def test_broken_gzip(tmp_path, put, pack, text):
    ndjson(put, *[line()] * 2000, name="part-0.ndjson.gz", pack=pack)
    with raises(CorruptFileError, text): read(tmp_path, fmt=DataFormat.NDJSON)


HEADER = "capture_ts,timestamp,side,price,amount\n"


def csv(put, *rows, head=HEADER): return put((head + "\n".join(rows) + "\n").encode(), name="part-0.csv")


def test_csv_with_byte_order_mark_and_blanks(tmp_path, put):
    csv(put, "2024-08-08T12:00:00Z,,buy,1.5,2", "2024-08-08T12:00:00Z,1,,NaN,1_000", head="\ufeff" + HEADER)
    frame = read(tmp_path, fmt=DataFormat.CSV)
    assert frame["timestamp"].to_list() == [None, 1] and frame["side"].to_list() == ["buy", None]
    reasons = split_bad(frame.drop("timestamp"), bad_row_rules("trades", columns=frame.drop("timestamp").columns))[1]
    assert reasons.select("__row", "reason").rows() == [(1, "bad_price")]


@pytest.mark.parametrize(("row", "kind", "text"), [
    ("2024-08-08T12:00:00Z,1,buy,1,2,3", CorruptFileError, "6 fields"),
    ("2024-08-08T12:00:00Z,x,buy,1,2", SchemaError, "timestamp"), ("2024-08-08,1,buy,1,2", SchemaError, "capture_ts")])
def test_csv_fault_names_the_line(tmp_path, put, row, kind, text):
    csv(put, *["2024-08-08T12:00:00Z,1,buy,1,2"] * 3, row)
    with raises(kind, "part-0.csv:5", text): read(tmp_path, fmt=DataFormat.CSV)


def test_csv_missing_column(tmp_path, put):
    csv(put, "2024-08-08T12:00:00Z,1", head="capture_ts,px\n")
    with raises(SchemaError, "part-0.csv", "missing"): read(tmp_path, fmt=DataFormat.CSV)
