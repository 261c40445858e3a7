"""Every call to the disk fails once: the process dies there, or the disk refuses. What is published stays whole,
and after a recovery and the same run again the lake is, byte for byte, as if nothing had happened."""
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import faults
import lakes
import pytest
import scenarios
from faults import KILL, NIGHTLY, REFUSALS, Died, Door, standing
from scenarios import SCENARIOS

from daedalus_etl.core.errors import StorageError
from daedalus_etl.storage.journal import journals, recover

POINTS: Counter = Counter()          # fault points that were tried, by scenario
SEEN: set[str] = set()               # distinct calls that were tried


@pytest.fixture(scope="module")
def home():
    "In memory where possible: whether bytes reach a disk is not the question, and thousands of fsyncs cost minutes."
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as d: yield Path(d)


@pytest.fixture(scope="module")
def src(home): return scenarios.sources(home / "sources")


@pytest.fixture(scope="module", autouse=True)
def told():
    "How many calls failed, at the end of the module."
    yield
    print(f"\nfault points: {dict(POINTS)}, {POINTS.total()} in all")


class Stage:
    "A scenario's lakes: before, afterwards, and one that is tried."
    def __init__(self, scenario, src, home: Path):
        self.scenario, self.src, self.home = scenario, src, home
        self.old, self.new = home / "old", home / "new"
        self.old.mkdir(parents=True)
        scenario.before(src, self.old)
        shutil.copytree(self.old, self.new)
        with standing(Door()) as door: scenario.act(src, self.new)
        self.sites = door.sites
        assert lakes.leftovers(self.new) == []
        assert faults.differences(self.old, self.new), "the scenario must change something"

    def points(self) -> list[tuple[int, str | int]]:
        """Which calls fail, and how. At night each call in each way. By day each distinct call that no scenario before
        has tried, and a dozen over the whole length of the scenario: where it dies matters as much as in what."""
        numbers = range(1, len(self.sites) + 1)
        if NIGHTLY: return [(n, f) for n in numbers for f in (KILL, *REFUSALS)]
        fresh = {s: n for n, s in reversed(list(enumerate(self.sites, 1))) if s not in SEEN}
        SEEN.update(fresh)
        spread = {round(k * len(self.sites) / 12) or 1 for k in range(13)}
        refused = {*fresh.values(), *sorted(spread)[2::4]}
        return [(n, KILL) for n in sorted({*fresh.values(), *spread})] + [
            (n, REFUSALS[k % 3]) for k, n in enumerate(sorted(refused))]

    def attempt(self, at: int, fault) -> None:
        "Fail at the call, look, repair, look again."
        lake = self.home / "now"
        shutil.copytree(self.old, lake)
        try: self._attempt(lake, at, fault)
        except BaseException as e:
            e.add_note(f"{self.scenario.name}, call {at} ({self.sites[at - 1]}), {fault}")
            raise
        finally: shutil.rmtree(lake)

    def _attempt(self, lake: Path, at: int, fault) -> None:
        with standing(Door(at, fault)) as door:
            if fault == KILL:
                with pytest.raises(Died): self.scenario.act(self.src, lake)
            else:
                with pytest.raises(StorageError) as caught: self.scenario.act(self.src, lake)
                assert caught.value.path, f"names no file: {caught.value}"
                known = bool(getattr(caught.value, "__notes__", [])) or not journals(lake)
                assert known, "an unfinished commit that nobody was told of"
        assert door.reached and faults.open_locks() == []
        faults.assert_whole(lake, self.old, self.new)
        if at % 2: recover(lake)                     # the command does it, or the next run by itself
        self.scenario.act(self.src, lake)
        assert faults.differences(lake, self.new) == []
        assert journals(lake) == [] and [p for p in lakes.leftovers(lake) if not p.endswith(".lock")] == []
        assert not list(lake.rglob("stage/*")), "something is left in a stage"


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_call_may_be_the_last(name, src, home):
    tried = Stage(SCENARIOS[name], src, home / name)
    for at, fault in tried.points():
        tried.attempt(at, fault)
        POINTS[name] += 1
