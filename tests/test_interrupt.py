"""`daedalus run` is stopped at random moments, by Ctrl-C in its terminal and by SIGTERM: what is there is whole, no
process and nothing in a stage is left behind, and the next run ends in the bytes of a run that nobody disturbed."""
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import lakes
import psutil
import pytest
from faults import NIGHTLY
from lakes import put, tape

from daedalus_etl.core.state import state_hash
from daedalus_etl.storage.commit import read_footer

STREAMS = [("binance", s) for s in ("ADA-USDT", "BTC-USDT", "ETH-USDT")]
DAYS = range(8, 12)
TRIALS = {"threads": 40 if NIGHTLY else 2, "processes": 20 if NIGHTLY else 1}
PATIENCE_S = 120


def start(bronze: Path, lake: Path, *more: str, **env) -> subprocess.Popen:
    "The run as a program in a terminal of its own: a process group that a Ctrl-C reaches as a whole."
    args = [sys.executable, "-m", "daedalus_etl.cli", "run", "--input", bronze, "--output", lake, "--workers", 2, *more]
    env = {k: v for k, v in os.environ.items() if k != "DAEDALUS_CONFIG"} | env
    return subprocess.Popen([*map(str, args)], cwd=bronze.parent, start_new_session=True, text=True, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def nobody_left(group: int) -> bool:
    "Whether all processes of the group are gone, soon."
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try: os.killpg(group, 0)
        except ProcessLookupError: return True
        time.sleep(0.05)
    return False


def wait_until(condition, child) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition() and child.poll() is None and time.monotonic() < give_up: time.sleep(0.005)


def data(lake: Path) -> dict[str, tuple]:
    """Hashes of the bytes of all files below silver and gold, with the footers' keys.

    Gold is made of silver files, and its footers name the times and inodes of these: they differ between lakes, and
    so for gold it is the bytes before Parquet's own footer that are compared, and all keys but the two that say so."""
    return {p.relative_to(lake).as_posix(): content(p, p.relative_to(lake).parts[0])
            for tier in ("silver", "gold") for p in sorted((lake / tier).rglob("*.parquet"))}


def content(path: Path, tier: str) -> tuple:
    raw, keys = path.read_bytes(), dict(read_footer(path))
    if tier == "gold":
        raw = raw[:-8 - int.from_bytes(raw[-8:-4], "little")]
        for key in ("inputs", "key"): keys.pop(key)
    return hashlib.sha256(raw).hexdigest(), keys


def assert_sound(lake: Path, whole: dict[str, str]) -> None:
    "What is there is as in the undisturbed lake, with the states that it names; the stages are empty."
    there = data(lake)
    assert {k: whole[k] for k in there} == there
    assert lakes.leftovers(lake) == []
    for path in there:
        named = read_footer(lake / path)["state"]
        if named == "none": continue
        [state] = (lake / ".daedalus").rglob(f"states/{named}.state")
        assert state_hash(state.read_bytes()) == named, path


@pytest.fixture(scope="module")
def bronze(tmp_path_factory):
    root = tmp_path_factory.mktemp("interrupt") / "bronze"
    for stream in STREAMS:
        for day in DAYS: put(root / "trades", tape(day, n=200, stream=stream), day, stream)
    return root


@pytest.fixture(scope="module")
def undisturbed(bronze):
    "Bytes of the lake, and the seconds from its first folder to its end."
    lake = bronze.parent / "undisturbed"
    child = start(bronze, lake)
    wait_until(lake.exists, child)
    began = time.monotonic()
    said = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, said
    assert len(data(lake)) == len(STREAMS) * len(DAYS) * 5        # silver, and four lengths of bars
    return data(lake), time.monotonic() - began


SEEN = Counter()


@pytest.mark.parametrize(("pool", "how", "trial"), [
    (pool, how, trial) for pool, n in TRIALS.items() for how in ("SIGINT", "SIGTERM") for trial in range(n)])
def test_stopped_at_a_random_moment(bronze, undisturbed, tmp_path, pool, how, trial):
    whole, seconds = undisturbed
    lake, dice = tmp_path / "lake", random.Random(f"{pool} {how} {trial}")
    child = start(bronze, lake, "--pool", pool)
    wait_until(lake.exists, child)
    time.sleep(dice.uniform(0, seconds))
    if how == "SIGINT": os.killpg(child.pid, signal.SIGINT)         # as the terminal does: to all of the group
    else: child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode in (0, 130), err
    assert nobody_left(child.pid)
    if child.returncode: assert "interrupted: " in err and "run again to go on" in err
    assert "Traceback" not in err
    assert_sound(lake, whole)
    SEEN["stopped"] += child.returncode == 130
    SEEN["half-way"] += 0 < len(data(lake)) < len(whole)
    again = start(bronze, lake)
    assert again.communicate(timeout=PATIENCE_S) and again.returncode == 0
    assert data(lake) == whole
    assert_sound(lake, whole)


def test_ctrl_c_while_workers_start(bronze, tmp_path):
    "They are deaf to it from their first instruction, and so say nothing."
    lake = tmp_path / "lake"
    child = start(bronze, lake, "--pool", "processes")
    wait_until(lambda: any("spawn_main" in " ".join(p.cmdline()) for p in psutil.Process(child.pid).children()), child)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130 and "Traceback" not in err, err
    assert nobody_left(child.pid) and lakes.leftovers(lake) == []


def test_the_trials_met_work_under_way():
    "Else they prove nothing."
    if not SEEN: pytest.skip("no trial was run")
    trials = 2 * sum(TRIALS.values())
    assert SEEN["stopped"] >= trials / 2 and SEEN["half-way"] >= trials / 4, SEEN
