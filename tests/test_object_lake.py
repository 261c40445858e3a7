"""A lake on an object store: the bytes of the local run, a conditional PUT for each partition, nothing half-written."""
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import lakes
from daedalus_etl import cli
from daedalus_etl.core.config import FeatureConfig, FilterSpec, OutputConfig
from daedalus_etl.core.enums import DataFormat, WriteMode
from daedalus_etl.core.errors import ConfigError, ConflictError, StorageError
from daedalus_etl.storage import object_lake, object_verify
from daedalus_etl.storage.lineage import lineage
from daedalus_etl.storage.object_lake import StagedObject
from daedalus_etl.storage.objects import head, put, read, remove, walk
from daedalus_etl.storage.verify import gc, verify
from lakes import BTC, ETH, SMALL, leaf, run, statuses, tape
from objects import CANARY, Proxy, use

SAMPLES = Path(__file__).resolve().parents[1] / "data_samples" / "bronze"
DAYS = (8, 9, 10)
TRADES = "silver/trades"


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch) -> Path:
    "Where files are staged; nothing may be left in it."
    monkeypatch.setenv("DAEDALUS_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(object_lake, "_found", {})
    yield tmp_path / "spool"
    left = [p for p in (tmp_path / "spool").rglob("*") if p.is_file()]
    assert left == []


@pytest.fixture(scope="module")
def bronze(tmp_path_factory) -> Path:
    "Three days of two streams of trades."
    folder = tmp_path_factory.mktemp("bronze") / "trades"
    for day in DAYS:
        for stream in (BTC, ETH): lakes.put(folder, tape(day, stream=stream), day, stream)
    return folder


@pytest.fixture(scope="module")
def local(bronze, tmp_path_factory) -> Path:
    "The lake of the same run on a disk."
    lake = tmp_path_factory.mktemp("local") / "lake"
    run(lakes.trades(bronze, lake))
    return lake


def sums(url: str, below: str = "") -> dict[str, str]:
    "Every object below `url` with the hash of its bytes, as `lakes.contents` has it for files."
    return {o.url[len(url) + 1:]: hashlib.sha256(read(o.url)).hexdigest() for o in walk(f"{url}/{below}".rstrip("/"))}


def of(contents: dict[str, str], *, records: bool = False) -> dict[str, str]:
    "Data and states; records name their inputs by another way, quarantine has names of its own."
    return {k: v for k, v in contents.items() if ".lock" not in k
            and (not k.startswith(".daedalus/") or "/states/" in k or (records and "/lineage/" in k))}


def upload(folder: Path, url: str) -> str:
    "Put all files of a folder below `url`."
    for p in sorted(folder.rglob("*.parquet")): put(f"{url}/{p.relative_to(folder).as_posix()}", p)
    return url


def rows_of(url: str) -> pl.DataFrame:
    "All rows below a URL, objects in order, no columns from the paths."
    return pl.concat([pl.read_parquet(read(o.url)) for o in walk(url) if o.url.endswith(".parquet")])


@contextmanager
def watched(monkeypatch, endpoint: str, **kwargs):
    "All requests inside go through a proxy, which counts them."
    before = os.environ["AWS_ENDPOINT_URL"]
    with Proxy(endpoint, **kwargs) as proxy:
        use(monkeypatch, proxy.endpoint)
        try: yield proxy
        finally: use(monkeypatch, before)


def counts(proxy: Proxy) -> Counter: return Counter(method for method, _ in proxy.seen)


# ---------------------------------------------------------------------------------------------- the same bytes

def test_a_run_to_a_bucket_gives_the_bytes_of_a_run_to_a_disk(bronze, local, bucket):
    report = run(lakes.trades(bronze, f"{bucket}/lake"))
    assert set(statuses(report)) == {"written"}
    assert report.targets == {"silver": f"{bucket}/lake/silver/trades"}
    assert of(sums(f"{bucket}/lake")) == of(lakes.contents(local))


def test_the_whole_pipeline_from_bucket_to_bucket(tmp_path, bucket, capsys):
    "Objects have other fingerprints than files: all else, rows, types, states and their chains, is the same."
    assert cli.main(["run", "--input", str(SAMPLES), "--output", str(tmp_path / "lake")]) == 0
    upload(SAMPLES, f"{bucket}/bronze")
    assert cli.main(["run", "--input", f"{bucket}/bronze", "--output", f"{bucket}/lake"]) == 0
    here, there = of(lakes.contents(tmp_path / "lake")), of(sums(f"{bucket}/lake"))
    assert set(here) == set(there)                                 # the states' names are their content
    for name in (n for n in here if n.endswith(".parquet")):
        mine, theirs = tmp_path / "lake" / name, f"{bucket}/lake/{name}"
        assert_frame_equal(pl.read_parquet(mine, hive_partitioning=False), pl.read_parquet(read(theirs)))
        known = [{k: v for k, v in f.items() if k not in ("inputs", "key")}
                 for f in (lakes.read_footer(mine), object_lake.object_footer(head(theirs)))]
        assert known[0] == known[1] and "parent" in known[0]
    capsys.readouterr()
    assert cli.main(["plan", "--input", f"{bucket}/bronze", "--output", f"{bucket}/lake"]) == 0
    said = capsys.readouterr().out
    assert " new" not in said and " changed" not in said and CANARY not in said


def test_bars_look_ahead_over_a_bucket(local, bucket):
    "A bar that spans midnight takes the next day's trades; from a bucket, and to one."
    upload(local / TRADES, f"{bucket}/in/silver/trades")
    features = FeatureConfig(bar_durations=(60, 3600))
    for source, lake in ((local / TRADES, local / "b"), (local / TRADES, f"{bucket}/a"),
                         (f"{bucket}/in/{TRADES}", f"{bucket}/b"), (f"{bucket}/in/{TRADES}", local / "c")):
        run(lakes.bars(source, lake), features=features)
    assert of(sums(f"{bucket}/a")) == of(lakes.contents(local / "b"))
    gold = lakes.dataset(local / "b/gold")
    assert_frame_equal(rows_of(f"{bucket}/b/gold"), gold)
    assert_frame_equal(lakes.dataset(local / "c/gold"), gold)


# -------------------------------------------------------------------------------------------------- requests

def test_what_is_up_to_date_costs_no_put(bronze, bucket, store_server, monkeypatch):
    transform = lakes.trades(bronze, f"{bucket}/lake")
    with watched(monkeypatch, store_server) as first: run(transform)
    data = [p for m, p in first.seen if m == "PUT" and p.endswith(".parquet") and "silver/trades/exchange" in p]
    assert len(data) == len(set(data)) == 6                                  # one for each partition
    asked = [p for m, p in first.seen if m == "PUT" and "/doctor/" in p]
    assert asked and {p.split("/doctor/")[0] for p in asked} == {f"/{bucket[5:]}/lake/.daedalus"}
    with watched(monkeypatch, store_server) as again: report = run(transform)
    assert set(statuses(report)) == {"done"}
    assert set(counts(again)) <= {"GET", "HEAD"}
    assert sum(counts(again).values()) <= 2 * 6 + 3                          # a listing and a footer each, and the rest


def test_a_plan_only_reads(bronze, bucket, store_server, monkeypatch):
    with watched(monkeypatch, store_server) as proxy:
        report = run(lakes.trades(bronze, f"{bucket}/lake"), dry_run=True)
    assert set(statuses(report)) == {"new"} and set(counts(proxy)) <= {"GET", "HEAD"}
    assert list(walk(bucket)) == []


def test_a_changed_day_is_replaced_and_the_rest_is_left(tmp_path, bucket, store_server, monkeypatch):
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    for day in DAYS: lakes.put(source, tape(day), day)
    run(lakes.trades(source, lake))
    before = {o.url: o.etag for o in walk(f"{lake}/{TRADES}")}
    lakes.put(source, tape(10).head(300), 10)
    with watched(monkeypatch, store_server) as proxy: report = run(lakes.trades(source, lake))
    assert statuses(report) == ["done", "done", "written"]
    changed = {u for u, e in before.items() if head(u).etag != e}
    assert [u.split("day=")[1] for u in changed] == ["10/part-0.parquet"]
    assert rows_of(f"{lake}/{TRADES}/{leaf(10)}").height == 300
    puts = [p for m, p in proxy.seen if m == "PUT" and "/doctor/" not in p]
    assert sorted(p.rpartition(".")[2] for p in puts) == ["json", "parquet", "state"]


def test_what_has_lost_its_input_is_named(tmp_path, bucket):
    source = tmp_path / "trades"
    for day in (8, 9): lakes.put(source, tape(day), day)
    run(lakes.trades(source, f"{bucket}/lake"))
    (source / leaf(9) / "data.parquet").unlink()
    report = run(lakes.trades(source, f"{bucket}/lake"))
    assert statuses(report) == ["done", "vanished"]
    assert head(f"{bucket}/lake/{TRADES}/{leaf(9)}/part-0.parquet") is not None


# ------------------------------------------------------------------------------------------------- conflicts

def test_what_a_stranger_put_there_is_not_written_over(tmp_path, bucket):
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    lakes.put(source, tape(8), 8)
    place = f"{lake}/{TRADES}/{leaf(8)}"
    made = tmp_path / "x.parquet"
    pl.DataFrame({"x": [1]}).write_parquet(made)
    put(f"{place}/theirs.parquet", made)
    with pytest.raises(ConflictError, match="theirs.parquet") as e: run(lakes.trades(source, lake), replace=True)
    assert f"{place}" in str(e.value)
    remove(f"{place}/theirs.parquet")
    put(f"{place}/part-0.parquet", made)
    with pytest.raises(ConflictError, match="not written by a transform"): run(lakes.trades(source, lake))
    assert read(f"{place}/part-0.parquet") == made.read_bytes()
    assert statuses(run(lakes.trades(source, lake), replace=True)) == ["written"]
    put(f"{place}/part-1.parquet", made)
    with pytest.raises(ConflictError, match="several objects"):
        run(lakes.trades(source, lake), features=FeatureConfig(rolling_windows=(7,)), replace=True)


def at_the_same_time(monkeypatch, parties: int) -> None:
    "All that is to be published waits until so many are ready: both saw the same, and neither saw the other."
    gate, publish = threading.Barrier(parties, timeout=60), StagedObject.publish
    def together(self):
        gate.wait()
        publish(self)
    monkeypatch.setattr(StagedObject, "publish", together)


def race(*jobs) -> list:
    "What the jobs, side by side, return or raise."
    results = [None] * len(jobs)
    def work(i):
        try: results[i] = jobs[i]()
        except Exception as e: results[i] = e
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for t in threads: t.start()
    for t in threads: t.join(120)
    return results


def test_two_runs_of_the_same_work_agree(tmp_path, bronze, local, bucket, monkeypatch):
    at_the_same_time(monkeypatch, 2)
    job = lambda: run(lakes.trades(bronze, f"{bucket}/lake"), FilterSpec(symbol="BTC-USDT"), workers=1)  # noqa: E731
    reports = race(job, job)
    assert [statuses(r) for r in reports] == [["written"] * 3] * 2
    theirs = {k: v for k, v in of(lakes.contents(local)).items() if k.startswith("silver") and "BTC" in k}
    assert {k: v for k, v in of(sums(f"{bucket}/lake")).items() if k.startswith("silver")} == theirs


def test_of_two_runs_that_differ_one_is_told(tmp_path, bucket, monkeypatch):
    "One wins, the other gets a conflict; no mixture. Run again, the loser computes all of it anew."
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    lakes.put(source, tape(8), 8)
    other = FeatureConfig(rolling_windows=(7,))
    with monkeypatch.context() as m:
        at_the_same_time(m, 2)
        results = race(*(lambda f=f: run(lakes.trades(source, lake), features=f) for f in (SMALL, other)))
    lost = [r for r in results if isinstance(r, ConflictError)]
    assert len(lost) == 1 and "another process" in str(lost[0])
    winner = SMALL if lost[0] is results[1] else other
    assert statuses(run(lakes.trades(source, lake), features=winner)) == ["done"]
    loser = other if winner is SMALL else SMALL
    assert statuses(run(lakes.trades(source, lake), features=loser)) == ["written"]
    run(lakes.trades(source, tmp_path / "lake"), features=loser)
    name = f"{TRADES}/{leaf(8)}/part-0.parquet"
    assert read(f"{lake}/{name}") == (tmp_path / "lake" / name).read_bytes()


def test_a_replacement_that_was_overtaken_is_refused(tmp_path, bucket, monkeypatch):
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    lakes.put(source, tape(8), 8)
    run(lakes.trades(source, lake), features=FeatureConfig(rolling_windows=(3,)))
    at_the_same_time(monkeypatch, 2)
    both = SMALL, FeatureConfig(rolling_windows=(7,))
    results = race(*(lambda f=f: run(lakes.trades(source, lake), features=f) for f in both))
    assert sorted(isinstance(r, ConflictError) for r in results) == [False, True]


def test_a_stranger_that_comes_while_it_is_computed_is_seen(tmp_path, bucket, monkeypatch):
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    lakes.put(source, tape(8), 8)
    publish = StagedObject.publish
    def late(self):
        put(f"{lake}/{TRADES}/{leaf(8)}/theirs.parquet", b"PAR1")
        publish(self)
    monkeypatch.setattr(StagedObject, "publish", late)
    with pytest.raises(ConflictError, match="another process"): run(lakes.trades(source, lake))
    assert head(f"{lake}/{TRADES}/{leaf(8)}/part-0.parquet") is None


# ------------------------------------------------------------------------------------------------- guarantees

def test_a_store_without_conditions_is_refused_unless_there_is_one_writer(tmp_path, bronze, local, lax_bucket):
    lake, spec = f"{lax_bucket}/lake", FilterSpec(symbol="BTC-USDT")
    with pytest.raises(StorageError, match="single_writer") as e: run(lakes.trades(bronze, lake), spec)
    assert "If-None-Match" in str(e.value) and "If-Match" in str(e.value)
    assert list(walk(lake)) == []                                            # not even a state
    assert set(statuses(run(lakes.trades(bronze, lake, single_writer=True), spec))) == {"written"}
    theirs = {k: v for k, v in of(lakes.contents(local)).items() if k.startswith("silver") and "BTC" in k}
    assert {k: v for k, v in of(sums(lake)).items() if k.startswith("silver")} == theirs
    assert set(statuses(run(lakes.trades(bronze, lake, single_writer=True), spec))) == {"done"}


def test_overwrite_and_atomic_runs_are_refused_with_the_reason(tmp_path, bronze, bucket):
    with pytest.raises(ConfigError, match="several objects cannot be published at once"):
        run(lakes.trades(bronze, f"{bucket}/lake", mode=WriteMode.OVERWRITE))
    with pytest.raises(ConfigError, match="folders of this machine"):
        run(lakes.trades(bronze, f"{bucket}/lake", format=DataFormat.DELTA))
    whole = lakes.config("trades_features", bronze, f"{bucket}/lake", output=TRADES)
    whole = whole.model_copy(update={"atomic": "run"})
    with pytest.raises(ConfigError, match="one by one"):
        run(lakes.create_transform("trades_features", whole))
    assert list(walk(bucket)) == []


# ----------------------------------------------------------------------------------------------------- modes

def test_merge_keeps_rows_that_the_new_ones_lack(tmp_path, bucket):
    source = tmp_path / "trades"
    for lake in (tmp_path / "lake", f"{bucket}/lake"):
        lakes.put(source, tape(8).head(300), 8)
        run(lakes.trades(source, lake, mode=WriteMode.MERGE))
        lakes.put(source, tape(8).tail(300), 8)
        assert statuses(run(lakes.trades(source, lake, mode=WriteMode.MERGE))) == ["written"]
    mine, theirs = lakes.dataset(tmp_path / "lake" / TRADES), rows_of(f"{bucket}/lake/{TRADES}")
    assert mine.height == tape(8).height
    assert_frame_equal(mine, theirs)


def test_append_adds_an_input_once(tmp_path, bucket):
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    lakes.put(source, tape(8), 8)
    for place in (tmp_path / "lake", lake): run(lakes.trades(source, place, mode=WriteMode.APPEND))
    names = [n for n in of(lakes.contents(tmp_path / "lake")) if n.startswith("silver")]
    assert [n for n in of(sums(lake)) if n.startswith("silver")] == names and "part-2" in names[0]
    assert statuses(run(lakes.trades(source, lake, mode=WriteMode.APPEND))) == ["done"]
    lakes.put(source, tape(8).head(10), 8)
    with pytest.raises(ConflictError, match="a second time"): run(lakes.trades(source, lake, mode=WriteMode.APPEND))


def test_of_two_appends_of_different_inputs_none_stays_unseen(tmp_path, bucket, monkeypatch):
    for name, n in (("a", 100), ("b", 200)): lakes.put(tmp_path / name, tape(8).head(n), 8)
    at_the_same_time(monkeypatch, 2)
    def append(name): return run(lakes.trades(tmp_path / name, f"{bucket}/lake", mode=WriteMode.APPEND))
    results = race(*(lambda n=n: append(n) for n in "ab"))
    told = [r for r in results if isinstance(r, ConflictError)]
    left = sums(f"{bucket}/lake", TRADES)
    assert told and len(left) == 2 - len(told)


def loses_first(proxied: set):
    "Of the data's objects: the answer to the first PUT at each key is lost."
    def loses(method, path):
        new = method == "PUT" and "silver" in path and ".daedalus" not in path and path not in proxied
        if new: proxied.add(path)
        return new
    return loses


def test_of_two_appends_whose_answers_are_lost_none_stays_unseen(tmp_path, bucket, store_server, monkeypatch):
    for name, n in (("a", 100), ("b", 200)): lakes.put(tmp_path / name, tape(8).head(n), 8)
    at_the_same_time(monkeypatch, 2)
    def append(name): return run(lakes.trades(tmp_path / name, f"{bucket}/lake", mode=WriteMode.APPEND))
    with watched(monkeypatch, store_server, loses=loses_first(lost := set())):
        results = race(*(lambda n=n: append(n) for n in "ab"))
    told = [r for r in results if isinstance(r, ConflictError)]
    assert told and lost and len(sums(f"{bucket}/lake", TRADES)) == 2 - len(told)


def test_an_append_whose_answer_is_lost_is_done(tmp_path, bucket, store_server, monkeypatch):
    lakes.put(tmp_path / "a", tape(8), 8)
    with watched(monkeypatch, store_server, loses=loses_first(lost := set())):
        report = run(lakes.trades(tmp_path / "a", f"{bucket}/lake", mode=WriteMode.APPEND))
    assert statuses(report) == ["written"] and len(lost) == len(sums(f"{bucket}/lake", TRADES)) == 1


def test_a_limited_run_writes_to_scratch(bronze, bucket):
    report = run(lakes.trades(bronze, f"{bucket}/lake"), limit_rows=100)
    assert report.targets == {"silver": f"{bucket}/lake/.daedalus/scratch/silver/trades"}
    assert {u.rows["silver"] for u in report.units if u.status == "written"} == {100}
    assert all("/.daedalus/scratch/" in o.url for o in walk(bucket))


# ------------------------------------------------------------------------------- beside the data: rows, states

@pytest.mark.parametrize("lossy", [False, True])
def test_quarantined_rows_lie_beside_the_lake(tmp_path, bucket, store_server, monkeypatch, lossy):
    source, features = tmp_path / "trades", FeatureConfig(rolling_windows=(5,), max_bad_fraction=0.5)
    bad = tape(8).with_columns(price=pl.when(pl.col("trade_id") == pl.col("trade_id").last()).then(-1.0)
                               .otherwise(pl.col("price")))
    lakes.put(source, bad, 8)
    for lake in (tmp_path / "lake", f"{bucket}/lake"):
        assert run(lakes.trades(source, lake), features=features).units[0].quarantined == 1
    place = f".daedalus/{TRADES}/quarantine"
    (name,) = sums(f"{bucket}/lake", place)
    key = object_lake.object_footer(head(f"{bucket}/lake/{TRADES}/{leaf(8)}/part-0.parquet"))["key"]
    assert name == f"{place}/{leaf(8)}/rows-{key[:16]}.parquet"
    assert_frame_equal(rows_of(f"{bucket}/lake/{place}"), lakes.dataset(tmp_path / "lake" / place))
    lakes.put(source, tape(8), 8)
    lost = set()
    with watched(monkeypatch, store_server, loses=loses_first(lost) if lossy else lambda *_: False):
        run(lakes.trades(source, f"{bucket}/lake"), features=features)
    assert bool(lost) is lossy
    assert sums(f"{bucket}/lake", place) == {}                               # the old result's go with it


def test_a_chain_goes_on_from_a_state_in_the_bucket(bronze, local, bucket):
    states, spec = f"{bucket}/states", dict(symbol="BTC-USDT")
    run(lakes.trades(bronze, f"{bucket}/one"), FilterSpec(**spec, end_date="2024-08-09"), state_path=states)
    left = list(walk(states))
    assert [o.url for o in left] == [f"{states}/exchange=binance/symbol=BTC-USDT/end.state"]
    run(lakes.trades(bronze, f"{bucket}/two"), FilterSpec(**spec, start_date="2024-08-10"), state_path=states)
    name = f"{TRADES}/{leaf(10)}/part-0.parquet"
    assert read(f"{bucket}/two/{name}") == (local / name).read_bytes()
    assert head(left[0].url).etag != left[0].etag                            # it is the state after the 10th now


def test_a_damaged_state_is_mended_by_a_recomputation(tmp_path, bucket):
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    for day in (8, 9): lakes.put(source, tape(day), day)
    run(lakes.trades(source, lake))
    state = object_lake.object_footer(head(f"{lake}/{TRADES}/{leaf(8)}/part-0.parquet"))["state"]
    at = f"{lake}/.daedalus/{TRADES}/states/{state}.state"
    good = read(at)
    put(at, b"damaged")
    remove(f"{lake}/{TRADES}/{leaf(8)}/part-0.parquet")
    run(lakes.trades(source, lake))
    assert read(at) == good


def test_lineage_of_an_object(bronze, local, bucket):
    run(lakes.trades(bronze, f"{bucket}/lake"))
    name = f"{TRADES}/{leaf(8)}/part-0.parquet"
    known, mine = lineage(f"{bucket}/lake/{name}"), lineage(local / name)
    assert (known["dataset"], known["partition"]) == (TRADES, leaf(8))
    assert known["record"]["sha256"] == mine["record"]["sha256"]
    assert known["record"]["inputs"]["trades"]["root"] == str(bronze)
    bars = run(lakes.bars(f"{bucket}/lake/{TRADES}", f"{bucket}/lake"), features=FeatureConfig(bar_durations=(3600,)))
    of_bar = lineage(f"{next(iter(bars.targets.values()))}/{leaf(8)}/part-0.parquet")
    (root, files), = ((i["root"], i["files"]) for i in of_bar["record"]["inputs"].values())
    assert root == TRADES
    assert files[0][2] == head(f"{bucket}/lake/{TRADES}/{files[0][0]}").etag


# --------------------------------------------------------------------------------------------------- killed

KILLED = """
import sys
sys.path[:0] = [{tests!r}]
import lakes
from daedalus_etl.core.config import FeatureConfig
lakes.run(lakes.{kind}({source!r}, {lake!r}), features={features})
"""
BARS = "FeatureConfig(bar_durations=(60, 3600))"


class Killer:
    "Ends a process at one of its puts: before the store has carried it out, or after."
    def __init__(self): self.process, self.left, self.after, self.at = None, 0, False, ""

    def __call__(self, method: str, path: str):
        if method != "PUT" or "/doctor/" in path or self.process is None: return None
        self.left -= 1
        if self.left: return None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.at = path
        return None if self.after else (503, b"")

    def run(self, code: str, left: int, *, after: bool) -> None:
        self.left, self.after, self.at = left, after, ""
        self.process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
        self.process.wait(120)
        self.process = None
        assert self.at, "it was to be killed, and ended by itself"


def test_a_run_that_is_killed_anywhere_is_finished_by_the_next(bronze, local, bucket, store_server, monkeypatch):
    "Trades, and bars of two lengths: what is there is whole, always, and the next run makes the rest of it."
    jobs = {"trades": (bronze, "lakes.SMALL", 6 * 3), "bars": (local / TRADES, BARS, 6 * 5)}     # puts: 6 partitions
    whole = {}
    for kind, (source, features, _) in jobs.items():
        run(getattr(lakes, kind)(source, f"{bucket}/{kind}"), features=eval(features))
        whole[kind] = of(sums(f"{bucket}/{kind}"), records=True)
        assert len(whole[kind]) == jobs[kind][2]
    rng, killer = random.Random(20240808), Killer()
    with watched(monkeypatch, store_server, answer=killer):
        for k in range(30 if os.environ.get("DAEDALUS_NIGHTLY") else 5):
            kind, lake = ("trades", "bars")[k % 2], f"{bucket}/k{k}"
            source, features, puts = jobs[kind]
            code = KILLED.format(tests=str(Path(__file__).parent), kind=kind, source=str(source), lake=lake,
                                 features=features)
            killer.run(code, rng.randint(1, puts), after=rng.random() < 0.5)
            cut = of(sums(lake), records=True)
            assert all(whole[kind][n] == v for n, v in cut.items())
            run(getattr(lakes, kind)(source, lake), features=eval(features))
            assert of(sums(lake), records=True) == whole[kind], killer.at


# --------------------------------------------------------------------------------------------- the other side

def test_others_read_the_lake(bronze, local, bucket):
    from pyarrow import dataset as pads
    from pyarrow.fs import S3FileSystem
    run(lakes.trades(bronze, f"{bucket}/lake"))
    mine = lakes.dataset(local / TRADES)
    asked = pl.scan_parquet(f"{bucket}/lake/{TRADES}/**/*.parquet", hive_partitioning=False).collect()
    assert_frame_equal(asked, mine)
    fs = S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), scheme="http",
                      region="us-east-1", access_key="tester", secret_key=CANARY)
    table = pads.dataset(f"{bucket[5:]}/lake/{TRADES}", filesystem=fs, format="parquet").to_table()
    assert table.num_rows == mine.height
    from daedalus_etl.storage.dataset import scan
    ours = scan(f"{bucket}/lake/{TRADES}").collect()
    assert ours.height == mine.height and ours["price"].sum() == mine["price"].sum()


@pytest.mark.parametrize("what", ["crud", "compactor", "write", "repartition", "explore", "profile", "serve", "recover",
                                  "path"])
def test_what_works_on_disks_refuses_a_url_and_makes_no_folder_of_it(what, tmp_path, monkeypatch, capsys):
    from daedalus_etl.explore.browse import LakeView
    from daedalus_etl.explore.quality import profile
    from daedalus_etl.explore.serve import serve
    from daedalus_etl.storage.write import write
    from daedalus_etl.utils.compaction import ParquetCompactor
    from daedalus_etl.utils.crud import ParquetCRUD
    from daedalus_etl.utils.repartition import repartition
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/lake/silver/trades"
    def recover(): raise ConfigError(_failing(capsys, "recover", "s3://bucket/lake"))
    calls = {
        "crud": lambda: ParquetCRUD(url), "compactor": lambda: ParquetCompactor(url),
        "write": lambda: write(pl.LazyFrame({"x": [1]}), OutputConfig(name="o", path=url)),
        "repartition": lambda: repartition(url, OutputConfig(name="o", path=tmp_path / "silver/x")),
        "explore": lambda: LakeView("s3://bucket/lake"), "recover": recover, "serve": lambda: serve("s3://bucket/lake"),
        "profile": lambda: profile("s3://bucket/lake", "silver", "trades"),
        "path": lambda: OutputConfig(name="o", path=Path(url))}
    with pytest.raises(ConfigError, match="s3:/"): calls[what]()
    assert [p.name for p in tmp_path.iterdir() if p.name != "spool"] == []


def _failing(capsys, *args) -> str:
    assert cli.main(list(args)) == 2
    return capsys.readouterr().err


def test_no_secret_is_in_any_object_message_or_report(tmp_path, bronze, bucket, capsys, store_server, monkeypatch):
    lake = f"{bucket}/lake"
    report = run(lakes.trades(bronze, lake))
    said = [repr(report), json.dumps(lineage(f"{lake}/{TRADES}/{leaf(8)}/part-0.parquet"))]
    def deny(method, path): return (403, b"<Code>AccessDenied</Code>") if method == "PUT" else None
    with watched(monkeypatch, store_server, answer=deny):
        with pytest.raises(StorageError) as e: run(lakes.trades(bronze, f"{bucket}/other"))
        said.append("".join(map(str, (e.value, e.value.__cause__, getattr(e.value, "__notes__", "")))))
        args = ["trades", "--input", str(bronze), "--output", f"{bucket}/third", "--debug"]
        assert cli.main(args) == 1
    out = capsys.readouterr()
    said += [out.out, out.err]
    assert CANARY not in "".join(said)
    assert not [o.url for o in walk(bucket) if CANARY.encode() in read(o.url)]
    assert all(CANARY.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


# ------------------------------------------------------------------------------------------------- maintenance

def test_verify_finds_what_is_not_as_it_was_committed(tmp_path, bucket, capsys):
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    for day in DAYS: lakes.put(source, tape(day), day)
    run(lakes.trades(source, lake))
    assert verify(lake)["fault"].to_list() == [""] * 3
    assert cli.main(["verify", lake]) == 0
    place = f"{lake}/{TRADES}"
    first = bytearray(read(f"{place}/{leaf(8)}/part-0.parquet"))
    first[100] ^= 1
    put(f"{place}/{leaf(8)}/part-0.parquet", bytes(first))
    footer = object_lake.object_footer(head(f"{place}/{leaf(9)}/part-0.parquet"))
    remove(f"{lake}/.daedalus/{TRADES}/states/{footer['state']}.state")
    faults = dict(verify(lake).select("file", "fault").iter_rows())
    assert "bytes are not those" in faults[f"{leaf(8)}/part-0.parquet"]
    assert "missing" in faults[f"{leaf(9)}/part-0.parquet"]
    capsys.readouterr()
    assert cli.main(["verify", lake]) == 1
    assert f"{place}/{leaf(8)}/part-0.parquet" in capsys.readouterr().err


def test_gc_removes_what_no_result_names(tmp_path, bucket, capsys):
    source, lake = tmp_path / "trades", f"{bucket}/lake"
    for day in (8, 9): lakes.put(source, tape(day), day)
    run(lakes.trades(source, lake), features=FeatureConfig(rolling_windows=(7,)))
    old = set(sums(lake, ".daedalus"))
    run(lakes.trades(source, lake))
    run(lakes.trades(source, lake), limit_rows=10)
    before = of(sums(lake))
    assert gc(lake).height == 0                                              # all of it is young
    would = gc(lake, min_age_s=0, dry_run=True)
    assert gc(lake, min_age_s=0).equals(would) and set(would["path"]) >= old
    left = sums(lake)
    assert {k: v for k, v in before.items() if k in left} == of(left) and not any("scratch" in n for n in left)
    assert verify(lake)["fault"].to_list() == [""] * 2
    assert set(statuses(run(lakes.trades(source, lake)))) == {"done"}
    with pytest.raises(ConfigError, match="by hand"): gc(lake, vanished=True)


def test_gc_leaves_what_was_put_again_meanwhile(tmp_path, bucket, monkeypatch):
    "A run that wants an old artifact puts it anew: same bytes, same tag, only its time is another."
    lakes.put(tmp_path / "trades", tape(8), 8)
    lake = f"{bucket}/lake"
    run(lakes.trades(tmp_path / "trades", lake))
    [state, record] = [o.url for o in walk(f"{lake}/.daedalus") if o.name.endswith((".state", ".json"))][::-1]
    remove(f"{lake}/{TRADES}/{leaf(8)}/part-0.parquet")
    time.sleep(1.1)                                                          # a store's clock has whole seconds
    footers = object_verify._unneeded
    def late(*args):
        found = list(footers(*args))
        put(state, read(state))
        yield from found
    monkeypatch.setattr(object_verify, "_unneeded", late)
    assert gc(lake, min_age_s=0)["path"].to_list() == [record.removeprefix(f"{lake}/")]
    assert head(state) is not None and head(record) is None


@pytest.mark.parametrize("name", ["states/trades", "lineage/trades", "quarantine/trades", "scratch/trades", "trades"])
def test_gc_knows_a_thing_by_its_place_and_its_name(tmp_path, bucket, name):
    lake = f"{bucket}/lake"
    lakes.put(tmp_path / "trades", tape(8), 8)
    run(lakes.trades(tmp_path / "trades", lake))
    data, meta = f"{lake}/{TRADES}/{leaf(8)}/part-0.parquet", f"{lake}/.daedalus/{name}"
    put(f"{lake}/{name}/{leaf(8)}/part-0.parquet", read(data))
    theirs = [f"{meta}/{n}" for n in (
        f"lineage/{'a' * 64}.json", "notes/mine.json", f"quarantine/{leaf(8)}/rows.parquet",
        f"quality/{leaf(8)}/profile.parquet", f"quality/{leaf(8)}/rows-{'0' * 16}.parquet", "states/readme.txt")]
    old = [f"{meta}/{n}" for n in (f"lineage/{'0' * 64}.{'1' * 16}.json", f"states/{'0' * 64}.state",
                                   f"quarantine/{leaf(8)}/rows-{'0' * 16}.parquet")]
    for url in (*theirs, *old): put(url, b"x")
    assert sorted(f"{lake}/{p}" for p in gc(lake, min_age_s=0)["path"]) == sorted(old)
    assert verify(lake)["file"].len() == 2 and all(map(head, theirs))


def test_status_of_a_lake_on_a_bucket(bronze, bucket, capsys):
    assert cli.main(["trades", "--input", str(bronze), "--output", f"{bucket}/lake"]) == 0
    capsys.readouterr()
    assert cli.main(["status", "--input", str(bronze.parent), "--output", f"{bucket}/lake"]) == 0
    said = capsys.readouterr().out
    assert " silver/trades " in said and " 6 " in said
