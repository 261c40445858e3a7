"""Compaction and repartition: every row, in its order; checked before the old files go; others may append meanwhile."""
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import lakes
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daedalus_etl.core.config import FilterSpec, OutputConfig
from daedalus_etl.core.errors import ConfigError, ConflictError, CorruptFileError, SchemaError, StorageError
from daedalus_etl.storage import write as write_module
from daedalus_etl.storage.commit import quarantine_file
from daedalus_etl.storage.disk import file_sha256
from daedalus_etl.storage.lineage import lineage
from daedalus_etl.storage.partitions import Partition
from daedalus_etl.storage.write import write

from daedalus_etl.utils.compaction import ParquetCompactor, groups, joined_name

START = datetime(2024, 8, 8, tzinfo=UTC)


def batch(*seconds: float, symbol: str = "BTC/USDT", **more) -> pl.DataFrame:
    rows = {"capture_ts": [START + timedelta(seconds=s) for s in seconds], "symbol": symbol,
            "price": [float(s) for s in seconds]}
    return pl.DataFrame(rows | more, schema_overrides={"capture_ts": pl.Datetime("us", "UTC")})


def output(tmp_path, mode="append", cols=("symbol", "year", "month", "day"), name="trades") -> OutputConfig:
    return OutputConfig(name="t", path=Path(tmp_path) / "lake/silver" / name, partition_cols=cols, mode=mode)


def appended(tmp_path, *batches: pl.DataFrame) -> ParquetCompactor:
    for b in batches: write(b, output(tmp_path))
    return ParquetCompactor(output(tmp_path))


def files(tmp_path, name="trades") -> list[Path]:
    return sorted((Path(tmp_path) / "lake/silver" / name).rglob("*.parquet"))


def prices(tmp_path, name="trades") -> list[float]:
    "In row order, as polars and DuckDB read them without us."
    root = Path(tmp_path) / "lake/silver" / name
    ours = pl.read_parquet(root, hive_partitioning=False)["price"].to_list()
    theirs = duckdb.sql(f"select price from read_parquet('{root}/**/*.parquet', union_by_name=true)").fetchall()
    assert sorted(ours) == sorted(p for p, in theirs)
    return ours


# ---- compaction

@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 60))
def test_groups_are_neighbours_that_fit(sizes, target):
    named = [(f"{k:02}", s) for k, s in enumerate(sizes)]
    size, found = dict(named), groups(named, target)
    for g in found:
        assert len(g) > 1 and sum(size[n] for n in g) <= target
        assert g == [n for n, _ in named if g[0] <= n <= g[-1]]
    assert [n for g in found for n in g] == sorted({n for g in found for n in g})
    alone = [n for n, _ in named if not any(n in g for g in found)]
    for a, b in zip(named, named[1:], strict=False):       # two that stay alone would not have fitted together
        if a[0] in alone and b[0] in alone: assert a[1] + b[1] > target


@given(st.lists(st.text("-.~0aZ", min_size=1, max_size=3), min_size=3, max_size=6, unique=True), st.data())
def test_a_joined_file_sorts_where_its_parts_were(stems, data):
    names = sorted(f"part-{s}.parquet" for s in stems)
    first = data.draw(st.integers(0, len(names) - 2))
    last = data.draw(st.integers(first + 1, len(names) - 1))
    try: new = joined_name(names[first:last + 1], names, "0123456789")
    except ConflictError: return
    assert new not in names
    assert sorted([*names[:first], new, *names[last + 1:]]) == [*names[:first], new, *names[last + 1:]]


def test_sealing_an_appended_partition(tmp_path):
    c = appended(tmp_path, batch(5, 1), batch(2), batch(9, 3), batch(1, symbol="X"))
    before, order = lakes.places(tmp_path), prices(tmp_path)
    assert c.plan()["files_after"].to_list() == [1, 1] and lakes.places(tmp_path) == before
    done = c.compact()
    assert done.select("files", "files_after", "rows").rows() == [(3, 1, 5)]
    assert [p.name for p in files(tmp_path)][0] == "part-0.parquet" and len(files(tmp_path)) == 2
    assert prices(tmp_path) == order == [2.0, 5.0, 1.0, 9.0, 3.0, 1.0]
    record = lineage(files(tmp_path)[0])["record"]
    assert record["source"] == "compaction" and record["sha256"] == file_sha256(files(tmp_path)[0])
    assert record["checksums"] == done["checksum"][0].to_list() and len(record["replaces"]) == 3
    assert lakes.leftovers(tmp_path / "lake") == []
    write(batch(20), output(tmp_path))                                     # and again, with part-0 among them
    assert c.compact()["new"].to_list() == [["part-1.parquet"]]
    assert prices(tmp_path) == [2.0, 5.0, 1.0, 9.0, 3.0, 20.0, 1.0]


def test_files_of_target_size_keep_their_bytes(tmp_path):
    large = batch(*range(3000, 6000))
    c = appended(tmp_path, batch(1), batch(2), large, batch(7000), batch(7001), batch(7002))
    sizes, order = [p.stat().st_size for p in files(tmp_path)], prices(tmp_path)
    target = max(sizes) - 1
    assert sum(sizes) - max(sizes) < target
    big = next(p for p in files(tmp_path) if p.stat().st_size == max(sizes))
    was = big.stat()
    done = ParquetCompactor(c.output, target).compact()
    assert done.select("files", "files_after").rows() == [(6, 3)]
    assert (big.stat().st_ino, big.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    assert prices(tmp_path) == order and files(tmp_path)[1] == big
    assert ParquetCompactor(c.output, target).compact().height == 0


def test_a_path_alone_and_a_filter(tmp_path):
    c = appended(tmp_path, *(batch(t + d * 86_400) for t in (1, 2) for d in (0, 1)))
    done = ParquetCompactor(c.dataset.root).compact(FilterSpec(day=9))
    assert [p[-6:] for p in done["partition"]] == ["day=09"] and len(files(tmp_path)) == 3


def test_added_columns_and_wider_types(tmp_path):
    c = appended(tmp_path, batch(1, n=1), batch(2))
    folder = files(tmp_path)[0].parent
    batch(3, n=2**40, venue="x").write_parquet(folder / "part-3.parquet")
    c.compact()
    (path,) = files(tmp_path)
    rows = pl.read_parquet(path, hive_partitioning=False)
    assert rows.select("price", "n", "venue").rows() == [(1.0, 1, None), (2.0, None, None), (3.0, 2**40, "x")]
    assert rows.schema["n"] == pl.Int64


def test_types_that_do_not_go_together_name_both_files(tmp_path):
    c = appended(tmp_path, batch(1), batch(2))
    folder = files(tmp_path)[0].parent
    batch(3).with_columns(price=pl.lit("dear")).write_parquet(folder / "part-3.parquet")
    before = lakes.places(tmp_path / "lake/silver")
    with pytest.raises(SchemaError, match=r"part-3.parquet.*String, but Float64 in .*part-20240808"): c.compact()
    assert lakes.places(tmp_path / "lake/silver") == before


def test_a_damaged_file_is_named_and_nothing_changes(tmp_path):
    c = appended(tmp_path, batch(*range(500)), batch(*range(600, 900)))
    data = bytearray(files(tmp_path)[1].read_bytes())
    data[20:60] = b"\xff" * 40
    files(tmp_path)[1].write_bytes(data)
    before = lakes.places(tmp_path / "lake/silver")
    with pytest.raises(CorruptFileError, match=files(tmp_path)[1].name): c.compact()
    assert lakes.places(tmp_path / "lake/silver") == before


@pytest.mark.parametrize("spoil", [
    lambda f: f.head(4), lambda f: f.reverse(), lambda f: pl.concat([f, f.head(1)]),
    lambda f: f.with_columns(price=pl.col("price") + 1e-9)], ids=["lost", "order", "more", "bit"])
def test_rows_that_changed_on_the_way_stop_it(tmp_path, monkeypatch, spoil):
    c = appended(tmp_path, batch(1, 2, 3), batch(4, 5))
    before, real = lakes.places(tmp_path / "lake/silver"), write_module.Desk.stage
    monkeypatch.setattr(write_module.Desk, "stage", lambda desk, rows: real(desk, spoil(rows)))
    with pytest.raises(StorageError, match="are not the rows read"): c.compact()
    assert lakes.places(tmp_path / "lake/silver") == before and lakes.leftovers(tmp_path / "lake") == []


def during(monkeypatch, what):
    "Let something happen after the rows are read and before they are committed."
    real = write_module.Desk.publish
    def late(desk, *args):
        monkeypatch.undo()
        what()
        return real(desk, *args)
    monkeypatch.setattr(write_module.Desk, "publish", late)


def test_files_appended_meanwhile_stay(tmp_path, monkeypatch):
    c = appended(tmp_path, batch(1), batch(2))
    during(monkeypatch, lambda: write(batch(3), output(tmp_path)))
    c.compact()
    assert [p.name[:22] for p in files(tmp_path)] == ["part-0.parquet", "part-20240808T00000300"]
    assert prices(tmp_path) == [1.0, 2.0, 3.0]


def test_files_replaced_meanwhile_are_a_conflict(tmp_path, monkeypatch):
    c = appended(tmp_path, batch(1), batch(2))
    during(monkeypatch, lambda: write(batch(8), output(tmp_path, "overwrite_partition")))
    with pytest.raises(ConflictError): c.compact()
    assert prices(tmp_path) == [8.0] and lakes.leftovers(tmp_path / "lake") == []


def test_dry_run_and_rows_set_aside(tmp_path):
    c = appended(tmp_path, batch(1), batch(2))
    aside = quarantine_file(c.dataset, Partition.of(symbol="BTC/USDT", year=2024, month=8, day=8))
    aside.parent.mkdir(parents=True)
    aside.write_bytes(b"rows")
    before = lakes.places(tmp_path)
    said = c.compact(dry_run=True)
    assert lakes.places(tmp_path) == before
    assert said.equals(c.compact()) and aside.read_bytes() == b"rows"
    with pytest.raises(ConfigError, match="above 0"): ParquetCompactor(c.output, 0)


def test_a_sealed_output_is_not_taken_for_the_transforms_own(tmp_path):
    source, lake = tmp_path / "bronze", tmp_path / "lake"
    lakes.put(source, lakes.tape(8))
    transform = lakes.trades(source, lake, mode="append")
    lakes.run(transform)
    root = lake / "silver/trades"
    (made,) = root.rglob("*.parquet")
    rows = pl.read_parquet(made, hive_partitioning=False)
    rows.head(1).write_parquet(made.with_name("part-zz.parquet"))
    assert ParquetCompactor(root).compact()["rows"].to_list() == [rows.height + 1]
    assert lakes.footer(root) == {}
    with pytest.raises(ConflictError, match="has rows already"): lakes.run(transform)
    assert lakes.dataset(root).height == rows.height + 1
    record = lineage(root / lakes.leaf(8) / "part-0.parquet")["record"]
    assert [bool(f["key"]) for f in record["replaces"]] == [True, False]


