"""Benchmarks that stand for themselves (memory, partitions, cluster), called as children; their words as figures."""
from __future__ import annotations

import json
import re
import sys

from benchmarks import harness

TIMEOUT_S = 600.0
#: script to the flags of a full and of a quick run
SCRIPTS = {
    "memory": (["--rows", "500000", "--days", "1", "6"], ["--rows", "2000", "--days", "1", "2"]),
    "partitions": (["--symbols", "10", "--days", "100"], ["--symbols", "2", "--days", "4", "--workers", "1"]),
    "cluster": (["--times", "2"], "--chains 2 --units 3 --symbols 1 --seconds 20 --times 1".split())}
LINE = re.compile(r"^(?P<what>[^:]+): (?P<partitions>[\d,]+) partitions in .*; (?P<wall_ms>[\d.]+) ms wall, "
                  r"(?P<cpu_ms>[\d.]+) ms CPU each")


def script(name: str, quick: bool) -> dict:
    "`result`: what benchmarks/<name>.py tells; or `skipped` or `failed` with the reason."
    path = harness.ROOT / "benchmarks" / f"{name}.py"
    if not path.exists(): return {"skipped": f"benchmarks/{name}.py is not there"}
    words = SCRIPTS[name][quick] + ["--json"] * ("--json" in path.read_text(encoding="utf-8"))
    said = harness.output([sys.executable, str(path), *words], TIMEOUT_S)
    if isinstance(said, dict): return said
    return {"result": told} if (told := figures(said)) else {"failed": f"no figures in {said[-harness.TAIL:]!r}"}


def figures(text: str) -> dict:
    """Figures in what a script printed: one JSON object over several lines or on the last one, an object a line (by
    what comes first in each), or sentences of milliseconds for each partition."""
    lines = text.splitlines()
    for start in (next((i for i, line in enumerate(lines) if line == "{"), None), -1 if lines else None):
        if start is not None and (found := parsed("\n".join(lines[start:]))): return found
    objects = [o for o in map(parsed, lines) if o]
    if objects: return {" ".join(map(str, next(iter(o.items())))): o for o in objects}
    return {m["what"]: {k: float(m[k].replace(",", "")) for k in ("partitions", "wall_ms", "cpu_ms")}
            for m in map(LINE.match, lines) if m}


def parsed(text: str) -> dict | None:
    "The JSON object that `text` is; None if it is none."
    try: found = json.loads(text)
    except ValueError: return None
    return found if isinstance(found, dict) else None
