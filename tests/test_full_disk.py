"""Disks that are full, limits on files, folders that may not be written: the error names the file and says what to do,
nothing is published, and nothing is left in the stage."""
import os
import subprocess
import sys
from pathlib import Path

import lakes
import pytest
import scenarios
from scenarios import Doubled, bronze, run, simple
from test_kill import HERE

from daedalus_etl.core import outputs
from daedalus_etl.core.errors import StorageError

CHILD = """
import resource, signal, sys
import lakes, scenarios as s
from pathlib import Path
from daedalus_etl.core.errors import StorageError
src, lake, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
made = s.simple(s.Doubled, src, lake, sys.argv[4])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try: s.run(made)
except StorageError as e: print("StorageError", e.exit_code, e)
else: print("done")
"""


def child(src: Path, lake: Path, limit: int = 0, mode: str = "overwrite_partition", **more) -> str:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    done = subprocess.run([sys.executable, "-c", CHILD, str(src), str(lake), str(limit), mode], env=env, text=True,
                          capture_output=True, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def src(tmp_path):
    "A small day and a large one."
    root = bronze(tmp_path / "src", 8)
    lakes.put(root, lakes.tape(9, n=20_000), 9)
    return root


def published(lake: Path) -> list[str]: return [p for p in lakes.contents(lake) if not p.startswith(".daedalus")]


@pytest.mark.parametrize("mode", ["overwrite_partition", "append", "merge"])
def test_a_limit_on_the_size_of_files(src, tmp_path, mode):
    "The file of the large day cannot be written; the small day before it is published, and the next run does the rest."
    lake = tmp_path / "lake"
    said = child(src, lake, 100_000, mode)
    assert said.startswith("StorageError 1 ") and "stage/" in said and "File too large" in said and "limit" in said
    assert [p for p in published(lake) if "day=08" not in p] == [] != published(lake)
    assert lakes.leftovers(lake) == [] and not list(lake.rglob("stage/*"))
    run(simple(Doubled, src, lake, mode))
    assert len(published(lake)) == 2


def test_no_room_at_all_is_seen_before_anything_is_computed(src, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "free_bytes", lambda path: 5_000_000)
    with pytest.raises(StorageError, match="5 MB are free"): run(simple(Doubled, src, tmp_path / "lake", "append"))
    assert not published(tmp_path / "lake") and not list((tmp_path / "lake").rglob("stage/*"))


@pytest.fixture
def small_disk(tmp_path):
    "A disk of a few hundred kB."
    at = tmp_path / "disk"
    at.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(at)], capture_output=True, text=True)
    if done.returncode: pytest.skip(f"no small disk may be mounted here: {done.stderr.strip()}")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.parametrize("mode", ["overwrite_partition", "append"])
def test_a_full_disk(src, small_disk, monkeypatch, mode):
    "While the rows are written, the disk is full: what was there stays, and the room of what was tried is given back."
    monkeypatch.setattr(outputs, "MIN_FREE", 0)
    lake = small_disk / "lake"
    with pytest.raises(StorageError, match=r"stage/.*No space left on device.*MB are free") as caught:
        run(simple(Doubled, src, lake, mode))
    assert caught.value.exit_code == 1 and ".parquet" in caught.value.path
    assert len(published(lake)) == 1 and lakes.leftovers(lake) == [] and not list(lake.rglob("stage/*"))
    lakes.put(src, lakes.tape(9, n=500), 9)                       # a smaller day fits
    run(simple(Doubled, src, lake, mode))
    assert len(published(lake)) == 2


def test_a_disk_without_room_for_a_lock(src, small_disk, monkeypatch):
    "Full to the last byte before the run begins."
    monkeypatch.setattr(outputs, "MIN_FREE", 0)
    lake = small_disk / "lake"
    run(simple(Doubled, bronze(small_disk.parent / "small", 8), lake, "overwrite_partition"))
    before = lakes.contents(lake)
    with pytest.raises(OSError, match="No space"), open(small_disk / "filler", "wb", buffering=0) as f:
        while True: f.write(b"x" * 4096)
    with pytest.raises(StorageError, match=r"No space left|are free"):
        run(simple(Doubled, src, lake, "overwrite_partition"))
    assert lakes.contents(lake) == before


@pytest.fixture
def somebody():
    "Run as an ordinary user: root is refused nothing."
    root = os.geteuid() == 0
    try: os.seteuid(65534 if root else os.geteuid())
    except OSError as e: pytest.skip(f"root cannot become another user here: {e}")
    yield
    if root: os.seteuid(0)


@pytest.mark.parametrize("part", ["", "silver/small", ".daedalus/silver/small/stage", "silver/small/" + lakes.leaf(8)])
def test_folders_that_may_not_be_written(tmp_path, part, request):
    "Readable for all, writable for none."
    src, lake = bronze(tmp_path / "src", 8), tmp_path / "lake"
    run(simple(Doubled, bronze(tmp_path / "first", 8, first=50.0), lake, "overwrite_partition"))
    for p in (tmp_path, *tmp_path.parents[:3]): p.chmod(0o755)
    before = lakes.contents(lake)
    for p in sorted(lake.rglob("*")): p.chmod(0o777 if p.is_dir() else 0o666)
    folder = lake / part
    folder.chmod(0o555)
    locked = lakes.contents(lake)
    request.getfixturevalue("somebody")
    try: run(simple(Doubled, src, lake, "overwrite_partition"))
    except StorageError as e:
        assert e.path and "right" in str(e)
        assert locked == before == {p: s for p, s in lakes.contents(lake).items() if p in before}
    else: assert part == "" and lakes.contents(lake) != before        # nothing is made in the lake's own folder
    assert not [p for p in lake.rglob("stage/*") if p.suffix != ".lock"]


@pytest.fixture
def read_only(small_disk, monkeypatch):
    "A disk on which there is a lake, mounted again without the right to write."
    monkeypatch.setattr(outputs, "MIN_FREE", 0)
    run(simple(Doubled, bronze(small_disk.parent / "first", 8, first=50.0), small_disk / "lake", "overwrite_partition"))
    done = subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True, text=True)
    if done.returncode: pytest.skip(f"cannot be mounted read-only here: {done.stderr.strip()}")
    return small_disk


def test_a_read_only_disk(read_only, tmp_path):
    before = lakes.contents(read_only / "lake")
    with pytest.raises(StorageError, match=r"read-only|Read-only") as caught:
        run(simple(Doubled, bronze(tmp_path / "src", 8), read_only / "lake", "overwrite_partition"))
    assert caught.value.path and lakes.contents(read_only / "lake") == before
    made = simple(Doubled, tmp_path / "first", read_only / "lake", "overwrite_partition")
    assert scenarios.run(made, dry_run=True).success
