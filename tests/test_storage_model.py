"Any sequence of writes, deaths, recoveries, collections and compactions, against a dictionary of lists."
import shutil
import tempfile
from pathlib import Path

import faults
import polars as pl
from faults import NIGHTLY
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daedalus_etl.core.config import OutputConfig
from daedalus_etl.core.enums import WriteMode
from daedalus_etl.storage.commit import Dataset
from daedalus_etl.storage.journal import journals, open_datasets, recover
from daedalus_etl.storage.verify import gc, verify
from daedalus_etl.storage.write import write
from daedalus_etl.utils.compaction import ParquetCompactor

KEYS = ("exchange", "day")
ROWS = st.lists(st.tuples(st.sampled_from([8, 9, 10]), st.integers(0, 5), st.integers(0, 99)), min_size=1, max_size=8,
                unique_by=lambda r: r[:2])



def frame(rows) -> pl.DataFrame:
    "Rows (day, trade, price) as a frame."
    return pl.DataFrame({"exchange": "x", "day": [r[0] for r in rows], "trade_id": [str(r[1]) for r in rows],
                         "price": [r[2] for r in rows]}, schema_overrides={"price": pl.Int64})


class Store(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.root, self.model, self.batches = self.folder / "lake/silver/t", {}, {}

    def teardown(self):
        if hasattr(self, "folder"): shutil.rmtree(self.folder)

    def output(self, mode: WriteMode) -> OutputConfig:
        return OutputConfig(name="t", path=self.root, partition_cols=KEYS, mode=mode)

    def after(self, mode: WriteMode, rows) -> tuple[dict, dict]:
        "The model (day -> (trade, price), sorted) and the batches of files after a write."
        days: dict[int, list] = {}
        for day, *row in rows: days.setdefault(day, []).append(tuple(row))
        model, batches = dict(self.model), {d: set(b) for d, b in self.batches.items()}
        if mode is WriteMode.OVERWRITE: model, batches = {}, {}
        for day, new in days.items():
            if mode is WriteMode.APPEND:
                if tuple(new) in batches.get(day, set()): continue
                batches.setdefault(day, set()).add(tuple(new))
                model[day] = sorted(model.get(day, []) + new)
                continue
            trades = {t for t, _ in new}
            old = [r for r in model.get(day, []) if r[0] not in trades] if mode is WriteMode.MERGE else []
            model[day], batches[day] = sorted(old + new), set()
        return model, batches

    @rule(mode=st.sampled_from(list(WriteMode)), rows=ROWS)
    def writes(self, mode, rows):
        write(frame(rows), self.output(mode))
        self.model, self.batches = self.after(mode, rows)

    @rule(mode=st.sampled_from(list(WriteMode)), rows=ROWS, at=st.integers(1, 60))
    def dies_while_it_writes(self, mode, rows, at):
        "What is there after the recovery is what was there, or what was to come."
        door = faults.Door(at)
        try:
            with faults.standing(door): write(frame(rows), self.output(mode))
        except faults.Died: faults.forget_the_dead()
        recover(self.root.parents[1])
        new = self.after(mode, rows)
        found = self.found()
        assert found in (self.model, new[0])
        if found == new[0]: self.model, self.batches = new

    @rule()
    def compacts(self):
        if not self.model: return
        ParquetCompactor(self.output(WriteMode.APPEND)).compact()
        self.batches = {}

    @rule()
    def collects(self):
        if self.root.exists(): gc(self.root.parents[1], min_age_s=0)

    @rule()
    def opens(self):
        if self.root.exists(): open_datasets([Dataset.of(self.output(WriteMode.APPEND))])

    def found(self) -> dict:
        files: dict[int, list] = {}
        for path in sorted(self.root.rglob("*.parquet")):
            rows = pl.read_parquet(path, hive_partitioning=False).select(pl.col("trade_id").cast(pl.Int64), "price")
            files.setdefault(int(path.parent.name.removeprefix("day=")), []).extend(rows.rows())
        return {day: sorted(rows) for day, rows in files.items()}

    @invariant()
    def holds_the_rows_of_the_model(self):
        if not hasattr(self, "root"): return
        assert self.found() == self.model and journals(self.root.parents[1]) == []
        if self.root.exists(): assert set(verify(self.root.parents[1])["fault"]) <= {""}


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=200 if NIGHTLY else 12, stateful_step_count=30 if NIGHTLY else 12,
                              deadline=None, suppress_health_check=list(HealthCheck))
