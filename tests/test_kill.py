"""A process that writes is killed at a random moment (SIGKILL), many times: nothing is lost, nothing comes twice,
and the next run ends in the lake of a run that nobody disturbed."""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import faults
import lakes
import polars as pl
import pytest
import writer
from faults import NIGHTLY

from daedalus_etl.core.state import state_hash
from daedalus_etl.storage.commit import read_footer
from daedalus_etl.storage.journal import journals

KILLS = 50 if NIGHTLY else 3
HERE = Path(__file__).resolve().parent


def start(what: str, src: Path, lake: Path, **env) -> subprocess.Popen:
    "The writer as a process of its own; returns at once."
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "POLARS_MAX_THREADS": "2"} | env
    return subprocess.Popen([sys.executable, str(HERE / "writer.py"), what, str(src), str(lake)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.fixture(scope="module")
def src(tmp_path_factory): return writer.sources(tmp_path_factory.mktemp("kill") / "sources")


@dataclass
class Trial:
    "One work: its lakes before and after, how long it takes, and what the kills did."
    what: str
    src: Path
    home: Path
    seen: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.old, self.new = self.home / "old", self.home / "new"
        self.old.mkdir(parents=True)
        writer.WORKS[self.what][0](self.src, self.old)
        shutil.copytree(self.old, self.new)
        child = start(self.what, self.src, self.new)
        assert child.stdout.readline() == "ready\n"
        began = time.monotonic()
        assert child.stdout.readline() == "done\n"
        self.seconds = time.monotonic() - began
        child.wait()

    def next(self, k: int) -> tuple[Path, subprocess.Popen]:
        lake = self.home / f"lake{k}"
        shutil.copytree(self.old, lake)
        return lake, start(self.what, self.src, lake)

    def kill(self, child: subprocess.Popen, wait_s: float) -> None:
        assert child.stdout.readline() == "ready\n"
        time.sleep(wait_s)
        child.send_signal(signal.SIGKILL)
        said = child.communicate()[0]
        self.seen["kills"] += 1
        self.seen["within the writing"] += "done" not in said

    def look(self, lake: Path) -> None:
        "What readers see right after the kill."
        faults.assert_whole(lake, self.old, self.new)
        old, now = faults.partitions(self.old), faults.partitions(lake)
        changed = [p for p in now if now[p] != old.get(p)]
        self.seen["half-way"] += bool(changed) and bool(faults.differences(lake, self.new))
        self.seen["journals left"] += len(journals(lake))

    def count(self, lake: Path) -> None:
        "Rows and states after the next run, against those of the undisturbed lake."
        mine, theirs = rows(lake), rows(self.new)
        self.seen["lost"] += (theirs - mine).total()
        self.seen["duplicated or wrong"] += (mine - theirs).total()
        self.seen["wrong states"] += len(bad_states(lake))
        self.seen["other bytes"] += len(faults.differences(lake, self.new))
        self.seen["left in a stage"] += len(list(lake.rglob("stage/*")))


def rows(lake: Path) -> Counter:
    "Every row of every dataset, with how often it is there; a file that cannot be read is an error."
    found: Counter = Counter()
    for root in faults.roots(lake):
        for path in root.rglob("*.parquet"):
            found.update((path.parent, *r) for r in pl.read_parquet(path, hive_partitioning=False).rows())
    return Counter({(str(p).removeprefix(str(lake)), *r): n for (p, *r), n in found.items()})


def bad_states(lake: Path) -> list[str]:
    "Data files whose footer names a state that is not there, or is not what its name says."
    def bad(path):
        digest, dataset = read_footer(path).get("state", "none"), str(path.relative_to(lake)).partition("/exchange=")[0]
        state = lake / ".daedalus" / dataset / "states" / f"{digest}.state"
        if digest == "none" or dataset.startswith("gold"): return False
        return not state.exists() or state_hash(state.read_bytes()) != digest
    return [str(p) for p in lake.rglob("*.parquet") if ".daedalus" not in p.parts and bad(p)]


@pytest.mark.parametrize("what", ["overwrite_partition", "merge", "append", "several_outputs"])
def test_killed_at_any_moment(what, src, tmp_path):
    trial, dice = Trial(what, src, tmp_path), random.Random(what)
    lake, child = trial.next(0)
    for k in range(KILLS):
        trial.kill(child, dice.uniform(0, 0.95 * trial.seconds))
        following = trial.next(k + 1) if k < KILLS - 1 else None    # starts up while we look
        trial.look(lake)
        writer.WORKS[what][1](src, lake)
        trial.count(lake)
        shutil.rmtree(lake)
        if following: lake, child = following
    print(f"\n{what}: {dict(trial.seen)}, one run takes {trial.seconds:.2f} s")
    bad = ("lost", "duplicated or wrong", "wrong states", "other bytes", "left in a stage")
    assert {b: trial.seen[b] for b in bad} == dict.fromkeys(bad, 0)
    assert trial.seen["within the writing"] > KILLS // 4


def test_counting_can_fail(src, tmp_path):
    "A lake with a day that is there twice, one that is gone and a state that is damaged is seen as such."
    lake, other = tmp_path / "lake", tmp_path / "other"
    writer.WORKS["append"][1](src, lake)
    shutil.copytree(lake, other)
    files = sorted((other / "silver").rglob("*.parquet"))
    shutil.copy(files[0], files[0].with_name("part-again.parquet"))
    files[1].unlink()
    state = next(iter((other / ".daedalus/silver/small/states").iterdir()))
    state.write_bytes(b"x")
    assert (rows(other) - rows(lake)).total() == 4 == (rows(lake) - rows(other)).total()
    assert bad_states(lake) == [] != bad_states(other)
    assert set(lakes.contents(lake)) != set(lakes.contents(other))
    with pytest.raises(AssertionError, match="a mixture"): faults.assert_whole(other, lake)
