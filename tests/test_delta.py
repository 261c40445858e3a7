"""Delta tables: what each mode leaves, whoever else writes and whenever a process dies."""
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.io.plugins import register_io_source

pytest.importorskip("deltalake", reason="pip install 'daedalus_etl[delta]'")

from delta_jobs import UTC_US, append_batch, dataset, part, rows
from deltalake import DeltaTable

from daedalus_etl.core.enums import DataFormat, WriteMode
from daedalus_etl.core.errors import (
    BadDataError, ConfigError, ConflictError, EmptyMatchError, InputNotFoundError, PartitionError, SchemaError)
from daedalus_etl.core.filters import FilterSpec
from daedalus_etl.storage import delta, delta_files
from daedalus_etl.storage.dataset import scan, scan_partition
from daedalus_etl.storage.delta import (
    history, last_transaction, read_delta, replace_partitions, vacuum_delta, write_delta)
from daedalus_etl.storage.partitions import Partition, discover

APPEND, OVERWRITE, PARTITION, MERGE = (WriteMode(m) for m in ("append", "overwrite", "overwrite_partition", "merge"))
CANARIES = ("O'Neil", "a' OR '1'='1", "x'; DROP TABLE t; --", 'say "hi"', "BTC/USDT:USDT", "50%", "a=b", "ünï c", "\\",
            "?#&+")


def content(root, **kwargs) -> list[tuple]:
    "What another reader sees: (symbol, day, trade_id, value), sorted."
    frame = pl.read_delta(str(root), **kwargs)
    return sorted(frame.select("symbol", "day", "trade_id", "value").rows(), key=str)


def tuples(*frames) -> list[tuple]:
    return sorted((r for f in frames for r in f.select("symbol", "day", "trade_id", "value").rows()), key=str)


def parquet(root) -> set[str]:
    return {str(p.relative_to(root)) for p in Path(root).rglob("*.parquet") if "_delta_log" not in p.parts}


@pytest.fixture
def root(tmp_path):
    "A table with two symbols over two days."
    root = tmp_path / "t"
    write_delta(start(), root, APPEND, partition_cols=["symbol", "day"])
    return root


def start() -> pl.DataFrame: return pl.concat([rows("BTC", 8), rows("BTC", 9), rows("O'Neil", 8), rows("O'Neil", 9)])


# ---- the modes

NEW = pl.concat([rows("BTC", 9, ("2", "3"), 1.0, hour=13), rows("ETH", 9, ("1",), 1.0)])


@pytest.mark.parametrize("mode, kept", [
    (APPEND, lambda r: True),
    (OVERWRITE, lambda r: False),
    (PARTITION, lambda r: r[:2] != ("BTC", 9)),
    (MERGE, lambda r: r[:3] != ("BTC", 9, "2")),
])
def test_modes(root, mode, kept):
    before = DeltaTable(str(root)).version()
    version = write_delta(NEW.lazy(), root, mode)
    assert version == before + 1 == DeltaTable(str(root)).version()
    assert content(root) == sorted([r for r in tuples(start()) if kept(r)] + tuples(NEW), key=str)


@pytest.mark.parametrize("mode", list(WriteMode))
def test_modes_make_the_table(tmp_path, mode):
    write_delta(NEW, tmp_path / "new", mode, partition_cols=["symbol", "day"])
    assert content(tmp_path / "new") == tuples(NEW)
    assert DeltaTable(str(tmp_path / "new")).metadata().partition_columns == ["symbol", "day"]


@pytest.mark.parametrize("mode, left", [(APPEND, 8), (OVERWRITE, 0), (PARTITION, 8), (MERGE, 8)])
def test_empty_frame(root, mode, left):
    write_delta(NEW.clear(), root, mode, transaction=("job", 1))
    assert len(content(root)) == left and last_transaction(root, "job") == 1


def test_named_partitions_are_emptied(root):
    named = [Partition.of(symbol="O'Neil", day=8), Partition.of(symbol="BTC", day=9), Partition.of(symbol="no", day=1)]
    replace_partitions(rows("BTC", 9, ("7",)), root, named)
    assert content(root) == tuples(rows("BTC", 8), rows("BTC", 9, ("7",)), rows("O'Neil", 9))
    with pytest.raises(PartitionError, match="'day': 8"): replace_partitions(rows("BTC", 8), root, named)
    with pytest.raises(SchemaError, match="as in the table"):
        replace_partitions(rows(), root, [Partition.of(symbol="BTC")])
    with pytest.raises(PartitionError, match="expected the keys"):
        replace_partitions(rows(), root, [named[0], Partition.of(symbol="BTC")])
    with pytest.raises(ConfigError): replace_partitions(rows(), root, [])


def test_overwrite_changes_columns(root):
    new = NEW.with_columns(value=pl.lit(1, pl.UInt8), naive=pl.lit(datetime(2024, 8, 8))).drop("trade_id")
    write_delta(new, root, OVERWRITE)
    back = read_delta(root).collect()
    assert dict(back.schema) == dict(new.schema) and back.height == new.height
    assert read_delta(root, version=1).collect().height == 8
    with pytest.raises(SchemaError, match="for life"): write_delta(new, root, OVERWRITE, partition_cols=["day"])
    with pytest.raises(SchemaError, match="'day'"): write_delta(new.drop("day"), root, OVERWRITE)


@pytest.mark.parametrize("mode", [APPEND, OVERWRITE, PARTITION])
def test_a_frame_is_read_once(root, mode):
    calls = []
    def source(_):
        calls.append(1)
        return rows("BTC", 8, value=float(len(calls)))
    write_delta(pl.LazyFrame({"x": [1]}).map_batches(source, schema=rows().schema), root, mode)
    assert calls == [1] and {r for r in content(root) if r[3]} == set(tuples(rows("BTC", 8, value=1.0)))


def test_more_partitions_than_open_files_and_rows_than_a_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(delta_files, "MAX_OPEN", 3)
    monkeypatch.setattr(delta_files, "ROW_GROUP_SIZE", 1000)
    monkeypatch.setattr(delta_files, "BUFFER_BYTES", 20_000)
    n = 50_000
    frame = pl.DataFrame({"v": range(n), "s": [str(i % 7) for i in range(n)]})
    write_delta(frame.lazy(), tmp_path / "t", APPEND, partition_cols=["s"])
    assert read_delta(tmp_path / "t").sort("v").collect().select("v", "s").equals(frame)
    assert len(DeltaTable(str(tmp_path / "t")).file_uris()) >= 7


@pytest.mark.parametrize("mode", [APPEND, OVERWRITE, PARTITION])
def test_a_failed_write_leaves_no_file(root, meanwhile, mode):
    before = parquet(root)
    def broken(batch): raise KeyError("boom")
    frame = pl.concat([rows("ETH").lazy(), rows("ETH").lazy().map_batches(broken, schema=rows().schema)])
    with pytest.raises((KeyError, pl.exceptions.ComputeError), match="boom"): write_delta(frame, root, mode)
    with pytest.raises(PartitionError): write_delta(pl.concat([rows("ETH"), rows("")]), root, mode)
    assert parquet(root) == before
    if mode is APPEND: return
    meanwhile(lambda: write_delta(rows("ETH", 9, ("t",)), root, APPEND))
    with pytest.raises(ConflictError): write_delta(NEW, root, mode)
    assert len(parquet(root)) == len(before) + 1


# ---- merge

def test_merge_whole_rows_null_keys_and_clocks(root):
    write_delta(rows("BTC", 8, (None,), 5.0), root, APPEND)
    later = rows("BTC", 8, ("2",), 9.0, hour=13)
    write_delta(later, root, MERGE)                                          # newer: replaces
    write_delta(rows("BTC", 8, ("2",), 7.0), root, MERGE)                    # older than the table's: stays out
    write_delta(rows("BTC", 8, ("1", None), 6.0).with_columns(value=pl.lit(None, pl.Float64)), root, MERGE)
    mine = {r[2]: r[3] for r in content(root) if r[:2] == ("BTC", 8)}
    assert mine == {"1": None, "2": 9.0, None: None} and len(content(root)) == 9


def test_merge_equal_clock_replaces_and_null_clock_is_not_later(root):
    write_delta(rows("BTC", 8, ("1",), 3.0), root, MERGE)
    write_delta(rows("BTC", 9, ("1",), 4.0).with_columns(capture_ts=pl.lit(None, UTC_US)), root, MERGE)
    write_delta(rows("BTC", 9, ("1",), 5.0, hour=1), root, MERGE)
    values = {r[:3]: r[3] for r in content(root)}
    assert values["BTC", 8, "1"] == 3.0 and values["BTC", 9, "1"] == 5.0


@pytest.mark.parametrize("ids", [("5", "5"), (None, None), ("1", "1")], ids=["new", "null", "present"])
def test_merge_repeated_key(root, ids):
    with pytest.raises(BadDataError, match=f"'trade_id': {ids[0]!r}"): write_delta(rows(ids=ids), root, MERGE)
    assert content(root) == tuples(start())


def test_merge_same_id_in_two_partitions_is_two_rows(root):
    write_delta(pl.concat([rows("BTC", 8, ("1",), 1.0), rows("O'Neil", 8, ("1",), 2.0)]), root, MERGE)
    values = {r[:3]: r[3] for r in content(root)}
    assert (values["BTC", 8, "1"], values["O'Neil", 8, "1"], values["BTC", 9, "1"]) == (1.0, 2.0, 0.0)


def test_merge_keys_of_books_and_own_keys(tmp_path):
    books = rows("BTC", 8, ("a", "b")).drop("trade_id").with_columns(nonce=pl.Series([None, 7], dtype=pl.Int64))
    write_delta(books, tmp_path / "b", APPEND, partition_cols=["symbol"])
    write_delta(books.with_columns(value=pl.lit(2.0)), tmp_path / "b", MERGE)
    assert pl.read_delta(str(tmp_path / "b"))["value"].to_list() == [2.0, 2.0]
    write_delta(books.with_columns(value=pl.lit(3.0)).tail(1), tmp_path / "b", MERGE, key_cols=["nonce"])
    assert sorted(pl.read_delta(str(tmp_path / "b"))["value"]) == [2.0, 3.0]
    with pytest.raises(SchemaError, match="'nope'"): write_delta(books, tmp_path / "b", MERGE, key_cols=["nope"])
    with pytest.raises(SchemaError, match="'value'.*whole|whole.*'value'"):
        write_delta(books.drop("value"), tmp_path / "b", MERGE)


def test_merge_without_partitions(tmp_path):
    write_delta(rows(), tmp_path / "flat", APPEND)
    write_delta(rows(ids=("2", "3"), value=1.0, hour=13), tmp_path / "flat", MERGE)
    assert [r[2:] for r in content(tmp_path / "flat")] == [("1", 0.0), ("2", 1.0), ("3", 1.0)]
    with pytest.raises(ConfigError, match="no partition columns"): write_delta(rows(), tmp_path / "flat", PARTITION)


# ---- values of all kinds

@pytest.mark.parametrize("mode", list(WriteMode))
def test_quoting_canaries(tmp_path, mode):
    root, frame = tmp_path / "q", pl.concat([rows(s) for s in CANARIES])
    write_delta(frame, root, APPEND, partition_cols=["symbol", "day"])
    assert set(DeltaTable(str(root)).to_pyarrow_table()["symbol"].to_pylist()) == set(CANARIES)
    for symbol in CANARIES[:4] if mode is not OVERWRITE else CANARIES:
        new = rows(symbol, 8, ("1", "2"), 9.0)
        if mode is APPEND: replace_partitions(new.clear(), root, [Partition.of(symbol=symbol, day=8)])
        write_delta(new, root, mode)
        others = [] if mode is OVERWRITE else [r for r in tuples(frame) if r[0] != symbol]
        assert content(root) == sorted(others + tuples(new), key=str)
        write_delta(frame, root, OVERWRITE)


@given(st.lists(st.text("ab'\"\\;%-=/ ", min_size=1, max_size=6), min_size=2, max_size=2, unique=True))
def test_literal_is_the_value(values):
    from daedalus_etl.storage.delta_types import sql_literal
    one, other = (sql_literal(v) for v in values)
    assert one != other and one[0] == one[-1] == "'" and one[1:-1].replace("''", "'") == values[0]
    assert "'" not in one[1:-1].replace("''", "")


@pytest.mark.parametrize("bad", [None, "", ".", "a\0b"])
@pytest.mark.parametrize("mode", list(WriteMode))
def test_no_partition_of_that_name(root, bad, mode):
    frame = pl.concat([rows("BTC"), rows("BTC").with_columns(symbol=pl.lit(bad, pl.String))])
    frame = frame.with_columns(trade_id=pl.Series(["1", "2", "3", "4"]))
    with pytest.raises(PartitionError, match="column 'symbol', row 2:"): write_delta(frame, root, mode)
    assert content(root) == tuples(start())


TYPES = {
    "u8": pl.Series([0, 255, None], dtype=pl.UInt8), "u16": pl.Series([0, 65535, None], dtype=pl.UInt16),
    "u32": pl.Series([0, 2**32 - 1, None], dtype=pl.UInt32), "u64": pl.Series([0, 2**64 - 1, None], dtype=pl.UInt64),
    "i8": pl.Series([-128, 127, None], dtype=pl.Int8), "f32": pl.Series([0.1, -0.0, None], dtype=pl.Float32),
    "enum": pl.Series(["ok", "one_sided", None], dtype=pl.Enum(["one_sided", "ok", "empty"])),
    "cat": pl.Series(["x", "y", None], dtype=pl.Categorical), "flag": pl.Series([True, False, None]),
    "utc": pl.Series([datetime(2024, 8, 8, 1, 2, 3, 456789, UTC)] * 3, dtype=UTC_US),
    "berlin": pl.Series([datetime(2024, 8, 8, tzinfo=UTC)] * 3, dtype=pl.Datetime("ms", "Europe/Berlin")),
    "naive": pl.Series([datetime(2024, 8, 8, 1, 2, 3, 4)] * 3, dtype=pl.Datetime("us")),
    "day": pl.Series([date(2024, 8, 8)] * 3), "dec": pl.Series([Decimal("1.50")] * 3, dtype=pl.Decimal(20, 2)),
    "bids": pl.Series([[{"price": 1.0, "size": 2.0}], [], None],
                      dtype=pl.List(pl.Struct({"price": pl.Float64, "size": pl.Float64}))),
    "bytes": pl.Series([b"\0", b"", None]),
}


@pytest.mark.parametrize("mode", [APPEND, OVERWRITE, MERGE])
@pytest.mark.parametrize("name", TYPES)
def test_types_come_back(tmp_path, name, mode):
    frame = pl.DataFrame({"k": [1, 2, 3], "x": TYPES[name]})
    write_delta(frame, tmp_path / "t", APPEND)
    write_delta(frame, tmp_path / "t", mode, key_cols=["k"])
    back = read_delta(tmp_path / "t").sort("k").collect().gather_every(2 if mode is APPEND else 1)
    assert back.schema == frame.schema and back.equals(frame, null_equal=True)


def test_types_come_back_from_a_dataset(tmp_path):
    home, output = dataset(tmp_path)
    frame = pl.DataFrame(TYPES).drop("day")
    home.replace(part("BTC"), frame.lazy(), lambda: {"key": "k"}, output)
    back = read_delta(home.dataset.root).collect().drop("exchange", "symbol", "day")
    assert back.schema == frame.schema and back.equals(frame)


@pytest.mark.parametrize("dtype", [
    pl.Datetime("ns", "UTC"), pl.Duration("us"), pl.Time(), pl.Null(), pl.Int128(), pl.Array(pl.Float64, 2),
    pl.List(pl.UInt16), pl.Struct({"a": pl.Enum(["b"])})], ids=str)
def test_lossy_types_are_refused(tmp_path, dtype):
    frame = pl.DataFrame(schema={"x": dtype})
    with pytest.raises(SchemaError, match="column 'x'"): write_delta(frame, tmp_path / "t", APPEND)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("mode", [APPEND, PARTITION, MERGE])
@pytest.mark.parametrize("value", [
    pl.lit(1), pl.lit("1.5"), pl.lit(1.5, pl.Float32), pl.lit("a", pl.Enum(["a"]))], ids=str)
def test_another_type_is_refused(root, mode, value):
    with pytest.raises(SchemaError, match="column 'value'.*Float64, as in the table"):
        write_delta(rows().with_columns(value=value), root, mode)
    assert content(root) == tuples(start())


def test_columns_come_and_go(root):
    write_delta(rows("ETH").with_columns(new=pl.lit(7, pl.UInt16)).drop("value"), root, APPEND)
    back = read_delta(root).collect()
    assert back.schema["new"] == pl.UInt16
    assert back.filter(symbol="ETH").select("value", "new").rows() == [(None, 7)] * 2
    assert back.filter(pl.col("symbol") != "ETH")["new"].null_count() == 8


def test_an_error_of_the_frame_stays_what_it_is(root):
    def source(columns, predicate, n, size):
        yield rows()
        raise EmptyMatchError("the input is gone")
    frame = register_io_source(source, schema=rows().schema)
    for mode in (APPEND, OVERWRITE):
        with pytest.raises((EmptyMatchError, pl.exceptions.ComputeError), match="the input is gone"):
            write_delta(frame, root, mode)
    assert content(root) == tuples(start())


# ---- transactions

def test_transactions(root):
    job = lambda n, **kw: write_delta(rows("ETH", ids=(str(n),)), root, APPEND, transaction=("job", n), **kw)
    assert [job(3) is None, job(3) is None, job(4) is None, job(3) is None, job(4) is None] == [
        False, True, False, True, True]
    assert [r[2] for r in content(root) if r[0] == "ETH"] == ["3", "4"]
    with pytest.raises(ConflictError, match="does not show"): job(2)         # never written: silence would lose it
    assert last_transaction(root, "job") == 4 and last_transaction(root, "other") is None
    assert last_transaction(root / "none", "job") is None


@pytest.mark.parametrize("bad", [("", 1), ("job", -1), ("job", 2**63), ("job", "1"), (None, 1)])
def test_bad_transaction(root, bad):
    with pytest.raises(ConfigError, match="transaction"): write_delta(rows(), root, APPEND, transaction=bad)


@pytest.mark.parametrize("mode", [OVERWRITE, PARTITION, MERGE])
def test_transactions_in_other_modes(root, mode):
    assert write_delta(NEW, root, mode, transaction=("job", 1)) is not None
    write_delta(rows("BTC", 9, ("9",)), root, APPEND)
    assert write_delta(NEW, root, mode, transaction=("job", 1)) is None
    assert ("BTC", 9, "9", 0.0) in content(root)


# ---- others at the same time: `meanwhile` commits between our look at the table and our commit

@pytest.fixture
def meanwhile(monkeypatch):
    "Let something happen once after the table was opened for writing."
    def arrange(action):
        ready, done = delta.ready_table, []
        def later(*args, **kwargs):
            table = ready(*args, **kwargs)
            if not done:
                done.append(1)
                action()
            return table
        monkeypatch.setattr(delta, "ready_table", later)
    return arrange


@pytest.mark.parametrize("mode, other, commits", [
    (APPEND, "append", True), (APPEND, "partition", True), (APPEND, "overwrite", True),
    (OVERWRITE, "append", False), (OVERWRITE, "partition", False), (OVERWRITE, "overwrite", False),
    (PARTITION, "append", False), (PARTITION, "partition", False), (PARTITION, "elsewhere", True),
    (MERGE, "append", False), (MERGE, "partition", False), (MERGE, "elsewhere", True),
])
def test_concurrent_commits(root, meanwhile, mode, other, commits):
    theirs = rows("O'Neil" if other == "elsewhere" else "BTC", 8, ("t",), 8.0)
    modes = {"append": APPEND, "overwrite": OVERWRITE}
    meanwhile(lambda: write_delta(theirs, root, modes.get(other, PARTITION)))
    mine = rows("BTC", 8, ("m",), 9.0)
    if commits: write_delta(mine, root, mode)
    else:
        with pytest.raises(ConflictError, match="run again") as e: write_delta(mine, root, mode)
        assert e.value.exit_code == 3
    found = content(root)
    assert set(tuples(theirs)) <= set(found)
    assert (("BTC", 8, "m", 9.0) in found) is commits


@pytest.mark.parametrize("mode", [APPEND, OVERWRITE, PARTITION])
def test_the_same_transaction_meanwhile(root, meanwhile, mode):
    again = lambda: write_delta(NEW, root, mode, transaction=("job", 1))
    meanwhile(again)
    assert again() is None
    assert content(root).count(("ETH", 9, "1", 1.0)) == 1


# ---- processes

def spawn(*args) -> subprocess.Popen:
    "One of the jobs in a process of its own."
    return subprocess.Popen([sys.executable, Path(__file__).with_name("delta_jobs.py"), *map(str, args)],
                            stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


def kill_at_random(jobs: list[tuple], *, longest: float, seed: int) -> None:
    "Start the jobs, each in its process, and kill each at a random moment after all are at work."
    rng, started = random.Random(seed), [spawn(*job) for job in jobs]
    for p in started: p.stdout.readline()
    for p in started:
        time.sleep(rng.uniform(0, longest))
        p.send_signal(signal.SIGKILL)
        assert p.wait(10) == -signal.SIGKILL, "it ended before it could be killed"
        p.stdout.close()


def test_exactly_once_through_kills(tmp_path):
    root = tmp_path / "t"
    for i in range(4): kill_at_random([("append", root, 100_000)] * 3, longest=0.3, seed=i)
    last = last_transaction(root, "job")
    assert last > 0
    assert [append_batch(root, n) is None for n in range(last - 2, last + 2)] == [True, True, True, False]
    assert sorted(r[2] for r in content(root)) == sorted(f"{n}-{x}" for n in range(last + 2) for x in "ab")


def test_exactly_once_with_two_racing_processes(tmp_path):
    root = tmp_path / "t"
    both = [spawn("append", root, 25) for _ in range(2)]
    for p in both: p.communicate(timeout=60)
    assert [p.returncode for p in both] == [0, 0]
    assert sorted(r[2] for r in content(root)) == sorted(f"{n}-{x}" for n in range(25) for x in "ab")


def test_data_and_facts_never_disagree_through_kills(tmp_path):
    home, _ = dataset(tmp_path)
    for i in range(1, 40):              # four rounds; on a busy machine as many as it takes until something was written
        kill_at_random([("replace", tmp_path, 10 * i + k) for k in range(3)], longest=0.3, seed=i)
        if not any(home.dataset.root.glob("_delta_log/*.json")): continue
        table = read_delta(home.dataset.root).collect()
        for day in range(1, 8):
            facts, found = home.footer(part(day=day)), table.filter(day=day)["value"].to_list()
            assert found == ([int(facts["key"])] * int(facts["rows"]) if facts else [])
        if i >= 4 and home.footer(part(day=1)): break
    assert home.footer(part(day=1))
    vacuum_delta(home.dataset.root, retention_hours=0, dry_run=False)
    assert len(parquet(home.dataset.root)) == sum(len(home.files(part(day=d))) for d in range(1, 8))


@pytest.mark.parametrize("keys", [("same", "same"), ("one", "two")])
def test_racing_runs_leave_one_file_a_partition(tmp_path, keys):
    home, go = dataset(tmp_path)[0], tmp_path / "go"
    both = [spawn("once", tmp_path, k, go) for k in keys]
    for p in both: p.stdout.readline()
    go.touch()
    said = [p.communicate(timeout=60)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    if keys[0] == keys[1]: assert said == ["", ""]
    table = read_delta(home.dataset.root).collect()
    for day in range(1, 9):
        assert len(home.files(part(day=day))) == 1
        assert table.filter(day=day)["value"].to_list() == [home.footer(part(day=day))["key"]]


# ---- a dataset of runs

def test_threads_write_disjoint_partitions(tmp_path):
    home, output = dataset(tmp_path)
    def work(i):
        for key in ("a", "b"):
            home.replace(part(f"S{i}"), pl.LazyFrame({"value": [i]}), lambda: {"key": f"{i}{key}"}, output)  # noqa: B023
    with ThreadPoolExecutor(4) as pool: list(pool.map(work, range(12)))
    assert sorted(read_delta(home.dataset.root).collect()["value"]) == list(range(12))
    assert all(home.footer(part(f"S{i}")) == {"key": f"{i}b"} for i in range(12))


@pytest.mark.parametrize("symbol", CANARIES)
def test_dataset_replaces_odd_symbols(tmp_path, symbol):
    home, output = dataset(tmp_path)
    for n in range(3): home.replace(part(symbol), pl.LazyFrame({"value": [n]}), lambda n=n: {"key": str(n)}, output)
    home.replace(part("BTC"), pl.LazyFrame({"value": [9]}), lambda: {"key": "9"}, output)
    found = read_delta(home.dataset.root).select("symbol", "value").collect()
    assert sorted(found.rows()) == sorted([(symbol, 2), ("BTC", 9)])
    assert home.footer(part(symbol)) == {"key": "2"}
    theirs = DeltaTable(str(home.dataset.root)).to_pyarrow_table()["symbol"].to_pylist()
    assert sorted(theirs) == sorted([symbol, "BTC"])


def test_dataset_keeps_the_order_of_rows_and_the_footer_comes_last(tmp_path):
    home, output = dataset(tmp_path)
    seen = []
    def look(batch):
        seen.append(batch.height)
        return batch
    n = 300_000
    frame = pl.LazyFrame({"value": range(n), "symbol": "BTC"}).map_batches(look, streamable=True)
    got = home.replace(part(), frame, lambda: {"key": str(sum(seen))}, output)
    assert got[0] == n and home.footer(part()) == {"key": str(n)}
    assert read_delta(home.dataset.root).collect()["value"].is_sorted()


def test_dataset_equal_key_writes_nothing(tmp_path):
    home, output = dataset(tmp_path)
    write = lambda key, n: home.replace(part(), pl.LazyFrame({"value": [n]}), lambda: {"key": key}, output)
    write("k", 1)
    before = parquet(tmp_path), DeltaTable(str(home.dataset.root)).version()
    assert write("k", 1)[0] == 1
    assert (parquet(tmp_path), DeltaTable(str(home.dataset.root)).version()) == before
    write("l", 1)
    assert DeltaTable(str(home.dataset.root)).version() == before[1] + 1


@pytest.mark.parametrize("other, error", [("k2", None), ("k3", ConflictError)])
def test_dataset_replaced_between_stage_and_publish(tmp_path, other, error):
    home, output = dataset(tmp_path)
    home.replace(part(), pl.LazyFrame({"value": [1]}), lambda: {"key": "k1"}, output)
    staged = home.stage(part(), pl.LazyFrame({"value": [2]}), lambda: {"key": "k2"}, output)
    home.replace(part(), pl.LazyFrame({"value": [2]}), lambda: {"key": other}, output)
    if error:
        with pytest.raises(error, match="meanwhile"): staged.publish()
    else: staged.publish()
    staged.discard()
    assert home.footer(part()) == {"key": other} and len(home.files(part())) == 1
    assert len(parquet(tmp_path)) == 2                                       # the live one and the one it replaced


def test_dataset_columns_of_another_configuration(tmp_path):
    home, output = dataset(tmp_path)
    home.replace(part(day=8), pl.LazyFrame({"a": [1.0], "b": ["x"]}), lambda: {"key": "1"}, output)
    home.replace(part(day=9), pl.LazyFrame({"c": [2], "a": [2.0]}), lambda: {"key": "2"}, output)
    got = read_delta(home.dataset.root).sort("day").select("day", "a", "b", "c").collect()
    assert got.rows() == [(8, 1.0, "x", None), (9, 2.0, None, 2)]
    with pytest.raises(SchemaError, match="column 'a'"):
        home.replace(part(day=9), pl.LazyFrame({"a": [1]}), lambda: {"key": "3"}, output)


def test_dataset_survives_other_writers_of_the_table(tmp_path):
    home, output = dataset(tmp_path)
    home.replace(part(day=8), pl.LazyFrame({"value": [1]}), lambda: {"key": "1"}, output)
    home.replace(part(day=9), pl.LazyFrame({"value": [1]}), lambda: {"key": "1"}, output)
    root = home.dataset.root
    write_delta(read_delta(root).filter(day=9).with_columns(value=pl.lit(5, pl.Int64)), root, PARTITION)
    assert home.footer(part(day=8)) == {"key": "1"} and home.footer(part(day=9)) is None
    with pytest.raises(ConflictError, match="no run wrote"):
        home.replace(part(day=9), pl.LazyFrame({"value": [1]}), lambda: {"key": "1"}, output)
    replace_partitions(read_delta(root).collect().clear(), root, [part(day=9)])
    home.replace(part(day=9), pl.LazyFrame({"value": [7]}), lambda: {"key": "7"}, output)
    assert home.footer(part(day=9)) == {"key": "7"}


# ---- reading

def test_time_travel(root):
    t1 = history(root)["time"][0]
    time.sleep(0.01)
    write_delta(NEW, root, OVERWRITE)
    assert read_delta(root, version=1).collect().height == 8 and read_delta(root, version=0).collect().height == 0
    assert read_delta(root, at=t1).collect().height == 8
    assert read_delta(root, at=t1.isoformat()).collect().height == 8
    assert read_delta(root, at=datetime(2100, 1, 1, tzinfo=UTC)).collect().height == NEW.height
    for bad in (3, -1, 99):
        with pytest.raises(InputNotFoundError, match="one of 0 to 2"): read_delta(root, version=bad)
    with pytest.raises(InputNotFoundError, match="version 0 was"): read_delta(root, at="2020-01-01T00:00:00Z")
    for bad in ("yesterday", "2024-08-08", datetime(2024, 8, 8)):
        with pytest.raises(ConfigError): read_delta(root, at=bad)
    with pytest.raises(ConfigError): read_delta(root, version=1, at=t1)
    with pytest.raises(InputNotFoundError, match="no Delta table"): read_delta(root.parent)


def test_vacuum_removes_only_what_the_latest_version_does_not_need(root):
    (root / "symbol=BTC/day=8/orphan.parquet").write_bytes(b"of a write that was killed")
    write_delta(NEW, root, PARTITION)
    before, live = parquet(root), {str(Path(f).relative_to(root)) for f in DeltaTable(str(root)).file_uris()}
    assert vacuum_delta(root) == [] and vacuum_delta(root, retention_hours=1) == []
    doomed = vacuum_delta(root, retention_hours=0)
    assert parquet(root) == before and len(doomed) == len(before - live) == 2
    assert vacuum_delta(root, retention_hours=0, dry_run=False) == doomed
    assert parquet(root) == live
    with pytest.raises(InputNotFoundError, match="vacuum"): read_delta(root, version=1)
    with pytest.raises(ConfigError): vacuum_delta(root, retention_hours=-1)


def test_folders_of_a_table_are_not_read_as_files(root):
    for place in (root, root / "symbol=BTC"):
        with pytest.raises(ConfigError, match="Delta table.*format delta.*DataFormat.DELTA"): discover(place)
        with pytest.raises(ConfigError): scan(place)
    with pytest.raises(ConfigError, match="read it as a whole|Read it as a whole"): discover(root, fmt=DataFormat.DELTA)
    loose = root.parent / "loose/symbol=BTC"
    loose.mkdir(parents=True)
    rows().write_parquet(loose / "a.parquet")
    pf = discover(loose.parent)[0]
    with pytest.raises(ConfigError): scan_partition(pf, fmt=DataFormat.DELTA)
    (loose.parent / "_delta_log").mkdir()
    with pytest.raises(ConfigError): scan_partition(pf)


def test_scan(root):
    both = scan(root, fmt="delta").collect()
    assert both.height == 8 and both.schema["day"] == pl.Int8
    assert scan(root, FilterSpec(symbol="BTC", day=9), fmt=DataFormat.DELTA).collect().height == 2
    assert scan(root, FilterSpec(start_date="2024-08-09"), fmt=DataFormat.DELTA).collect()["day"].to_list() == [9] * 4
    with pytest.raises(EmptyMatchError): scan(root, FilterSpec(symbol="ETH"), fmt=DataFormat.DELTA)
    with pytest.raises(SchemaError, match="no channel"): scan(root, channel="trades", fmt=DataFormat.DELTA)


def test_plain_files_are_not_taken_over(tmp_path):
    rows().write_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ConflictError, match="mine.parquet"): write_delta(rows(), tmp_path, APPEND)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.parquet"]


def test_tables_that_ask_more_of_a_writer_are_left_alone(root):
    table = DeltaTable(str(root))
    table.alter.add_constraint({"positive": "value >= 0"})
    for mode in WriteMode:
        with pytest.raises(SchemaError, match="a writer that knows"): write_delta(rows("BTC", value=-1.0), root, mode)
    assert content(root) == tuples(start())


def test_partition_columns_must_be_text_or_whole_numbers(tmp_path):
    for cols in (["value"], ["nope"]):
        with pytest.raises(SchemaError, match=cols[0]): write_delta(rows(), tmp_path / "t", APPEND, partition_cols=cols)


def test_duckdb_reads_it(root):
    duckdb = pytest.importorskip("duckdb")
    con = duckdb.connect(config={"autoinstall_known_extensions": False})
    try: con.execute("LOAD delta")
    except duckdb.Error: pytest.skip("DuckDB's delta extension is not installed")
    assert con.execute(f"SELECT count(*) FROM delta_scan('{root}')").fetchone() == (8,)
