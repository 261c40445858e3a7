"Incremental runs: what is computed again and what is not, what a failure leaves, and the same bytes any way round."
import os
import time

import lakes
import polars as pl
import pytest
from lakes import BTC, ETH, SMALL, dataset, leaf, put, run, statuses, tape
from polars.testing import assert_frame_equal

from daedalus_etl.core.base import BaseTransform, StatefulTransform
from daedalus_etl.core.config import FeatureConfig, FilterSpec, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.errors import ConflictError, StaleStateError, StateError, TransformError
from daedalus_etl.features.frames import features
from daedalus_etl.transforms.trades import TradesFeatureTransform


@pytest.fixture
def bronze(tmp_path):
    "Two days of one stream."
    root = tmp_path / "bronze"
    for day in (8, 9): put(root, tape(day), day)
    return root


@pytest.fixture
def lake(tmp_path): return tmp_path / "lake"


def change(root, day, row, **values):
    "Replace the day's file by one in which some values of `row` differ."
    frame = tape(day).with_row_index("i")
    changed = frame.with_columns(pl.when(pl.col("i") == row).then(v).otherwise(k).alias(k) for k, v in values.items())
    return put(root, changed.drop("i"), day)


def silver_files(lake): return {k: v for k, v in lakes.contents(lake).items() if k.startswith(("silver", "gold"))}


# ---- what a run does again

def test_second_run_writes_not_one_byte(bronze, lake):
    first = run(lakes.trades(bronze, lake))
    before = lakes.places(lake)
    second = run(lakes.trades(bronze, lake))
    assert (statuses(first), statuses(second)) == (["written"] * 2, ["done"] * 2)
    assert lakes.places(lake) == before
    assert second["write_stats"]["silver"] | {"path": ""} == {"rows": 0, "bytes": 0, "files": 0, "path": ""}
    run(lakes.bars(lake / "silver/trades", lake))
    before = lakes.places(lake)
    assert statuses(run(lakes.bars(lake / "silver/trades", lake))) == ["done"] * 2
    assert lakes.places(lake) == before


def test_dry_run_writes_nothing_at_all(bronze, lake):
    assert statuses(run(lakes.trades(bronze, lake), dry_run=True)) == ["new", "new"]
    assert not lake.exists()


def test_change_early_in_a_day_stops_at_its_end(bronze, lake):
    run(lakes.trades(bronze, lake))
    second, third = lakes.places(lake / "silver/trades" / leaf(9)), lakes.footer(lake / "silver/trades", 8)
    change(bronze, 8, 100, price=59_000.0)
    report = run(lakes.trades(bronze, lake))
    assert [(u.status, u.reason) for u in report.units] == [("written", "the input changed"), ("done", "up to date")]
    assert lakes.places(lake / "silver/trades" / leaf(9)) == second
    now = lakes.footer(lake / "silver/trades", 8)
    assert now["state"] == third["state"] and now["key"] != third["key"]
    assert 59_000.0 in dataset(lake / "silver/trades")["price"]


def test_change_near_midnight_reaches_into_the_next_day(bronze, lake):
    run(lakes.trades(bronze, lake))
    change(bronze, 8, tape(8).height - 2, price=59_000.0)
    report = run(lakes.trades(bronze, lake))
    assert [u.reason for u in report.units] == ["the input changed", "the state before it changed"]
    fresh = lake.parent / "fresh"
    run(lakes.trades(bronze, fresh))
    assert silver_files(lake) == silver_files(fresh)


def test_change_of_the_first_day_stops_in_the_second(bronze, lake):
    put(bronze, tape(10), 10)
    run(lakes.trades(bronze, lake))
    change(bronze, 8, tape(8).height - 2, amount=7.0)
    report = run(lakes.trades(bronze, lake))
    assert [u.reason for u in report.units] == ["the input changed", "the state before it changed", "up to date"]


def test_touched_but_equal_input_is_computed_and_converges(bronze, lake):
    run(lakes.trades(bronze, lake))
    os.utime(bronze / leaf(8) / "data.parquet", ns=(1, 1))
    report = run(lakes.trades(bronze, lake))
    assert statuses(report) == ["written", "done"]


def test_later_day_closes_the_last_bar(bronze, tmp_path, lake):
    part = tmp_path / "part"
    put(part, tape(8), 8)
    run(lakes.trades(part, lake))

    def gold():
        return run(
            lakes.bars(lake / "silver/trades", lake), features=SMALL.model_copy(update={"bar_durations": (3600,)})
        )
    gold()
    path = lake / "gold/trades_bars/3600s" / leaf(8)
    before = dataset(path)
    assert before["is_complete"].to_list() == [True] * 23 + [False]
    put(part, tape(9), 9)
    assert [(u.status, u.reason) for u in run(lakes.trades(part, lake)).units] == [
        ("done", "up to date"), ("written", "no output yet")]
    report = gold()
    assert [(u.status, u.reason) for u in report.units] == [
        ("written", "the input changed"),
        ("written", "no output yet"),
    ]
    after = dataset(path)
    assert after["is_complete"].all()
    assert_frame_equal(after.drop("is_complete"), before.drop("is_complete"), check_exact=True)


def test_stale_by_config(bronze, lake):
    run(lakes.trades(bronze, lake))
    other = FeatureConfig(rolling_windows=(5, 60))
    report = run(lakes.trades(bronze, lake), features=other)
    assert [(u.status, u.reason) for u in report.units] == [("written", "made by another config")] * 2
    assert "vwap_900s" not in dataset(lake / "silver/trades").columns
    assert statuses(run(lakes.trades(bronze, lake), features=other)) == ["done"] * 2


def test_parameters_of_others_make_nothing_stale(bronze, lake):
    run(lakes.trades(bronze, lake))
    same = FeatureConfig(rolling_windows=(5, 60, 900), vpin_bucket_size=7.0, bar_durations=(7,))
    assert statuses(run(lakes.trades(bronze, lake), features=same)) == ["done"] * 2


@pytest.mark.parametrize("written", [{"compression": "snappy"}, {"row_group_size": 100}, {"compression_level": 9}])
def test_stale_by_way_of_writing(bronze, lake, written):
    run(lakes.trades(bronze, lake))
    assert [u.reason for u in run(lakes.trades(bronze, lake, **written)).units] == ["made by another config"] * 2


class OtherCode(TradesFeatureTransform):
    "The same transform in other code."
    def code_version(self): return "f" * 64


def test_stale_by_code(bronze, lake):
    run(lakes.trades(bronze, lake))
    other = OtherCode(lakes.trades(bronze, lake).config)
    assert [(u.status, u.reason) for u in run(other).units] == [("written", "made by another code")] * 2
    assert lakes.footer(lake / "silver/trades")["code"] == "f" * 64


def test_plan_says_the_same_as_the_run(bronze, lake):
    run(lakes.trades(bronze, lake), FilterSpec(day=8))
    plan = run(lakes.trades(bronze, lake), dry_run=True)
    assert statuses(plan) == ["done", "new"]
    change(bronze, 8, 3, price=1.0)
    before = lakes.places(lake)
    assert statuses(run(lakes.trades(bronze, lake), dry_run=True)) == ["changed", "new"]
    assert lakes.places(lake) == before


def test_removed_output_is_made_again(bronze, lake):
    run(lakes.trades(bronze, lake))
    before = silver_files(lake)
    (lake / "silver/trades" / leaf(8) / "part-0.parquet").unlink()
    assert statuses(run(lakes.trades(bronze, lake))) == ["written", "done"]
    assert silver_files(lake) == before


# ---- the state before

def test_missing_state_is_refused_with_the_command_that_mends_it(bronze, lake):
    with pytest.raises(StaleStateError) as caught: run(lakes.trades(bronze, lake), FilterSpec(day=9))
    assert caught.value.exit_code == 3
    assert "--start-date 2024-08-08" in str(caught.value) and "--cold-start" in str(caught.value)
    assert leaf(8) in str(caught.value)
    assert statuses(caught.value.report) == ["failed"] and not silver_files(lake)


def test_state_of_another_config_is_refused(bronze, lake):
    run(lakes.trades(bronze, lake), FilterSpec(day=8))
    with pytest.raises(StaleStateError):
        run(lakes.trades(bronze, lake), FilterSpec(day=9), FeatureConfig(rolling_windows=(5,)))


def test_cold_start_is_accepted_and_recorded(bronze, lake):
    run(lakes.trades(bronze, lake), FilterSpec(day=9), cold_start=True)
    root = lake / "silver/trades"
    assert lakes.footer(root, 9)["parent"] == "cold"
    cold = dataset(root)
    assert cold["log_return"][0] is None and cold["segment_age_s"][0] == 0.0
    assert statuses(run(lakes.trades(bronze, lake), FilterSpec(day=9), cold_start=True)) == ["done"]
    report = run(lakes.trades(bronze, lake))                      # with its past it is another result
    assert [u.reason for u in report.units] == ["no output yet", "the state before it changed"]
    assert lakes.footer(root, 9)["parent"] == lakes.footer(root, 8)["state"]
    assert lakes.footer(root, 8)["parent"] == "none"


def test_cold_start_uses_the_past_where_there_is_one(bronze, lake):
    run(lakes.trades(bronze, lake), FilterSpec(day=8))
    run(lakes.trades(bronze, lake), FilterSpec(day=9), cold_start=True)
    root = lake / "silver/trades"
    assert lakes.footer(root, 9)["parent"] == lakes.footer(root, 8)["state"]


def test_damaged_state_is_refused(bronze, lake):
    run(lakes.trades(bronze, lake), FilterSpec(day=8))
    [state] = (lake / ".daedalus/silver/trades/states").iterdir()
    state.write_bytes(state.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(StateError, match="damaged"): run(lakes.trades(bronze, lake), FilterSpec(day=9))
    assert list(silver_files(lake)) == [f"silver/trades/{leaf(8)}/part-0.parquet"] and not lakes.leftovers(lake)


def test_state_path_goes_on_in_another_lake(bronze, tmp_path, lake):
    "The first days and the later ones never meet; the state is all that is handed on."
    states, other = tmp_path / "states", tmp_path / "other"
    first, later = tmp_path / "first", tmp_path / "later"
    put(first, tape(8), 8)
    put(later, tape(9), 9)
    run(lakes.trades(first, lake), state_path=states)
    run(lakes.trades(later, other), state_path=states)
    whole = tmp_path / "whole"
    run(lakes.trades(bronze, whole))
    assert_frame_equal(dataset(other / "silver/trades"), dataset(whole / "silver/trades" / leaf(9)), check_exact=True)
    assert lakes.footer(other / "silver/trades", 9)["state"] == lakes.footer(whole / "silver/trades", 9)["state"]


def test_state_path_over_the_same_input_gives_the_same_bytes(bronze, tmp_path, lake):
    states, other = tmp_path / "states", tmp_path / "other"
    run(lakes.trades(bronze, lake))
    run(lakes.trades(bronze, other), FilterSpec(day=8), state_path=states)
    third = tmp_path / "third"
    run(lakes.trades(bronze, third), FilterSpec(day=9), state_path=states)
    key = f"silver/trades/{leaf(9)}/part-0.parquet"
    assert silver_files(third)[key] == silver_files(lake)[key]


def test_state_path_of_another_config_is_refused(bronze, tmp_path, lake):
    states = tmp_path / "states"
    run(lakes.trades(bronze, lake), FilterSpec(day=8), state_path=states)
    with pytest.raises(StateError, match="another config"):
        run(
            lakes.trades(bronze, tmp_path / "other"),
            FilterSpec(day=9),
            FeatureConfig(rolling_windows=(5,)),
            state_path=states,
        )


# ---- the same bytes

def test_bytes_do_not_depend_on_the_run(bronze, lake, tmp_path):
    for day in (8, 9): put(bronze, tape(day, stream=ETH), day, ETH)
    made = []
    for name, workers in (("a", 1), ("b", 2), ("c", 2)):
        root = tmp_path / name
        run(lakes.trades(bronze, root), workers=workers)
        made.append(lakes.contents(root))
    assert made[0] == made[1] == made[2] and len(silver_files(tmp_path / "a")) == 4
    for day in (8, 9): run(lakes.trades(bronze, lake), FilterSpec(day=day))
    assert lakes.contents(lake) == made[0]


def test_bytes_of_bars_do_not_depend_on_the_run(bronze, lake, tmp_path):
    run(lakes.trades(bronze, lake))
    silver, made = lake / "silver/trades", []
    for name, specs in (("a", [None]), ("b", [FilterSpec(day=8), FilterSpec(day=9)])):
        for spec in specs: run(lakes.bars(silver, tmp_path / name), spec, workers=len(specs))
        made.append(lakes.contents(tmp_path / name))
    assert made[0] == made[1]


def test_silver_equals_one_plain_frame(bronze, lake):
    run(lakes.trades(bronze, lake))
    plain = features(trades=pl.concat([tape(8), tape(9)]), config=SMALL)
    assert_frame_equal(dataset(lake / "silver/trades"), plain, check_exact=True)


def test_dataset_holds_parquet_only(bronze, lake):
    run(lakes.trades(bronze, lake))
    run(lakes.bars(lake / "silver/trades", lake))
    assert lakes.leftovers(lake) == []
    for root in (lake / "silver", lake / "gold"):
        assert {p.name for p in root.rglob("*") if p.is_file()} == {"part-0.parquet"}
    assert pl.scan_parquet(lake / "silver/trades").select(pl.len()).collect().item() == 2 * tape().height


# ---- failures

def test_broken_stream_stops_alone(bronze, lake):
    put(bronze, tape(8, stream=ETH), 8, ETH)
    put(bronze, tape(9, stream=ETH).drop("price"), 9, ETH)
    put(bronze, tape(10, stream=ETH), 10, ETH)
    with pytest.raises(Exception, match="price") as caught: run(lakes.trades(bronze, lake))
    report = caught.value.report
    assert statuses(report) == ["written", "written", "written", "failed", "skipped"]
    assert not report.success and [u.partition for u in report.failed] == [leaf(9, ETH)]
    assert leaf(9, ETH) in report.units[4].reason
    assert sorted(silver_files(lake)) == sorted(
        f"silver/trades/{x}/part-0.parquet" for x in (leaf(8), leaf(9), leaf(8, ETH))
    )
    assert lakes.leftovers(lake) == []
    put(bronze, tape(9, stream=ETH), 9, ETH)
    assert statuses(run(lakes.trades(bronze, lake))) == ["done", "done", "done", "written", "written"]


def test_failure_leaves_the_old_result(bronze, lake):
    run(lakes.trades(bronze, lake))
    before = lakes.places(lake)
    put(bronze, tape(9).drop("amount"), 9)
    with pytest.raises(Exception, match="amount"): run(lakes.trades(bronze, lake))
    assert lakes.places(lake) == before


class Faulty(TradesFeatureTransform):
    "Fails in the middle of the second day's rows."
    fault: type[BaseException] = RuntimeError
    day = 9

    def transform(self, inputs, context):
        made = super().transform(inputs, context)
        if f"day={self.day:02}" not in context.partition.path: return made
        def boom(frame):
            if frame["capture_ts"].dt.hour().max() > 12: raise self.fault("boom")
            return frame
        return {k: f.map_batches(boom, streamable=True) for k, f in made.items()}


def faulty(bronze, lake, fault, day=9):
    made = Faulty(lakes.trades(bronze, lake).config)
    made.fault, made.day = fault, day
    return made


def test_error_within_the_rows_leaves_nothing(bronze, lake):
    with pytest.raises(BaseException, match="boom") as caught: run(faulty(bronze, lake, RuntimeError))
    assert statuses(caught.value.report) == ["written", "failed"]
    assert [p for p in lakes.leftovers(lake) if "/states/" not in p] == []
    assert list(silver_files(lake)) == [f"silver/trades/{leaf(8)}/part-0.parquet"]


def test_nothing_writes_on_after_a_failed_run(bronze, lake):
    "When the error is raised, all is over: no state of the failed day appears, now or later."
    with pytest.raises(BaseException, match="boom"): run(faulty(bronze, lake, RuntimeError))
    time.sleep(0.5)
    named = lakes.footer(lake / "silver/trades", 8)["state"]
    assert [p.name for p in (lake / ".daedalus/silver/trades/states").iterdir()] == [f"{named}.state"]


class Interrupted(TradesFeatureTransform):
    "Somebody presses Ctrl-C while the second day is computed."
    def transform(self, inputs, context):
        if "day=09" in context.partition.path: raise KeyboardInterrupt
        return super().transform(inputs, context)


class InterruptedLate(TradesFeatureTransform):
    "Somebody presses Ctrl-C when all rows are written and nothing is published."
    def footer(self, context):
        if "day=09" in context.partition.path: raise KeyboardInterrupt
        return super().footer(context)


@pytest.mark.parametrize("kind", [Interrupted, InterruptedLate])
def test_interrupt_leaves_nothing(bronze, lake, kind):
    done = []
    made = kind(lakes.trades(bronze, lake).config)
    made.finalize = lambda context: done.append(context.execution_id)
    # polars wraps what is raised in the callback that makes the footer
    with pytest.raises(
        (KeyboardInterrupt, pl.exceptions.ComputeError), match=None if kind is Interrupted else "KeyboardInterrupt"
    ):
        run(made)
    assert len(done) == 1 and lakes.leftovers(lake) == []
    assert list(silver_files(lake)) == [f"silver/trades/{leaf(8)}/part-0.parquet"]
    assert statuses(run(lakes.trades(bronze, lake))) == ["written", "written"]       # the code is another


class Replacing(TradesFeatureTransform):
    "While it computes, somebody replaces the input."
    def transform(self, inputs, context):
        made = super().transform(inputs, context)
        if "day=09" in context.partition.path: put(self.source, tape(9).head(30), 9)
        return made


def test_input_replaced_while_it_is_read(bronze, lake):
    made = Replacing(lakes.trades(bronze, lake).config)
    made.source = bronze
    with pytest.raises(ConflictError, match=r"day=09/data\.parquet") as caught: run(made)
    assert caught.value.exit_code == 3 and lakes.leftovers(lake) == []
    assert list(silver_files(lake)) == [f"silver/trades/{leaf(8)}/part-0.parquet"]


def test_strangers_in_a_target_are_a_conflict_and_leave_no_stage(bronze, lake):
    stranger = lake / "silver/trades" / leaf(9) / "other.parquet"
    stranger.parent.mkdir(parents=True)
    tape().write_parquet(stranger)
    with pytest.raises(ConflictError, match=r"other\.parquet"): run(lakes.trades(bronze, lake))
    assert lakes.leftovers(lake) == []


class Two(BaseTransform):
    "Needs a rate for each trade."
    def transform(self, inputs, context):
        return {"silver": inputs["trades"].join(inputs["rates"], how="cross")}


def test_a_day_without_its_second_input_is_a_transform_error(bronze, tmp_path, lake):
    put(tmp_path / "rates", pl.DataFrame({"rate": [1.0]}), 8)
    inputs = {
        "trades": InputConfig(name="trades", path=bronze),
        "rates": InputConfig(name="rates", path=tmp_path / "rates"),
    }
    made = Two(
        TransformConfig(
            name="two", inputs=inputs, outputs={"silver": OutputConfig(name="silver", path=lake / "silver/two")}
        )
    )
    with pytest.raises(TransformError, match="rates") as caught: run(made)
    assert statuses(caught.value.report) == ["written", "failed"]


class Undeclared(BaseTransform):
    "Gives an output that it never declared."
    def transform(self, inputs, context): return {"silver": inputs["trades"], "extra": inputs["trades"]}


def test_undeclared_output(bronze, lake):
    with pytest.raises(TransformError, match="extra"): run(Undeclared(lakes.trades(bronze, lake).config))
    assert not silver_files(lake) and not lakes.leftovers(lake)


# ---- overrides, empty days, hours

def test_overrides_per_symbol(bronze, lake):
    for day in (8, 9): put(bronze, tape(day, stream=ETH), day, ETH)
    run(lakes.trades(bronze, lake))
    own = FeatureConfig(rolling_windows=(5, 60, 900), overrides={"ETH/USDT": {"max_gap_s": 60}})
    report = run(lakes.trades(bronze, lake), features=own)
    assert statuses(report) == ["done", "done", "written", "written"]
    eth = dataset(lake / "silver/trades/exchange=binance/symbol=ETH-USDT")
    plain = pl.concat([tape(8, stream=ETH), tape(9, stream=ETH)])
    strict = FeatureConfig(rolling_windows=(5, 60, 900), max_gap_s=60)
    assert_frame_equal(eth, features(trades=plain, config=strict), check_exact=True)
    assert eth["segment_id"].n_unique() > 100


def test_zero_rows_are_a_partition_with_a_footer(bronze, lake):
    put(bronze, tape(9).with_columns(price=pl.lit(-1.0)), 9)
    put(bronze, tape(10), 10)
    report = run(lakes.trades(bronze, lake), features=FeatureConfig(rolling_windows=(5, 60, 900), max_bad_fraction=1.0))
    assert [u.quarantined for u in report.units] == [0, tape(9).height, 0]
    path = lake / "silver/trades" / leaf(9) / "part-0.parquet"
    empty = pl.read_parquet(path, hive_partitioning=False)
    assert empty.height == 0
    assert (
        empty.schema
        == pl.read_parquet(lake / "silver/trades" / leaf(8) / "part-0.parquet", hive_partitioning=False).schema
    )
    eight, nine, ten = (lakes.footer(lake / "silver/trades", d) for d in (8, 9, 10))
    assert nine["state"] == eight["state"] and nine["parent"] == eight["state"] and ten["parent"] == nine["state"]
    assert set(nine) == set(eight)
    run(lakes.bars(lake / "silver/trades", lake))
    assert (
        pl.read_parquet(lake / "gold/trades_bars/60s" / leaf(9) / "part-0.parquet", hive_partitioning=False).height == 0
    )


def test_input_without_a_row(bronze, lake):
    put(bronze, tape(9).clear(), 9)
    assert [u.rows["silver"] for u in run(lakes.trades(bronze, lake)).units] == [tape().height, 0]


def test_partitions_of_an_hour(tmp_path, lake):
    root, whole = tmp_path / "hours", pl.concat([tape(8), tape(9)])
    for (stamp,), part in (
        whole.with_columns(pl.col("capture_ts").dt.truncate("1h").alias("h")).partition_by("h", as_dict=True).items()
    ):
        put(root, part.drop("h"), stamp.day, hour=stamp.hour)
    report = run(lakes.trades(root, lake))
    assert statuses(report) == ["written"] * 48
    assert report.units[5].partition == leaf(8, hour=5)
    assert_frame_equal(dataset(lake / "silver/trades"), features(trades=whole, config=SMALL), check_exact=True)
    run(lakes.bars(lake / "silver/trades", lake), features=SMALL.model_copy(update={"bar_durations": (900, 7000)}))
    for d in (900, 7000): assert_bars_equal(lake / f"gold/trades_bars/{d}s", whole, d)
    change = tape(8).filter(pl.col("capture_ts").dt.hour() == 3).with_columns(pl.col("price").round(0))
    put(root, change, 8, hour=3)
    done = statuses(run(lakes.trades(root, lake)))
    assert done[3] == "written" and set(done[5:]) == {"done"}


# ---- bars over the edges of days

def whole_bars(rows: pl.DataFrame, config: FeatureConfig, channel: str = "trades") -> dict[int, pl.DataFrame]:
    "Bars of `rows` (any streams) as one frame."
    made = lakes.bars("nowhere", "nowhere", channel)
    from daedalus_etl.core.base import TransformContext
    out = made.transform({"silver": rows.lazy()}, TransformContext(feature_config=config))
    return {d: out[f"gold/{d}s"].collect() for d in config.bar_durations}


def assert_bars_equal(root, rows, d, channel="trades", **more):
    "The dataset's bars are those of all rows as one frame."
    config = FeatureConfig(rolling_windows=(5, 60, 900), bar_durations=(d,), **more)
    expected = whole_bars(rows, config, channel)[d]
    found = dataset(root).sort("bar_start")
    assert_frame_equal(found, expected.sort("bar_start"), check_exact=True)


def bars_of_days(tmp_path, days: dict[int, pl.DataFrame], durations, channel="trades", **more):
    "Bars by partitions of the given days' rows; asserts that they equal those of the whole."
    bronze, lake = tmp_path / f"bronze_{channel}", tmp_path / "lake"
    for day, frame in days.items(): put(bronze, frame, day)
    config = FeatureConfig(rolling_windows=(5,), bar_durations=durations, **more)
    run(getattr(lakes, channel)(bronze, lake), features=config)
    run(lakes.bars(lake / f"silver/{channel}", lake, channel), features=config)
    for d in durations:
        assert_bars_equal(lake / f"gold/{channel}_bars/{d}s", pl.concat(days.values()), d, channel, **more)
    return lake


@pytest.mark.parametrize("channel", ["trades", "ticker"])
def test_bars_over_day_edges(tmp_path, channel):
    rows = tape if channel == "trades" else lakes.quotes
    lake = bars_of_days(tmp_path, {d: rows(d) for d in (8, 9, 10)}, (7, 60, 3600, 100_000), channel)
    for d in (7, 60, 3600, 100_000):                     # each bar lies in the partition of its start
        for day in (8, 9, 10):
            path = lake / f"gold/{channel}_bars/{d}s" / leaf(day)
            days = dataset(path)["bar_start"].dt.truncate("1d").unique().to_list()
            assert set(days) <= ({lakes.day_start(day)} if day > 8 else {lakes.day_start(7), lakes.day_start(8)})


@pytest.mark.parametrize(("d", "before", "after"), [
    (7, [10.0, 50_000.0, 86_380.0], [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 40_000.0]),       # a bar from 8/8 23:59:58
    (100_000, [10.0, 20_000.0], [0.5, 1.0, 40_000.0, 60_000.0])])                    # a bar from 8/8 08:40:00
def test_bar_whose_first_trade_is_on_the_day_after_its_start(tmp_path, d, before, after):
    "The bar lies in the partition of bar_start, though nothing traded in it on that day."
    bars_of_days(tmp_path, {8: tape(8, seconds=before), 9: tape(9, seconds=after)}, (d,))


def test_bars_of_one_length_do_not_depend_on_the_other_lengths(tmp_path):
    days = {8: tape(8, seconds=[10.0, 50_000.0, 86_380.0]), 9: tape(9, seconds=[0.5, 1.0, 1.5, 40_000.0])}
    bars_of_days(tmp_path, days, (7, 60, 100_000))


def test_bar_that_starts_in_a_day_without_a_partition(tmp_path):
    "Bars start at 8/7 04:53:20, 8/8 08:40:00, 8/9 12:26:40, 8/10 16:13:20: the third has trades on the 10th only."
    days = {8: tape(8, seconds=[30_000.0, 60_000.0]), 10: tape(10, seconds=[100.0, 200.0, 50_000.0, 80_000.0])}
    bars_of_days(tmp_path, days, (100_000,))


def test_bar_longer_than_two_days_is_closed_by_the_third(tmp_path):
    bars_of_days(tmp_path, {d: tape(d, n=20) for d in (8, 9, 10, 11, 12)}, (200_000, 604_800))


def test_long_bar_is_completed_when_the_day_after_next_arrives(tmp_path):
    "A bar of 200000 s spans three days; the third arrives later, as in production."
    config = FeatureConfig(rolling_windows=(5,), bar_durations=(200_000,))
    bronze, lake, days = tmp_path / "bronze", tmp_path / "lake", (8, 9, 10, 11, 12)
    for day in days:
        put(bronze, tape(day, n=20), day)
        run(lakes.trades(bronze, lake), features=config)
        run(lakes.bars(lake / "silver/trades", lake), features=config)
    assert_bars_equal(lake / "gold/trades_bars/200000s", pl.concat([tape(d, n=20) for d in days]), 200_000)


@pytest.mark.parametrize("channel", ["trades", "ticker"])
def test_fill_empty_over_day_edges(tmp_path, channel):
    seconds = {8: [100.0, 86_000.0], 9: [400.0, 50_000.0], 10: [7200.0, 86_399.0]}
    rows = tape if channel == "trades" else lakes.quotes
    days = {d: rows(d, seconds=s) for d, s in seconds.items()}
    lake = bars_of_days(tmp_path, days, (900, 7000), channel, fill_empty=True)
    bars = dataset(lake / f"gold/{channel}_bars/900s")
    assert bars["bar_start"].diff().drop_nulls().unique().dt.total_seconds().to_list() == [900]
    empty = bars.filter(n_obs=0)
    assert (
        empty.height == bars.height - 6
        and empty["close"].null_count() == 0
        and empty["realized_variance"].null_count() == empty.height
    )


def test_fill_empty_over_a_day_without_a_partition(tmp_path):
    days = {8: tape(8, seconds=[100.0, 86_000.0]), 10: tape(10, seconds=[7200.0])}
    bars_of_days(tmp_path, days, (3600,), fill_empty=True)


# ---- the exchange's clock

def test_clock_timestamp_features(tmp_path, lake):
    "The local clock runs 1.27 s behind: the last trades of a day have an exchange time in the next."
    root, days = tmp_path / "bronze", [tape(d, lag_ms=-1270) for d in (8, 9)]
    for d, frame in zip((8, 9), days, strict=True): put(root, frame, d)
    config = FeatureConfig(rolling_windows=(5, 60, 900), clock="timestamp")
    run(lakes.trades(root, lake), features=config)
    assert_frame_equal(
        dataset(lake / "silver/trades"), features(trades=pl.concat(days), config=config), check_exact=True
    )


@pytest.mark.parametrize("lag_ms", [1500, -1270])
def test_clock_timestamp_bars(tmp_path, lag_ms):
    "Bars whose start lies on the other side of midnight than the partition of their trades."
    seconds = {8: [100.0, 86_398.0, 86_399.0, 86_399.5, 86_399.9], 9: [0.1, 0.4, 0.9, 2.0, 60.0]}
    days = {d: tape(d, seconds=s, lag_ms=lag_ms) for d, s in seconds.items()}
    bars_of_days(tmp_path, days, (1, 60), clock="timestamp")


def test_clock_timestamp_rejects_rows_without_one(tmp_path, lake):
    put(
        tmp_path / "bronze",
        tape(8, n=3000)
        .with_row_index("i")
        .with_columns(timestamp=pl.when(pl.col("i") != 9).then("timestamp"))
        .drop("i"),
    )
    config = FeatureConfig(rolling_windows=(5,), clock="timestamp")
    report = run(lakes.trades(tmp_path / "bronze", lake), features=config)
    assert report.units[0].quarantined == 1
    rows = dataset(lake / ".daedalus/silver/trades/quarantine")
    assert rows.select("row", "reason").rows() == [(9, "bad_timestamp")]
    assert run(lakes.trades(tmp_path / "bronze", tmp_path / "capture")).units[0].quarantined == 0


# ---- streams that are stateless or have a state of their own

class Counter(StatefulTransform):
    "Numbers the rows of a stream over all days."
    def transform(self, inputs, context):
        n = self.get_state_value("n", default=0)
        frame = inputs["trades"].select("trade_id", pl.int_range(n, n + pl.len()).alias("number")).collect()
        self.update_state("n", n + frame.height)
        return {"silver": frame.lazy()}


def test_own_state_goes_from_day_to_day_and_not_between_streams(bronze, lake):
    put(bronze, tape(8, stream=ETH), 8, ETH)
    made = Counter(lakes.trades(bronze, lake).config)
    run(made)
    numbers = [dataset(lake / "silver/trades" / leaf(*x))["number"].to_list() for x in ((8, BTC), (9, BTC), (8, ETH))]
    n = tape(8).height
    assert numbers == [list(range(n)), list(range(n, 2 * n)), list(range(n))]
    assert made.state == {}
    put(bronze, tape(10), 10)
    assert statuses(run(made)) == ["done", "done", "written", "done"]
    assert dataset(lake / "silver/trades" / leaf(10))["number"][0] == 2 * n
