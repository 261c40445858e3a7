"""Chains on threads, processes and executors of others: the same bytes, failures that stay in their chain, workers that
die, faults that pass, and what is refused."""
import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import SimpleNamespace

import faults
import lakes
import pytest
from lakes import BTC, ETH, put, statuses, tape
from pooled import At, Total, die, die_published, total
from test_interrupt import nobody_left, wait_until

from daedalus_etl.core import executor, retry
from daedalus_etl.core.errors import ConfigError, CorruptFileError, DaedalusError, WorkerLostError
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.core.report import UnitReport
from daedalus_etl.run.local import LOSSES, Threads
from daedalus_etl.storage import disk

POOLS = ["threads", "processes"]


@pytest.fixture
def bronze(tmp_path):
    "Three days of two streams."
    root = tmp_path / "bronze"
    for stream in (BTC, ETH):
        for day in (8, 9, 10): put(root, tape(day, n=20, stream=stream), day, stream)
    return root


@pytest.fixture
def lake(tmp_path): return tmp_path / "lake"


@pytest.fixture
def quick(monkeypatch):
    "No real waiting between tries."
    monkeypatch.setattr(retry, "FIRST_S", 0.001)


def run(transform, pool=None, workers: int | None = 2, **kwargs):
    return TransformExecutor(workers=workers, pool=pool, progress=False).execute(transform, **kwargs)


def silver(lake): return {k: v for k, v in lakes.contents(lake).items() if k.startswith("silver")}


@pytest.fixture
def alike(bronze, tmp_path):
    "The bytes of an undisturbed run with one worker."
    run(total(bronze, tmp_path / "alike"), workers=1)
    return silver(tmp_path / "alike")


@pytest.fixture
def whole(alike, bronze, tmp_path):
    "The numbers of an undisturbed run."
    return numbers(run(total(bronze, tmp_path / "numbers"), workers=1))


def numbers(report): return report.totals(), {n: s | {"path": ""} for n, s in report.write_stats.items()}


# ---- the same bytes

@pytest.mark.parametrize("kind", ["threads", "processes", "my threads", "my processes"])
def test_bytes_do_not_depend_on_the_pool(bronze, lake, alike, tmp_path, quick, kind):
    "Nor on a fault that passes; the report tells how often a unit was tried."
    if kind == "my threads": pool = ThreadPoolExecutor(2)
    elif kind == "my processes": pool = ProcessPoolExecutor(2, get_context("spawn"))
    else: pool = kind
    fault = At(f"{BTC[1]}/year=2024/month=08/day=09", tmp_path / "m", 2, OSError(errno.ETIMEDOUT, "timed out"))
    report = run(total(bronze, lake, fault), pool, None if kind.startswith("my") else 2, state_path=tmp_path / "states")
    assert statuses(report) == ["written"] * 6
    assert [u.tries for u in report.units] == [1, 3, 1, 1, 1, 1]
    assert report.units[1].reason == "no output yet; tried 3 times"
    assert [u.partition for u in report.units] == sorted(u.partition for u in report.units)
    assert silver(lake) == alike and not lakes.leftovers(lake)
    assert statuses(run(total(bronze, lake), state_path=tmp_path / "again")) == ["done"] * 6
    assert len(lakes.contents(tmp_path / "states")) == 2
    assert lakes.contents(tmp_path / "states") == lakes.contents(tmp_path / "again")
    if kind.startswith("my"):
        assert pool.submit(abs, -1).result() == 1           # it is ours still
        pool.shutdown()


# ---- a failure stays in its chain

class Unpicklable(Exception):
    def __init__(self, a, b): super().__init__(a, b, lambda: None)


def raise_odd(): raise Unpicklable("odd", 2)


@pytest.mark.parametrize("pool", POOLS)
def test_failure_stays_in_its_chain(bronze, lake, tmp_path, alike, pool):
    "Of three streams one has a damaged file, and one an error that cannot even be sent from one process to another."
    sol = ("binance", "SOL-USDT")
    for day in (8, 9): put(bronze, tape(day, n=20, stream=sol), day, sol)
    put(bronze, b"PAR1 no parquet at all", 9, BTC)
    trouble = At("SOL-USDT/year=2024/month=08/day=08", tmp_path / "m", 1, raise_odd)
    with pytest.raises(CorruptFileError, match="day=09") as caught: run(total(bronze, lake, trouble), pool)
    report = caught.value.report
    assert statuses(report) == ["written", "failed", "skipped"] + ["written"] * 3 + ["failed", "skipped"]
    assert report.units[2].reason.endswith("day=09") and "Unpicklable" in report.units[6].reason
    if pool == "processes": assert "in a worker" in str(caught.value.__cause__)
    assert not lakes.leftovers(lake)
    put(bronze, tape(9, n=20), 9, BTC)
    assert statuses(run(total(bronze, lake))) == ["done"] + ["written"] * 2 + ["done"] * 3 + ["written"] * 2


# ---- workers that die

@pytest.mark.parametrize("how", [die, die_published])
def test_killed_worker_is_replaced_and_its_unit_tried_again(bronze, lake, tmp_path, alike, whole, how):
    "Also if it had published its unit: what it did not live to tell is counted."
    report = run(total(bronze, lake, At("BTC-USDT/year=2024/month=08/day=09", tmp_path / "m", 1, how)), "processes")
    assert statuses(report) == ["written"] * 6 and numbers(report) == whole
    assert silver(lake) == alike and not lakes.leftovers(lake)
    assert int((tmp_path / "m").read_text()) == 0
    assert statuses(run(total(bronze, lake), "processes")) == ["done"] * 6


def test_unit_that_kills_its_worker_fails_alone(bronze, lake, tmp_path, alike):
    trouble = At("BTC-USDT/year=2024/month=08/day=09", tmp_path / "m", 99, die)
    with pytest.raises(WorkerLostError, match="day=09.*fewer --workers") as caught:
        run(total(bronze, lake, trouble), "processes")
    assert statuses(caught.value.report) == ["written", "failed", "skipped"] + ["written"] * 3
    assert not lakes.leftovers(lake)
    assert int((tmp_path / "m").read_text()) == 99 - LOSSES
    run(total(bronze, lake), "threads")
    assert silver(lake) == alike


def test_broken_executor_of_others_is_an_error_of_each_chain(bronze, lake, tmp_path, alike):
    trouble = At("BTC-USDT/year=2024/month=08/day=09", tmp_path / "m", 1, die)
    with ProcessPoolExecutor(1, get_context("spawn")) as mine:
        with pytest.raises(WorkerLostError) as caught: run(total(bronze, lake, trouble), mine, None)
    assert statuses(caught.value.report) == ["written", "failed", "skipped", "failed", "skipped", "skipped"]
    run(total(bronze, lake))
    assert silver(lake) == alike


class Renewed(Threads):
    "Threads that can be started again, as processes can."
    def restart(self, executor, chains): return self.start(chains)


def days(n): return [SimpleNamespace(partition=SimpleNamespace(path=f"day={k}")) for k in range(n)]


@pytest.mark.parametrize("pool", [Threads(2), Renewed(2)])
def test_worker_lost_at_the_end_of_a_chain_hides_no_failure(pool):
    "Nor is the end missing: it is made here."
    ended = []

    def step(job, unit, before):
        if job == "bad": raise BrokenExecutor("gone")
        return UnitReport(unit.partition.path, "written"), "last"

    def finish(job, last):
        if current_thread() is not main_thread(): raise BrokenExecutor("gone")
        ended.append((job, last))

    nothing = lambda *_: None  # noqa: E731
    good, bad = pool.run([("good", days(1)), ("bad", days(2))], step, finish, stop=Event(), told=nothing)
    assert [r.status for r in bad] == ["failed", "skipped"]
    if isinstance(pool, Renewed): assert [r.status for r in good] == ["written"] and ended == [("good", "last")]


# ---- faults that pass

def test_fault_that_does_not_pass_is_given_up(bronze, lake, tmp_path, quick):
    fault = OSError(errno.ESTALE, "Stale file handle")
    with pytest.raises(OSError, match="Stale") as caught:
        run(total(bronze, lake, At("BTC-USDT/year=2024/month=08/day=09", tmp_path / "m", 99, fault)))
    assert [u.tries for u in caught.value.report.units] == [1, retry.TRIES, 1, 1, 1, 1]
    assert int((tmp_path / "m").read_text()) == 99 - retry.TRIES


@pytest.mark.parametrize("fault", [
    OSError(errno.ENOSPC, "No space left"), OSError(errno.EACCES, "Permission denied"), ZeroDivisionError("bug"),
    FileNotFoundError(errno.ENOENT, "No such file"), MemoryError()], ids=lambda e: type(e).__name__)
def test_lasting_fault_is_told_at_once(bronze, lake, tmp_path, fault):
    with pytest.raises(type(fault)) as caught:
        run(total(bronze, lake, At("BTC-USDT/year=2024/month=08/day=09", tmp_path / "m", 99, fault)))
    assert caught.value.report.units[1].tries == 1
    assert int((tmp_path / "m").read_text()) == 98


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EBUSY, errno.ENOSPC])
def test_fault_at_any_call_of_the_disk(bronze, lake, alike, whole, quick, monkeypatch, number):
    "Each n-th change on disk is refused once: what passes is tried again to the same bytes, what does not is an error."
    bare, at = disk.syscall, [0, 0]

    def refusing(call, *args, **kwargs):
        at[0] += 1
        if at[0] == at[1]: raise OSError(number, os.strerror(number))
        return bare(call, *args, **kwargs)

    monkeypatch.setattr(disk, "syscall", refusing)
    tried, given_up = 0, 0
    for n in range(1, 200, 1 if faults.NIGHTLY else 23):
        target, at[:] = lake.parent / f"lake{n}", [0, n]
        try: report = run(total(bronze, target), workers=1)
        except (DaedalusError, OSError) as e: given_up += hasattr(e, "report")      # else before the first unit
        else:
            tried += sum(u.tries > 1 for u in report.units)
            assert silver(target) == alike and numbers(report) == whole
        run(total(bronze, target))                  # it sweeps a lock that could not be removed
        assert silver(target) == alike and not lakes.leftovers(target)
    assert (tried > 0, given_up > 0) == ((False, True) if number == errno.ENOSPC else (True, False))


# ---- stopped

def start(bronze, lake, pool, what="rest") -> subprocess.Popen:
    "A program that waits in the second day of each stream."
    here = Path(__file__).resolve().parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    args = [sys.executable, str(here / "pooled.py"), str(bronze), str(lake), pool, what]
    child = subprocess.Popen(args, env=env, text=True, start_new_session=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    marker = lake.parent / "marker"
    resting = lambda: marker.exists() and marker.read_text() not in ("", "99", "98")  # noqa: E731
    wait_until(resting, child)
    assert resting() and child.poll() is None, "the two streams never waited side by side"
    return child


@pytest.mark.parametrize("pool", POOLS)
def test_second_signal_ends_it_at_once(bronze, lake, alike, pool):
    child = start(bronze, lake, pool)
    child.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert child.poll() is None, child.communicate()                    # the units under way would take a minute
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 130 and "interrupted: 2 of 6 partitions are finished" in err
    assert nobody_left(child.pid)
    assert len(silver(lake)) == 2
    run(total(bronze, lake))
    assert silver(lake) == alike and not lakes.leftovers(lake)


@pytest.mark.parametrize("pool", POOLS)
def test_a_signal_to_all_processes_lets_units_under_way_end(bronze, lake, alike, pool):
    "As a service manager sends it: SIGTERM, to the workers, too."
    child = start(bronze, lake, pool, "doze")
    os.killpg(child.pid, signal.SIGTERM)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130 and "interrupted: 4 of 6 partitions are finished" in err, err
    assert nobody_left(child.pid)
    assert len(silver(lake)) == 4 and not lakes.leftovers(lake)
    run(total(bronze, lake))
    assert silver(lake) == alike


def test_workers_end_with_their_parent(bronze, lake):
    child = start(bronze, lake, "processes")
    child.kill()
    child.wait()
    assert nobody_left(child.pid)


def test_an_error_after_a_stop_lets_what_is_under_way_end():
    "Only a second Ctrl-C drops it."
    stop, heard = Event(), []

    def step(job, unit, before):
        time.sleep(job)
        return UnitReport(unit.partition.path, "written"), None

    def told(chain, report):
        if report is None: return
        heard.append(chain)
        if chain == 0:
            stop.set()
            raise ValueError("told too much")

    with pytest.raises(ValueError, match="too much"):
        Threads(2).run([(0.0, days(2)), (0.5, days(2))], step, print, stop=stop, told=told)
    assert heard == [0, 1]


def test_error_of_the_run_itself_has_the_report(bronze, lake, monkeypatch):
    "Here, one that the end of a chain raises."
    def bad(job, last): raise ZeroDivisionError("at the end")
    monkeypatch.setattr(executor, "finish", bad)
    with pytest.raises(ZeroDivisionError) as caught: run(total(bronze, lake), workers=1)
    assert "written" in statuses(caught.value.report)


# ---- refused

def test_published_as_one_stays_in_this_process(bronze, lake):
    for made in (total(bronze, lake, mode="overwrite"), as_one(total(bronze, lake))):
        with pytest.raises(ConfigError, match="published as one"): run(made, "processes")
        assert not lake.exists()
        with ThreadPoolExecutor(2) as mine: assert statuses(run(made, mine)) == ["written"] * 6
        for p in sorted(lake.rglob("*"), reverse=True): p.rmdir() if p.is_dir() else p.unlink()
        lake.rmdir()


def as_one(made: Total) -> Total: return Total(made.config.model_copy(update={"atomic": "run"}))


def test_limited_run_is_computed_here(bronze, lake):
    assert run(total(bronze, lake), "processes", limit_rows=70).totals()["rows_in"] >= 70
    assert not silver(lake)


@pytest.mark.parametrize("pool", ["fibres", 3, object()])
def test_unknown_pool(pool):
    with pytest.raises(ConfigError, match="concurrent.futures.Executor"): TransformExecutor(pool=pool)


def test_transform_that_cannot_travel(bronze, lake):
    made = total(bronze, lake, lambda path: None)
    with pytest.raises(ConfigError, match="cannot be sent to another process"): run(made, "processes")
    assert not lake.exists()
