"""`ParquetCRUD` against a naive model: three-valued logic, keys, one commit, nothing lost, read by others."""
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import lakes
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daedalus_etl.core.config import FilterSpec, OutputConfig
from daedalus_etl.core.errors import (
    BadDataError, ConfigError, ConflictError, EmptyMatchError, InputNotFoundError, PartitionError, SchemaError)
from daedalus_etl.core.lazy import lazy_source
from daedalus_etl.storage import write as write_module
from daedalus_etl.storage.lineage import lineage
from daedalus_etl.storage.write import write
from daedalus_etl.utils.crud import ParquetCRUD

TYPES = {"capture_ts": pl.Datetime("us", "UTC"), "exchange": pl.String, "symbol": pl.String, "trade_id": pl.String,
         "price": pl.Float64, "n": pl.Int8}
START = datetime(2024, 8, 8, tzinfo=UTC)


def frame(*rows) -> pl.DataFrame:
    "Trades from (days since the eighth of August, id, price, n); all at the start of their day."
    return pl.DataFrame([(START + timedelta(days=d), "binance", "BTC/USDT", i, p, n) for d, i, p, n in rows],
                        schema=TYPES, orient="row")


def root(tmp_path) -> Path: return Path(tmp_path) / "lake/silver/trades"


def crud(tmp_path, *rows, **kwargs) -> ParquetCRUD:
    "A dataset that holds `rows`, which `write` put there."
    if rows: write(frame(*rows), OutputConfig(name="t", path=root(tmp_path)))
    return ParquetCRUD(root(tmp_path), **kwargs)


def foreign(tmp_path) -> list[tuple]:
    "(day, id, price, n) of all rows as polars and DuckDB read them by themselves; both must agree."
    ours = pl.read_parquet(root(tmp_path)).select("day", "trade_id", "price", "n")
    theirs = duckdb.sql(f"select day, trade_id, price, n from read_parquet('{root(tmp_path)}/**/*.parquet')").fetchall()
    rows = [(d - 8, *rest) for d, *rest in ours.rows()]
    assert sorted(map(repr, rows)) == sorted(repr((int(d) - 8, *rest)) for d, *rest in theirs)
    return sorted(rows, key=repr)


# ---- only what is true

ROWS = [(0, "1", 9.0, 1), (0, "2", 11.0, None), (0, "3", None, 3), (1, "4", None, None), (1, "5", 12.0, 5)]
LOGIC = [                               # condition as SQL, as an expression, and in plain Python: True, False or None
    ("price > 10", pl.col("price") > 10, lambda p, n: None if p is None else p > 10),
    ("not (price > 10)", ~(pl.col("price") > 10), lambda p, n: None if p is None else not p > 10),
    ("price is null", pl.col("price").is_null(), lambda p, n: p is None),
    ("price > 10 or n = 3", (pl.col("price") > 10) | (pl.col("n") == 3),
     lambda p, n: True if (p or 0) > 10 or n == 3 else None if p is None or n is None else False),
    ("price > 10 and n = 5", (pl.col("price") > 10) & (pl.col("n") == 5),
     lambda p, n: False if p is not None and p <= 10 or n not in (None, 5) else None if None in (p, n) else True),
    ("null", pl.lit(None), lambda p, n: None),
    ("day = 8", pl.col("day") == 8, None),
]


@pytest.mark.parametrize("sql, expr, plain", LOGIC, ids=[s for s, *_ in LOGIC])
@pytest.mark.parametrize("form", ["sql", "expr"])
def test_only_true_is_true(tmp_path, sql, expr, plain, form):
    hit = [d == 0 if plain is None else plain(p, n) is True for d, _, p, n in ROWS]
    condition = sql if form == "sql" else expr
    c = crud(tmp_path, *ROWS)
    assert sorted(c.read(predicate=condition).collect()["trade_id"]) == [r[1] for r, h in zip(ROWS, hit) if h]
    said = c.update(condition, {"n": 100})
    assert said["matched"].sum() == sum(hit)
    expected = [(*r[:3], 100) if h else r for r, h in zip(ROWS, hit)]
    assert foreign(tmp_path) == sorted(expected, key=repr)
    write(frame(*ROWS), OutputConfig(name="t", path=root(tmp_path)))
    assert c.delete(condition)["matched"].sum() == sum(hit)
    assert foreign(tmp_path) == sorted((r for r, h in zip(ROWS, hit) if not h), key=repr)


# ---- against a model

key = st.one_of(st.none(), st.integers(0, 4).map(str))
row = st.tuples(st.integers(0, 2), key, st.sampled_from([None, 1.0, 2.0]), st.sampled_from([None, 1, 2]))
batches = st.lists(row, min_size=1, max_size=4)
operation = st.one_of(
    st.tuples(st.sampled_from(["insert", "upsert"]), batches),
    st.tuples(st.sampled_from(["update", "delete"]), st.sampled_from([1.0, 2.0])))


def model(rows: dict, name: str, what) -> dict | None:
    "Rows by (day, id) after an operation; None if it is refused."
    if name in ("insert", "upsert"):
        new = {r[:2]: r for r in what}
        if len(new) < len(what) or name == "insert" and new.keys() & rows.keys(): return None
        return rows | new
    if name == "delete": return {k: r for k, r in rows.items() if r[2] != what}
    return {k: (*r[:3], None if r[3] is None else r[3] + 1) if r[2] == what else r for k, r in rows.items()}


@settings(max_examples=20)
@given(st.lists(operation, min_size=1, max_size=5))
def test_operations_do_what_a_dictionary_does(tmp_path_factory, operations):
    path = tmp_path_factory.mktemp("c")
    c, rows = crud(path, *ROWS), {r[:2]: r for r in ROWS}
    for name, what in operations:
        after, before = model(rows, name, what), lakes.places(root(path))
        args = [frame(*what)] if name in ("insert", "upsert") else [pl.col("price") == what]
        if name == "update": args.append({"n": pl.col("n") + 1})
        try: said = getattr(c, name)(*args)
        except BadDataError:
            assert after is None and lakes.places(root(path)) == before
            continue
        assert after is not None and said["after"].sum() - said["before"].sum() == len(after) - len(rows)
        rows = after
        assert foreign(path) == sorted(rows.values(), key=repr)
        assert lakes.leftovers(path / "lake") == []


# ---- what is not touched, and what is kept

def test_untouched_partitions_keep_their_bytes(tmp_path):
    c = crud(tmp_path, *ROWS)
    before = lakes.places(root(tmp_path))
    c.update("trade_id = '5'", {"price": 1.0})
    changed = {k for k, v in lakes.places(root(tmp_path)).items() if before[k] != v}
    assert {Path(k).parts[4] for k in changed} == {"day=09"}
    before = lakes.places(root(tmp_path))
    assert set(c.update("trade_id = 'nobody'", {"price": 1.0})["action"]) == {"unchanged"}
    assert lakes.places(root(tmp_path)) == before


def test_a_filter_prunes_partitions(tmp_path):
    c = crud(tmp_path, *ROWS)
    assert c.delete(True, FilterSpec(day=9, symbol="BTC/USDT"))["matched"].to_list() == [2]
    assert [r[1] for r in foreign(tmp_path)] == ["1", "2", "3"]
    with pytest.raises(EmptyMatchError): c.delete(True, FilterSpec(day=20))
    with pytest.raises(InputNotFoundError): crud(tmp_path / "nowhere").delete(True)


def test_an_emptied_partition_keeps_its_columns(tmp_path):
    c = crud(tmp_path, *ROWS)
    schema = c.read().collect_schema()
    assert c.delete(True)["after"].to_list() == [0, 0]
    assert foreign(tmp_path) == [] and c.read().collect_schema() == schema
    assert c.insert(frame((0, "1", 1.0, 1)))["before"].to_list() == [0]


def test_files_of_any_name_and_age_become_one(tmp_path):
    day = root(tmp_path) / "exchange=binance/symbol=BTC%2FUSDT/year=2024/month=08/day=08"
    day.mkdir(parents=True)
    frame((0, "1", 1.0, 1)).write_parquet(day / "data.parquet")
    frame((0, "2", 2.0, 2)).with_columns(venue=pl.lit("x"), n=pl.lit(300)).write_parquet(day / "more.parquet")
    c = crud(tmp_path)
    assert c.read(columns=["trade_id", "n", "venue"]).collect().rows() == [("1", 1, None), ("2", 300, "x")]
    c.update("trade_id = '1'", {"n": 200})
    assert [p.name for p in day.iterdir()] == ["part-0.parquet"]
    assert c.read(columns=["trade_id", "n", "venue"]).collect().rows() == [("1", 200, None), ("2", 300, "x")]
    record = lineage(day / "part-0.parquet")["record"]
    assert (record["source"], record["operation"]) == ("crud", "update")
    assert [f["file"] for f in record["replaces"]] == ["data.parquet", "more.parquet"]


@pytest.mark.parametrize("name, args", [
    ("insert", [frame((0, "9", 1.0, 1))]), ("upsert", [frame((0, "1", 7.0, 1), (4, "9", 1.0, 1))]),
    ("update", ["price > 10", {"price": 0.5}]), ("delete", ["price > 10"])])
def test_dry_run_says_the_same_and_writes_nothing(tmp_path, name, args):
    c = crud(tmp_path, *ROWS)
    before = lakes.places(tmp_path)
    said = getattr(c, name)(*args, dry_run=True)
    assert lakes.places(tmp_path) == before
    assert said.equals(getattr(c, name)(*args))
    assert lakes.places(root(tmp_path)) != before


# ---- others write meanwhile

def other(tmp_path): write(frame((0, "other", 1.0, 1)), OutputConfig(name="t", path=root(tmp_path), mode="append"))


@pytest.mark.parametrize("name, args", [("update", ["price > 10", {"price": 0.5}]), ("delete", ["price > 10"])])
def test_a_commit_between_reading_and_writing_is_noticed(tmp_path, monkeypatch, name, args):
    c, publish = crud(tmp_path, *ROWS), write_module.Desk.publish
    def late(desk, *rest):
        monkeypatch.undo()
        other(tmp_path)
        return publish(desk, *rest)
    monkeypatch.setattr(write_module.Desk, "publish", late)
    with pytest.raises(ConflictError, match="another process wrote"): getattr(c, name)(*args)
    assert foreign(tmp_path) == sorted([*ROWS, (0, "other", 1.0, 1)], key=repr)
    assert lakes.leftovers(tmp_path / "lake") == []


@pytest.mark.parametrize("name", ["insert", "upsert"])
def test_a_commit_while_rows_come_is_noticed(tmp_path, name):
    c, seen = crud(tmp_path, *ROWS), []
    def read(columns):
        seen.append(columns)
        other(tmp_path)
        yield frame((0, "8", 1.0, 1), (1, "9", 1.0, 1))
    with pytest.raises(ConflictError): getattr(c, name)(lazy_source(TYPES, read))
    assert len(seen) == 1                                                   # evaluated once, for two partitions
    assert foreign(tmp_path) == sorted([*ROWS, (0, "other", 1.0, 1)], key=repr)


# ---- what is refused, before anything is written

REFUSED = [
    ("update", ["prise > 1", {"price": 1.0}], SchemaError, "Did you mean 'price'"),
    ("delete", [pl.col("prise") > 1], SchemaError, "Did you mean 'price'"),
    ("delete", ["price"], SchemaError, "is Float64"),
    ("delete", ["price >"], ConfigError, "is no SQL"),
    ("delete", [pl.col("price") == "dear"], SchemaError, "cannot be evaluated"),
    ("update", [True, {}], ConfigError, "without values"),
    ("update", [True, {"prise": 1.0}], SchemaError, "Did you mean 'price'"),
    ("update", [True, {"price": "dear"}], SchemaError, "expected Float64"),
    ("update", [True, {"n": 300}], SchemaError, "expected Int8"),
    ("update", [True, {"n": 1.5}], SchemaError, "expected Int8"),
    ("update", [True, {"n": pl.col("price")}], SchemaError, "values of type Float64"),
    ("update", [True, {"price": pl.col("price") / pl.col("side")}], SchemaError, "side"),
    ("update", [True, {"price": (pl.col("trade_id") + "x").cast(pl.Float64)}], SchemaError, "cannot be evaluated"),
    ("update", [True, {"price": pl.col("price").head(2)}], SchemaError, "cannot be evaluated"),
    ("update", [True, {"trade_id": "7"}], SchemaError, "part of the row's key"),
    ("update", [True, {"day": 9}], PartitionError, "where the row lies"),
    ("update", [True, {"symbol": "ETH/USDT"}], PartitionError, "where the row lies"),
    ("update", ["trade_id = '1'", {"capture_ts": START + timedelta(days=1)}], PartitionError, "1 rows would have"),
    ("update", ["trade_id = '1'", {"capture_ts": None}], PartitionError, "1 rows would have"),
    ("insert", [frame((0, "8", 1.0, 1), (0, "1", 1.0, 1))], BadDataError, "'trade_id': '1'"),
    ("insert", [frame((0, None, 1.0, 1), (0, None, 2.0, 1))], BadDataError, "2 rows of the key"),
    ("upsert", [frame((0, "8", 1.0, 1), (0, "8", 1.0, 1))], BadDataError, "2 rows of the key"),
    ("upsert", [frame((0, "8", 1.0, 1)).cast({"price": pl.Int64})], SchemaError, "Int64"),
    ("upsert", [frame((0, "8", 1.0, 1)).with_columns(trade_id=pl.lit(8))], SchemaError, "the key is Int32"),
    ("insert", [frame((0, "8", 1.0, 1)).drop("trade_id")], SchemaError, "no key"),
    ("insert", [frame((0, "8", 1.0, 1)).drop("symbol")], SchemaError, "partition column is missing"),
]


@pytest.mark.parametrize("name, args, error, text", REFUSED, ids=range(len(REFUSED)))
def test_refused_without_a_trace(tmp_path, name, args, error, text):
    c = crud(tmp_path, *ROWS)
    before = lakes.places(root(tmp_path))
    with pytest.raises(error, match=text): getattr(c, name)(*args)
    assert lakes.places(root(tmp_path)) == before and lakes.leftovers(tmp_path / "lake") == []


def test_the_clock_may_change_within_its_partition(tmp_path):
    c = crud(tmp_path, *ROWS)
    c.update("day = 8", {"capture_ts": pl.col("capture_ts") + timedelta(hours=23)})
    assert c.read(FilterSpec(day=8)).collect()["capture_ts"].dt.hour().to_list() == [23] * 3


def test_values_are_those_of_the_old_row(tmp_path):
    c = crud(tmp_path, (0, "1", 5.0, 7))
    c.update(True, {"price": pl.col("n"), "n": pl.lit(9, pl.Int8)})
    assert foreign(tmp_path) == [(0, "1", 7.0, 9)]


def test_named_keys_and_null_keys(tmp_path):
    c = crud(tmp_path, key_cols=("n",))
    c.insert(frame((0, "1", 1.0, None), (0, "1", 2.0, 1)))
    with pytest.raises(BadDataError, match="'n': None"): c.insert(frame((0, "2", 1.0, None)))
    c.upsert(frame((0, "2", 3.0, None)))
    assert foreign(tmp_path) == [(0, "1", 2.0, 1), (0, "2", 3.0, None)]
    with pytest.raises(SchemaError, match="part of the row's key"): c.update(True, {"n": 4})
    c.update("n = 1", {"trade_id": "9"})                                        # not a key here
    with pytest.raises(SchemaError, match="key column is missing"):
        crud(tmp_path, key_cols=("m",)).insert(frame(ROWS[0]))


def test_the_layout_is_that_of_what_is_there(tmp_path):
    write(frame(*ROWS), OutputConfig(name="t", path=root(tmp_path), partition_cols=("symbol", "year", "month")))
    assert crud(tmp_path).upsert(frame((30, "9", 1.0, 1)))["partition"].to_list() == [
        "symbol=BTC%2FUSDT/year=2024/month=09"]
    with pytest.raises(PartitionError, match="partitioned by symbol, year, month"):
        ParquetCRUD(OutputConfig(name="t", path=root(tmp_path))).upsert(frame(*ROWS))


def test_an_unpadded_folder_is_refused(tmp_path):
    c = crud(tmp_path, *ROWS)
    (day,) = root(tmp_path).rglob("day=08")
    day.rename(day.with_name("day=8"))
    for call in (lambda: c.delete(True), lambda: c.insert(frame((0, "8", 1.0, 1)))):
        with pytest.raises(PartitionError, match="another way than we write it"): call()


def test_an_edited_output_is_not_taken_for_the_transforms_own(tmp_path):
    source, lake = tmp_path / "bronze", tmp_path / "lake"
    for day in (8, 9): lakes.put(source, lakes.tape(day), day)
    transform = lakes.trades(source, lake)
    lakes.run(transform)
    keys = [lakes.footer(root(tmp_path), d)["key"] for d in (8, 9)]
    ParquetCRUD(root(tmp_path)).delete(True, FilterSpec(day=9))
    assert lakes.footer(root(tmp_path), 8)["key"] == keys[0] and lakes.footer(root(tmp_path), 9) == {}
    with pytest.raises(ConflictError, match="not written by a transform"): lakes.run(transform)
    assert pl.read_parquet(root(tmp_path) / lakes.leaf(9) / "part-0.parquet").height == 0      # the rows did not return
    lakes.run(transform, replace=True)
    assert lakes.footer(root(tmp_path), 9)["key"] == keys[1]
