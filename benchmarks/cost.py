"""What a year would take: from seconds and bytes per million rows to hours, terabytes, requests, assumptions said.

The model is arithmetic on what was measured; it knows nothing of disks and networks, so it also says how many bytes a
second they would have to deliver. Days of one symbol are computed in order, each from the state of the day before: a
symbol is a chain, and there are never more chains at work than symbols. More cores than chains help only as far as one
chain uses several (measured from one core to two, beyond that by Amdahl's law from the same measurement)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil

CORES = (1, 16, 50, 128)
HOUR_S = 3600.0
#: requests to an object store for a symbol and day, as the tests of the store count them: the folders of the inputs and
#: twice those of the outputs are listed; inputs and the state of the day before are fetched; a state, and data and
#: lineage of silver and of bars of four lengths, are put
REQUESTS = {"silver": {"LIST": 4, "GET": 3, "PUT": 3}, "gold": {"LIST": 9, "GET": 5, "PUT": 9}}


@dataclass(frozen=True)
class Plan:
    "What is to be computed: rows a day are snapshots of one symbol every 100 ms."
    symbols: int = 50
    days: int = 365
    rows_a_day: int = 864_000

    @property
    def units(self) -> int: return self.symbols * self.days

    @property
    def rows(self) -> int: return self.units * self.rows_a_day


@dataclass(frozen=True)
class Measured:
    "Of a million rows: seconds on one core (least, median, greatest) and megabytes (10^6); of a chain and of a unit."
    seconds: tuple[float, float, float]        # silver and gold
    bronze_mb: float
    silver_mb: float
    gold_mb: float
    speedup: float = 1.0                       # of one chain from one core to two
    overhead_s: float | None = None            # of scheduling one unit; None: not measured


def speedup(two: float, cores: int) -> float:
    "Of one chain on `cores`, by Amdahl's law from what it gains on `two` cores; never below 1."
    serial = min(max(2.0 / max(two, 1.0) - 1.0, 0.0), 1.0)
    return 1.0 / (serial + (1.0 - serial) / cores)


def unit_seconds(m: Measured, plan: Plan, cores: int = 1) -> tuple[float, ...]:
    "Seconds of a symbol and day on so many cores: least, median, greatest."
    gain = speedup(m.speedup, cores)
    return tuple(s * plan.rows_a_day / 1e6 / gain + (m.overhead_s or 0.0) for s in m.seconds)


def wall(m: Measured, plan: Plan, cores: int) -> dict:
    """Hours on `cores`: `hours` where a chain keeps its core until its last day, `ideal_hours` where days of all chains
    are dealt out as cores become free; `low`, `high` with the least and greatest seconds that were measured."""
    at_once, each = min(plan.symbols, cores), max(1, cores // plan.symbols)
    least, median, greatest = unit_seconds(m, plan, each)
    turns = ceil(plan.symbols / at_once)
    def held(unit): return turns * plan.days * unit / HOUR_S
    def dealt(unit): return max(plan.days * unit, plan.units * unit / at_once) / HOUR_S
    moved = m.bronze_mb + 2 * m.silver_mb + m.gold_mb         # silver is written, and read for bars
    megabytes = plan.rows / 1e6 * moved
    return {"chains": at_once, "cores_a_chain": each, "cores_busy": at_once * each, "hours": held(median),
            "ideal_hours": dealt(median), "low": dealt(least), "high": held(greatest),
            "core_hours": plan.units * median * each / HOUR_S, "mb_s": megabytes / (held(median) * HOUR_S)}


def estimate(m: Measured, plan: Plan = Plan()) -> dict:
    "The whole table, with what it was made from."
    tb = {k: plan.rows / 1e6 * getattr(m, f"{k}_mb") / 1e6 for k in ("bronze", "silver", "gold")}
    asked = {k: plan.units * sum(tier[k] for tier in REQUESTS.values()) for k in ("LIST", "GET", "PUT")}
    return {"plan": asdict(plan) | {"units": plan.units, "rows": plan.rows}, "measured": asdict(m),
            "cores": {str(c): wall(m, plan, c) for c in CORES}, "storage_tb": tb, "requests": asked}


# ---- from results.json

def measured_of(results: Mapping) -> Measured | None:
    "What the model needs, if the run has the cases for it."
    try:
        cases = results["cases"]
        books, gold = (cases[n]["sides"]["daedalus_etl"] for n in ("books_silver", "books_gold"))
        one, two = (cases["books_cores"]["sides"].get(n, {}) for n in ("1 core", "2 cores"))
        alone = one.get("wall") or books["cpu"]        # where cores cannot be told apart: all threads' seconds
        silver, bars = alone, gold["cpu"]
        seconds = tuple((silver[k] / books["rows"] + bars[k] / gold["rows"]) * 1e6 for k in ("min", "median", "max"))
        gain = one["wall"]["median"] / two["wall"]["median"] if "wall" in one and "wall" in two else 1.0
        return Measured(seconds, *(s[k] / s["rows"] for s, k in ((books, "bytes_in"), (books, "bytes_out"),
                                                                (gold, "bytes_out"))),
                        speedup=max(gain, 1.0), overhead_s=overhead_of(results))
    except KeyError: return None


def overhead_of(results: Mapping) -> float | None:
    "Seconds that a cluster's scheduler adds to a unit, as benchmarks/cluster.py told it."
    told = results.get("scripts", {}).get("cluster", {}).get("result", {}).get("cost of a unit", {})
    found = [told[k] for k in ("noop ms/unit", "tiny extra ms/unit") if k in told]
    return max(0.0, *found) / 1e3 if found else None
