"""Several processes at once: writers never lose an update, wait for each other in a circle, or disturb those of other
partitions; readers who know nothing of us never see a mixture."""
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import faults
import lakes
import polars as pl
import pytest
import racer
import writer
from faults import NIGHTLY
from lakes import BTC, ETH
from test_kill import HERE, start

from daedalus_etl.core.config import FeatureConfig, FilterSpec
from daedalus_etl.storage.journal import journals

SECONDS = 60 if NIGHTLY else 3


def race(lake: Path, *roles: str, seconds: float = SECONDS, limit_s: float = 60.0) -> list[dict]:
    "Run one process of each role over `lake`, begun together; what each of them says at its end."
    env = os.environ | {"PYTHONPATH": str(HERE.parent), "POLARS_MAX_THREADS": "1"}
    command, pipe = [sys.executable, str(HERE / "racer.py")], subprocess.PIPE
    started = [subprocess.Popen([*command, role, str(lake), str(seconds), str(k)], env=env, stdin=pipe, stdout=pipe,
                                stderr=pipe, text=True) for k, role in enumerate(roles)]
    try:
        for p in started:
            p.stdin.write("go\n")
            p.stdin.flush()
        said = [p.communicate(timeout=seconds + limit_s) for p in started]
    finally:
        for p in started: p.kill()
    for p, (_, complaint) in zip(started, said, strict=True): assert p.returncode == 0, complaint
    return [json.loads(out) for out, _ in said]


def numbers(lake: Path) -> dict[str, int]:
    "What has been counted in each partition."
    data = racer.dataset(str(lake))
    return {d.path: pl.read_parquet(data.file(d), hive_partitioning=False)["n"][0] for d in racer.DAYS
            if data.file(d).exists()}


@pytest.mark.parametrize("role", ["count", "sets"])
def test_no_update_is_lost_and_nobody_waits_for_ever(tmp_path, role):
    """Each commit adds one to what its process has read. `count`: one partition, one rename; `sets`: overlapping sets
    of partitions in any order, by a journal. The numbers must be those of some serial order: the commits that won."""
    said = race(tmp_path, *[role] * 4)
    done: Counter = sum((Counter(s["done"]) for s in said), Counter())
    assert numbers(tmp_path) == dict(done) and done.total() > 20
    lost = sum(s["lost"] for s in said)
    assert lost > 0, "they never met"
    print(f"\n{role}: {done.total()} updates won, {lost} commits lost and were tried again")
    assert journals(tmp_path) == [] and lakes.leftovers(tmp_path) == [] and not list(tmp_path.rglob("stage/*"))


def test_readers_never_see_a_mixture(tmp_path):
    "While partitions are replaced, exchanged (one file to three and back) and taken away."
    written, *said = race(tmp_path, "write", "polars", "pyarrow", "duckdb", seconds=1.5 * SECONDS)
    print(f"\n{written}", *(s["said"] for s in said), sep="\n")
    assert written["versions"] > 20
    for s in said: assert s["said"].get("wrong", 0) == 0 and s["said"]["good"] > 20, s


def outcome(child: subprocess.Popen) -> tuple[int, str]:
    out, complaint = child.communicate(timeout=120)
    return child.returncode, out + complaint


@pytest.fixture(scope="module")
def src(tmp_path_factory): return writer.sources(tmp_path_factory.mktemp("race") / "sources")


@pytest.mark.parametrize("what", ["overwrite_partition", "append"])
def test_the_same_work_done_by_several(what, src, tmp_path):
    "As a cluster's duplicated task does: nobody fails, and the lake is that of one."
    lakes_ = [tmp_path / n for n in ("one", "many")]
    lakes_[0].mkdir()
    writer.WORKS[what][0](src, lakes_[0])
    shutil.copytree(*lakes_)
    writer.WORKS[what][1](src, lakes_[0])
    children = [start(what, src, lakes_[1]) for _ in range(3 if NIGHTLY else 2)]
    for code, said in map(outcome, children): assert code == 0, said
    assert faults.differences(*lakes_) == [] and lakes.leftovers(lakes_[1]) == []


def cli(src: Path, lake: Path, windows: str, *more: str) -> subprocess.Popen:
    "The command line as a process of its own, under way."
    command = [sys.executable, "-m", "daedalus_etl.cli", "trades", "--input", str(src), "--output", str(lake),
               "--rolling-windows", windows, *more]
    env = {k: v for k, v in os.environ.items() if k != "DAEDALUS_CONFIG"} | {"PYTHONPATH": str(HERE.parent)}
    return subprocess.Popen(command, env=env, cwd=src.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_streams_by_different_processes_are_those_of_one(tmp_path):
    src = tmp_path / "bronze"
    for day in (8, 9):
        for s in (BTC, ETH): lakes.put(src, lakes.tape(day, n=20, stream=s), day, s)
    lakes.run(lakes.trades(src, tmp_path / "one"))
    children = [cli(src, tmp_path / "many", "5,60,900", "--symbol", s) for s in (BTC[1], ETH[1])]
    for code, said in map(outcome, children): assert code == 0, said
    assert {p: s for p, s in faults.tree(tmp_path / "many").items() if p.startswith("silver")} == {
        p: s for p, s in faults.tree(tmp_path / "one").items() if p.startswith("silver")}


def test_two_configurations_over_one_output(tmp_path):
    "Each partition ends as that of one of the two, with its own state; who is overtaken is told so by exit code 3."
    src = tmp_path / "bronze"
    for day in (8, 9): lakes.put(src, lakes.tape(day, n=20), day)
    one, many = {w: tmp_path / f"only {w}" for w in ("5,60", "5,900")}, tmp_path / "many"
    children = [cli(src, many, w) for w in one]
    for w, lake in one.items():
        lakes.run(lakes.trades(src, lake), features=FeatureConfig(rolling_windows=tuple(map(int, w.split(",")))))
    codes = [outcome(c)[0] for c in children]
    assert set(codes) <= {0, 3} and 0 in codes
    faults.assert_whole(many, *one.values())
    assert lakes.run(lakes.trades(src, many), FilterSpec(day=8)).success and lakes.leftovers(many) == []
