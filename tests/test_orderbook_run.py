"Order books through the executor: forms of input, bad rows, trades beside them, states, grids and options."
import subprocess
import sys
from datetime import timedelta

import lakes
import polars as pl
import pytest
from lakes import BTC, ETH, dataset, day_start, put
from polars.testing import assert_frame_equal

from daedalus_etl.core.config import FeatureConfig, FilterSpec
from daedalus_etl.core.errors import BadDataError
from daedalus_etl.features.frames import features
from daedalus_etl.sources.simulated import simulate
from daedalus_etl.sources.simulator import SimulatorConfig

ALL = FeatureConfig(
    categories={"structural", "dynamic", "rolling", "advanced"}, rolling_windows=(5, 60), vpin_bucket_size=0.2)
SPAN = timedelta(minutes=4)


@pytest.fixture(scope="module")
def market():
    "Two days of one stream, four minutes around midnight: books and trades."
    day = simulate(SimulatorConfig(), SPAN.total_seconds(), start=day_start(9) - SPAN / 2, exchange="binance")
    return {c: day[c] for c in ("orderbook", "trades")}


def days_of(rows: pl.DataFrame) -> dict[int, pl.DataFrame]:
    return {d: rows.filter(pl.col("capture_ts").dt.day() == d) for d in (8, 9)}


def write(root, market, **changed):
    for channel, rows in {**market, **changed}.items():
        for day, part in days_of(rows).items(): put(root / channel, part, day, BTC)
    return root / "orderbook"


def run(source, lake, config=ALL, spec=None, trades=None, **kwargs):
    return lakes.run(lakes.orderbook(source, lake, trades), spec, config, **kwargs)


def silver(lake): return dataset(lake / "silver/orderbook")


def same_features(got: pl.DataFrame, want: pl.DataFrame) -> None:
    "All feature columns agree, bit for bit."
    assert_frame_equal(got.select(feature_names()), want.select(feature_names()), check_exact=True)


def feature_names(config=ALL):
    from daedalus_etl.core.catalog import Catalogue, select
    return [c.name for c in select(Catalogue("orderbook", config))]


@pytest.fixture(scope="module")
def plain(market):
    "All features of both days as one plain frame."
    return features(market["orderbook"], market["trades"], config=ALL)


def test_partitions_are_the_plain_frame(market, plain, tmp_path):
    report = run(write(tmp_path, market), tmp_path / "lake")
    got = silver(tmp_path / "lake")
    same_features(got, plain)
    assert [u.rows_in for u in report.units] == [p.height for p in days_of(market["orderbook"]).values()]
    assert not {"bids", "asks"} & set(got.columns)


def shapes(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    "The same books in other forms."
    field = pl.element().struct.field
    pairs = pl.concat_list(field("price"), field("size"))
    text = pl.concat_list(field("price").cast(pl.String), field("size").cast(pl.String))
    more = pl.struct(size=field("size"), orders=pl.lit(3), price=field("price"))
    each = pl.col("bids", "asks").list.eval
    return {k: rows.with_columns(each(v)) for k, v in (("pairs", pairs), ("text", text), ("more fields", more))}


@pytest.mark.parametrize("form", ["pairs", "text", "more fields"])
def test_all_forms_of_levels_are_one(market, plain, tmp_path, form):
    changed = shapes(market["orderbook"])[form]
    run(write(tmp_path, market, orderbook=changed), tmp_path / "lake")
    same_features(silver(tmp_path / "lake"), plain)
    same_features(features(changed, market["trades"], config=ALL), plain)


def test_order_of_files_and_repeats_do_not_matter(market, plain, tmp_path):
    books = market["orderbook"]
    shuffled = pl.concat([books, books[10:20], books[200:201]]).sample(fraction=1, shuffle=True, seed=3)
    report = run(write(tmp_path, market, orderbook=shuffled), tmp_path / "lake")
    same_features(silver(tmp_path / "lake"), plain)
    assert report.totals()["duplicates"] == 11 and report.totals()["disordered"] > 0


def spoiled(rows: pl.DataFrame, at: int, price=100.0, size=1.0) -> pl.DataFrame:
    "Row `at` has a second bid of this price and size."
    bids = pl.Series([[{"price": 1e5, "size": 1.0}, {"price": price, "size": size}]], dtype=rows.schema["bids"])
    return pl.concat([rows[:at], rows[at].with_columns(bids=bids), rows[at + 1:]])


@pytest.mark.parametrize(("level", "reason"), [
    ({"price": -1.0}, "bad_price"), ({"price": float("nan")}, "bad_price"), ({"price": None}, "bad_price"),
    ({"size": -2.0}, "bad_size"), ({"size": None}, "bad_size")])
def test_a_bad_level_sets_its_book_aside(market, tmp_path, level, reason):
    lenient = FeatureConfig(**dict(ALL) | {"max_bad_fraction": 0.05})
    source = write(tmp_path, market, orderbook=spoiled(market["orderbook"], 5, **level))
    report = run(source, tmp_path / "lake", lenient)
    assert report.totals()["quarantined"] == 1
    (file,) = (p for p in (tmp_path / "lake/.daedalus").rglob("*.parquet") if "quarantine" in str(p))
    (aside,) = pl.read_parquet(file).iter_rows(named=True)
    assert (aside["reason"], aside["row"]) == (reason, 5) and aside["file"].endswith("day=08/data.parquet")
    assert aside["found"].startswith("bids[1]: price")
    others = pl.concat([market["orderbook"][:5], market["orderbook"][6:]])
    same_features(silver(tmp_path / "lake"), features(others, market["trades"], config=ALL))
    with pytest.raises(BadDataError, match="found.*bids.1.: price"): run(source, tmp_path / "strict")
    with pytest.raises(BadDataError, match=reason): features(spoiled(market["orderbook"], 5, **level), features=["ofi"])


def test_too_many_levels_are_refused_by_name(market, tmp_path):
    field = pl.element().struct.field
    far = pl.col("asks").list.eval(pl.struct(price=field("price") + 1e4, size=field("size")))
    source = write(tmp_path, market, orderbook=market["orderbook"].with_columns(asks=pl.col("asks").list.concat(far)))
    few = FeatureConfig(max_levels=20)
    with pytest.raises(BadDataError, match="max_levels=20"): run(source, tmp_path / "lake", few)


def test_without_trades_their_columns_are_null(market, plain, tmp_path):
    run(write(tmp_path, market), tmp_path / "lake", trades="")
    got = silver(tmp_path / "lake")
    for c in ("vpin", "vpin_bucket_count", "kyle_lambda", "kyle_lambda_n", "tfi_5s", "trade_vol_60s", "trade_count_5s"):
        assert got[c].null_count() == got.height, c
    others = ["ofi", "rv_60s", "ofi_beta", "spread_regime"]
    assert_frame_equal(got.select(others), plain.select(others), check_exact=True)


def test_a_day_without_trades_has_measured_zeros(market, tmp_path):
    source = write(tmp_path, market)
    (day,) = (tmp_path / "trades").glob("**/day=09/*.parquet")
    day.unlink()
    run(source, tmp_path / "lake")
    late = silver(tmp_path / "lake").filter(pl.col("capture_ts") > day_start(9) + timedelta(seconds=61))
    assert (late["trade_count_60s"] == 0).all() and (late["trade_vol_60s"] == 0.0).all()
    assert late["tfi_60s"].null_count() == late.height > 0


def test_a_state_path_and_the_artifacts_resume_alike(market, plain, tmp_path):
    "The 9th from a file that the run of the 8th left, in a lake that knows no 8th; and from the 8th's artifact."
    source = write(tmp_path, market)
    spec8, spec9 = FilterSpec(end_date="2024-08-08"), FilterSpec(start_date="2024-08-09")
    want = plain.filter(pl.col("capture_ts").dt.day() == 9).select(feature_names())
    for first, second in (("one", "other"), ("same", "same")):
        kept = {"state_path": tmp_path / f"{first}-state"} if first != second else {}
        run(source, tmp_path / first, spec=spec8, **kept)
        run(source, tmp_path / second, spec=spec9, **kept)
        got = silver(tmp_path / second).filter(pl.col("capture_ts").dt.day() == 9)
        assert_frame_equal(got.select(feature_names()), want, check_exact=True)


def test_two_streams_run_side_by_side(market, plain, tmp_path):
    source = write(tmp_path, market)
    for channel in ("orderbook", "trades"):
        twin = market[channel].with_columns(symbol=pl.lit("ETH-USDT"))
        for day, part in days_of(twin).items(): put(tmp_path / channel, part, day, ETH)
    run(source, tmp_path / "lake", workers=2)
    for symbol in ("BTC-USDT", "ETH-USDT"):
        same_features(silver(tmp_path / "lake").filter(pl.col("symbol") == symbol), plain)


def test_a_grid_meets_at_midnight(market, tmp_path):
    config = FeatureConfig(features=["mid_price", "ofi"], resample_frequency="700ms", resample_max_staleness=0.9)
    run(write(tmp_path, market), tmp_path / "lake", config)
    got, whole = silver(tmp_path / "lake"), features(market["orderbook"], config=config)
    assert_frame_equal(got.select(whole.columns), whole, check_exact=True)
    assert got["capture_ts"].diff().drop_nulls().unique().to_list() == [timedelta(milliseconds=700)]
    assert got["mid_price"].null_count() == (got["data_staleness_s"] > 0.9).sum() > 0


def test_float32_raw_arrays_and_overrides(market, tmp_path):
    config = FeatureConfig(**dict(ALL) | dict(output_dtype="float32", drop_raw_book_arrays=False,
                                              overrides={"BTC-USDT": {"vpin_bucket_size": 0.5, "max_gap_s": 10}}))
    run(write(tmp_path, market), tmp_path / "lake", config)
    got = silver(tmp_path / "lake")
    own = FeatureConfig(**dict(ALL) | dict(vpin_bucket_size=0.5, max_gap_s=10, output_dtype="float32"))
    same_features(got, features(market["orderbook"], market["trades"], config=own))
    assert got["bids"].to_list() == market["orderbook"]["bids"].to_list() and got["mid_price"].dtype == pl.Float32


def test_an_automatic_bucket_size_is_recorded(market, tmp_path):
    config = FeatureConfig(**dict(ALL) | {"vpin_bucket_size": "auto"})
    run(write(tmp_path, market), tmp_path / "lake", config)
    got, early = silver(tmp_path / "lake"), days_of(market["trades"])[8]["amount"].sum()
    sizes = got.filter(pl.col("capture_ts").dt.day() == 9)["vpin_bucket_size"]
    first = got.filter(pl.col("capture_ts").dt.day() == 8)
    assert first["vpin"].null_count() == first.height > 0
    assert sizes[-1] == pytest.approx(early / 50, rel=1e-12) and sizes.drop_nulls().n_unique() == 1
    footer = lakes.footer(tmp_path / "lake/silver/orderbook", 9)
    assert str(round(early / 50, 6))[:6] in next(v for k, v in footer.items() if k.endswith("vpin_bucket_size"))


def test_a_limited_run_takes_books_and_the_trades_up_to_them(market, plain, tmp_path):
    report = run(write(tmp_path, market), tmp_path / "lake", limit_rows=50)
    assert report["write_stats"]["silver"]["rows"] == 50 and not (tmp_path / "lake/silver").exists()
    same_features(dataset(tmp_path / "lake/.daedalus/scratch"), plain[:50])


def test_few_columns_of_many_books(market, tmp_path):
    "The command line, in a process of its own, with just three columns."
    write(tmp_path / "raw", market)
    command = [sys.executable, "-m", "daedalus_etl.cli", "orderbook", "--input", str(tmp_path / "raw/orderbook"),
               "--output", str(tmp_path / "lake"), "--features", "spread_bps,order_flow_toxicity,rv_30s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"spread_bps", "vpin", "rv_30s", "book_state"} <= set(silver(tmp_path / "lake").columns)
    assert "mid_price" not in silver(tmp_path / "lake").columns
