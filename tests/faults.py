"""Machines that fail: a stand-in for the one door to the disk, which kills or refuses at the n-th call, and what a lake
must look like afterwards, whoever reads it."""
import errno
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

import duckdb
import lakes
import polars as pl
import pyarrow.dataset

from daedalus_etl.storage import commit as committing
from daedalus_etl.storage import disk

NIGHTLY = os.environ.get("DAEDALUS_NIGHTLY") == "1"
REFUSALS = (errno.ENOSPC, errno.EIO, errno.EACCES)
KILL = "kill"


class Died(BaseException):
    "The process was killed: it does nothing any more, not even clean up."


@dataclass
class Door:
    """Stands in for `disk.syscall`, and before and after polars' own writing.

    At call number `at` (from 1) it kills (`fault=KILL`), or refuses once with the error number `fault`."""
    at: int = 0                                            # 0: only count
    fault: str | int = KILL
    sites: list[str] = field(default_factory=list)         # of every call: what was called, and from where
    dead: bool = False
    guard: RLock = field(default_factory=RLock)

    def __call__(self, what: Callable, *args, **kwargs):
        with self.guard:
            if self.dead: raise Died
            self.sites.append(_site(what))
            if len(self.sites) == self.at: self._fail(args)
        return what(*args, **kwargs)

    def _fail(self, args):
        if self.fault == KILL:
            self.dead = True
            raise Died
        name = args[0] if args and isinstance(args[0], (str, Path)) else None
        raise OSError(self.fault, os.strerror(self.fault), *([str(name)] if name else []))

    @property
    def reached(self) -> bool: return 0 < self.at <= len(self.sites)


def _site(what: Callable) -> str:
    "The called function and the functions of the package that led to it, innermost first."
    names, frame = [getattr(what, "__name__", str(what))], sys._getframe(2)
    while frame is not None:
        if "daedalus_etl" in frame.f_code.co_filename: names.append(frame.f_code.co_name)
        frame = frame.f_back
    return " < ".join(names[:6])


@contextmanager
def standing(door: Door):
    "All that the package changes on disk goes through `door`; afterwards the kernel closes what a dead process held."
    syscall, sink, write = disk.syscall, pl.LazyFrame.sink_parquet, pl.DataFrame.write_parquet
    disk.syscall = door
    pl.LazyFrame.sink_parquet = _around(door, sink, "sink_parquet")
    pl.DataFrame.write_parquet = _around(door, write, "write_parquet")
    try: yield door
    finally:
        disk.syscall, pl.LazyFrame.sink_parquet, pl.DataFrame.write_parquet = syscall, sink, write
        if door.dead: forget_the_dead()


def _around(door: Door, writes: Callable, name: str) -> Callable:
    def before(): "Nothing is written yet."
    def after(): "All is written, but nobody knows."
    before.__name__, after.__name__ = f"before {name}", f"after {name}"
    def call(*args, **kwargs):
        door(before)
        done = writes(*args, **kwargs)
        door(after)
        return done
    return call


def forget_the_dead() -> None:
    "Close what is still open of a dead process's locks; those of partitions were closed when its stack unwound."
    for owner in committing._Owner.known.values():
        if owner.lock.fd >= 0: os.close(owner.lock.fd)
    committing._Owner.known.clear()


def open_locks() -> list[str]:
    "Lock files that this process has open."
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try: name = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError: continue
        if "/.daedalus/" in name and name.removesuffix(" (deleted)").endswith("lock"): found.append(name)
    return sorted(found)


# ---- what is there

def tree(lake: Path) -> dict[str, str]:
    "Every file of the lake with the sum of its bytes, but for the files of locks, which may stay."
    return {p: s for p, s in lakes.contents(lake).items() if p.rsplit("/", 1)[-1] != "lock" and not p.endswith(".lock")}


def partitions(lake: Path) -> dict[str, dict[str, str]]:
    "What readers see: by the folder of a partition, its files with their sums."
    found: dict[str, dict[str, str]] = {}
    for path, total in tree(lake).items():
        if path.startswith(".daedalus"): continue        # the doctor's folders lie beside it
        folder, _, name = path.rpartition("/")
        found.setdefault(folder, {})[name] = total
    return found


def roots(lake: Path) -> list[Path]:
    "The datasets of a lake that have a file."
    return sorted({Path(lake) / p.partition("/exchange=")[0] for p in partitions(lake)})


def foreign_rows(root: Path) -> dict[str, int]:
    "Rows of a dataset as polars, pyarrow and DuckDB count them, having read every value."
    glob = f"{root}/**/*.parquet"
    return {"polars": pl.scan_parquet(root).collect().height,
            "pyarrow": pyarrow.dataset.dataset(root, format="parquet").to_table().num_rows,
            "duckdb": len(duckdb.sql(f"select * from read_parquet('{glob}', hive_partitioning=true)").fetchall())}


def assert_whole(lake: Path, *versions: Path) -> None:
    "Each partition is that of one of the `versions` (lakes), never a mixture, and every reader can read it."
    now, allowed = partitions(lake), [partitions(v) for v in versions]
    for folder in set(now).union(*allowed):
        assert now.get(folder, {}) in [v.get(folder, {}) for v in allowed], f"a mixture: {folder}: {now.get(folder)}"
    for root in roots(lake):
        rows = sum(pl.read_parquet(p, hive_partitioning=False).height for p in root.rglob("*.parquet"))
        assert foreign_rows(root) == {"polars": rows, "pyarrow": rows, "duckdb": rows}


def differences(lake: Path, expected: Path) -> list[str]:
    "Files that only one of the two has, or whose bytes differ."
    a, b = tree(lake), tree(expected)
    return sorted(p for p in {*a, *b} if a.get(p) != b.get(p))
