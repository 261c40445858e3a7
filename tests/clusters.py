"""Real Dask clusters for tests: a scheduler and workers as processes of their own, and steps that they can import."""
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from distributed import Client

from daedalus_etl.core.base import BaseTransform
from daedalus_etl.core.config import InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.report import UnitReport
from daedalus_etl.run.cluster import at_work

HERE = Path(__file__).resolve().parent
SECRET = "canary-" + "k3y-that-no-graph-may-hold"


def environment(**more) -> dict[str, str]:
    "Of a worker: one polars thread, this checkout, and the tests' own modules."
    path = os.pathsep.join(map(str, (HERE.parent, HERE)))
    return {**os.environ, "POLARS_MAX_THREADS": "1", "PYTHONPATH": path, **more}


@dataclass
class Machines:
    "A scheduler and its workers."
    folder: Path
    inside: tuple[str, ...] = ()                # a command in front of each worker's, such as `unshare -m`
    host: str = "127.0.0.1"
    started: list[subprocess.Popen] = field(default_factory=list)

    @property
    def address(self) -> str: return json.loads((self.folder / "scheduler.json").read_text())["address"]

    def start(self, *command: str, **env) -> subprocess.Popen:
        log = open(self.folder / f"{len(self.started)}.log", "w")
        process = subprocess.Popen([*command], env=environment(**env), stdout=log, stderr=log, cwd=self.folder)
        self.started.append(process)
        return process

    def scheduler(self) -> None:
        self.start(sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", self.host, "--port", "0",
                   "--no-dashboard", "--no-jupyter", "--scheduler-file", str(self.folder / "scheduler.json"),
                   DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1")      # so that Dask gives up soon, and we go on
        wait_until(self.listens)

    def listens(self) -> bool:
        "Whether the scheduler has written all of its file."
        try: return bool(self.address)
        except (FileNotFoundError, ValueError): return False

    def workers(self, n: int, *options: str, inside: tuple[str, ...] = (), host: str | None = None,
                **env) -> subprocess.Popen:
        return self.start(*inside, sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--nworkers",
                          str(n), "--nthreads", "1", "--host", host or self.host, "--no-dashboard",
                          "--memory-limit", "0", "--local-directory", str(self.folder), *options, **env)

    def end(self) -> None:
        for p in reversed(self.started): p.terminate()
        for p in self.started:
            try: p.wait(15)
            except subprocess.TimeoutExpired: p.kill()


@contextmanager
def machines(folder: Path, workers: int = 0, **kwargs):
    "A scheduler and so many workers, until the end of the block."
    folder.mkdir(parents=True, exist_ok=True)
    found = Machines(folder, **kwargs)
    try:
        found.scheduler()
        if workers: found.workers(workers)
        with Client(found.address, set_as_default=False) as client:
            if workers: client.wait_for_workers(workers, timeout=60)
            yield found, client
    finally: found.end()


@contextmanager
def rooms(n: int):
    "Networks of their own for `n` workers, joined by a bridge: its address, and command and address of each."
    net, at, made = f"10.213.{os.getpid() % 250}", f"dae{os.getpid()}", []
    def ip(*words): subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
    def own(undo, *words):
        ip(*words)
        made.append(undo)
    try:
        own(("link", "del", f"{at}b"), "link", "add", f"{at}b", "type", "bridge")
        ip("addr", "add", f"{net}.1/24", "dev", f"{at}b")
        ip("link", "set", f"{at}b", "up")
        for k in range(n):
            name, address = f"{at}-{k}", f"{net}.{10 + k}"
            own(("netns", "del", name), "netns", "add", name)
            ip("link", "add", f"{at}v{k}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{at}v{k}", "master", f"{at}b", "up")
            for words in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up"),
                          ("link", "set", "lo", "up")): ip("-n", name, *words)
        yield f"{net}.1", [(("ip", "netns", "exec", f"{at}-{k}"), f"{net}.{10 + k}") for k in range(n)]
    finally:
        for undo in reversed(made): subprocess.run(["ip", *undo], capture_output=True, timeout=20)


def wait_until(told, seconds: float = 60):
    "What `told()` says as soon as it says something."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := told(): return found
        time.sleep(0.02)
    raise TimeoutError(f"not within {seconds} s")


def kill_one(client: Client) -> bool:
    "SIGKILL a worker, one that is at a task if there is any; returns whether it was."
    pids, busy = client.run(os.getpid, on_error="ignore"), client.run(at_work, on_error="ignore")
    if not pids: return False
    victim = next((w for w in pids if busy.get(w)), next(iter(pids)))
    os.kill(pids[victim], signal.SIGKILL)
    return bool(busy.get(victim))


# ---- steps without data

class Nothing(BaseTransform):
    "Stands for a transform where the step looks at none."
    def transform(self, inputs, context): return inputs


@dataclass(frozen=True)
class Job:
    "What the steps below are told."
    transform: Nothing
    what: str = ""
    state_path: None = None


def job(lake: Path, what: str = "") -> Job:
    config = TransformConfig(name="nothing", inputs={"a": InputConfig(name="a", path=str(lake / "bronze"))},
                             outputs={"b": OutputConfig(name="b", path=str(lake / "silver/b"))})
    return Job(Nothing(config), what)


def units(chain: str, n: int) -> list: return [SimpleNamespace(partition=SimpleNamespace(path=f"{chain}/{k}"))
                                               for k in range(n)]


def step(job: Job, unit, before: int | None):
    "Counts; and waits, dies or fails where it is told to."
    path, number = unit.partition.path, (before or 0) + 1
    what, _, where = job.what.partition(" ")
    if path == where and what == "die": os.kill(os.getpid(), signal.SIGKILL)
    if path == where and what == "raise": raise ValueError("a step that breaks its promise")
    if what in ("wait", "leave"): time.sleep(float(where))
    if what == "leave": left(job, path).write_text("")
    errors = {"odd": Odd(1), "tell": OSError(f"denied for {SECRET}")}
    return UnitReport(path, "written", f"the {number}.", error=errors.get(what)), number


def left(job: Job, path: str) -> Path:
    "The file that a step leaves for a unit."
    return Path(job.transform.config.inputs["a"].path) / path.replace("/", "-")


class Odd(Exception):
    "An error that cannot be unpickled."
    def __init__(self, number): super().__init__()
    def __reduce__(self): return Odd, ()


def finish(job: Job, last: int) -> None: FINISHED.append(last)


FINISHED: list = []
