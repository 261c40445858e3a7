"""A process that writes to a lake, to be watched, killed and run against others: `python writer.py WHAT SOURCES LAKE`.

It says `ready` when all is imported and the work begins, and `done` at its end."""
import os
import sys
from concurrent.futures import Future
from pathlib import Path

import lakes
import scenarios
from scenarios import Doubled, Numbered, bronze, run, simple

from daedalus_etl.run import local

LONG = 16           # days of the long works


class InThisThread:
    "Stands in for a pool of threads: system calls are counted by thread, and all of ours shall be in one."
    def __init__(self, max_workers=1): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def shutdown(self, **_): pass

    def submit(self, work, *args):
        future: Future = Future()
        try: future.set_result(work(*args))
        except BaseException as e: future.set_exception(e)
        return future


def sources(root: Path) -> Path:
    "Inputs of the long works."
    if root.exists(): return root
    days = range(1, LONG + 1)
    bronze(root / "old", *days, n=4)
    bronze(root / "new", *days, n=4, first=200.0)
    run(lakes.trades(bronze(root / "tapes", *days[:8], n=4), root / "lake"))
    return root


def _numbered(name: str, mode: str):
    return lambda src, lake: run(simple(Numbered, src / name, lake, mode), replace=True)


def _nothing(src, lake): "No lake before."


WORKS = {                       # what: (the lake before, the work)
    "overwrite_partition": (_numbered("old", "overwrite_partition"), _numbered("new", "overwrite_partition")),
    "merge": (_numbered("old", "merge"), _numbered("new", "merge")),
    "append": (_nothing, _numbered("new", "append")),
    "several_outputs": (_nothing, lambda src, lake: run(lakes.bars(src / "lake/silver/trades", lake))),
    "atomic_run": (_numbered("old", "overwrite_partition"),
                   lambda src, lake: run(simple(Doubled, src / "new", lake, "merge", "run"), replace=True)),
} | {f"small_{s.name}": (s.before, s.act) for s in scenarios.SCENARIOS.values()}


def main(what: str, src: Path, lake: Path) -> None:
    "Do the work and say so."
    if os.environ.get("ONE_THREAD"): local.ThreadPoolExecutor = InThisThread
    print("ready", flush=True)
    WORKS[what][1](src, lake)
    print("done", flush=True)


if __name__ == "__main__": main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
