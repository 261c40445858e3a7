"""What writes to a lake, in every mode: each scenario is a lake as it was before, and an act that can be repeated."""
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lakes
import polars as pl
from lakes import put, tape

from daedalus_etl.core.base import BaseTransform, StatefulTransform
from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.enums import WriteMode
from daedalus_etl.storage.commit import Dataset, look, read_footer, stage
from daedalus_etl.storage.journal import Change, commit, open_datasets
from daedalus_etl.storage.partitions import Partition

SPARSE = FeatureConfig(rolling_windows=(5,), bar_durations=(3600, 7200), max_bad_fraction=1.0)


class Doubled(BaseTransform):
    "The input and one column more."
    def transform(self, inputs, context):
        return {"silver": inputs["bronze"].with_columns(double=2 * pl.col("price"))}


class Numbered(StatefulTransform):
    "Numbers the rows of a stream over all days: a day's rows depend on those of the days before."
    def transform(self, inputs, context):
        n = self.get_state_value("n", default=0)
        number = pl.int_range(n, n + pl.len()).alias("number")
        frame = inputs["bronze"].select("trade_id", "capture_ts", number).collect()
        self.update_state("n", n + frame.height)
        return {"silver": frame.lazy()}


def bronze(root: Path, *days: int, n: int = 3, first: float = 100.0) -> Path:
    "A few trades on each of the days; with another `first` second they are other trades."
    for day in days: put(root, tape(day, seconds=[first + 7000.0 * k for k in range(n)]), day)
    return root


def simple(cls, source: Path, lake: Path, mode: str, atomic: str = "partition"):
    "One of the transforms above."
    output = OutputConfig(name="silver", path=Path(lake) / "silver/small", mode=mode)
    return cls(TransformConfig(name=cls.__name__.lower(), atomic=atomic, outputs={"silver": output},
                               inputs={"bronze": InputConfig(name="bronze", path=source)}))


def run(transform, features=SPARSE, **kwargs): return lakes.run(transform, features=features, workers=1, **kwargs)


@dataclass(frozen=True)
class Scenario:
    "`before(sources, lake)` makes a lake; `act(sources, lake)` changes it, and changes nothing if that was done."
    name: str
    before: Callable[[Path, Path], object]
    act: Callable[[Path, Path], object]


def _sources(root: Path) -> None:
    bronze(root / "old", 8, 9, 10)
    bronze(root / "new", 8, 9, first=200.0)
    bronze(root / "first", 8)
    bad = tape(9, seconds=[100.0, 200.0, 300.0]).with_columns(price=pl.Series([1.0, -1.0, 2.0]))
    put(root / "bad", bad, 9)
    put(root / "good", tape(9, seconds=[100.0, 200.0, 300.0]), 9)
    run(lakes.trades(bronze(root / "tapes", 8, 9), root / "lake"))


def sources(root: Path) -> Path:
    "Inputs of all scenarios, made once: their files must be the same ones for results to be the same bytes."
    if not root.exists(): _sources(root)
    return root


def _mode(name: str, cls, mode: str, before: str | None, act: str, atomic: str = "partition", first: str | None = None):
    def prepare(src, lake):
        if before: run(simple(cls, src / before, lake, first or mode))
    return Scenario(name, prepare, lambda src, lake: run(simple(cls, src / act, lake, mode, atomic), replace=True))


# ---- commits by hand

OUTPUT = OutputConfig(name="silver", path="lake/silver/direct")
DAYS = {d: Partition.parse(lakes.leaf(d)) for d in range(1, 29)}


def direct(lake: Path, name: str = "silver/direct") -> Dataset: return Dataset(str(lake), name)


def rows(*values: int) -> pl.LazyFrame: return pl.LazyFrame({"x": list(values)}, schema={"x": pl.Int64})


def staged(dataset: Dataset, frame: pl.LazyFrame, name: str = "part-0.parquet", **footer: str):
    return replace(stage(dataset, frame, OUTPUT, lambda: footer), name=name)


def values(folder: Path) -> list[int]:
    "The rows of a partition, sorted."
    files = sorted(folder.glob("*.parquet"))
    return sorted(pl.concat([pl.read_parquet(f, hive_partitioning=False) for f in files])["x"]) if files else []


def _several_before(src, lake):
    data = direct(lake)
    for day, names in ((8, "abc"), (9, "ab"), (10, "a"), (11, "abc")):
        for k, n in enumerate(names):
            commit([Change(data, DAYS[day], put=(staged(data, rows(day, k), f"part-{n}.parquet"),), exact=False)])


@contextmanager
def _unless_fails(one):
    "A staged file, which is discarded if anything fails before it is published."
    try: yield one
    except BaseException:
        one.discard()
        raise


def _several(src, lake):
    "Day 8: three files become one. 9: one of two goes, one comes. 10: replaced. 11: goes. 12: comes, as two files."
    data = direct(lake)
    open_datasets([data])
    seen = {d: look(data.folder(DAYS[d])) for d in DAYS}
    def names(d): return {n[5] for n in seen[d].names}
    def change(day, put, drop=(), **footer):
        files = tuple(undo.enter_context(_unless_fails(staged(data, rows(day, 70 + k), f"part-{n}.parquet", **footer)))
                      for k, n in enumerate(put))
        changes.append(Change(data, DAYS[day], seen[day], files, frozenset(f"part-{n}.parquet" for n in drop)))
    changes = []
    with ExitStack() as undo:
        if names(8) == set("abc"): change(8, "z", "abc")
        if names(9) == set("ab"): change(9, "z", "a")
        if read_footer(data.folder(DAYS[10]) / "part-a.parquet") == {}: change(10, "a", key="new")
        if names(11): change(11, "", "abc")
        if not names(12): change(12, "yz")
        commit(changes)


def _swap(src, lake):
    data = direct(lake)
    open_datasets([data])
    seen = look(data.folder(DAYS[8]))
    if len(seen.files) == 3: commit([Change(
        data, DAYS[8], seen, (staged(data, rows(8, 0, 1, 2), "part-z.parquet"),), seen.names)])


def _away(src, lake):
    data = direct(lake)
    open_datasets([data])
    if seen := look(data.folder(DAYS[8])): commit([Change(data, DAYS[8], seen, drop=seen.names)])


def _bars(src, lake): run(lakes.bars(src / "lake/silver/trades", lake))


def _state_path(src, lake):
    run(simple(Numbered, src / "old", lake, "overwrite_partition"), state_path=lake / ".daedalus/handed-on")


SCENARIOS = {s.name: s for s in [
    Scenario("several", _several_before, _several),
    Scenario("swap", _several_before, _swap),
    Scenario("away", _several_before, _away),
    _mode("overwrite_partition", Doubled, "overwrite_partition", "old", "new"),
    _mode("overwrite", Doubled, "overwrite", "old", "new"),
    _mode("merge", Doubled, "merge", "old", "new"),
    _mode("append", Doubled, "append", "first", "old"),
    _mode("merge_over_appended", Doubled, "merge", "old", "new", first="append"),
    _mode("atomic_run", Doubled, "overwrite_partition", "old", "new", "run"),
    _mode("atomic_chain", Numbered, "overwrite_partition", None, "old", "run"),
    _mode("chain", Numbered, "overwrite_partition", "first", "old"),
    Scenario("bars", lambda src, lake: None, _bars),
    Scenario("quarantine", lambda src, lake: run(lakes.trades(src / "good", lake)),
             lambda src, lake: run(lakes.trades(src / "bad", lake))),
    Scenario("no_more_quarantine", lambda src, lake: run(lakes.trades(src / "bad", lake)),
             lambda src, lake: run(lakes.trades(src / "good", lake))),
    Scenario("state_path", lambda src, lake: None, _state_path),
]}
assert set(WriteMode) <= {WriteMode(m) for m in ("overwrite_partition", "overwrite", "merge", "append")}
