"A Delta table as the output of a run: the rows of the Parquet output, nothing written twice, states and quarantine."
import lakes
import polars as pl
import pytest
from lakes import SMALL, leaf, put, run, statuses, tape
from polars.testing import assert_frame_equal

from daedalus_etl.core.enums import DataFormat, WriteMode
from daedalus_etl.core.errors import ConfigError
from daedalus_etl.features.frames import features
from daedalus_etl.storage.verify import verify

pytest.importorskip("deltalake", reason="needs the extra delta")
from daedalus_etl.storage.delta import history, read_delta  # noqa: E402


@pytest.fixture
def bronze(tmp_path):
    for day in (8, 9): put(tmp_path / "bronze", tape(day), day)
    return tmp_path / "bronze"


def made(bronze, lake, **more): return lakes.trades(bronze, lake, format=DataFormat.DELTA, **more)


def rows(lake):
    found = read_delta(lake / "silver/trades").collect().sort("capture_ts", "trade_id")
    return found.drop("year", "month", "day")


def test_a_run_into_a_table(bronze, tmp_path):
    lake = tmp_path / "lake"
    assert statuses(run(made(bronze, lake))) == ["written", "written"]
    whole = features(trades=pl.concat([tape(8), tape(9)]), config=SMALL).sort("capture_ts", "trade_id")
    found = rows(lake).select(whole.columns)
    assert_frame_equal(found.select(pl.selectors.float()), whole.select(pl.selectors.float()), check_exact=True)
    assert found["trade_id"].to_list() == whole["trade_id"].to_list()
    before = lakes.contents(lake)
    assert statuses(run(made(bronze, lake))) == ["done", "done"] and lakes.contents(lake) == before
    put(bronze, tape(9).head(50), 9)
    assert statuses(run(made(bronze, lake))) == ["done", "written"]
    assert rows(lake).height == tape(8).height + 50 and lakes.leftovers_in_meta(lake) == []
    first = read_delta(lake / "silver/trades", version=history(lake / "silver/trades")["version"].max() - 1).collect()
    assert first.height == tape(8).height + tape(9).height                       # the version before is still there
    assert verify(lake)["fault"].unique().to_list() == [""]


def test_bad_rows_of_a_run_into_a_table_are_set_aside(bronze, tmp_path):
    lake, bad = tmp_path / "lake", tape(9).with_columns(price=pl.lit(-1.0))
    put(bronze, bad, 9)
    report = run(made(bronze, lake), features=SMALL.model_copy(update={"max_bad_fraction": 1.0}))
    assert report.totals()["quarantined"] == bad.height
    assert lakes.dataset(lake / ".daedalus/silver/trades/quarantine" / leaf(9)).height == bad.height


def test_what_a_table_cannot_do_is_said(bronze, tmp_path):
    for mode in (WriteMode.APPEND, WriteMode.MERGE, WriteMode.OVERWRITE):
        with pytest.raises(ConfigError, match="write_delta"): run(made(bronze, tmp_path / "lake", mode=mode))
    once = made(bronze, tmp_path / "lake").config.model_copy(update={"atomic": "run"})
    from daedalus_etl.transforms.trades import TradesFeatureTransform
    with pytest.raises(ConfigError, match="published as one"): run(TradesFeatureTransform(once))
