"Dask clusters: the same bytes and counts as here, whatever dies; nothing but keys and reports travels."
import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import clusters
import lakes
import pytest
from clusters import SECRET, job, kill_one, machines, rooms, step, units, wait_until
from distributed import Future
from lakes import day_start, put

from daedalus_etl.core.config import DaedalusConfig, FeatureConfig, OutputConfig
from daedalus_etl.core.errors import (
    ClusterError, ConfigError, CorruptFileError, MissingExtraError, StorageError, WorkerLostError)
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.core.plan import units_of
from daedalus_etl.core.step import HandOff, Job
from daedalus_etl.run import cluster
from daedalus_etl.run.cluster import DaskPool, Marks, as_pool, check_worker, versions
from daedalus_etl.run.local import Threads
from daedalus_etl.runners.jobs import executor_of
from daedalus_etl.sources.simulated import simulate
from daedalus_etl.sources.simulator import SimulatorConfig

NIGHTLY = bool(os.environ.get("DAEDALUS_NIGHTLY"))
KILLS = 10 if NIGHTLY else 3
SYMBOLS, DAYS = ("AAA-USDT", "BBB-USDT", "CCC-USDT"), (6, 7, 8)
BOOKS = FeatureConfig(categories={"structural", "dynamic", "rolling", "advanced"}, rolling_windows=(5, 60),
                      bar_durations=(10, 30))
STEPS = ("trades", "orderbook", "bars")


@pytest.fixture(scope="module")
def bronze(tmp_path_factory):
    "Three streams of three days, a minute of each; and their silver trades, which bars are made of."
    root = tmp_path_factory.mktemp("cluster") / "bronze"
    for s, symbol in enumerate(SYMBOLS):
        for day in DAYS:
            start = day_start(day) + timedelta(hours=23, minutes=59)
            rows = simulate(SimulatorConfig(depth=8), 50.0, start, 10 * s + day, exchange="sim", symbol=symbol)
            for c in ("trades", "orderbook"): put(root / c, rows[c], day, ("sim", symbol))
    lakes.run(lakes.trades(root / "trades", root.parent / "source"), None, BOOKS)
    return root


def transforms(bronze: Path, lake: Path):
    "The three steps over a lake, in their order."
    return {"trades": lakes.trades(bronze / "trades", lake), "orderbook": lakes.orderbook(bronze / "orderbook", lake),
            "bars": lakes.bars(bronze.parent / "source/silver/trades", lake)}


def compute(bronze, lake, pool=None, steps=STEPS):
    "Reports of the steps."
    executor = TransformExecutor(BOOKS, pool=pool, progress=False)
    return [executor.execute(transforms(bronze, lake)[s]) for s in steps]


def kept(lake: Path) -> dict[str, str]:
    "Data and states of a lake, in which nothing is left of dead workers. (Lineage tells where the inputs lay.)"
    assert lakes.leftovers(lake) == []
    return {k: v for k, v in lakes.contents(lake).items() if k.endswith((".parquet", ".state"))}


def counts(reports): return [(r.totals(), {n: s["rows"] for n, s in r.write_stats.items()},
                              {n: s["bytes"] for n, s in r.write_stats.items()}) for r in reports]


@pytest.fixture(scope="module")
def local(bronze, tmp_path_factory):
    "The lake as this process makes it, and its reports."
    lake = tmp_path_factory.mktemp("local") / "lake"
    reports = compute(bronze, lake)
    return kept(lake), counts(reports)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    "A scheduler and three workers with a secret in their environment, and in ours."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        with machines(tmp_path_factory.mktemp("dask"), 3) as found: yield found


@pytest.fixture
def client(three):
    "A client of it, when all three are there."
    three[1].wait_for_workers(3, timeout=60)
    return three[1]


# ---- the same as here

def test_same_bytes_and_counts(bronze, local, client, tmp_path):
    reports = compute(bronze, tmp_path / "lake", client)
    assert kept(tmp_path / "lake") == local[0]
    assert counts(reports) == local[1]
    assert {u.status for r in reports for u in r.units} == {"written"}
    again = compute(bronze, tmp_path / "lake", client)
    assert {u.status for r in again for u in r.units} == {"done"}


class Killer(Thread):
    "Kills a worker whenever the lake has as many files as one of `at`."
    def __init__(self, client, lake, at):
        super().__init__(daemon=True)
        self.client, self.lake, self.at, self.busy, self.over = client, lake, list(at), [], Event()

    def run(self):
        while self.at and not self.over.is_set():
            if len(list(self.lake.rglob("*/part-0.parquet"))) >= self.at[0]:
                self.at.pop(0)
                self.busy.append(kill_one(self.client))
            self.over.wait(0.01)


def test_killed_workers_change_nothing(bronze, local, client, tmp_path):
    "So many SIGKILLs while trades, books and bars (two outputs, so with a journal) are computed."
    left, rounds, busy = KILLS, 0, []
    while left:
        lake, rounds = tmp_path / f"lake{rounds}", rounds + 1
        places = [2, 6, 11, 16, 22, 29] if NIGHTLY else [3, 11, 22]
        killer = Killer(client, lake, places[:left])
        killer.start()
        reports = compute(bronze, lake, client)
        killer.over.set()
        killer.join()
        left, busy = left - len(killer.busy), busy + killer.busy
        assert kept(lake) == local[0]
        assert counts(reports) == local[1]
        client.wait_for_workers(3, timeout=60)
    print(f"\n{len(busy)} workers killed in {rounds} rounds, {sum(busy)} of them at work")
    assert len(busy) == KILLS and any(busy)


def test_what_a_lost_worker_wrote_is_counted(bronze, client, tmp_path):
    "A worker dies after its commit and before its report: the second attempt finds the partition done."
    executor = TransformExecutor(BOOKS, pool=client, progress=False)
    transform = lakes.trades(bronze / "trades", tmp_path / "lake")
    want = compute(bronze, tmp_path / "other", steps=("trades",))
    began = os.stat(put(tmp_path, b"", name="now.txt.parquet")).st_mtime_ns
    executor.execute(transform)
    jobs = Job(transform, BOOKS, None, "x", transform.code_version(), since_ns=began)
    from daedalus_etl.core.step import step as real
    found = [real(jobs, u, None)[0] for c in units_of(transform, BOOKS, None) for u in c]
    assert [(u.status, u.rows, u.bytes, u.rows_in, u.state) for u in found] == [
        (u.status, u.rows, u.bytes, u.rows_in, u.state) for u in want[0].units]


def test_the_same_work_twice_at_once(bronze, local, three, client, tmp_path):
    reports, lake = {}, tmp_path / "lake"
    def go(k):
        with as_pool(three[0].address) as pool: reports[k] = compute(bronze, lake, pool, ("trades", "orderbook"))
    both = [Thread(target=go, args=(k,)) for k in range(2)]
    for t in both: t.start()
    for t in both: t.join()
    assert sorted(reports) == [0, 1]
    compute(bronze, lake, client, ("bars",))
    assert kept(lake) == local[0]
    assert {u.status for r in (*reports[0], *reports[1]) for u in r.units} <= {"written", "done"}


def test_workers_in_networks_of_their_own(bronze, local, tmp_path):
    "As on several machines: each worker has its own network, and reaches the others over a bridge."
    if not NIGHTLY: pytest.skip("DAEDALUS_NIGHTLY is not set")
    if os.geteuid() or not shutil.which("ip"): pytest.skip("needs root and iproute2")
    with rooms(3) as (bridge, workers), machines(tmp_path / "dask", host=bridge) as (found, client):
        for inside, host in workers: found.workers(1, inside=inside, host=host)
        client.wait_for_workers(3, timeout=240)
        hosts = sorted(w.split("://")[1].split(":")[0] for w in client.nthreads())
        assert hosts == sorted(host for _, host in workers)
        killer = Killer(client, tmp_path / "lake", [5, 20])
        killer.start()
        reports = compute(bronze, tmp_path / "lake", client)
        killer.over.set()
        killer.join()
        print(f"\nworkers at {hosts}, {len(killer.busy)} killed")
    assert kept(tmp_path / "lake") == local[0] and counts(reports) == local[1]


# ---- what goes wrong

def test_a_failed_chain_leaves_the_others(bronze, client, tmp_path):
    broken = tmp_path / "bronze"
    shutil.copytree(bronze, broken)
    victim = next((broken / "trades").glob(f"*/symbol={SYMBOLS[1]}/*/*/day=07/*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(CorruptFileError) as there: compute(broken, tmp_path / "a", client, ("trades",))
    with pytest.raises(CorruptFileError) as here: compute(broken, tmp_path / "b", steps=("trades",))
    assert lakes.statuses(there.value.report) == lakes.statuses(here.value.report)
    assert sorted(lakes.statuses(there.value.report)) == ["failed", "skipped"] + ["written"] * 7
    assert str(there.value) == str(here.value)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


def go(client, chains, *, stop=None, window=cluster.WINDOW, told=lambda i, r: None):
    return DaskPool(client, window=window).run(chains, step, clusters.finish, stop=stop or Event(), told=told)


def assert_forgotten(client):
    "The scheduler holds no task of ours any more."
    def held(dask_scheduler): return {str(k): t.state for k, t in dask_scheduler.tasks.items()}
    end = time.monotonic() + 20
    while (found := client.run_on_scheduler(held)) and time.monotonic() < end: time.sleep(0.05)
    assert not found


def test_a_unit_that_kills_its_workers(client, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "RESUBMITS", 0)
    chains = [(job(tmp_path, "die a/1"), units("a", 3))]
    reports = go(client, chains)
    assert [r.status for r in reports[0]] == ["written", "failed", "skipped"]
    assert isinstance(reports[0][1].error, WorkerLostError) and "a/1" in str(reports[0][1].error)
    wait_until(lambda: len(client.nthreads()) == 3)
    chains = [(job(tmp_path, "raise b/1"), units("b", 3)), (job(tmp_path), units("c", 3))]
    reports = go(client, chains)
    assert [[r.status for r in c] for c in reports] == [["written", "failed", "skipped"], ["written"] * 3]
    assert isinstance(reports[0][1].error, ClusterError) and "breaks its promise" in str(reports[0][1].error)


def test_lost_again_and_again_it_is_tried_again(client, tmp_path, monkeypatch):
    "Tasks are cancelled behind our back, as by a scheduler that was started again."
    monkeypatch.setattr(cluster, "PAUSE_S", 0.05)
    seen = []
    def told(i, report):
        seen.append(report)
        if report and len(seen) in (3, 6): client.cancel(list(client.futures.values()) and [
            f for c in flights[0].courses for f in c.out.values()])
    flights, make = [], cluster.Flight
    monkeypatch.setattr(cluster, "Flight", lambda *a: flights.append(make(*a)) or flights[0])
    reports = go(client, [(job(tmp_path), units("a", 12))], told=told)
    assert [r.reason for r in reports[0]] == [f"the {k}." for k in range(1, 13)]
    assert seen[0] is None and seen[1:] == reports[0]


def test_an_error_that_does_not_travel_is_told_in_words(client, tmp_path):
    [[report]] = go(client, [(job(tmp_path, "odd"), units("a", 1))])
    assert type(report.error) is RuntimeError and "Odd" in str(report.error)


def test_stop(client, tmp_path):
    "What workers are at is finished and told; no more is begun."
    stop, seen = Event(), []
    def told(i, report):
        if report: seen.append((i, report))
        if len(seen) == 4: stop.set()
    chains = [(job(tmp_path, "wait 0.3"), units(str(k), 40)) for k in range(5)]
    began = time.monotonic()
    reports = go(client, chains, stop=stop, told=told)
    assert 4 <= sum(map(len, reports)) <= 4 + 2 * 3 and time.monotonic() - began < 10
    assert [(i, r) for i, c in enumerate(reports) for r in c] == sorted(seen, key=lambda s: (s[0], s[1].partition))
    assert_forgotten(client)


def test_what_is_over_when_it_stops_is_told(client, tmp_path):
    "Also what came back while somebody else was told: a file of which nothing is said would be a lie."
    stop, stopped = Event(), []
    def told(i, report):
        if report is None or stop.is_set(): return
        time.sleep(2)                       # meanwhile the others go on
        stopped.append(time.time())
        stop.set()
    given = job(tmp_path, "leave 0.2")
    clusters.left(given, "x").parent.mkdir(parents=True)
    reports = go(client, [(given, units(str(k), 40)) for k in range(3)], stop=stop, told=told)
    told = {clusters.left(given, r.partition) for c in reports for r in c}
    left = list(tmp_path.rglob("bronze/*-*"))
    assert told <= set(left)
    over = {p for p in left if p.stat().st_mtime < stopped[0] - 0.5}
    assert len(over) >= 6 and over <= told
    assert_forgotten(client)


def test_an_interrupt_cancels(client, tmp_path):
    def told(i, report):
        if report: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): go(client, [(job(tmp_path, "wait 0.2"), units("a", 40))], told=told)
    assert_forgotten(client)
    assert not list(tmp_path.rglob("*.mark"))


def test_ctrl_c_on_the_command_line(bronze, local, three, client, tmp_path):
    "Stopped and run again, by flags alone."
    command = [sys.executable, "-m", "daedalus_etl.cli", "trades", "--input", bronze / "trades", "--output",
               tmp_path / "lake", "--rolling-windows", "5,60", "--dask", three[0].address]
    first = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             cwd=tmp_path)
    wait_until(lambda: list(tmp_path.rglob("part-0.parquet")) or first.poll() is not None)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)
    assert first.returncode == 130 and "interrupted" in said[1], said
    done = lakes.cli(*command[3:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "lake/silver").rglob("part-0.parquet"))) == 9
    assert lakes.leftovers(tmp_path / "lake") == []


def test_flags():
    "A cluster is not asked for what is done here anyway; a pool beside it is a contradiction."
    def pool(**given):
        flags = dict.fromkeys(("workers", "max_memory", "pool", "limit", "dry_run")) | {"dask": "tcp://127.0.0.1:9"}
        return executor_of(DaedalusConfig(), SimpleNamespace(**flags | given)).pool
    with pytest.raises(ConfigError, match="one of the two"): pool(pool="threads")
    with pytest.raises(ConfigError, match="goes with --dask local"): pool(workers=2)
    assert isinstance(pool(dry_run=True), Threads) and isinstance(pool(limit=5), Threads)


# ---- what travels

def test_small_and_without_secrets(bronze, tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY"): monkeypatch.setenv(name, SECRET)
    for transform in transforms(bronze, tmp_path).values():
        sent = Job(transform, BOOKS, None, "x", transform.code_version())
        unit = units_of(transform, BOOKS, None)[0][-1]
        parts = {"job": sent, "unit": unit, "hand-off": HandOff(unit.partition, "0" * 64, state={"x": [0.0] * 10_000})}
        sizes = {k: len(pickle.dumps(v)) for k, v in parts.items()}
        assert sizes["job"] < 8_000 and sizes["unit"] < 4_000 and sizes["hand-off"] < 1_000, sizes
        assert all(SECRET.encode() not in pickle.dumps(v) for v in parts.values())


def test_no_secret_and_no_frame_on_the_scheduler(bronze, client, tmp_path):
    "All that the scheduler holds while books are computed."
    def held(dask_scheduler):
        import pickle
        return {repr(k): pickle.dumps(t.run_spec) for k, t in dask_scheduler.tasks.items() if t.run_spec is not None}
    found, over = {}, Event()
    def watch():
        while not over.is_set(): found.update(client.run_on_scheduler(held))
    watcher = Thread(target=watch)
    watcher.start()
    compute(bronze, tmp_path / "lake", client, ("orderbook",))
    over.set()
    watcher.join()
    assert client.submit(os.getenv, "AWS_SECRET_ACCESS_KEY", pure=False).result() == SECRET
    assert len(found) > 8 and max(map(len, found.values())) < 12_000, {k: len(v) for k, v in found.items()}
    assert not [k for k, v in found.items() if SECRET.encode() in v]


def test_an_error_of_a_unit_is_no_part_of_the_graph(client, tmp_path, monkeypatch):
    "Nor is a secret part of the error when it is here."
    sent, submit = [], client.submit
    def noted(function, *args, **kwargs):
        sent.append(pickle.dumps([a for a in args if not isinstance(a, Future)]))
        return submit(function, *args, **kwargs)
    monkeypatch.setattr(client, "submit", noted)
    [reports] = go(client, [(job(tmp_path, "tell"), units("a", 20))], window=8)         # three segments
    assert len(sent) >= 20 and not [s for s in sent if SECRET.encode() in s or b"UnitReport" in s]
    assert ["denied for ***" in str(r.error) for r in reports] == [True] * 20


def test_an_address_is_left_with_its_executor(three, client):
    "What an executor has opened, it closes; a client of yours it does not."
    mine, own = TransformExecutor(pool=client, progress=False), TransformExecutor(pool=three[0].address, progress=False)
    opened = own.pool.client
    assert opened.status == "running"
    del mine, own
    gc.collect()
    assert (opened.status, client.status) == ("closed", "running")


def test_the_window_bounds_what_the_scheduler_holds(client, tmp_path):
    most = [0]
    def told(i, report):
        if report and report.partition.endswith("5"):
            n = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
            most[0] = max(most[0], n)
    reports = go(client, [(job(tmp_path), units(str(k), 20)) for k in range(8)], window=32, told=told)
    assert [len(c) for c in reports] == [20] * 8 and 0 < most[0] <= 32 + 8 + 8       # orders; just released
    assert clusters.FINISHED[-8:] == [20] * 8


# ---- who may take part

def test_other_code_is_refused(three, client, tmp_path):
    "A worker with a copy of the package in which one line is another."
    copy = tmp_path / "copy"
    shutil.copytree(Path(cluster.__file__).parents[1], copy / "daedalus_etl", ignore=shutil.ignore_patterns("__pyc*"))
    with open(copy / "daedalus_etl/run/signals.py", "a") as f: f.write("\n# another line\n")
    stranger = three[0].workers(1, "--no-nanny", PYTHONPATH=f"{copy}{os.pathsep}{clusters.HERE}")
    try:
        client.wait_for_workers(4, timeout=60)
        with pytest.raises(ClusterError, match=r"1 of 4 workers differ.*code of daedalus_etl \w+ \(the client has"):
            go(client, [(job(tmp_path), units("a", 1))])
    finally:
        stranger.terminate()
        stranger.wait()
        wait_until(lambda: len(client.nthreads()) == 3)
    with pytest.raises(ClusterError, match=r"polars \S+ \(the client has 0.1\)"):
        check_worker((("polars", "0.1"),), Marks())
    check_worker(versions(), Marks())


def test_a_disk_of_its_own_is_refused(three, client, tmp_path):
    "A worker for which another, empty disk lies where the lake is."
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs mount namespaces (root)")
    mount = ("unshare", "-m", "sh", "-c", f"mount -t tmpfs none {tmp_path} && exec \"$@\"", "sh")
    stranger = three[0].workers(1, "--no-nanny", inside=mount)
    try:
        client.wait_for_workers(4, timeout=60)
        with pytest.raises(StorageError, match="does not see this folder.*filesystem that client and workers share"):
            go(client, [(job(tmp_path), units("a", 1))])
    finally:
        stranger.terminate()
        stranger.wait()
        wait_until(lambda: len(client.nthreads()) == 3)
    with pytest.raises(StorageError, match="does not see"): check_worker(versions(), Marks(((f"{tmp_path}/x", "1"),)))


def test_a_cluster_that_is_not_there(tmp_path):
    with pytest.raises(ClusterError, match="no scheduler can be reached within 0.5 s"):
        as_pool("tcp://127.0.0.1:9", timeout_s=0.5)
    with machines(tmp_path) as (found, client):
        with pytest.raises(ClusterError, match="has no worker.*dask worker tcp"):
            go(client, [(job(tmp_path), units("a", 1))])
        for p in found.started: p.kill()
        wait_until(lambda: client.status != "running")
    with pytest.raises(ConfigError, match="is no Dask cluster"): as_pool(3)
    with pytest.raises(ConfigError, match="published as one"):
        out = OutputConfig(name="silver", path=str(tmp_path / "lake/silver/x"), mode="overwrite")
        transform = lakes.trades(tmp_path, tmp_path)
        transform.config = transform.config.model_copy(update={"outputs": {"silver": out}})
        TransformExecutor(pool=DaskPool(None), progress=False).execute(transform)


def test_without_distributed():
    code = ("import sys; sys.modules['distributed'] = None\n"
            "from daedalus_etl.run.cluster import as_pool\nas_pool('tcp://127.0.0.1:9')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtraError" in done.stderr and "pip install 'daedalus_etl[dask]'" in done.stderr
    assert issubclass(MissingExtraError, Exception)
