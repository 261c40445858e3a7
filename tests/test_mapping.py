"""Mappings: one table in every kind of file, exact numbers and times, and faults that name what is wrong."""
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daedalus_etl.core.errors import ConfigError, SchemaError, TimeUnitError
from daedalus_etl.core.yaml import parse_yaml
from daedalus_etl.sources.mapping import (FORMAT, SHIPPED, From, Mapping, looks_like, mapping_of, number_of, read,
                                          time_of)
from daedalus_etl.sources.source import Head, Options, format_of
from daedalus_etl.storage.contract import check_schema

TRADES = """channel: trades
columns:
  capture_ts: {column: got, unit: us}
  timestamp: {column: at, unit: ms}
  price: {column: px, scale: 0.01}
  amount: qty
  side: {column: dir, words: {"1": buy, "2": sell}}
  trade_id: id
  exchange: {value: here}
  symbol: sym
where: {type: [T, t]}
"""
NAMES = ("got", "at", "px", "qty", "dir", "id", "sym", "type")
ROWS = [dict(zip(NAMES, values, strict=True)) for values in (
    ("1723075200000123", "1723075200000", "6012350", "0.5", "1", "7", "A", "T"),
    ("1723075200000124", "", "6012351", "1e-8", "2", "", "A", "t"),
    ("1723075200000125", "1723075200000", "", "", "", "9", "A", "Q"),
    ("1723075200000126", "1723075200001", "6012352", "3", "9", "10", "B", "T"))]
EXPECTED = [(1, 1723075200000, 60123.5, 0.5, "buy", "7", "here", "A"),
            (2, None, 60123.51, 1e-8, "sell", None, "here", "A"),
            (4, 1723075200001, 60123.52, 3.0, None, "10", "here", "B")]


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path

def csv_of(rows, separator=",", header=True) -> str:
    lines = [separator.join(rows[0])] * header + [separator.join(r.values()) for r in rows]
    return "\n".join(lines) + "\n"

def all_of(path: Path, mapping: str | Path | None, kind: str = "", **options) -> tuple[pl.DataFrame, pl.DataFrame]:
    if isinstance(mapping, str) and "\n" in mapping: mapping = put(path.parent / "my.yaml", mapping)
    batches = list(read(path, kind, Options(mapping=mapping, **options)))
    return pl.concat(b.frame for b in batches), pl.concat(b.bad for b in batches)

def shown(frame: pl.DataFrame, first: int) -> list[tuple]:
    "Rows numbered from 1, whatever the file's header takes."
    return frame.select(pl.col("row") - first + 1, "timestamp", "price", "amount", "side", "trade_id", "exchange",
                        "symbol").rows()


@pytest.mark.parametrize("how", ["csv", "semicolons", "ndjson", "array", "parquet", "numbers"])
def test_one_table_in_every_kind_of_file(tmp_path, how):
    path, mapping, first = tmp_path / "x", TRADES, 1
    if how == "csv": put(path, csv_of(ROWS)); first = 2
    elif how == "semicolons": put(path, csv_of(ROWS, ";")); mapping, first = TRADES + 'separator: ";"\n', 2
    elif how == "ndjson": put(path, "".join(json.dumps(r) + "\n" for r in ROWS))
    elif how == "array": put(path, json.dumps(ROWS))
    elif how == "parquet": pl.DataFrame(ROWS).write_parquet(path)
    else: pl.DataFrame(ROWS).with_columns(
        pl.col("got", "at", "px", "dir").cast(pl.Int64, strict=False), pl.col("qty").cast(pl.Float64, strict=False)
        ).write_parquet(path)
    good, bad = all_of(path, mapping)
    assert shown(good, first) == EXPECTED and bad.is_empty()
    assert good["capture_ts"][1] == datetime(2024, 8, 8, 0, 0, 0, 124, UTC)
    assert check_schema(good.schema, "trades") == []

def test_names_in_quotes(tmp_path):
    rows = [{('"px, cents"' if k == "px" else k): v for k, v in r.items()} for r in ROWS]
    good, _ = all_of(put(tmp_path / "x.csv", csv_of(rows)), TRADES.replace("column: px", 'column: "px, cents"'))
    assert shown(good, 2) == EXPECTED

def test_columns_by_position(tmp_path):
    names = list(ROWS[0])
    mapping = TRADES.replace("where: {type: [T, t]}\n", "header: false\n")
    for name in names: mapping = mapping.replace(f"column: {name},", f"column: {names.index(name)},").replace(
        f": {name}\n", f": {names.index(name)}\n")
    rows = [r for r in ROWS if r["type"] != "Q"]
    good, _ = all_of(put(tmp_path / "x.csv", csv_of(rows, header=False)), mapping)
    assert [r[1:] for r in shown(good, 1)] == [r[1:] for r in EXPECTED]
    good, _ = all_of(put(tmp_path / "x.csv", csv_of(rows)), mapping.replace("header: false\n", ""))
    assert [r[1:] for r in shown(good, 2)] == [r[1:] for r in EXPECTED]
    with pytest.raises(SchemaError, match="no column at position 0|expected 0 to"):
        all_of(tmp_path / "x.csv", mapping.replace("header: false\n", "").replace("column: 0,", "column: 40,"))

@given(st.integers(-10**18, 10**18), st.integers(-12, 3))
@settings(max_examples=150, deadline=None)
def test_powers_of_ten_round_once(units, power):
    frame = pl.DataFrame({"x": [str(units)]})
    assert frame.select(number_of("x", float(f"1e{power}"))).item() == float(Decimal(units).scaleb(power))

def test_other_factors_and_points():
    frame = pl.DataFrame({"x": ["10", "2.5", "1e2", None, "abc", " 4 "]})
    assert frame.select(number_of("x", 0.25)).to_series().to_list() == [2.5, 0.625, 25.0, None, None, 1.0]
    assert frame.select(number_of("x", 0.1)).to_series().to_list() == [1.0, 0.25, 10.0, None, None, 0.4]
    points = frame.select(number_of("x", 0.1, scale_points=False)).to_series().to_list()
    assert points == [1.0, 2.5, 10.0, None, None, 0.4]

def test_bad_cells_are_set_aside_with_their_text(tmp_path):
    rows = [r | {"type": "T"} for r in ROWS]
    rows[0] |= {"px": "60.12.3"}
    rows[1] |= {"got": "noon"}
    rows[2] |= {"at": "soon", "px": "1", "qty": "1"}
    good, bad = all_of(put(tmp_path / "x.csv", csv_of(rows) + "1,2,3\n"), TRADES)
    assert good["row"].to_list() == [5]
    assert bad.select("row", "reason", "column").rows() == [
        (2, "bad_number", "px"), (3, "bad_time", "got"), (4, "bad_time", "at"), (6, "ragged_line", None)]
    assert bad["value"].to_list()[:3] == ["60.12.3", "noon", "soon"]

def test_the_wrong_unit_is_an_error_before_a_row_is_made(tmp_path):
    path = put(tmp_path / "x.csv", csv_of(ROWS))
    with pytest.raises(TimeUnitError, match="'got'.*not epoch ms.*'us'"):
        all_of(path, TRADES.replace("unit: us", "unit: ms"))

def test_a_unit_that_the_mapping_leaves_open(tmp_path):
    path, mapping = put(tmp_path / "x.csv", csv_of(ROWS)), TRADES.replace(", unit: ms", "").replace(", unit: us", "")
    with pytest.raises(ConfigError, match="'got'.*expected unit"): all_of(path, mapping)
    with pytest.raises(TimeUnitError): all_of(path, mapping, time_unit="s")

def at(text: str, **source) -> datetime | None:
    source = From(column="t", **source)
    return pl.DataFrame({"t": [text]}).select(time_of(source, "t", pl.String())).item()

@pytest.mark.parametrize("text, source, expected", [
    ("2024-08-08 09:30:00.25", dict(format="%Y-%m-%d %H:%M:%S%.f", zone="America/New_York"),
     "2024-08-08T13:30:00.250000+00:00"),
    ("2024-01-08 09:30:00", dict(format="%Y-%m-%d %H:%M:%S", zone="America/New_York"), "2024-01-08T14:30:00+00:00"),
    ("08.08.2024 09:30", dict(format="%d.%m.%Y %H:%M", zone="UTC"), "2024-08-08T09:30:00+00:00"),
    ("2024-08-08T09:30:00+0200", dict(format="%Y-%m-%dT%H:%M:%S%z"), "2024-08-08T07:30:00+00:00"),
    ("2024-08-08T09:30:00+02:00", dict(format="%Y-%m-%dT%H:%M:%S%:z"), "2024-08-08T07:30:00+00:00"),
    ("2024-08-08T09:30:00.123456789Z", dict(format="%Y-%m-%dT%H:%M:%S%.fZ"), "2024-08-08T09:30:00.123456+00:00"),
    ("2024-11-03 01:30:00", dict(format="%Y-%m-%d %H:%M:%S", zone="America/New_York"), None),      # twice that night
    ("2024-03-10 02:30:00", dict(format="%Y-%m-%d %H:%M:%S", zone="America/New_York"), None),      # never that night
    ("1723109400123456789", dict(unit="ns"), "2024-08-08T09:30:00.123456+00:00"),
    ("1723109400.123456", dict(unit="s"), "2024-08-08T09:30:00.123456+00:00"),
    ("1723109400", dict(unit="s", format="%Y", zone="UTC"), "2024-08-08T09:30:00+00:00")])
def test_times(text, source, expected):
    assert at(text, **source) == (None if expected is None else datetime.fromisoformat(expected))

def test_times_of_parquet(tmp_path):
    when = datetime(2024, 8, 8, 9, 30, tzinfo=UTC)
    frame = pl.DataFrame({"t": [when], "p": [1.5], "q": [2], "s": ["B"]})
    mapping = "channel: trades\ncolumns: {timestamp: {column: t}, price: p, amount: q, side: s}\n"
    said = {"exchange": "x", "symbol": "y"}
    for column in (pl.col("t").dt.cast_time_unit("ns"), pl.col("t").dt.convert_time_zone("Asia/Tokyo")):
        frame.with_columns(column).write_parquet(tmp_path / "x.parquet")
        good, _ = all_of(tmp_path / "x.parquet", mapping, **said)
        assert good.select("capture_ts", "price", "amount", "side").row(0) == (when, 1.5, 2.0, "buy")
    frame.with_columns(pl.col("t").dt.replace_time_zone(None)).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(SchemaError, match="times without a zone"): all_of(tmp_path / "x.parquet", mapping, **said)
    good, _ = all_of(tmp_path / "x.parquet", mapping.replace("column: t", "column: t, zone: America/New_York"), **said)
    assert good["capture_ts"][0] == datetime(2024, 8, 8, 13, 30, tzinfo=UTC)

BOOKS = """channel: orderbook
columns: {timestamp: {column: t, unit: ms}}
levels: {bid_price: "b{i}", bid_size: "B{i}", ask_price: "a{i}", ask_size: "A{i}", first: 1}
"""

def test_levels_are_as_many_as_the_file_has(tmp_path):
    path = put(tmp_path / "x.csv", "t,b1,B1,a1,A1,b2,B2,a2,A2\n"
               "1723075200000,10,1,11,2,9,3,,\n1723075200001,,,11,2,,,12,x\n")
    good, bad = all_of(path, BOOKS, exchange="x", symbol="y")
    assert good.select("bids", "asks").row(0) == (
        [{"price": 10.0, "size": 1.0}, {"price": 9.0, "size": 3.0}], [{"price": 11.0, "size": 2.0}])
    assert bad.rows() == [(3, "bad_number", "A2", "x")]
    good, bad = all_of(path, BOOKS.replace("first: 1", "first: 1, count: 1"), exchange="x", symbol="y")
    assert good["bids"].list.len().to_list() == [1, 0] and bad.is_empty()

def test_a_column_that_the_file_lacks(tmp_path):
    path = put(tmp_path / "x.csv", csv_of(ROWS))
    with pytest.raises(SchemaError, match="'prx'.*Did you mean 'px'"):
        all_of(path, TRADES.replace("column: px", "column: prx"))
    with pytest.raises(SchemaError, match="'symbl'.*--symbol"):
        all_of(path, TRADES.replace("symbol: sym", "symbol: symbl"))
    good, _ = all_of(path, TRADES.replace("symbol: sym", "symbol: symbl"), symbol="S", exchange="E")
    assert good.select("exchange", "symbol").unique().rows() == [("E", "S")]
    with pytest.raises(SchemaError, match="does not say the exchange.*--exchange"):
        all_of(path, TRADES.replace("  exchange: {value: here}\n", ""))

def test_a_column_called_row_is_refused(tmp_path):
    path = put(tmp_path / "x.csv", csv_of([{("row" if k == "px" else k): v for k, v in r.items()} for r in ROWS]))
    with pytest.raises(SchemaError, match="'row'.*Rename"): all_of(path, TRADES.replace("column: px", "column: row"))

@pytest.mark.parametrize("text, message", [
    ("channel: trade\ncolumns: {timestamp: t}", "Did you mean 'trades'"),
    ("channel: trades\ncolumns: {timestamp: t, price: p, amount: q}", "'side' is required"),
    ("channel: trades\ncolumns: {price: p, amount: q, side: s}", "capture_ts or timestamp"),
    ("channel: trades\ncolumns: {timestamp: t, pric: p}", "Did you mean 'price'"),
    ("channel: orderbook\ncolumns: {timestamp: t}", "'bids' is required for orderbook: name its patterns"),
    ("channel: orderbook\ncolumns: {timestamp: t, bids: b, asks: a}", "no column 'bids'"),
    ("channel: trades\ncolumns: {timestamp: {column: t, value: 1}}", "either column"),
    ("channel: trades\ncolumns: {timestamp: {unit: ms}}", "either column"),
    ("channel: trades\ncolumns: {timestamp: {column: t, unit: min}}", "'min'"),
    ("channel: trades\ncolumns: {timestamp: {column: t, format: '%H'}}", "has no zone"),
    ("channel: trades\ncolumns: {timestamp: {column: t, format: '%H', zone: Nowhere}}", "unknown time zone 'Nowhere'"),
    ("channel: trades\nheadr: true\ncolumns: {timestamp: t}", "my.yaml:2: headr.*Did you mean 'header'"),
    ("channel: trades\nseparator: ', '\ncolumns: {timestamp: t}", "separator"),
    ("channel: trades\ncolumns: {price: {column: p, scale: 0}}", "scale"),
    ("channel: trades\ncolumns: {side: {column: s, words: {A: sel}}}", "'sel'; expected buy or sell. Did you mean 'se"),
    ("channel: trades\ncolumns: {side: {value: BUY}}", "'BUY'; expected buy or sell"),
    ("channel: trades\ncolumns: {contract_type: {value: invers}}", "Did you mean 'inverse'"),
    ("channel: trades\ncolumns: {price: {value: abc}}", "'abc' for all rows; expected a number"),
    ("channel: trades\ncolumns: {price: {value: 'inf'}}", "'inf' for all rows; expected a number"),
    ("channel: trades\ncolumns: {price: {column: p, words: {a: b}}}", "words for price, which is no text"),
    ("channel: trades\ncolumns: {timestamp: {value: 1704067200000, unit: ms}}", "column with their times"),
    ("channel: trades\ncolumns: {symbol: {value: ' '}}", "symbol is empty")])
def test_faults_of_a_mapping(text, message):
    with pytest.raises(ConfigError, match=message): Mapping.from_mapping(parse_yaml(text, "my.yaml"))

@pytest.mark.parametrize("batch_rows", [1, 2, 50_000])
@pytest.mark.parametrize(("words", "fine"), [
    ("{x: sell, y: buy}", False), ('{"1": buy, "2": sell}', True), ('{"1": buy, "2": null, "9": null}', True),
    ('{"9": buy}', False)])
def test_a_file_of_sides_that_nobody_understands_is_refused(tmp_path, batch_rows, words, fine):
    path = put(tmp_path / "x.csv", csv_of(ROWS))
    def made(): return all_of(path, TRADES.replace('{"1": buy, "2": sell}', words), batch_rows=batch_rows)[0]
    if fine: assert made().height == 3
    else:
        with pytest.raises(SchemaError, match=r"column 'dir'.* of 3 sides are no word that is known: '1', '2'"): made()

def test_numbers_and_words_that_are_constants(tmp_path):
    path, mapping = put(tmp_path / "x.csv", csv_of(ROWS)), TRADES.replace("  amount: qty", "  amount: {value: '1e-3'}")
    good, _ = all_of(path, mapping.replace('{column: dir, words: {"1": buy, "2": sell}}', "{value: sell}"))
    assert good.select("amount", "side").unique().rows() == [(0.001, "sell")]

def test_a_mapping_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'databento_trades'"): mapping_of("databento_trade")
    with pytest.raises(ConfigError, match="--mapping"): list(read(put(tmp_path / "x.csv", "a,b\n"), "", Options()))


# ---- Databento

HEADER = "ts_recv,ts_event,rtype,publisher_id,instrument_id,action,side,depth,price,size,flags,ts_in_delta,sequence"
TAIL = "0,1,3403,{action},{side},0,{price},{size},0,18000,{n},ESM2\n"

def tape(rows, pretty=False) -> str:
    day = "2022-06-10T14:30:00"
    times = f"{day}.000123456Z,{day}.000100000Z," if pretty else "1654871400000123456,1654871400000100000,"
    return HEADER + ",symbol\n" + "".join(times + TAIL.format(**r) for r in rows)

@pytest.mark.parametrize("pretty", [False, True])
def test_databento_trades(tmp_path, pretty):
    prices = ("4108.500000000", "") if pretty else ("4108500000000", "9223372036854775807")
    rows = [dict(action="T", side=s, price=prices[0], size=i + 1, n=5) for i, s in enumerate("ABN")]
    rows.append(dict(action="T", side="A", price=prices[1], size=1, n=6))
    rows.append(dict(action="A", side="A", price=prices[0], size=1, n=7))
    path = put(tmp_path / "x.csv", tape(rows, pretty))
    assert looks_like(Head.of(path)) == "databento_trades"
    good, bad = all_of(path, None, "databento_trades", exchange="glbx")
    assert good["side"].to_list() == ["sell", "buy", None, "sell"]       # the aggressor's side, as Databento says
    assert good["price"].to_list() == [4108.5] * 3 + [None] and good["amount"].to_list() == [1.0, 2.0, 3.0, 1.0]
    assert "trade_id" not in good.columns                                # fills of one order share a sequence
    assert good["capture_ts"][0] == datetime(2022, 6, 10, 14, 30, 0, 123, UTC) and bad.is_empty()
    assert good["timestamp"][0] == 1654871400000

def test_headers_that_are_claimed(tmp_path):
    def kind(header): return looks_like(Head.of(put(tmp_path / "x.csv", header + "\n1\n")))
    assert kind(HEADER + ",bid_px_00,ask_px_00,bid_sz_00,ask_sz_00") is None         # quotes, or quotes before trades
    assert kind(HEADER + ",bid_px_00,ask_px_00,bid_px_01,ask_px_01") == "databento_mbp"
    assert kind("exchange,symbol,timestamp,local_timestamp,id,side,price,amount") is None

def test_mappings_that_come_along_are_valid():
    assert {n: mapping_of(n).channel for n in SHIPPED} == {"databento_trades": "trades", "databento_mbp": "orderbook"}
    assert format_of("mapping") is FORMAT
