"The four modes through the executor, runs published as one, what is never written over, and what plans say."

import os
import signal

import lakes
import polars as pl
import pytest
from lakes import ETH, SMALL, cli, dataset, leaf, put, run, statuses, tape
from polars.testing import assert_frame_equal

from daedalus_etl.core.config import FeatureConfig, FilterSpec, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.enums import WriteMode
from daedalus_etl.core.errors import (
    BadDataError,
    ConfigError,
    ConflictError,
    PartitionError,
    SchemaError,
    StorageError,
)
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.features.frames import features
from daedalus_etl.storage import disk
from daedalus_etl.storage.journal import journals
from daedalus_etl.storage.verify import verify
from daedalus_etl.transforms.trades import TradesFeatureTransform


@pytest.fixture
def bronze(tmp_path):
    for day in (8, 9): put(tmp_path / "bronze", tape(day), day)
    return tmp_path / "bronze"


@pytest.fixture
def lake(tmp_path): return tmp_path / "lake"


def made(bronze, lake, mode, **more): return lakes.trades(bronze, lake, mode=mode, **more)


def sound(lake): assert verify(lake)["fault"].unique().to_list() in ([], [""])


@pytest.mark.parametrize("mode", list(WriteMode))
def test_each_mode_writes_the_same_rows_first_and_nothing_again(bronze, lake, mode):
    assert statuses(run(made(bronze, lake, mode))) == ["written", "written"]
    whole = features(trades=pl.concat([tape(8), tape(9)]), config=SMALL)
    assert_frame_equal(dataset(lake / "silver/trades"), whole, check_exact=True)
    before = lakes.places(lake)
    assert statuses(run(made(bronze, lake, mode))) == ["done", "done"]
    assert lakes.places(lake) == before and lakes.leftovers(lake) == []
    sound(lake)


def test_overwrite_partition_leaves_the_others(bronze, lake):
    run(made(bronze, lake, WriteMode.OVERWRITE_PARTITION))
    before = lakes.places(lake / "silver")
    put(bronze, tape(9).head(100), 9)
    assert statuses(run(made(bronze, lake, WriteMode.OVERWRITE_PARTITION))) == ["done", "written"]
    after = lakes.places(lake / "silver")
    assert {k for k in after if k.endswith(".parquet") and after[k] != before[k]} == {
        f"trades/{leaf(9)}/part-0.parquet"}
    assert dataset(lake / "silver/trades" / leaf(9)).height == 100


def test_overwrite_replaces_the_dataset(bronze, lake):
    put(bronze, tape(8, stream=ETH), 8, ETH)
    run(made(bronze, lake, WriteMode.OVERWRITE))
    report = run(made(bronze, lake, WriteMode.OVERWRITE), FilterSpec(symbol="BTC-USDT"))
    assert statuses(report) == ["done", "done", "vanished"] and "removed" in report.units[-1].reason
    assert not (lake / "silver/trades" / leaf(8, ETH)).exists()
    assert dataset(lake / "silver/trades").height == tape(8).height + tape(9).height
    sound(lake)


def test_merge_keeps_rows_that_the_input_lost_and_takes_corrections(bronze, lake):
    run(made(bronze, lake, WriteMode.MERGE))
    corrected = tape(9).head(60).with_columns(price=pl.col("price") + 1, side=pl.lit(None, pl.String))
    put(bronze, corrected, 9)
    assert statuses(run(made(bronze, lake, WriteMode.MERGE))) == ["done", "written"]
    found = dataset(lake / "silver/trades" / leaf(9))
    assert found["trade_id"].to_list() == tape(9)["trade_id"].to_list()          # all rows, in order
    assert found.head(60)["price"].to_list() == corrected["price"].to_list()
    assert found.head(60)["side"].null_count() == 60                             # nulls replace, too
    assert found.tail(-60)["price"].to_list() == tape(9)["price"].to_list()[60:]
    sound(lake)


def test_merge_by_other_columns_and_without_a_key(bronze, lake):
    with pytest.raises(SchemaError, match="nothing"):
        run(made(bronze, lake, WriteMode.MERGE, key_cols=["nothing"]))
        put(bronze, tape(9).head(10), 9)
        run(made(bronze, lake, WriteMode.MERGE, key_cols=["nothing"]))
    put(bronze, tape(9).with_columns(price=pl.lit(5.0)), 9)
    with pytest.raises(BadDataError, match="rows of the key"):
        run(made(bronze, lake, WriteMode.MERGE, key_cols=["price"]))
    assert lakes.leftovers(lake) == []


def test_append_refuses_to_add_an_input_twice(bronze, lake):
    run(made(bronze, lake, WriteMode.APPEND))
    (name,) = [p.name for p in (lake / "silver/trades" / leaf(9)).iterdir()]
    assert name.startswith(f"part-{tape(9)['capture_ts'][0]:%Y%m%dT%H%M%S%f}-") and len(name.split("-")[2]) == 16
    put(bronze, tape(9).head(100), 9)
    with pytest.raises(ConflictError, match="a second time") as caught: run(made(bronze, lake, WriteMode.APPEND))
    assert caught.value.exit_code == 3 and dataset(lake / "silver/trades" / leaf(9)).height == tape(9).height


# ---- all at once

class FailsOnTheNinth(TradesFeatureTransform):
    "The second day cannot be computed."
    def transform(self, inputs, context):
        if "day=09" in context.partition.path: raise ValueError("boom")
        return super().transform(inputs, context)


def at_once(transform): return transform.config.model_copy(update={"atomic": "run"})


def test_a_run_published_as_one_publishes_all_or_nothing(bronze, lake):
    plain = lakes.trades(bronze, lake)
    with pytest.raises(ValueError, match="boom") as caught: run(FailsOnTheNinth(at_once(plain)))
    assert statuses(caught.value.report) == ["skipped", "failed"]
    assert caught.value.report.write_stats["silver"]["rows"] == 0
    assert not (lake / "silver").exists() and lakes.leftovers(lake) == []
    assert statuses(run(TradesFeatureTransform(at_once(plain)))) == ["written", "written"]
    assert_frame_equal(dataset(lake / "silver/trades"),
                       features(trades=pl.concat([tape(8), tape(9)]), config=SMALL), check_exact=True)


def test_a_run_published_as_one_wants_one_lake(bronze, tmp_path):
    outputs = {n: OutputConfig(name=n, path=tmp_path / n / "silver/x") for n in ("a", "b")}
    config = TransformConfig(name="two", atomic="run", outputs=outputs,
                             inputs={"trades": InputConfig(name="trades", path=bronze)})

    class Two(TradesFeatureTransform):
        def transform(self, inputs, context): return dict.fromkeys(("a", "b"), inputs["trades"])

    with pytest.raises(ConfigError, match="one lake"): run(Two(config))


class Signalled(TradesFeatureTransform):
    "Somebody presses Ctrl-C while the second day is computed."
    def transform(self, inputs, context):
        if "day=09" in context.partition.path: os.kill(os.getpid(), signal.SIGINT)
        return super().transform(inputs, context)


def test_a_run_published_as_one_that_is_stopped_publishes_nothing(bronze, lake):
    with pytest.raises(KeyboardInterrupt) as caught: run(Signalled(at_once(lakes.trades(bronze, lake))))
    assert statuses(caught.value.report) == ["skipped", "skipped"] and caught.value.planned == 2
    assert not (lake / "silver").exists() and lakes.leftovers(lake) == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_within_the_commit_of_a_run(bronze, lake, monkeypatch, times):
    "The first waits for the commit to end; a second one leaves the journal, says so, and the next run carries it out."
    bare, left = disk.syscall, [times]

    def signalled(call, *args, **kwargs):
        done = bare(call, *args, **kwargs)
        while left[0] and journals(lake) and (lake / "silver").exists():
            left[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return done

    transform = TradesFeatureTransform(at_once(lakes.trades(bronze, lake)))
    with monkeypatch.context() as m:
        m.setattr(disk, "syscall", signalled)
        with pytest.raises(KeyboardInterrupt) as caught: run(transform)
    assert statuses(caught.value.report) == ["written", "written"] and caught.value.planned == 2
    assert len(journals(lake)) == times - 1
    assert len(getattr(caught.value, "__notes__", ())) == times - 1
    assert statuses(run(transform)) == ["done", "done"]
    assert journals(lake) == [] and lakes.leftovers(lake) == []
    sound(lake)


# ---- what is not ours

def test_what_another_transform_made_is_not_written_over(bronze, lake):
    run(lakes.trades(bronze, lake))
    other = lakes.trades(bronze, lake)
    renamed = TradesFeatureTransform(other.config.model_copy(update={"name": "my_trades"}))
    before = lakes.contents(lake)
    assert statuses(TransformExecutor(SMALL, progress=False).plan(renamed)) == ["conflict", "conflict"]
    with pytest.raises(ConflictError, match="made by the transform 'trades_features'.*--replace"): run(renamed)
    assert lakes.contents(lake) == before
    assert statuses(run(renamed, replace=True)) == ["written", "written"]
    assert lakes.footer(lake / "silver/trades", 8)["transform"] == "my_trades"


def test_a_foreign_file_is_not_written_over(bronze, lake, tmp_path):
    path = lake / "silver/trades" / leaf(8) / "part-0.parquet"
    path.parent.mkdir(parents=True)
    tape(8).head(3).write_parquet(path)
    done = cli("trades", "--input", bronze, "--output", lake, "--rolling-windows", "5,60,900", cwd=tmp_path)
    assert done.returncode == 3 and "not written by a transform" in done.stderr and str(path.parent) in done.stderr
    assert pl.read_parquet(path, hive_partitioning=False).height == 3
    done = cli("trades", "--input", bronze, "--output", lake, "--replace", cwd=tmp_path)
    assert done.returncode == 0 and pl.read_parquet(path, hive_partitioning=False).height == tape(8).height


def test_another_configuration_is_stale_and_named(bronze, lake):
    "Two configurations may not share an output: the plan says what the second would do."
    run(lakes.trades(bronze, lake))
    plan = TransformExecutor(FeatureConfig(rolling_windows=(7,)), progress=False).plan(lakes.trades(bronze, lake))
    assert statuses(plan) == ["stale", "stale"] and plan.units[0].reason == "made by another config"


# ---- what plans say

def books(day: int) -> pl.DataFrame:
    "A book of one level a side at the clock of each trade."
    def side(shift): return pl.concat_list(pl.struct(price=pl.col("price") + shift, size=pl.col("amount")))
    return tape(day).select("collected_at", "capture_ts", "exchange", "symbol", "timestamp",
                            pl.lit(0, pl.Int64).alias("nonce"), side(-1.0).alias("bids"), side(1.0).alias("asks"))


def test_vanished_input_is_named_and_collected_only_on_request(bronze, lake, tmp_path):
    run(lakes.trades(bronze, lake))
    (bronze / leaf(9) / "data.parquet").unlink()
    report = run(lakes.trades(bronze, lake))
    assert statuses(report) == ["done", "vanished"] and "--vanished" in report.units[1].reason
    assert dataset(lake / "silver/trades" / leaf(9)).height == tape(9).height
    assert cli("gc", lake, "--min-age", "0", cwd=tmp_path).returncode == 0
    assert (lake / "silver/trades" / leaf(9)).exists()
    done = cli("gc", lake, "--vanished", "--dry-run", "--min-age", "0", cwd=tmp_path)
    assert "its input is gone" in done.stdout and (lake / "silver/trades" / leaf(9)).exists()
    assert cli("gc", lake, "--vanished", "--min-age", "0", cwd=tmp_path).returncode == 0
    assert not (lake / "silver/trades" / leaf(9)).exists() and (lake / "silver/trades" / leaf(8)).exists()
    assert statuses(run(lakes.trades(bronze, lake))) == ["done"]
    sound(lake)


def test_later_days_of_a_changed_day_are_computed_until_the_state_converges(tmp_path, lake):
    "A changed price early in day 9 is in no window at its end: days 10 and 11 stay as they are."
    bronze = tmp_path / "bronze"
    for day in (8, 9, 10, 11): put(bronze, tape(day), day)
    run(lakes.trades(bronze, lake))
    early = pl.int_range(pl.len()) == 30
    put(bronze, tape(9).with_columns(price=pl.when(early).then(pl.col("price") + 1).otherwise("price")), 9)
    plan = TransformExecutor(SMALL, progress=False).plan(lakes.trades(bronze, lake))
    assert statuses(plan) == ["done", "changed", "changed", "changed"]
    assert plan.units[1].reason == "the input changed" and "unless" in plan.units[2].reason
    assert statuses(run(lakes.trades(bronze, lake))) == ["done", "written", "done", "done"]
    late = pl.int_range(pl.len()) == pl.len() - 1
    put(bronze, tape(9).with_columns(price=pl.when(late).then(pl.col("price") + 1).otherwise("price")), 9)
    assert statuses(run(lakes.trades(bronze, lake))) == ["done", "written", "written", "done"]


def test_with_vpin_all_later_days_are_computed_and_the_plan_says_so(tmp_path, lake):
    bronze = tmp_path / "bronze"
    for day in (8, 9, 10):
        put(bronze / "trades", tape(day), day)
        put(bronze / "orderbook", books(day), day)
    config = FeatureConfig(features=["ofi", "vpin", "vpin_bucket_count"])
    run(lakes.orderbook(bronze / "orderbook", lake), features=config)
    put(bronze / "trades", tape(8).with_columns(amount=pl.col("amount") * 1.5), 8)
    plan = TransformExecutor(config, progress=False).plan(lakes.orderbook(bronze / "orderbook", lake))
    assert statuses(plan) == ["changed"] * 3 and "VPIN" in plan.units[2].reason
    assert statuses(run(lakes.orderbook(bronze / "orderbook", lake), features=config)) == ["written"] * 3


# ---- commands

def test_lineage_verify_status_recover(bronze, lake, tmp_path):
    flags = ("--input", tmp_path / "lakeful", "--output", lake)
    (tmp_path / "lakeful").mkdir()
    (bronze).rename(tmp_path / "lakeful/trades")
    assert cli("run", *flags, cwd=tmp_path).returncode == 0
    path = lake / "silver/trades" / leaf(9) / "part-0.parquet"
    said = cli("lineage", path, cwd=tmp_path).stdout
    assert '"transform": "trades_features"' in said and f"{leaf(9)}/data.parquet" in said and "max_gap_s" in said
    done = cli("verify", lake, cwd=tmp_path)
    assert done.returncode == 0 and "10 files" in done.stdout and "0 at fault" in done.stdout
    assert "up to date" not in cli("status", *flags, cwd=tmp_path).stdout
    put(tmp_path / "lakeful/trades", tape(9).head(50), 9)
    said = cli("status", *flags, cwd=tmp_path).stdout
    assert "the input changed" in said and "gold/trades_bars" in said
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    done = cli("verify", lake, cwd=tmp_path)
    assert done.returncode == 1 and "part-0.parquet" in done.stderr and "Traceback" not in done.stderr
    assert cli("recover", lake, cwd=tmp_path).returncode == 0
    assert cli("recover", lake / "nowhere", cwd=tmp_path).returncode == 2


def test_gc_keeps_what_is_needed_and_young(bronze, lake):
    from daedalus_etl.storage.verify import gc
    run(lakes.trades(bronze, lake))
    put(bronze, tape(9).head(50), 9)
    run(lakes.trades(bronze, lake))
    assert gc(lake).height == 0                                       # younger than an hour
    removed = gc(lake, min_age_s=0)
    assert sorted(removed["why"]) == ["no result names this state", "the record of a replaced result"]
    sound(lake)
    assert statuses(run(lakes.trades(bronze, lake))) == ["done", "done"]


# ---- the disk

def test_no_room_is_said_before_anything_is_computed(bronze, lake, monkeypatch):
    from daedalus_etl.core import outputs
    monkeypatch.setattr(outputs, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(StorageError, match="only 1 MB are free.*Make room"): run(lakes.trades(bronze, lake))
    assert not (lake / "silver").exists()


def test_no_right_is_said_before_anything_is_computed(bronze, lake, monkeypatch):
    monkeypatch.setattr(disk.os, "access", lambda *a, **k: False)
    with pytest.raises(StorageError, match="no right to write there"): run(lakes.trades(bronze, lake))


def test_a_dead_commit_is_finished_by_the_next_run(bronze, lake, monkeypatch):
    "A run that is published as one dies after its first rename; the next run finds it finished."
    class Died(BaseException): pass
    renames = []

    def dying(call, *args, **kwargs):
        if len(renames) > 3: raise Died
        if call is disk.os.replace and ("silver" in str(args[1]) and ".daedalus" not in str(args[1]) or renames):
            renames.append(args)
            if len(renames) > 1:
                renames.extend([None] * 9)
                raise Died
        return call(*args, **kwargs)

    transform = TradesFeatureTransform(at_once(lakes.trades(bronze, lake)))
    with monkeypatch.context() as m:
        m.setattr(disk, "syscall", dying)
        with pytest.raises(Died): run(transform)
    import gc
    gc.collect()
    assert len(journals(lake)) == 1
    release_locks(lake)
    assert statuses(run(transform)) == ["done", "done"] and journals(lake) == []
    assert lakes.leftovers(lake) == []
    sound(lake)


def release_locks(lake):
    "What the kernel does for a dead process: its open files are closed."
    import os
    for fd in os.listdir("/proc/self/fd"):
        try: name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError: continue
        if str(lake) in name and ("lock" in name): os.close(int(fd))


# ---- places

def test_a_link_that_leads_out_of_the_dataset_is_refused(bronze, lake, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (lake / "silver/trades").mkdir(parents=True)
    (lake / "silver/trades/exchange=binance").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PartitionError, match="symbolic link"): run(lakes.trades(bronze, lake))
    assert list((tmp_path / "elsewhere").rglob("*")) == [] and lakes.leftovers(lake) == []


def test_two_streams_that_differ_in_case_alone_are_refused(tmp_path, lake):
    put(tmp_path / "a", tape(8), 8)
    run(lakes.trades(tmp_path / "a", lake))
    lower = ("binance", "btc-usdt")
    put(tmp_path / "b", tape(8, stream=lower), 8, lower)
    with pytest.raises(PartitionError, match="differs in case alone"): run(lakes.trades(tmp_path / "b", lake))
    assert not (lake / "silver/trades/exchange=binance/symbol=btc-usdt").exists()


class ReplacedOnce(TradesFeatureTransform):
    "While the second day is read for the first time, somebody replaces it."
    source, done = None, False

    def transform(self, inputs, context):
        made = super().transform(inputs, context)
        if "day=09" in context.partition.path and not ReplacedOnce.done:
            ReplacedOnce.done = True
            put(self.source, tape(9).head(30), 9)
        return made


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(bronze, lake):
    made, ReplacedOnce.done = ReplacedOnce(lakes.trades(bronze, lake).config), False
    made.source = bronze
    assert statuses(run(made)) == ["written", "written"]
    assert dataset(lake / "silver/trades" / leaf(9)).height == 30 and lakes.leftovers(lake) == []
    assert statuses(run(made)) == ["done", "done"]
