"""A process that measures one side of one case, or makes the inputs of one: an order as JSON in, measures as JSON out.

It may run under an interpreter without the package (`--python`), so the modules of cases import late."""
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from benchmarks.cases import find
from benchmarks.harness import TAIL, Env, Side, Skip, measured


def restrict(cores: int | None) -> None:
    "Stay on so many cores, with as many threads."
    if cores is None: return
    if not hasattr(os, "sched_setaffinity"): raise Skip("this system cannot keep a process on some cores")
    there = sorted(os.sched_getaffinity(0))
    if len(there) < cores: raise Skip(f"{cores} cores are needed, {len(there)} are there")
    os.sched_setaffinity(0, there[:cores])
    os.environ |= {k: str(cores) for k in ("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS")}


def check(side: Side) -> None:
    missing = [n for n in side.needs if importlib.util.find_spec(n) is None]
    if missing: raise Skip(f"not installed: {', '.join(missing)}")


def side_result(side: Side, env: Env, passes: int) -> dict:
    "The last of the passes, or why there is none."
    try:
        restrict(side.cores)
        check(side)
        for _ in range(passes): result = measured(lambda: side.work(env))
        return result
    except Skip as e: return {"skipped": str(e)}
    except Exception as e:       # the driver tells it, and goes on with the other sides
        traceback.print_exc()
        return {"failed": f"{type(e).__name__}: {e}"[-TAIL:]}


def obey(order: dict) -> dict:
    "Do what the order says: by side its measures."
    case, data = find(order["case"]), Path(order["data"])
    rows = case.quick if order["quick"] else case.rows
    reference = Path(order["reference"]) if order["reference"] else None
    data.mkdir(parents=True, exist_ok=True)
    said = {}
    for side in (s for s in case.sides if s.name in order["sides"]):
        scratch = Path(tempfile.mkdtemp(prefix="run-", dir=data))
        env = Env(data, scratch, rows, min(rows, side.most or rows), reference)
        try:
            if order["task"] == "inputs":
                case.inputs(env)
                said[side.name] = {"made": case.name}
            else: said[side.name] = side_result(side, env, 1 if order["quick"] else side.passes)
        finally: shutil.rmtree(scratch)
    return said


if __name__ == "__main__": print(json.dumps(obey(json.loads(sys.argv[1]))))
