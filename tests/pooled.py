"""Transforms for tests of pools; a module of its own, so that worker processes find them. As a program: a run that
waits in its second day, to be killed."""
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import polars as pl

from daedalus_etl.core import step
from daedalus_etl.core.base import StatefulTransform
from daedalus_etl.core.config import InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.executor import TransformExecutor


class Total(StatefulTransform):
    "Running total of the amounts of a stream; `trouble` is called with the partition before it is computed."
    trouble = None

    def code_version(self): return "0" * 64

    def transform(self, inputs, context):
        if self.trouble: self.trouble(context.partition.path)
        before = self.get_state_value("total", default=0.0)
        frame = inputs["in"].select("trade_id", total=pl.col("amount").cum_sum() + before).collect()
        self.update_state("total", frame["total"][-1])
        return {"silver": frame.lazy()}


class At:
    "Trouble at one partition (a part of its path), as often as the file `marker` says, where it is counted down."
    def __init__(self, where: str, marker: Path, times: int, what):
        self.where, self.marker, self.what = where, str(marker), what
        Path(marker).write_text(str(times))

    def __call__(self, path: str) -> None:
        if self.where not in path: return
        with open(self.marker, "r+") as f:
            fcntl.flock(f, fcntl.LOCK_EX)           # threads and processes count it side by side
            left = int(f.read())
            if left <= 0: return
            f.seek(0)
            f.truncate()
            f.write(str(left - 1))
        if isinstance(self.what, BaseException): raise self.what
        self.what()


def die() -> None: os.kill(os.getpid(), signal.SIGKILL)


def die_published() -> None:
    "Die as soon as this unit is published."
    commit = step.commit_lakes
    def last(changes):
        commit(changes)
        die()
    step.commit_lakes = last


def rest() -> None: time.sleep(60)


def doze() -> None: time.sleep(3)


def total(source: Path, lake: Path, trouble=None, **written) -> Total:
    made = Total(TransformConfig(
        name="total", inputs={"in": InputConfig(name="in", path=source)},
        outputs={"silver": OutputConfig(name="silver", path=Path(lake) / "silver/total", **written)}))
    made.trouble = trouble
    return made


def main(source: Path, lake: Path, pool: str, what: str = "rest") -> None:
    made = total(source, lake, At("day=09", lake.parent / "marker", 99, {"rest": rest, "doze": doze}[what]))
    TransformExecutor(workers=2, pool=pool, progress=False).execute(made)


if __name__ == "__main__":
    from daedalus_etl.runners.options import exit_code
    args = type("Args", (), {"debug": False})
    sys.exit(exit_code(lambda _: main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]), args))
