"""`write`: four modes against a naive model, in one commit, evaluated once, and read by others without our help."""
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import lakes
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daedalus_etl.core.config import OutputConfig
from daedalus_etl.core.enums import WriteMode
from daedalus_etl.core.errors import BadDataError, ConfigError, ConflictError, PartitionError, SchemaError
from daedalus_etl.core.lazy import lazy_source
from daedalus_etl.storage import disk
from daedalus_etl.storage.commit import Dataset, quarantine_file
from daedalus_etl.storage.journal import journals, open_datasets
from daedalus_etl.storage.lineage import lineage
from daedalus_etl.storage.partitions import Partition
from daedalus_etl.storage.write import write

UTC_US = pl.Datetime("us", "UTC")
TYPES = {"capture_ts": UTC_US, "exchange": pl.String, "symbol": pl.String, "trade_id": pl.String, "price": pl.Float64}
START = datetime(2024, 8, 1, tzinfo=UTC)
APPEND, OVERWRITE, PARTITION, MERGE = WriteMode


def frame(*rows) -> pl.DataFrame:
    "Trades from (seconds since the first of August, symbol, id, price)."
    return pl.DataFrame([(START + timedelta(seconds=t), "binance", s, i, p) for t, s, i, p in rows], schema=TYPES,
                        orient="row")


def output(root, mode=PARTITION, **config) -> OutputConfig:
    return OutputConfig(name="t", path=Path(root) / "lake/silver/trades", mode=mode, **config)


def foreign(root) -> list[tuple]:
    "All rows as polars and DuckDB read them, without a word from us; both must agree."
    root = Path(root) / "lake/silver/trades"
    ours = pl.read_parquet(root, hive_partitioning=False).select(list(TYPES))
    theirs = duckdb.sql(f"select {', '.join(TYPES)} from read_parquet('{root}/**/*.parquet', hive_partitioning=false)")
    theirs = theirs.pl().cast(TYPES)
    assert sorted(map(repr, ours.rows())) == sorted(map(repr, theirs.rows()))
    return sorted(ours.rows(), key=repr)


def day_of(row): return row[2], row[0].date()


def model(rows: list[tuple], new: list[tuple], mode: WriteMode) -> list[tuple]:
    "What the dataset holds afterwards, in plain Python. `rows` and `new` are tuples in the order of TYPES."
    touched = {day_of(r) for r in new}
    if mode is OVERWRITE: return list(new)
    if mode is PARTITION: return [r for r in rows if day_of(r) not in touched] + list(new)
    if mode is APPEND: return rows + list(new)
    kept, coming = [], {(day_of(r), r[3]): r for r in new}
    for r in rows:
        n = coming.get((day_of(r), r[3]))
        if n is None or r[0] > n[0]: kept.append(r)
        if n is not None and r[0] > n[0]: del coming[day_of(r), r[3]]
    return kept + list(coming.values())


row = st.tuples(st.integers(0, 3 * 86_400 - 1), st.sampled_from(["BTC/USDT", "007"]),
                st.one_of(st.none(), st.integers(0, 5).map(str)), st.sampled_from([1.0, 2.5]))
batch = st.lists(row, min_size=1, max_size=6, unique_by=lambda r: (r[1], r[0] // 86_400, r[2]))


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from(list(WriteMode)), batch), min_size=1, max_size=4))
def test_modes_do_what_a_list_of_rows_does(tmp_path_factory, steps):
    root, rows = tmp_path_factory.mktemp("w"), []
    for mode, new in steps:
        new = frame(*new)
        before = len(rows)
        if mode is MERGE and max(Counter((day_of(r), r[3]) for r in rows).values(), default=0) > 1: mode = PARTITION
        said = write(new.lazy(), output(root, mode))
        if mode is APPEND:                                  # of a batch that was sent before, nothing is new
            new = new.filter(pl.Series([is_new(said, r) for r in new.rows()]))
        rows = model(rows, new.rows(), mode)
        assert foreign(root) == sorted(rows, key=repr)
        assert said["after"].sum() - said["before"].sum() == len(rows) - before
        assert lakes.leftovers(root / "lake") == []


def is_new(said: pl.DataFrame, r: tuple) -> bool:
    p = Partition.of(exchange=r[1], symbol=r[2], year=r[0].year, month=r[0].month, day=r[0].day)
    return said.filter(partition=p.path)["action"][0] != "unchanged"


def test_files_hold_what_the_path_does_not(tmp_path):
    write(frame((5, "BTC/USDT", "1", 1.0)).with_columns(year=pl.lit(2031), hour=pl.lit(7, pl.Int8)), output(tmp_path))
    (path,) = (tmp_path / "lake").rglob("*.parquet")
    assert path.relative_to(tmp_path).as_posix() == (
        "lake/silver/trades/exchange=binance/symbol=BTC%2FUSDT/year=2031/month=08/day=01/part-0.parquet")
    assert pl.read_parquet(path, hive_partitioning=False).columns == [*TYPES, "hour"]
    assert lineage(path)["record"]["rows"] == 1


@pytest.mark.parametrize("clock, values, hours", [
    ("capture_ts", pl.Series([START, START + timedelta(hours=23)], dtype=UTC_US), ["00", "23"]),
    ("capture_ts", pl.Series([START, START]).dt.convert_time_zone("Asia/Tokyo"), ["00"]),
    ("bar_start", pl.Series([START], dtype=UTC_US), ["00"]),
    ("timestamp", pl.Series([1722470399999, 1722470400000]), ["00", "23"]),
])
def test_time_keys_come_from_the_clock(tmp_path, clock, values, hours):
    data = pl.DataFrame({clock: values, "symbol": "X"})
    write(data, output(tmp_path, partition_cols=("symbol", "year", "month", "day", "hour")))
    assert sorted(p.name for p in (tmp_path / "lake").rglob("hour=*")) == [f"hour={h}" for h in hours]
    assert pl.read_parquet(tmp_path / "lake/silver/trades", hive_partitioning=False).columns == [clock, "symbol"]


def test_no_partition_columns_is_one_file(tmp_path):
    said = write(frame((1, "X", "1", 1.0)), output(tmp_path, partition_cols=()))
    assert said.row(0)[:2] == ("", "added")
    assert [p.name for p in (tmp_path / "lake/silver/trades").iterdir()] == ["part-0.parquet"]
    assert write(frame((1, "X", "1", 1.0)), output(tmp_path, OVERWRITE, partition_cols=()))["action"][0] == "unchanged"


# ---- evaluated once, in bounded memory

def counting(data: pl.DataFrame, seen: list, during=lambda: None) -> pl.LazyFrame:
    "A source that notes each time it is read, and lets something happen meanwhile."
    def read(columns):
        seen.append(columns)
        during()
        yield from data.iter_slices(100)
    return lazy_source(dict(data.schema), read)


@pytest.mark.parametrize("mode", WriteMode)
def test_lazy_source_is_evaluated_once(tmp_path, mode):
    data = frame(*((h * 3600.0, "X", str(h), 1.0) for h in range(24 * 40)))
    seen = []
    write(counting(data, seen), output(tmp_path, mode))
    assert len(seen) == 1 and len(foreign(tmp_path)) == 24 * 40
    assert len(list((tmp_path / "lake/silver").rglob("part-*.parquet"))) == 40


def test_many_partitions_need_few_open_files(tmp_path):
    "With 40 open files at most: stages, locks and pieces of 70 partitions."
    code = f"""
        import resource, polars as pl
        from datetime import datetime, UTC
        from daedalus_etl.core.config import OutputConfig
        from daedalus_etl.storage.write import write
        n = 70
        data = pl.DataFrame({{"x": range(n), "k": [f"{{i:03}}" for i in range(n)]}})
        pl.DataFrame({{"a": [1]}}).lazy().select("a").collect(engine="streaming")
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        for mode in ("append", "overwrite", "merge"):
            out = OutputConfig(name="t", path={str(tmp_path / "lake/silver/t")!r}, partition_cols=("k",), mode=mode,
                               key_cols=("x",))
            print(mode, dict(write(data.with_columns(y=pl.lit(mode)), out)["action"].value_counts().iter_rows()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["append {'added': 70}", "overwrite {'replaced': 70}", "merge {'merged': 70}"]


# ---- others write meanwhile

@pytest.mark.parametrize("mode", WriteMode)
def test_a_commit_during_the_evaluation_is_noticed(tmp_path, mode):
    write(frame((1, "X", "1", 1.0)), output(tmp_path))
    def other(): write(frame((2, "X", "2", 2.0)), output(tmp_path, APPEND))
    source = counting(frame((3, "X", "3", 3.0)), [], other)
    if mode is APPEND: write(source, output(tmp_path, mode))
    else:
        with pytest.raises(ConflictError, match="another process wrote"): write(source, output(tmp_path, mode))
    assert [r[3] for r in foreign(tmp_path)] == (["1", "2", "3"] if mode is APPEND else ["1", "2"])
    assert lakes.leftovers(tmp_path / "lake") == []


def test_a_new_partition_during_an_overwrite_is_noticed(tmp_path):
    write(frame((1, "X", "1", 1.0)), output(tmp_path))
    def other(): write(frame((2, "Y", "2", 2.0)), output(tmp_path))
    with pytest.raises(ConflictError, match="wrote to the dataset"):
        write(counting(frame((3, "X", "3", 3.0)), [], other), output(tmp_path, OVERWRITE))
    assert [r[3] for r in foreign(tmp_path)] == ["1", "2"]


class Died(BaseException): pass


def close_locks(root: Path) -> None:
    "What the kernel does for a dead process: its locks below `root` are free."
    for fd in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{fd}"
        if os.path.islink(path) and (to := os.readlink(path)).startswith(str(root)) and to.endswith("lock"):
            os.close(int(fd))


@pytest.mark.parametrize("at", range(1, 6))
def test_a_death_in_the_middle_of_an_overwrite_is_carried_out_by_the_next(tmp_path, monkeypatch, at):
    "The n-th rename after the journal is the last: what was staged in one room must survive until the recovery."
    write(frame(*((d * 86_400, "X", str(d), 1.0) for d in range(4))), output(tmp_path))
    left, began = [at], []
    def call(what, *args, **kwargs):
        if what is os.replace and "journal" in str(args[1]): began.append(1)
        elif began and what is os.replace:
            left[0] -= 1
            if left[0] < 0: raise Died
        elif began and left[0] < 0: raise Died
        return what(*args, **kwargs)
    monkeypatch.setattr(disk, "syscall", call)
    new = frame(*((d * 86_400, "X", str(10 + d), 2.0) for d in range(2, 6)))
    dataset = Dataset.of(output(tmp_path))
    try: write(new, output(tmp_path, OVERWRITE))
    except Died: assert len(journals(dataset.lake)) == 1
    monkeypatch.undo()
    close_locks(tmp_path)
    open_datasets([dataset])
    assert [r[3] for r in foreign(tmp_path)] == ["12", "13", "14", "15"]
    assert lakes.leftovers(tmp_path / "lake") == [] and journals(dataset.lake) == []


# ---- a dry run, and what is refused

@pytest.mark.parametrize("mode", WriteMode)
def test_dry_run_says_the_same_and_writes_nothing(tmp_path, mode):
    write(frame((1, "X", "1", 1.0), (90_000, "X", "2", 1.0), (1, "Y", "3", 1.0)), output(tmp_path))
    new, before = frame((2, "X", "1", 5.0), (3, "Z", "4", 1.0)), lakes.places(tmp_path)
    said = write(new, output(tmp_path, mode), dry_run=True)
    assert lakes.places(tmp_path) == before
    assert said.equals(write(new, output(tmp_path, mode)))
    assert lakes.places(tmp_path) != before


def test_dry_run_into_nothing_makes_no_folder(tmp_path):
    assert write(frame((1, "X", "1", 1.0)), output(tmp_path), dry_run=True)["action"].to_list() == ["added"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", WriteMode)
def test_the_same_again_changes_no_byte(tmp_path, mode):
    data = frame((2, "X", "1", 5.0), (3, "Z", "4", 1.0))
    write(data, output(tmp_path, mode))
    files = lakes.places(tmp_path / "lake/silver")
    assert set(write(data, output(tmp_path, mode))["action"]) == {"unchanged"}
    assert lakes.places(tmp_path / "lake/silver") == files


@pytest.mark.parametrize("mode", [OVERWRITE, PARTITION, MERGE])
def test_strangers_are_not_replaced(tmp_path, mode):
    write(frame((1, "X", "1", 1.0)), output(tmp_path))
    (ours,) = (tmp_path / "lake").rglob("part-0.parquet")
    pl.read_parquet(ours, hive_partitioning=False).write_parquet(ours.with_name("data.parquet"))
    before = lakes.places(tmp_path / "lake/silver")
    with pytest.raises(ConflictError, match=r"other files, \['data.parquet'\]"):
        write(frame((2, "X", "2", 1.0)), output(tmp_path, mode))
    if mode is OVERWRITE:
        with pytest.raises(ConflictError): write(frame((2, "Y", "2", 1.0)), output(tmp_path, mode))
    assert lakes.places(tmp_path / "lake/silver") == before
    assert len(write(frame((2, "X", "2", 1.0)), output(tmp_path, APPEND))) == 1        # it loses nothing


def test_several_appended_files_are_replaced_by_one(tmp_path):
    for k in range(3): write(frame((k, "X", str(k), 1.0)), output(tmp_path, APPEND))
    names = {p.name[:26] for p in (tmp_path / "lake").rglob("*.parquet")}
    assert names == {f"part-20240801T00000{k}000000" for k in range(3)}
    assert write(frame((9, "X", "9", 1.0)), output(tmp_path)).row(0)[1:4] == ("replaced", 3, 1)
    assert [r[3] for r in foreign(tmp_path)] == ["9"]


def test_a_merge_reads_files_of_different_age(tmp_path):
    write(frame((1, "X", "1", 1.0)), output(tmp_path, APPEND))
    write(frame((2, "X", "2", 1.0)).with_columns(venue=pl.lit("a")), output(tmp_path, APPEND))
    write(frame((3, "X", "1", 9.0)), output(tmp_path, MERGE))
    (path,) = (tmp_path / "lake").rglob("*.parquet")
    assert pl.read_parquet(path, hive_partitioning=False).select("trade_id", "price", "venue").rows() == [
        ("2", 1.0, "a"), ("1", 9.0, None)]


bad = [
    (lambda f: f.with_columns(symbol=pl.lit(None, pl.String)), PARTITION, PartitionError, "'symbol': rows without"),
    (lambda f: f.with_columns(symbol=pl.lit("")), PARTITION, PartitionError, "null or empty"),
    (lambda f: f.with_columns(symbol=pl.lit("a\0b")), PARTITION, PartitionError, "control character"),
    (lambda f: f.with_columns(symbol=pl.lit("x" * 300)), PARTITION, PartitionError, "longer than"),
    (lambda f: f.with_columns(symbol=pl.lit(1.5)), PARTITION, PartitionError, "found Float64"),
    (lambda f: f.with_columns(capture_ts=pl.lit(None, UTC_US)), PARTITION, PartitionError, "'year': rows without"),
    (lambda f: f.with_columns(month=pl.lit(13)), PARTITION, PartitionError, "no such date"),
    (lambda f: f.drop("capture_ts"), PARTITION, SchemaError, "no clock to derive it from"),
    (lambda f: f.drop("exchange"), PARTITION, SchemaError, "the partition column is missing"),
    (lambda f: pl.concat([f, f]), MERGE, BadDataError, "2 rows of the key"),
    (lambda f: f.cast({"price": pl.Int64}), MERGE, SchemaError, "Int64, but the rows that are there have Float64"),
    (lambda f: f.cast({"price": pl.Int64}), APPEND, SchemaError, "Int64, but the file that is there has Float64"),
    (lambda f: f.clear(), OVERWRITE, BadDataError, "would remove the whole dataset"),
]


@pytest.mark.parametrize("spoil, mode, error, text", bad, ids=range(len(bad)))
def test_refused_without_a_trace(tmp_path, spoil, mode, error, text):
    write(frame((1, "X", "1", 1.0)), output(tmp_path))
    before = lakes.places(tmp_path / "lake/silver")
    good = frame((5, "A", "1", 1.0))                                   # comes first, and must not be published either
    new = spoil(frame((2, "X", "2", 1.0)))
    new = new if mode is OVERWRITE else pl.concat([good, new], how="diagonal_relaxed") if text[:5] == "'symb" else new
    with pytest.raises(error, match=text): write(new, output(tmp_path, mode))
    assert lakes.places(tmp_path / "lake/silver") == before
    assert lakes.leftovers(tmp_path / "lake") == []


def test_other_layouts_and_spellings_are_refused(tmp_path):
    write(frame((1, "X", "1", 1.0)), output(tmp_path))
    with pytest.raises(PartitionError, match="is partitioned by exchange, symbol, year, month, day"):
        write(frame((1, "X", "1", 1.0)), output(tmp_path, partition_cols=("symbol",)))
    (day,) = (tmp_path / "lake").rglob("day=01")
    day.rename(day.with_name("day=1"))
    for mode in WriteMode:
        with pytest.raises(PartitionError, match="spelled in another way"):
            write(frame((1, "X", "1", 1.0)), output(tmp_path, mode))
    with pytest.raises(ConfigError, match="expected a folder here"):
        write(frame((1, "X", "1", 1.0)), OutputConfig(name="t", path="s3://bucket/lake/silver/t"))


def test_overwrite_may_change_the_layout(tmp_path):
    data = frame(*((h * 3600, "X", str(h), 1.0) for h in range(30)))
    hours = output(tmp_path, OVERWRITE, partition_cols=("exchange", "symbol", "year", "month", "day", "hour"))
    for out, n in ((output(tmp_path), 2), (hours, 30), (output(tmp_path, OVERWRITE), 2)):
        write(data, out)
        assert foreign(tmp_path) == sorted(data.rows(), key=repr)
        assert len(list((tmp_path / "lake/silver").rglob("*.parquet"))) == n


def test_rows_set_aside_stay_unless_their_partition_is_replaced(tmp_path):
    write(frame((1, "X", "1", 1.0)), output(tmp_path))
    dataset = Dataset.of(output(tmp_path))
    aside = quarantine_file(dataset, Partition.of(exchange="binance", symbol="X", year=2024, month=8, day=1))
    aside.parent.mkdir(parents=True)
    for mode, stays in ((APPEND, True), (PARTITION, False), (MERGE, True), (OVERWRITE, False)):
        aside.write_bytes(b"rows")
        write(frame((2, "X", mode.value, 1.0)), output(tmp_path, mode))
        assert aside.exists() is stays, mode


def test_a_transforms_output_written_by_hand_is_not_taken_for_its_own(tmp_path):
    source, lake = tmp_path / "bronze", tmp_path / "lake"
    lakes.put(source, lakes.tape(8))
    transform = lakes.trades(source, lake)
    assert lakes.statuses(lakes.run(transform)) == ["written"]
    root = lake / "silver/trades"
    was = lakes.footer(root)["key"]
    rows = pl.read_parquet(root, hive_partitioning=True, try_parse_hive_dates=False)
    rows = rows.with_columns(price=pl.col("price") + 1)
    mine = OutputConfig(name="silver", path=root)
    write(rows, mine)
    assert lakes.footer(root) == {}
    record = lineage(next(root.rglob("*.parquet")))["record"]
    assert record["replaces"][0]["key"] == was and json.dumps(record)
    with pytest.raises(ConflictError, match="not written by a transform"): lakes.run(transform)
    assert lakes.dataset(root)["price"].equals(rows["price"])
    assert lakes.statuses(lakes.run(transform, replace=True)) == ["written"]
    assert lakes.footer(root)["key"] == was
