"""CCXT's JSON to bronze: the same values as `json.loads` and `float` give, wherever blocks are cut, and traps."""
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import config as numba_config

from daedalus_etl.core.errors import BadDataError, CorruptFileError, SchemaError, TimeUnitError
from daedalus_etl.sources import json_records
from daedalus_etl.sources.ccxt_json import FORMAT, looks_like, read
from daedalus_etl.sources.json_records import EXACT, NONE, SLOW, books, read_number, records
from daedalus_etl.sources.source import Head, Options, format_of
from daedalus_etl.storage.contract import check_schema, contract_for

NIGHTLY = os.environ.get("DAEDALUS_NIGHTLY") == "1"
PLAIN = bool(numba_config.DISABLE_JIT)
RAW = Path(__file__).resolve().parents[2] / "shared" / "data" / "raw"
BOOK = Options(symbol="BTC-BRL")
briefly = settings(max_examples=30 if PLAIN else 150, deadline=None)


@pytest.fixture(scope="module")
def recorded() -> Path:
    if not RAW.is_dir(): pytest.skip("recorded market data (../shared/data/raw) is not on this machine")
    return RAW / "ccxt"


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path

def all_of(path: Path, kind: str | None = None, options: Options = BOOK) -> tuple[pl.DataFrame, pl.DataFrame]:
    "(All rows, all that is set aside.)"
    batches = list(read(path, kind or looks_like(Head.of(path)), options))
    return pl.concat(b.frame for b in batches), pl.concat(b.bad for b in batches if b.bad is not None)

def pairs(levels) -> list[tuple[float, float]]:
    "Levels as JSON has them, by Python's own float."
    return [(float(p), float(q)) for p, q, *_ in levels]

def levels(side) -> list[tuple[float, float]]:
    return [(level["price"], level["size"]) for level in side]


# ---- numbers

decimal = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-10**9, max_value=10**9).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr), st.integers(-10**25, 10**25).map(str),
    st.from_regex(r"\A-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?\Z"))

def number(text: str) -> tuple[int, float, int]:
    return read_number(np.frombuffer(text.encode(), np.uint8), 0, len(text.encode()))

@given(decimal)
@briefly
def test_a_number_is_the_nearest_float_or_left(text):
    p, value, how = number(text)
    assert p == len(text) and how in (EXACT, SLOW)
    if how == EXACT: assert value.hex() == float(text).hex()

@pytest.mark.parametrize("text", ["", "-", "+1", "01", "-01", ".5", "5.", "1e", "1e+", "NaN", "Infinity", "x", "--1"])
def test_what_json_does_not_know_is_no_number(text):
    assert number(text)[2] == NONE

def test_prices_of_markets_are_read_by_the_kernel():
    "The way that is left to Python is for exceptions."
    rng = np.random.default_rng(3)
    texts = [f"{a}.{b:08}" for a, b in zip(rng.integers(0, 10**6, 500), rng.integers(0, 10**8, 500), strict=True)]
    assert all(number(t)[2] == EXACT for t in texts)


# ---- records

text = st.text(st.sampled_from('ab"\\{}[],: \u00e4\n'), max_size=8)
value = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-99, 99), text),
                     lambda x: st.lists(x, max_size=3) | st.dictionaries(text, x, max_size=3), max_leaves=6)
told = st.lists(st.dictionaries(text, value, max_size=4), max_size=8)

@given(told, st.integers(1, 60), st.sampled_from(["lines", "crlf", "array", "pretty"]))
@briefly
def test_records_wherever_blocks_are_cut(rows, block, how):
    end = "\r\n" if how == "crlf" else "\n"
    data = "".join(json.dumps(r) + end for r in rows) if how in ("lines", "crlf") else json.dumps(
        rows, indent=1 if how == "pretty" else None)
    found = [(int(b.rows[i]), json.loads(b.record(i)))
             for b in records(io.BytesIO(data.encode()), Path("x"), block) for i in range(b.rows.size)]
    assert found == list(enumerate(rows, 1))

@pytest.mark.parametrize("data, message", [
    ('[{"a": 1}', "does not end: 1 whole"), ('[{"a": 1}, {"a": ', "does not end: 1 whole"), ("[", "does not end: 0"),
    ('[{"a": 1} {"a": 2}]', "objects with commas"), ('[{"a": 1},]', "objects with commas"), ("[1, 2]", "objects with"),
    ('[{"a": 1}] x', "nothing after"), ('[,{"a": 1}]', "objects with commas"), ("[[1]]", "objects with commas")])
def test_arrays_that_are_none(data, message):
    for block in (3, 1 << 20):
        with pytest.raises(CorruptFileError, match=message):
            list(records(io.BytesIO(data.encode()), Path("x.json"), block))

def test_a_record_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(json_records, "MAX_RECORD", 1000)
    for start in ("[{", "{"):
        data = io.BytesIO((start + '"a": "' + "x" * 5000).encode())
        with pytest.raises(BadDataError, match="one record of more than"): list(records(data, Path("x"), 100))

def test_white_space_is_no_record():
    assert list(records(io.BytesIO(b" \n\n \r\n"), Path("x"), 2)) == []
    assert list(records(io.BytesIO(b"\xef\xbb\xbf []"), Path("x"))) == []


# ---- books

price = st.decimals("0.00000001", 10**6, places=8).map(str)
cell = price.flatmap(lambda p: st.sampled_from([p, f'"{p}"', repr(float(p)), f' "{p}" ']))
third = st.sampled_from(["", ", 3", ', "x,]y"', ", 1.5e9", ", null", ', 1, "2"'])
level = st.tuples(cell, cell, third).map(lambda t: f"[{t[0]}, {t[1]}{t[2]}]")
side = st.lists(level, max_size=4).map(lambda x: f"[{', '.join(x)}]")
BROKEN = ['{"t": 1, "bids": [[1, 2]], "asks": [[1, 2]', '{"bids": [[1,, 2]], "asks": []}', "5", "[]",
          '{"a": 1} {"b": 2}',
          '{"t": NaN, "bids": [], "asks": []}', '{"t": 1, "bids": [[01, 2]], "asks": []}', "{'t': 1}", "\x00"]
LACKING = ['{"t": 1, "bids": []}', '{"t": 1, "asks": [[1, 2]], "bids": null}', "{}"]

@st.composite
def book_lines(draw):
    "Lines of books: keys in any order, numbers and texts, keys that mislead, broken ones among them."
    lines = []
    for i in range(draw(st.integers(1, 6))):
        keys = [f'"bids": {draw(side)}', f'"asks" :{draw(side)}', f'"t": {i}',
                '"info": {"bids": [[9, 9]], "x": "asks"}', '"name": "bids"', '"a[{": "]"']
        lines.append("{" + ", ".join(draw(st.permutations(keys))) + "}")
        if draw(st.booleans()): lines.append(draw(st.sampled_from(BROKEN + LACKING)))
    return lines

@given(book_lines(), st.integers(20, 400))
@briefly
def test_books_are_what_json_says(lines, block):
    data = "".join(line + "\n" for line in lines).encode()
    found = [books(b, {"t": pl.String}) for b in records(io.BytesIO(data), Path("x"), block)]
    good, bad = pl.concat(f[0] for f in found), pl.concat(f[1] for f in found)
    expected = [(i, json.loads(x)) for i, x in enumerate(lines, 1) if x not in BROKEN + LACKING]
    assert good["row"].to_list() == [i for i, _ in expected]
    assert good["t"].to_list() == [str(b["t"]) for _, b in expected]
    for s in ("bids", "asks"): assert [levels(x) for x in good[s]] == [pairs(b[s]) for _, b in expected]
    why = {i: "bad_json" if x in BROKEN else "missing_side" for i, x in enumerate(lines, 1) if x in BROKEN + LACKING}
    assert dict(bad.select("row", "reason").rows()) == why

def test_a_key_with_an_escape(tmp_path):
    "The kernel knows plain keys; all else is polars' business, with its answer."
    line = '{"timestamp": 1592726829, "exchange": "x", "bids": [[1, 2]], "a\\u0073ks": [[5, "6"]]}\n'
    good, bad = all_of(put(tmp_path / "a.json", line), "orderbook")
    assert bad.is_empty() and levels(good["asks"][0]) == [(5.0, 6.0)]

def test_levels_that_are_none_are_found_by_the_rules_of_bronze(tmp_path):
    from daedalus_etl.storage.contract import bad_row_rules, split_bad
    line = '{"timestamp": 1592726829, "exchange": "x", "bids": [%s], "asks": [[5, 6]]}\n'
    told = ("[1, 2]", "[1]", "[]", "[null, 1]", '["NaN", 1]', '["", 1]')
    path = put(tmp_path / "a.json", "".join(line % x for x in told))
    good, bad = all_of(path)
    ok, set_aside = split_bad(good, bad_row_rules("orderbook", columns=good.columns))
    assert bad.is_empty() and ok["row"].to_list() == [1] and set_aside["row"].to_list() == [2, 3, 4, 5, 6]

def test_numbers_of_many_digits_in_the_middle_of_a_block(tmp_path):
    rng = np.random.default_rng(4)
    rows = [{"timestamp": 1592726829 + i, "exchange": "x", "bids": rng.random((5, 2)).tolist(),
             "asks": [[repr(float(p)), float(q)] for p, q in rng.random((3, 2))]} for i in range(60)]
    good, _ = all_of(put(tmp_path / "a.json", "".join(json.dumps(r) + "\n" for r in rows)))
    for s in ("bids", "asks"): assert [levels(x) for x in good[s]] == [pairs(r[s]) for r in rows]


def test_a_number_of_a_thousand_digits(tmp_path):
    large = "1" * 290
    row = json.dumps({"timestamp": 1592726829, "exchange": "x", "bids": [["p", 1]], "asks": [[large, 1]]})
    path = put(tmp_path / "a.json", row.replace('"p"', f"0.{'3' * 1000}") + "\n")
    good, bad = all_of(path)
    assert bad.is_empty()
    assert (levels(good["bids"][0]), levels(good["asks"][0])) == ([(1 / 3, 1.0)], [(float(large), 1.0)])


# ---- files

LINE = '{"timestamp": %s, "exchange": "ex", "symbol": "A/B", "bids": [["1", "2"]], "asks": [[3, 4]]}\n'

def test_packings_and_a_byte_order_mark(tmp_path):
    data = b"\xef\xbb\xbf" + "".join(LINE % (1592726829 + i) for i in range(4)).encode()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as t:
        info = tarfile.TarInfo("books.json")
        info.size = len(data)
        t.addfile(info, io.BytesIO(data))
    packed = [data, gzip.compress(data), lzma.compress(data), tar.getvalue(), data.replace(b"\n", b"\r\n")]
    found = [all_of(put(tmp_path / f"{i}.json", d), options=Options())[0] for i, d in enumerate(packed)]
    assert found[0].height == 4 and all(f.equals(found[0]) for f in found)
    with pytest.raises(CorruptFileError, match="good bytes"): all_of(put(tmp_path / "x", packed[1][:-9]), "orderbook")

def test_the_last_line_of_a_live_file(tmp_path):
    "Half a line is left without a word in bronze; a whole one without its end is a row."
    whole = LINE % 1592726829 + (LINE % 1592726830).strip()
    assert all_of(put(tmp_path / "a.json", whole), options=Options())[0]["row"].to_list() == [1, 2]
    with pytest.warns(UserWarning, match="line 2: the last line is not whole"):
        good, bad = all_of(put(tmp_path / "b.json", whole[:-5]), options=Options())
    assert good["row"].to_list() == [1] and bad.is_empty()

def test_a_broken_line_is_set_aside_with_its_number(tmp_path):
    path = put(tmp_path / "a.json", LINE % 1592726829 + "\n" + (LINE % 1592726830)[:40] + "\n" + LINE % 1592726831)
    good, bad = all_of(path, options=Options())
    assert good["row"].to_list() == [1, 4]
    assert bad.rows() == [(3, "bad_json", None, (LINE % 1592726830)[:40])]

def test_text_that_is_no_utf8(tmp_path):
    good, bad = all_of(put(tmp_path / "a.json", LINE.encode() % b"1592726829" + b'{"exchange": "\xff"}\n'))
    assert good.height == 1 and bad["reason"].to_list() == ["bad_json"]

def test_batches_are_bounded(tmp_path):
    path = put(tmp_path / "a.json", "".join(LINE % (1592726829 + i) for i in range(25)) + "x\n")
    batches = list(read(path, "orderbook", Options(batch_rows=10)))
    assert [b.frame.height for b in batches] == [10, 10, 5]
    assert sum(b.bad.height for b in batches if b.bad is not None) == 1

def test_frames_fit_the_contract(tmp_path):
    good, _ = all_of(put(tmp_path / "a.json", LINE % 1592726829))
    assert check_schema(good.schema, "orderbook") == []
    assert set(good.columns) - {"row"} <= set(contract_for("orderbook").names)
    assert format_of("ccxt") is FORMAT


# ---- times

@pytest.mark.parametrize("told, expected", [
    ("1592726829", "2020-06-21T08:07:09"), ("1592726829.6742322", "2020-06-21T08:07:09.674232"),
    ('"1592726829"', "2020-06-21T08:07:09"), ("1592726829674", "2020-06-21T08:07:09.674000"),
    ("1592726829674.5", "2020-06-21T08:07:09.674500"), ("1592726829674232", "2020-06-21T08:07:09.674232"),
    ("1592726829674232999", "2020-06-21T08:07:09.674232")])
def test_the_unit_is_found(tmp_path, told, expected):
    good, _ = all_of(put(tmp_path / "a.json", LINE % told))
    assert good["capture_ts"][0] == datetime.fromisoformat(expected).replace(tzinfo=UTC)
    assert good["timestamp"][0] == good["collected_at"][0] == int(good["capture_ts"][0].timestamp() * 1000)

def test_two_units_in_one_file_are_an_error(tmp_path):
    path = put(tmp_path / "a.json", LINE % 1592726829 + LINE % "null" + LINE % 1592726829674)
    with pytest.raises(TimeUnitError, match="'timestamp', row 3: 1592726829674 is a time in ms"): all_of(path)

def test_a_unit_that_is_said_and_wrong(tmp_path):
    path = put(tmp_path / "a.json", LINE % 1592726829674)
    with pytest.raises(TimeUnitError, match="a time in ms .* expected s"): all_of(path, options=Options(time_unit="s"))

@pytest.mark.parametrize("told", ["0", "-5", "null", "1e300", "99999999999999999999"])
def test_a_time_that_is_none_is_found_by_the_rules_of_bronze(tmp_path, told):
    from daedalus_etl.storage.contract import bad_row_rules, split_bad
    good, _ = all_of(put(tmp_path / "a.json", LINE % 1592726829 + LINE % told))
    assert split_bad(good, bad_row_rules("orderbook", columns=good.columns))[0]["row"].to_list() == [1]

def test_a_time_that_is_no_number(tmp_path):
    good, bad = all_of(put(tmp_path / "a.json", LINE % 1592726829 + LINE % '"today"'))
    assert good["row"].to_list() == [1] and bad.rows() == [(2, "bad_time", "timestamp", "today")]

def test_a_collector_that_tells_when_it_received(tmp_path):
    line = LINE % '1592726829000, "local_timestamp": 1592726829.25'
    good, _ = all_of(put(tmp_path / "a.json", line))
    assert good.select("collected_at", "timestamp").row(0) == (1592726829250, 1592726829000)


# ---- what the file does not say

@pytest.mark.parametrize("drop, flag", [('"symbol": "A/B", ', "--symbol"), ('"exchange": "ex", ', "--exchange")])
def test_what_must_be_said(tmp_path, drop, flag):
    path = put(tmp_path / "a.json", (LINE % 1592726829).replace(drop, ""))
    with pytest.raises(SchemaError, match=flag): all_of(path, options=Options())
    assert all_of(path, options=Options(exchange="x", symbol="y"))[0].select("exchange", "symbol").row(0) == ("x", "y")

def test_a_single_row_without_symbol(tmp_path):
    line = LINE % 1592726829
    good, bad = all_of(put(tmp_path / "a.json", line + line.replace('"symbol": "A/B", ', "")), options=Options())
    assert good.height == 1 and bad["reason"].to_list() == ["missing_symbol"]

def test_records_without_a_needed_key(tmp_path):
    path = put(tmp_path / "a.json", '{"timestamp": 1592726829, "symbol": "A/B", "price": 1, "qty": 2, "side": "buy"}\n')
    with pytest.raises(SchemaError, match="Did you mean|expected Float64"): all_of(path, "trades")
    with pytest.raises(SchemaError, match="no kind of CCXT records is 'ohlcv'"): all_of(path, "ohlcv")

FOREIGN = ['{"lastUpdateId": 1, "bids": [["1", "2"]], "asks": []}', "timestamp,price,amount,side,symbol\n1,2,3,buy,x\n",
           '1723161256071752451 {"stream":"btcusdt@trade","data":{"e":"trade"}}', "[[1504541580000, 4235.4, 1]]",
           '{"e": "depthUpdate", "b": [], "a": []}', '{"BTC/USDT": {"bid": 1, "ask": 2, "last": 1, "timestamp": 1}}',
           "PAR1", '{"bids": [["1", "2", 1]], "asks": [], "sequence": 1, "time": "2020"}', "[", "{", '"bids"']

@pytest.mark.parametrize("data", FOREIGN)
def test_nothing_else_is_claimed(tmp_path, data):
    assert looks_like(Head.of(put(tmp_path / "x", data))) is None


# ---- recorded data

def test_recorded_trades(recorded):
    path = recorded / "trades.json.gz"
    assert looks_like(Head.of(path)) == "trades"
    good, bad = all_of(path, options=Options(exchange="binance"))
    expected = json.loads(gzip.decompress(path.read_bytes()))
    assert good.height == len(expected) == 12_477 and bad.is_empty()
    assert good["trade_id"].to_list() == [t["id"] for t in expected]
    for name in ("side", "price", "amount", "cost", "timestamp", "symbol"):
        assert good[name].to_list() == [t[name] for t in expected]

def test_recorded_books(recorded):
    "Every row of the first blocks, of both venues; at night every row of the file."
    with tarfile.open(recorded / "order_book.ndjson.tar.xz", "r|xz") as tar:
        lines = tar.extractfile(tar.next())
        seen, n, most = set(), 0, 30_000 if NIGHTLY else 300
        for batch in read(recorded / "order_book.ndjson.tar.xz", "orderbook", BOOK):
            assert batch.bad is None or batch.bad.is_empty()
            for row in batch.frame.head(most - n).iter_rows(named=True):
                told, n = json.loads(next(lines)), n + 1
                assert row["row"] == n and row["exchange"] == told["exchange"]
                assert levels(row["bids"]) == pairs(told["bids"]) and levels(row["asks"]) == pairs(told["asks"])
                assert round(row["capture_ts"].timestamp() * 1e6) == round(told["timestamp"] * 1e6)
                seen.add(told["exchange"])
            if n >= most: break
    assert seen == {"EX1", "EX2"} and n == (25_767 if NIGHTLY else most)

IMPORT = """
import resource, sys
from daedalus_etl.sources.bronze import BronzeWriter
from daedalus_etl.sources.ccxt_json import read
from daedalus_etl.sources.source import Options
options = Options(symbol="BTC-BRL")
with BronzeWriter(sys.argv[2], sys.argv[1], options) as writer:
    for batch in read(sys.argv[1], "orderbook", options): writer.add(batch)
    counts = writer.publish()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(counts.rows["orderbook"], counts.set_aside, counts.duplicates, peak)
"""

@pytest.mark.skipif(PLAIN, reason="without compiled kernels it takes an hour")
def test_the_memory_of_an_import_is_bounded(recorded, tmp_path):
    "571 MB of text become bronze in a process that never holds more than 1 GiB, its libraries included."
    if not NIGHTLY: pytest.skip("DAEDALUS_NIGHTLY is not set")
    args = [sys.executable, "-c", IMPORT, str(recorded / "order_book.ndjson.tar.xz"), str(tmp_path / "bronze")]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    rows, aside, repeats, peak = map(int, done.stdout.split())
    assert (rows, aside, repeats) == (25_767, 0, 0)         # identical books at different times are kept
    assert peak / 1024 < 1024
    found = pl.read_parquet(tmp_path / "bronze/orderbook/**/*.parquet", columns=["exchange"])
    assert found.height == rows

def test_memory_does_not_grow_with_the_file(tmp_path):
    "A file of ten times as many records has blocks of the same size, whether it is an array or lines."
    row = json.loads(LINE % 1592726829)
    for name, data in (("lines", (LINE % 1592726829) * 30_000), ("array", json.dumps([row] * 30_000))):
        sizes = [b.text.nbytes for b in records(io.BytesIO(data.encode()), Path(name), 1 << 16)]
        assert len(sizes) > 20 and max(sizes) <= 3 << 16

def test_no_warning_for_a_whole_file(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_of(put(tmp_path / "a.json", LINE % 1592726829))
