"""What really goes to the kernel, seen by strace: in which order things are made durable, and a process that is killed
at each single call that changes a file."""
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import faults
import pytest
import writer
from faults import NIGHTLY
from test_kill import HERE, bad_states

from daedalus_etl.storage.journal import journals, recover

CHANGES = ("rename", "renameat", "renameat2", "mkdir", "unlink", "rmdir", "link", "linkat", "fsync", "flock")


def _why_not() -> str:
    "Why strace cannot be used here; empty if it can."
    if shutil.which("strace") is None: return "strace is not installed"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return f"strace may not trace: {tried.stderr.strip()[-100:]}" if tried.returncode else ""


if WHY_NOT := _why_not(): pytestmark = pytest.mark.skip(reason=WHY_NOT)


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    root = tmp_path_factory.mktemp("strace") / "sources"
    return writer.scenarios.sources(root)


def traced(what: str, src: Path, lake: Path, *options: str) -> subprocess.CompletedProcess:
    "The writer under strace, all of our own calls in one thread; the log lies beside the lake."
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "PYTHONDONTWRITEBYTECODE": "1",
                        "ONE_THREAD": "1"}
    log = lake.with_suffix(".log")
    command = ["strace", "-f", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={','.join(CHANGES)}",
               *options, sys.executable, str(HERE / "writer.py"), what, str(src), str(lake)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def done_by(lake: Path) -> str:
    "The thread of the first call in the log of `lake`: the main one."
    with open(lake.with_suffix(".log")) as f: return f.readline().split(" ", 1)[0]


@dataclass(frozen=True)
class Call:
    "A system call that succeeded: between which lines of the log it ran, its thread, and the paths that it names."
    begin: int
    end: int
    thread: str
    name: str
    paths: tuple[str, ...]


LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>)?(?:(\w+)\()?(.*)")


def calls(log: Path) -> list[Call]:
    "The calls of a log, in order of their beginning."
    found, open_ = [], {}
    for n, line in enumerate(log.read_text().splitlines()):
        thread, resumed, name, rest = LINE.match(line).groups()
        if resumed: begin, name, first = open_.pop(thread)
        elif name: begin, first = n, ""
        else: continue                                    # a signal or an exit
        if rest.endswith("<unfinished ...>"): open_[thread] = (begin, name, rest.removesuffix("<unfinished ...>"))
        elif re.search(r"\) += \d+", text := first + rest):
            paths = re.findall(r'"([^"]*)"|\d+<([^>]*)>', text)
            found.append(Call(begin, n, thread, name, tuple(a or b for a, b in paths)))
    return sorted(found, key=lambda c: c.begin)


class Log:
    "Questions to the calls of one run over `lake`."
    def __init__(self, lake: Path):
        every, self.lake = calls(lake.with_suffix(".log")), str(lake)
        self.calls = [c for c in every if self.lake in " ".join(c.paths)]
        assert self.calls, "nothing was traced"

    def renames(self, part: str) -> list[Call]:
        "Renames whose target contains `part`."
        return [c for c in self.calls if c.name.startswith("rename") and part in c.paths[-1]]

    def durable(self, path: str, after: int, before: int) -> bool:
        "Was `path` fsynced wholly between the two lines?"
        return any(c.name == "fsync" and c.paths[0] == path and after <= c.begin and c.end < before for c in self.calls)

    def last(self) -> int: return self.calls[-1].end + 1


def folder(path: str) -> str: return path.rpartition("/")[0]


def prepare(what: str, src: Path, home: Path) -> Path:
    lake = home / "old"
    lake.mkdir()
    writer.WORKS[what][0](src, lake)
    return lake


def trace(what: str, src: Path, home: Path) -> Log:
    "Run the work and read what it did."
    lake = prepare(what, src, home)
    done = traced(what, src, lake)
    assert done.stdout == "ready\ndone\n", done.stderr
    return Log(lake)


def test_order_of_one_partition(src, tmp_path):
    "The file's bytes, the state and the lineage record are durable before the one rename, the folder right after it."
    log = trace("small_chain", src, tmp_path)
    published = log.renames("/silver/small/exchange=")
    assert len(published) == 3
    begin = 0
    for data in published:
        staged, target = data.paths[0], data.paths[-1]
        assert log.durable(staged, begin, data.begin), "the data were not durable"
        assert log.durable(folder(target), data.end, log.last()), "the name was not durable"
        before = [c for kind in ("/states/", "/lineage/") for c in log.renames(kind) if begin <= c.begin < data.begin]
        assert before and any("/lineage/" in c.paths[-1] for c in before)
        for c in before:
            assert log.durable(c.paths[0], begin, c.begin) and log.durable(folder(c.paths[-1]), c.end, data.begin)
        if data is published[0]:        # its state is there from the run before; it is made sure of all the same
            assert log.durable(f"{log.lake}/.daedalus/silver/small/states", begin, data.begin)
        begin = data.end
    new = [c for c in log.calls if c.name == "mkdir"]
    assert new
    for c in new: assert log.durable(folder(c.paths[0]), c.end, min(
        (d.begin for d in log.calls if d.name.startswith("rename") and d.paths[-1].startswith(c.paths[0])),
        default=log.last())), f"{c.paths[0]} was used before it was durable"


@pytest.mark.parametrize("what", ["small_overwrite", "small_quarantine", "small_several"])
def test_order_of_several_partitions(what, src, tmp_path):
    "All that is staged, then the journal, then the renames and their folders, then the journal goes."
    log = trace(what, src, tmp_path)
    (journal,) = log.renames("/journal/")
    path = journal.paths[-1]
    steps = [c for c in log.calls if c.begin > journal.end and c.name.startswith("rename")]
    assert len(steps) >= 2 and not [c for c in log.renames("/exchange=") if journal.end > c.begin and
                                    "/stage/" not in c.paths[-1]]
    first = steps[0].begin
    assert log.durable(journal.paths[0], 0, journal.begin) and log.durable(folder(path), journal.end, first)
    (gone,) = [c for c in log.calls if c.name == "unlink" and c.paths == (path,)]
    assert log.durable(folder(path), gone.end, log.last())
    for c in steps:
        source, target = c.paths[0], c.paths[-1]
        assert c.end < gone.begin
        for f in {folder(target)} | ({folder(source)} if "/exchange=" in source else set()):
            assert log.durable(f, c.end, gone.begin), f"{f} was not durable before the journal went"
        if "/stage/" in source: assert log.durable(folder(source), 0, journal.begin), "the stage was not durable"


KILLED = {"small_chain": 18, "small_overwrite": 20, "small_several": 30, "small_bars": 40}    # by day, each k-th call


@pytest.mark.parametrize("what", KILLED if NIGHTLY else ["small_chain", "small_several"])
def test_killed_at_each_system_call(what, src, tmp_path):
    "strace counts by thread and by name; ours are all in the main one, and those before the work begins are left out."
    new = tmp_path / "new"
    shutil.copytree(old := prepare(what, src, tmp_path), new)
    assert traced(what, src, new).stdout == "ready\ndone\n"
    every = [line.split(" ", 1) for line in new.with_suffix(".log").read_text().splitlines()]
    main = done_by(new)
    numbers = [(m[1], line) for thread, line in every if thread == main and (m := re.match(r" *(\w+)\(", line))]
    ours = [n for n, (_, line) in enumerate(numbers) if str(new) in line]
    assert len(ours) > 30
    chosen = ours if NIGHTLY else ours[5::KILLED[what]]
    for n in chosen:
        name, when = numbers[n][0], sum(c == numbers[n][0] for c, _ in numbers[:n + 1])
        lake = tmp_path / f"lake{n}"
        shutil.copytree(old, lake)
        done = traced(what, src, lake, "-e", f"inject={name}:signal=SIGKILL:when={when}")
        assert "done" not in done.stdout and done.returncode in (137, -9), (n, done)
        log = lake.with_suffix(".log").read_text().splitlines()
        counts = Counter(line.split(" ", 1)[0] for line in log if re.match(rf"\d+ +{name}\(", line))
        assert max(counts.values()) == when      # in our thread, or in one of polars' that came to its own first
        faults.assert_whole(lake, old, new)
        recover(lake)
        writer.WORKS[what][1](src, lake)
        assert faults.differences(lake, new) == [], f"after a kill at {numbers[n]}"
        assert bad_states(lake) == [] and journals(lake) == [] and not list(lake.rglob("stage/*"))
        shutil.rmtree(lake)
    print(f"\n{what}: killed at {len(chosen)} of {len(ours)} system calls")
