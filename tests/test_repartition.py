"Repartition: the same rows in other folders, counted and summed, all or nothing."
from pathlib import Path

import lakes
import polars as pl
import pytest
from lakes import BTC, ETH, leaf, put, tape
from polars.testing import assert_frame_equal

from daedalus_etl.core.config import OutputConfig
from daedalus_etl.core.errors import ConflictError, CorruptFileError
from daedalus_etl.storage.verify import verify
from daedalus_etl.utils import repartition as module
from daedalus_etl.utils.repartition import repartition

DAY = ("exchange", "symbol", "year", "month", "day")


@pytest.fixture
def lake(tmp_path):
    "Two streams of two days, in plain files of somebody else."
    for stream in (BTC, ETH):
        for day in (8, 9): put(tmp_path / "lake/silver/trades", tape(day, stream=stream), day, stream, "part-0.parquet")
    return tmp_path / "lake"


def layout(lake, *cols, name="trades"):
    return OutputConfig(name="silver", path=lake / "silver" / name, partition_cols=cols)


def rows(root: Path) -> pl.DataFrame:
    found = [pl.read_parquet(p, hive_partitioning=False) for p in sorted(root.rglob("*.parquet"))]
    return pl.concat(found, how="diagonal").drop("hour", strict=False)


def test_days_to_hours_and_back_in_place(lake):
    before, root = rows(lake / "silver/trades"), lake / "silver/trades"
    done = repartition(root, layout(lake, *DAY, "hour"))
    assert done.filter(action="removed").height == 4 and done["after"].sum() == before.height
    files = [p.relative_to(root).as_posix() for p in root.rglob("*.parquet")]
    assert all("/hour=" in f for f in files) and f"{leaf(8, hour=0)}/part-0.parquet" in files
    hours = tape(8)["capture_ts"].dt.hour()
    one = pl.read_parquet(root / leaf(8, hour=3) / "part-0.parquet", hive_partitioning=False)
    assert_frame_equal(one.select(tape(8).columns), tape(8).filter(hours == 3))
    repartition(root, layout(lake, *DAY))
    assert_frame_equal(rows(root).select(before.columns), before)             # and the order within a stream
    assert lakes.leftovers(lake) == [] and verify(lake)["fault"].unique().to_list() == [""]


def test_into_another_dataset_which_must_be_empty(lake):
    before = lakes.contents(lake / "silver/trades")
    repartition(lake / "silver/trades", layout(lake, "exchange", "symbol", "year", "month", name="monthly"))
    assert lakes.contents(lake / "silver/trades") == before
    assert_frame_equal(rows(lake / "silver/monthly").select(tape().columns), rows(lake / "silver/trades"))
    with pytest.raises(ConflictError, match="holds a dataset already"):
        repartition(lake / "silver/trades", layout(lake, *DAY, name="monthly"))


def test_dry_run_and_again_change_nothing(lake):
    before = lakes.places(lake)
    done = repartition(lake / "silver/trades", layout(lake, *DAY, "hour"), dry_run=True)
    assert done.filter(action="removed").height == 4 and lakes.places(lake) == before


def test_rows_lost_on_the_way_stop_it(lake, monkeypatch):
    before, whole = lakes.contents(lake / "silver"), module.split

    def losing(frame, cols, room):
        return whole(frame.filter(pl.col("price") != frame.collect()["price"][7]), cols, room)

    monkeypatch.setattr(module, "split", losing)
    with pytest.raises(CorruptFileError, match="not those that were read"):
        repartition(lake / "silver/trades", layout(lake, *DAY, "hour"))
    assert lakes.contents(lake / "silver") == before and lakes.leftovers(lake) == []
