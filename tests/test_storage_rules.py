"""The storage against a dict: whatever is done to it, crashes included, its partitions hold the rows of the dict."""
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import faults
import hypothesis.strategies as st
import polars as pl
from faults import NIGHTLY, Died, Door, standing
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from scenarios import DAYS, OUTPUT, direct

from daedalus_etl.core.config import OutputConfig
from daedalus_etl.core.enums import WriteMode
from daedalus_etl.core.errors import StorageError
from daedalus_etl.core.outputs import Target
from daedalus_etl.storage.commit import look, stage
from daedalus_etl.storage.journal import (
    Change,
    commit,
    discard,
    journals,
    open_datasets,
    recover,
    survey_dataset,
    sweep,
)

Rows = dict[int, int]                    # of a partition: key to value
TYPES = {"key": pl.Int64, "value": pl.Int64}
day = st.integers(1, 3)
calls = st.integers(0, 70)               # at which an operation dies, if it comes so far
rows = st.dictionaries(st.integers(0, 5), st.integers(0, 99), max_size=4)


class Lake(RuleBasedStateMachine):
    """Rules write through the modes of an output, as the executor does. A rule may die at some call: then the lake
    must hold what was before or what would have been, by partition; which of both, it is asked.

    Further operations (compaction, collection of garbage) are rules that leave `self.model` as it is and call
    `self.attempt`: they change files, never rows."""

    tried: Counter = Counter()           # over all examples

    @initialize()
    def begin(self):
        self.home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.data, self.model, self.batch = direct(self.home / "lake"), {}, 0

    # ---- operations: each gives the model as it will be, and the act

    def target(self, mode: str) -> Target:
        output = OutputConfig(name="silver", path=f"{self.data.lake}/{self.data.name}", key_cols=("key",))
        return Target(self.data, output, WriteMode(mode))

    def write(self, mode: str, new: dict[int, Rows], whole=None) -> None:
        "Put rows into partitions in a mode, all of them in one commit."
        self.batch += 1
        target, changes = self.target(mode), []
        try:
            for d, r in new.items():
                frame = pl.LazyFrame({"key": list(r), "value": list(r.values())}, schema=TYPES)
                present = target.present(DAYS[d])
                staged = target.stage(DAYS[d], frame, present, lambda: {"key": f"batch {self.batch}"})
                changes.append(target.change(DAYS[d], staged, present))
            commit([*changes, *self.removals(new, whole)], whole=whole)
        finally: discard(changes)

    def removals(self, new, whole) -> list[Change]:
        made = {DAYS[d].path for d in new}
        return [Change(self.data, p, seen, drop=seen.names) for there in (whole or {}).values()
                for path, seen in there.items() if path not in made for p in DAYS.values() if p.path == path]

    def attempt(self, at: int, act, after: dict[int, list[tuple[int, int]]]) -> None:
        "Do it, or die at call `at` (0: never); then the model is what the lake says, if that is one of the two."
        with standing(Door(at)) as door:
            try: act()
            except Died: assert door.dead
        if not door.reached: self.model = after
        else:
            self.tried["died"] += 1
            self.tried["journal left"] += bool(journals(self.data.lake))
            now = self.found()
            for d in {*now, *self.model, *after}: assert now.get(d) in (self.model.get(d), after.get(d)), d
            if journals(self.data.lake):                     # it is written down: it will be done
                recover(self.data.lake)
                assert self.found() == after
            self.model = self.found()
            open_datasets([self.data])

    def found(self) -> dict[int, list[tuple[int, int]]]:
        "What is there, as polars reads it."
        there = {d: self.data.folder(p) for d, p in DAYS.items() if look(self.data.folder(p))}
        return {d: sorted(pl.scan_parquet(f, hive_partitioning=False).collect().rows()) for d, f in there.items()}

    # ---- rules

    @rule(d=day, r=rows, at=calls)
    def overwrite_partition(self, d, r, at):
        self.attempt(at, lambda: self.write("overwrite_partition", {d: r}), self.model | {d: sorted(r.items())})

    @rule(new=st.dictionaries(day, rows, min_size=1), at=calls)
    def overwrite_partitions_at_once(self, new, at):
        after = self.model | {d: sorted(r.items()) for d, r in new.items()}
        self.attempt(at, lambda: self.write("overwrite_partition", new), after)

    @rule(new=st.dictionaries(day, rows, min_size=1), at=calls)
    def overwrite(self, new, at):
        whole = {self.data: survey_dataset(self.data)}
        self.attempt(at, lambda: self.write("overwrite", new, whole), {d: sorted(r.items()) for d, r in new.items()})

    @rule(d=day, r=rows, at=calls)
    def merge(self, d, r, at):
        mine = self.model.get(d, [])
        kept = [x for x in mine if x[0] not in r]            # appended rows may hold a key twice; it replaces all
        self.attempt(at, lambda: self.write("merge", {d: r}), self.model | {d: sorted(kept + list(r.items()))})

    @rule(d=day, r=rows, at=calls)
    def append(self, d, r, at):
        after = self.model | {d: sorted([*self.model.get(d, []), *r.items()])}
        self.attempt(at, lambda: self.write("append", {d: r}), after)

    @rule(d=day, at=calls)
    def take_away(self, d, at):
        seen = look(self.data.folder(DAYS[d]))
        after = {k: v for k, v in self.model.items() if k != d}
        self.attempt(at, lambda: commit([Change(self.data, DAYS[d], seen, drop=seen.names)]), after)

    @rule(d=day, r=rows)
    def staged_and_forgotten(self, d, r):
        "A process that dies with a file in the stage."
        with standing(Door(10**9)) as door:
            stage(self.data, pl.LazyFrame({"key": [1]}), OUTPUT)
            door.dead = True
        assert list((self.data.meta / "stage").glob("*.parquet"))

    @rule()
    def recover_and_sweep(self):
        recover(self.data.lake)
        sweep(self.data)
        assert not list((self.data.meta / "stage").glob("*")) or not self.data.meta.exists()

    @rule(d=day, r=rows, call=st.integers(1, 40), error=st.sampled_from(faults.REFUSALS))
    def disk_refuses(self, d, r, call, error):
        "An error before the rename leaves the old rows, one after it the new ones."
        after = self.model | {d: sorted(r.items())}
        with standing(Door(call, error)) as door:
            try: self.write("overwrite_partition", {d: r})
            except StorageError:
                assert door.reached
                self.tried["refused"] += 1
            else: assert not door.reached
        now = self.found()
        assert now in (self.model, after) and faults.open_locks() == []
        self.model = now
        open_datasets([self.data])

    @invariant()
    def the_lake_is_the_model(self):
        if hasattr(self, "model"): assert self.found() == self.model

    def teardown(self):
        if not hasattr(self, "home"): return
        open_datasets([self.data])
        assert self.found() == self.model and journals(self.data.lake) == []
        assert not self.data.meta.exists() or not list((self.data.meta / "stage").glob("*"))
        for root in faults.roots(Path(self.data.lake)):
            assert set(faults.foreign_rows(root).values()) == {sum(map(len, self.model.values()))}
        shutil.rmtree(self.home)


def test_storage_is_a_dict_of_partitions():
    run_state_machine_as_test(Lake, settings=settings(
        max_examples=400 if NIGHTLY else 20, stateful_step_count=25 if NIGHTLY else 15, deadline=None,
        derandomize=not NIGHTLY, suppress_health_check=list(HealthCheck)))
    print(f"\n{dict(Lake.tried)}")
    assert Lake.tried["died"] > 10 and Lake.tried["refused"] > 3 and Lake.tried["journal left"] > 0
