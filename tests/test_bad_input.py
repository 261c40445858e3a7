"Bad input from end to end: the executor's error, the exit code of the command line, and what is on disk afterwards."
import lakes
import polars as pl
import pytest
from lakes import ETH, SMALL, cli, dataset, leaf, put, run, statuses, tape
from polars.testing import assert_frame_equal

from daedalus_etl.core.config import FeatureConfig, FilterSpec
from daedalus_etl.core.errors import (
    BadDataError,
    CorruptFileError,
    EmptyMatchError,
    InputNotFoundError,
    PartitionError,
    SchemaError,
    TimeUnitError,
)
from daedalus_etl.features.frames import features

N = 3000              # rows of a large tape: one bad row is a third of the default share, four are too many


@pytest.fixture
def bronze(tmp_path):
    "Two streams; what is broken in the tests is the first one."
    put(tmp_path / "bronze", tape(8, n=N), 8)
    put(tmp_path / "bronze", tape(8, stream=ETH), 8, ETH)
    return tmp_path / "bronze"


@pytest.fixture
def lake(tmp_path): return tmp_path / "lake"


def command(bronze, lake, *more, cwd):
    return cli("trades", "--input", bronze, "--output", lake, *more, cwd=cwd)


def only_eth(lake):
    "The other stream is done, the broken one has left nothing."
    files = sorted(str(p.relative_to(lake / "silver")) for p in (lake / "silver").rglob("*") if p.is_file())
    assert files == [f"trades/{leaf(8, ETH)}/part-0.parquet"] and lakes.leftovers(lake) == []
    assert_frame_equal(dataset(lake / "silver"), features(trades=tape(8, stream=ETH), config=SMALL), check_exact=True)


def refused(bronze, lake, kind, *texts):
    "The run raises `kind` with all `texts`; the other stream is complete."
    with pytest.raises(kind) as caught: run(lakes.trades(bronze, lake))
    assert type(caught.value) is kind
    for text in texts: assert text in str(caught.value)
    assert statuses(caught.value.report) == ["failed", "written"] and caught.value.report.units[0].error is caught.value
    only_eth(lake)
    return caught.value


def spoil(frame, rows, **values):
    "`frame` with other values in `rows`."
    where = pl.int_range(pl.len()).is_in(rows)
    return frame.with_columns(pl.when(where).then(v).otherwise(k).alias(k) for k, v in values.items())


# ---- what is not there

def test_missing_path(tmp_path, lake):
    (tmp_path / "bronze").mkdir()
    with pytest.raises(InputNotFoundError, match="no such folder.*bronze"): run(lakes.trades(tmp_path / "bronse", lake))
    done = command(tmp_path / "bronse", lake, cwd=tmp_path)
    assert done.returncode == 2 and not lake.exists()
    assert (
        str(tmp_path / "bronse") in done.stderr
        and "Did you mean 'bronze'" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_empty_match(bronze, lake, tmp_path):
    with pytest.raises(EmptyMatchError, match="2024-08-08"):
        run(lakes.trades(bronze, lake), FilterSpec(start_date="2024-08-09"))
    done = command(bronze, lake, "--symbol", "BTC/USD", cwd=tmp_path)
    assert done.returncode == 2 and not lake.exists()
    for text in ("symbol=BTC/USD", "binance/BTC-USDT", "Did you mean 'BTC-USDT'"): assert text in done.stderr
    (tmp_path / "nothing").mkdir()
    assert command(tmp_path / "nothing", lake, cwd=tmp_path).returncode == 2


# ---- schema

@pytest.mark.parametrize("column", ["price", "amount", "side", "capture_ts"])
def test_missing_column(bronze, lake, column):
    path = put(bronze, tape(8, n=N).drop(column))
    error = refused(bronze, lake, SchemaError, str(path), f"column {column!r}", "missing")
    assert (error.column, error.path) == (column, str(path))


def test_missing_column_on_the_command_line(bronze, lake, tmp_path):
    path = put(bronze, tape(8, n=N).rename({"amount": "qty"}))
    done = command(bronze, lake, "--rolling-windows", "5,60,900", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for text in (str(path), "'amount'", "Did you mean 'qty'"): assert text in done.stderr
    assert "failed" in done.stdout and leaf(8) in done.stdout
    only_eth(lake)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("price", pl.lit([1.0]), "List"),
        ("capture_ts", pl.col("capture_ts").dt.replace_time_zone(None), "without a zone"),
        ("capture_ts", pl.col("timestamp"), "Int64"),
        ("side", pl.lit(True), "Boolean"),
        ("amount", pl.lit(2**53 + 1), "exactly"),
        ("timestamp", pl.col("timestamp") + 0.5, "exactly"),
        ("symbol", pl.lit(7), "String"),
    ],
)
def test_mistyped_column(bronze, lake, column, value, text):
    path = put(bronze, tape(8, n=N).with_columns(value.alias(column)))
    refused(bronze, lake, SchemaError, str(path), column, text)


def test_prices_as_text(bronze, lake):
    "Some venues send strings for numbers; what is no number is a bad price, never a guess."
    put(
        bronze,
        spoil(tape(8, n=N).with_columns(pl.col("price", "amount").cast(pl.String)), [17], price=pl.lit("61,837.5")),
    )
    report = run(lakes.trades(bronze, lake))
    assert report.units[0].quarantined == 1
    expected = features(trades=tape(8, n=N).filter(pl.int_range(pl.len()) != 17), config=SMALL)
    assert_frame_equal(dataset(lake / "silver/trades" / leaf(8)), expected, check_exact=True)


def test_two_symbols_in_one_partition(bronze, lake):
    put(bronze, spoil(tape(8, n=N), [5], symbol=pl.lit("ETH-USDT")))
    refused(bronze, lake, PartitionError, "BTC-USDT", "ETH-USDT", "one partition")


def test_column_and_folder_disagree(bronze, lake):
    put(bronze, tape(8, n=N).with_columns(exchange=pl.lit("kraken")))
    refused(bronze, lake, PartitionError, "'kraken'", "'binance'")


# ---- files

@pytest.mark.parametrize(("data", "text"), [
    (lambda whole: whole[:-100], "truncated"), (lambda whole: whole[:len(whole) // 2], "truncated"),
    (lambda whole: b"<html>502 Bad Gateway</html>", "<html>502"),
    (lambda whole: whole[:10] + b"\xff" * 290 + whole[300:], "damaged")])
def test_broken_parquet(bronze, lake, data, text):
    path = bronze / leaf(8) / "data.parquet"
    put(bronze, data(path.read_bytes()))
    refused(bronze, lake, CorruptFileError, str(path), text)


def test_truncated_parquet_on_the_command_line(bronze, lake, tmp_path):
    path = bronze / leaf(8) / "data.parquet"
    put(bronze, path.read_bytes()[:-100])
    done = command(bronze, lake, "--rolling-windows", "5,60,900", cwd=tmp_path)
    assert (
        done.returncode == 1
        and str(path) in done.stderr
        and "truncated" in done.stderr
        and "Traceback" not in done.stderr
    )
    only_eth(lake)


def test_zero_bytes(bronze, lake, tmp_path):
    "Other partitions go on, nothing is published for this one."
    path = put(bronze, b"")
    done = command(bronze, lake, "--rolling-windows", "5,60,900", cwd=tmp_path)
    assert (
        done.returncode == 1
        and str(path) in done.stderr
        and "0 bytes" in done.stderr
        and "Traceback" not in done.stderr
    )
    only_eth(lake)


def test_zero_bytes_beside_a_good_file(bronze, lake):
    path = put(bronze, b"", name="part-1.parquet")
    with pytest.raises(CorruptFileError, match="0 bytes") as caught:
        run(lakes.trades(bronze, lake), FilterSpec(symbol="BTC-USDT"))
    assert caught.value.path == str(path) and lakes.leftovers(lake) == [] and not (lake / "silver").exists()


def test_duplicated_file(bronze, lake):
    "A copy beside the original: each trade counts once, the rest is counted as repeats."
    put(bronze, tape(8, n=N), name="copy.parquet")
    report = run(lakes.trades(bronze, lake))
    n = tape(8, n=N).height
    assert (report.units[0].rows_in, report.units[0].duplicates, report.units[0].rows["silver"]) == (2 * n, n, n)


def test_failure_keeps_what_was_there(bronze, lake):
    run(lakes.trades(bronze, lake))
    before = lakes.contents(lake), lakes.places(lake / "silver")
    for data in (tape(8, n=N).drop("price"), b"<html>", spoil(tape(8, n=N), [1, 2, 3, 4, 5], price=0.0)):
        put(bronze, data)
        with pytest.raises((SchemaError, CorruptFileError, BadDataError)): run(lakes.trades(bronze, lake))
        assert (lakes.contents(lake), lakes.places(lake / "silver")) == before


# ---- rows

BAD = [
    ("price", None, "bad_price"),
    ("price", float("nan"), "bad_price"),
    ("price", float("inf"), "bad_price"),
    ("price", 0.0, "bad_price"),
    ("price", -1.0, "bad_price"),
    ("amount", None, "bad_size"),
    ("amount", float("nan"), "bad_size"),
    ("amount", -1e-9, "bad_size"),
    ("capture_ts", None, "bad_timestamp"),
    ("timestamp", 0, "bad_timestamp"),
    ("timestamp", -1, "bad_timestamp"),
    ("timestamp", 4_102_444_800_000, "bad_timestamp"),
]


def clean(rows): return tape(8, n=N).filter(~pl.int_range(pl.len()).is_in(rows))


@pytest.mark.parametrize(("column", "value", "reason"), BAD)
def test_few_bad_rows_go_to_quarantine(bronze, lake, column, value, reason):
    rows = [0, 1500, N + 39]                                     # the first and the last row of the file as well
    frame = spoil(tape(8, n=N), rows, **{column: pl.lit(value)})
    path = put(bronze, frame)
    report = run(lakes.trades(bronze, lake))
    assert [u.quarantined for u in report.units] == [3, 0] and report.totals()["quarantined"] == 3
    aside = dataset(lake / ".daedalus/silver/trades/quarantine" / leaf(8)).sort("row")
    assert aside["row"].to_list() == rows and set(aside["file"]) == {str(path)} and set(aside["reason"]) == {reason}
    assert_frame_equal(aside.select(frame.columns), frame[rows], check_exact=True)
    assert_frame_equal(
        dataset(lake / "silver/trades" / leaf(8)), features(trades=clean(rows), config=SMALL), check_exact=True
    )
    assert not list((lake / ".daedalus/silver/trades/quarantine" / leaf(8, ETH)).rglob("*.parquet"))


@pytest.mark.parametrize(("column", "value", "reason"), BAD)
def test_many_bad_rows_fail(bronze, lake, column, value, reason):
    rows = [77, 1500, 1501, 2000]
    path = put(bronze, spoil(tape(8, n=N), rows, **{column: pl.lit(value)}))
    error = refused(bronze, lake, BadDataError, str(path), f"column {column!r}", "row 77", "4 of 3040", reason, "0.10%")
    assert (error.row, error.column) == (77, column)
    assert not list((lake / ".daedalus").rglob("rows.parquet"))


def test_bad_rows_in_a_later_file_name_that_file(bronze, lake):
    (bronze / leaf(8) / "data.parquet").unlink()
    put(bronze, tape(8, n=N)[:2000], name="part-0.parquet")
    path = put(bronze, spoil(tape(8, n=N)[2000:], [3], price=-5.0), name="part-1.parquet")
    run(lakes.trades(bronze, lake))
    aside = dataset(lake / ".daedalus/silver/trades/quarantine" / leaf(8))
    assert aside.select("file", "row", "price").rows() == [(str(path), 3, -5.0)]
    assert_frame_equal(
        dataset(lake / "silver/trades" / leaf(8)), features(trades=clean([2003]), config=SMALL), check_exact=True
    )


def test_bad_rows_on_the_command_line(bronze, lake, tmp_path):
    path = put(bronze, spoil(tape(8, n=N), [10, 20, 30, 40], price=float("nan")))
    done = command(bronze, lake, "--rolling-windows", "5,60,900", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for text in (str(path), "'price'", "row 10", "max_bad_fraction"): assert text in done.stderr
    only_eth(lake)
    (tmp_path / "c.yaml").write_text("features: {max_bad_fraction: 0.01}")
    done = command(bronze, lake, "--rolling-windows", "5,60,900", "--config", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0 and "4 quarantined" in done.stdout
    assert_frame_equal(
        dataset(lake / "silver/trades" / leaf(8)),
        features(trades=clean([10, 20, 30, 40]), config=SMALL),
        check_exact=True,
    )


def test_max_bad_fraction_is_inclusive(bronze, lake):
    put(bronze, spoil(tape(8, n=N), [1, 2], price=0.0))
    exactly = SMALL.model_copy(update={"max_bad_fraction": 2 / (N + 40)})
    assert run(lakes.trades(bronze, lake), features=exactly).totals()["quarantined"] == 2
    below = SMALL.model_copy(update={"max_bad_fraction": 1.9 / (N + 40)})
    with pytest.raises(BadDataError): run(lakes.trades(bronze, lake.parent / "other"), features=below)


def test_mended_input_empties_the_quarantine(bronze, lake):
    put(bronze, spoil(tape(8, n=N), [1], price=0.0))
    run(lakes.trades(bronze, lake))
    assert list((lake / ".daedalus").rglob("rows.parquet"))
    put(bronze, tape(8, n=N))
    assert run(lakes.trades(bronze, lake)).totals()["quarantined"] == 0
    assert not list((lake / ".daedalus").rglob("rows.parquet"))


def test_bad_quotes(tmp_path, lake):
    "A side may be absent; NaN is a fault; a crossed or non-positive quote is kept, with nothing defined."
    frame = spoil(lakes.quotes(8, n=N), [5], bid=float("nan"))
    for row, values in ((7, {"bid": None}), (8, {"ask": 0.0}), (9, {"bid": 1e9}), (10, {"bid_volume": None})):
        frame = spoil(frame, [row], **{k: pl.lit(v) for k, v in values.items()})
    put(tmp_path / "b", frame)
    report = run(lakes.ticker(tmp_path / "b", lake))
    silver = dataset(lake / "silver/ticker")
    assert report.totals()["quarantined"] == 1 and silver.height == N + 39
    assert silver["mid_price"].is_null().arg_true().to_list() == [6, 7, 8]
    assert silver["spread"].is_null().arg_true().to_list() == [6, 7, 8]
    assert silver["microprice"].is_null().arg_true().to_list() == [6, 7, 8, 9]


# ---- sides

def test_unknown_sides_are_null_and_no_sell(bronze, lake):
    odd = {3: None, 4: "", 5: "unknown", 6: "b", 7: "SELL", 8: "Buy", 9: " sell", 10: "s", 11: "True"}
    frame = tape(8, n=N)
    for row, side in odd.items(): frame = spoil(frame, [row], side=pl.lit(side, pl.String))
    put(bronze, frame)
    config = FeatureConfig(rolling_windows=(5, 60, 900), bar_durations=(60,))
    run(lakes.trades(bronze, lake), features=config)
    silver = dataset(lake / "silver/trades" / leaf(8))
    assert silver["side"].to_list() == frame["side"].to_list()
    unknown = [3, 4, 5, 6, 9, 10, 11]
    assert (
        silver["is_buy"].is_null().arg_true().to_list() == silver["side_sign"].is_null().arg_true().to_list() == unknown
    )
    assert silver["signed_volume"].is_null().arg_true().to_list() == unknown
    assert (silver["is_buy"][7], silver["is_buy"][8]) == (0, 1)
    run(lakes.bars(lake / "silver/trades", lake), features=config)
    bars = dataset(lake / "gold/trades_bars/60s" / leaf(8))
    sold = frame.filter(pl.col("side").str.to_lowercase() == "sell")["amount"].sum()
    assert bars["sell_volume"].sum() == pytest.approx(sold, rel=1e-12)
    known = bars["sell_volume"].sum() + bars["buy_volume"].sum()
    assert bars["volume"].sum() - known == pytest.approx(frame[unknown]["amount"].sum(), rel=1e-9)


def test_only_unknown_sides(bronze, lake):
    put(bronze, tape(8, n=N).with_columns(side=pl.lit(None, pl.String)))
    run(lakes.trades(bronze, lake), features=FeatureConfig(rolling_windows=(60,)))
    silver = dataset(lake / "silver/trades" / leaf(8))
    for c in ("is_buy", "side_sign", "signed_volume", "buy_ratio_60s", "tfi_60s"):
        assert silver[c].null_count() == silver.height
    assert silver["volume_60s"].null_count() == 0


# ---- times

@pytest.mark.parametrize(("unit", "factor"), [("s", 1e-3), ("us", 1e3), ("ns", 1e6)])
def test_timestamps_in_another_unit(bronze, lake, unit, factor):
    path = put(bronze, tape(8, n=N).with_columns((pl.col("timestamp") * factor).floor().cast(pl.Int64)))
    refused(bronze, lake, TimeUnitError, str(path), "'timestamp'", f"They fit '{unit}'", "2024-08-08")


def test_capture_times_of_1970(bronze, lake):
    "Milliseconds that were read as microseconds."
    put(bronze, tape(8, n=N).with_columns((pl.col("capture_ts").dt.epoch("us") // 1000).cast(lakes.UTC_US)))
    refused(bronze, lake, TimeUnitError, "'capture_ts'", "They fit 'ms'", "2024-08-08")


def test_time_unit_on_the_command_line(bronze, lake, tmp_path):
    put(bronze, tape(8, n=N).with_columns(pl.col("timestamp") // 1000))
    done = command(bronze, lake, "--rolling-windows", "5,60,900", cwd=tmp_path)
    assert done.returncode == 1 and "They fit 's'" in done.stderr and "Traceback" not in done.stderr
    only_eth(lake)


# ---- order and repeats

@pytest.mark.parametrize("seed", [1, 2])
def test_unsorted_rows(bronze, lake, seed):
    put(bronze, tape(8, n=N).sample(fraction=1.0, shuffle=True, seed=seed))
    report = run(lakes.trades(bronze, lake))
    assert (report.units[0].duplicates, report.units[0].quarantined) == (0, 0)
    assert_frame_equal(
        dataset(lake / "silver/trades" / leaf(8)), features(trades=tape(8, n=N), config=SMALL), check_exact=True
    )


def test_duplicated_rows(bronze, lake, tmp_path):
    frame = tape(8, n=N)
    twice = pl.concat([frame, frame[100:150], frame[120:130]]).sample(fraction=1.0, shuffle=True, seed=3)
    put(bronze, twice)
    done = command(bronze, lake, "--rolling-windows", "5,60,900", cwd=tmp_path)
    assert done.returncode == 0 and "60 repeats dropped" in done.stdout
    plain = features(trades=frame, config=SMALL)
    assert_frame_equal(dataset(lake / "silver/trades" / leaf(8)), plain, check_exact=True)
    report = run(lakes.trades(bronze, tmp_path / "again"))
    assert [u.duplicates for u in report.units] == [60, 0]


def test_repeats_over_midnight(tmp_path, lake):
    "A trade of the last minutes sent again next day is dropped; an id that comes back later is another trade."
    put(tmp_path / "b", tape(8), 8)
    again = tape(8).tail(3).with_columns(pl.col("capture_ts") + pl.duration(minutes=5))
    old = tape(8).head(1).with_columns(pl.col("capture_ts") + pl.duration(hours=30))
    put(tmp_path / "b", pl.concat([again, tape(9), old]), 9)
    report = run(lakes.trades(tmp_path / "b", lake))
    assert [u.duplicates for u in report.units] == [0, 3]
    other = old.with_columns(trade_id=pl.lit("0"))  # in one frame the id would be a repeat within the partition
    plain = features(trades=pl.concat([tape(8), tape(9), other]).sort("capture_ts", maintain_order=True), config=SMALL)
    assert_frame_equal(dataset(lake / "silver/trades").drop("trade_id"), plain.drop("trade_id"), check_exact=True)


def test_repeats_with_other_content_are_set_aside(bronze, lake):
    frame = tape(8, n=N)
    other = frame[500:502].with_columns(pl.col("price") + 1.0)
    path = put(bronze, pl.concat([frame, other]))
    report = run(lakes.trades(bronze, lake))
    assert (report.units[0].duplicates, report.units[0].quarantined) == (0, 2)
    aside = dataset(lake / ".daedalus/silver/trades/quarantine" / leaf(8))
    assert aside.select("file", "row", "reason", "trade_id", "price").rows() == [
        (str(path), N + 40 + k, "conflicting_repeat", other["trade_id"][k], other["price"][k]) for k in (0, 1)]
    assert_frame_equal(
        dataset(lake / "silver/trades" / leaf(8)), features(trades=frame, config=SMALL), check_exact=True
    )


def test_bad_row_and_conflicting_repeat_have_the_rows_of_the_file(bronze, lake):
    "Row numbers are those of the file, also behind rows that were taken out."
    frame = spoil(tape(8, n=N), [10], price=0.0)
    put(bronze, pl.concat([frame, frame[500:501].with_columns(pl.col("price") + 1.0)]))
    run(lakes.trades(bronze, lake))
    aside = dataset(lake / ".daedalus/silver/trades/quarantine" / leaf(8)).sort("row")
    assert aside.select("row", "reason").rows() == [(10, "bad_price"), (N + 40, "conflicting_repeat")]


def test_rows_of_the_day_before_are_never_fed_backwards(tmp_path, lake):
    put(tmp_path / "b", tape(8, n=N), 8)
    late = tape(8, n=N)[100:102].with_columns(trade_id=pl.lit("x") + pl.col("trade_id"))
    put(tmp_path / "b", pl.concat([tape(9, n=N), late]), 9)
    report = run(lakes.trades(tmp_path / "b", lake))
    assert [u.quarantined for u in report.units] == [0, 2]
    aside = dataset(lake / ".daedalus/silver/trades/quarantine" / leaf(9))
    assert aside.select("row", "reason", "trade_id").rows() == [
        (N + 40 + k, "wrong_partition", late["trade_id"][k]) for k in (0, 1)
    ]
    plain = features(trades=pl.concat([tape(8, n=N), tape(9, n=N)]), config=SMALL)
    assert_frame_equal(dataset(lake / "silver/trades"), plain, check_exact=True)


def test_rows_late_by_the_clock_are_never_fed_backwards(tmp_path, lake):
    "With the exchange's time as clock a row of the right day may still be older than all that the day before saw."
    put(tmp_path / "b", tape(8, n=N), 8)
    late = tape(9, n=N)[:2].with_columns(trade_id=pl.lit("x") + pl.col("trade_id"), timestamp=tape(8)["timestamp"][:2])
    put(tmp_path / "b", pl.concat([tape(9, n=N), late]), 9)
    by_event = SMALL.model_copy(update={"clock": "timestamp"})
    report = run(lakes.trades(tmp_path / "b", lake), features=by_event)
    assert [u.quarantined for u in report.units] == [0, 2]
    aside = dataset(lake / ".daedalus/silver/trades/quarantine" / leaf(9))
    assert aside.select("row", "reason").rows() == [(N + 40, "late"), (N + 41, "late")]


# ---- text formats

def test_broken_line_of_ndjson(tmp_path, lake):
    path = put(tmp_path / "b", tape(8), name="data.ndjson")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:300], lines[300][:40] + b"\n", *lines[301:]]))
    with pytest.raises(CorruptFileError, match=r"data\.ndjson:301"):
        run(lakes.trades(tmp_path / "b", lake, fmt="ndjson"))
    assert lakes.leftovers(lake) == [] and not list(lake.rglob("*.parquet"))


# ---- configuration

@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("features:\n  depth_levels: 5\n  rolling_window: [5]\n", 3, "Did you mean 'rolling_windows'"),
        ("storage:\n  output_rot: x\n", 2, "Did you mean 'output_root'"),
        ("features:\n  max_gap_s: 300\n  max_gap_s: 400\n", 3, "max_gap_s"),
        ("features:\n  overrides:\n    BTC-USDT:\n      max_gap: 5\n", 4, "Did you mean 'max_gap_s'"),
        ("features:\n  max_gap_s: .nan\n", 2, "finite number"),
        ("features:\n  categories: [structurel]\n", 2, "structural"),
    ],
)
def test_configuration_errors(bronze, lake, tmp_path, text, line, hint):
    (tmp_path / "c.yaml").write_text(text)
    done = command(bronze, lake, "--config", tmp_path / "c.yaml", cwd=tmp_path)
    assert done.returncode == 2 and not lake.exists()
    assert f"c.yaml:{line}" in done.stderr and hint in done.stderr and "Traceback" not in done.stderr


def test_configuration_file_is_not_there(bronze, lake, tmp_path):
    done = command(bronze, lake, "--config", tmp_path / "none.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "none.yaml" in done.stderr and "Traceback" not in done.stderr
