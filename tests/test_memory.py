"""A memory budget is kept by the whole process tree, changes no byte of the output, and is refused if it cannot be."""
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import psutil
import pytest
from lakes import SMALL, cli, contents, put, tape, trades

from daedalus_etl.core import budget
from daedalus_etl.core.budget import MIB, Admission, Budget, Pieces, Work
from daedalus_etl.core.errors import ConfigError, CorruptFileError
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.run.local import Threads
from daedalus_etl.sources.simulated import write_bronze
from daedalus_etl.sources.simulator import SimulatorConfig

SYMBOLS = ("AAA-USDT", "BBB-USDT", "CCC-USDT", "DDD-USDT")
ROWS, BUDGET = 60_000, 700
FLAGS = ("--features", "mid_price,spread,imbalance_L5,ofi,mlofi,rv_60s,spread_percentile", "--no-trades")


@pytest.fixture(scope="module")
def bronze(tmp_path_factory) -> Path:
    "Four chains of a day; the first one's day is a single row group of four times as many books, 150 MB decoded."
    root = tmp_path_factory.mktemp("memory") / "bronze"
    config = SimulatorConfig(depth=20, snapshot_s=36_000.0 / ROWS)
    start = datetime(2026, 1, 14, tzinfo=UTC)
    (path,) = write_bronze(root, {SYMBOLS[0]: config}, start, 36_000.0, channels=("orderbook",))
    day = pl.read_parquet(path, hive_partitioning=False)
    for symbol in SYMBOLS[1:]:
        other = Path(str(path).replace(SYMBOLS[0], symbol))
        other.parent.mkdir(parents=True)
        day.with_columns(symbol=pl.lit(symbol)).write_parquet(other, row_group_size=20_000)
    halves = [day.with_columns(pl.col("capture_ts") + pl.duration(hours=10) * k, pl.col("nonce") + k * 10**9)
              for k in (0, 1)]
    pl.concat(halves).write_parquet(path, row_group_size=10**7)
    return root


def peak_of(*args) -> tuple[int, str]:
    "Peak resident MiB of the process tree of `daedalus args`, and what it said."
    with tempfile.TemporaryFile("w+") as said:
        child = psutil.Popen([sys.executable, "-m", "daedalus_etl.cli", *map(str, args)], stdout=said,
                             stderr=subprocess.STDOUT)
        peak = 0
        while child.poll() is None:
            total = 0
            for p in [child, *_children(child)]:
                try: total += p.memory_info().rss
                except psutil.NoSuchProcess: pass
            peak = max(peak, total)
            time.sleep(0.02)
        said.seek(0)
        text = said.read()
    assert child.returncode == 0, text
    return peak // MIB, text


def _children(process: psutil.Process) -> list[psutil.Process]:
    try: return process.children(recursive=True)
    except psutil.NoSuchProcess: return []


def job(bronze: Path, lake: Path, *more) -> tuple:
    return ("orderbook", "--input", bronze / "orderbook", "--output", lake, "--workers", "4", *FLAGS, *more)


def silver(lake: Path) -> dict[str, str]:
    found = contents(lake / "silver/orderbook")
    assert len(found) == len(SYMBOLS)
    return found


@pytest.fixture(scope="module")
def free(bronze, tmp_path_factory) -> tuple[int, dict[str, str]]:
    "Peak and output of a run without a budget."
    lake = tmp_path_factory.mktemp("free") / "lake"
    return peak_of(*job(bronze, lake))[0], silver(lake)


def test_the_budget_is_kept_and_changes_no_byte(bronze, free, tmp_path):
    within, _ = peak_of(*job(bronze, tmp_path / "within", "--max-memory", f"{BUDGET}MiB"))
    assert within <= BUDGET < free[0], (within, free[0])
    assert silver(tmp_path / "within") == free[1]


def test_worker_processes_share_one_budget(bronze, free, tmp_path):
    within, _ = peak_of(*job(bronze, tmp_path / "within", "--max-memory", "1200MiB", "--pool", "processes"))
    assert within <= 1200
    assert silver(tmp_path / "within") == free[1]


def test_a_thread_that_ends_hides_no_process(monkeypatch):
    "While the threads of a process are gone through, one of them ends."
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["999999999", *listed(path)] if "/task" in path else listed(path))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try: assert child.pid in budget._tree(os.getpid())
    finally: child.communicate(b"\n")


def test_too_small_a_budget_is_refused(bronze, tmp_path):
    done = cli(*job(bronze, tmp_path / "lake", "--max-memory", "200MiB"))
    assert done.returncode == ConfigError.exit_code
    assert "200 MiB is too little for one chain; expected at least" in done.stderr
    assert "row_group_size" in done.stderr
    assert not (tmp_path / "lake/silver").exists()


def test_all_columns_in_pieces_are_the_same_bytes(bronze, tmp_path):
    flags = ("--categories", "structural,dynamic,rolling,advanced", "--symbol", SYMBOLS[1])
    found = []
    for k, more in enumerate(((), ("--max-memory", "1200MiB"))):     # batches of 65 536 and of 8 192 rows
        args = ("orderbook", "--input", bronze / "orderbook", "--output", tmp_path / str(k), *flags, *more)
        done = cli(*args)
        assert done.returncode == 0, done.stderr
        found.append(contents(tmp_path / str(k) / "silver/orderbook"))
    assert len(found[0]) == 1
    assert found[0] == found[1]


WORK = Work(read_bytes=700, written_bytes=1_800, group_rows=131_072, columns=220)


def test_more_memory_never_means_less_at_once():
    plans = [Budget(m * MIB).plan(WORK, 8) for m in range(1_400, 16_000, 400)]
    chains = [c for c, _ in plans]
    assert chains == sorted(chains) and chains[0] == 1 and chains[-1] == 8
    assert all(isinstance(p, Pieces) and p.read_rows == p.batch_rows for _, p in plans)


def test_what_is_asked_for_at_least_is_enough():
    with pytest.raises(ConfigError) as refused: Budget(300 * MIB).plan(WORK, 1)
    least = str(refused.value).split("at least ")[1].split(":")[0]
    assert Budget.of(least.replace(",", "").replace(" ", "")).plan(WORK, 4)[0] == 1


def test_a_chain_waits_while_there_is_no_room():
    "Three chains of two units; the second may begin only when there is room, and what has begun goes on."
    room, most, running = [True], 0, 0
    guard = threading.Lock()

    def admits(now, *, begun): return now == 0 or begun or room[0]

    def step(name, unit, before):
        nonlocal most, running
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with guard: running -= 1
        return unit, None

    def go():
        pool, nothing = Threads(4).within(2, admits), lambda *_: None
        return pool.run([(c, [1, 2]) for c in "abc"], step, nothing, stop=threading.Event(), told=nothing)

    assert go() == [[1, 2]] * 3
    assert most == 2
    room[0], most = False, 0
    assert go() == [[1, 2]] * 3
    assert most == 1


def test_over_the_bound_only_one_chain_goes_on():
    over = Admission(Budget(1), 1)
    assert over(0, begun=True)
    assert not over(1, begun=True)
    assert not over(3, begun=False)


def test_a_damaged_file_is_named_as_without_a_budget(tmp_path):
    found = []
    for k, more in enumerate(({}, {"max_memory": "2GiB"})):
        source = tmp_path / str(k)
        path = put(source / "trades", tape(n=5_000))
        data = bytearray(path.read_bytes())
        data[2_000:len(data) // 2] = bytes(len(data) // 2 - 2_000)
        path.write_bytes(data)
        executor = TransformExecutor(SMALL, progress=False, **more)
        with pytest.raises(CorruptFileError) as told: executor.execute(trades(source / "trades", source / "lake"))
        assert str(path) in str(told.value)
        found.append(type(told.value))
    assert found[0] is found[1]


@pytest.mark.parametrize("extra", [{}, {"quarantine_files": True}])
def test_rows_out_of_order_are_sorted_in_slices(tmp_path, extra):
    "The same bytes as without a budget, for rows that were shuffled, in files of which one cannot be read."
    day = tape(n=20_000).sample(fraction=1.0, shuffle=True, seed=1)
    silver = []
    for k, pieces in enumerate((None, Pieces(batch_rows=1_000, sort_rows=3_000, read_rows=700))):
        source = tmp_path / "bronze"
        if not k:
            put(source, day)
            if extra: put(source, b"PAR1 cut short", name="other.parquet")
        job = trades(source, tmp_path / str(k))
        if extra: job.config.inputs["trades"] = job.config.inputs["trades"].model_copy(update=extra)
        executor = InPieces(SMALL, progress=False)
        executor.pieces = pieces
        with warnings.catch_warnings(action="ignore"): executor.execute(job)
        silver.append(contents(tmp_path / str(k) / "silver"))
    assert silver[0] == silver[1] and len(silver[0]) == 1


class InPieces(TransformExecutor):
    "An executor whose pieces are given."
    pieces = None

    def _run(self, job, *args):
        super()._run(job if self.pieces is None else replace(job, pieces=self.pieces), *args)
