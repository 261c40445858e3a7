"""Files of others into bronze: each row once, all of a file or nothing, wherever the machine stops."""
import csv as csv_module
import errno
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import faults
import lakes
import plain_source
import polars as pl
import pytest
from faults import NIGHTLY
from hypothesis import given
from hypothesis import strategies as st
from lakes import UTC_US, day_start
from plain_source import BINANCE, line, write

from daedalus_etl.cli import main
from daedalus_etl.core.errors import (
    BadDataError, ConfigError, ConflictError, CorruptFileError, InputChangedError, InputNotFoundError, SchemaError,
    StorageError, TimeUnitError)
from daedalus_etl.sources import bronze, importer
from daedalus_etl.sources.bronze import BronzeWriter
from daedalus_etl.sources.importer import import_files
from daedalus_etl.sources.inspect import inspect_file
from daedalus_etl.sources.source import FORMATS, Batch, Format, Options, bad_rows, csv_batches
from daedalus_etl.storage.disk import Lock
from daedalus_etl.storage.lineage import lineage
from daedalus_etl.storage.verify import verify

HERE = Path(__file__).resolve().parent
RAW = HERE.parents[1] / "shared/data/raw"
KILLS = 40 if NIGHTLY else 4


@pytest.fixture(scope="module")
def src(tmp_path_factory): return plain_source.sources(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def whole(src, tmp_path_factory) -> Path:
    "The lake of an import that nobody disturbed."
    lake = tmp_path_factory.mktemp("whole") / "bronze"
    assert import_files(src, lake, options=BINANCE).success
    return lake


def rows(lake: Path, channel: str = "trades") -> Counter:
    "Every row of a channel with how often it is there; columns by name."
    return Counter(tuple(sorted(r.items())) for p in (lake / channel).rglob("*.parquet")
                   for r in pl.read_parquet(p, hive_partitioning=False).iter_rows(named=True))


def aside(lake: Path) -> pl.DataFrame:
    found = [pl.read_parquet(p) for p in sorted(lake.rglob("quarantine/**/rows.parquet"))]
    return pl.concat(found, how="diagonal_relaxed").sort("row") if found else pl.DataFrame({"row": []})


# ---- what comes in

def test_rows_days_and_counts(src, whole):
    report = import_files(src, whole.with_name("again"), options=BINANCE)
    a, b, c = report.files
    assert [f.status for f in report.files] == ["imported"] * 3 and {f.format for f in report.files} == {"plain"}
    assert a.counts.rows == {"trades": 48, "ticker": 12} and a.counts.duplicates == 0
    assert b.counts.rows == {"trades": 64, "ticker": 16} and b.counts.duplicates == 20
    assert c.counts.rows == {"trades": 25, "ticker": 6} and c.counts.set_aside == 4
    assert (a.counts.first, a.counts.last) == (day_start(8), day_start(8) + timedelta(minutes=30 * 59))
    folders = {p.parent.relative_to(whole / "trades").as_posix() for p in (whole / "trades").rglob("*.parquet")}
    assert "exchange=binance/symbol=BTC%2FUSDT/year=2024/month=08/day=09" in folders and len(folders) == 5
    assert sum(rows(whole).values()) == 48 + 64 + 25 and max(rows(whole).values()) == 1
    assert rows(whole, "ticker").total() == 12 + 16 + 6


def test_every_value_arrives(src, whole):
    "Against Python's own reading of the file."
    with open(src / "a.csv") as f: lines = [r for r in csv_module.DictReader(f) if r["side"] != "quote"]
    got = pl.concat(pl.read_parquet(p, hive_partitioning=False) for p in (whole / "trades").rglob("*.parquet"))
    got = {r["trade_id"]: r for r in got.iter_rows(named=True)}
    for r in lines:
        mine = got[r["id"]]
        assert (mine["price"], mine["amount"], mine["side"]) == (float(r["price"]), float(r["size"]), r["side"].lower())
        assert mine["timestamp"] == int(r["time"]) == plain_source.ms(mine["capture_ts"])
        assert (mine["exchange"], mine["symbol"]) == ("binance", "BTC/USDT")


def test_the_order_of_files_says_nothing_about_rows(src, whole, tmp_path):
    for name in ("c.csv", "b.csv", "a.csv"): import_files(src / name, tmp_path / "bronze", options=BINANCE)
    for channel in ("trades", "ticker"): assert rows(tmp_path / "bronze", channel) == rows(whole, channel)


def test_little_memory_gives_the_same_bytes(src, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(bronze, "BUFFER", 200)
    import_files(src, tmp_path / "bronze", options=BINANCE)
    assert faults.differences(tmp_path / "bronze", whole) == []


def test_files_are_sound_and_know_where_they_come_from(whole, src):
    assert verify(whole)["fault"].to_list() == [""] * len(verify(whole)) and lakes.leftovers(whole) == []
    file = next((whole / "trades/exchange=binance/symbol=XRP%2FUSDT").rglob("*.parquet"))
    record = lineage(file)["record"]
    assert record["source"] == "import" and record["file"] == str(src / "c.csv") and record["format"] == "plain"


def test_what_is_set_aside(whole, src):
    found = aside(whole)
    assert found["row"].to_list() == [32, 33, 34, 35] and set(found["file"]) == {str(src / "c.csv")}
    assert found["reason"].to_list() == ["ragged_line", "bad_cell", "bad_price", "bad_timestamp"]
    assert found["value"].to_list()[:2] == ["1,2", "12;5"] and found["column"][1] == "price" and found["price"][2] == -1


def test_too_many_bad_rows_fail_the_file_and_only_it(src, tmp_path):
    strict = replace(BINANCE, max_bad=0.01)
    report = import_files(src, tmp_path / "bronze", options=strict)
    assert [f.status for f in report.files] == ["imported", "imported", "failed"]
    error = report.failed[0].error
    assert isinstance(error, BadDataError) and error.row == 32 and "4 of 35 rows are bad" in str(error)
    assert not list((tmp_path / "bronze").rglob("symbol=XRP*")) and aside(tmp_path / "bronze").is_empty()
    assert import_files(src / "c.csv", tmp_path / "bronze", options=BINANCE).success


@pytest.mark.parametrize("what,error", [
    (lambda p: write(p, [line(0, time=plain_source.ms(day_start(8)) * 1000)]), TimeUnitError),
    (lambda p: p.write_bytes(b""), CorruptFileError),
    (lambda p: p.write_bytes(gzip.compress(write(p, map(line, range(999))).read_bytes())[:-9]), CorruptFileError),
    (lambda p: p.write_text("<html><body>404</body></html>"), ConfigError),
    (lambda p: write(p, [line(0)], "time,price"), ConfigError)])
def test_a_broken_file_leaves_nothing_and_stops_no_other(what, error, src, tmp_path):
    path = tmp_path / "files/0.csv"
    path.parent.mkdir()
    what(path)
    report = import_files([path, src / "a.csv"], tmp_path / "bronze", options=BINANCE)
    assert sorted(f.status for f in report.files) == ["failed", "imported"]
    assert isinstance(report.failed[0].error, error) and str(path) in str(report.failed[0].error)
    assert rows(tmp_path / "bronze").total() == 48


HEADER = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n"


def test_a_time_that_no_calendar_has(tmp_path):
    us, file = 1_735_689_600_000_000, tmp_path / "a_trades.csv"
    late = f"e,S,{us},{us * 1000},x,buy,1,2\n"
    file.write_text(HEADER + "".join(f"e,S,{us + i},{us + i},{i},buy,1,2\n" for i in range(2000)) + late)
    one = import_files(file, tmp_path / "bronze").files[0]
    assert (one.status, one.counts.rows, one.counts.set_aside) == ("imported", {"trades": 2000}, 1)
    assert aside(tmp_path / "bronze").select("row", "reason").rows() == [(2002, "bad_timestamp")]
    file.write_text(HEADER + "".join(f"e,S,{us + i},{us + i},{i},buy,1,2\n" for i in range(20)) + late)
    error = import_files(file, tmp_path / "other").files[0].error
    assert isinstance(error, BadDataError) and error.row == 22
    assert "1 of 21 rows are bad {'bad_timestamp': 1}" in str(error)


# ---- formats

def test_a_format_is_named_or_certain(src, tmp_path, monkeypatch):
    twin = Format("twin", "The same", plain_source.looks_like, plain_source.read)
    monkeypatch.setattr(plain_source, "TWIN", twin, raising=False)
    monkeypatch.setitem(FORMATS, "twin", "plain_source:TWIN")
    report = import_files(src / "a.csv", tmp_path / "bronze", options=BINANCE)
    assert "looks like plain or twin" in str(report.failed[0].error)
    assert not inspect_file(src / "a.csv").certain and "FORMAT" in inspect_file(src / "a.csv").command
    assert import_files(src / "a.csv", tmp_path / "bronze", format="twin", options=BINANCE).success


def test_a_wrong_name_of_a_format(src, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        import_files(src, tmp_path / "bronze", format="plains", options=BINANCE)
    report = import_files(src / "a.csv", tmp_path / "bronze", format="lobster", options=BINANCE)
    said = str(report.failed[0].error)
    assert "does not look like lobster" in said and "looks like plain" in said


def test_names_that_the_file_does_not_say(src, tmp_path):
    report = import_files(src / "a.csv", tmp_path / "bronze")
    assert "column 'exchange': the file does not say its exchange" in str(report.failed[0].error)
    both = import_files(src / "b.csv", tmp_path / "bronze", options=replace(BINANCE, symbol="X"))
    assert "expected rows of one" in str(both.failed[0].error)
    one = import_files(src / "a.csv", tmp_path / "bronze", options=replace(BINANCE, symbol="XBT"))
    assert one.success and list((tmp_path / "bronze").rglob("symbol=XBT"))


def test_files_folders_patterns(src, tmp_path):
    names = [p.name for p in importer.files_of([src, src / "a.csv", str(src / "*.csv")])]
    assert names == ["a.csv", "b.csv", "c.csv"]
    for nothing in (src / "d.csv", src / "*.gz"):
        with pytest.raises(InputNotFoundError): import_files(nothing, tmp_path / "bronze")
    for url in ("s3://bucket/bronze", "gs://b/x"):
        with pytest.raises(ConfigError, match="folder of this machine"): import_files(src, url)


# ---- each row once

def put(lake: Path, channel: str, frame: pl.DataFrame, source="f", options=Options(max_bad=1)):
    with BronzeWriter(lake, source, options) as writer:
        writer.add(Batch(channel, frame))
        return writer.publish(1.0)


def trades(ids, prices, seconds=None) -> pl.DataFrame:
    n = len(ids)
    at = [day_start(8) + timedelta(seconds=s) for s in (seconds or range(n))]
    return pl.DataFrame({"row": range(1, n + 1), "capture_ts": pl.Series(at, dtype=UTC_US), "exchange": "x",
                         "symbol": "S",
                         "trade_id": pl.Series(ids, dtype=pl.String), "side": "buy", "price": prices, "amount": 1.0})


def test_repeats_and_conflicts_within_a_file(tmp_path):
    counts = put(tmp_path, "trades", trades(list("abacb"), [1., 2., 1., 3., 9.]))
    assert (counts.rows, counts.duplicates, counts.set_aside) == ({"trades": 3}, 1, 1)
    assert aside(tmp_path).select("row", "reason", "price").rows() == [(5, "conflicting_repeat", 9.0)]


def test_trades_without_ids_are_counted(tmp_path):
    "Two equal ones in a file are two; a file that has three of them brings one more."
    def equal(n): return trades([None] * n, [1.] * n, [0] * n)
    assert put(tmp_path, "trades", equal(2)).rows == {"trades": 2}
    third = put(tmp_path, "trades", equal(3), "g")
    assert (third.rows, third.duplicates) == ({"trades": 1}, 2)
    assert put(tmp_path, "trades", equal(1), "h").rows == {"trades": 0}


def test_books_that_stand_still_are_kept(tmp_path):
    level = [{"price": 1.0, "size": 2.0}]
    def books(seconds): return pl.DataFrame({
        "row": range(len(seconds)), "capture_ts": pl.Series([day_start(8) + timedelta(seconds=s) for s in seconds],
                                                            dtype=UTC_US),
        "exchange": "x", "symbol": "S", "bids": [level] * len(seconds), "asks": [level] * len(seconds)})
    assert put(tmp_path, "orderbook", books([0, 1, 1, 2])).duplicates == 1
    counts = put(tmp_path, "orderbook", books([1, 2, 3]), "g")
    assert (counts.rows, counts.duplicates) == ({"orderbook": 1}, 2)


def test_quotes_and_series_are_whole_rows(tmp_path):
    def of(**more): return pl.DataFrame({"row": [1, 2], "capture_ts": pl.Series([day_start(8)] * 2, dtype=UTC_US),
                                         "exchange": "x", "symbol": "S", **more})
    assert put(tmp_path, "ticker", of(bid=[1., 1.], ask=[2., 3.])).rows == {"ticker": 2}
    assert put(tmp_path, "ticker", of(bid=[1., 1.], ask=[2., 4.]), "g").rows == {"ticker": 1}
    back = pl.concat([of(bid=[1., 2.], ask=[3., 3.]), of(bid=[1., 2.], ask=[3., 3.]).head(1)])
    assert put(tmp_path / "back", "ticker", back).rows == {"ticker": 3}          # a quote that comes back is a quote
    assert put(tmp_path / "back", "ticker", back, "g").duplicates == 3
    assert put(tmp_path, "series", of(name=["a", "b"], value=[1., 1.])).rows == {"series": 2}
    assert put(tmp_path, "series", of(name=["a", "b"], value=[1., 2.]), "g").duplicates == 1


def test_repeats_of_what_others_wrote(tmp_path):
    "A file of another hand, with numbers for ids and without the optional columns."
    folder = tmp_path / "trades/exchange=x/symbol=S/year=2024/month=08/day=08"
    folder.mkdir(parents=True)
    old = trades(["1", "2"], [1., 2.]).drop("row").with_columns(pl.col("trade_id").cast(pl.Int64))
    old.write_parquet(folder / "data.parquet")
    with pytest.raises(SchemaError, match="one type over all files"):
        put(tmp_path, "trades", trades(["2", "3"], [2., 3.]))
    old.with_columns(pl.col("trade_id").cast(pl.String)).drop("symbol").write_parquet(folder / "data.parquet")
    assert put(tmp_path, "trades", trades(["2", "3"], [2., 3.])).duplicates == 1
    quotes = trades(["1"], [1.]).select("row", "capture_ts", "exchange", "symbol", bid=pl.lit(1.), ask=pl.lit(2.))
    (place := Path(str(folder).replace("trades", "ticker"))).mkdir(parents=True)
    quotes.drop("row", "exchange", "symbol").write_parquet(place / "data.parquet")      # the path says whose they are
    assert put(tmp_path, "ticker", quotes).duplicates == 1


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.sampled_from([1.0, 2.0])), max_size=12),
       st.integers(0, 12))
def test_repeats_against_a_slow_truth(data, cut):
    ids, prices = [i for i, _ in data], [p for _, p in data]
    frame = trades(ids, prices, [0] * len(ids)).select(bronze.identity("trades", trades(ids, prices).columns))
    mine = bronze.repeats(frame.head(cut), frame.slice(cut)).to_list()
    known: dict = {}
    counts = [Counter(), Counter()]
    truth = []
    for k, (i, p) in enumerate(data):
        new = k >= cut
        counts[new][p] += i is None
        key = i if i is not None else (p, counts[new][p])
        if new: truth.append(None if key not in known else i is not None and known[key] != p)
        known.setdefault(key, p)
    assert mine == truth


# ---- each file once

def test_known_files_are_skipped(src, tmp_path):
    lake = tmp_path / "bronze"
    path = write(tmp_path / "files/a.csv", [line(i) for i in range(9)])
    import_files(path, lake, options=BINANCE)
    before = faults.tree(lake)
    assert import_files(path, lake, options=BINANCE).files[0].status == "known"
    other = path.rename(path.with_name("b.csv"))
    assert import_files(other, lake, options=BINANCE).files[0].status == "known"
    again = import_files(other, lake, options=BINANCE, again=True).files[0]
    assert (again.status, again.counts.rows, again.counts.duplicates) == ("imported", {"trades": 0, "ticker": 0}, 9)
    assert {k: v for k, v in faults.tree(lake).items() if "/imports/" not in k} == {
        k: v for k, v in before.items() if "/imports/" not in k}
    write(other, [line(i) for i in range(11)])
    grown = import_files(other, lake, options=BINANCE).files[0]
    assert (grown.counts.rows, grown.counts.duplicates) == ({"trades": 1, "ticker": 1}, 9)
    renamed = import_files(other, lake, options=replace(BINANCE, exchange="other")).files[0]
    assert renamed.status == "imported" and renamed.counts.duplicates == 0


BOOK = "exchange,symbol,timestamp,local_timestamp," + ",".join(
    f"{side}[{k}].{what}" for k in range(25) for side in ("asks", "bids") for what in ("price", "amount"))


def test_the_same_books_in_another_way_are_refused(tmp_path):
    us, lake = 1_735_689_600_000_000, tmp_path / "bronze"
    levels = ",".join(f"{100 + k},1,{99 - k},1" for k in range(25))
    file = tmp_path / "x_book_snapshot_25.csv"
    file.write_text(f"{BOOK}\n" + "".join(f"e,S,{us + i},{us + i},{levels}\n" for i in range(3)))
    assert import_files(file, lake, options=Options(depth=5)).files[0].counts.rows == {"orderbook": 3}
    before = rows_of_books(lake)
    for again in (False, True):
        error = import_files(file, lake, options=Options(depth=10), again=again).files[0].error
        assert isinstance(error, ConflictError) and "with --depth 5" in str(error)
    assert rows_of_books(lake) == before == 3
    assert import_files(file, lake, options=Options(depth=10, symbol="T")).success         # another place
    shutil.rmtree(lake / "orderbook/exchange=e/symbol=S")
    assert import_files(file, lake, options=Options(depth=10)).files[0].counts.rows == {"orderbook": 3}


def rows_of_books(lake: Path) -> int:
    return sum(pl.read_parquet(p).height for p in (lake / "orderbook").rglob("*.parquet"))


def test_known_files_whose_rows_are_gone(tmp_path):
    lake, path = tmp_path / "bronze", write(tmp_path / "files/a.csv", [line(i) for i in range(60)])
    import_files(path, lake, options=BINANCE)
    before = rows(lake)
    (day,) = (lake / "trades").rglob("day=09")
    shutil.rmtree(day)
    one = import_files(path, lake, options=BINANCE).files[0]
    assert one.status == "known" and one.notes == ["1 of its 4 files are gone: --again brings their rows back"]
    assert import_files(path, lake, options=BINANCE, again=True).success and rows(lake) == before
    for channel in ("trades", "ticker"): shutil.rmtree(lake / channel)
    assert import_files(path, lake, options=BINANCE).files[0].status == "imported" and rows(lake) == before
    for p in list((lake / "trades").rglob("*.parquet")): p.rename(p.with_name("merged.parquet"))    # as compaction does
    one = import_files(path, lake, options=BINANCE).files[0]
    assert (one.status, one.notes) == ("known", [])


def test_checksums_are_skipped_and_empty_files_said(tmp_path, capsys):
    path = write(tmp_path / "files/a.csv", [])
    (path.parent / "a.zip.CHECKSUM").write_text("0123  a.zip\n")
    report = import_files(path.parent, tmp_path / "bronze", options=BINANCE, format="plain")
    assert [f.status for f in report.files] == ["imported", "skipped"] and report.success
    assert report.files[0].notes[0].startswith("no row") and report.files[1].notes == ["a checksum, no data"]


def test_a_file_that_grows_while_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "files/a.csv", [line(i) for i in range(30)])
    def growing(p, kind, options):
        for k, batch in enumerate(plain_source.read(p, kind, options)):
            if k == 1: p.write_text(p.read_text() + line(40) + "\n")
            yield batch
    monkeypatch.setattr(plain_source, "FORMAT", replace(plain_source.FORMAT, read=growing))
    report = import_files(path, tmp_path / "bronze", options=BINANCE)
    assert isinstance(report.failed[0].error, InputChangedError)
    assert not list((tmp_path / "bronze/trades").rglob("*.parquet"))


def test_dry_run_writes_nothing(src, tmp_path):
    "So the second file does not see the first one's rows."
    report = import_files(src, tmp_path / "bronze", options=BINANCE, dry_run=True)
    assert report.rows == {"ticker": 12 + 20 + 6, "trades": 48 + 80 + 25} and not (tmp_path / "bronze").exists()
    assert {f.status for f in report.files} == {"would import"}


def test_one_import_at_a_time(src, tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "LOCK_WAIT_S", 0.05)
    folder = tmp_path / "bronze/.daedalus/imports"
    folder.mkdir(parents=True)
    with Lock(folder / "lock", stays=True), pytest.raises(ConflictError): import_files(src, tmp_path / "bronze")


def test_amounts_in_contracts(tmp_path):
    (tmp_path / "sizes.yaml").write_text("binance: {BTC/USDT: {size: 100, type: inverse}}\n")
    path = write(tmp_path / "files/a.csv", [line(0, price=50_000, size=3)])
    import_files(path, tmp_path / "bronze", options=replace(BINANCE, contracts=tmp_path / "sizes.yaml"))
    row = pl.read_parquet(next((tmp_path / "bronze/trades").rglob("*.parquet")), hive_partitioning=False)
    assert row.select("amount", "contracts", "contract_type").row(0) == (300 / 50_000, 3.0, "inverse")


# ---- the machine stops

def test_dies_at_every_door(src, whole, tmp_path):
    "Killed before the n-th change of the disk: readers see whole partitions, and the next import ends as undisturbed."
    with faults.standing(faults.Door()) as door: import_files(src, tmp_path / "all", options=BINANCE)
    assert faults.differences(tmp_path / "all", whole) == []
    calls = len(door.sites)
    step = 1 if NIGHTLY else max(1, calls // 9)
    for n in range(1, calls + 1, step):
        lake = tmp_path / f"at{n}"
        with faults.standing(faults.Door(n)) as door, pytest.raises(faults.Died):
            import_files(src, lake, options=BINANCE)
        assert door.reached
        assert import_files(src, lake, options=BINANCE).success
        assert faults.differences(lake, whole) == [], (n, door.sites[-1])
        assert rows(lake) == rows(whole)


def test_refused_at_any_door(src, whole, tmp_path):
    "A full disk at the n-th change: a file fails by a StorageError, others go on, and the next import brings the rest."
    with faults.standing(faults.Door()) as door: import_files(src, tmp_path / "all", options=BINANCE)
    calls = len(door.sites)
    for n in range(2, calls + 1, 7 if NIGHTLY else calls // 6):
        lake = tmp_path / f"at{n}"
        with faults.standing(faults.Door(n, errno.ENOSPC)):
            try: failed = import_files(src, lake, options=BINANCE).failed
            except StorageError: failed = []                    # the ledger's folder could not be made
        assert all(isinstance(f.error, StorageError) for f in failed), [f.error for f in failed]
        assert import_files(src, lake, options=BINANCE).success and lakes.leftovers(lake) == []
        for channel in ("trades", "ticker"): assert rows(lake, channel) == rows(whole, channel), n
        assert aside(lake).equals(aside(whole))


def child(src: Path, lake: Path) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "POLARS_MAX_THREADS": "2"}
    return subprocess.Popen([sys.executable, str(HERE / "plain_source.py"), str(src), str(lake)], env=env, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_killed_at_random(src, whole, tmp_path):
    first = child(src, tmp_path / "first")
    assert first.stdout.readline() == "ready\n"
    began = time.monotonic()
    assert first.communicate("go\n")[0] == "done\n"
    seconds, dice, midst, waiting = time.monotonic() - began, random.Random(8), 0, child(src, tmp_path / "k0")
    for k in range(KILLS):
        lake, one = tmp_path / f"k{k}", waiting
        assert one.stdout.readline() == "ready\n"
        one.stdin.write("go\n")
        one.stdin.flush()
        if k < KILLS - 1: waiting = child(src, tmp_path / f"k{k + 1}")
        time.sleep(dice.uniform(0, 0.9 * seconds))
        one.send_signal(signal.SIGKILL)
        midst += "done" not in one.communicate()[0]
        assert import_files(src, lake, options=BINANCE).success
        assert faults.differences(lake, whole) == []
    assert midst > KILLS // 3


# ---- reading

CELLS = st.sampled_from(["1", "2.5", "-3e2", "", "x", "1_0", " 1", '"4"', '"5,6"', "nan"])


@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=12), st.integers(1, 5))
def test_cells_against_a_slow_truth(tmp_path_factory, table, batch_rows):
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_text("a,b,c\n" + "".join(",".join(r) + "\n" for r in table))
    good, bad = [], []
    for row, fields in enumerate((next(csv_module.reader([",".join(r)]), []) for r in table), 2):
        if fields in ([], [""]): continue
        if len(fields) != 3: bad.append((row, "ragged_line"))
        elif any(_wrong(f) for f in fields[:2]): bad.append((row, "bad_cell"))
        else: good.append((row, *(float(f) if f else None for f in fields[:2])))
    found = list(csv_batches(path, {"a": pl.Float64, "b": pl.Float64}, batch_rows=batch_rows))
    assert str([r for _, g, _ in found for r in g.rows()]) == str(good)         # nan is not itself
    assert [r[:2] for _, _, b in found for r in b.rows()] == bad
    assert all(g.height + b.height <= batch_rows for _, g, b in found)


def _wrong(cell: str) -> bool: return cell in ("x", "1_0", " 1", "5,6")


def test_bad_rows_are_cut():
    assert len(bad_rows([(1, "long", None, "x" * 9000)])["value"][0]) == 500


# ---- the command line

def test_exit_codes(src, tmp_path, capsys):
    lake = ["--output", str(tmp_path / "bronze"), "--exchange", "binance"]
    assert main(["import", str(src / "a.csv"), *lake]) == 0
    assert main(["import", "plain", str(src / "c.csv"), *lake]) == 1
    said = capsys.readouterr()
    assert "BadDataError" in said.out and "1 of 1 files failed" in said.err
    assert main(["import", "plain", str(src / "c.csv"), *lake, "--max-bad", "0.2"]) == 0
    assert main(["import", "plain", *lake, str(src / "a.csv"), "--dry-run"]) == 0       # files behind flags, too
    assert main(["import", str(src / "none.csv"), *lake]) == 2
    assert main(["import", str(src / "a.csv"), "--output", "s3://x/y"]) == 2
    capsys.readouterr()
    assert main(["inspect", str(src / "a.csv")]) == 0
    said = capsys.readouterr().out
    assert "--symbol SYMBOL" not in said
    assert "plain (Plain trades and quotes)" in said and "--exchange EXCHANGE" in said and "2024-08-08" in said


def test_inspect_says_what_is_lacking_and_goes_on(src, tmp_path, capsys):
    (tmp_path / "a.csv").write_bytes(b"")
    shutil.copy(src / "a.csv", tmp_path / "b.csv")
    assert main(["inspect", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "CorruptFileError" in said.out and "Plain trades" in said.out and "1 of 2 files cannot be read" in said.err
    assert main(["import", "tradis", str(src / "a.csv"), "--output", str(tmp_path / "x")]) == 2
    assert "Did you mean 'tardis'?" in capsys.readouterr().err
    odd = tmp_path / "odd.csv"
    odd.write_text("exchange,symbol,timestamp,local_timestamp,id,side,price,amount\ne,S,1735689600000000,"
                   "1735689600000000,x,buy,1,2\n")
    assert inspect_file(odd).command.endswith("--output DIR --channel CHANNEL")
    capture = tmp_path / "capture"
    capture.write_text('1723161254000000000 {"e":"trade","E":1723161255000,"s":"BTCUSDT","t":1,"p":"1","q":"1",'
                       '"T":1723161255000,"m":true,"M":true}\n')
    assert "columns" not in repr(inspect_file(capture))


# ---- recorded files

@pytest.fixture
def raw() -> Path:
    if not RAW.is_dir(): pytest.skip("original files (../shared/data/raw) are not on this machine")
    return RAW


def test_recorded_files_are_recognised(raw):
    kinds = {p.name: [(n, k) for n, _, k in inspect_file(p).formats]
             for p in sorted(raw.rglob("*")) if p.is_file() and p.name != "order_book.ndjson.tar.xz"}
    assert all(len(found) == 1 for found in kinds.values()), kinds
    assert kinds["bitmex_trades_XBTUSD.csv"][0][0] == "tardis" and kinds["trades.json.gz"] == [("ccxt", "trades")]
    assert kinds["websocket_btcusdt_20240808.gz"] == [("binance_ws", "spot")]


def test_recorded_files_are_imported(raw, tmp_path):
    files = [p for p in raw.rglob("*") if p.suffix == ".csv" and "agg" not in p.name] + [raw / "ccxt/trades.json.gz"]
    options = Options(exchange=None, channel="trades")
    report = import_files(files, tmp_path / "bronze", options=options)
    assert [f.file for f in report.failed] == [str(raw / "ccxt/trades.json.gz")]        # names no exchange
    assert import_files(raw / "ccxt/trades.json.gz", tmp_path / "bronze", options=Options(exchange="binance")).rows == {
        "trades": 12_477}
    assert report.rows == {"orderbook": 21, "ticker": 10, "trades": 10}
    assert {f.status for f in import_files(files[:-1], tmp_path / "bronze", options=options).files} == {"known"}
