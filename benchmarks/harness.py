"""How a case is measured: each side in a process of its own, in turns, medians with spreads, ratios within one run.

A `Case` has sides: ours, a floor (what cannot be avoided: the same columns read and written, nothing computed), peers.
Round after round every side runs once, in a fresh process that works through some passes and reports the last one, so
that caches are warm and kernels loaded. A ratio is taken within a round, per row, and its median over the rounds is
told. This module needs nothing but the standard library: a driver that holds little disturbs little."""
from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS, FLOOR, PEER = "ours", "floor", "peer"
MEASURES = ("wall", "cpu", "rss")
TAIL = 600                   # characters of a child's last words that are kept


@dataclass(frozen=True)
class Side:
    "One way to do the work of a case; `work(env)` returns its rows, or a dict with `rows` and other figures."
    name: str
    work: Callable[[Env], int | dict]
    role: str = PEER
    needs: tuple[str, ...] = ()          # modules beyond the package's own; without them the side is skipped
    passes: int = 2                      # the last one counts
    most: int | None = None              # rows, for a side that is too slow for all of them
    cores: int | None = None             # run on so many only


@dataclass(frozen=True)
class Case:
    "What is measured, on how many rows, by which sides; `inputs(env)` makes what they read, once."
    name: str
    title: str
    what: str
    group: str
    rows: int
    sides: tuple[Side, ...]
    inputs: Callable[[Env], object] | None = None
    unit: str = "rows"
    quick: int = 20_000                  # rows of a quick run
    rounds: int | None = None            # where the usual number would take too long


@dataclass
class Env:
    "What a side is given: where inputs are kept, a folder of its own, how many rows, and what it keeps between passes."
    data: Path
    scratch: Path
    rows: int
    most: int = 0                        # rows that the side shall take of them
    reference: Path | None = None
    kept: dict = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], object]):
        "What `make` returned in this process."
        if name not in self.kept: self.kept[name] = make()
        return self.kept[name]


class Skip(Exception):
    "A side cannot run here, and why."


@dataclass(frozen=True)
class Options:
    "Of a whole run. `pythons`: side name to an interpreter that has what the side needs."
    data: Path
    quick: bool = False
    rounds: int = 3
    reference: Path | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)


# ---- one measurement

def cpu_seconds() -> float:
    "CPU seconds of this process and of its children that are over."
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + theirs.ru_utime + theirs.ru_stime


def peak_mib() -> float:
    "Peak memory of this process in MiB; Linux counts it from the program's start, other systems from the parent's."
    try: lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        scale = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measured(work: Callable[[], int | dict]) -> dict:
    "Wall and CPU seconds of `work()`, this process's peak memory so far in MiB, and what `work` says itself."
    cpu, wall = cpu_seconds(), time.perf_counter()
    said = work()
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {"wall": wall, "cpu": cpu, "rss": peak_mib()} | (said if isinstance(said, dict) else {"rows": said})


# ---- children

def child(case: Case, sides: Sequence[Side], options: Options, task: str = "measure") -> dict[str, dict]:
    """What the sides say, one after the other in a fresh process: by name their measures, or `skipped` or `failed` with
    the reason."""
    order = {"task": task, "case": case.name, "sides": [s.name for s in sides], "quick": options.quick,
             "data": str(options.data), "reference": str(options.reference) if options.reference else None}
    said = last_json([python_of(sides[0], options), "-m", "benchmarks.child", json.dumps(order)])
    return {s.name: said if set(said) == {"failed"} else said[s.name] for s in sides}


def python_of(side: Side, options: Options) -> str:
    "The interpreter of a side: its own if one is given."
    return options.pythons.get(side.name, sys.executable)


def output(command: Sequence[str], timeout_s: float | None = None) -> str | dict:
    "What a command prints; `failed` with its last words if it fails."
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
                              timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as e: return {"failed": f"{type(e).__name__}: {e}"[-TAIL:]}
    if done.returncode: return {"failed": done.stderr.strip()[-TAIL:] or f"exit code {done.returncode}"}
    return done.stdout


def last_json(command: Sequence[str]) -> dict:
    "The JSON object on the last line that a command prints; `failed` with its last words if it fails."
    said = output(command)
    if isinstance(said, dict): return said
    try: found = json.loads(said.splitlines()[-1])
    except (IndexError, ValueError): return {"failed": f"no JSON on the last line: {said[-TAIL:]!r}"}
    return found if isinstance(found, dict) else {"failed": f"no JSON object: {found!r}"[-TAIL:]}


# ---- rounds

def spread(values: Sequence[float]) -> dict[str, float]:
    "Median, least and greatest."
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(runs: Sequence[dict | None], base: Sequence[dict | None], key: str) -> dict[str, float] | None:
    "How many times what `base` takes per row `runs` take, round by round; None if no round has both."
    both = [(r, b) for r, b in zip(runs, base) if r and b and r["rows"] and b["rows"] and b[key] > 0]
    return spread([(r[key] / r["rows"]) / (b[key] / b["rows"]) for r, b in both]) if both else None


def gathered(runs: Sequence[dict]) -> dict:
    "Runs of one side as medians and spreads; figures of its own (`bytes_out`) as medians, its `parts` likewise."
    out: dict = {k: spread([r[k] for r in runs]) for k in MEASURES if k in runs[0]}
    own = [k for k in runs[0] if k not in (*MEASURES, "parts")]
    out |= {k: statistics.median(r[k] for r in runs) for k in own}
    if parts := runs[0].get("parts"): out["parts"] = {p: gathered([r["parts"][p] for r in runs]) for p in parts}
    return out


def summary(case: Case, runs: Mapping[str, Sequence[dict | None]], reasons: Mapping[str, dict]) -> dict:
    "What results.json says of a case. `runs`: by side, one per round, None where there is none."
    base = next((runs[s.name] for s in case.sides if s.role == OURS), [])
    sides = {}
    for s in case.sides:
        sides[s.name] = {"role": s.role} | reasons.get(s.name, {})
        if done := [r for r in runs[s.name] if r]:
            sides[s.name] |= gathered(done) | {f"{k}_ratio": ratios(runs[s.name], base, k) for k in ("wall", "cpu")}
    about = {k: getattr(case, k) for k in ("title", "what", "group", "unit")}
    return about | {"rows": max((s.get("rows", 0) for s in sides.values()), default=0), "sides": sides,
                    "rounds": max(map(len, runs.values()), default=0)}


def together(case: Case, options: Options) -> list[list[Side]]:
    "Sides by process: each in its own, but in a quick run those that can share one do."
    if not options.quick: return [[s] for s in case.sides]
    alone = [s for s in case.sides if s.cores or python_of(s, options) != sys.executable]
    shared = [s for s in case.sides if s not in alone]
    return [*([shared] if shared else []), *([s] for s in alone)]


def run_case(case: Case, options: Options, tell: Callable[[str], None] = lambda line: None) -> dict:
    "All rounds of a case, its sides in turns."
    runs, reasons = {s.name: [] for s in case.sides}, {}
    began, busy, own = time.perf_counter(), busy_seconds(), cpu_seconds()
    if case.inputs:
        tell(f"{case.name}: inputs")
        made = child(case, case.sides[:1], options, task="inputs")[case.sides[0].name]
        if bad(made): reasons = {s.name: made for s in case.sides}
    for turn in range(1 if options.quick else min(options.rounds, case.rounds or options.rounds)):
        for sides in together(case, options):
            if not (left := [s for s in sides if s.name not in reasons]): continue
            tell(f"{case.name}: {', '.join(s.name for s in left)}, round {turn + 1}")
            for name, done in child(case, left, options).items():
                if bad(done): reasons[name] = done
                runs[name].append(None if bad(done) else done)
    elapsed = time.perf_counter() - began
    others = None if busy is None else max(0.0, busy_seconds() - busy - (cpu_seconds() - own)) / max(elapsed, 1e-9)
    return summary(case, runs, reasons) | {"seconds": elapsed, "others_cores": others}


def bad(said: dict) -> bool: return not {"failed", "skipped"}.isdisjoint(said)


# ---- the machine's noise

def busy_seconds() -> float | None:
    "Seconds that the machine's cores have been busy since it began, for whomever; None where that is not told."
    try: words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except FileNotFoundError: return None
    user, nice, system, _, _, irq, soft, steal = map(int, words[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


LOOP = 400_000               # turns of the calibration loop, some 20 ms


def calibrate(times: int = 15) -> dict:
    "Wall and CPU seconds of a loop that always does the same; on a quiet machine they agree and hardly spread."
    runs = []
    for _ in range(times):
        wall, cpu, x = time.perf_counter(), time.process_time(), 0
        for i in range(LOOP): x += i & 7
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    walls, cpus = zip(*runs)
    return {"wall": spread(walls), "cpu": spread(cpus)}


QUIET_LOAD, QUIET_OTHERS, QUIET_SHIFT = 0.25, 0.10, 0.10     # per core; cores; share


def warnings(noise: Mapping, cores: int) -> list[str]:
    "What speaks against trusting a run's wall seconds."
    found, before, after = [], noise["calibration_before"], noise["calibration_after"]
    if noise["load_before"] > QUIET_LOAD * cores:
        found.append(f"the load average was {noise['load_before']:.1f} on {cores} cores before the run began")
    if (others := noise.get("others_cores")) and others > QUIET_OTHERS:
        found.append(f"other processes used {others:.2f} cores while it ran")
    shift = after["wall"]["median"] / before["wall"]["median"] - 1
    if abs(shift) > QUIET_SHIFT: found.append(f"the calibration loop took {shift:+.0%} wall time after the run")
    waits = max(c["wall"]["median"] / c["cpu"]["median"] for c in (before, after)) - 1
    if waits > QUIET_SHIFT: found.append(f"the calibration loop waited for a core {waits:.0%} of its time")
    return found
