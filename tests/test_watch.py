"""Bronze grows while somebody watches: files come in any order, some half-written, some broken; the watcher is stopped
and killed. What it has made is what a batch run over the same bronze makes, byte for byte."""
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import lakes
import polars as pl
import psutil
import pytest
from faults import NIGHTLY
from lakes import BTC, ETH, cli, quotes, tape
from test_interrupt import data

from daedalus_etl import cli as commands
from daedalus_etl.core.config import DaedalusConfig, FilterSpec, StorageConfig
from daedalus_etl.core.enums import ProcessingMode
from daedalus_etl.core.errors import BadDataError, ConfigError, EmptyMatchError, StorageError
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.core.pipeline import Pipeline
from daedalus_etl.core.registry import create_transform
from daedalus_etl.core.report import RunReport, UnitReport
from daedalus_etl.core.steps import Step, labels_config
from daedalus_etl.run import news, watch, wakes
from daedalus_etl.run.news import Inflow
from daedalus_etl.run.signals import AtOnce
from daedalus_etl.run.wakes import Wakes
from daedalus_etl.run.watch import Update, Watch
from daedalus_etl.sources.rotation import Rotation, Stream, trade
from daedalus_etl.sources.rotation import publish as rotated
from daedalus_etl.sources.simulated import simulate
from daedalus_etl.sources.simulator import SimulatorConfig
from daedalus_etl.storage.objects import put

KILLS = 50 if NIGHTLY else 10
PATIENCE_S = 120
SMALL = lakes.SMALL
DAYS = (8, 9, 10)


def executor(**kwargs): return TransformExecutor(SMALL, workers=2, progress=False, **kwargs)


def publish(root: Path, frame: pl.DataFrame, day: int, stream=BTC, name: str = "part-1.parquet") -> Path:
    "Write it beside its place and rename it, as a capture does."
    return lakes.put(root, frame, day, stream, name)


def extra(day: int, second: float) -> pl.DataFrame:
    "A trade that is in no tape."
    return tape(day, seconds=[second]).with_columns(trade_id=pl.lit(f"x{day}-{second}"))


def pieces(days=DAYS, streams=(BTC, ETH), n: int = 120, each: int = 40) -> list[tuple]:
    "The tapes of all days cut into files: (frame, day, stream, name)."
    found = []
    for stream in streams:
        for day in days:
            whole = tape(day, n=n, stream=stream)
            found += [(whole[i:i + each], day, stream, f"part-{i:05}.parquet") for i in range(0, whole.height, each)]
    return found


def pipeline(bronze: Path, lake: Path, *, growing: bool = False, **storage) -> Pipeline:
    "Silver and gold of every channel that has a folder, or that may get one."
    config = StorageConfig(input_root=str(bronze), output_root=str(lake), **storage)
    return Pipeline.from_config(DaedalusConfig(features=SMALL, storage=config), growing=growing)


def batch(bronze: Path, lake: Path, **storage) -> dict:
    "Bytes of a lake that is made at once."
    pipeline(bronze, lake, **storage).run(executor=executor())
    return data(lake)


def done(watcher: Watch) -> list[Update]: return list(watcher.look())


# ---- files in any order

@pytest.mark.parametrize("seed", range(12 if NIGHTLY else 1))
def test_any_order_ends_in_the_bytes_of_a_batch_run(tmp_path, seed):
    "Trades and quotes of two streams, files at random, several between two looks; bars follow."
    bronze, dice = tmp_path / "bronze", random.Random(seed)
    files = [("trades", *p) for p in pieces()]
    files += [("ticker", quotes(day, n=60), day, BTC, "part-1.parquet") for day in DAYS]
    dice.shuffle(files)
    for _ in range(2):                                      # so that both channels have a folder
        channel, *first = files.pop(next(i for i, f in enumerate(files) if f[0] == ("trades", "ticker")[_]))
        publish(bronze / channel, *first)
    watcher = Watch(executor(), pipeline(bronze, tmp_path / "lake"))
    told, looks = done(watcher), 1
    while files:
        for _ in range(min(len(files), dice.randint(2, 8))):
            channel, *rest = files.pop()
            publish(bronze / channel, *rest)
        told += done(watcher)
        looks += 1
    assert done(watcher) == [] and not any(u.error for u in told)
    whole = batch(bronze, tmp_path / "batch")
    assert data(tmp_path / "lake") == whole and lakes.leftovers(tmp_path / "lake") == []
    assert len(whole) == (2 * 3 + 3) * 5
    heard = Counter(n.file.relative for u in told for n in u.files)
    assert set(heard.values()) == {1} and len(heard) == len(list(bronze.rglob("*.parquet")))   # each once


def test_books_follow_the_trades_beside_them(tmp_path):
    "A file of trades that comes late changes the books of its day."
    samples, bronze = Path(__file__).resolve().parents[1] / "data_samples" / "bronze", tmp_path / "bronze"
    book = sorted((samples / "orderbook").rglob("*.parquet"))[0]
    leaf = book.parent.relative_to(samples / "orderbook")
    trade = sorted((samples / "trades" / leaf).glob("*.parquet"))[0]
    def come(channel, source, rows, name):
        (bronze / channel / leaf).mkdir(parents=True, exist_ok=True)
        pl.read_parquet(source, hive_partitioning=False)[rows].write_parquet(bronze / channel / leaf / name)
    come("orderbook", book, slice(0, 60), "part-1.parquet")
    come("trades", trade, slice(0, 20), "part-1.parquet")
    watcher = Watch(executor(), pipeline(bronze, tmp_path / "lake").select("orderbook"))
    assert [u.written for u in done(watcher)] == [1]
    come("trades", trade, slice(20, 40), "part-2.parquet")
    [update] = done(watcher)
    assert update.written == 1 and [(n.input, n.rows) for n in update.files] == [("trades", 20)]
    assert done(watcher) == []
    pipeline(bronze, tmp_path / "batch").select("orderbook").run(executor=executor())
    assert data(tmp_path / "lake") == data(tmp_path / "batch")


@pytest.mark.parametrize("channel", ["trades", "ticker", *(["orderbook"] if NIGHTLY else [])])
def test_a_recorded_market_that_comes_in_shuffled_files(tmp_path, shared_bronze, channel):
    "As silver of the same rows in one file for each day."
    dice, files = random.Random(channel), []
    for path in sorted((shared_bronze / channel).rglob("*.parquet")):
        whole = pl.read_parquet(path, hive_partitioning=False)
        step = -(-whole.height // 3)
        place = tmp_path / "bronze" / path.parent.relative_to(shared_bronze)
        files += [(whole[i:i + step], place, f"part-{i:06}.parquet") for i in range(0, whole.height, step)]
    dice.shuffle(files)
    (tmp_path / "bronze" / channel).mkdir(parents=True)
    watcher = Watch(executor(), pipeline(tmp_path / "bronze", tmp_path / "lake").select(channel))
    while files:
        for frame, place, name in [files.pop() for _ in range(min(len(files), dice.randint(3, 6)))]:
            place.mkdir(parents=True, exist_ok=True)
            frame.write_parquet(place / f".{name}")
            (place / f".{name}").rename(place / name)
        assert not any(u.error for u in done(watcher))
    pipeline(shared_bronze, tmp_path / "batch").select(channel).run(executor=executor())
    mine, theirs = (lakes.dataset(tmp_path / lake / "silver" / channel) for lake in ("lake", "batch"))
    assert mine.equals(theirs) and mine.height > 40_000 * (channel == "trades")


def test_a_capture_is_followed(tmp_path):
    "Rotation after rotation, under the venue's spelling of the symbol; the gaps beside the channels are left alone."
    at, key = 1_767_225_600_000_000, ("trades", "BTC/USDT")
    rotation = Rotation("binance", {key: Stream()})
    def rotate(k):
        for i in range(k * 30, k * 30 + 30):
            rotation.add(trade("BTC/USDT", at + i * 700_000, str(i + i // 40), "buy", 100.0 + i % 7, 0.5))
        for name, frame in rotation.take().items(): rotated(frame, tmp_path / "bronze", name)
    rotate(0)
    watcher = Watch(executor(), pipeline(tmp_path / "bronze", tmp_path / "lake"))
    for k in (1, 2, 3):
        told = done(watcher)
        assert [(u.step, u.written) for u in told] == [("trades", 1), ("trades_bars", 1)]
        assert len(told[0].files) == 1 and told[0].error is None
        rotate(k)
    done(watcher)
    whole = batch(tmp_path / "bronze", tmp_path / "batch")
    assert data(tmp_path / "lake") == whole and len(whole) == 5
    assert lakes.dataset(tmp_path / "lake/silver/trades")["seq_gap"].sum() == 2


def test_labels_look_ahead_and_are_made_again_when_a_later_day_comes(tmp_path):
    "The day before learns what its last rows could not know."
    bronze = tmp_path / "bronze" / "ticker"
    publish(bronze, quotes(8, n=60), 8)
    lake = tmp_path / "lake"
    def transforms(lake):
        silver = lakes.ticker(bronze, lake)
        label = labels_config("ticker", StorageConfig(output_root=str(lake)))
        return [silver, create_transform("labels", label)]
    watcher = Watch(executor(), transforms(lake))
    assert [u.step for u in done(watcher)] == ["ticker_features", "labels"]
    publish(bronze, quotes(9, n=60), 9)
    silver, label = done(watcher)
    assert [u.status for u in label.report.units] == ["written", "written"]
    watch.watch(executor(), transforms(tmp_path / "batch"), once=True)
    def labels(at): return {p.relative_to(at): pl.read_parquet(p) for p in sorted((at / "label").rglob("*.parquet"))}
    mine, theirs = labels(lake), labels(tmp_path / "batch")
    assert mine.keys() == theirs.keys() and all(mine[k].equals(theirs[k]) for k in mine)


def test_a_late_file_stops_mattering_once_the_state_is_the_same(tmp_path):
    "Days after it are looked at, and left alone where they begin as before."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    for day in (8, 9, 10): publish(bronze, tape(day, n=100), day)
    watcher = Watch(executor(), lakes.trades(bronze, lake))
    done(watcher)
    publish(bronze, extra(9, 43_000.5), 9, name="part-2.parquet")
    [update] = done(watcher)
    assert [u.partition[-6:] for u in update.report.units] == ["day=09", "day=10"]
    assert update.report.units[0].status == "written"
    lakes.run(lakes.trades(bronze, tmp_path / "batch"))
    assert data(lake) == data(tmp_path / "batch")


def test_files_that_vanish_and_files_that_are_replaced(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    first = publish(bronze, tape(8, n=50), 8)
    publish(bronze, extra(8, 50_000.25), 8, name="part-2.parquet")
    watcher = Watch(executor(), lakes.trades(bronze, lake))
    done(watcher)
    (first.parent / "part-2.parquet").unlink()
    assert [u.written for u in done(watcher)] == [1]
    publish(bronze, tape(8, n=60), 8)                       # another file of that name
    assert [(u.written, len(u.files)) for u in done(watcher)] == [(1, 1)]
    lakes.run(lakes.trades(bronze, tmp_path / "batch"))
    assert data(lake) == data(tmp_path / "batch")
    first.unlink()                                          # nothing is left: what was made of it stays, as in a run
    assert done(watcher) == [] and len(data(lake)) == 1


# ---- files that are not whole

def test_a_file_without_a_footer_is_waited_for(tmp_path):
    "Its stream waits; the others do not."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    publish(bronze, tape(8, n=50), 8)
    watcher = Watch(executor(), lakes.trades(bronze, lake))
    done(watcher)
    rows = publish(tmp_path / "elsewhere", extra(8, 50_000.25), 8).read_bytes()
    slow = bronze / lakes.leaf(8) / "part-2.parquet"
    for cut in (0, 4, 11, len(rows) // 2, len(rows) - 1):
        slow.write_bytes(rows[:cut])
        assert done(watcher) == []
    publish(bronze, tape(8, n=50, stream=ETH), 8, ETH)
    assert [u.partition for u in done(watcher)[0].report.units] == [lakes.leaf(8, ETH)]
    slow.write_bytes(rows)
    assert [(u.written, [n.rows for n in u.files]) for u in done(watcher)] == [(1, [1])]
    lakes.run(lakes.trades(bronze, tmp_path / "batch"))
    assert data(lake) == data(tmp_path / "batch")


def test_a_day_before_the_file_that_is_being_written_waits_with_it(tmp_path):
    "What comes to it would have the later day computed as well, with half a file in it."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    for day in (8, 9): publish(bronze, tape(day, n=50), day)
    watcher = Watch(executor(), lakes.trades(bronze, lake))
    done(watcher)
    rows = publish(tmp_path / "elsewhere", extra(9, 50_000.25), 9).read_bytes()
    slow = bronze / lakes.leaf(9) / "part-2.parquet"
    slow.write_bytes(rows[:-5])
    publish(bronze, extra(8, 50_000.25), 8, name="part-2.parquet")
    assert done(watcher) == []
    slow.write_bytes(rows)
    [update] = done(watcher)
    assert (update.error, update.written, len(update.files)) == (None, 2, 2)
    lakes.run(lakes.trades(bronze, tmp_path / "batch"))
    assert data(lake) == data(tmp_path / "batch")


def test_a_broken_file_is_named_and_the_others_go_on(tmp_path):
    "With the quarantine for files its day is made without it; once it is whole, with it."
    bronze, lake = tmp_path / "bronze" / "trades", tmp_path / "lake"
    publish(bronze, tape(8, n=50), 8)
    watcher = Watch(executor(), pipeline(bronze.parent, lake, quarantine_files=True).select("trades"), settle_s=0.2)
    done(watcher)
    rows = publish(tmp_path / "elsewhere", extra(8, 50_000.25), 8).read_bytes()
    broken = bronze / lakes.leaf(8) / "part-2.parquet"
    broken.write_bytes(rows[:-1])
    publish(bronze, extra(8, 51_000.25), 8, name="part-3.parquet")
    assert done(watcher) == []
    time.sleep(0.25)
    [update] = done(watcher)
    assert update.error is None and update.written == 1
    faults = {n.file.relative[-14:]: n.fault for n in update.files}
    assert faults["part-3.parquet"] == "" and f"{len(rows) - 1} bytes" in faults["part-2.parquet"]
    assert any("BROKEN" in line and "part-2.parquet" in line for line in update.lines())
    assert sum(1 for _ in (lake / ".daedalus").rglob("quarantine/**/*.parquet")) == 1
    assert data(lake) == {k: v for k, v in batch(bronze.parent, tmp_path / "batch", quarantine_files=True).items()
                          if k.startswith("silver")}
    broken.write_bytes(rows)
    assert [(u.written, u.files[0].fault) for u in done(watcher)] == [(1, "")]
    assert not list((lake / ".daedalus").rglob("quarantine/**/*.parquet"))


def test_a_stream_that_fails_stops_no_other_and_is_mended_by_its_file(tmp_path, monkeypatch):
    "Its debt reaches back to the day that failed, whatever comes after."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    for stream in (BTC, ETH): publish(bronze, tape(8, n=50, stream=stream), 8, stream)
    watcher = Watch(executor(), lakes.trades(bronze, lake))
    done(watcher)
    bad = tape(9, n=50).with_columns(price=pl.lit(-1.0))
    publish(bronze, bad, 9)
    publish(bronze, tape(9, n=50, stream=ETH), 9, ETH)
    [update] = done(watcher)
    assert isinstance(update.error, BadDataError) and update.written == 1
    assert [n.partition.get("symbol") for n in update.files] == ["ETH-USDT"]
    assert done(watcher) == []                              # not again and again: it is put off
    publish(bronze, tape(10, n=50), 10)
    [update] = done(watcher)                                # at once, from the day that failed
    assert [u.status for u in update.report.units] == ["failed", "skipped"]
    watcher._conclude(0.0)
    assert not watcher.report.success and "trades_features" in repr(watcher.report)
    with pytest.raises(BadDataError): watcher.report.raise_first()
    publish(bronze, tape(9, n=50), 9)
    [update] = done(watcher)
    assert [u.status for u in update.report.units] == ["written", "written"]
    lakes.run(lakes.trades(bronze, tmp_path / "batch"))
    assert data(lake) == data(tmp_path / "batch")
    watcher._conclude(0.0)
    assert watcher.report.success


def test_what_failed_is_tried_again_after_a_while(tmp_path, monkeypatch):
    "A full disk is no property of the input: nothing has to come for the next try."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    publish(bronze, tape(8, n=50), 8)
    monkeypatch.setattr(watch, "RETRY_S", 0.2)
    watcher = Watch(executor(), lakes.trades(bronze, lake))
    real_execute, full = TransformExecutor.execute, [True]
    def execute(self, *args, **kwargs):
        if full[0]: raise StorageError("no space left", path="lake")
        return real_execute(self, *args, **kwargs)
    monkeypatch.setattr(TransformExecutor, "execute", execute)
    [update] = done(watcher)
    assert isinstance(update.error, StorageError) and update.report is None
    assert done(watcher) == []
    full[0] = False
    time.sleep(0.25)
    assert [u.written for u in done(watcher)] == [1]


def test_an_input_that_cannot_be_listed_is_told_once_and_looked_at_again(tmp_path, monkeypatch):
    "A store out of reach for a while ends no watch."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    publish(bronze, tape(8, n=50), 8)
    monkeypatch.setattr(watch, "RETRY_S", 0.2)
    watcher, real_listed, away = Watch(executor(), lakes.trades(bronze, lake)), Inflow.listed, [True]
    def listed(self):
        if away[0]: raise StorageError("the store cannot be reached", path="s3://bucket")
        return real_listed(self)
    monkeypatch.setattr(Inflow, "listed", listed)
    [update] = done(watcher)
    assert isinstance(update.error, StorageError) and update.lines()[0].endswith("s3://bucket: " + update.error.found)
    assert done(watcher) == [] and watcher.followers[0].failing
    away[0] = False
    time.sleep(0.25)
    assert [u.written for u in done(watcher)] == [1] and not watcher.followers[0].failing
    away[0] = True
    with pytest.raises(StorageError): Watch(executor(), lakes.trades(bronze, lake)).run(once=True).raise_first()


# ---- how it begins

def test_streaming_begins_with_what_comes_and_misses_nothing_between_two_starts(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    for day in (8, 9): publish(bronze, tape(day, n=50), day)
    def start(): return Watch(executor(), lakes.trades(bronze, lake), mode="streaming")
    assert done(start()) == [] and not lake.joinpath("silver").exists()
    publish(bronze, extra(9, 50_000.25), 9, name="part-2.parquet")     # nobody watches
    publish(bronze, tape(10, n=50), 10)
    second = start()
    [update] = done(second)
    assert [(u.partition[-6:], u.status) for u in update.report.units] == [("day=09", "written"), ("day=10", "written")]
    assert lakes.footer(lake / "silver/trades", 9)["parent"] == "cold"
    assert lakes.footer(lake / "silver/trades", 10)["parent"] == lakes.footer(lake / "silver/trades", 9)["state"]
    assert done(second) == [] and done(start()) == []
    publish(bronze, extra(9, 50_001.25), 9, name="part-3.parquet")
    assert [(u.partition[-6:], u.status) for u in done(start())[0].report.units][0] == ("day=09", "written")
    assert cli("verify", lake).returncode == 0


def test_the_mode_is_that_of_the_transform_unless_asked(tmp_path):
    bronze = tmp_path / "bronze"
    publish(bronze, tape(8, n=50), 8)
    def mode(asked, **own):
        config = lakes.config("trades_features", bronze, tmp_path / "lake", output="silver/trades")
        t = create_transform("trades_features", config.model_copy(update=own))
        return Watch(executor(), t, mode=asked).followers[0].mode.value
    assert mode(None) == "hybrid" and mode("streaming") == "streaming"
    assert mode(None, mode=ProcessingMode.STREAMING) == "streaming"
    assert mode("hybrid", mode=ProcessingMode.STREAMING) == "hybrid"
    with pytest.raises(ConfigError, match="hybrid"): mode("batch")


def test_only_what_the_filter_selects_is_followed(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    for stream in (BTC, ETH): publish(bronze, tape(8, n=50, stream=stream), 8, stream)
    watcher = Watch(executor(), lakes.trades(bronze, lake), FilterSpec(symbol="ETH/USDT"))
    assert [u.partition for u in done(watcher)[0].report.units] == [lakes.leaf(8, ETH)]
    publish(bronze, tape(9, n=50), 9)
    assert done(watcher) == []
    publish(bronze, tape(9, n=50, stream=ETH), 9, ETH)
    assert [u.partition for u in done(watcher)[0].report.units] == [lakes.leaf(9, ETH)]


def test_a_folder_that_comes_later(tmp_path):
    "Nothing is there at first, which is an error of a look that is the only one."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    with pytest.raises(EmptyMatchError): watch.watch(executor(), lakes.trades(bronze, lake), once=True)
    watcher = Watch(executor(), lakes.trades(bronze, lake))
    assert done(watcher) == []
    publish(bronze, tape(8, n=50), 8)
    assert [u.written for u in done(watcher)] == [1]


def test_channels_that_come_later(tmp_path):
    "No folder at first, then that of books, then the other two, for which the books' days are made again."
    bronze, made = tmp_path / "bronze", {}
    for day in (8, 9):
        start = datetime(2024, 8, day, 12, tzinfo=UTC)
        made[day] = simulate(SimulatorConfig(depth=3), 20.0, start, seed=day, exchange=BTC[0], symbol=BTC[1])
    watcher = Watch(executor(), pipeline(bronze, tmp_path / "lake", growing=True))
    assert done(watcher) == []
    def come(channel, day): publish(bronze / channel, made[day][channel], day)
    come("orderbook", 8)
    assert [(u.step, u.written) for u in done(watcher)] == [("orderbook", 1), ("orderbook_bars", 1)]
    come("orderbook", 9)
    for day in (9, 8): come("trades", day)
    publish(bronze / "ticker", quotes(8, n=60), 8)
    told = done(watcher)
    assert not any(u.error for u in told) and {u.step for u in told} == {f.name for f in watcher.followers}
    assert done(watcher) == [] and data(tmp_path / "lake") == batch(bronze, tmp_path / "batch")


def test_a_run_that_is_published_as_one_is_done_whole(tmp_path):
    "Mode overwrite replaces the dataset: a filter would lose what it does not select."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    for stream in (BTC, ETH): publish(bronze, tape(8, n=50, stream=stream), 8, stream)
    watcher = Watch(executor(), lakes.trades(bronze, lake, mode="overwrite"))
    done(watcher)
    publish(bronze, tape(9, n=50), 9)
    done(watcher)
    assert len(data(lake)) == 3


def test_a_step_waits_for_one_that_must_succeed_before(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    publish(bronze, tape(8, n=50).with_columns(price=pl.lit(-1.0)), 8)
    publish(bronze, tape(8, n=50, stream=ETH), 8, ETH)
    silver, gold = lakes.trades(bronze, lake), lakes.bars(lake / "silver/trades", lake)
    steps = [Step("silver", silver.config, SMALL), Step("gold", gold.config, SMALL, after=("silver",))]
    watcher = Watch(executor(), Pipeline(steps))
    assert [u.step for u in done(watcher)] == ["silver"]
    publish(bronze, tape(8, n=50), 8)
    assert [u.step for u in done(watcher)] == ["silver", "gold"]


# ---- sleeping and stopping

def test_it_looks_no_more_often_than_it_is_asked_to(tmp_path):
    bronze = tmp_path / "bronze"
    bronze.mkdir()
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    cpu = time.thread_time()
    report = watch.watch(executor(), lakes.trades(bronze, tmp_path / "lake"), stop=stop, poll_s=0.1)
    assert report.stopped and 2 <= report.looks <= 12
    assert time.thread_time() - cpu < 0.5


def test_what_takes_long_to_list_is_listed_less_often(tmp_path, monkeypatch):
    "A twentieth of the time at most goes into listings that find nothing."
    bronze, stop, real_listed = tmp_path / "bronze", threading.Event(), Inflow.listed
    bronze.mkdir()
    def listed(self):
        time.sleep(0.05)
        return real_listed(self)
    monkeypatch.setattr(Inflow, "listed", listed)
    threading.Timer(2.5, stop.set).start()
    report = watch.watch(executor(), lakes.trades(bronze, tmp_path / "lake"), stop=stop, poll_s=0.01)
    assert 2 <= report.looks <= 3


def test_streaming_reaches_gold(tmp_path):
    "Bars of the day that came, and of none that was there."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    publish(bronze / "trades", tape(8, n=50), 8)
    steps = pipeline(bronze, lake)
    watcher = Watch(executor(), steps, mode="streaming")
    assert done(watcher) == []
    publish(bronze / "trades", tape(9, n=50), 9)
    assert [(u.step, u.written, u.error) for u in done(watcher)] == [("trades", 1, None), ("trades_bars", 1, None)]
    assert {Path(p).parent.name for p in data(lake)} == {"day=09"}


@pytest.mark.parametrize("by", ["events", "the clock"])
def test_a_file_is_seen_soon(tmp_path, monkeypatch, by):
    "By an event long before the next look, where there are events; without the package by the clock."
    if by == "events": pytest.importorskip("watchfiles")
    else: monkeypatch.setitem(sys.modules, "watchfiles._rust_notify", None)
    bronze, stop, told = tmp_path / "bronze", threading.Event(), []
    publish(bronze, tape(8, n=50), 8)
    watcher = Watch(executor(), lakes.trades(bronze, tmp_path / "lake"), poll_s=60 if by == "events" else 0.2)
    def on_update(update):
        told.append(update)
        if len(told) == 2: stop.set()
    def feed():
        while not told: time.sleep(0.02)
        time.sleep(0.3)
        publish(bronze, tape(9, n=50), 9)               # into a folder that is new
    threading.Thread(target=feed, daemon=True).start()
    threading.Timer(30, stop.set).start()
    report = watcher.run(stop=stop, on_update=on_update)
    assert len(told) == 2 and report.seconds < 25
    assert told[1].files[0].rows == 90 and told[1].latency_s(told[1].files[0]) < 25


def test_events_that_are_not_to_be_had_are_said_and_done_without(tmp_path, monkeypatch):
    notify = pytest.importorskip("watchfiles._rust_notify")
    def full(*args): raise OSError("OS file watch limit reached")
    monkeypatch.setattr(notify, "RustNotify", full)
    with pytest.warns(UserWarning, match="watch limit"): w = Wakes([str(tmp_path)], 0.1)
    began = time.monotonic()
    w.sleep(threading.Event())
    assert w.by == "the clock" and time.monotonic() - began >= 0.09


def test_a_year_of_files_is_remembered_in_little(tmp_path):
    bronze = tmp_path / "bronze"
    place = bronze / lakes.leaf(8)
    place.mkdir(parents=True)
    for i in range(300): (place / f"part-{i}.parquet").write_bytes(b"PAR1")
    inflow = Inflow(lakes.trades(bronze, tmp_path / "lake").config.inputs["trades"], settle_s=0)
    inflow.look()
    assert {m.itemsize * len(m) for m in inflow.known.values()} == {300 * 8}


# ---- as a program

def start(bronze: Path, lake: Path, *more: str, steps=("trades", "trades_bars")) -> subprocess.Popen:
    args = [sys.executable, "-m", "daedalus_etl.cli", "watch", *steps, "--input", bronze, "--output",
            lake, "--workers", "2", "--poll-s", "0.05", "--durations", "60", "--rolling-windows", "5,60", *more]
    env = {k: v for k, v in os.environ.items() if k != "DAEDALUS_CONFIG"} | {"POLARS_MAX_THREADS": "2"}
    return subprocess.Popen([*map(str, args)], cwd=bronze.parent, start_new_session=True, text=True, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def by_cli(bronze: Path, lake: Path) -> dict:
    "What a batch run with the same flags makes."
    ran = cli("run", "trades", "trades_bars", "--input", bronze, "--output", lake, "--durations", "60",
              "--rolling-windows", "5,60", "--quarantine-files", cwd=bronze.parent)
    assert ran.returncode == 0, ran.stderr
    return data(lake)


def test_killed_at_random_moments_while_files_come_at_random(tmp_path):
    "SIGKILL, and started again; files come all the while, in any order."
    bronze, lake, dice, seen = tmp_path / "bronze", tmp_path / "lake", random.Random(5), Counter()
    files = pieces(n=60, each=max(2, 600 // (5 * KILLS)))
    dice.shuffle(files)
    a_round = len(files) // (KILLS + 2)
    def feed(n):
        for _ in range(min(n, len(files))):
            frame, *where = files.pop()
            publish(bronze / "trades", frame, *where)
    feed(a_round)
    child, seconds = start(bronze, lake), 0.0
    assert child.stdout.readline().startswith("watching")
    began = time.monotonic()
    while "trades_bars" not in child.stdout.readline(): pass
    seconds = time.monotonic() - began              # that a look with work takes, silver and gold
    for k in range(KILLS):              # in turns within a look, and where one may be over and the next begun
        give_up, fed = time.monotonic() + dice.uniform(*((0.05, 1.0), (1.0, 3.0))[k % 2]) * seconds, 0
        while time.monotonic() < give_up:
            feed(fresh := fed < a_round)
            fed += fresh
            time.sleep(dice.uniform(0, seconds / a_round))
        child.send_signal(signal.SIGKILL)
        seen["wrote"] += "written" in child.communicate()[0]
        seen["stage"] += bool(lakes.leftovers(lake))
        for p in visible(lake): assert pl.read_parquet(p).height         # readers see whole files alone
        child = start(bronze, lake)
        assert child.stdout.readline().startswith("watching")
    child.kill()
    child.communicate()
    feed(len(files))
    last = start(bronze, lake, "--once")
    said, err = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, err
    whole = by_cli(bronze, tmp_path / "batch")
    assert len(whole) == 12 and data(lake) == whole and lakes.leftovers(lake) == []
    print(f"\n{KILLS} kills: {dict(seen)}; a look takes {seconds:.2f} s")
    assert seen["wrote"] >= KILLS // 5, seen
    assert "\n" not in start(bronze, lake, "--once").communicate(timeout=PATIENCE_S)[0].strip()      # all is done


def visible(lake: Path) -> list[Path]:
    "Data files that readers see."
    return [p for p in lake.rglob("*.parquet") if ".daedalus" not in p.parts]


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_in_order(tmp_path, how):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    for p in pieces(days=(8,)): publish(bronze / "trades", *p)
    child = start(bronze, lake)
    assert child.stdout.readline().startswith("watching")
    assert "written" in child.stdout.readline()
    publish(bronze / "trades", tape(9, n=50), 9)
    if how == "SIGINT": os.killpg(child.pid, signal.SIGINT)
    else: child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0 and "Traceback" not in err, err
    assert out.splitlines()[-1].startswith("stopped: ")
    assert lakes.leftovers(lake) == []
    there = data(lake)
    assert any(k.startswith("silver") for k in there)
    watcher = start(bronze, lake, "--once")
    said, err = watcher.communicate(timeout=PATIENCE_S)
    assert watcher.returncode == 0 and len(data(lake)) == 3 * 2, err        # what was left for the next time


def test_it_may_begin_before_the_capture(tmp_path):
    "Whose folders come one by one; the program says that it waits, and that there is nothing if it may not wait."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    once = start(bronze, lake, "--once", steps=())
    assert once.wait(PATIENCE_S) == 2 and "none of the folders" in once.communicate()[1]
    child = start(bronze, lake, steps=())
    try:
        assert "orderbook_bars" in child.stdout.readline() and "waiting" in child.stderr.readline()
        publish(bronze / "ticker", quotes(8, n=60), 8)
        assert "ticker: 1 partition written" in child.stdout.readline()
        publish(bronze / "trades", tape(8, n=50), 8)
        while "trades: 1 partition written" not in child.stdout.readline(): assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.communicate(timeout=PATIENCE_S)[1] == "" and child.returncode == 0
    finally:
        child.kill()
        child.wait()


def test_an_idle_watcher_is_idle(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    publish(bronze / "trades", tape(8, n=50), 8)
    child = start(bronze, lake, "--poll-s", "1")
    try:
        while "trades_bars" not in child.stdout.readline() or child.poll() is not None: pass
        time.sleep(1.0)
        process = psutil.Process(child.pid)
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(2.0)
        assert sum(process.cpu_times()[:2]) - before < 0.3 * (time.monotonic() - began)
        assert len(psutil.Process(child.pid).children()) == 0
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("flag", ["--limit=5", "--dry-run", "--cold-start", "--state-path=x"])
def test_flags_that_make_no_sense_in_something_endless_are_unknown(flag, capsys):
    with pytest.raises(SystemExit) as e: commands.main(["watch", "--input", "bronze", flag])
    assert e.value.code == 2 and "unrecognized" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt, AtOnce])
def test_what_a_stopped_execution_did_is_told(tmp_path, monkeypatch, error):
    "The first signal ends the watch in order, a second one at once."
    bronze, told = tmp_path / "bronze", []
    publish(bronze, tape(8, n=50), 8)
    def execute(*args, **kwargs):
        e = error()
        e.report = RunReport("trades_features", "x", False, {}, [UnitReport("day=08", "written")])
        raise e
    monkeypatch.setattr(TransformExecutor, "execute", execute)
    def run(): return watch.watch(executor(), lakes.trades(bronze, tmp_path / "lake"), on_update=told.append)
    if error is AtOnce: pytest.raises(AtOnce, run)
    else: assert run().stopped
    assert [u.written for u in told] == [1]


# ---- an object store

def test_objects_are_followed_by_looking(tmp_path, bucket, monkeypatch):
    "Bronze in a store, the lake on a disk; an object is whole from its first moment."
    monkeypatch.setenv("DAEDALUS_SPOOL", str(tmp_path / "spool"))
    def come(frame, day, name):
        source = publish(tmp_path / "here", frame, day, name=name)
        put(f"{bucket}/trades/{lakes.leaf(day)}/{name}", source)
    come(tape(8, n=50), 8, "part-1.parquet")
    watcher = Watch(executor(), lakes.trades(f"{bucket}/trades", tmp_path / "lake"))
    assert watcher.roots == [f"{bucket}/trades"] and Wakes(watcher.roots, 1.0).by == "the clock"
    assert [u.written for u in done(watcher)] == [1]
    come(extra(8, 50_000.25), 8, "part-2.parquet")
    come(tape(9, n=50), 9, "part-1.parquet")
    [update] = done(watcher)
    assert update.written == 2 and len(update.files) == 2 and done(watcher) == []
    silver = pl.concat([pl.read_parquet(p) for p in (tmp_path / "lake/silver").rglob("*.parquet")])
    assert silver.height == 2 * 90 + 1


def test_the_constants_are_what_the_pages_say():
    assert news.SETTLE_S == 30 and watch.RETRY_S == 30 and watch.REST_MAX_S == 60 and wakes.GATHER_MS == 400
