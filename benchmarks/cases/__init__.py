"""All cases, by name. A module of this package lists its own in `CASES`, and imports what it measures late."""
from __future__ import annotations

import importlib
import pkgutil
from fnmatch import fnmatch

from benchmarks.harness import Case

GROUPS = {"silver": "Bronze to silver", "bars": "Bars", "features": "Features in memory", "lake": "Reading a lake",
          "storage": "What the store costs", "quality": "Row rules", "start": "Starting up",
          "look": "Charts and explorer"}


def every() -> dict[str, Case]:
    "Name to case, group by group."
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    found = [c for m in modules for c in m.CASES]
    return {c.name: c for c in sorted(found, key=lambda c: list(GROUPS).index(c.group))}


def find(name: str) -> Case:
    "The case of that name."
    return every()[name]


def choose(patterns: list[str]) -> dict[str, Case]:
    "Cases whose names match one of `patterns` (`bars*`); a pattern that matches nothing is an error."
    known = every()
    for p in patterns:
        if not any(fnmatch(n, p) for n in known):
            from daedalus_etl.core.errors import ConfigError, did_you_mean
            raise ConfigError(f"no case is named {p!r}", expected="a name or pattern of those that --list shows",
                              fix=did_you_mean(p, list(known)))
    return {n: c for n, c in known.items() if any(fnmatch(n, p) for p in patterns)} if patterns else known
